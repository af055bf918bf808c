"""Inception v3 (Szegedy et al. 2015, arXiv 1512.00567) as FID and Inception Score use it: the network that was ported
from TensorFlow, with the weights of pytorch-fid and torch-fidelity.

It differs from the network of the paper, and from torchvision's, in its pools: an average is taken over the pixels that
are there, without the padding, and the last block takes the maximum instead. 1,008 classes.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvae.errors import InputError
from esvae.metrics.fad import load_exactly

SIZE = 299  # pixels: what the network was trained on
WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
WEIGHTS_BYTES = 95_628_359
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Conv(nn.Module):
    """Convolution, batch norm, ReLU; the padding keeps the size unless there is a stride or it is said otherwise."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int | tuple[int, int] = 1, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, joined along channels; each is a chain of convolutions, told by their names in the file.

    Of `branch3x3_2a`, `branch3x3` is the branch and 2 the link of its chain; 2a and 2b stand side by side.
    `branch_pool` has a pool in front: "average" or "maximum". "halve": a maximum with stride 2, nothing behind it.
    """

    def __init__(self, pool: Literal["average", "maximum", "halve"], **convolutions: Conv) -> None:
        super().__init__()
        self.pool = pool
        self.chains: dict[str, dict[str, list[str]]] = {}
        for name, convolution in convolutions.items():
            self.add_module(name, convolution)
            branch, _, link = name.partition("_")
            if link != "pool":
                self.chains.setdefault(branch, {}).setdefault(link.rstrip("ab"), []).append(name)

    def forward(self, x: Tensor) -> Tensor:
        branches = []
        for chain in self.chains.values():
            y = x
            for names in chain.values():
                y = torch.cat([self.get_submodule(name)(y) for name in names], 1)
            branches.append(y)
        return torch.cat([*branches, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self.pool == "maximum":
            return self.branch_pool(F.max_pool2d(x, 3, stride=1, padding=1))
        return self.branch_pool(F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False))


def _mixed_5(inputs: int, pooled: int) -> Mixed:
    """35x35 pixels (figure 5 of the paper)."""
    return Mixed(
        "average",
        branch1x1=Conv(inputs, 64),
        branch5x5_1=Conv(inputs, 48),
        branch5x5_2=Conv(48, 64, 5),
        branch3x3dbl_1=Conv(inputs, 64),
        branch3x3dbl_2=Conv(64, 96, 3),
        branch3x3dbl_3=Conv(96, 96, 3),
        branch_pool=Conv(inputs, pooled),
    )


def _mixed_6a() -> Mixed:
    """35x35 to 17x17 (figure 10)."""
    return Mixed(
        "halve",
        branch3x3=Conv(288, 384, 3, stride=2),
        branch3x3dbl_1=Conv(288, 64),
        branch3x3dbl_2=Conv(64, 96, 3),
        branch3x3dbl_3=Conv(96, 96, 3, stride=2),
    )


def _mixed_6(width: int) -> Mixed:
    """17x17, by rows and columns of seven (figure 6)."""
    return Mixed(
        "average",
        branch1x1=Conv(768, 192),
        branch7x7_1=Conv(768, width),
        branch7x7_2=Conv(width, width, (1, 7)),
        branch7x7_3=Conv(width, 192, (7, 1)),
        branch7x7dbl_1=Conv(768, width),
        branch7x7dbl_2=Conv(width, width, (7, 1)),
        branch7x7dbl_3=Conv(width, width, (1, 7)),
        branch7x7dbl_4=Conv(width, width, (7, 1)),
        branch7x7dbl_5=Conv(width, 192, (1, 7)),
        branch_pool=Conv(768, 192),
    )


def _mixed_7a() -> Mixed:
    """17x17 to 8x8."""
    return Mixed(
        "halve",
        branch3x3_1=Conv(768, 192),
        branch3x3_2=Conv(192, 320, 3, stride=2),
        branch7x7x3_1=Conv(768, 192),
        branch7x7x3_2=Conv(192, 192, (1, 7)),
        branch7x7x3_3=Conv(192, 192, (7, 1)),
        branch7x7x3_4=Conv(192, 192, 3, stride=2),
    )


def _mixed_7(inputs: int, pool: Literal["average", "maximum"]) -> Mixed:
    """8x8, a row and a column side by side (figure 7)."""
    return Mixed(
        pool,
        branch1x1=Conv(inputs, 320),
        branch3x3_1=Conv(inputs, 384),
        branch3x3_2a=Conv(384, 384, (1, 3)),
        branch3x3_2b=Conv(384, 384, (3, 1)),
        branch3x3dbl_1=Conv(inputs, 448),
        branch3x3dbl_2=Conv(448, 384, 3),
        branch3x3dbl_3a=Conv(384, 384, (1, 3)),
        branch3x3dbl_3b=Conv(384, 384, (3, 1)),
        branch_pool=Conv(inputs, 192),
    )


class InceptionV3(nn.Module):
    """Images (N, 1 or 3, H, W) in [-1, 1] -> features (N, 2048) of the last average pool, and logits (N, 1008).

    Images are resized to 299x299 bilinearly, without smoothing, as pytorch-fid does; grey ones are repeated. The logits
    come without their bias, as in the first implementation of the Inception Score. Parameter names are the file's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b = _mixed_5(192, 32)
        self.Mixed_5c = _mixed_5(256, 64)
        self.Mixed_5d = _mixed_5(288, 64)
        self.Mixed_6a = _mixed_6a()
        self.Mixed_6b = _mixed_6(128)
        self.Mixed_6c = _mixed_6(160)
        self.Mixed_6d = _mixed_6(160)
        self.Mixed_6e = _mixed_6(192)
        self.Mixed_7a = _mixed_7a()
        self.Mixed_7b = _mixed_7(1280, "average")
        self.Mixed_7c = _mixed_7(2048, "maximum")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        for name, module in self.named_children():
            if name == "fc":
                break
            x = module(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = F.max_pool2d(x, 3, stride=2)
        features = x.mean((2, 3))
        return features, F.linear(features, self.fc.weight)


def inception_weights(path: Path | None = None) -> Path | None:
    """`path`, or the file that the environment variable ESVAE_INCEPTION names, or None."""
    variable = os.environ.get("ESVAE_INCEPTION", "")
    return path or (Path(variable).expanduser() if variable else None)


def read_weights(path: Path) -> bytes:
    """The content of pytorch-fid's file.

    Raises `InputError` where the file is missing or not that very one: by its SHA-256, before anything in it is read.
    """
    accepted = f"{WEIGHTS} of pytorch-fid or torch-fidelity (a TorchScript file, as clean-fid's, is not run)"
    if not path.is_file():
        raise InputError(f"{path}: no such file; accepted is {accepted}")
    if path.stat().st_size != WEIGHTS_BYTES:
        raise InputError(f"{path}: {path.stat().st_size} bytes, accepted are the {WEIGHTS_BYTES} of {accepted}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise InputError(f"{path}: SHA-256 {digest[:8]}.., accepted is {WEIGHTS_SHA256[:8]}.., {accepted}")
    return content


def load_inception(path: Path) -> InceptionV3:
    """The network with the weights of pytorch-fid's file, on the CPU and in eval mode. Raises as `read_weights`."""
    state = torch.load(io.BytesIO(read_weights(path)), weights_only=True, map_location="cpu")
    with torch.device("meta"):
        network = InceptionV3()
    if isinstance(state, dict):  # counters of training, which older versions of torch did not write
        counters = (key for key in network.state_dict() if key.endswith(".num_batches_tracked"))
        state = {key: torch.tensor(0) for key in counters} | state
    load_exactly(network, state, f"{path}: not the weights of {WEIGHTS}")
    return network.eval()
