"""What every model is: made from a `ModelConfig`, trained by `Trainer`, saved and loaded by the hub's mixin."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import (
    ModelCard,
    PyTorchModelHubMixin,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from torch import Tensor, nn

from .. import pretrained
from ..checkpoint import load_safetensors, read_json
from ..config import Config, ModelConfig, TrainConfig, build
from ..errors import InputError
from ..runs import CONFIG, Run
from . import card

WEIGHTS = "model.safetensors"
HUB_SECONDS = 5.0  # that the hub has for its first answer


class Model(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="esvae",
    tags=["spiking-neural-network", "vae"],
    model_card_template=card.TEMPLATE,
):
    """A generative model of images (N, C, H, W) in [-1, 1].

    A subclass has `generate`; with an encoder also `encode` and `reconstruct`; and for its training `forward`, `loss`
    and, where not all of it learns at one rate, `parameter_groups`.

    Attributes:
        kind: as in `ModelConfig`.
        config: its options.
        priors: what `generate` can draw from.
        outer: how the names of weights begin that are next to the image or a score, not between hidden layers.
    """

    kind: str
    priors: tuple[str, ...]
    outer: tuple[str, ...] = ("encoder.0.", "to_image.", "attention.", "taid.")

    def __init__(self, **options) -> None:
        super().__init__()
        self.config = build(ModelConfig, {"kind": self.kind} | options, "model")
        if self.config.kind != self.kind:
            raise InputError(f"kind: got {self.config.kind!r}, accepted by {type(self).__name__} is {self.kind!r}")
        self._hub_mixin_config = dataclasses.asdict(self.config)  # all of it: defaults may change after it is saved
        self.steps = self.config.steps

    @property
    def steps(self) -> int:
        """Time steps T in use; may be set, where the model can run at others than those it was made for."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.config.check_steps(steps)
        self._steps = steps

    @property
    def default_prior(self) -> str:
        """The one of `priors` that `generate` draws from unless told otherwise."""
        return self.priors[0]

    def check_images(self, images: Tensor) -> None:
        """That they have the model's size: others would come out as something else."""
        wanted = (self.config.channels, self.config.size, self.config.size)
        if images.shape[1:] != wanted or images.dim() != 4:
            accepted = "(N, {}, {}, {})".format(*wanted)
            raise InputError(f"images: got shape {tuple(images.shape)}, accepted is {accepted}")

    def chosen_prior(self, prior: str | None) -> str:
        """`prior`, or the default one; an InputError where the model has no such prior."""
        if prior is not None and prior not in self.priors:
            raise InputError(f"prior: got {prior!r}, accepted are {', '.join(self.priors)}")
        return prior or self.default_prior

    def generate(self, n: int, *, seed: int | Tensor, start: int | Tensor = 0, prior: str | None = None) -> Tensor:
        """Images number `start` .. `start + n - 1` of the sequence that `seed` names; (n, C, H, W) in [-1, 1].

        `prior`: which of `priors` it draws from; default: `default_prior`.
        """
        raise NotImplementedError

    def loss(self, out: Any, images: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """What `forward` returned for `images` -> `loss`, and beside it what is worth recording; scalars, each rank's
        mean over its part of the batch."""
        raise NotImplementedError

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """All parameters in groups with a learning rate `lr` each."""
        return [{"params": list(self.parameters()), "lr": config.lr}]

    def generate_model_card(self, *, training: Config | None = None, **fields: Any) -> ModelCard:
        """What `save_pretrained` writes beside the weights. `training` (in its `model_card_kwargs`): what they were
        trained by, where that is known."""
        return super().generate_model_card(**card.fields(self, training), **fields)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments) -> Model:
        """The model of a name in `pretrained` ("fashion-mnist"), of a folder with model.safetensors and config.json, of
        a run of `esvae train` that has ended, or of a repository of the hub; in evaluation mode, on the device
        `map_location` ("cpu").

        Raises:
            InputError: there is no such model, or a file of it is damaged, foreign or a pickle.
        """
        folder = pretrained.find(pretrained_model_name_or_path) or Path(pretrained_model_name_or_path)
        if not (folder / WEIGHTS).exists() and (folder / "model" / WEIGHTS).is_file():
            folder = folder / "model"
        elif not (folder / WEIGHTS).exists() and Run(folder, {}).checkpoints.is_dir():
            raise InputError(
                f"{folder}: a run that has not ended, without {WEIGHTS}; its newest checkpoint is read by"
                " `esvae generate`, and in Python by esvae.generate.load_model"
            )
        if os.path.lexists(folder / CONFIG):
            read_json(folder / CONFIG, "the config.json of a model")  # says in a line what the hub's parser would not
        if folder.is_dir():
            return super().from_pretrained(folder, **arguments)
        name = str(pretrained_model_name_or_path)
        if not re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]*\w[\w.-]*", name):
            known = ", ".join(pretrained.names())
            raise InputError(
                f"{name}: no such folder, shipped model or repository; accepted are a folder with {WEIGHTS}"
                f" and {CONFIG}, a run's folder, {known}, or OWNER/NAME on the hub"
            )
        _require_hub(name, **{key: arguments[key] for key in _OF_THE_HUB if key in arguments})
        try:
            return super().from_pretrained(name, **arguments)
        except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
            raise _not_there(name, error) from None

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **arguments) -> Model:
        """What `from_pretrained` calls with its own arguments and the options from config.json.

        The hub's own way would take `strict` for itself, fall back to a pickle, keep random weights where the file
        lacks some, and build the default model where config.json is missing.
        """
        download = {k: arguments.pop(k) for k in inspect.signature(hf_hub_download).parameters if k in arguments}
        if not arguments:
            raise InputError(f"{model_id}: no config.json with the model's options")
        with torch.device("meta"):  # the shapes alone: memory is taken once the file's are the same
            expected = cls(**arguments).state_dict()
        path = Path(model_id, WEIGHTS)
        if not Path(model_id).is_dir():
            try:
                path = Path(hf_hub_download(model_id, WEIGHTS, **download))
            except EntryNotFoundError:
                raise InputError(f"{model_id}: no {WEIGHTS}; other formats are not read") from None
        tensors = load_safetensors(path)
        require_same_shapes(tensors, expected, str(path))
        model = cls(**arguments)
        model.load_state_dict(tensors)
        return model.to(map_location).eval()


