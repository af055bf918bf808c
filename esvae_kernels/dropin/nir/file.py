"""Reads NIR files (HDF5), which may be anyone's."""

from __future__ import annotations

import math
import os
from typing import Any

import h5py
import nir
import numpy as np

from .neuron import METADATA, SPIKING

MOST_NODES, DEEPEST = 100_000, 8


def read(path: str | os.PathLike[str], *, max_bytes: int = 1 << 31, reset: str | None = None) -> nir.NIRGraph:
    """The graph in a NIR file, as `nir.read` returns it, from a file that need not be trusted.

    `nir.read` allocates what a file declares, of which compression makes a few bytes, and follows its links into other
    files. Here, before an array is allocated: all that is read so far and the array's declared size are at most
    `max_bytes` (default 2 GiB); the file holds at most 100,000 groups and arrays, 8 deep; there are no links, no
    storage in other files, no types but numbers and strings. Strings of variable length have no size to be seen before;
    they are read one at a time, and counted. What nodes hold is checked by `from_nir`. Not covered: faults of the HDF5
    library itself on broken files.

    Args:
        path: the file.
        max_bytes: of all arrays together.
        reset: "hard" (to 0) or "soft" (by the threshold), for files of nir 1.0.5 and before, whose neurons have no
            v_reset: that version's documentation subtracts the threshold, later ones read them as reset to 0.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: one line with the file's and the node's name.
    """
    if reset not in (None, "hard", "soft"):
        raise ValueError(f"reset: got {reset!r}, accepted are None, 'hard' and 'soft'")
    path = os.fspath(path)
    with open(path, "rb"):  # h5py's own message takes three lines
        pass
    try:
        file = h5py.File(path, "r")
    except OSError:
        raise ValueError(f"{path}: not a file in HDF5, which NIR's files are") from None
    with file:
        reader = _Reader(max_bytes)
        try:
            top = reader.child(file, "node")
            content = reader.group(top, 0) if isinstance(top, h5py.Group) else {}
        except (OSError, RuntimeError, KeyError, TypeError, UnicodeDecodeError, _Refused) as error:
            raise ValueError(f"{path}: {reader.at}: {_line(error)}") from None
    if _text(content.get("type")) != "NIRGraph":
        raise ValueError(f"{path}: got {str(content.get('type'))[:80]!r} at its top, accepted is a NIRGraph")
    return _graph(path, content, reset)


class _Refused(ValueError):
    pass


class _Reader:
    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes, self.objects, self.at = max_bytes, 0, 0, "node"

    def child(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        self.at = f"{group.name}/{name}".lstrip("/")[:200]
        self.objects += 1
        if self.objects > MOST_NODES:
            raise _Refused(f"more than {MOST_NODES} groups and arrays")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _Refused("missing" if link is None else "a link, accepted are groups and arrays of the file itself")
        return group[name]

    def group(self, group: h5py.Group, depth: int) -> dict[str, Any]:
        if depth > DEEPEST:
            raise _Refused(f"groups are more than {DEEPEST} deep")
        found: dict[str, Any] = {}
        for name in group:
            child = self.child(group, name)
            found[name] = self.group(child, depth + 1) if isinstance(child, h5py.Group) else self.array(child)
        return found

    def count(self, size: int) -> None:
        self.bytes += size
        if self.bytes > self.max_bytes:
            raise _Refused(f"{self.bytes} bytes with what is before it, accepted are {self.max_bytes} (max_bytes)")

    def array(self, data: h5py.Dataset) -> Any:
        if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
            raise _Refused("not an array that the file itself holds")
        if data.shape is None:
            raise _Refused("it is empty")
        string = h5py.check_string_dtype(data.dtype)
        if string is None and data.dtype.kind not in "biuf":
            raise _Refused(f"of type {data.dtype}, accepted are numbers and strings")
        self.count(math.prod(data.shape) * max(data.dtype.itemsize, 1))
        if string is None:
            return data[()]
        if data.shape == ():
            return self.string(data[()])
        values = np.empty(data.shape, dtype=object)
        for index in np.ndindex(*data.shape):
            values[index] = self.string(data[index])
        return values

    def string(self, value: bytes | str) -> str:
        self.count(len(value))
        return _text(value)


def _text(value: Any) -> Any:
    return value.decode("utf8") if isinstance(value, bytes) else value


def _graph(path: str, content: dict[str, Any], reset: str | None) -> nir.NIRGraph:
    nodes = {}
    entries, edges = content.get("nodes"), content.get("edges")
    if not isinstance(entries, dict) or not isinstance(edges, np.ndarray) or edges.shape[1:] != (2,):
        raise ValueError(f"{path}: no nodes, or no edges of two names each")
    for name, entry in entries.items():
        where = f"{path}: node {name[:80]!r}"
        if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
            raise ValueError(f"{where} has no type")
        kind = entry["type"][:80]
        if kind == "NIRGraph":
            nodes[name] = _graph(path, entry, reset)
            continue
        node_class = getattr(nir, kind, None) if kind in nir.ir.__all__ else None
        if not isinstance(node_class, type) or not issubclass(node_class, nir.NIRNode):
            raise ValueError(f"{where} is of the unknown type {kind!r}")
        old = issubclass(node_class, SPIKING) and "v_reset" not in entry
        if old and reset is None:
            raise ValueError(
                f"{where} ({kind}) has no v_reset, as before nir 1.0.6: accepted is such a file with reset='soft', "
                "which that version means, or reset='hard', which later ones read"
            )
        try:
            nodes[name] = node = node_class.from_dict(dict(entry))
        except (AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{where} ({kind}): {_line(error)}") from None
        if not isinstance(node.metadata, dict):
            raise ValueError(f"{where} ({kind}) has metadata that is no group")
        if old and reset == "soft":
            node.metadata = {METADATA + "reset": "soft", **node.metadata}
    metadata = content.get("metadata")
    edges = [(str(source), str(target)) for source, target in edges]
    return nir.NIRGraph(nodes, edges, metadata=metadata if isinstance(metadata, dict) else {}, type_check=False)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
