"""The command line: what it writes, what it prints, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis_helpers import one_line_error
from kernel_helpers import needs_compiled
from metric_helpers import Small
from PIL import Image
from safetensors.torch import load_file, save_file
from training_helpers import TINY, contents, full_disk, image_folder

import esvae_kernels
from esvae import ESVAE, cli, data, evaluate, figures, pretrained, train
from esvae.checkpoint import load_safetensors
from esvae.cli import LESS_MEMORY, commands, main
from esvae.config import Config
from esvae.data.images import resize_all
from esvae.errors import InputError
from esvae.generate import load_model
from esvae.metrics import fad, fid, own_features
from esvae.metrics.neighbours import prdc
from esvae.models import MODELS
from esvae.runs import Run
from esvae_kernels import backends, native
from esvae_kernels.nn import BNLIF

SHARED_FAD = Path(__file__).parents[2] / "shared" / "fad"


@pytest.fixture(scope="module", autouse=True)
def quick_statistics() -> Iterator[None]:
    """tdBN takes over the statistics of each batch at once: after four steps at the usual momentum no neuron fires."""

    class Quick(ESVAE):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            for module in self.modules():
                if isinstance(module, BNLIF):
                    module.momentum = 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MODELS, "esvae", Quick)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("data") / "color", train=40, test=11)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """A finished run on color images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    code = main(["train", "--preset", "best", "--data", f"folder:{images}", "--out", str(folder), "--quiet", *TINY])
    assert code == 0
    return folder


@needs_compiled
def test_without_the_compiled_kernels_one_line_warns(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "why_missing", "there was no compiler")
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(backends, "_pick", cache(backends._pick.__wrapped__))
    for expected in (1, 0):  # said once
        assert main(["generate", str(run), "--n", "1", "--out", str(tmp_path / "one.png")]) == 0
        warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("esvae: warning: ")]
        assert len(warned) == expected
        assert all(line.endswith("no other backend can run (cpu: there was no compiler)") for line in warned)


@pytest.fixture
def unfinished(tmp_path: Path, run: Path) -> Path:
    """The same run as it is after its first epoch, at T = 1."""
    folder = tmp_path / "unfinished"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "model")
    Run.open(folder).cut(2)
    return folder


