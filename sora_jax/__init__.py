"""Text-to-video diffusion transformers on spacetime patches, in JAX."""

__version__ = "0.1.0"
