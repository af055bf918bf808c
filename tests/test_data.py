"""Data sets: readers on small real files, every kind of bad file, and batches that can be resumed."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import re
import struct
import tarfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from esvae import data
from esvae.data import cifar10, folder, idx, images, places
from esvae.errors import InputError

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
IDX_TEST = "t10k-images-idx3-ubyte"


@pytest.fixture(autouse=True)
def only_own_places(tmp_path, monkeypatch):
    """No test finds the machine's own data sets, and none can download."""
    monkeypatch.delenv("ESVAE_DATA_DIR", raising=False)
    monkeypatch.delenv("ESVAE_CACHE_DIR", raising=False)
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"fashion-mnist": [], "mnist": []})
    monkeypatch.setattr(places.pooch, "os_cache", lambda project: tmp_path / ".cache" / project)

    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(places.pooch, "retrieve", refuse)


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.mkdir()
    monkeypatch.setenv("ESVAE_DATA_DIR", str(path))
    return path


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def idx_bytes(images: np.ndarray) -> bytes:
    return struct.pack(">4I", 0x803, *images.shape) + images.tobytes()


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def fails(match: str, call, *args, **kwargs) -> str:
    with pytest.raises(InputError, match=match) as error:
        call(*args, **kwargs)
    return one_line(error)


# --- scale ---------------------------------------------------------------------------------------------------------


def test_normalize_is_the_papers_formula_and_to_uint8_inverts_it():
    pixels = torch.arange(256, dtype=torch.uint8)
    images = data.normalize(pixels)
    assert images.dtype == torch.float32
    assert torch.equal(images, torch.arange(256, dtype=torch.float32) / 255 * 2 - 1)
    assert images[0] == -1
    assert images[255] == 1
    assert torch.equal(data.to_uint8(images), pixels)
    assert torch.equal(data.to_uint8(images.double()), pixels)


def test_to_uint8_rounds_and_clamps():
    levels = torch.tensor([100.4, 100.6, -30.0, 300.0])
    assert data.to_uint8(levels / 255 * 2 - 1).tolist() == [100, 101, 0, 255]
    assert data.to_uint8(torch.tensor([float("-inf"), float("inf")])).tolist() == [0, 255]


def test_scale_functions_refuse_the_other_scale():
    fails("pixels: got torch.float32", data.normalize, torch.zeros(1))
    fails("images: got torch.uint8", data.to_uint8, torch.zeros(1, dtype=torch.uint8))
    fails("images: got NaN", data.to_uint8, torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(2, 1, 4, 4),
        torch.zeros(2, 4, 4, dtype=torch.uint8),
        torch.zeros(2, 1, 4, 5, dtype=torch.uint8),
        torch.zeros(0, 1, 4, 4, dtype=torch.uint8),
    ],
    ids=["float", "3-D", "not-square", "empty"],
)
def test_image_set_refuses_other_pixels(pixels):
    fails("pixels of mine: got", data.ImageSet, "mine", pixels, flip=False)


def test_labels_are_one_per_image_and_stay_with_them():
    pixels, labels = torch.zeros(5, 1, 4, 4, dtype=torch.uint8), torch.arange(5)
    whole = data.ImageSet("mine", pixels, flip=True, labels=labels)
    part = whole.part(1, 3)
    assert (len(part), part.labels.tolist(), part.flip) == (2, [1, 2], True)
    assert whole.part(3, None).labels.tolist() == [3, 4]
    assert data.ImageSet("mine", pixels, flip=False).part(1, 3).labels is None
    fails("labels of mine: got 5, need 4", data.ImageSet, "mine", pixels[:4], False, labels)


# --- load ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imagenet", "folder", "folder:", "digits:", "digits:x", ""])
def test_load_names_what_it_accepts(name):
    message = fails("name: got", data.load, name, "train")
    assert all(known in message for known in ("fashion-mnist", "mnist", "cifar10", "celeba", "digits", "folder:PATH"))


def test_load_checks_split_and_size():
    fails("split: got 'valid'", data.load, "digits", "valid")
    fails("size: got 0", data.load, "digits", "train", size=0)
    fails("size: got 1025", data.load, "digits", "train", size=1025)
    fails("size: got 32.0, accepted are integers", data.load, "digits", "train", size=32.0)


def test_a_data_dir_that_is_no_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("ESVAE_DATA_DIR", str(tmp_path / "typo"))
    fails("ESVAE_DATA_DIR: got .*typo", data.load, "mnist", "train")


def test_digits():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert train.pixels.shape == (1437, 1, 32, 32)
    assert test.pixels.shape == (360, 1, 32, 32)
    assert len(train) == 1437
    assert not train.flip
    native = data.load("digits", "train", size=8).pixels[0, 0]
    # scikit-learn's first image begins 0 0 5 13 9 1 0 0, of 16.
    assert native[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert data.load("digits", "train", size=8).pixels.max() == 255
    expected = Image.fromarray(native.numpy()).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(train.pixels[0, 0].numpy(), np.asarray(expected))


def test_digits_labels():
    train, test = (data.load("digits", split, labels=True).labels for split in ("train", "test"))
    assert (len(train), len(test), train.dtype) == (1437, 360, torch.int64)
    assert train[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]  # scikit-learn's digits begin so
    assert test[-3:].tolist() == [8, 9, 8]


# --- IDX -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
@pytest.mark.parametrize("below", [True, False], ids=["own-folder", "data-dir"])
def test_idx_is_read_and_resized_as_pillow_does(data_folder, name, packed, below):
    images = random_images(5, 28, 28)
    place = data_folder / name if below else data_folder
    place.mkdir(exist_ok=True)
    content = idx_bytes(images)
    (place / (IDX_TEST + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    loaded = data.load(name, "test")
    assert loaded.pixels.shape == (5, 1, 32, 32)
    assert loaded.pixels.dtype == torch.uint8
    assert loaded.name == name
    assert not loaded.flip
    for image, pixels in zip(images, loaded.pixels, strict=True):
        expected = Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)
        assert np.array_equal(pixels[0].numpy(), np.asarray(expected))
    assert np.array_equal(data.load(name, "test", size=28).pixels[:, 0].numpy(), images)


def test_idx_splits_are_different_files(data_folder):
    for split, count in {"train": 3, "test": 2}.items():
        (data_folder / idx.FILES[split]).write_bytes(idx_bytes(random_images(count, 28, 28)))
    assert len(data.load("mnist", "train")) == 3
    assert len(data.load("mnist", "test")) == 2


def test_the_data_dir_comes_before_the_system_folder_and_the_cache(tmp_path, data_folder, monkeypatch):
    system, cache = tmp_path / "system", places.cache_dir("fashion-mnist")
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"fashion-mnist": [system], "mnist": []})
    # From the last place to the first: each new file wins over those before it.
    for count, place in enumerate([cache, system, data_folder, data_folder / "fashion-mnist"], 1):
        place.mkdir(parents=True, exist_ok=True)
        (place / IDX_TEST).write_bytes(idx_bytes(random_images(count, 28, 28)))
        assert len(data.load("fashion-mnist", "test")) == count


