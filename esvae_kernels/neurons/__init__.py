"""Neurons as equations: a file per family. A new one is a file here, and a line below."""

from .adaptive import alif

__all__ = ["alif"]
