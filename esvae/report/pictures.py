"""The images of a report: test images, their reconstructions, the same from shuffled latent spikes, and drawn ones."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import ImageSet, normalize, to_uint8
from ..evaluate import SEED, autocast, device_of
from ..models import Model

SAMPLES = 32
TEST_IMAGES = 16


@torch.no_grad()
def pictures(
    model: Model, images: ImageSet | None, *, prior: str, precision: str = "fp32", seed: int = SEED
) -> dict[str, Any]:
    """Images by a model, each row as one PNG file (see `unpack`).

    Args:
        model: of any kind.
        images: test images, of which the first 16 are taken; None for a model without an encoder.

    Returns:
        `prior`, `seed`, `precision`; `samples`, 32 drawn images; with an encoder `originals` and `reconstructions`;
        with a spiking one each of the reconstructions from the same latent spikes shuffled (`esvae.robustness`).
    """
    from ..robustness import disturbances

    model.eval()
    device = device_of(model)
    with autocast(device, precision):
        found = {"samples": model.generate(SAMPLES, seed=seed, prior=prior)}
        if images is not None:
            originals = normalize(images.pixels[:TEST_IMAGES].to(device))
            ids = torch.arange(len(originals), device=device)
            found["originals"] = originals
            if hasattr(model, "latent_spikes"):
                z = model.latent_spikes(originals, seed=seed, sample_ids=ids)
                for (name, _), disturbed in disturbances(z, ids, seed, ()):
                    found["reconstructions" if name == "vanilla" else name] = model.decode(disturbed)
            else:
                found["reconstructions"] = model.reconstruct(originals, seed=seed, sample_ids=ids)
    return {"prior": prior, "seed": seed, "precision": precision, **{name: pack(x) for name, x in found.items()}}


def pack(images: Tensor) -> str:
    """(N, C, S, S) in [-1, 1] -> a PNG file of them one below the other, in base64."""
    pixels = to_uint8(images.float().cpu()).permute(0, 2, 3, 1).flatten(0, 1).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def unpack(text: str) -> Tensor:
    """The inverse of `pack`, uint8 (N, C, S, S)."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(text)), formats=["PNG"]))
    height, side = pixels.shape[:2]
    return torch.from_numpy(pixels.reshape(height // side, side, side, -1)).permute(0, 3, 1, 2)