_OF_THE_HUB = ("revision", "token", "cache_dir", "local_files_only")


def _require_hub(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> None:
    """That the hub answers for a repository, unless its config was downloaded before, or an InputError: the hub's own
    way tries for half a minute, and prints each time."""
    if local_files_only or isinstance(
        try_to_load_from_cache(name, CONFIG, cache_dir=cache_dir, revision=revision), str
    ):
        return
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision), token=token, timeout=HUB_SECONDS)
    except EntryNotFoundError:
        return  # said where the options are missed
    except Exception as error:  # without a network each release's HTTP library raises errors of its own
        raise _not_there(name, error) from None


def _not_there(name: str, error: Exception) -> InputError:
    why = " ".join(str(error).split())[:200]
    return InputError(f"{name}: no such folder, shipped model or repository: {why}")


def drawn_if_none(seed: int | Tensor | None) -> int | Tensor:
    """The seed, or where none is given one from torch's generator."""
    return int(torch.randint(2**62, ())) if seed is None else seed


def require_same_shapes(tensors: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    """That a state dict from `source` fits, or an InputError that names the first tensor that does not."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            wanted = f"the shape {tuple(expected[name].shape)}" if name in expected else "no such tensor"
            raise InputError(f"{source}: not the weights of this config: {name!r:.80} should be {wanted}")
        if tensors[name].is_floating_point() != expected[name].is_floating_point():
            got, wanted = tensors[name].dtype, expected[name].dtype
            raise InputError(f"{source}: not the weights of this config: {name!r:.80} is {got}, should be {wanted}")
