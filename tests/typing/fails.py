"""What mypy has to tell a user. Each line is wrong in the way that its comment names: `make lint` fails where one
passes (the comment is then unused) or errs otherwise, and where another line errs."""

from __future__ import annotations

import torch

from esvae_kernels import Delayed, Hard, Soft, bn_lif, dropin, lif, nn, poisson, surrogate, use_backend

x = torch.rand(4, 2, 3)
v = torch.zeros(2, 3)
c = torch.ones(3)

# The number of outputs
spikes, last, _ = lif(x, decay=0.5, threshold=1.0)  # type: ignore[misc]
spikes, last = lif(x, decay=0.5, threshold=1.0, record="membrane")  # type: ignore[misc]
spikes, last = lif(x, decay=0.5, threshold=1.0, synaptic_decay=0.8)  # type: ignore[misc]
spikes, last, _ = lif(x, decay=0.5, threshold=1.0, synaptic_decay=0.8, record="membrane")  # type: ignore[misc]
spikes, last, _ = bn_lif(x, c, c, c, c, training=True, decay=0.5, threshold=1.0)  # type: ignore[misc]
spikes, last = bn_lif(x, c, c, c, c, training=True, decay=0.5, threshold=1.0, record="membrane")  # type: ignore[misc]
lif(x, decay=0.5, threshold=1.0).sum()  # type: ignore[attr-defined]

# Values
lif(x, decay="0.5", threshold=1.0)  # type: ignore[call-overload]
lif(x, decay=None, threshold=1.0)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, reset="hard")  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, reset="sofft")  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, reset=Hard)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, surrogate="atan")  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, surrogate=surrogate.ATan)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, readout="rate")  # type: ignore[arg-type]
lif(x, decay=0.5, threshold=1.0, record="spikes")  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, record=True)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, fire=">>")  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, dtype="float32")  # type: ignore[call-overload]
lif(x, v, v, decay=0.5, threshold=1.0)  # type: ignore[call-overload]
lif(x, v, v, 0.5, threshold=1.0)  # type: ignore[call-overload]
lif([1.0], decay=0.5, threshold=1.0)  # type: ignore[call-overload]
bn_lif(x, c, c, c, c, training=True, decay=0.5, threshold=1.0, fire="multi_spike")  # type: ignore[call-overload]
bn_lif(x, c, c, c, c, training=True, decay=0.5, threshold=1.0, reset="hard")  # type: ignore[call-overload]
poisson(v, "4")  # type: ignore[arg-type]
poisson(v, 4, surrogate=surrogate.Rectangular)  # type: ignore[arg-type]
Hard("0.1")  # type: ignore[arg-type]
Hard(detach="yes")  # type: ignore[arg-type]
surrogate.ATan("2")  # type: ignore[arg-type]
surrogate.Erf(scale="2")  # type: ignore[arg-type]

# Keywords that are missing, unknown, or of a version before
lif(x, threshold=1.0)  # type: ignore[call-overload]
lif(x, decay=0.5)  # type: ignore[call-overload]
lif(x, decay=0.5, treshold=1.0)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, rest=0.1)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, v_reset=0.1)  # type: ignore[call-overload]
lif(x, decay=0.5, threshold=1.0, synapse=0.8)  # type: ignore[call-overload]
bn_lif(x, c, c, c, c, decay=0.5, threshold=1.0)  # type: ignore[call-overload]
bn_lif(x, c, c, c, c, training=True, decay=0.5, threshold=1.0, strict=True)  # type: ignore[call-overload]
Soft(0.1)  # type: ignore[arg-type]
Delayed(v_reset=0.1)  # type: ignore[call-arg]
surrogate.ATan(width=1.0)  # type: ignore[call-arg]
surrogate.ATan(center=0.1)  # type: ignore[call-arg]
surrogate.SoftSign(smooth=True)  # type: ignore[call-arg]

# Modules
nn.LIF(threshold=1.0)  # type: ignore[call-arg]
nn.LIF(decay="0.5", threshold=1.0)  # type: ignore[arg-type]
nn.LIF(decay=0.5, threshold=1.0, reset="hard")  # type: ignore[arg-type]
nn.LIF(decay=0.5, threshold=1.0, readout="rate")  # type: ignore[arg-type]
nn.LIF(decay=0.5, threshold=1.0, fire=">>")  # type: ignore[arg-type]
nn.LIF(decay=0.5, threshold=1.0, rest=0.1)  # type: ignore[arg-type]
nn.LIF(decay=0.5, threshold=1.0, return_v=True)  # type: ignore[arg-type]
nn.LI(decay=0.5, threshold=1.0)  # type: ignore[arg-type]
nn.LI(decay=0.5, readout="first")  # type: ignore[arg-type]
nn.BNLIF(decay=0.5, threshold=1.0)  # type: ignore[call-arg]
nn.BNLIF(3, decay=0.5, threshold=1.0, fire="multi_spike")  # type: ignore[arg-type]
nn.BNLIF(3, decay=0.5, threshold=1.0, synaptic_decay=0.8)  # type: ignore[arg-type]
nn.Poisson("4")  # type: ignore[arg-type]

# The rest
use_backend(None)  # type: ignore[arg-type]
dropin.convert([torch.nn.ReLU()])  # type: ignore[arg-type]
dropin.convert(torch.nn.ReLU(), stric=True)  # type: ignore[call-arg]
