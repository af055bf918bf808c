"""Checkpoints: bit-exact round trips, nothing half-written, nothing damaged or foreign read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from training_helpers import mount

from esvae import checkpoint
from esvae.errors import InputError

PARTS = {
    "model": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7), "empty": torch.empty(0, 3)},
    "ema": {"w": torch.tensor([[1.5, -0.0, float("nan")]], dtype=torch.bfloat16), "mask": torch.tensor([True, False])},
}
STATE = {"epoch": 3, "lr": 0.1 + 0.2, "best": float("inf"), "nested": {"list": [1, None, "é"]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved = tmp_path / "step-00000001"
    checkpoint.save(saved, PARTS, STATE)
    return saved


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert (left[name].dtype, left[name].shape) == (right[name].dtype, right[name].shape), name
        assert bits(left[name]) == bits(right[name]), name


def fails(match: str, call, *args) -> str:
    with pytest.raises(InputError, match=match) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reseal(folder: Path, change) -> None:
    """Change state.json and make its digest right again, as a forger would."""
    content = json.loads((folder / "state.json").read_text())
    change(content)
    rest = {key: value for key, value in content.items() if key != "sha256"}
    content["sha256"] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    (folder / "state.json").write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------------- round trips


def test_round_trip_is_bit_exact(folder: Path) -> None:
    parts, state = checkpoint.load(folder)
    assert parts.keys() == PARTS.keys()
    for part, tensors in PARTS.items():
        assert_same(parts[part], tensors)
    assert state == STATE
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000001"]
    assert sorted(path.name for path in folder.iterdir()) == ["ema.safetensors", "model.safetensors", "state.json"]


def test_shared_and_strided_tensors(tmp_path: Path) -> None:
    base = torch.randn(4, 3, 8, 8)
    tensors = {
        "base": base,
        "same": base,
        "slice": base[1:, ::2],
        "transposed": base.transpose(0, 3),
        "channels_last": base.to(memory_format=torch.channels_last),
        "expanded": torch.ones(1).expand(5),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    checkpoint.save(tmp_path / "c", {"model": tensors}, {})
    assert_same(checkpoint.load(tmp_path / "c")[0]["model"], tensors)


def test_loaded_tensors_do_not_depend_on_the_file(folder: Path) -> None:
    tensors = checkpoint.load_safetensors(folder / "model.safetensors")
    os.truncate(folder / "model.safetensors", 0)  # a tensor that is still mapped would kill the process here
    assert_same(tensors, PARTS["model"])


# ------------------------------------------------------------------------------------------------- failures to write


def test_existing_checkpoint_is_never_overwritten(folder: Path) -> None:
    fails("step-00000001: exists already", checkpoint.save, folder, {}, {})
    assert checkpoint.load(folder)[1] == STATE


def full_disk(*_args, **_kwargs) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["first file", "last file", "sync of a file", "rename"])
def test_full_disk_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    write = checkpoint.write_synced

    def write_but(path: Path, content: bytes) -> None:
        write(path, content[:10])
        if (path.name == "state.json") == (moment == "last file"):
            full_disk()

    if moment in ("first file", "last file"):
        monkeypatch.setattr(checkpoint, "write_synced", write_but)
    else:
        monkeypatch.setattr(checkpoint.os, "fsync" if moment == "sync of a file" else "replace", full_disk)
    fails("step-00000002: .*No space left on device", checkpoint.save, folder.parent / "step-00000002", PARTS, STATE)
    monkeypatch.undo()
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000001"]
    assert checkpoint.load(folder)[1] == STATE


def test_everything_is_on_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    replace = os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: events.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    checkpoint.save(tmp_path / "c", PARTS, STATE)
    assert events == ["file", "file", "file", "folder", "rename", "folder"]


def test_interrupt_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(folder.parent / "step-00000002", PARTS, STATE)
    assert [path.name for path in folder.parent.iterdir()] == ["step-00000001"]


def test_file_size_limit_of_the_system(tmp_path: Path) -> None:
    """A write that the operating system really refuses half-way, as a full disk or a quota does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        fails("c: cannot write", checkpoint.save, tmp_path / "c", {"model": {"w": torch.zeros(1 << 16)}}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_really_full_disk(disk: Path) -> None:
    mount(disk, "size=1m")
    checkpoint.save(disk / "one", PARTS, STATE)
    big = {"model": {"w": torch.zeros(1 << 18)}}
    fails("two: cannot write the checkpoint: No space left on device", checkpoint.save, disk / "two", big, {})
    assert [path.name for path in disk.iterdir()] == ["one"]
    assert checkpoint.load(disk / "one")[1] == STATE


def test_missing_parent(tmp_path: Path) -> None:
    fails("No such file or directory", checkpoint.save, tmp_path / "no" / "c", PARTS, STATE)


def test_leftovers_of_dead_processes_go_with_the_next_save(folder: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = folder.parent / f".step-00000009.partial-{process.pid}"
    alive = folder.parent / f".step-00000009.partial-{os.getppid()}"
    other = folder.parent / ".hidden"
    for path in (dead, alive, other):
        path.mkdir()
        (path / "model.safetensors").write_bytes(b"half")
    checkpoint.save(folder.parent / "step-00000002", PARTS, STATE)
    assert [path.exists() for path in (dead, alive, other)] == [False, True, True]


@pytest.mark.parametrize("part", ["../model", "a/b", "a.b", ""])
def test_part_names_stay_in_the_folder(tmp_path: Path, part: str) -> None:
    fails("letters, digits", checkpoint.save, tmp_path / "c", {part: {}}, {})


def test_state_must_be_json(tmp_path: Path) -> None:
    fails("cannot be written as JSON", checkpoint.save, tmp_path / "c", {}, {"x": torch.ones(1)})
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- failures to read


def test_every_flipped_bit_is_found(folder: Path) -> None:
    for name in ("model.safetensors", "state.json"):
        good = (folder / name).read_bytes()
        for position in range(0, len(good), 7):
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            (folder / name).write_bytes(bad)
            if name == "state.json" and _same_json(good, bytes(bad)):
                continue  # white space
            fails(name, checkpoint.load, folder)
        (folder / name).write_bytes(good)
    assert checkpoint.load(folder)[1] == STATE


def _same_json(good: bytes, bad: bytes) -> bool:
    try:
        return json.loads(good) == json.loads(bad)
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
@pytest.mark.parametrize("size", [0, 4, 9, 100, -1], ids=lambda size: f"cut-to-{size}")
def test_truncated_file(folder: Path, name: str, size: int) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:size] if size >= 0 else path.read_bytes()[:-3])
    fails(f"{name}: .* expected", checkpoint.load, folder)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    fails(f"{name}: no such file", checkpoint.load, folder)


