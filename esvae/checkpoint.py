"""A checkpoint is one folder: `<part>.safetensors` per part (model, optimizer, generators ...) and `state.json`.

It is written into a hidden folder beside its final place, synced to disk and renamed, so that a checkpoint is either
whole or absent, whenever the process dies. `state.json` carries a format version, the SHA-256, the size and the
tensors' names, shapes and dtypes of every part, and a SHA-256 of itself; `load` verifies them. Nothing is ever pickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esvae.errors import InputError
from esvae.extras import needed

with needed("model"):
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from safetensors.torch import save as to_safetensors

FORMAT = "esvae-checkpoint"
VERSION = 1
STATE = "state.json"
MAX_STATE_BYTES = 1 << 26  # 64 MiB; a real state.json takes a few hundred kilobytes
EXECUTION_OPTIONS = ("foreach", "fused", "capturable", "differentiable")  # how an optimizer runs, not what it computes


# --------------------------------------------------------------------------------------------- folders


def save(folder: Path, parts: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write a checkpoint: all of it or nothing.

    Args:
        folder: the checkpoint's folder; must not exist yet (checkpoints are immutable), its parent must.
        parts: part name (letters, digits, `_`) -> tensor name -> tensor, on any device, in any layout, shared or not.
        state: everything else, as JSON: string keys; tuples come back as lists.

    Raises:
        InputError: `folder` exists, a part's name or a value of `state` cannot be stored, or the disk refuses (full,
            read-only); then nothing is left behind.
    """
    folder = Path(folder)
    files = {_part_file(part): to_safetensors(_own_memory(tensors)) for part, tensors in parts.items()}
    records = {part: _record(files[_part_file(part)], tensors) for part, tensors in parts.items()}
    files[STATE] = _state_json(records, state)
    if os.path.lexists(folder):
        raise InputError(f"{folder}: exists already; a checkpoint is never overwritten")
    with whole_folder(folder, "cannot write the checkpoint") as partial:
        for name, content in files.items():
            write_synced(partial / name, content)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint that `save` wrote, verify it, and return `(parts, state)`, tensors on the CPU.

    Raises:
        InputError: a file is missing, truncated, changed, foreign or a pickle; the line names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; a checkpoint is a folder with {STATE} and safetensors files")
    content = _read_state(folder / STATE)
    parts = {}
    for part, record in content["parts"].items():
        path = folder / _part_file(part)
        tensors = load_safetensors(path)
        _verify(path, record, tensors)
        parts[part] = tensors
    return parts, content["state"]


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Read one safetensors file from anywhere: tensor name -> tensor on the CPU, in memory of its own.

    Raises:
        InputError: the file is missing, no regular file, truncated, foreign, or a pickle (which is never opened).
    """
    path = Path(path)
    _require_file(path)
    try:
        # The copy frees the tensors from the mapped file: cutting that file later would kill the process.
        return {name: tensor.clone() for name, tensor in load_file(path, device="cpu").items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise InputError(f"{path}: {_what_is(path)}; a safetensors file is expected") from error


# --------------------------------------------------------------------------- optimizers and generators


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of an optimizer whose state is made of tensors (AdamW ...), without pickle.

    Returns:
        `tensors`: `"{parameter index}.exp_avg"` and so on; `"group.{index}.lr"` for a hyper-parameter held in a tensor.
        `state`: JSON: the optimizer's class, the parameters' shapes, and each group's indices and hyper-parameters.
    """
    packed = optimizer.state_dict()
    tensors = {f"{i}.{name}": value for i, entry in packed["state"].items() for name, value in entry.items()}
    groups = []
    for g, group in enumerate(packed["param_groups"]):
        tensors |= {f"group.{g}.{name}": value for name, value in group.items() if isinstance(value, Tensor)}
        groups.append({name: value for name, value in group.items() if not isinstance(value, Tensor)})
    wrong = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if wrong:
        raise InputError(f"optimizer: state {wrong[0]} of {type(optimizer).__name__} is no tensor; AdamW is supported")
    shapes = [list(parameter.shape) for parameter in _parameters(optimizer)]
    return tensors, {"type": type(optimizer).__name__, "shapes": shapes, "groups": groups}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Put what `optimizer_tensors` returned into an optimizer over parameters of the same shapes, bit for bit.

    The hyper-parameters come from the checkpoint; `foreach`, `fused`, `capturable` and `differentiable` stay as they
    are in `optimizer`, so that a run can go on on another device.

    Raises:
        InputError: another class, another number of groups or parameters, other shapes, unknown names.
    """
    parameters = _parameters(optimizer)
    _check_optimizer(optimizer, parameters, state)
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if index == "group":
            continue
        if not (index.isdecimal() and int(index) < len(parameters) and key):
            raise InputError(
                f"optimizer state: tensor {name!r:.80} belongs to none of the {len(parameters)} parameters"
            )
        entries.setdefault(int(index), {})[key] = _in_layout_of(parameters[int(index)], name, tensor)
    groups = []
    for g, live in enumerate(optimizer.state_dict()["param_groups"]):
        saved = {name: value for name, value in state["groups"][g].items() if name != "params"}
        prefix = f"group.{g}."
        in_tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        groups.append(_restored_group(live, saved, in_tensors))
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _check_optimizer(optimizer: torch.optim.Optimizer, parameters: list[Tensor], state: dict[str, Any]) -> None:
    if not isinstance(state, dict) or not all(isinstance(state.get(key), list) for key in ("shapes", "groups")):
        raise InputError("optimizer state: not what optimizer_tensors returns (type, shapes, groups)")
    if state.get("type") != type(optimizer).__name__:
        raise InputError(
            f"optimizer state: saved from {state.get('type')!s:.80}, to be put into {type(optimizer).__name__}"
        )
    shapes = [list(parameter.shape) for parameter in parameters]
    if len(state["shapes"]) != len(shapes):
        raise InputError(f"optimizer state: saved for {len(state['shapes'])} parameters, the model has {len(shapes)}")
    for i, (saved, shape) in enumerate(zip(state["shapes"], shapes, strict=True)):
        if saved != shape:
            raise InputError(
                f"optimizer state: parameter {i} was saved with shape {saved!s:.80}, the model's has {shape}"
            )
    saved_indices = [group.get("params") if isinstance(group, dict) else None for group in state["groups"]]
    if saved_indices != [group["params"] for group in optimizer.state_dict()["param_groups"]]:
        raise InputError(
            f"optimizer state: saved with {len(saved_indices)} groups of other parameters than the optimizer's"
        )


def _in_layout_of(parameter: Tensor, name: str, tensor: Tensor) -> Tensor:
    """Fused kernels want a parameter and its moments in one memory layout (channels-last ...); files know none."""
    if name.endswith(".step") and tensor.dim() == 0:
        return tensor.clone()
    if tensor.shape != parameter.shape:
        raise InputError(f"optimizer state: {name!s:.80} has shape {list(tensor.shape)}, not {list(parameter.shape)}")
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)


def _restored_group(live: dict[str, Any], saved: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The live group with the saved hyper-parameters; one that the saving torch did not know yet stays as it is."""
    group = live | {name: _in_type_of(name, live.get(name), value) for name, value in (saved | tensors).items()}
    return group | {name: live[name] for name in EXECUTION_OPTIONS if name in live}


