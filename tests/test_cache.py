"""The cache of decoded images: whole or not there, of these very files, built once whoever asks and whenever killed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from esvae import data
from esvae.data import cache, folder
from esvae.errors import InputError

COUNT, SIDE = 40, 8


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """COUNT grey images in `train`, of which image i has the value i everywhere; one in `test`."""
    root = tmp_path / "my pictures"
    for split, count in (("train", COUNT), ("test", 1)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            write(root / split / f"{i:03}.png", i)
    return root


def write(path: Path, value: int) -> None:
    Image.fromarray(np.full((SIDE, SIDE), value, np.uint8)).save(path)


def load(root: Path, split: str = "train", size: int = SIDE) -> torch.Tensor:
    return data.load(f"folder:{root}", split, size=size).pixels


def values(pixels: torch.Tensor) -> list[int]:
    assert (pixels.amin((1, 2, 3)) == pixels.amax((1, 2, 3))).all()
    return pixels[:, 0, 0, 0].tolist()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The image files that are decoded from here on."""
    files: list[Path] = []
    decode = folder._decode

    def record(file: Path, *options: object) -> np.ndarray:
        files.append(file)
        return decode(file, *options)

    monkeypatch.setattr(folder, "_decode", record)
    return files


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(cache, "BLOCK_BYTES", 4 * SIDE * SIDE)
    return 4


def only_file(place: Path) -> Path:
    (found,) = place.glob("*.pixels")
    return found


def visible(place: Path) -> list[str]:
    return [path.name for path in place.iterdir() if not path.name.startswith(".")]


# --- what is cached -----------------------------------------------------------------------------------------------


def test_built_once_and_mapped(place: Path, pictures: Path, decoded: list[Path], small_blocks: int) -> None:
    assert values(load(pictures)) == list(range(COUNT))
    assert len(decoded) == COUNT
    assert values(load(pictures)) == list(range(COUNT))
    assert len(decoded) == COUNT
    (name,) = visible(place)
    assert name.startswith("my_pictures-")
    assert name.endswith("-train-8.pixels")
    header, pixels = cache.read(place / name)
    assert header[:4] == (1, SIDE, COUNT, COUNT)
    assert (pixels.flags.writeable, pixels.flags.owndata) == (False, False)
    assert not list(place.glob("*partial*")) + list(place.glob(".*partial*"))


def test_splits_and_sizes_have_files_of_their_own(place: Path, pictures: Path, decoded: list[Path]) -> None:
    for _ in range(2):
        assert [load(pictures, *which).shape for which in (("train", 8), ("test", 8), ("train", 4))] == [
            (COUNT, 1, 8, 8),
            (1, 1, 8, 8),
            (COUNT, 1, 4, 4),
        ]
    assert len(decoded) == 2 * COUNT + 1
    assert len(visible(place)) == 3


