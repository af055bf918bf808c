"""The Efficient Spiking Variational Autoencoder (arXiv 2310.14839): train, generate, reconstruct, evaluate."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .extras import needed

if TYPE_CHECKING:
    from .models import ESVAE
    from .official import load_official_state_dict

__all__ = ["ESVAE", "load_official_state_dict"]

_HOMES = {"ESVAE": ".models", "load_official_state_dict": ".official"}


def __getattr__(name: str) -> Any:
    """Imported when first asked for: the command line's help and version need no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed("model"):
        globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
