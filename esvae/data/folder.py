"""Folders of images of one's own: which files are taken, which are training and test images, and of which class."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from esvae import distributed
from esvae.data import cache, files
from esvae.errors import InputError

TEST_SHARE = 10  # one image in ten
SPLITS = {  # folders, in small letters, and what they are of a data set; `val` is the test set where there is none
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}
TABLE = "images.csv"
TABLE_MAX_BYTES = 1 << 26
COLUMNS = "path,label or path,label,split"
BACKGROUND = "?background="  # in a name, between the path and the colour
WHITE = "white"
RULES = b"2"  # of decoding: pixels that were decoded by others are decoded again
NAMED = 3  # examples of what is left out


@dataclass
class Listing:
    """The image files of a folder."""

    root: Path  # above them all
    files: dict[str, list[Path]]  # by split, in the order of their paths
    classes: dict[Path, str] | None = None  # of a table; else the subfolders are the classes
    skip: int = 0  # folders below `root` that are no classes
    notes: list[str] = field(default_factory=list)  # what the user should know: what was left out, say

    @property
    def all(self) -> list[Path]:
        return self.files["train"] + self.files["test"]

    def digest(self) -> bytes:
        """SHA-256 of both splits: an image in colour in the one makes the other one colour, too."""
        parts = [cache.listing_digest(self.files[split], self.root) for split in ("train", "test")]
        return hashlib.sha256(b"".join(parts)).digest()


def read(name: str, split: str, size: int, download: bool) -> np.ndarray:
    """The image files below the folder `name` as uint8 (N, C, size, size), in the order of their paths.

    `name` is a path, `~` included; `PATH?background=COLOUR` shows that colour behind what is transparent, in the place
    of white. Images may have any size and any format that Pillow reads, by any name with one of its suffixes. They are
    turned upright by their EXIF data, cropped to their centred square and resized bilinearly; C is 1 if all are grey,
    else 3.

    Splits are the folders `train` and `test`, or without `test` the folder `val` (`valid`, `validation`), in capitals
    or not; elsewhere a tenth of the images, chosen by a hash of their relative paths, is the test set. Links are
    followed. A file `images.csv` in the folder, or given in its place, says which images there are: columns `path`,
    below its folder, `label`, and, where wanted, `split` (train, test, val).

    What was left out, and what was converted, is one warning. `download` does not matter here.

    Raises:
        InputError: no folder, no images, none in this split, or a file that cannot be read.
    """
    path, background = _name(name)
    color = files.background_color(background)
    listing = find(path)
    if not listing.files[split]:
        other = f"{len(listing.all)} image{'s' * (len(listing.all) > 1)}"
        raise InputError(f"{path}: none of its {other} is in the {split} set; accepted are at least 2, or both folders")
    _say(path, listing.notes)
    return cache.images(
        cache.path(listing.root, b"%s %s" % (RULES, background.encode()), split, size),
        listing.files[split],
        listing.digest(),
        size,
        channels=lambda: _channels(path, listing, color),
        decode=lambda file, channels: _decode(file, channels, size, color),
    )


def labels(name: str, split: str, download: bool) -> np.ndarray:
    """The number of each image's class, int64 (N): classes are the labels of `images.csv`, or the subfolders of the
    folder, or of its `train` and `test` folders, in the order of their names, of numbers in that of their values.

    Raises:
        InputError: an image has no label, or lies in no subfolder; no folder, as in `read`.
    """
    listing = find(_name(name)[0])
    classes = {part: [_class(file, listing) for file in found] for part, found in listing.files.items()}
    known = {*classes["train"], *classes["test"]}
    ordered = sorted(known, key=int) if all(label.isdecimal() for label in known) else sorted(known)
    numbers = {label: number for number, label in enumerate(ordered)}
    return np.array([numbers[label] for label in classes[split]], np.int64)


def find(path: Path) -> Listing:
    """The images of the folder, or of the table, `path`.

    Raises:
        InputError: there are none; a folder or the table cannot be read.
    """
    if path.suffix.lower() == ".csv" and path.is_file():
        listing = _by_table(path)
    elif not path.is_dir():
        raise InputError(f"data: got folder:{path}, accepted is a folder of images, or a table of them (.csv)")
    elif (path / TABLE).is_file():
        listing = _by_table(path / TABLE)
    else:
        listing = _by_folders(path)
    if not listing.all:
        left_out = f" ({'; '.join(listing.notes)})" if listing.notes else ""
        raise InputError(f"{path}: no images{left_out}; accepted are {', '.join(sorted(files.suffixes()))}")
    return listing


def _name(name: str) -> tuple[Path, str]:
    """Path and background colour."""
    path, given, background = name.partition(BACKGROUND)
    return Path(path).expanduser().absolute(), background if given else WHITE


# ------------------------------------------------------------------------------------------------------------- splits


def _by_folders(root: Path) -> Listing:
    parts = _split_folders(root)
    if "train" not in parts or not parts.keys() & {"test", "val"}:
        found = _Walk(root, {_identity(root)})
        return Listing(root, _by_hash(found.images, root), notes=found.notes())
    test = "test" if "test" in parts else "val"
    walks = {
        split: _Walk(parts[name], {_identity(parts[name])}) for split, name in (("train", "train"), ("test", test))
    }
    known = {identity for walk in walks.values() for identity in walk.seen} | {_identity(root)}
    rest = _Walk(root, known)  # what is not below the two
    notes = [f"{parts[test].name}/ is taken as the test set"] if test == "val" else []
    if rest.images:
        beside = f"beside {parts['train'].name}/ and {parts[test].name}/"
        notes.append(f"left out: {_counted(rest.images, 'image', root)} {beside}")
    others = [*(name for walk in walks.values() for name in walk.others), *rest.others]
    links = [link for walk in walks.values() for link in walk.links]
    notes += _left_out(others, links, root)
    return Listing(root, {split: walk.images for split, walk in walks.items()}, skip=1, notes=notes)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of `root` that SPLITS names."""
    found: dict[str, Path] = {}
    try:
        below = sorted(root.iterdir())
    except OSError as error:
        _unreadable(error)
    for path in below:
        part = SPLITS.get(path.name.lower())
        if part and path.is_dir():
            if part in found:
                raise InputError(f"{root}: both {found[part].name} and {path.name} are there; accepted is one of them")
            found[part] = path
    return found


