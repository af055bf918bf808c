"""Inception v3 with the layout of pytorch-fid's file, and what is measured by it: FID and Inception Score."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from metric_helpers import Small, assert_one_line
from torch import Tensor, nn

from esvae.data import normalize
from esvae.errors import InputError
from esvae.metrics import fid, inception
from esvae.metrics.frechet import feature_statistics, frechet_distance
from esvae.metrics.inception import InceptionV3, load_inception
from esvae.metrics.inception_score import inception_score

PIXELS = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """Random weights whose activations neither vanish nor grow, and running statistics."""
    torch.manual_seed(0)
    network = InceptionV3().eval()
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("conv.weight"):
                nn.init.kaiming_normal_(tensor)
            elif name.endswith("running_mean"):
                tensor.normal_(0, 0.1)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def file(network: InceptionV3, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the format that the published file has."""
    path = tmp_path_factory.mktemp("weights") / inception.WEIGHTS
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def accepted(file: Path) -> Iterator[Path]:
    """The file counts as the published one."""
    with accepting(file):
        yield file


@contextmanager
def accepting(file: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception, "WEIGHTS_BYTES", file.stat().st_size)
        patch.setattr(inception, "WEIGHTS_SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
        yield


# ------------------------------------------------------------------------------------------------------- the network


def test_layout_is_that_of_the_published_file(network: InceptionV3) -> None:
    """94 convolutions with norms, one classifier: as many parameters as torchvision's without its second classifier
    and with 8 more classes, as many bytes as the file without names and headers.
    """
    state = network.state_dict()
    assert len(state) == 94 * 6 + 2
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_834_568 + 8 * 2049
    stored = sum(t.numel() * t.element_size() for t in state.values())
    assert 0 < inception.WEIGHTS_BYTES - stored < 100_000
    some = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
        "Mixed_6a.branch3x3dbl_3.bn.running_var": (96,),
        "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
        "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
        "fc.weight": (1008, 2048),
    }
    assert {name: tuple(state[name].shape) for name in some} == some


def test_sizes_inside_are_those_of_the_paper(network: InceptionV3) -> None:
    """Table 1 of arXiv 1512.00567: 35x35x288, 17x17x768, 8x8x2048."""
    seen = {}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: seen.__setitem__(name, tuple(y.shape[1:])))
        for name, module in network.named_children()
    ]
    with torch.no_grad():
        features, logits = network(normalize(PIXELS[:1]))
    for hook in hooks:
        hook.remove()
    assert (features.shape, logits.shape) == ((1, 2048), (1, 1008))
    assert seen["Conv2d_1a_3x3"] == (32, 149, 149)
    assert seen["Conv2d_4a_3x3"] == (192, 71, 71)
    assert [seen[name] for name in ("Mixed_5b", "Mixed_5d", "Mixed_6a", "Mixed_6e", "Mixed_7a", "Mixed_7c")] == [
        (256, 35, 35),
        (288, 35, 35),
        (768, 17, 17),
        (768, 17, 17),
        (1280, 8, 8),
        (2048, 8, 8),
    ]


def convolved(state: dict[str, Tensor], name: str, x: Tensor, padding: tuple[int, int]) -> Tensor:
    y = F.conv2d(x, state[f"{name}.conv.weight"], padding=padding)
    y = F.batch_norm(
        y, *(state[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")), eps=0.001
    )
    return y.clamp(min=0)


def test_last_block_is_its_definition(network: InceptionV3) -> None:
    """Written out: the row and the column side by side, and the maximum in front of the last branch."""
    state = network.Mixed_7c.state_dict()
    x = torch.rand(1, 2048, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        b = convolved(state, "branch3x3_1", x, (0, 0))
        c = convolved(state, "branch3x3dbl_2", convolved(state, "branch3x3dbl_1", x, (0, 0)), (1, 1))
        pooled = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2))
        expected = [
            convolved(state, "branch1x1", x, (0, 0)),
            convolved(state, "branch3x3_2a", b, (0, 1)),
            convolved(state, "branch3x3_2b", b, (1, 0)),
            convolved(state, "branch3x3dbl_3a", c, (0, 1)),
            convolved(state, "branch3x3dbl_3b", c, (1, 0)),
            convolved(state, "branch_pool", pooled, (0, 0)),
        ]
        found = network.Mixed_7c(x)
    torch.testing.assert_close(found, torch.cat(expected, 1), rtol=1e-4, atol=1e-4)


def test_average_is_over_pixels_that_are_there(network: InceptionV3) -> None:
    """A constant image stays constant at the border, where zeros would be averaged in otherwise."""
    with torch.no_grad():
        for block in (network.Mixed_5b, network.Mixed_6b, network.Mixed_7b):
            x = torch.ones(1, block.branch_pool.conv.in_channels, 8, 8)
            found = block(x)[0, -block.branch_pool.conv.out_channels :]
            torch.testing.assert_close(found, found[:, :1, :1].expand_as(found))


def test_grey_images_are_repeated(network: InceptionV3) -> None:
    grey = normalize(PIXELS[:1, :1])
    with torch.no_grad():
        for one, other in zip(network(grey), network(grey.repeat(1, 3, 1, 1)), strict=True):
            assert torch.equal(one, other)


# ----------------------------------------------------------------------------------------------------------- the file


def test_weights_are_read_exactly(network: InceptionV3, accepted: Path) -> None:
    read = load_inception(accepted)
    assert not read.training
    state = read.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())


