"""The Efficient Spiking Variational Autoencoder (arXiv 2310.14839): train, generate, reconstruct, evaluate."""

from .models import ESVAE

__all__ = ["ESVAE"]