def _by_hash(images: list[Path], root: Path) -> dict[str, list[Path]]:
    """A tenth of the images is the test set; of two or more images at least one is in each set."""
    numbers = {file: _hash(file, root) for file in images}
    test = {file for file in images if numbers[file] % TEST_SHARE == 0}
    if len(images) > 1 and not test:
        test = {min(images, key=numbers.__getitem__)}
    if len(images) > 1 and len(test) == len(images):
        test.remove(max(images, key=numbers.__getitem__))
    return {"train": [f for f in images if f not in test], "test": [f for f in images if f in test]}


def _hash(file: Path, root: Path) -> int:
    relative = file.relative_to(root).as_posix().encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(relative, digest_size=8).digest(), "little")


def _class(file: Path, listing: Listing) -> str:
    if listing.classes is not None:
        if label := listing.classes[file]:
            return label
        raise InputError(f"{listing.root / TABLE}: {file.name} has no label; accepted is one for each image")
    own = file.relative_to(listing.root).parts[listing.skip : -1]
    if not own:
        raise InputError(f"{file}: lies in no subfolder, so it has no label; accepted is a subfolder for each class")
    return own[0]


class _Walk:
    """The files below a folder, links followed, each folder but once; hidden ones are left out.

    Attributes:
        images: files with the suffix of an image, in the order of their paths.
        others: files with another one.
        links: folders that were seen before: links in a circle, say.
        seen: all folders that were walked through, and those of the caller.
    """

    def __init__(self, root: Path, seen: set[tuple[int, int]]) -> None:
        self.root, self.seen = root, set(seen)
        self.links: list[Path] = []
        found = []
        for folder, below, names in os.walk(root, onerror=_unreadable, followlinks=True):
            # Real folders first: one that a link leads to as well is read where it lies.
            below.sort(key=lambda name, folder=folder: (os.path.islink(os.path.join(folder, name)), name))
            below[:] = [name for name in below if not name.startswith(".") and self._is_new(Path(folder, name))]
            found += [Path(folder, name) for name in names if not name.startswith(".")]
        found.sort(key=lambda path: path.relative_to(root).as_posix())
        self.images = [path for path in found if path.suffix.lower() in files.suffixes()]
        self.others = [path for path in found if path.suffix.lower() not in files.suffixes()]

    def _is_new(self, folder: Path) -> bool:
        try:
            identity = _identity(folder)
        except OSError as error:
            _unreadable(error)
        if identity in self.seen:
            self.links += [folder] if folder.is_symlink() else []
            return False
        self.seen.add(identity)
        return True

    def notes(self) -> list[str]:
        return _left_out(self.others, self.links, self.root)