def test_the_other_data_set_under_the_same_file_name_is_refused(data_folder, monkeypatch):
    images = random_images(2, 28, 28)
    (data_folder / IDX_TEST).write_bytes(idx_bytes(images))
    digest = idx.hashlib.md5(idx_bytes(images)).hexdigest()
    monkeypatch.setitem(idx.CONTENT_MD5, digest, ("mnist", "test"))
    assert len(data.load("mnist", "test")) == 2
    fails(r"asked for fashion-mnist \(test\), but this is mnist \(test\)", data.load, "fashion-mnist", "test")


def test_nothing_found_says_where_it_looked_and_the_ways_out(tmp_path, data_folder):
    message = fails(r"fashion-mnist \(train\): no train-images-idx3-ubyte", data.load, "fashion-mnist", "train")
    assert str(data_folder / "fashion-mnist") in message
    assert str(tmp_path / ".cache") in message
    assert all(way in message for way in ("ESVAE_DATA_DIR", "apt install dataset-fashion-mnist", "--download"))
    assert "apt install" not in fails(r"mnist \(train\): no", data.load, "mnist", "train")


def test_nothing_found_says_that_the_data_dir_is_not_set():
    fails(r"ESVAE_DATA_DIR is not set", data.load, "mnist", "train")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", ["fashion-mnist", "mnist"])
def test_download_goes_to_the_cache_with_its_checksum(name, split, monkeypatch):
    asked = {}

    def retrieve(url, known_hash, fname, path):
        asked.update(url=url, hash=known_hash)
        path.mkdir(parents=True)
        (path / fname).write_bytes(gzip.compress(idx_bytes(random_images(2, 28, 28))))
        return str(path / fname)

    monkeypatch.setattr(places.pooch, "retrieve", retrieve)
    assert len(data.load(name, split, download=True)) == 2
    assert asked["url"] == idx.URLS[name] + idx.FILES[split] + ".gz"
    assert asked["hash"] == "md5:" + idx.DOWNLOAD_MD5[name, split]
    monkeypatch.setattr(places.pooch, "retrieve", None)
    assert len(data.load(name, split)) == 2  # found in the cache from now on


def test_a_failed_download_is_one_line():
    fails(
        "download of https://.*mnist/train-images.*failed: no network in tests",
        data.load,
        "mnist",
        "train",
        download=True,
    )


GOOD = idx_bytes(random_images(3, 28, 28))
PACKED = gzip.compress(GOOD)


def with_shape(*shape: int) -> bytes:
    return struct.pack(">4I", 0x803, *shape) + GOOD[16:]


BAD_IDX = {
    "empty": (b"", "truncated, 0 bytes"),
    "half-header": (GOOD[:9], "truncated, 9 bytes"),
    "truncated": (GOOD[:-1], "truncated, header says 3 images of 28x28, 2352 bytes"),
    "oversized": (GOOD + b"\0", "oversized, header says 3 images of 28x28, 2352 bytes"),
    "labels-file": (struct.pack(">2I", 0x801, 3000) + bytes(3000), "magic number 0x00000801 instead of 0x00000803"),
    "no-images": (with_shape(0, 28, 28), "header says 0 images"),
    "absurd-count": (with_shape(2**32 - 1, 28, 28), "header says 4294967295 images"),
    "absurd-side": (with_shape(1, 2**31, 2**31), "header says 1 images of 2147483648x2147483648"),
    "not-square": (with_shape(3, 14, 56), "header says 3 images of 14x56"),
    "more-than-there-is": (with_shape(1_000_000, 28, 28), "more than this file can hold"),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_is_one_line(data_folder, case, packed):
    content, match = BAD_IDX[case]
    path = data_folder / (IDX_TEST + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert str(path) in fails(match, data.load, "mnist", "test")


@pytest.mark.parametrize(
    "content",
    [
        GOOD,
        PACKED[:-1],
        PACKED[: len(PACKED) // 2],
        PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:],
        PACKED + b"rubbish",
        PACKED[:10] + b"\xff" * 50 + PACKED[60:],
        b"",
    ],
    ids=["not-gzip", "cut-by-one", "cut-in-half", "wrong-crc", "rubbish-after", "corrupt", "empty"],
)
def test_broken_gzip_is_one_line(data_folder, content):
    path = data_folder / f"{IDX_TEST}.gz"
    path.write_bytes(content)
    assert str(path) in fails("cannot be read as gzip|oversized|truncated", data.load, "mnist", "test")


def labels_bytes(labels: list[int], magic: int = 0x801, count: int | None = None) -> bytes:
    return struct.pack(">2I", magic, len(labels) if count is None else count) + bytes(labels)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_idx_labels_are_those_beside_the_images(data_folder, packed):
    own = data_folder / "fashion-mnist"
    own.mkdir()
    (own / IDX_TEST).write_bytes(GOOD)
    (data_folder / "t10k-labels-idx1-ubyte").write_bytes(labels_bytes([0, 0, 0]))  # of another data set
    fails("no t10k-labels-idx1-ubyte", data.load, "fashion-mnist", "test", labels=True)
    content = labels_bytes([7, 0, 9])
    (own / f"t10k-labels-idx1-ubyte{'.gz' * packed}").write_bytes(gzip.compress(content) if packed else content)
    loaded = data.load("fashion-mnist", "test", labels=True)
    assert (loaded.labels.tolist(), loaded.labels.dtype) == ([7, 0, 9], torch.int64)
    assert data.load("fashion-mnist", "test").labels is None


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "truncated, 0 bytes where an IDX header has 8"),
        (labels_bytes([1, 2, 3])[:-1], "truncated, header says 3 labels, 3 bytes"),
        (labels_bytes([1, 2, 3, 4], count=3), "oversized, header says 3 labels"),
        (labels_bytes([], count=0), "header says 0 labels, accepted are 1 to"),
        (labels_bytes([], count=2**32 - 1), "header says 4294967295 labels"),
        (labels_bytes([1, 2, 3], count=1_000_000), "more than this file can hold"),
        (labels_bytes([1, 2, 10]), "label 10, accepted are 0 to 9"),
        (labels_bytes([1, 2]), "labels of mnist: got 2, need 3"),
        (GOOD, "not an IDX label file, magic number 0x00000803 instead of 0x00000801"),
    ],
    ids=["empty", "truncated", "oversized", "none", "absurd", "more", "value", "too-few", "images"],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_bad_idx_labels_are_one_line(data_folder, content, match, packed):
    (data_folder / IDX_TEST).write_bytes(GOOD)
    path = data_folder / ("t10k-labels-idx1-ubyte" + ".gz" * packed)
    path.write_bytes(gzip.compress(content) if packed else content)
    fails(match, data.load, "mnist", "test", labels=True)


