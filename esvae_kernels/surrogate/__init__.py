"""Surrogate gradients: `Rectangular`, `StraightThrough`, `Sigmoid`, `ATan`."""

from .reference import SURROGATES, ATan, Rectangular, Sigmoid, StraightThrough, Surrogate

__all__ = ["SURROGATES", "ATan", "Rectangular", "Sigmoid", "StraightThrough", "Surrogate"]
