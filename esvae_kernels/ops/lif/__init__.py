"""The leaky integrate-and-fire neuron, fused over time."""

from .op import lif

__all__ = ["lif"]