def _identity(folder: Path) -> tuple[int, int]:
    """The same for a folder and for every link to it."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be read: {error.strerror or error}") from error


# --------------------------------------------------------------------------------------------------------------- table


def _by_table(table: Path) -> Listing:
    root, rows = table.parent, _rows(table)
    classes = {root / row["path"]: row["label"] for row in rows}
    if len(classes) < len(rows):
        twice = [path for path, count in Counter(row["path"] for row in rows).items() if count > 1]
        raise InputError(f"{table}: lists {twice[0]!r:.80} twice; accepted is one line for each image")
    splits = {root / row["path"]: row["split"] for row in rows}
    images = sorted(classes, key=lambda path: path.relative_to(root).as_posix())
    found, notes = _by_hash(images, root), []
    if any(splits.values()):
        test = "test" if "test" in splits.values() else "val"
        notes += ["val is taken as the test set"] if test == "val" and "val" in splits.values() else []
        found = {"train": [f for f in images if splits[f] == "train"], "test": [f for f in images if splits[f] == test]}
        if rest := [f for f in images if splits[f] not in ("train", test)]:
            notes.append(f"left out: {_counted(rest, 'image', root)} of the split val")
    here = _Walk(root, {_identity(root)}).images
    if rest := [file for file in here if file not in classes]:
        notes.append(f"left out: {_counted(rest, 'image', root)} that {table.name} does not list")
    return Listing(root, found, classes=classes, notes=notes)


def _rows(table: Path) -> list[dict[str, str]]:
    """`path`, `label`, and `split` ("train", "test", "val" or "") of each line of a table."""
    if table.stat().st_size > TABLE_MAX_BYTES:
        raise InputError(f"{table}: {table.stat().st_size} bytes, need at most {TABLE_MAX_BYTES}")
    try:
        reader = csv.reader(io.StringIO(table.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        lines = [(reader.line_num, [word.strip() for word in words]) for words in reader if any(words)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read as CSV in UTF-8: {error}") from error
    names = [name.lower() for name in lines[0][1]] if lines else []
    if sorted(names) not in (["label", "path"], ["label", "path", "split"]):
        raise InputError(f"{table}, line 1: got {','.join(names)!r:.80}, accepted is a first line of {COLUMNS}")
    rows = []
    for number, words in lines[1:]:
        if len(words) != len(names):
            raise InputError(f"{table}, line {number}: got {len(words)} values, accepted are {len(names)}: {COLUMNS}")
        row = {"split": ""} | dict(zip(names, words, strict=True))
        path = Path(row["path"])
        if path.is_absolute() or ".." in path.parts or not path.name or "\0" in row["path"]:
            raise InputError(
                f"{table}, line {number}: got {row['path']!r:.80}, accepted is a path below {table.parent}"
            )
        if "split" in names and row["split"].lower() not in SPLITS:
            raise InputError(
                f"{table}, line {number}: got split {row['split']!r:.80}, accepted are train, test and val"
            )
        rows.append(row | {"path": path.as_posix(), "split": SPLITS.get(row["split"].lower(), "")})
    return rows


# --------------------------------------------------------------------------------------------------------------- pixels


def _decode(file: Path, channels: int, size: int, background: tuple[int, int, int]) -> np.ndarray:
    return files.decode(file, channels, size, background=background)


def _channels(path: Path, listing: Listing, background: tuple[int, int, int]) -> int:
    """1 if all images, of both splits, are grey, else 3; says what is converted."""
    forms = {file: files.form(file) for file in cache.track(listing.all, "checking images")}
    color = [file for file, form in forms.items() if form.color]
    grey = [file for file, form in forms.items() if not form.color]
    colorful = len(set(background)) > 1 and any(form.alpha for form in forms.values())
    several = [file for file, form in forms.items() if form.several]
    notes = [f"{_counted(grey, 'grey image', listing.root)} beside {len(color)} in colour: read as colour"]
    said = notes if grey and color else []
    if several:
        said.append(f"of {_counted(several, 'file', listing.root)} with several pictures the first is taken")
    _say(path, said)
    return 3 if color or colorful else 1


# ---------------------------------------------------------------------------------------------------------------- notes


def _left_out(others: list[Path], links: list[Path], root: Path) -> list[str]:
    notes = []
    if others:
        notes.append(f"left out: {_counted(others, 'file', root)} without the suffix of an image")
    if links:
        notes.append(f"left out: {_counted(links, 'link', root)} to folders that are read already")
    return notes


def _counted(found: Iterable[Path], what: str, root: Path) -> str:
    """`4 files (a.txt, b.txt, c.txt, ...)`."""
    found = list(found)
    names = [path.relative_to(root).as_posix() for path in found[:NAMED]] + ["..."] * (len(found) > NAMED)
    return f"{len(found)} {what}{'s' * (len(found) > 1)} ({', '.join(names)})"


def _say(path: Path, notes: list[str]) -> None:
    if notes and distributed.rank() == 0:
        _warn_once(f"{path}: {'; '.join(notes)}")


@functools.cache  # both splits are read, often several times: Python's own filter forgets what it has shown
def _warn_once(line: str) -> None:
    warnings.warn(line, stacklevel=2)
