"""Models: one file each, and a row in MODELS by the `kind` of their config."""

from ..errors import InputError
from .base import Model
from .esvae import ESVAE, Reconstruction
from .fsvae import FSVAE
from .gan import GAN
from .vae import VAE

MODELS: dict[str, type[Model]] = {model.kind: model for model in (ESVAE, FSVAE, VAE, GAN)}


def require(model: Model, method: str, what: str) -> None:
    """That `what`, which calls a `method` of the model, can be done, or an InputError that names the kinds that can."""
    if not hasattr(model, method):
        able = ", ".join(kind for kind, other in MODELS.items() if hasattr(other, method))
        raise InputError(f"kind: got {model.kind!r}, accepted by {what} are {able}: the others have no {method!r}")


__all__ = ["ESVAE", "FSVAE", "GAN", "MODELS", "VAE", "Model", "Reconstruction", "require"]
