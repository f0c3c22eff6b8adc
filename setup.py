"""Packaging. Tool settings are in pyproject.toml, the exact versions that are tested in constraints.txt."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent


def version() -> str:
  """Read as text: importing the package would need its dependencies before they are installed."""
  source = (ROOT / "sora_jax" / "__init__.py").read_text(encoding="utf-8")
  return re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE).group(1)


def readme() -> str:
  path = ROOT / "README.md"
  return path.read_text(encoding="utf-8") if path.exists() else ""


setuptools.setup(
  name="sora_jax",
  version=version(),
  description="Text-to-video diffusion transformers on spacetime patches, in JAX",
  long_description=readme(),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11,<3.14",
  packages=setuptools.find_packages(include=["sora_jax", "sora_jax.*"]),
  package_data={
    "": ["*.html", "*.css", "*.js"],
    "sora_jax": ["pretrained/*/*", "pretrained/*/autoencoder/*"],
  },
  install_requires=[
    "absl-py>=2.5.1",
    "av>=18.1",
    "chex>=0.1.92",
    "etils[epath]>=1.15",
    "flax>=0.12.8,<0.13",
    "grain>=0.2.18,<0.3",
    "importlib-resources>=6.0",  # of tensorflow-datasets, which doesn't name it
    "jax>=0.10.2,<0.13",
    "ml-collections>=1.1.0",
    "ml_dtypes>=0.4",
    "numpy>=2.0",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=12.0",
    "scipy>=1.14",
    "sentencepiece>=0.2.3",
    "tensorboardX>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tqdm>=4.66",
  ],
  extras_require={
    "gpu": ["jax[cuda12]"],
    "tpu": ["jax[tpu]"],
    "plan": ["libtpu"],  # compiles for TPUs where there is none
    "beam": ["apache-beam>=2.77,<3"],
    "gcs": ["gcsfs>=2024.2"],
    "gym": ["gymnasium>=1.2"],
    "studio": ["gradio>=6.31"],
    "convert": ["safetensors>=0.8.0", "torch>=2.13"],
    "dev": [
      "gymnasium>=1.2",
      "hypothesis>=6.100",
      "mypy>=2.0",
      "pre-commit>=4.0",
      "pytest>=9.0",
      "pytest-xdist>=3.8",
      "ruff>=0.17",
      "safetensors>=0.8.0",
    ],
  },
  entry_points={"console_scripts": ["sora = sora_jax.cli.start:main"]},
)
