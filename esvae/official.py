"""Reading the weights of the published code (GitHub `QgZhan/ESVAE`) into an `ESVAE`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import load_safetensors
from .config import ModelConfig, preset
from .errors import InputError
from .models import ESVAE
from .untrusted import read_pth

SIZE_OF_STAGES = {4: 32, 5: 64}
UNUSED = ("prior.", "posterior.")  # networks that the published class carries along and never runs
NORM = ("weight", "bias", "running_mean", "running_var")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST = 1e30  # what is larger could overflow in fp32
COEF = "membrane_output_layer.coef"


def load_official_state_dict(source: dict[str, Tensor] | str | Path) -> ESVAE:
    """The published code's network with the weights of `source`, in evaluation mode, on the CPU, in fp32.

    Channels, size, latent length and T follow from the tensors' shapes; the rest of the config is that of the preset
    `official`. The biases in front of tdBN, which this network has not, are subtracted from the running means: the same
    outputs, to rounding, in training and in evaluation mode.

    Args:
        source: a state dict of the published class `ESVAE` or `ESVAELarge`, or the path of its .pth or .safetensors
            file. It may be wrapped as {"net": ..., "epoch": ...}, its keys may all begin with `module.`, and unused
            entries (`prior.*`, `posterior.*`, `*.num_batches_tracked`) may be there.

    Raises:
        InputError: the file cannot be used; an entry is missing, unknown, of a wrong shape or type, or not finite.
    """
    if isinstance(source, dict):
        name, state = "state dict", source
    else:
        name, state = str(source), _read(Path(source))
    try:
        state = _plain(state)
        config = _config(state)
        with torch.device("meta"):  # shapes first: memory is taken once all of them fit
            wanted = _official_shapes(ESVAE(**dataclasses.asdict(config)))
        _check(state, wanted, config)
    except InputError as error:
        raise InputError(f"{name}: not the published network: {error}") from None
    model = ESVAE(**dataclasses.asdict(config))
    model.load_state_dict(dict(_converted(state, model)))
    return model.eval()


def _read(path: Path) -> dict[object, object]:
    return load_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)


def _plain(state: dict) -> dict[str, Tensor]:
    """Without the wrappers and the entries that are never used; every value a plain tensor of finite numbers."""
    if "net" in state:
        state = state["net"]
        _require(isinstance(state, dict), "net", "a dictionary of tensors")
    for key in state:
        _require(isinstance(key, str), key, "a string")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    unused = {key for key in state if key.startswith(UNUSED) or key.endswith(".num_batches_tracked")}
    state = {key: value for key, value in state.items() if key not in unused}
    for key, value in state.items():
        _require(isinstance(value, Tensor) and value.dtype in DTYPES, key, "a floating-point tensor")
        plain = value.layout == torch.strided and not value.is_nested and value.device.type != "meta"
        # A file of a few bytes can hold a tensor of any shape, by strides of 0.
        whole = plain and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
        _require(whole, key, "a dense tensor with all its values in memory")
        _require(bool((value.abs() < LARGEST).all()), key, "a tensor of finite numbers")
    return {key: value.detach().cpu() for key, value in state.items()}


def _config(state: dict[str, Tensor]) -> ModelConfig:
    stages = 0
    while f"encoder.{stages}.weight" in state:
        stages += 1
    _require(stages >= min(SIZE_OF_STAGES), f"encoder.{stages}.weight", "there, for 4 or 5 stages")
    _require(stages <= max(SIZE_OF_STAGES), f"encoder.{stages - 1}.weight", "no such entry, for 4 or 5 stages")
    channels = _length(state, "encoder.0.weight", 1, 5)
    _require(channels in (1, 3), "encoder.0.weight", "a tensor (32, 1 or 3 channels, 3, 3, 1)")
    return dataclasses.replace(
        preset("official", "mnist").model,  # the data sets' presets differ in what is replaced here alone
        channels=channels,
        size=SIZE_OF_STAGES[stages],
        latent=_length(state, "before_latent_layer.weight", 0, 2),
        steps=_length(state, COEF, 4, 5),
    )


def _length(state: dict[str, Tensor], key: str, axis: int, dims: int) -> int:
    _require(key in state, key, f"a tensor of {dims} axes")
    _require(state[key].dim() == dims and state[key].shape[axis] > 0, key, f"a tensor of {dims} axes, none empty")
    return state[key].shape[axis]


def _layers(stages: int) -> Iterator[tuple[str, str]]:
    """Names of the layers with tdBN: (published, ours)."""
    yield from ((f"encoder.{i}", f"encoder.{i}") for i in range(stages))
    yield "before_latent_layer", "to_latent"
    yield "decoder_input", "from_latent"
    yield from ((f"decoder.{i}", f"decoder.{i}") for i in range(stages - 1))
    yield "final_layer.0", f"decoder.{stages - 1}"


def _official_shapes(model: ESVAE) -> dict[str, tuple[int, ...]]:
    """The published keys and shapes of the network that `model` is."""

    def published(weight: Tensor) -> tuple[int, ...]:
        return (*weight.shape, 1) if weight.dim() == 4 else tuple(weight.shape)  # their convolutions are 3-D

    shapes = {COEF: (1, 1, 1, 1, model.config.steps)}
    for theirs, ours in _layers(len(model.encoder)):
        layer = model.get_submodule(ours)
        outputs = (len(layer.neurons.weight),)
        shapes |= {f"{theirs}.weight": published(layer.transform.weight), f"{theirs}.bias": outputs}
        shapes |= {f"{theirs}.bn.{part}": outputs for part in NORM}
    for theirs, layer in (("final_layer.1", model.to_image), ("sample_layer.0", model.bottleneck)):
        shapes |= {f"{theirs}.weight": published(layer.weight), f"{theirs}.bias": tuple(layer.bias.shape)}
    return shapes


def _check(state: dict[str, Tensor], wanted: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    for key in sorted(state.keys() | wanted.keys()):
        _require(key in wanted, key, "no such entry")
        _require(key in state and tuple(state[key].shape) == wanted[key], key, f"a tensor {wanted[key]}")
        if key.endswith(".running_var"):
            _require(bool((state[key] >= 0).all()), key, "a tensor without negative numbers")
    coef = config.readout_decay ** torch.arange(config.steps - 1, -1, -1)
    same = torch.allclose(state[COEF].flatten().float(), coef, rtol=1e-2, atol=1e-6)  # also of half precision
    _require(same, COEF, f"{config.readout_decay}^(T-1-t)")


def _converted(state: dict[str, Tensor], model: ESVAE) -> Iterator[tuple[str, Tensor]]:
    """Entries of our state dict."""
    for theirs, ours in _layers(len(model.encoder)):
        weight = state[f"{theirs}.weight"]
        yield f"{ours}.transform.weight", weight.squeeze(-1) if weight.dim() == 5 else weight
        for part in ("weight", "bias", "running_var"):
            yield f"{ours}.neurons.{part}", state[f"{theirs}.bn.{part}"]
        mean, bias = state[f"{theirs}.bn.running_mean"], state[f"{theirs}.bias"]
        yield f"{ours}.neurons.running_mean", mean.double() - bias.double()  # theirs is the mean of x + bias, ours of x
    yield "to_image.weight", state["final_layer.1.weight"].squeeze(-1)
    yield "to_image.bias", state["final_layer.1.bias"]
    yield "bottleneck.weight", state["sample_layer.0.weight"]
    yield "bottleneck.bias", state["sample_layer.0.bias"]


def _require(holds: bool, key: object, wanted: str) -> None:
    if not holds:
        raise InputError(f"{key!r:.80} should be {wanted}")
