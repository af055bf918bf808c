"""Threshold-dependent batch norm and the leaky integrate-and-fire neuron in one."""

from .op import bn_lif

__all__ = ["bn_lif"]
