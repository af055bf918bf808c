"""Damaged, foreign and forged files for the readers of IDX, CIFAR10, the image cache and checkpoints.

A target holds valid files and changes them as their structure suggests: fields of headers take values at the edges of
their types, checksums are often made right again so that what lies behind them is reached, and bytes are changed
anywhere. A reader must return what the file says, or raise an InputError of one line; nothing else, and in little time
and memory. `test_fuzz.py` tries some thousand files, `soak_fuzz.py` a million.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import struct
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import nn

from esvae import checkpoint
from esvae.data import cache, cifar10, idx
from esvae.errors import InputError

EDGES = [0, 1, 2, 3, 5, 7, 8, 28, 255, 256, 1023, 1024, 1025, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
WIDE_EDGES = [*EDGES, 2**32, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    2**64,
    1e308,
    float("nan"),
    "",
    "x",
    "é" * 300,
    "../x",
    "F32",
    "I64",
    [],
    [1],
    {},
]


def edited(random: Random, content: bytes) -> bytes:
    """Some bytes changed, cut off, added, repeated or taken out."""
    changed = bytearray(content)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(changed) + 1)
        some = random.randrange(1, 40)
        how = random.randrange(6)
        if how == 0 and at < len(changed):
            changed[at] ^= 1 << random.randrange(8)
        elif how == 1:
            changed[at : at + some] = bytes(some)
        elif how == 2:
            del changed[at:]
        elif how == 3:
            changed[at:at] = changed[max(0, at - some) : at]
        elif how == 4:
            del changed[at : at + some]
        else:
            changed += random.randrange(256**4).to_bytes(4, "little") * random.randrange(1, 300)
    return bytes(changed)


def altered(random: Random, value: Any) -> Any:
    """A JSON value with something in it replaced, taken out, renamed or nested deeply."""
    if isinstance(value, dict | list) and value and random.randrange(8):
        copy = value.copy()
        key = random.choice(list(copy)) if isinstance(copy, dict) else random.randrange(len(copy))
        how = random.randrange(8)
        if how == 0:
            del copy[key]
        elif how == 1 and isinstance(copy, dict):
            copy[random.choice(["", "w", "0.step", "9.step", "a/b", "weight", "parts", "group.0.lr"])] = copy.pop(key)
        else:
            copy[key] = altered(random, copy[key])
        return copy
    if isinstance(value, int) and random.randrange(2):
        return value + random.choice([-1, 1, *WIDE_EDGES])
    if not random.randrange(20):
        nested: Any = value
        for _ in range(random.choice([1, 50, random.randrange(900, 1000), 3000])):
            nested = [nested]
        return nested
    return random.choice(VALUES)


def as_json(value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 100_000


class Target:
    """One reader. `case` changes its files by chance, reads them, and checks what comes."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def case(self, random: Random) -> bool:
        """Returns whether the files were read; refused, they were with an InputError of one line."""
        try:
            self.read_changed(random)
        except InputError as error:
            message = str(error)
            assert "\n" not in message, message
            assert len(message) < 2000, f"{len(message)} characters: {message[:200]}"
            cause: BaseException | None = error
            while cause := cause.__cause__ or cause.__context__:
                assert not isinstance(cause, MemoryError), message
                assert "allocate" not in str(cause), message
            return False
        return True

    def read_changed(self, random: Random) -> None:
        raise NotImplementedError


class Idx(Target):
    name = "idx"

    def read_changed(self, random: Random) -> None:
        shape = [random.randrange(1, 4), *[random.randrange(1, 9)] * 2]
        fields = [idx.MAGIC, *shape]
        pixels = bytes(i % 256 for i in range(shape[0] * shape[1] * shape[2]))
        if random.randrange(4):
            fields[random.randrange(4)] = random.choice(EDGES)
        content = struct.pack(">4I", *fields) + pixels
        if random.randrange(2):
            content = edited(random, content)
        packed = random.randrange(2)
        path = self.folder / ("images.gz" if packed else "images")
        if packed:
            stored = gzip.compress(content, 1)
            path.write_bytes(edited(random, stored) if random.randrange(2) else stored)
        else:
            path.write_bytes(content)
        images = idx.read_images(path)
        stored = path.read_bytes()
        content = gzip.decompress(stored) if packed else stored
        assert images.dtype == np.uint8
        assert struct.unpack(">4I", content[:16]) == (idx.MAGIC, *images.shape)
        assert content[16:] == images.tobytes()


