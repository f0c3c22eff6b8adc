"""Where the `sora` command begins: before anything large is imported, it may start itself again with other memory."""

from sora_jax.runtime import process


def main() -> None:
  """The console entry point."""
  process.restart_with_large_pages()
  from sora_jax.cli import main as command

  command.main()