def test_idx_labels_are_downloaded_with_their_checksum(data_folder, monkeypatch):
    (data_folder / IDX_TEST).write_bytes(GOOD)

    def retrieve(url, known_hash, fname, path):
        assert url == "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-labels-idx1-ubyte.gz"
        assert known_hash == "md5:ec29112dd5afa0611ce80d1b7f02629c"
        path.mkdir(parents=True)
        (path / fname).write_bytes(gzip.compress(labels_bytes([3, 2, 1])))
        return path / fname

    monkeypatch.setattr(places.pooch, "retrieve", retrieve)
    assert data.load("mnist", "test", labels=True, download=True).labels.tolist() == [3, 2, 1]


@pytest.mark.parametrize("declared", [3, 400_000], ids=["small-header", "large-header"])
def test_a_gzip_bomb_is_not_unpacked(tmp_path, declared):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, declared, 28, 28) + bytes(64 << 20)))
    tracemalloc.start()
    fails("oversized|more than this file can hold", idx.read_images, path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_an_unreadable_idx_is_one_line(tmp_path):
    fails("cannot be read", idx.read_images, tmp_path / "gone")


@pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason=f"no {DEBIAN_FOLDER} (Debian package dataset-fashion-mnist)")
def test_debians_fashion_mnist(monkeypatch):
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"fashion-mnist": [DEBIAN_FOLDER], "mnist": []})
    monkeypatch.setattr(idx, "_published_as", lambda images, check=idx._published_as: seen.append(check(images)))
    seen: list[tuple[str, str]] = []
    train, test = data.load("fashion-mnist", "train"), data.load("fashion-mnist", "test")
    assert train.pixels.shape == (60_000, 1, 32, 32)
    assert test.pixels.shape == (10_000, 1, 32, 32)
    assert seen == [("fashion-mnist", "train"), ("fashion-mnist", "test")]
    # The error of always answering with the mean image; the spec's yardstick is .309.
    variance = torch.cat(list(data.ordered_batches(test, 1000))).var(0, correction=0).mean()
    assert variance.item() == pytest.approx(0.309, abs=0.0005)


# --- CIFAR10 -------------------------------------------------------------------------------------------------------


def test_labels_of_debians_fashion_mnist(monkeypatch):
    if not DEBIAN_FOLDER.is_dir():
        pytest.skip("Fashion-MNIST is not installed")
    monkeypatch.setattr(idx, "SYSTEM_FOLDERS", {"fashion-mnist": [DEBIAN_FOLDER]})
    labels = idx.labels("fashion-mnist", "test", False)
    assert np.bincount(labels).tolist() == [1000] * 10
    assert labels[:5].tolist() == [9, 2, 1, 1, 6]  # ankle boot, pullover, trouser, trouser, shirt


def cifar_bytes(images: np.ndarray, label: int = 9) -> bytes:
    records = np.full((len(images), 3073), label, np.uint8)
    records[:, 1:] = images.reshape(len(images), -1)
    return records.tobytes()


def write_cifar(place: Path) -> np.ndarray:
    """Two images in each of the six files; all twelve, the test file's last, as (12, 3, 32, 32)."""
    place.mkdir(parents=True, exist_ok=True)
    images = random_images(12, 3, 32, 32)
    for number, file in enumerate(cifar10.FILES["train"] + cifar10.FILES["test"]):
        (place / file).write_bytes(cifar_bytes(images[2 * number : 2 * number + 2]))
    return images


def test_cifar10_labels(data_folder):
    for number, file in enumerate(cifar10.FILES["train"] + cifar10.FILES["test"]):
        (data_folder / file).write_bytes(cifar_bytes(random_images(2, 3, 32, 32), label=number))
    assert data.load("cifar10", "train", labels=True).labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert data.load("cifar10", "test", labels=True).labels.tolist() == [5, 5]


@pytest.mark.parametrize("below", ["", "cifar-10-batches-bin"], ids=["data-dir", "own-folder"])
def test_cifar10(data_folder, below):
    images = write_cifar(data_folder / below)
    train, test = data.load("cifar10", "train"), data.load("cifar10", "test")
    assert np.array_equal(train.pixels.numpy(), images[:10])
    assert np.array_equal(test.pixels.numpy(), images[10:])
    assert train.flip
    assert not test.flip


def test_cifar10_resizes_as_pillow_does(data_folder):
    images = write_cifar(data_folder)
    expected = Image.fromarray(images[11].transpose(1, 2, 0)).resize((20, 20), Image.Resampling.BILINEAR)
    loaded = data.load("cifar10", "test", size=20)
    assert np.array_equal(loaded.pixels[1].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "0 bytes, need"),
        (bytes(3072), "3072 bytes, need"),
        (bytes(3074), "3074 bytes, need"),
        (bytes(3073 * 10_001), "need 1 to 10000 records"),
        (cifar_bytes(random_images(2, 3, 32, 32), label=10), "not CIFAR10, label 10"),
    ],
    ids=["empty", "truncated", "oversized", "too-many", "label"],
)
def test_bad_cifar10_is_one_line(data_folder, content, match):
    write_cifar(data_folder)
    (data_folder / "data_batch_4.bin").write_bytes(content)
    assert "data_batch_4.bin" in fails(match, data.load, "cifar10", "train")