def test_counters_may_be_missing(network: InceptionV3, tmp_path: Path) -> None:
    """As in a file that an older torch has written."""
    path = tmp_path / "old.pth"
    torch.save({k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}, path)
    with accepting(path):
        read = load_inception(path).state_dict()
    assert read.keys() == network.state_dict().keys()


def test_other_files_are_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_inception(tmp_path / "no.pth")
    assert_one_line(error, "no.pth: no such file", inception.WEIGHTS)
    with pytest.raises(InputError) as error:
        load_inception(file)  # a network of the right layout, with other weights
    assert_one_line(error, file, f"{file.stat().st_size} bytes", "95628359", "TorchScript")


def test_damaged_weights_are_refused(accepted: Path, tmp_path: Path) -> None:
    content = bytearray(accepted.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(InputError) as error:
        load_inception(tmp_path / "damaged.pth")
    assert_one_line(error, "damaged.pth", "SHA-256")


@pytest.mark.parametrize("change", [{"fc.weight": torch.zeros(1000, 2048)}, {"AuxLogits.fc.bias": torch.zeros(2)}])
def test_another_layout_is_refused(network: InceptionV3, tmp_path: Path, change: dict[str, Tensor]) -> None:
    path = tmp_path / "other.pth"
    torch.save(network.state_dict() | change, path)
    with accepting(path), pytest.raises(InputError) as error:
        load_inception(path)
    assert_one_line(error, path, next(iter(change)))


# ------------------------------------------------------------------------------------------------ distance and score


def test_outputs_are_those_of_normalized_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fid, "CHUNK", 7)
    network = Small(features=6)
    with torch.autocast("cpu", torch.bfloat16):
        features, logits = fid.outputs(network, PIXELS)
    expected = network(normalize(PIXELS))
    assert not features.requires_grad
    torch.testing.assert_close((features, logits), tuple(t.detach() for t in expected), rtol=1e-5, atol=1e-6)


def test_fid_is_the_distance_of_features() -> None:
    network = Small(features=6)
    a, b = (fid.outputs(network, PIXELS[part]) for part in (slice(0, 20), slice(20, 40)))
    expected = frechet_distance(*feature_statistics(a[0]), *feature_statistics(b[0]))
    assert fid.fid(fid.summary(*a), fid.summary(*b)) == expected > 0
    assert fid.fid(fid.summary(*a), fid.summary(*a)) < 1e-12


def test_fewer_images_than_features_have_a_score_but_no_fid() -> None:
    many, few = torch.randn(30, 20), torch.randn(12, 20)
    summaries = [fid.summary(features, torch.randn(len(features), 4)) for features in (many, few)]
    assert "mu" not in summaries[1]
    assert summaries[1]["score"][0] >= 1
    for pair in (summaries, summaries[::-1]):
        with pytest.raises(InputError) as error:
            fid.fid(*pair)
        assert_one_line(error, "no FID", "as many images")


def test_score_of_known_predictions() -> None:
    """The number of classes that are drawn equally often and surely; 1 where all images look alike, or none sure."""
    sure = 60 * F.one_hot(torch.arange(40) % 4, 8).float()
    assert inception_score(sure) == pytest.approx((4, 0), abs=1e-6)
    assert inception_score(sure[:1].expand(40, -1)) == pytest.approx((1, 0), abs=1e-6)
    assert inception_score(torch.zeros(40, 8)) == pytest.approx((1, 0), abs=1e-6)


def test_score_is_its_definition_over_splits() -> None:
    logits = torch.randn(25, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scores = []
    for part in (logits[:9], logits[9:17], logits[17:]):
        p = part.softmax(1)
        scores.append((p * (p / p.mean(0)).log()).sum(1).mean().exp())
    mean, std = inception_score(logits, splits=3)
    assert mean == pytest.approx(sum(scores).item() / 3)
    assert std == pytest.approx(torch.stack(scores).std(correction=0).item())


@pytest.mark.parametrize("logits", [torch.zeros(9, 4), torch.zeros(40), torch.full((40, 4), torch.nan)])
def test_score_refuses_what_has_none(logits: Tensor) -> None:
    with pytest.raises(InputError) as error:
        inception_score(logits)
    assert_one_line(error, "logits", tuple(logits.shape))
