"""Graphs of the Neuromorphic Intermediate Representation (NIR; Pedersen et al., 2024), from and to modules.

    graph = to_nir(model, (1, 28, 28), accept=[">="])      nir.write("model.nir", graph)
    network = from_nir(read("model.nir"))                  network(x): x (T, N, 1, 28, 28)

This package imports `nir`, and `h5py` with it; `nirtorch` is not needed.
"""

import nir

if "v_reset" not in nir.LIF.__dataclass_fields__:
    raise ImportError(f"nir: got {nir.version}, accepted is 1.0.6 or later, where neurons have a v_reset")

from .export import to_nir
from .file import read
from .network import Network, from_nir

__all__ = ["Network", "from_nir", "read", "to_nir"]