def _in_type_of(name: str, live: Any, value: Any) -> Any:
    """A hyper-parameter in the type and on the device of the live one (JSON has no tuples; `lr` may be a tensor)."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise InputError(
                f"optimizer state: {name!s:.80} is of shape {list(value.shape)}, the optimizer's is {live}"
            )
        value = value.item()
    if isinstance(live, tuple):
        fits = isinstance(value, list | tuple) and len(value) == len(live) and all(map(_is_number, value))
    elif isinstance(live, Tensor) or _is_number(live):
        fits = _is_number(value)
    else:
        fits = value is None or isinstance(value, bool | int | float | str)
    if not fits:
        raise InputError(f"optimizer state: {name!s:.80} is {value!s:.80}, the optimizer's is {live}")
    if isinstance(live, Tensor):
        return torch.tensor(value, dtype=live.dtype, device=live.device)
    return tuple(value) if isinstance(live, tuple) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


# ------------------------------------------------------------------------------- contents of the files


def _part_file(part: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]+", part):  # it becomes a file name: no separators, no dots
        raise InputError(f"checkpoint part {part!r:.80}: a name of letters, digits and _ is expected")
    return f"{part}.safetensors"


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies on the CPU: safetensors refuses tensors that share memory or have gaps."""
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def _table(tensors: dict[str, Tensor]) -> dict[str, list[Any]]:
    return {name: [str(t.dtype).removeprefix("torch."), list(t.shape)] for name, t in tensors.items()}


