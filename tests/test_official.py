"""State dicts of the published code: the same rates and images, from whatever wrapping, and nothing else taken."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from literal import DECAY, THRESHOLD, LiteralESVAE
from model_helpers import in_double, layers, literal_network, noise, random_images
from safetensors.torch import save_file
from torch import Tensor

import esvae
from esvae import ESVAE, load_official_state_dict, untrusted
from esvae.config import preset
from esvae.errors import InputError

D, T, N, SEED = 8, 4, 3, 11
CASES = [pytest.param(1, 32, id="grey-32"), pytest.param(3, 32, id="color-32"), pytest.param(3, 64, id="color-64")]


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    return literal_network(1, 32, D, T).state_dict()


@pytest.fixture
def state(published: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(published)


def same_weights(a: ESVAE, b: ESVAE) -> bool:
    states = (a.state_dict(), b.state_dict())
    return states[0].keys() == states[1].keys() and all(torch.equal(states[0][k], states[1][k]) for k in states[0])


# The same network


@pytest.mark.parametrize(("channels", "size"), CASES)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_rates_and_images_are_the_published_ones(channels: int, size: int, training: bool) -> None:
    literal = literal_network(channels, size, D, T)
    ours = load_official_state_dict(literal.state_dict()).double().train(training)
    in_double(literal).train(training)
    images = random_images(N, channels, size)
    u, z_n = noise(N, D, T, SEED)
    with torch.no_grad():
        expected, r_p, r_q, _ = literal(images, u, z_n)
        found = ours(images, seed=SEED)
    assert torch.equal(found.rates, r_p)
    assert 0.05 < r_p.mean() < 0.95
    torch.testing.assert_close(found.prior_rates, r_q, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.images, expected, rtol=1e-9, atol=1e-9)
    assert expected.std() > 0.05
    for name, a, b in layers(literal, ours):  # unchanged in evaluation mode, moved alike in training
        torch.testing.assert_close(b.neurons.running_mean, a.bn.running_mean - a.bias, rtol=1e-9, atol=1e-9, msg=name)
        torch.testing.assert_close(b.neurons.running_var, a.bn.running_var, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_in_fp32_spikes_differ_only_at_the_threshold(training: bool) -> None:
    literal = literal_network(3, 32, D, T).train(training)
    ours = load_official_state_dict(literal.state_dict()).train(training)
    seen: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for name, theirs, _ in layers(literal, ours):
        theirs.bn.register_forward_hook(lambda _, __, x, name=name: seen.update({name: (x,)}))
        theirs.register_forward_hook(lambda _, i, o, name=name: seen.update({name: (*seen[name], i[0], o)}))
    u, z_n = noise(N, D, T, SEED)
    with torch.no_grad():
        literal(random_images(N, 3, 32).float(), u.float(), z_n.float())
        for name, _, layer in layers(literal, ours):
            x, spikes, expected = (tensor.movedim(-1, 0) for tensor in seen[name])  # time first
            found = layer(spikes)
            sure = distance_to_threshold(x) > 1e-5
            assert torch.equal(found[:, sure], expected[:, sure]), name
            assert sure.double().mean() > 0.99, name
            assert 0.02 < expected.mean() < 0.98, name


def distance_to_threshold(x: Tensor) -> Tensor:
    """x (T, *) -> how near each neuron's potential comes to the threshold at any time step."""
    v, nearest = torch.zeros_like(x[0]), torch.full_like(x[0], torch.inf)
    for current in x:
        m = DECAY * v + current
        nearest = torch.minimum(nearest, (m - THRESHOLD).abs())
        v = torch.where(m > THRESHOLD, 0, m)
    return nearest


@pytest.mark.parametrize(("channels", "size"), CASES)
def test_the_config_is_that_of_the_preset(channels: int, size: int) -> None:
    model = load_official_state_dict(LiteralESVAE(channels, size, latent=20, steps=7).state_dict())
    assert not model.training
    assert model.steps == 7
    assert next(model.parameters()).dtype == torch.float32
    found, expected = vars(model.config), vars(preset("official", "cifar10").model)
    own = {"channels": channels, "size": size, "latent": 20, "steps": 7}
    assert found == expected | own


def test_the_model_owns_its_weights(state: dict[str, Tensor]) -> None:
    model = load_official_state_dict(state)
    before = model.to_image.bias.detach().clone()
    state["final_layer.1.bias"].add_(1)
    assert torch.equal(model.to_image.bias, before)
    state["final_layer.1.bias"].sub_(1)


