"""Fused spiking-neuron kernels for PyTorch: `lif`, `bn_lif`, `poisson`, modules in `nn`, `surrogate` gradients."""

from . import nn, surrogate
from .backends import available_backends, use_backend
from .native import package_version, tune_allocator
from .neuron import neuron
from .ops.bn_lif import bn_lif
from .ops.lif import lif
from .ops.poisson import poisson
from .reset import Delayed, Hard, Reset, Soft
from .watch import watch

__version__ = package_version()
__all__ = [
    "Delayed",
    "Hard",
    "Reset",
    "Soft",
    "available_backends",
    "bn_lif",
    "lif",
    "neuron",
    "nn",
    "poisson",
    "surrogate",
    "tune_allocator",
    "use_backend",
    "watch",
]