def _record(content: bytes, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "tensors": _table(tensors)}


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of everything in a state.json but the digest itself, independent of white space and order."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _state_json(records: dict[str, Any], state: dict[str, Any]) -> bytes:
    content = {"format": FORMAT, "version": VERSION, "parts": records, "state": state}
    try:
        content = json.loads(json.dumps(content))  # as it will be read, so that both digests agree
    except (TypeError, ValueError) as error:
        raise InputError(f"checkpoint state: cannot be written as JSON: {error}") from error
    return (json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n").encode()


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a small JSON object from a file; `what` says in the error what the file should have been."""
    _require_file(path)
    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise InputError(f"{path}: larger than {MAX_STATE_BYTES >> 20} MiB; {what} is expected")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: no valid JSON (truncated or damaged); {what} is expected") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a JSON {type(content).__name__}, not an object; {what} is expected")
    return content


def _read_state(path: Path) -> dict[str, Any]:
    content = read_json(path, "the state.json of a checkpoint")
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format {content.get('format')!r:.80}; {FORMAT!r} is expected")
    if content.get("version") != VERSION:
        raise InputError(f"{path}: format version {content.get('version')!r:.80}; this program reads version {VERSION}")
    if content.get("sha256") != _digest(content):
        raise InputError(f"{path}: its SHA-256 does not match: damaged or edited; it must be as it was saved")
    parts, state = content.get("parts"), content.get("state")
    if (
        not isinstance(state, dict)
        or not isinstance(parts, dict)
        or not all(isinstance(p, dict) for p in parts.values())
    ):
        raise InputError(f"{path}: no parts and state; the state.json of a checkpoint is expected")
    return content


def _verify(path: Path, record: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Compare a part with what state.json says of it."""
    size = path.stat().st_size
    if size != record.get("bytes"):
        raise InputError(
            f"{path}: {size} bytes, {record.get('bytes')!s:.80} were saved; the file must be as it was saved"
        )
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != record.get("sha256"):
        raise InputError(f"{path}: its SHA-256 does not match {STATE}: damaged; the file must be as it was saved")
    if _table(tensors) != record.get("tensors"):
        raise InputError(f"{path}: its tensors' names, shapes or dtypes are not those that {STATE} lists")


def _what_is(path: Path) -> str:
    """Say what a file that is no readable safetensors file seems to be (only asked after reading it has failed)."""
    with path.open("rb") as file:
        head = file.read(9)
    if head[4:] == b"\0\0\0\0{":  # first, since the length of a safetensors header may also begin with PK or 0x80
        return "is truncated or damaged"
    if head.startswith((b"PK", b"\x80")):
        return "is a pickle"
    return "is something else, truncated or damaged" if head else "is empty"


def _require_file(path: Path) -> None:
    if not os.path.lexists(path):
        raise InputError(f"{path}: no such file")
    if not path.is_file():  # a pipe would block for ever
        raise InputError(f"{path}: not a regular file")


# ---------------------------------------------------------------------------------------- safe writing


@contextmanager
def whole_folder(folder: Path, failure: str, stale: str | None = None) -> Iterator[Path]:
    """A hidden folder to fill within the `with` block; at its end it becomes `folder`, all of it or nothing.

    `stale` is as `name` in `remove_stale`. Raises `InputError`, "FOLDER: FAILURE: reason", where the disk refuses.
    """
    partial = partial_path(folder)
    try:
        remove_stale(folder.parent, stale)
        partial.mkdir()
        yield partial
        sync_folder(partial)
        os.replace(partial, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder}: {failure}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone after the rename; still there after any failure


def partial_path(target: Path) -> Path:
    """Where `target` is written before it is renamed: hidden, beside it, naming the process."""
    return target.parent / f".{target.name}.partial-{os.getpid()}"


def remove_stale(parent: Path, name: str | None = None) -> None:
    """Remove what processes that no longer run left half-written in `parent`: everything, or only that of `name`."""
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.partial-([0-9]{{1,9}})")
    for path in parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    """Whether another process has this id. Our own id counts as dead: we write one thing at a time."""
    if pid == os.getpid():
        return False
    if os.name == "nt":  # there os.kill would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the folder's entries."""
    if os.name == "nt":  # there a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