# Wrappings and files


def wrapped(state: dict[str, Tensor], how: str) -> dict[str, object]:
    prefixed = {f"module.{key}": value for key, value in state.items()}
    return {
        "net": {"net": state, "epoch": 299},
        "module": prefixed,
        "net-module": {"epoch": 1, "net": prefixed},
        "fp64": {key: value.double() if value.is_floating_point() else value for key, value in state.items()},
        "parameters": {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in state.items()},
        "untracked": {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")},
    }[how]


@pytest.mark.parametrize("how", ["net", "module", "net-module", "fp64", "parameters", "untracked"])
def test_wrappings(state: dict[str, Tensor], how: str, tmp_path: Path) -> None:
    expected = load_official_state_dict(state)
    content = wrapped(state, how)
    assert same_weights(load_official_state_dict(content), expected)
    torch.save(content, tmp_path / "a.pth")
    assert same_weights(load_official_state_dict(tmp_path / "a.pth"), expected)
    assert same_weights(esvae.load_official_state_dict(str(tmp_path / "a.pth")), expected)


def test_dead_weights_are_ignored(tmp_path: Path) -> None:
    state = literal_network(1, 32, D, T, dead=True).state_dict()
    assert any(key.startswith("posterior.") for key in state)
    alive = {key: value for key, value in state.items() if not key.startswith(("prior.", "posterior."))}
    state["prior.layers.0.weight"] = torch.full((1,), torch.nan)  # not even looked at
    torch.save(state, tmp_path / "a.pth")
    for source in (state, tmp_path / "a.pth"):
        assert same_weights(load_official_state_dict(source), load_official_state_dict(alive))


def test_safetensors(state: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "a.safetensors")
    assert same_weights(load_official_state_dict(tmp_path / "a.safetensors"), load_official_state_dict(state))


# What is refused

CHANGES = {
    "missing": ("before_latent_layer.bias", None),
    "missing-bottleneck": ("sample_layer.0.weight", None),
    "missing-coef": ("membrane_output_layer.coef", None),
    "missing-latent": ("before_latent_layer.weight", None),
    "missing-statistics": ("decoder.1.bn.running_var", None),
    "unknown": ("encoder.0.gain", torch.ones(1)),
    "unknown-stage": ("decoder.3.weight", torch.ones(1)),
    "six-stages": ("encoder.5.weight", torch.ones(512, 512, 3, 3, 1)),
    "three-stages": ("encoder.3.weight", None),
    "two-channels": ("encoder.0.weight", torch.ones(32, 2, 3, 3, 1)),
    "images-differ": ("final_layer.1.weight", torch.ones(32, 3, 3, 3, 1)),
    "2d-convolution": ("encoder.1.weight", torch.ones(64, 32, 3, 3)),
    "2d-first-convolution": ("encoder.0.weight", torch.ones(32, 1, 3, 3)),
    "wide-kernel": ("decoder.0.weight", torch.ones(256, 128, 4, 4, 1)),
    "latents-differ": ("decoder_input.weight", torch.ones(1024, D + 1)),
    "flat-latent": ("before_latent_layer.weight", torch.ones(D)),
    "empty-latent": ("before_latent_layer.weight", torch.ones(0, 1024)),
    "scalar": ("final_layer.1.bias", torch.tensor(1.0)),
    "flat-coef": ("membrane_output_layer.coef", 0.8 ** torch.arange(T - 1, -1, -1)),
    "no-time": ("membrane_output_layer.coef", torch.ones(1, 1, 1, 1, 0)),
    "other-decay": ("membrane_output_layer.coef", (0.9 ** torch.arange(T - 1, -1, -1)).view(1, 1, 1, 1, T)),
    "reversed-coef": ("membrane_output_layer.coef", (0.8 ** torch.arange(T)).view(1, 1, 1, 1, T)),
    "nan": ("decoder.2.bn.bias", torch.full((32,), torch.nan)),
    "infinite": ("encoder.2.bias", torch.full((128,), -torch.inf)),
    "overflow": ("encoder.2.bias", torch.full((128,), 1e300, dtype=torch.float64)),
    "negative-variance": ("encoder.0.bn.running_var", torch.full((32,), -1.0)),
    "integers": ("encoder.0.bias", torch.ones(32, dtype=torch.int64)),
    "complex": ("encoder.0.bias", torch.ones(32, dtype=torch.complex64)),
    "sparse": ("sample_layer.0.weight", torch.eye(D).to_sparse()),
    "meta": ("sample_layer.0.weight", torch.empty(D, D, device="meta")),
    "no-values": ("before_latent_layer.weight", torch.ones(1, 1).expand(2**40, 1024)),
    "endless-coef": ("membrane_output_layer.coef", torch.ones(1).expand(1, 1, 1, 1, 2**40)),
    "a-number": ("encoder.0.bias", 3.0),
    "a-list": ("encoder.0.bias", [0.0] * 32),
}


def assert_refused(source: object, *words: object) -> None:
    with pytest.raises(InputError) as error:
        load_official_state_dict(source)  # type: ignore[arg-type]
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 400
    for word in words:
        assert str(word) in message


def changed(state: dict[str, Tensor], change: str) -> tuple[str, dict[str, object]]:
    key, value = CHANGES[change]
    assert value is not None or key in state
    return key, {k: v for k, v in state.items() if k != key} | ({} if value is None else {key: value})


@pytest.mark.parametrize("change", CHANGES)
def test_bad_entries_are_named(state: dict[str, Tensor], change: str) -> None:
    key, bad = changed(state, change)
    assert_refused(bad, key, "state dict")


@pytest.mark.parametrize("change", ["missing", "nan", "sparse", "no-values", "endless-coef", "a-list"])
def test_bad_entries_of_a_file_are_named(state: dict[str, Tensor], change: str, tmp_path: Path) -> None:
    key, bad = changed(state, change)
    path = tmp_path / "a.pth"
    torch.save(bad, path)
    assert_refused(path, key, path)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        pytest.param({}, "encoder.0.weight", id="empty"),
        pytest.param({"net": {}}, "encoder.0.weight", id="empty-net"),
        pytest.param({"net": torch.zeros(3)}, "net", id="net-is-a-tensor"),
        pytest.param({"net": None, "epoch": 3}, "net", id="net-is-none"),
        pytest.param({3: torch.zeros(3)}, "3 should be", id="key-is-a-number"),
        pytest.param({"x" * 10_000: torch.zeros(3)}, "encoder.0.weight", id="long-key"),
        pytest.param([torch.zeros(3)], "list", id="a-list"),
    ],
)
def test_other_contents(content: object, word: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", word)
    if isinstance(content, dict):
        assert_refused(content, word)


def test_one_key_without_the_prefix_is_unknown(state: dict[str, Tensor]) -> None:
    bad = {f"module.{key}": value for key, value in state.items()} | {"encoder.0.bias": state["encoder.0.bias"]}
    assert_refused(bad, "encoder.0")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {}
    content["net"] = content
    torch.save(content, tmp_path / "a.pth")
    assert_refused(tmp_path / "a.pth", "net")


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_pickled_code_is_not_run(state: dict[str, Tensor], tmp_path: Path) -> None:
    path, trace = tmp_path / "a.pth", tmp_path / "trace"
    torch.save(state | {"prior.x": Payload(trace)}, path)
    assert_refused(path, path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    assert_refused(path, path)
    torch.save({"encoder.0.bias": Payload(trace)}, path, _use_new_zipfile_serialization=False)
    assert_refused(path, path)
    assert not trace.exists()


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99], ids=["empty", "fp64", "almost-whole"])
def test_truncated_files_are_refused(state: dict[str, Tensor], kept: float, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert_refused(path, path)


def test_large_files_are_not_opened(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.pth"
    torch.save(state, path)
    monkeypatch.setattr(untrusted, "MAX_FILE_BYTES", path.stat().st_size - 1)
    assert_refused(path, path, "larger")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "no.pth", "no.pth")
    assert_refused(tmp_path / "no.safetensors", "no.safetensors")
    assert_refused(tmp_path, tmp_path)


def test_a_pickle_named_safetensors_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.save(state, path)
    assert_refused(path, path, "pickle")


def test_a_record_shorter_than_its_tensor_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Where it is not the last record, its tensor reaches into the next ones: never beyond the file."""
    path, short = tmp_path / "a.pth", tmp_path / "b.pth"
    torch.save({"encoder.0.weight": torch.ones(1 << 20)}, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(short, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            content = source.read(entry.filename)
            target.writestr(entry.filename, content[:64] if len(content) > 1 << 20 else content)
    assert_refused(short, short)