def test_missing_folder(tmp_path: Path) -> None:
    fails("no such folder; a checkpoint is a folder", checkpoint.load, tmp_path / "no")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def write_torch_file(path: Path) -> None:
    torch.save({"w": torch.ones(2)}, path)


def write_text(path: Path) -> None:
    path.write_text("<!DOCTYPE html><html>not found</html>")


def write_long_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}" + b" " * 100)


def write_huge_shape(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


def write_impossible_shape(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [0, (1 << 64) - 1], "data_offsets": [0, 0]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (write_pickle, "is a pickle; a safetensors file is expected"),
        (write_torch_file, "is a pickle; a safetensors file is expected"),
        (write_text, "something else.*; a safetensors file is expected"),
        (write_long_header, "damaged; a safetensors file is expected"),
        (write_huge_shape, "truncated or damaged; a safetensors file is expected"),
        (write_impossible_shape, "truncated or damaged; a safetensors file is expected"),
        (Path.touch, "is empty; a safetensors file is expected"),
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
    ],
)
def test_foreign_file(folder: Path, write, what: str) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    write(path)
    fails(f"model.safetensors: .*{what}", checkpoint.load_safetensors, path)
    fails(f"model.safetensors: .*{what}", checkpoint.load, folder)


@pytest.mark.parametrize("length", [0x4B50, 0x280], ids=["PK", "0x80"])
def test_header_length_that_looks_like_a_pickle(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", length) + header.ljust(length) + struct.pack("<f", 2.5))
    assert checkpoint.load_safetensors(path)["w"].tolist() == [2.5]
    os.truncate(path, 12)
    fails("is truncated or damaged", checkpoint.load_safetensors, path)


def test_part_of_another_checkpoint(folder: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in PARTS["ema"].items()}, folder / "model.safetensors")
    fails("model.safetensors: .*as it was saved", checkpoint.load, folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c.update(version=2), "format version 2; this program reads version 1"),
        (lambda c: c.update(format="other"), "format 'other'"),
        (lambda c: c.pop("parts"), "no parts and state"),
        (lambda c: c.update(state=[]), "no parts and state"),
        (lambda c: c["parts"].update({"../../x": {}}), "letters, digits"),
        (lambda c: c["parts"]["model"]["tensors"].pop("w"), "names, shapes or dtypes"),
        (lambda c: c["parts"]["model"].update(sha256=None), "SHA-256"),
    ],
)
def test_forged_state(folder: Path, change, what: str) -> None:
    reseal(folder, change)
    fails(what, checkpoint.load, folder)


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "\0", "{", '{"a": NaN}'])
def test_state_that_is_something_else(folder: Path, text: str) -> None:
    (folder / "state.json").write_text(text)
    fails("state.json: .*expected", checkpoint.load, folder)


