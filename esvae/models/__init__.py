"""Models: one file each."""

from .esvae import ESVAE, Reconstruction

__all__ = ["ESVAE", "Reconstruction"]
