"""The Poisson spike sampler."""

from .op import poisson

__all__ = ["poisson"]