def test_incomplete_or_absent_cifar10_says_what_is_needed(data_folder):
    write_cifar(data_folder)
    (data_folder / "data_batch_4.bin").unlink()
    message = fails(r"cifar10 \(train\): none of", data.load, "cifar10", "train")
    assert str(data_folder) in message
    assert "data_batch_4.bin" in message
    assert "--download" in message


def write_archive(path: Path, members: dict[str, bytes | None]) -> Path:
    """A .tar.gz of these members; None stands for a link out of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(content or b"")
            tar.addfile(member, io.BytesIO(content or b""))
    return path


def cifar_members() -> dict[str, bytes]:
    files = cifar10.FILES["train"] + cifar10.FILES["test"]
    return {f"cifar-10-batches-bin/{file}": cifar_bytes(random_images(2, 3, 32, 32)) for file in files}


def test_cifar10_download_unpacks_the_data_files_alone(tmp_path, monkeypatch):
    hostile = {
        "../evil": b"x",
        "/tmp/evil.bin": b"x",
        "cifar-10-batches-bin/../../evil": b"x",
        "other/test_batch.bin": b"x",
    }
    archive = write_archive(tmp_path / "cifar-10-binary.tar.gz", {**hostile, **cifar_members()})
    asked = {}

    def retrieve(url, known_hash, fname, path):
        asked.update(url=url, hash=known_hash)
        return str(archive)

    monkeypatch.setattr(places.pooch, "retrieve", retrieve)
    assert len(data.load("cifar10", "train", download=True)) == 10
    assert asked == {"url": cifar10.URL, "hash": "md5:" + cifar10.MD5}
    written = {path.name for path in (tmp_path / ".cache").rglob("*") if path.is_file()}
    assert written == set(cifar10.FILES["train"] + cifar10.FILES["test"])
    assert not list(tmp_path.rglob("*evil*"))
    monkeypatch.setattr(places.pooch, "retrieve", None)
    assert len(data.load("cifar10", "test")) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"cifar-10-batches-bin/test_batch.bin": None}, "test_batch.bin is not a file"),
        ({"cifar-10-batches-bin/test_batch.bin": bytes(3073 * 10_000 + 1)}, "test_batch.bin is not a file of at most"),
    ],
    ids=["link", "too-large"],
)
def test_a_bad_cifar10_archive_is_one_line(tmp_path, change, match):
    fails(match, cifar10.unpack, write_archive(tmp_path / "c.tar.gz", {**cifar_members(), **change}), tmp_path / "to")


@pytest.mark.parametrize(
    ("kind", "size"),
    [(b"L", 1 << 62), (b"x", 1 << 40), (b"L", -512), (b"0", 1 << 62)],
    ids=["long-name", "pax", "negative", "file"],
)
def test_a_cifar10_archive_that_asks_for_memory_is_one_line(tmp_path, monkeypatch, kind, size):
    member = tarfile.TarInfo("x")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (
        (size % (1 << 95) | 1 << 95).to_bytes(12, "big") if size > 0 else size.to_bytes(12, "big", signed=True)
    )
    header[156:157] = kind
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    archive = tmp_path / "c.tar.gz"
    archive.write_bytes(gzip.compress(bytes(header) + bytes(10_000)))
    monkeypatch.setattr(places.pooch, "retrieve", lambda *args, **kwargs: str(archive))
    tracemalloc.start()
    fails("c.tar.gz: (cannot be unpacked|lacks)", data.load, "cifar10", "train", download=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_cifar10_archive_without_a_file_is_one_line(tmp_path):
    members = cifar_members()
    del members["cifar-10-batches-bin/data_batch_2.bin"]
    fails("lacks data_batch_2.bin", cifar10.unpack, write_archive(tmp_path / "c.tar.gz", members), tmp_path / "to")


def test_a_cut_cifar10_archive_is_one_line(tmp_path, monkeypatch):
    archive = write_archive(tmp_path / "c.tar.gz", cifar_members())
    archive.write_bytes(archive.read_bytes()[:5000])
    monkeypatch.setattr(places.pooch, "retrieve", lambda *args, **kwargs: str(archive))
    fails("c.tar.gz: cannot be unpacked", data.load, "cifar10", "train", download=True)
    assert not list((tmp_path / ".cache").rglob("*.bin"))


# --- CelebA --------------------------------------------------------------------------------------------------------


@pytest.fixture
def celeba(data_folder):
    root = data_folder / "celeba"
    for number in range(1, 6):
        save(root / "img_align_celeba" / f"{number:06}.jpg", random_images(218, 178, 3, seed=number))
    (root / "list_eval_partition.txt").write_text("".join(f"{i + 1:06}.jpg {p}\n" for i, p in enumerate("00122")))
    return root


def test_celeba(celeba):
    train, test = data.load("celeba", "train"), data.load("celeba", "test")
    assert train.pixels.shape == (2, 3, 64, 64)
    assert test.pixels.shape == (2, 3, 64, 64)
    assert train.flip
    assert not test.flip
    with Image.open(celeba / "img_align_celeba" / "000005.jpg") as image:
        expected = image.crop((15, 35, 15 + 148, 35 + 148)).resize((64, 64), Image.Resampling.BILINEAR)
    assert np.array_equal(test.pixels[1].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("000001.jpg 3", "line 6: got '000001.jpg 3'"),
        ("000001.jpg", "line 6: got"),
        ("../../x.jpg 0", "line 6: got '../../x.jpg 0'"),
        ("/etc/x.jpg 0", "line 6: got"),
        ("000099.jpg 0", "000099.jpg: cannot be read"),
    ],
    ids=["partition", "no-partition", "parent", "absolute", "missing-image"],
)
def test_a_bad_celeba_list_is_one_line(celeba, line, match):
    with (celeba / "list_eval_partition.txt").open("a") as stream:
        stream.write(line + "\n")
    fails(match, data.load, "celeba", "train")


def test_celeba_of_another_size_is_one_line(celeba):
    for number in (1, 2):
        save(celeba / "img_align_celeba" / f"{number:06}.jpg", random_images(64, 64, 3))
    fails("000001.jpg: 64x64 color, need 178x218 color", data.load, "celeba", "train")


def test_absent_celeba_says_what_is_needed(celeba):
    (celeba / "list_eval_partition.txt").unlink()
    message = fails("celeba: no img_align_celeba with list_eval_partition.txt", data.load, "celeba", "train")
    assert str(celeba) in message
    assert "no download" in message


def test_celeba_without_a_data_dir_says_so():
    fails("ESVAE_DATA_DIR is not set", data.load, "celeba", "train", download=True)


def test_an_empty_celeba_split_is_one_line(celeba):
    (celeba / "list_eval_partition.txt").write_text("000001.jpg 0\n")
    fails(r"lists no image of partition 2 \(test\)", data.load, "celeba", "test")


def test_celeba_has_no_labels(celeba):
    line = fails("data: got celeba, which has no labels", data.load, "celeba", "train", labels=True)
    assert "accepted are fashion-mnist, mnist, cifar10, digits, folder:PATH" in line


# --- folders of images ---------------------------------------------------------------------------------------------


def make_split_folder(root: Path, pixels: np.ndarray, mode: str | None = None, suffix: str = "png") -> list[Path]:
    return [save(root / ("train", "test")[i % 2] / f"{i}.{suffix}", image, mode) for i, image in enumerate(pixels)]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("LA", 1), ("RGB", 3), ("P", 3), ("CMYK", 3)])
def test_folder_with_train_and_test(tmp_path, mode, channels):
    suffix = "tif" if mode == "CMYK" else "png"
    paths = make_split_folder(tmp_path, random_images(4, 32, 32, 3), mode, suffix)
    loaded = data.load(f"folder:{tmp_path}", "train")
    assert loaded.pixels.shape == (2, channels, 32, 32)
    assert not loaded.flip
    for path, pixels in zip(paths[::2], loaded.pixels, strict=True):
        with Image.open(path) as image:
            expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(32, 32, channels)
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "jfif", "bmp", "webp", "tif", "gif", "ppm"])
def test_folder_formats_and_resize(tmp_path, suffix):
    paths = make_split_folder(tmp_path, random_images(2, 40, 50, 3), suffix=suffix)
    with Image.open(paths[1]) as image:
        expected = image.convert("RGB").crop((5, 0, 45, 40)).resize((32, 32), Image.Resampling.BILINEAR)
    pixels = data.load(f"folder:{tmp_path}", "test").pixels[0]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_folder_mixes_modes_of_one_kind(tmp_path):
    save(tmp_path / "train/a.png", random_images(32, 32), "L")
    save(tmp_path / "test/b.png", random_images(32, 32), "1")
    assert data.load(f"folder:{tmp_path}", "train").pixels.shape[1] == 1


def test_folder_split_by_hash_is_fixed_and_whole(tmp_path):
    for number in range(200):
        save(tmp_path / f"{number % 7}" / f"{number}.png", np.full((4, 4), number, np.uint8))
    train, test = (data.load(f"folder:{tmp_path}", split, size=4) for split in ("train", "test"))
    values = [images.pixels[:, 0, 0, 0].tolist() for images in (train, test)]
    assert sorted(values[0] + values[1]) == list(range(200))
    assert 8 <= len(test) <= 36  # a tenth of 200, within four standard deviations
    # In the order of the paths, and the same when the folder lies elsewhere and an image is gone.
    assert values[0] == sorted(values[0], key=lambda number: f"{number % 7}/{number}.png")
    moved = tmp_path.rename(tmp_path.parent / "moved")
    gone = values[0].pop(3)
    (moved / f"{gone % 7}" / f"{gone}.png").unlink()
    assert data.load(f"folder:{moved}", "test", size=4).pixels[:, 0, 0, 0].tolist() == values[1]
    assert data.load(f"folder:{moved}", "train", size=4).pixels[:, 0, 0, 0].tolist() == values[0]


def test_folder_leaves_out_hidden_and_other_files(tmp_path):
    make_split_folder(tmp_path, random_images(2, 32, 32))
    for name in (".hidden.png", "notes.txt"):
        (tmp_path / "train" / name).write_text("no image")
    save(tmp_path / "train" / ".checkpoints" / "copy.png", random_images(8, 8, seed=1))
    assert len(data.load(f"folder:{tmp_path}", "train")) == 1


@pytest.mark.parametrize("split", ["", "train/"], ids=["by-hash", "by-folder"])
def test_folder_labels_are_the_subfolders_in_order(tmp_path, split):
    files = [f"{split}{folder}/{n}.png" for folder in ("dog", "bird/small", "cat") for n in range(9)]
    for file in (*files, *(["test/cat/0.png"] if split else [])):
        save(tmp_path / file, random_images(8, 8, seed=len(file)))
    name = f"folder:{tmp_path}"
    for part in ("train", "test"):
        loaded = data.load(name, part, labels=True)
        own = folder.find(tmp_path).files[part]
        expected = [("bird", "cat", "dog").index(next(w for w in ("bird", "cat", "dog") if w in str(f))) for f in own]
        assert loaded.labels.tolist() == expected
        assert data.load(name, part).labels is None
    if split:
        assert loaded.labels.tolist() == [1]  # though the test set has no bird and no dog


def test_a_folder_without_subfolders_has_no_labels(tmp_path):
    make_split_folder(tmp_path, random_images(4, 8, 8))
    line = fails("lies in no subfolder, so it has no label", data.load, f"folder:{tmp_path}", "test", labels=True)
    assert str(tmp_path) in line


def test_a_folder_without_images_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    left_out = r"left out: 1 file \(notes.txt\) without the suffix of an image"
    line = fails(rf"{tmp_path}: no images \({left_out}\); accepted are ", data.load, f"folder:{tmp_path}", "train")
    assert ".png, " in line
    assert ".eps" not in line  # a program, which Ghostscript would run


def test_no_folder_is_one_line(tmp_path):
    fails(
        "data: got folder:.*gone, accepted is a folder of images, or a table",
        data.load,
        f"folder:{tmp_path}/gone",
        "train",
    )


@pytest.mark.parametrize("in_test", [True, False])
def test_a_small_folder_has_an_image_in_both_sets(tmp_path, in_test):
    """Whatever their hashes say."""
    chosen = [n for n in range(99) if (folder._hash(tmp_path / f"{n}.png", tmp_path) % 10 == 0) == in_test][:3]
    for number in chosen:
        save(tmp_path / f"{number}.png", np.full((8, 8), number, np.uint8))
    found = [data.load(f"folder:{tmp_path}", split).pixels[:, 0, 0, 0].tolist() for split in ("train", "test")]
    assert sorted(found[0] + found[1]) == chosen
    assert [len(part) for part in found] == ([1, 2] if in_test else [2, 1])


def test_one_image_is_no_data_set(tmp_path):
    save(tmp_path / "0.png", random_images(8, 8))
    split = "test" if len(folder.find(tmp_path).files["train"]) else "train"
    fails(f"none of its 1 image is in the {split} set", data.load, f"folder:{tmp_path}", split)


def warned(match: str, name: str, split: str = "train", **options) -> data.ImageSet:
    """The set, whose reading gave one warning, and once only."""
    folder._warn_once.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = data.load(name, split, **options)
        for other in ("train", "test"):
            data.load(name, other, **options)
    assert len(caught) == 1
    assert re.search(match, str(caught[0].message)), caught[0].message
    return loaded


@pytest.mark.parametrize(("size", "mode"), [((8, 9), "L"), ((700, 20), "L"), ((8, 8), "LA")])
def test_images_of_several_sizes(tmp_path, size, mode):
    save(tmp_path / "train/a.png", random_images(8, 8))
    save(tmp_path / "test/b.png", random_images(*size), mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data.load(f"folder:{tmp_path}", "test").pixels.shape == (1, 1, 32, 32)


def test_grey_beside_colour_is_read_as_colour(tmp_path):
    save(tmp_path / "train/a.png", random_images(8, 8))
    save(tmp_path / "test/b.png", random_images(8, 8, 3))
    loaded = warned(r"1 grey image \(train/a.png\) beside 1 in colour: read as colour$", f"folder:{tmp_path}", size=8)
    assert (loaded.pixels[0] == torch.from_numpy(random_images(8, 8))).all()


def test_a_colour_that_comes_later_changes_the_other_set(tmp_path):
    save(tmp_path / "train/a.png", random_images(8, 8))
    save(tmp_path / "test/b.png", random_images(8, 8))
    assert data.load(f"folder:{tmp_path}", "train").pixels.shape[1] == 1
    save(tmp_path / "test/c.png", random_images(8, 8, 3))
    assert warned("2 grey images", f"folder:{tmp_path}").pixels.shape[1] == 3


@pytest.mark.parametrize(
    ("background", "expected"),
    [("", (255, 255, 255)), ("?background=black", (0, 0, 0)), ("?background=#ff8000", (255, 128, 0))],
)
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_the_background(tmp_path, mode, background, expected):
    """Not the colours that are hidden under it."""
    picture = Image.new("RGBA", (8, 8), (200, 10, 10, 0))
    for name in ("train/a.png", "test/b.png"):
        (tmp_path / name).parent.mkdir()
        picture.convert(mode).save(tmp_path / name, **({"transparency": 0} if mode == "P" else {}))
    if mode == "P":
        assert Image.open(tmp_path / name).convert("RGBA").getpixel((0, 0))[3] == 0
    pixels = data.load(f"folder:{tmp_path}{background}", "train", size=4).pixels[0]
    grey = mode == "LA" and len(set(expected)) == 1
    assert pixels.shape[0] == (1 if grey else 3)
    assert [plane.unique().tolist() for plane in pixels] == [[value] for value in expected[: len(pixels)]]


def test_a_background_that_is_no_colour_is_one_line(tmp_path):
    make_split_folder(tmp_path, random_images(2, 8, 8))
    line = "data_background: got 'plaid', accepted is a colour by name"
    fails(line, data.load, f"folder:{tmp_path}?background=plaid", "train")


def test_images_are_turned_upright(tmp_path):
    upright = Image.fromarray(random_images(8, 8, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    for name in ("train/a.png", "test/b.png"):
        (tmp_path / name).parent.mkdir()
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=exif)
    pixels = data.load(f"folder:{tmp_path}", "train", size=8).pixels[0]
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(upright))


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    first, second = (Image.fromarray(random_images(8, 8, seed=seed)) for seed in range(2))
    (tmp_path / "train").mkdir()
    first.save(tmp_path / "train/a.tif", save_all=True, append_images=[second])
    save(tmp_path / "test/b.png", random_images(8, 8))
    loaded = warned(r"of 1 file \(train/a.tif\) with several pictures the first", f"folder:{tmp_path}", size=8)
    assert np.array_equal(loaded.pixels[0, 0].numpy(), np.asarray(first))


# --- which images of a folder are taken ---


def counted_folder(root: Path, counts: dict[str, int]) -> str:
    """So many images, each of another grey, in each of these folders; the data set's name."""
    number = itertools.count()
    for below, count in counts.items():
        for i in range(count):
            save(root / below / f"{i}.png", np.full((8, 8), next(number), np.uint8))
    return f"folder:{root}"


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "VALID"), ("training", "Validation")])
def test_a_validation_set_is_the_test_set_where_there_is_none(tmp_path, names):
    train, val = names
    name = counted_folder(tmp_path, {f"{train}/cat": 4, f"{train}/dog": 4, f"{val}/cat": 2, f"{val}/dog": 1})
    loaded = warned(f"{val}/ is taken as the test set$", name, labels=True)
    assert loaded.labels.tolist() == [0] * 4 + [1] * 4
    assert data.load(name, "test", labels=True).labels.tolist() == [0, 0, 1]