@pytest.fixture
def failed(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    return one_line_error(capsys)


def done(*arguments: str | Path) -> None:
    assert main([str(argument) for argument in arguments]) == 0


# -------------------------------------------------------------------------------------------------------------- help


def test_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {name} " in out for name in cli.COMMANDS)
    assert main([]) == 2


@pytest.mark.parametrize("command", commands.RUN)
def test_help_has_an_example_and_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    out, err = capsys.readouterr()
    assert f"esvae {command} " in out.partition("xample")[2]
    assert "(default: cpu)" in out or command == "export"
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "defaults"),
    [
        ([], ["(default: best)", "(default: mixture)", "(default: 600)", "(default: fashion-mnist)"]),
        (["--preset", "paper"], ["(default: paper)", "(default: 300)", "(default: bottleneck)"]),
        (["--preset=official", "--data=celeba"], ["(default: official)", "(default: celeba)", "(default: 64)"]),
    ],
    ids=["best", "paper", "official-celeba"],
)
def test_help_shows_the_defaults_of_the_preset(
    arguments: list[str], defaults: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", *arguments, "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert [text for text in defaults if text not in out] == []


# -------------------------------------------------------------------------------------------------------------- train


def test_train_writes_the_config_that_was_asked_for(run: Path, images: Path) -> None:
    config = Config.from_dict(json.loads((run / "config.json").read_text()))
    assert (config.preset, config.data) == ("best", f"folder:{images}")
    assert (config.model.latent, config.model.wide_kernels, config.train.clip) == (4, 2, 1.0)
    assert config.model.channels == 3  # as the images are, though the preset has 1


def test_resume_needs_the_folder_alone(unfinished: Path, run: Path) -> None:
    done("train", "--resume", "--out", unfinished, "--quiet")
    resumed, whole = (load_safetensors(folder / "model" / "model.safetensors") for folder in (unfinished, run))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] . DefaultCPUAllocator: not enough memory"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[-10:]}",
)
def test_out_of_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the command's own options that take less."""

    def fail(arguments: list[str]) -> None:
        raise error

    for command, options in (("generate", "--n or --steps"), ("train", "--train.batch-size, --model.steps or --model")):
        monkeypatch.setitem(commands.RUN, command, fail)
        assert main([command]) == 2
        assert capsys.readouterr().err.startswith(f"esvae: error: out of memory: a smaller {options}")
    monkeypatch.setitem(commands.RUN, "generate", lambda arguments: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match the size"):  # a mistake of ours is not hidden
        main(["generate"])


@pytest.mark.usefixtures("environment_anew")
def test_what_a_kernel_refuses_is_one_line(failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def kernel(**options: Any) -> Callable[..., object]:
        return lambda arguments: esvae_kernels.lif(torch.zeros(2, 3), **{"decay": 0.5, "threshold": 1.0} | options)

    monkeypatch.setitem(commands.RUN, "train", kernel(threshold=1e39))
    line = failed("train", "--model.threshold", "1e39")
    assert line.startswith("esvae: error: --model.threshold: got 1e+39, accepted are a finite number")
    monkeypatch.setitem(commands.RUN, "train", kernel())
    for name, refusal in (
        ("quantum", "ESVAE_BACKEND: got 'quantum', accepted are reference"),
        ("cuda", "ESVAE_BACKEND: got 'cuda', which cannot run: "),
    ):
        monkeypatch.setenv("ESVAE_BACKEND", name)
        assert refusal in failed("train")
    monkeypatch.delenv("ESVAE_BACKEND")


def test_options_that_take_less_memory_are_the_command_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert LESS_MEMORY.keys() == commands.RUN.keys() - {"demo"}
    for command, less in LESS_MEMORY.items():
        with pytest.raises(SystemExit):
            main([command, "--help"])
        found = capsys.readouterr().out
        for option in re.findall(r"--[\w.-]*\w", less):
            assert option in found, (command, option)


@pytest.mark.usefixtures("environment_anew")
@pytest.mark.parametrize("name", ["quantum", "cuda"])
@pytest.mark.parametrize("command", ["train", "demo", "generate", "report"])
def test_a_backend_that_cannot_run_is_told_before_any_work(
    name: str, command: str, tmp_path: Path, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training had begun its run, and drawn a bar, before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESVAE_BACKEND", name)
    run = {"generate": ["fashion-mnist"], "report": ["table1", "fashion-mnist"]}.get(command, [])
    out = [] if command == "generate" else ["--out", "run"]
    assert f"ESVAE_BACKEND: got {name!r}, " in failed(command, *run, *out)
    assert not list(tmp_path.iterdir())
    monkeypatch.delenv("ESVAE_BACKEND")


@pytest.mark.parametrize(
    ("code", "error"),
    [("int('one')", ValueError), ("torch.ones(2) + torch.ones(3)", RuntimeError), ("None + 1", TypeError)],
)
@pytest.mark.parametrize("module", ["esvae_kernels.check", "esvae_kernels.ops.lif", "esvae.train"])
def test_a_mistake_of_ours_keeps_its_traceback(
    module: str, code: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"__name__": module, "torch": torch}
    exec(f"def fail(arguments): {code}", names)
    monkeypatch.setitem(commands.RUN, "train", names["fail"])
    with pytest.raises(error):
        main(["train"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--preset", "paper"], "preset: got 'paper', but "),
        (["--model.latent", "5"], "model.latent: got 5, but "),
        (["--data", "digits"], "data: got 'digits', but "),
    ],
    ids=["preset", "latent", "data"],
)
def test_resume_of_a_run_of_another_preset(
    unfinished: Path, arguments: list[str], line: str, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = {
        split: data.ImageSet(split, torch.zeros(16, 3, 32, 32, dtype=torch.uint8), False) for split in ("train", "test")
    }
    monkeypatch.setattr(train, "load_sets", lambda config, download: sets)
    before = contents(unfinished)
    message = failed("train", "--resume", "--out", unfinished, *arguments)
    assert line in message
    assert "use another --out" in message
    assert contents(unfinished) == before


def test_train_into_a_run(run: Path, images: Path, failed: Callable[..., str]) -> None:
    before = contents(run)
    line = failed("train", "--preset", "best", "--data", f"folder:{images}", "--out", run, "--quiet", *TINY)
    assert "holds a run already; use --resume or another --out" in line
    assert contents(run) == before


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, images: Path, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "_step", interrupt)
    arguments = ["train", "--preset", "best", "--data", f"folder:{images}", "--out", tmp_path / "run", "--quiet", *TINY]
    assert "interrupted; `esvae train --resume`" in failed(*arguments, code=130)


@pytest.mark.parametrize(
    ("arguments", "way_out"), [(["--train"], "; `esvae demo` with the same options goes on"), ([], "")]
)
def test_ctrl_c_in_the_demo(
    arguments: list[str], way_out: str, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(commands.RUN, "demo", interrupt)
    assert failed("demo", *arguments, code=130).strip() == f"esvae: error: interrupted{way_out}"


def test_a_run_is_trained_by_one_process_at_a_time(run: Path, failed: Callable[..., str]) -> None:
    """The other would take records and checkpoints from under the first."""
    before = contents(run)
    with Run.open(run).alone():
        line = failed("train", "--resume", "--out", run, "--quiet")
    assert f"{run}: another process trains in it" in line
    assert contents(run) == before


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_mistakes_are_one_line_on_every_terminal(
    encoding: str, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tyro draws its box by the encoding of stdout."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
    line = failed("generate", "RUN", "--colour")
    assert line.strip() == "esvae: error: Unrecognized options: --colour; see esvae generate --help"


# ---------------------------------------------------------------------------------------------- generate, reconstruct


def test_generate_npz_is_the_grid_and_the_folder(run: Path, tmp_path: Path) -> None:
    for out in ("a.npz", "a.png", "a"):
        done("generate", run, "--n", 5, "--seed", 3, "--out", tmp_path / out, "--columns", 3)
    images = np.load(tmp_path / "a.npz")["images"]
    assert (images.shape, images.dtype) == ((5, 3, 32, 32), np.uint8)
    files = sorted((tmp_path / "a").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(5)]
    for file, image in zip(files, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), image.transpose(1, 2, 0))
    with Image.open(tmp_path / "a.png") as grid:
        assert grid.size == (2 + 3 * 66, 2 + 2 * 66)


def test_generated_image_depends_on_seed_and_number_alone(run: Path, tmp_path: Path) -> None:
    def drawn(*arguments: object) -> np.ndarray:
        done("generate", *arguments, "--out", tmp_path / "x.npz")
        return np.load(tmp_path / "x.npz")["images"]

    five = drawn(run, "--n", 5)
    assert np.array_equal(drawn(run / "model", "--n", 3), five[:3])
    for other in (["--seed", 1], ["--prior", "bottleneck"], ["--steps", 1]):
        assert not np.array_equal(drawn(run, "--n", 5, *other), five), other


def test_unfinished_run_generates_from_its_checkpoint_and_says_so(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("generate", unfinished, "--n", 2, "--out", tmp_path / "x.npz")
    err = capsys.readouterr().err
    assert "these are the weights of step 2, trained at T = 1" in err
    assert "prior: bottleneck, since the mixture is fitted at the end of training" in err
    loaded = load_model(unfinished)
    average = load_safetensors(Run.open(unfinished).latest() / "average.safetensors")
    assert torch.equal(loaded.model.bottleneck.weight, average["bottleneck.weight"])
    with torch.no_grad():
        expected = data.to_uint8(loaded.model.generate(2, seed=0, prior="bottleneck"))
    assert np.array_equal(np.load(tmp_path / "x.npz")["images"], expected)


def test_mixture_that_is_not_fitted_is_not_used_silently(
    unfinished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(unfinished), "--prior", "mixture", "--out", str(tmp_path / "x.png")]) == 2
    assert "the mixture is fitted at the end of training" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.png").exists()


def test_reconstruct_prints_the_error_of_what_it_shows(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done("reconstruct", run, "--n", 7, "--out", tmp_path / "r.png", "--columns", 4)
    name, value = capsys.readouterr().out.split()
    loaded = load_model(run)
    originals = data.normalize(data.load(loaded.data, "test").pixels[:7])
    with torch.no_grad():
        again = loaded.model.reconstruct(originals, seed=0, sample_ids=torch.arange(7))
    assert (name, float(value)) == ("mse", pytest.approx((originals - again).square().mean().item(), abs=2e-6))
    with Image.open(tmp_path / "r.png") as grid:
        assert grid.size == (2 + 4 * 66, 2 + 4 * 64 + 2 + 8 + 2 + 2)


# ----------------------------------------------------------------------------------------------------------- evaluate


def naive_error(model: ESVAE, name: str, seed: int) -> float:
    originals = data.normalize(data.load(name, "test").pixels)
    with torch.no_grad():
        again = model.reconstruct(originals, seed=seed, sample_ids=torch.arange(len(originals)))
    return (originals - again).square().mean().item()


def test_json_is_all_that_stdout_has(run: Path) -> None:
    command = [sys.executable, "-c", "import sys; from esvae.cli import main; sys.exit(main())"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    for variable in ("ESVAE_FAD_DIR", "ESVAE_INCEPTION"):
        environment.pop(variable, None)
    done = subprocess.run([*command, "evaluate", run, "--json"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    loaded = load_model(run)
    assert result == {
        "weights": str(run / "model" / "model.safetensors"),
        "data": loaded.data,
        "images": 11,
        "prior": "mixture",
        "steps": 2,
        "seed": 2024,
        "precision": "fp32",
        "device": "cpu",
        "batch_size": 128,
        "generated": 0,
        "mse": pytest.approx(naive_error(loaded.model, loaded.data, 2024), rel=1e-5),
        "not_measured": result["not_measured"],
    }
    assert result["not_measured"].keys() == {"fad", "prdc", "fid", "inception_score"}
    for line in (
        f"no FAD: no feature network is published for {loaded.data}",
        "no FID, no Inception Score: set ESVAE_",
    ):
        assert done.stderr.count(line) == 1


def test_last_incomplete_batch_counts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(run)
    monkeypatch.setattr(evaluate, "BATCH", 4)  # 11 images: 4, 4, 3
    found = evaluate.mean_squared_error(loaded.model, data.load(loaded.data, "test"))
    assert found == pytest.approx(naive_error(loaded.model, loaded.data, evaluate.SEED), rel=1e-5)


def test_options_of_evaluate_reach_the_measurement(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done("evaluate", run, "--json", "--seed", 5, "--steps", 3, "--prior", "bottleneck", "--precision", "bf16")
    result = json.loads(capsys.readouterr().out)
    assert [result[key] for key in ("seed", "steps", "prior", "precision")] == [5, 3, "bottleneck", "bf16"]


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> fad.Reference:
    """A feature network in the published one's place, for color images, and smaller numbers of images."""
    torch.manual_seed(0)
    made = fad.Reference("color", fad.FeatureNetwork(3).eval(), torch.zeros(64).double(), torch.eye(64).double())
    monkeypatch.setattr(evaluate, "find_reference", lambda name: (made, ""))
    monkeypatch.setattr(evaluate, "GENERATED", 70)
    monkeypatch.setattr(fad, "FLOOR_IMAGES", 64)
    return made


@pytest.fixture
def many(run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """80 training and 75 test images in the place of the folder's, which are too few for a covariance."""
    generator = torch.Generator().manual_seed(0)
    pixels = {
        s: torch.randint(256, (n, 3, 32, 32), generator=generator).byte() for s, n in (("train", 80), ("test", 75))
    }
    monkeypatch.setattr(data, "load", lambda name, split, **options: data.ImageSet(name, pixels[split], flip=False))
    return pixels


def test_distances_are_those_of_their_images(
    run: Path, reference: fad.Reference, many: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    done("evaluate", run, "--json")
    result = json.loads(capsys.readouterr().out)
    model = load_model(run).model
    originals = data.normalize(many["test"])
    with torch.no_grad():
        drawn = model.generate(70, seed=2024, prior="mixture")
        again = model.reconstruct(originals, seed=2024, sample_ids=torch.arange(75))
    assert (result["generated"], result["images"]) == (70, 75)
    for images, suffix in ((drawn, ""), (many["train"][:64], "_floor"), (again[:70], "_reconstructions")):
        for key, value in fad.fad(reference, images).items():
            assert result[key + suffix] == pytest.approx(value, rel=1e-4), key + suffix


def test_floors_stand_beside_the_distances(
    run: Path, reference: fad.Reference, many: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    done("evaluate", run, "--json")
    result = json.loads(capsys.readouterr().out)
    done("evaluate", run)
    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if "fad_" in line
    ]
    assert [row[1:] for row in rows] == [
        [f"{result[f'fad_{mode}{kind}']:.4f}", f"{result[f'fad_{mode}_floor']:.4f}"]
        for mode in ("paper", "eval")
        for kind in ("", "_reconstructions")
    ]


def test_manifolds_are_those_of_test_images(
    run: Path, reference: fad.Reference, many: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Equal numbers of test, generated and training images: 70, as many as are generated."""
    done("evaluate", run, "--json")
    result = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        drawn = load_model(run).model.generate(70, seed=2024, prior="mixture")
    real, train = (fad.image_features(reference.network, many[split][:70]) for split in ("test", "train"))
    assert (result["prdc_images"], result["prdc_k"], result["prdc_features"]) == (70, 5, "fad")
    for suffix, images in (("", fad.image_features(reference.network, drawn)), ("_floor", train)):
        for key, value in prdc(real, images).items():
            assert result[f"prdc_{key}{suffix}"] == pytest.approx(value, abs=0.03), key + suffix
    done("evaluate", run)
    text = capsys.readouterr().out
    for key in ("precision", "recall", "density", "coverage"):
        (row,) = [line for line in text.splitlines() if f"prdc_{key} of generated images" in line]
        assert [cell.strip() for cell in row.split("│")[2:4]] == [
            f"{result[f'prdc_{key}{suffix}']:.3f}" for suffix in ("", "_floor")
        ]


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    network = Small(features=6)
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("ESVAE_INCEPTION", "weights.pth")
    monkeypatch.setattr(evaluate, "load_inception", lambda path: network if str(path) == "weights.pth" else None)
    monkeypatch.setattr(evaluate, "GENERATED", 70)
    monkeypatch.setattr(fid, "IMAGES", 64)
    return network


def summary(network: Small, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return fid.summary(*fid.outputs(network, images if images.dtype == torch.uint8 else data.to_uint8(images)))


def test_inception_measures_the_first_images(
    run: Path, inception: Small, many: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a published feature network; real images are measured once, and then known."""
    done("evaluate", run, "--json")
    result = json.loads(capsys.readouterr().out)
    with torch.no_grad():
        drawn = load_model(run).model.generate(70, seed=2024, prior="mixture")
    generated, train, test = (summary(inception, images) for images in (drawn[:64], many["train"][:64], many["test"]))
    assert (result["generated"], result["fid_implementation"]) == (70, "pytorch-fid")
    assert result["fid"] == pytest.approx(fid.fid(generated, test), rel=1e-3)
    assert result["fid_floor"] == pytest.approx(fid.fid(train, test), rel=1e-9)
    for suffix, found in (("", generated), ("_floor", train)):
        score = [result[f"inception_score{suffix}"], result[f"inception_score{suffix}_std"]]
        assert score == pytest.approx(found["score"].tolist(), rel=1e-3, abs=1e-6)
    assert result["not_measured"].keys() == {"fad", "prdc"}

    inception.calls = 0
    done("evaluate", run, "--json")
    assert json.loads(capsys.readouterr().out) == result
    assert inception.calls == 2  # of 32 generated images
    done("evaluate", run)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "fid of generated images" in line]
    assert [cell.strip() for cell in row.split("│")[2:4]] == [f"{result['fid']:.2f}", f"{result['fid_floor']:.2f}"]


def test_too_few_test_images_for_fid_leave_the_score(
    run: Path,
    inception: Small,
    many: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    many["test"] = many["test"][:5].repeat(2, 1, 1, 1)
    monkeypatch.setattr(evaluate, "load_inception", lambda path: Small(features=20))
    done("evaluate", run, "--json")
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert "fid" not in result
    assert result["inception_score"] >= 1
    assert result["not_measured"]["fid"] in printed.err
    assert "as many images on both sides" in result["not_measured"]["fid"]


@pytest.mark.parametrize("real", [False, True], ids=["model", "real"])
def test_own_features(
    run: Path,
    many: dict[str, torch.Tensor],
    real: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asked for, a network is trained and named as what it is."""
    monkeypatch.setattr(own_features, "STEPS", 2)
    monkeypatch.setattr(evaluate, "GENERATED", 140)
    for split in ("train", "test"):
        many[split] = many[split].repeat(2, 1, 1, 1)
    what = ("--real", "cifar10") if real else (run,)
    done("evaluate", *what, "--own-features", "--json")
    result = json.loads(capsys.readouterr().out)
    own = own_features.own_reference(
        *(data.load("x", split) for split in ("train", "test")), lambda *_, **__: pytest.fail("trained again")
    )
    assert (result["fad_own_weights"], result["fad_own_mse"]) == (own.weights, pytest.approx(own.error))
    assert result["fad_own_floor"] == pytest.approx(fad.distance(own.reference, many["train"][:140], "eval"))
    assert (result["prdc_features"], result["prdc_images"]) == ("fad_own", 140)
    assert not any(key.startswith(("fad_paper", "fad_eval")) for key in result)
    assert result["not_measured"].keys() == {"fad", "fid", "inception_score"}
    if not real:
        with torch.no_grad():
            drawn = load_model(run).model.generate(140, seed=2024, prior="mixture")
        assert result["fad_own"] == pytest.approx(fad.distance(own.reference, drawn, "eval"), rel=1e-4)
        assert "fad_own_reconstructions" in result


def test_too_few_training_images_cost_the_floor_alone(
    run: Path, many: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(own_features, "STEPS", 2)
    monkeypatch.setattr(evaluate, "GENERATED", 140)
    many["test"] = many["test"].repeat(2, 1, 1, 1)
    done("evaluate", run, "--own-features", "--json")
    result = json.loads(capsys.readouterr().out)
    assert {"fad_own", "fad_own_reconstructions", "fad_own_weights"} <= result.keys()
    assert "fad_own_floor" not in result
    line = result["not_measured"]["fad_own_floor"]
    assert line.startswith(f"{len(many['train'])} training images of ")
    assert line.endswith("needed are 128, one per feature")


@pytest.mark.parametrize(
    ("arguments", "environment", "lines"),
    [
        (["--own-features"], {}, ["no fad_own: 40 training and 11 test images of folder:"]),
        ([], {"ESVAE_INCEPTION": "no.pth"}, ["ESVAE_INCEPTION: got no.pth: no such file; accepted is pt_inception-"]),
        (
            [],
            {"ESVAE_INCEPTION": __file__},
            ["ESVAE_INCEPTION: got ", "test_cli.py: ", "bytes, accepted are the 95628359 of"],
        ),
    ],
    ids=["too-few-images", "no-weights", "other-weights"],
)
def test_what_cannot_be_measured_is_named_and_the_rest_measured(
    run: Path,
    arguments: list[str],
    environment: dict[str, str],
    lines: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    done("evaluate", run, "--json", *arguments)
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["mse"] == pytest.approx(naive_error(load_model(run).model, load_model(run).data, 2024), rel=1e-5)
    for line in lines:
        assert line in printed.err
        assert any(line in told for told in result["not_measured"].values())


def test_a_damaged_reference_leaves_the_rest(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fashion_64.pth").write_bytes(b"damaged")
    monkeypatch.setenv("ESVAE_FAD_DIR", str(tmp_path))
    monkeypatch.setattr(evaluate, "PUBLISHED", {load_model(run).data: fad.PUBLISHED["fashion-mnist"]})
    monkeypatch.setattr(evaluate, "load_reference", lambda name: fad.load_reference("fashion-mnist"))
    done("evaluate", run, "--json")
    printed = capsys.readouterr()
    assert "mse" in json.loads(printed.out)
    assert f"{tmp_path}/fashion_test_64.npz: no such file" in printed.err


def test_generated_images_that_are_none(
    run: Path,
    reference: fad.Reference,
    inception: Small,
    many: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A prior that gives NaN: the reconstructions' error is still there."""
    monkeypatch.setattr(ESVAE, "generate", lambda model, n, **_: torch.full((n, 3, 32, 32), torch.nan))
    done("evaluate", run, "--json")
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["mse"] > 0
    assert result["not_measured"].keys() == {"fad", "prdc", "fid", "inception_score"}
    assert "images: values in [-1, 1] are wanted" in printed.err


def test_real_images_alone(
    reference: fad.Reference, many: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    done("evaluate", "--real", "mnist", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["test_fad_paper_256"] == pytest.approx(fad.fad(reference, many["test"], 256)["fad_paper"])
    assert result["fad_paper_floor"] == pytest.approx(fad.fad(reference, many["train"][:64])["fad_paper"])
    assert result["real_images"] == min(evaluate.GENERATED, len(many["train"]))
    assert "mse" not in result


@pytest.mark.slow
def test_published_test_set_against_its_statistics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not SHARED_FAD.is_dir():
        pytest.skip("the published feature networks are not here: no ../shared/fad")
    try:
        data.load("fashion-mnist", "test")
    except InputError as error:
        pytest.skip(f"Fashion-MNIST is not here: {error}")
    monkeypatch.setenv("ESVAE_FAD_DIR", str(SHARED_FAD))
    monkeypatch.setattr(evaluate, "floors", lambda reference, pixels: {})  # measured in test_fad.py
    done("evaluate", "--real", "fashion-mnist", "--json")
    assert json.loads(capsys.readouterr().out)["test_fad_paper_256"] < 0.001


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        (None, "set ESVAE_FAD_DIR to a folder with mnist_64.pth and mnist_test_64.npz of github.com"),
        ("empty", "empty has no mnist_64.pth and mnist_test_64.npz"),
    ],
    ids=["unset", "empty"],
)
def test_missing_feature_network_says_how_to_get_it(
    folder: str | None, line: str, tmp_path: Path, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ESVAE_FAD_DIR", raising=False)
    if folder:
        (tmp_path / folder).mkdir()
        monkeypatch.setenv("ESVAE_FAD_DIR", str(tmp_path / folder))
    assert line in failed("evaluate", "--real", "mnist", "--json")


# --------------------------------------------------------------------------------------------------------------- demo


def test_demo_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = {split: data.load("digits", split).pixels[:48] for split in ("train", "test")}
    monkeypatch.setattr(data, "load", lambda name, split, **options: data.ImageSet(name, pixels[split], flip=False))
    out = tmp_path / "demo"
    done("demo", "--train", "--out", out, "--epochs", 1)
    text = capsys.readouterr().out
    assert "mean squared error of 48 test images" in text
    assert f"next: open {out / 'samples.png'}; then train" in text
    for name in ("reconstructions.png", "samples.png", "learning-curve.png"):
        assert str(out / name) in text.replace("\n", "")
        Image.open(out / name).verify()


def test_demo_goes_on_or_takes_another_folder(tmp_path: Path) -> None:
    config = commands.demo_config()
    assert commands._demo_folder(tmp_path / "demo", config) == (tmp_path / "demo", False)
    Run.create(tmp_path / "demo", config.to_dict())
    assert commands._demo_folder(tmp_path / "demo", config) == (tmp_path / "demo", True)
    assert commands._demo_folder(tmp_path / "demo", commands.demo_config(1)) == (tmp_path / "demo-2", False)
    (tmp_path / "demo" / "samples.png").touch()
    assert commands._demo_folder(tmp_path / "demo", config) == (tmp_path / "demo-2", False)
    assert commands._demo_folder(tmp_path / "demo") == (tmp_path / "demo-2", False)


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without any data set the shipped model draws images, and reconstructs those that ship with it."""
    monkeypatch.setattr(data, "load", lambda *_, **__: pytest.fail("a data set was asked for"))
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "samples.png").write_text("of one's own")
    done("demo", "--out", tmp_path / "demo")
    captured, made = capsys.readouterr(), tmp_path / "demo-2"
    *lines, reconstructed, drawn, following, command = captured.out.splitlines()
    names = ["reconstructions.png", "samples.png"]
    assert [reconstructed, drawn] == [str(made / name) for name in names]
    assert following == f"next: open {made / 'samples.png'}; then train on images of your own:"
    with pytest.raises(SystemExit) as parsed:
        main([*command.split()[1:], "--help"])
    assert parsed.value.code == 0
    assert sorted(path.name for path in made.iterdir()) == names
    assert captured.err == ""

    model = ESVAE.from_pretrained("fashion-mnist")
    originals = data.normalize(torch.from_numpy(resize_all(pretrained.test_images("fashion-mnist"), 32)))
    with torch.no_grad():
        again = model.reconstruct(originals, seed=2024, sample_ids=torch.arange(64))
        expected = {
            "reconstructions.png": figures.reconstruction_grid(originals, again, columns=16),
            "samples.png": figures.image_grid(model.generate(64, seed=2024), columns=16),
        }
        rate = model.encode(originals).mean().item()
    for name, grid in expected.items():
        assert np.array_equal(np.array(Image.open(made / name)), np.array(grid))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    measured = json.loads((pretrained.FOLDER / "fashion-mnist" / pretrained.EVALUATION).read_text())
    by_prior, energy = measured["evaluate"]["mixture"], measured["energy"]["generate"]
    error = (originals - again).square().mean().item()
    assert [cell.strip() for cell in next(line for line in lines if line.startswith("┃")).split("┃")[1:-1]] == [
        "",
        "here, 64 images",
        "measured when it was trained",
    ]
    assert ["MSE of reconstructions", f"{error:.4f}", f"{by_prior['mse']:.4f}"] in rows
    assert ["firing rate, latent neurons", f"{rate:.3f}", "0.477"] in rows
    assert ["FAD of drawn images", "", f"{by_prior['fad_paper']:.2f}"] in rows
    assert ["energy per drawn image", "", f"{energy['energy_uj']:.1f} µJ"] in rows
    both = energy["energy_uj"] + energy["neuron_updates_uj"]
    assert ["with updates of neurons", "", f"{both:.1f} µJ"] in rows
    seconds = {name: float(here) for name, here, _ in rows if name.startswith("seconds")}
    assert seconds.keys() == {"seconds per reconstruction", "seconds per drawn image"}
    assert all(0 < value < 1 for value in seconds.values())


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["paint"], "command: got 'paint', accepted are demo, train, generate, reconstruct, evaluate, robustness,"),
        (["generate"], "Missing from esvae generate: RUN"),
        (["generate", "RUN", "--colour"], "Unrecognized options: --colour"),
        (["generate", "RUN", "--n", "many"], "Error parsing --n: "),
        (["generate", "RUN", "--n", "0"], "error: --n: got 0, accepted is 1 to 100000"),
        (["generate", "RUN", "--columns", "0"], "columns: got 0"),
        (["generate", "RUN", "--seed", "-1"], "seed: got -1, accepted is 0 to 9223372036854775807"),
        (["generate", "RUN", "--steps", "0"], "steps: got 0, accepted is 1 to 1000"),
        (["generate", "RUN", "--out", "x.jpg"], "out: got x.jpg, accepted is .png or .npz or a new folder"),
        (["generate", "RUN", "--out", "none/x.png"], "out: got none/x.png, but there is no folder none"),
        (["generate", "RUN", "--device", "abacus"], "device: got 'abacus', which this machine or torch cannot use"),
        (["generate", "RUN", "--device", "meta"], "device: got 'meta', which this machine or torch cannot use"),
        (["generate", "RUN", "--device", "hpu"], "device: got 'hpu', which this machine or torch cannot use"),
        (["generate", "nowhere"], "nowhere: no such folder"),
        (["generate", "."], "holds no model: neither a run's config.json nor model.safetensors"),
        (["reconstruct", "RUN", "--n", "12"], "n: got 12, accepted is 1 to 11, the test images of folder:"),
        (["reconstruct", "RUN", "--data", "digits"], "data: got digits with 1 channels, accepted are images of 3"),
        (["reconstruct", "RUN/model"], "model does not say what the model was trained on; accepted is --data NAME"),
        (["evaluate"], "accepted is either RUN or --real DATA"),
        (["evaluate", "RUN", "--real", "mnist"], "accepted is either RUN or --real DATA"),
        (["evaluate", "RUN", "--data", "letters"], "error: --data: got 'letters', accepted are fashion-mnist, mnist"),
        (
            ["evaluate", "--real=letters", "--own-features"],
            "error: --real: got 'letters', accepted are fashion-mnist, mnist",
        ),
        (["robustness", "RUN", "--a", "nan"], "error: --a: got nan, accepted are numbers above 0"),
        (["robustness", "nowhere", "--a", "0.1", "2"], "error: --a: got 0.1, 2, accepted are numbers above 0"),
        (["robustness", "nowhere", "--seeds", "1"], "error: --seeds: got 1, accepted are 2 to 1000"),
        (["robustness", "nowhere", "--n", "0"], "error: --n: got 0, accepted is at least 1"),
        (["classify", "nowhere", "--epochs", "0"], "error: --epochs: got 0, accepted are 1 to 10000"),
        (["classify", "nowhere", "--seeds", "1"], "error: --seeds: got 1, accepted are 2 to 10000"),
        (["energy", "nowhere", "--n", "0"], "error: --n: got 0, accepted is at least 1"),
        (["reconstruct", "nowhere", "--n", "0"], "error: --n: got 0, accepted is at least 1"),
        (
            ["evaluate", "nowhere", "--inception", "file"],
            "error: --inception: got file: 0 bytes, accepted are the 95628",
        ),
        (["report", "table1", "nowhere", "--inception=x.pth"], "error: --inception: got x.pth: no such file; accepted"),
        (["evaluate", "--real", "digits", "--inception", "file"], "error: --inception: got file: 0 bytes, accepted"),
        (["evaluate", "--real", "letters"], "error: --real: got 'letters', accepted are fashion-mnist, mnist"),
        (["evaluate", "--real", "digits"], "no feature network is published for digits"),
        (["evaluate", "--real", "digits", "--prior", "mixture"], "--prior: got mixture, accepted is none with --real"),
        (["evaluate", "--real", "digits", "--data", "mnist"], "--data: got mnist, accepted is none with --real"),
        (
            ["train", "--out", "x", "--preset", "best", "--model.kind", "vae"],
            "error: --model.kind: got 'vae', accepted is 'esvae' with preset best, which sets --model.decay; "
            "kind 'vae' is that of --preset vae",
        ),
        (
            ["train", "--out", "x", "--preset=gan", "--model.kind=fsvae"],
            "error: --model.kind: got 'fsvae', accepted is 'gan' with preset gan, which sets --train.critic-lr; "
            "kind 'fsvae' is that of --preset fsvae and of --preset fsvae-kl",
        ),
        (["train", "--out", "x", "--model.kind", "vae"], "error: --model.kind: got 'vae', accepted is 'esvae' with"),
        (
            ["train", "--out", "x", "--preset", "vae", "--model.decay", "0.9"],
            "error: --model.decay: got 0.9, accepted is 0.25: kind 'vae' has no such option",
        ),
        (
            ["train", "--out", "x", "--data", "digits", "--preset", "best", "--model.steps", "3"],
            "error: --train.time-steps: got '1/3@2,1/3@4,1/3@8', accepted is a schedule that ends at T = 3",
        ),
        (["train"], "Missing from esvae train: --out"),
        (["train", "--out", "x", "--model.latent=0"], "error: --model.latent: got 0, accepted is 1 to 65536"),
        (
            ["train", "--out", "x", "--model.threshold", "1e39"],
            "error: --model.threshold: got 1e+39, accepted is a finite",
        ),
        (
            ["train", "--out", "x", "--model.threshold", "1e-50"],
            "error: --model.threshold: got 1e-50, accepted is above 0",
        ),
        (["train", "--out", "x", "--model.decay", "1e300"], "error: --model.decay: got 1e+300, accepted is a finite"),
        (
            ["train", "--out", "x", "--model.lif-shape", "1e39"],
            "error: --model.lif-shape: got 1e+39, accepted is a finite",
        ),
        (
            ["train", "--out", "x", "--model.lif_shape", "1e-46"],
            "error: --model.lif_shape: got 1e-46, accepted is above",
        ),
        (["train", "--out", "x", "--model.lif-center", "-inf"], "error: --model.lif-center: got -inf, accepted is a"),
        (["train", "--out", "x", "--model.sampler-shape", "nan"], "error: --model.sampler-shape: got nan, accepted is"),
        (["train", "--out", "x", "--train.lr", "1e39"], "error: --train.lr: got 1e+39, accepted is a finite number"),
        (
            ["train", "--out", "x", "--preset", "worst"],
            "error: --preset: got 'worst', accepted are paper, official, best",
        ),
        (["train", "--out", "x", "--preset"], "--preset: expected one argument"),
        (["train", "--out", "x", "--model.latent", "0"], "error: --model.latent: got 0, accepted is 1 to 65536"),
        (
            ["train", "--out", "x", "--train.time-steps", "1@1"],
            "error: --train.time-steps: got '1@1', accepted is a schedule that ends at T = 8",
        ),
        (["train", "--out", "x", "--checkpoint-minutes", "-1"], "error: --checkpoint-minutes: got -1.0"),
        (["train", "--out", "x", "--resume"], "x: no such folder; a run's folder"),
        (
            ["train", "--out", "x", "--data", "folder:nowhere"],
            "nowhere, accepted is a folder of images, or a table of them",
        ),
        (["train", "--out", "file/x", "--data", "digits"], "file/x: cannot make the run's folder: Not a directory"),
        (["demo", "--train", "--epochs", "0"], "epochs: got 0, accepted is at least 1"),
        (["demo", "--epochs", "3"], "epochs: got 3, accepted is a number with --train alone"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line(
    arguments: list[str],
    line: str,
    run: Path,
    tmp_path: Path,
    failed: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESVAE_FAD_DIR", raising=False)
    (tmp_path / "file").touch()
    assert line in failed(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def idx(count: int, pixels: int) -> bytes:
    return struct.pack(">4I", 0x803, count, 8, 8) + bytes(pixels)


@pytest.mark.parametrize(
    ("content", "line"),
    [(idx(40, 40 * 64 - 1), "train-images-idx3-ubyte"), (idx(40, 40 * 64 + 1), "train-images-idx3-ubyte")],
    ids=["truncated", "oversized"],
)
def test_idx_file_of_a_wrong_size(
    content: bytes, line: str, tmp_path: Path, failed: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESVAE_DATA_DIR", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(content)
    assert line in failed("train", "--data", "mnist", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_without_images(tmp_path: Path, failed: Callable[..., str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: no images" in failed("train", "--data", f"folder:{tmp_path / 'empty'}", "--out", tmp_path / "run")


SMALL = ["--model.latent", "4", "--model.mixture-components", "2", "--train.precision", "fp32"]


def test_a_folder_of_ones_own_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of mixed sizes, fewer than a batch; the run is looked at from elsewhere, too."""
    folder = image_folder(tmp_path / "home/pics", train=20, test=3)
    (folder / "test").rename(folder / "val")
    Image.new("RGBA", (9, 7)).save(folder / "train" / "odd.png")
    (folder / "notes.txt").write_text("no image")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data_of_the_run = ["--data", "folder:~/pics", "--data-background", "#102030"]
    done("train", *data_of_the_run, "--out", tmp_path / "run", "--train.min-steps", "6", *SMALL)
    out, err = capsys.readouterr()
    config = Config.from_dict(json.loads((tmp_path / "run/config.json").read_text()))
    assert (config.preset, config.data) == ("best", f"folder:{folder}?background=#102030")
    assert (config.model.channels, config.train.epochs, config.train.batch_size) == (3, 9, 21)
    (warning,) = [line for line in err.splitlines() if "warning" in line]
    assert "pics: val/ is taken as the test set; left out: 1 file (notes.txt) without" in warning
    assert "21 training images: 9 steps of 21 images, 9 epochs in all, at T = 2, 4, 8; less than a minute on" in err
    measured = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert f"mse {measured['mse']:.6f} of 3 test images; the mean training image's is" in out
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.delenv("HOME")
    done("evaluate", tmp_path / "run", "--json")
    assert json.loads(capsys.readouterr().out)["mse"] == pytest.approx(measured["mse"])
    done("generate", tmp_path / "run", "--n", "64", "--columns", "16", "--out", tmp_path / "again.png")
    with Image.open(tmp_path / "again.png") as drawn, Image.open(tmp_path / "run/samples.png") as left:
        assert (np.asarray(left)[: drawn.height] == np.asarray(drawn)).all()


def test_other_epochs_alone(tmp_path: Path, images: Path) -> None:
    """Whatever the preset's schedule and least number of steps."""
    arguments = ["--data", f"folder:{images}", "--out", tmp_path / "run", "--quiet", *SMALL, "--train.batch-size", "16"]
    done("train", *arguments, "--train.epochs", "3")
    run = Run.open(tmp_path / "run")
    assert (run.config["train"]["epochs"], run.config["train"]["min_steps"]) == (3, 0)
    assert [(r["step"], r["steps"]) for r in run.metrics() if "loss" in r] == [(2, 2), (4, 4), (6, 8)]


def test_a_background_without_a_folder(tmp_path: Path, failed: Callable[..., str]) -> None:
    line = failed("train", "--data", "digits", "--data-background", "black", "--out", tmp_path / "run")
    assert "--data-background: got black, accepted is one with folder:PATH" in line
    line = failed("train", "--data", "folder:x", "--data-background", "plaid", "--out", tmp_path / "run")
    assert "--data-background: got 'plaid', accepted is a colour by name" in line


def spoil(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize("command", ["generate", "reconstruct", "evaluate"])
@pytest.mark.parametrize(
    ("file", "change", "line"),
    [
        ("model.safetensors", lambda good: good[: len(good) // 2], "model.safetensors: is truncated or damaged"),
        ("model.safetensors", lambda good: b"\x80\x04K\x01.", "model.safetensors: is a pickle"),
        ("config.json", lambda good: good.replace(b'"latent": 4', b'"latent": 5'), "not the weights of this config"),
        ("config.json", lambda good: good.replace(b'"latent": 4', b'"latent": "4"'), "config.json: latent: got '4'"),
        ("config.json", lambda good: good[:-3], "config.json: no valid JSON"),
    ],
    ids=["truncated", "pickle", "foreign", "type", "torn-config"],
)
def test_damaged_model(
    run: Path,
    tmp_path: Path,
    command: str,
    file: str,
    change: Callable[[bytes], bytes],
    line: str,
    failed: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "model", tmp_path / "model")
    spoil(tmp_path / "model" / file, change)
    assert line in failed(command, "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("file", "change", "line"),
    [
        ("checkpoints/step-00000002/average.safetensors", lambda good: good[:-1], "average.safetensors: is truncated"),
        ("checkpoints/step-00000002/model.safetensors", lambda good: b"PK\x03\x04", "model.safetensors: is a pickle"),
        ("config.json", lambda good: good.replace(b'"latent": 4', b'"latent": 5'), "not the weights of this config"),
        ("config.json", lambda good: good.replace(b'"latent"', b'"talent"'), "model: got the unknown option 'talent'"),
    ],
    ids=["truncated", "pickle", "foreign", "unknown-option"],
)
@pytest.mark.parametrize(
    "command", [["generate"], ["train", "--resume", "--quiet", "--out"]], ids=["generate", "resume"]
)
def test_damaged_run(
    unfinished: Path,
    tmp_path: Path,
    command: list[str],
    file: str,
    change: Callable[[bytes], bytes],
    line: str,
    failed: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    spoil(unfinished / file, change)
    before = contents(tmp_path)
    assert line in failed(*command, unfinished)
    assert contents(tmp_path) == before


def nan_in(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return tensors | {name: torch.full_like(tensors[name], torch.nan)}


@pytest.mark.parametrize("command", ["generate", "reconstruct", "evaluate", "robustness", "classify", "energy"])
def test_weights_that_are_no_numbers(command: str, run: Path, tmp_path: Path, failed: Callable[..., str]) -> None:
    """Figures came of them: neurons of NaN are silent."""
    shutil.copytree(run / "model", tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file(nan_in(load_file(file), "from_latent.transform.weight"), file)
    line = failed(command, tmp_path / "model")
    assert (
        line
        == f"esvae: error: {file}: 'from_latent.transform.weight' holds NaN or infinity, accepted are finite numbers"
    )


@pytest.mark.parametrize("command", [["generate"], ["train", "--resume", "--quiet", "--out"]])
@pytest.mark.parametrize("part", ["model", "average"])
def test_a_checkpoint_of_weights_that_are_no_numbers(
    command: list[str], part: str, unfinished: Path, failed: Callable[..., str]
) -> None:
    run = Run.open(unfinished)
    parts, state = run.load()
    shutil.rmtree(run.latest())
    run.save(state["step"], parts | {part: nan_in(parts[part], "to_image.bias")}, state)
    if (command, part) == (["generate"], "model"):  # it draws from the average
        assert main([*command, str(unfinished), "--n", "1", "--out", str(unfinished / "x.png")]) == 0
    else:
        assert f"{part}: 'to_image.bias' holds NaN or infinity" in failed(*command, unfinished)


def test_run_without_a_checkpoint(unfinished: Path, failed: Callable[..., str]) -> None:
    Run.open(unfinished).cut(-1)
    assert "has no checkpoint yet" in failed("generate", unfinished)


@pytest.mark.parametrize("out", ["x.png", "x.npz", "x"])
def test_full_disk_leaves_what_was_there(
    run: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.png", "x.npz"):
        (tmp_path / name).write_bytes(b"good")
    before = contents(tmp_path)
    with full_disk(256):
        assert main(["generate", str(run), "--n", "4", "--out", out]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"esvae: error: {out}: cannot be written: File too large"
    assert contents(tmp_path) == before
    assert not (tmp_path / "x").exists()


def test_existing_file_is_replaced_and_existing_folder_is_not(
    run: Path, tmp_path: Path, failed: Callable[..., str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"old")
    done("generate", run, "--n", 1, "--out", tmp_path / "x.png")
    Image.open(tmp_path / "x.png").verify()
    (tmp_path / "x").mkdir()
    assert "exists already" in failed("generate", run, "--n", 1, "--out", tmp_path / "x")
