"""The Efficient Spiking Variational Autoencoder (arXiv 2310.14839): train, generate, reconstruct, evaluate."""

from .models import ESVAE
from .official import load_official_state_dict

__all__ = ["ESVAE", "load_official_state_dict"]
