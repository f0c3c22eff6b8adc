"""`python -m sora_jax.cli`: the `sora` command."""

from sora_jax.cli.start import main

if __name__ == "__main__":
  main()