def test_state_beyond_its_size_limit(folder: Path) -> None:
    os.truncate(folder / "state.json", checkpoint.MAX_STATE_BYTES + 1)  # sparse: takes no room
    fails("larger than 64 MiB", checkpoint.load, folder)


# ----------------------------------------------------------------------------------------- optimizers and generators


def build(lr: float | torch.Tensor = 1e-2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3 * 4 * 4, 2)).to(
        memory_format=torch.channels_last
    )
    groups = [{"params": model[0].parameters(), "lr": lr}, {"params": model[2].parameters(), "betas": (0.8, 0.99)}]
    return model, torch.optim.AdamW(groups, lr=3e-3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, noise: torch.Generator, steps: int) -> None:
    schedule = torch.optim.lr_scheduler.ExponentialLR  # changes the hyper-parameters, as a run does
    scheduler = schedule(optimizer, 0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 2, 6, 6, generator=noise)).square().mean().backward()
        optimizer.step()
        scheduler.step()


def optimizer_part(optimizer: torch.optim.Optimizer) -> tuple[dict, dict]:
    tensors, state = checkpoint.optimizer_tensors(optimizer)
    return {name: tensor.clone() for name, tensor in tensors.items()}, state


def test_five_and_five_steps_equal_ten(tmp_path: Path) -> None:
    model, optimizer = build()
    noise = torch.Generator().manual_seed(1)
    train(model, optimizer, noise, 5)
    tensors, state = checkpoint.optimizer_tensors(optimizer)
    parts = {"model": model.state_dict(), "optimizer": tensors, "noise": {"state": noise.get_state()}}
    checkpoint.save(tmp_path / "c", parts, {"optimizer": state})
    train(model, optimizer, noise, 5)

    parts, saved = checkpoint.load(tmp_path / "c")
    resumed, other = build(lr=0.5)
    resumed.load_state_dict(parts["model"])
    checkpoint.restore_optimizer(other, parts["optimizer"], saved["optimizer"])
    restored = torch.Generator().set_state(parts["noise"]["state"])
    train(resumed, other, restored, 5)

    assert_same(resumed.state_dict(), model.state_dict())
    assert_same(checkpoint.optimizer_tensors(other)[0], checkpoint.optimizer_tensors(optimizer)[0])
    assert checkpoint.optimizer_tensors(other)[1] == checkpoint.optimizer_tensors(optimizer)[1]
    assert torch.equal(restored.get_state(), noise.get_state())