def test_a_relative_path_finds_the_same_file(
    place: Path, pictures: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(pictures)
    monkeypatch.chdir(pictures.parent)
    load(Path(pictures.name))
    monkeypatch.chdir(pictures)
    load(Path("."))
    assert len(decoded) == COUNT


@pytest.mark.parametrize("change", ["content", "time", "more", "fewer", "renamed", "swapped"])
def test_a_stale_file_is_built_again(place: Path, pictures: Path, decoded: list[Path], change: str) -> None:
    load(pictures)
    decoded.clear()
    image = pictures / "train" / "005.png"
    before = image.stat()
    expected = list(range(COUNT))
    if change == "content":
        image.write_bytes((pictures / "train" / "039.png").read_bytes() + b"more")
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
        expected[5] = 39
    elif change == "time":
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    elif change == "more":
        write(pictures / "train" / "999.png", 99)
        expected.append(99)
    elif change == "fewer":
        image.unlink()
        expected.remove(5)
    elif change == "renamed":
        image.rename(image.with_name("zzz.png"))
        expected.append(expected.pop(5))
    elif change == "swapped":
        last = image.with_name("039.png")
        image.rename(image.with_name("t.png"))
        last.rename(image)
        image.with_name("t.png").rename(last)
        expected[5], expected[39] = 39, 5
    assert values(load(pictures)) == expected
    assert len(decoded) == len(expected)
    assert len(visible(place)) == 1


def test_pixels_in_use_survive_a_new_file(place: Path, pictures: Path) -> None:
    pixels = load(pictures)
    write(pictures / "train" / "000.png", 200)
    assert values(load(pictures))[0] == 200
    assert values(pixels)[0] == 0


def test_both_splits_are_in_colour_whichever_changed(place: Path, pictures: Path) -> None:
    load(pictures)
    Image.new("RGB", (SIDE, SIDE)).save(pictures / "test" / "000.png")
    assert load(pictures, "test").shape[1] == 3
    assert load(pictures).shape[1] == 3


def test_more_than_the_memory(place: Path, pictures: Path) -> None:
    """A file with holes, larger than the memory: mapped, and of it only what a batch asks for is read."""
    load(pictures)
    path = only_file(place)
    header, _ = cache.read(path)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = 2 * memory // header.image_bytes
    with path.open("r+b") as file:
        file.write(cache._page(header._replace(count=count, done=count)))
        try:
            file.truncate(cache.HEADER_BYTES + count * header.image_bytes)
        except OSError as error:
            pytest.skip(f"no files of {2 * memory} bytes here: {error}")
        file.seek(-header.image_bytes, os.SEEK_END)
        file.write(bytes([77]) * header.image_bytes)
    _, pixels = cache.read(path)
    images = data.ImageSet("large", torch.from_numpy(pixels), flip=False)
    assert len(images) == count
    assert values(images.pixels[[0, 3, count // 2, count - 1]]) == [0, 3, 0, 77]
    path.unlink()


# --- what is not taken for a cache --------------------------------------------------------------------------------


def damaged(good: bytes, how: str) -> bytes:
    header = cache._parse(good[: cache.HEADER_BYTES], Path("x"))
    pages = {
        "unfinished": header._replace(done=COUNT - 1),
        "of-more": header._replace(count=COUNT + 1, done=COUNT + 1),
        "of-another-form": header._replace(channels=2),
        "of-none": header._replace(count=0, done=0),
    }
    if how in pages:
        return cache._page(pages[how]) + good[cache.HEADER_BYTES :]
    return {
        "empty": b"",
        "cut": good[:-1],
        "header-alone": good[: cache.HEADER_BYTES],
        "longer": good + b"\0",
        "flipped": good[:40] + bytes([good[40] ^ 1]) + good[41:],
        "digest": good[: cache.FIELDS.size] + bytes(32) + good[cache.FIELDS.size + 32 :],
        "foreign": b"P5 8 8 255\n" + good,
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        *("empty", "cut", "header-alone", "longer", "flipped", "digest", "foreign"),
        *("unfinished", "of-more", "of-another-form", "of-none"),
    ],
)
def test_a_damaged_file_is_refused_and_built_again(place: Path, pictures: Path, how: str) -> None:
    load(pictures)
    path = only_file(place)
    path.write_bytes(damaged(path.read_bytes(), how))
    with pytest.raises(InputError, match=f"{path.name}: "):
        cache.read(path)
    assert values(load(pictures)) == list(range(COUNT))


def test_another_version_is_built_again(
    place: Path, pictures: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load(pictures)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    with pytest.raises(InputError, match="version 1"):
        cache.read(only_file(place))
    load(pictures)
    assert len(decoded) == 2 * COUNT


# --- interruptions ------------------------------------------------------------------------------------------------


def interrupted(monkeypatch: pytest.MonkeyPatch, root: Path, after: int) -> None:
    """A build that ends when it asks for an image beyond the first `after`."""
    with monkeypatch.context() as patch:
        decode, left = folder._decode, iter(range(after))

        def stop(*arguments: object) -> np.ndarray:
            if next(left, None) is None:
                raise KeyboardInterrupt
            return decode(*arguments)

        patch.setattr(folder, "_decode", stop)
        with pytest.raises(KeyboardInterrupt):
            load(root)


@pytest.mark.parametrize("after", [0, 1, 4, 7, 39])
def test_an_interrupted_build_goes_on(
    place: Path, pictures: Path, decoded: list[Path], small_blocks: int, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    interrupted(monkeypatch, pictures, after)
    assert visible(place) == []
    decoded.clear()
    assert values(load(pictures)) == list(range(COUNT))
    assert len(decoded) == COUNT - after // small_blocks * small_blocks


def test_an_interrupted_build_of_other_files_begins_anew(
    place: Path, pictures: Path, decoded: list[Path], small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, pictures, 20)
    write(pictures / "train" / "002.png", 222)
    decoded.clear()
    assert values(load(pictures))[:4] == [0, 1, 222, 3]
    assert len(decoded) == COUNT


@pytest.mark.parametrize("length", [0, 100, cache.HEADER_BYTES, cache.HEADER_BYTES + 3 * SIDE * SIDE])
def test_a_cut_part_begins_anew(
    place: Path, pictures: Path, small_blocks: int, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    interrupted(monkeypatch, pictures, 20)
    (part,) = place.glob(".*.partial")
    os.truncate(part, length)
    assert values(load(pictures)) == list(range(COUNT))


def test_images_are_on_disk_before_the_header_counts_them(
    place: Path, pictures: Path, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves: at each sync, no more is counted than the sync before had written."""
    sync, counted, written = os.fsync, [], [0]

    def check(descriptor: int) -> None:
        sync(descriptor)
        parts = list(place.glob(".*.partial"))
        if parts:
            page = parts[0].read_bytes()
            done = cache._parse(page[: cache.HEADER_BYTES], parts[0]).done if any(page[: cache.HEADER_BYTES]) else 0
            counted.append(done)
            assert done <= written[-1]
            written.append((len(page) - cache.HEADER_BYTES) // SIDE**2)

    monkeypatch.setattr(os, "fsync", check)
    load(pictures)
    assert counted == sorted([*range(0, COUNT, small_blocks), *range(small_blocks, COUNT + 1, small_blocks)])


BUILD = """
import sys
import time
from pathlib import Path
from esvae import data
from esvae.data import cache, folder

cache.BLOCK_BYTES = 4 * 64
decode = folder._decode

def slow(*arguments):
    with open(sys.argv[2], "a") as file:
        file.write(".")
    time.sleep(0.005)  # a second in all, so that there is time to kill the process
    return decode(*arguments)

folder._decode = slow
print(data.load(f"folder:{sys.argv[1]}", "train", size=8).pixels[:, 0, 0, 0].tolist())
"""


def start(root: Path, log: Path) -> subprocess.Popen:
    command = [sys.executable, "-c", BUILD, str(root), str(log)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_ranks_share_one_build_and_outlive_a_killed_one(place: Path, pictures: Path, tmp_path: Path) -> None:
    """The builder is killed while it holds the lock: another goes on with its part, the third decodes nothing."""
    log = tmp_path / "log"
    for i in range(COUNT, 200):
        write(pictures / "train" / f"{i:03}.png", i)
    processes = [start(pictures, log) for _ in range(3)]
    builder = None
    while builder is None:  # whoever has the file open
        time.sleep(0.005)
        builder = next((p for p in processes if any(".partial" in path for path in open_files(p.pid))), None)
        assert all(p.poll() is None for p in processes), [p.communicate() for p in processes]
    time.sleep(0.05)
    builder.kill()
    builder.communicate()
    assert builder.returncode == -signal.SIGKILL
    for process in processes:
        if process is not builder:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert out.strip() == str(list(range(200)))
    assert log.stat().st_size <= 200 + 4  # of the block that was not finished, the images are decoded again
    assert len(visible(place)) == 1


def open_files(pid: int) -> list[str]:
    found = []
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            found.append(os.readlink(entry.path))
    except FileNotFoundError:
        pass
    return found


# --- disks that refuse --------------------------------------------------------------------------------------------


def test_no_room_is_said_before_any_image_is_decoded(
    place: Path, pictures: Path, decoded: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(InputError, match=r"0 MiB are free.*set ESVAE_CACHE_DIR"):
        load(pictures)
    assert decoded == []


def test_a_full_disk_is_one_line_and_the_old_file_stays(
    place: Path, pictures: Path, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(pictures)
    before = only_file(place).read_bytes()
    os.utime(pictures / "train" / "000.png")

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(InputError, match="pixels: cannot be written: No space left on device; set ESVAE_CACHE_DIR"):
            load(pictures)
    assert only_file(place).read_bytes() == before
    assert values(load(pictures)) == list(range(COUNT))


def test_no_folder_for_the_cache_is_one_line(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="cannot be written: Not a directory; set ESVAE_CACHE_DIR"):
        load(pictures)


def test_one_file_reads_the_cache_variable() -> None:
    readers = [
        p.name for p in Path(data.__file__).parents[1].rglob("*.py") if 'environ.get("ESVAE_CACHE' in p.read_text()
    ]
    assert readers == ["places.py"]
