"""Surrogate gradients. A class per formula, with a shape parameter, `shift`, `scale`, `spiking`: see `reference.py`.

`PiecewiseQuadratic`, `Erf`, `SoftSign`, `SuperSpike` and `SingleExponential` are other libraries' names for members of
these families.
"""

from .reference import (
    SURROGATES,
    ATan,
    Erf,
    FastSigmoid,
    Gaussian,
    PiecewiseExp,
    PiecewiseQuadratic,
    Rectangular,
    Sigmoid,
    SingleExponential,
    SoftSign,
    StraightThrough,
    SuperSpike,
    Surrogate,
    Triangular,
)

__all__ = [
    "SURROGATES",
    "ATan",
    "Erf",
    "FastSigmoid",
    "Gaussian",
    "PiecewiseExp",
    "PiecewiseQuadratic",
    "Rectangular",
    "Sigmoid",
    "SingleExponential",
    "SoftSign",
    "StraightThrough",
    "SuperSpike",
    "Surrogate",
    "Triangular",
]
