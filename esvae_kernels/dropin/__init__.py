"""Other libraries' neuron layers on our kernels: `convert(model)`, `revert(model)`, and a module per library.

    from esvae_kernels import dropin

    print(dropin.convert(model))  # what was replaced; what was not, and why

`dropin.spikingjelly` and the like have the layers for direct use. Each of these modules imports its library, this
package does not.
"""

from .convert import Entry, Report, convert, revert

__all__ = ["Entry", "Report", "convert", "revert"]
