"""The model's halves as modules of one sequence each, and as graphs in NIR.

    Encoder    images (T, N, C, H, W), the same at every step -> spikes (T, N, d); their mean over time is the rate r_p
    Decoder    spikes z (T, N, d) -> potentials u (T, N, C, H, W); the image is tanh(u_{T-1})

NIR has no mean over time, no tanh and no batch norm, and a current that is constant in time comes in at every step. The
readout sum_t c_t y_t is the last potential of a leaky integrator, u_t = readout_decay u_{t-1} + y_t.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from esvae_kernels.nn import LI

from .errors import InputError
from .models import MODELS, Model
from .models.backbone import Backbone, SpikingDecoder
from .runs import atomic_write

PARTS = ("encoder", "decoder")


class Encoder(nn.Module):
    def __init__(self, model: Backbone) -> None:
        super().__init__()
        self.encoder, self.to_latent = model.encoder, model.to_latent
        self.input_shape = (model.config.channels, model.config.size, model.config.size)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.encoder:
            x = layer(x)
        return self.to_latent(x.flatten(2))


class Decoder(nn.Module):
    def __init__(self, model: SpikingDecoder) -> None:
        super().__init__()
        self.from_latent, self.decoder, self.to_image = model.from_latent, model.decoder, model.to_image
        self.readout = LI(decay=model.config.readout_decay, gain=float(model.readout_weights()[-1]), readout=None)
        self.input_shape = (model.config.latent,)
        self.pixels = (model.config.widths[-1], 2, 2)

    def forward(self, spikes: Tensor) -> Tensor:
        x = self.from_latent(spikes).unflatten(2, self.pixels)
        for layer in self.decoder:
            x = layer(x)
        y = self.to_image(x.flatten(0, 1))
        return self.readout(y.unflatten(0, spikes.shape[:2]))


def export(model: Model, part: str, path: Path | str, **options: Any) -> None:
    """Write a half of the model to a NIR file. `options`: those of `esvae_kernels.dropin.nir.to_nir`.

    Raises:
        InputError: `nir` is not installed, or it or an option lacks what the model has; the model has no such half; the
            disk refuses.
    """
    _require_half(model, part)
    try:
        import nir

        from esvae_kernels.dropin.nir import to_nir
    except ImportError as error:
        raise InputError(f"export needs the package nir, 1.0.6 or later: {error}") from None
    half = Encoder(model) if part == "encoder" else Decoder(model)
    try:
        graph = to_nir(half.eval(), half.input_shape, **options)
    except ValueError as error:
        raise InputError(str(error)) from None
    content = io.BytesIO()
    nir.write(content, graph)
    atomic_write(path, content.getvalue())


def _require_half(model: Model, part: str) -> None:
    wanted, option, plain = {
        "encoder": (Backbone, "attention", "none"),
        "decoder": (SpikingDecoder, "readout", "decay"),
    }[part]
    if not isinstance(model, wanted):
        able = ", ".join(kind for kind, other in MODELS.items() if issubclass(other, wanted))
        raise InputError(f"kind: got {model.kind!r}, accepted are {able}: the others have no spiking {part}")
    if (got := getattr(model.config, option)) != plain:
        raise InputError(f"{option}: got {got!r}, accepted is {plain!r}: NIR has nothing that says the other")
