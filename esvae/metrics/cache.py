"""What is computed once for a data set and kept in ESVAE_CACHE_DIR: tensors with checksums (see `esvae.checkpoint`)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from esvae import checkpoint
from esvae.data.places import cache_dir
from esvae.errors import InputError


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of tensors' shapes, types and values."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().numpy())
    return found.hexdigest()


def read(identity: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write` kept under this identity, or None where it is not there, or damaged."""
    try:
        parts, state = checkpoint.load(_folder(identity))
    except InputError:
        return None
    return (parts.get("tensors", {}), state["about"]) if state.get("identity") == identity else None


def require_writable(identity: dict[str, Any]) -> None:
    """Make the folder that `write` will write in, before minutes are spent on what goes there."""
    parent = _folder(identity).parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if not os.access(parent, os.W_OK):
            raise PermissionError(0, "no permission to write")
    except OSError as error:
        raise InputError(f"{parent}: {error.strerror or error}; set ESVAE_CACHE_DIR to another folder") from error


def write(identity: dict[str, Any], tensors: dict[str, Tensor], about: dict[str, Any] | None = None) -> None:
    """Keep tensors, and JSON values about them, under an identity: JSON values as well, all that they depend on."""
    require_writable(identity)
    folder = _folder(identity)
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    checkpoint.save(folder, {"tensors": tensors}, {"identity": identity, "about": about or {}})


def _folder(identity: dict[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return cache_dir("metrics") / f"{identity['kind']}-{name[:16]}"
