"""Simulators whose state is known: they render clips, caption them and examine clips of others."""