def test_restored_optimizer_has_types_and_layouts_of_its_own(tmp_path: Path) -> None:
    model, optimizer = build()
    train(model, optimizer, torch.Generator().manual_seed(1), 2)
    tensors, state = checkpoint.optimizer_tensors(optimizer)
    checkpoint.save(tmp_path / "c", {"optimizer": tensors}, state)
    parts, state = checkpoint.load(tmp_path / "c")
    model, other = build()
    checkpoint.restore_optimizer(other, parts["optimizer"], state)
    assert other.param_groups[1]["betas"] == (0.8, 0.99)
    assert isinstance(other.param_groups[1]["betas"], tuple)
    moment = other.state[model[0].weight]["exp_avg"]
    assert moment.stride() == model[0].weight.stride() != torch.empty(moment.shape).stride()
    assert sorted(parts["optimizer"])[:3] == ["0.exp_avg", "0.exp_avg_sq", "0.step"]


def test_learning_rate_in_a_tensor() -> None:
    _, optimizer = build(lr=torch.tensor(0.25))
    tensors, state = optimizer_part(optimizer)
    assert tensors["group.0.lr"] == 0.25
    json.dumps(state)
    _, other = build(lr=torch.tensor(1.0))
    checkpoint.restore_optimizer(other, tensors, state)
    assert isinstance(other.param_groups[0]["lr"], torch.Tensor)
    assert other.param_groups[0]["lr"] == 0.25
    _, plain = build(lr=1.0)
    checkpoint.restore_optimizer(plain, tensors, state)
    assert plain.param_groups[0]["lr"] == 0.25
    assert isinstance(plain.param_groups[0]["lr"], float)


def test_execution_options_stay_those_of_the_optimizer() -> None:
    weight = nn.Parameter(torch.ones(2))
    saved = optimizer_part(torch.optim.AdamW([weight], lr=0.5, foreach=True))
    other = torch.optim.AdamW([weight], lr=1.0, foreach=False)
    checkpoint.restore_optimizer(other, *saved)
    assert (other.param_groups[0]["lr"], other.param_groups[0]["foreach"]) == (0.5, False)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.optim.AdamW(nn.Linear(3, 2).parameters()), "saved for 1 parameters, the model has 2"),
        (
            lambda: torch.optim.AdamW([nn.Parameter(torch.ones(4))]),
            r"parameter 0 was saved with shape \[3\].* has \[4\]",
        ),
        (lambda: torch.optim.SGD([nn.Parameter(torch.ones(3))]), "saved from AdamW, to be put into SGD"),
    ],
    ids=["count", "shape", "class"],
)
def test_optimizer_of_another_model(make, what: str) -> None:
    saved = optimizer_part(torch.optim.AdamW([nn.Parameter(torch.ones(3))]))
    fails(what, checkpoint.restore_optimizer, make(), *saved)


def test_optimizer_with_other_groups() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    saved = optimizer_part(torch.optim.AdamW([a, b]))
    other = torch.optim.AdamW([{"params": [a]}, {"params": [b]}])
    fails("1 groups of other parameters", checkpoint.restore_optimizer, other, *saved)


@pytest.mark.parametrize("name", ["1.exp_avg", "x.exp_avg", "0", "-1.step"])
def test_optimizer_tensor_of_no_parameter(name: str) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    _, state = optimizer_part(optimizer)
    fails("belongs to none", checkpoint.restore_optimizer, optimizer, {name: torch.ones(3)}, state)


def test_optimizer_tensor_of_another_shape() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    _, state = optimizer_part(optimizer)
    tensors = {"0.exp_avg": torch.ones(1)}  # would be broadcast
    fails(r"0.exp_avg has shape \[1\], not \[3\]", checkpoint.restore_optimizer, optimizer, tensors, state)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", "fast"), ("lr", True), ("betas", 3), ("betas", [0.9]), ("betas", [0.9, "x"]), ("amsgrad", [[]])],
)
def test_hyper_parameter_of_another_type(name: str, value: object) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(3))])
    tensors, state = optimizer_part(optimizer)
    state["groups"][0][name] = value
    fails(f"optimizer state: {name} is ", checkpoint.restore_optimizer, optimizer, tensors, state)
