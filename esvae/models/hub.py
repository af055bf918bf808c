"""How models are saved and loaded: folders, runs, the hub. This file alone of the models needs the extra `model`."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any, Self

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
from torch import Tensor

from .. import pretrained
from ..checkpoint import load_safetensors, read_json
from ..config import Config
from ..errors import InputError
from ..runs import CONFIG, Run
from . import card

WEIGHTS = "model.safetensors"
HUB_SECONDS = 5.0  # that the hub has for its first answer


class Hub(
    PyTorchModelHubMixin,
    library_name="esvae",
    tags=["spiking-neural-network", "vae"],
    model_card_template=card.TEMPLATE,
):
    """A base of `Model`, with what it is saved and loaded by."""

    def generate_model_card(self, *, training: Config | None = None, **fields: Any) -> ModelCard:
        """What `save_pretrained` writes beside the weights. `training` (in its `model_card_kwargs`): what they were
        trained by, where that is known."""
        return super().generate_model_card(**card.fields(self, training), **fields)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **arguments) -> Self:
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
        if _to_be_read_from_cache(name, **{key: arguments[key] for key in _OF_THE_HUB if key in arguments}):
            arguments["local_files_only"] = True
        try:
            return super().from_pretrained(name, **arguments)
        except (HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError) as error:
            raise _not_there(name, error) from None

    @classmethod
    def _from_pretrained(cls, *, model_id: str, map_location: str = "cpu", **arguments) -> Self:
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
        require_weights_of(expected, tensors, str(path))
        model = cls(**arguments)
        model.load_state_dict(tensors)
        return model.to(map_location).eval()


_OF_THE_HUB = ("revision", "token", "cache_dir", "local_files_only")


def _to_be_read_from_cache(
    name: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> bool:
    """Whether the hub, asked once, gives no answer and all that is needed was downloaded before; an InputError where it
    was not. The hub's own way tries for half a minute, and prints each time."""
    if local_files_only:
        return True
    try:
        get_hf_file_metadata(hf_hub_url(name, CONFIG, revision=revision), token=token, timeout=HUB_SECONDS)
    except EntryNotFoundError:
        return False  # said where the options are missed
    except Exception as error:  # without a network each release's HTTP library raises errors of its own
        found = (try_to_load_from_cache(name, f, cache_dir=cache_dir, revision=revision) for f in (CONFIG, WEIGHTS))
        if isinstance(error, RepositoryNotFoundError) or not all(isinstance(path, str) for path in found):
            raise _not_there(name, error) from None
        return True
    return False


def _not_there(name: str, error: Exception) -> InputError:
    why = " ".join(str(error).split())[:200]
    return InputError(f"{name}: no such folder, shipped model or repository: {why}")


def require_weights_of(expected: dict[str, Tensor], tensors: dict[str, Tensor], source: str) -> None:
    """That a state dict from `source` has the tensors of `expected`, in their shapes, finite and with no variance
    below 0; or an InputError that names the first tensor that does not. NaN would pass for an image without content:
    its neurons are silent."""
    for name in sorted(tensors.keys() | expected.keys()):
        if name not in tensors or name not in expected or tensors[name].shape != expected[name].shape:
            wanted = f"the shape {tuple(expected[name].shape)}" if name in expected else "no such tensor"
            raise InputError(f"{source}: not the weights of this config: {name!r:.80} should be {wanted}")
        if tensors[name].is_floating_point() != expected[name].is_floating_point():
            got, wanted = tensors[name].dtype, expected[name].dtype
            raise InputError(f"{source}: not the weights of this config: {name!r:.80} is {got}, should be {wanted}")
        if not tensors[name].isfinite().all():
            raise InputError(f"{source}: {name!r:.80} holds NaN or infinity, accepted are finite numbers")
        if name.endswith("running_var") and (tensors[name] < 0).any():
            raise InputError(f"{source}: {name!r:.80} holds negative numbers, accepted is a variance of 0 or above")