def test_a_validation_set_beside_a_test_set_is_left_out_and_said(tmp_path):
    name = counted_folder(tmp_path, {"TRAIN": 4, "Test": 2, "val": 3})
    line = r"left out: 3 images \(val/0.png, val/1.png, val/2.png\) beside TRAIN/ and Test/$"
    assert len(warned(line, name)) == 4
    assert len(data.load(name, "test")) == 2


def test_two_training_folders_are_one_line(tmp_path):
    name = counted_folder(tmp_path, {"train": 1, "training": 1, "test": 1})
    fails("both train and training are there; accepted is one of them", data.load, name, "train")


def test_other_files_are_counted_and_named(tmp_path):
    name = counted_folder(tmp_path, {"train": 2, "test": 2})
    for file in ("train/a.txt", "train/b.txt", "train/c.pdf", "test/d", ".hidden.txt"):
        (tmp_path / file).write_text("no image")
    line = r"left out: 4 files \(train/a.txt, train/b.txt, train/c.pdf, ...\) without the suffix of an image$"
    assert len(warned(line, name)) == 2


def test_links_are_followed(tmp_path):
    name = counted_folder(tmp_path / "p", {"train/a": 3, "test/a": 1})
    counted_folder(tmp_path, {"elsewhere": 5})
    (tmp_path / "p/train/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "p/test/a/b.png").symlink_to(tmp_path / "elsewhere/0.png")
    loaded = data.load(name, "train", labels=True)
    assert loaded.labels.tolist() == [0] * 3 + [1] * 5
    assert len(data.load(name, "test")) == 2


def test_links_in_a_circle_end(tmp_path):
    name = counted_folder(tmp_path, {"train/a": 3, "test/a": 2})
    (tmp_path / "train/a/up").symlink_to(tmp_path / "train")
    (tmp_path / "test/again").symlink_to(tmp_path / "test/a")
    line = r"left out: 2 links \(train/a/up, test/again\) to folders that are read already$"
    assert len(warned(line, name)) == 3
    assert len(data.load(name, "test")) == 2


def test_sets_made_of_links_into_one_folder(tmp_path):
    """As tools make them that leave the images where they are."""
    name = counted_folder(tmp_path, {"all/cat": 3, "all/dog": 2})
    for split, animal in (("train", "cat"), ("test", "dog")):
        (tmp_path / split).mkdir()
        (tmp_path / split / animal).symlink_to(tmp_path / "all" / animal)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [len(data.load(name, split)) for split in ("train", "test")] == [3, 2]


def test_a_home_folder(tmp_path, monkeypatch):
    counted_folder(tmp_path / "pics", {"train": 2, "test": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(data.load("folder:~/pics", "train")) == 2


# --- a table of images ---

TABLE = "path,label\n" + "".join(f"{i}.png,{i % 11}\n" for i in range(30))


@pytest.mark.parametrize("given", ["", "/images.csv"], ids=["folder", "file"])
def test_a_table_of_images(tmp_path, given):
    name = counted_folder(tmp_path, {".": 30}) + given
    (tmp_path / "images.csv").write_text(TABLE)
    sets = [data.load(name, split, labels=True) for split in ("train", "test")]
    assert sum(map(len, sets)) == 30
    for part in sets:
        assert part.labels.tolist() == [i % 11 for i in part.pixels[:, 0, 0, 0].tolist()]  # 2 before 10


def test_a_table_with_splits(tmp_path):
    name = counted_folder(tmp_path, {"pics": 5})
    lines = ["Path,Split,Label", "pics/3.png,train,b", "pics/0.png,Train,a", '"pics/2.png",val,b', "pics/4.png,VAL,c"]
    (tmp_path / "images.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    line = r"val is taken as the test set; left out: 1 image \(pics/1.png\) that images.csv does not list$"
    loaded = warned(line, name, labels=True)
    assert loaded.pixels[:, 0, 0, 0].tolist() == [0, 3]
    assert loaded.labels.tolist() == [0, 1]
    assert data.load(name, "test", labels=True).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "line 1: got ''"),
        ("a.png,cat\n", "line 1: got 'a.png,cat', accepted is a first line of path,label"),
        ("path,label\n0.png\n", "line 2: got 1 values, accepted are 2"),
        ("path,label\n../0.png,a\n", r"line 2: got '\.\./0.png', accepted is a path below"),
        ("path,label\n/etc/passwd,a\n", "line 2: got '/etc/passwd'"),
        ("path,label\n,a\n", "line 2: got ''"),
        ("path,label\n0.png,a\n./0.png,b\n", "lists '0.png' twice"),
        ("path,label,split\n0.png,a,dev\n", "line 2: got split 'dev', accepted are train, test and val"),
        ('path,label\n"0.png,a\n', "cannot be read as CSV"),
        ("path,label\n\xff.png,a\n", "cannot be read as CSV"),
        ("path,label\n7.png,a\n0.png,b\n", "7.png: cannot be read"),
        ("path,label\n", "no images"),
    ],
)
def test_a_bad_table_is_one_line(tmp_path, text, match):
    name = counted_folder(tmp_path, {".": 1})
    (tmp_path / "images.csv").write_bytes(text.encode("latin-1"))
    fails(match, data.load, name, "train")


def test_a_table_without_labels_has_none(tmp_path):
    name = counted_folder(tmp_path, {".": 2})
    (tmp_path / "images.csv").write_text("path,label\n0.png,\n1.png,\n")
    assert len(data.load(name, "train")) == 1
    fails("images.csv: .*png has no label", data.load, name, "train", labels=True)


# --- what cannot be read ---


def test_16_bit_images_are_refused(tmp_path):
    save(tmp_path / "train/a.png", np.full((8, 8), 40_000, np.uint16))
    save(tmp_path / "test/b.png", np.full((8, 8), 40_000, np.uint16))
    fails("a.png: mode I;16, accepted are 1, .*: convert it to 8 bits", data.load, f"folder:{tmp_path}", "train")


@pytest.mark.parametrize("damage", ["text", "empty", "truncated", "dangling", "postscript"])
def test_an_unreadable_image_is_one_line_that_names_it(tmp_path, damage):
    _, bad = make_split_folder(tmp_path, random_images(2, 32, 32))
    whole = bad.read_bytes()
    bad.unlink()
    if damage == "dangling":
        bad.symlink_to(tmp_path / "gone.png")
    elif damage == "postscript":
        Image.fromarray(random_images(32, 32)).save(bad, format="EPS")
    else:
        bad.write_bytes({"text": b"no image", "empty": b"", "truncated": whole[: len(whole) // 2]}[damage])
    assert str(bad) in fails("cannot be read( as an image)?: ", data.load, f"folder:{tmp_path}", "test")


def test_an_image_by_another_suffix_is_read(tmp_path):
    _, other = make_split_folder(tmp_path, random_images(2, 32, 32))
    Image.fromarray(random_images(32, 32)).save(other, format="GIF")
    assert torch.equal(data.load(f"folder:{tmp_path}", "test").pixels[0, 0], torch.from_numpy(random_images(32, 32)))


@pytest.mark.parametrize("limit", [40 * 40 - 1, 40 * 20 - 1], ids=["warned-of", "refused"])
def test_a_decompression_bomb_is_one_line(tmp_path, monkeypatch, limit):
    make_split_folder(tmp_path, random_images(2, 40, 40))
    assert Image.MAX_IMAGE_PIXELS is not None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    fails("0.png: too many pixels", data.load, f"folder:{tmp_path}", "train")


def test_a_closed_subfolder_is_one_line(tmp_path, monkeypatch):
    save(tmp_path / "open/a.png", random_images(8, 8))
    closed = save(tmp_path / "closed/b.png", random_images(8, 8)).parent
    scandir = os.scandir

    def refuse(path):
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    # By hand, because permissions do not bind root.
    monkeypatch.setattr(os, "scandir", refuse)
    fails("closed: cannot be read", data.load, f"folder:{tmp_path}", "train")


# --- batches -------------------------------------------------------------------------------------------------------


def numbered(n: int = 23, channels: int = 1, flip: bool = False) -> data.ImageSet:
    """Images whose number stands in the upper left or, once flipped, in the upper right corner."""
    pixels = torch.full((n, channels, 4, 4), 255, dtype=torch.uint8)
    pixels[:, :, 0, 0] = torch.arange(n, dtype=torch.uint8)[:, None]
    return data.ImageSet("numbered", pixels, flip)


def numbers_and_flips(batches) -> tuple[list[int], list[bool]]:
    pixels = torch.cat([data.to_uint8(batch) for batch in batches])
    left, right = pixels[:, 0, 0, 0], pixels[:, 0, 0, 3]
    return torch.minimum(left, right).tolist(), (right < left).tolist()


def test_epoch_order_is_a_permutation_of_its_own_for_every_seed_and_epoch():
    orders = {(seed, epoch): data.epoch_order(50, seed, epoch).tolist() for seed in range(8) for epoch in range(8)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 64
    assert data.epoch_order(50, 3, 4).tolist() == orders[3, 4]


def test_batches_do_not_touch_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(data.batches(numbered(flip=True), 5, seed=0, epoch=0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_follow_epoch_order_in_the_promised_form(channels):
    image_set = numbered(channels=channels)
    batches = list(data.batches(image_set, 5, seed=7, epoch=2))
    for batch in batches:
        assert batch.shape == (5, channels, 4, 4)
        assert batch.dtype == torch.float32
        assert batch.is_contiguous(memory_format=torch.channels_last)
    order = data.epoch_order(23, 7, 2)[:20]
    assert torch.equal(torch.cat(batches), data.normalize(image_set.pixels[order]))


@pytest.mark.parametrize(("drop_last", "sizes"), [(True, [5] * 4), (False, [5] * 4 + [3])])
def test_drop_last(drop_last, sizes):
    batches = list(data.batches(numbered(), 5, seed=0, epoch=0, drop_last=drop_last))
    assert [len(batch) for batch in batches] == sizes
    assert data.batch_count(23, 5, drop_last=drop_last) == len(sizes)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("flip", [True, False])
def test_an_epoch_resumed_at_any_batch_goes_on_with_the_same_images(flip, drop_last):
    arguments = {"seed": 11, "epoch": 3, "drop_last": drop_last}
    whole = list(data.batches(numbered(flip=flip), 4, **arguments))
    for start in range(len(whole) + 1):
        rest = list(data.batches(numbered(flip=flip), 4, start=start, **arguments))
        assert len(rest) == len(whole) - start
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_flips_are_half_of_the_images_and_belong_to_the_image():
    numbers, flips = numbers_and_flips(data.batches(numbered(250, flip=True), 10, seed=1, epoch=0))
    assert sorted(numbers) == list(range(250))
    assert 90 <= sum(flips) <= 160  # 125 within four and a half standard deviations
    # Another batch size: the same flip for the same image.
    assert (numbers, flips) == numbers_and_flips(data.batches(numbered(250, flip=True), 25, seed=1, epoch=0))


@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (2, 0)], ids=["epoch", "seed"])
def test_flips_change_with_seed_and_epoch(seed, epoch):
    first, second = (
        dict(zip(*numbers_and_flips(data.batches(numbered(250, flip=True), 10, seed=s, epoch=e)), strict=True))
        for s, e in [(1, 0), (seed, epoch)]
    )
    assert 70 <= sum(first[number] != second[number] for number in first) <= 180


def test_no_flips_unless_the_set_asks_for_them():
    assert not any(numbers_and_flips(data.batches(numbered(250), 10, seed=1, epoch=0))[1])


def test_ordered_batches_keep_order_and_the_last_images_and_do_not_flip():
    image_set = numbered(channels=3, flip=True)
    batches = list(data.ordered_batches(image_set, 5))
    assert [len(batch) for batch in batches] == [5, 5, 5, 5, 3]
    assert torch.equal(torch.cat(batches), data.normalize(image_set.pixels))
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch in batches)


def test_batches_go_to_the_device_asked_for():
    on_meta = next(data.ordered_batches(numbered(flip=True), 5, device="meta"))
    assert on_meta.device.type == "meta"
    assert on_meta.shape == (5, 1, 4, 4)
    assert next(data.batches(numbered(flip=True), 5, seed=0, epoch=0, device="meta")).device.type == "meta"


def test_an_image_set_moves_as_a_whole():
    moved = numbered(flip=True).to("meta")
    assert (moved.name, moved.flip, moved.pixels.device.type) == ("numbered", True, "meta")


def test_a_set_that_does_not_fit_stays_where_it_is(monkeypatch):
    """Of a GPU, half of whose free memory it may take."""
    image_set = numbered()
    for free, kind in ((2 * image_set.pixels.nbytes, "meta"), (2 * image_set.pixels.nbytes - 1, "cpu")):
        monkeypatch.setattr(images, "free_bytes", lambda device, free=free: free)
        assert image_set.to("meta").pixels.device.type == kind


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"batch_size": 0}, "batch_size: got 0, need at least 1"),
        ({"batch_size": 24}, "batch_size: got 24, need at most 23"),
        ({"start": -1}, "start: got -1, need 0 to 4"),
        ({"start": 5}, "start: got 5, need 0 to 4"),
    ],
    ids=["no-batch", "batch-beyond-set", "before-start", "beyond-end"],
)
def test_bad_batch_arguments_are_refused_at_the_call(changes, match):
    fails(match, data.batches, numbered(), **{"batch_size": 5, "seed": 0, "epoch": 0, **changes})


def test_ordered_batches_refuse_an_empty_batch():
    fails("batch_size: got 0", data.ordered_batches, numbered(), 0)


def test_one_file_reads_the_data_dir_variable():
    readers = [
        path.name
        for path in Path(data.__file__).parents[1].rglob("*.py")
        if re.search(r"environ\b.*ESVAE_DATA_DIR|getenv\(.ESVAE_DATA_DIR", path.read_text())
    ]
    assert readers == ["places.py"]