class IdxLabels(Target):
    name = "idx-labels"

    def read_changed(self, random: Random) -> None:
        labels = bytes(random.randrange(11) if not random.randrange(8) else i % 10 for i in range(random.randrange(9)))
        fields = [idx.LABELS_MAGIC, len(labels)]
        if random.randrange(4) == 0:
            fields[random.randrange(2)] = random.choice(EDGES)
        content = struct.pack(">2I", *fields) + labels
        content = edited(random, content) if random.randrange(2) else content
        path = self.folder / "labels"
        path.write_bytes(content)
        found = idx.read_labels(path)
        assert struct.unpack(">2I", content[:8]) == (idx.LABELS_MAGIC, len(found))
        assert content[8:] == found.tobytes()
        assert found.max() < 10


class Cifar(Target):
    name = "cifar"

    def read_changed(self, random: Random) -> None:
        if not random.randrange(8):
            self.unpack_changed(random)
            return
        content = bytearray(cifar10.RECORD_BYTES * random.randrange(1, 4))
        content[0] = random.randrange(12)
        stored = edited(random, content) if random.randrange(2) else bytes(content)
        stored = stored[: len(stored) // cifar10.RECORD_BYTES * cifar10.RECORD_BYTES] if random.randrange(2) else stored
        path = self.folder / "batch.bin"
        path.write_bytes(stored)
        images = cifar10.read_images(path)
        assert images.shape == (len(stored) // cifar10.RECORD_BYTES, 32, 32, 3)
        assert images[-1, 0, 0, 0] == stored[-3072]

    def unpack_changed(self, random: Random) -> None:
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=random.choice([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        ) as tar:
            for file in cifar10.FILES["train"] + cifar10.FILES["test"]:
                member = tarfile.TarInfo(f"{cifar10.FOLDER}/{file}" if random.randrange(20) else "é" * 120)
                member.size = 100
                if not random.randrange(20):
                    member.type = random.choice([tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.LNKTYPE])
                    member.linkname, member.size = "/etc/passwd", 0
                tar.addfile(member, io.BytesIO(bytes(member.size)))
        content = buffer.getvalue()
        if random.randrange(2):
            header = bytearray(content[:512])  # one of the fields, as octal digits or in base 256
            at, length = random.choice([(100, 8), (124, 12), (136, 12), (148, 8), (156, 1), (257, 6)])
            header[at : at + length] = bytes(random.choice([48, 55, 128, 255, 0, 32]) for _ in range(length))
            if random.randrange(2):
                header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
            content = bytes(header) + content[512:]
        stored = gzip.compress(edited(random, content) if random.randrange(2) else content, 1)
        archive, into = self.folder / "archive.tar.gz", self.folder / "cache"
        archive.write_bytes(edited(random, stored) if random.randrange(2) else stored)
        fetch, cifar10.places.fetch = cifar10.places.fetch, lambda *_: archive
        try:
            cifar10._download(into)
        finally:
            cifar10.places.fetch = fetch
            shutil.rmtree(into, ignore_errors=True)
        assert {path.name for path in self.folder.iterdir()} <= {"archive.tar.gz", "batch.bin"}  # and nowhere else


class Cache(Target):
    name = "cache"

    def read_changed(self, random: Random) -> None:
        size = random.randrange(1, 5)
        fields: list[Any] = [cache.MAGIC, cache.VERSION, random.choice([1, 3]), size, 3, 3, bytes(32)]
        pixels = bytes(range(fields[2] * size * size * 3))
        if random.randrange(2):
            at = random.randrange(1, 6)
            fields[at] = random.choice(EDGES if at < 4 else WIDE_EDGES)
            fields[5] = fields[4] if random.randrange(2) else fields[5]
        packed = cache.FIELDS.pack(*fields)
        page = (packed + hashlib.sha256(packed).digest()).ljust(cache.HEADER_BYTES, b"\0")
        content = page + pixels
        path = self.folder / "images.pixels"
        path.write_bytes(edited(random, content) if random.randrange(2) else content)
        whole = cache.HEADER_BYTES + fields[2] * fields[3] ** 2 * fields[4]
        if random.randrange(2) and whole < 2**26:  # to map it takes no memory, but addresses, which the soak limits
            os.truncate(path, whole)  # with holes: as long as its header says
        header, images = cache.read(path)
        stored = path.open("rb").read(1 << 16)
        assert header == cache.FIELDS.unpack(stored[: cache.FIELDS.size])[2:]
        assert images.shape == (header.count, header.channels, header.size, header.size)
        some = images.reshape(-1)[: (1 << 16) - cache.HEADER_BYTES]
        assert some.tobytes() == stored[cache.HEADER_BYTES :]
        assert images[-1, -1, -1, -1] is not None


class Checkpoint(Target):
    name = "checkpoint"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        torch.manual_seed(0)
        model, optimizer = self.fresh()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        tensors, groups = checkpoint.optimizer_tensors(optimizer)
        generators = {"noise": torch.Generator().get_state()}
        self.saved = {"model": dict(model.state_dict()), "optimizer": tensors, "generators": generators}
        self.state = json.loads(json.dumps({"step": 3, "seconds": 0.5, "optimizer": groups}))
        self.place = folder / "step-00000003"
        checkpoint.save(self.place, self.saved, self.state)
        self.files = {path.name: path.read_bytes() for path in self.place.iterdir()}

    @staticmethod
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(2, 2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def read_changed(self, random: Random) -> None:
        files, forged = self.files.copy(), bool(random.randrange(2))
        name = random.choice(list(files))
        if random.randrange(3) == 0:
            files[name] = edited(random, files[name])
            forged = forged and name != "state.json"
        elif name == "state.json":
            files[name] = self.sealed(altered(random, json.loads(files[name])), forged)
        else:
            files[name] = self.with_header(random, files[name])
        if forged and name != "state.json":
            state = json.loads(files["state.json"])
            record = state["parts"][name.partition(".")[0]]
            record["sha256"], record["bytes"] = hashlib.sha256(files[name]).hexdigest(), len(files[name])
            if random.randrange(2):
                record["tensors"] = altered(random, record["tensors"])
            files["state.json"] = self.sealed(state, True)
        changed = {name: content for name, content in files.items() if content != self.files[name]}
        for name, content in changed.items():
            (self.place / name).write_bytes(content)
        try:
            self.read(forged)
        finally:
            for name in changed:
                (self.place / name).write_bytes(self.files[name])

    @staticmethod
    def sealed(state: Any, forged: bool) -> bytes:
        if forged and isinstance(state, dict):
            with suppress(RecursionError):
                state = state | {"sha256": checkpoint._digest(json.loads(json.dumps(state)))}
        return as_json(state)

    @staticmethod
    def with_header(random: Random, content: bytes) -> bytes:
        """A safetensors file with a changed header, its length right or wrong."""
        length = int.from_bytes(content[:8], "little")
        header = as_json(altered(random, json.loads(content[8 : 8 + length])))
        said = len(header) if random.randrange(8) else random.choice(WIDE_EDGES)
        return said.to_bytes(8, "little") + header + content[8 + length :]

    def read(self, forged: bool) -> None:
        parts, state = checkpoint.load(self.place)
        if not forged:  # what the checksums let through is what was saved
            assert state == self.state
            assert all(torch.equal(parts[p][n], t) for p, tensors in self.saved.items() for n, t in tensors.items())
        _, optimizer = self.fresh()
        checkpoint.restore_optimizer(optimizer, parts.get("optimizer", {}), state.get("optimizer"))


TARGETS: dict[str, Callable[[Path], Target]] = {
    target.name: target for target in (Idx, IdxLabels, Cifar, Cache, Checkpoint)
}
