"""Models: one file each, and a row in MODELS by the `kind` of their config."""

from .base import Model
from .esvae import ESVAE, Reconstruction

MODELS: dict[str, type[Model]] = {model.kind: model for model in (ESVAE,)}

__all__ = ["ESVAE", "MODELS", "Model", "Reconstruction"]
