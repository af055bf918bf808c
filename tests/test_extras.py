"""What esvae needs, and when: help and version Python alone, `info` and the networks no extra, all else `model`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import esvae
from esvae import extras
from esvae.cli import COMMANDS, commands, main
from esvae.cli import info as cli_info
from esvae.data import SOURCES
from esvae_kernels import info as kernels

ROOT = Path(__file__).resolve().parent.parent
BLOCKED = ("tyro", "rich", "pooch", "PIL", "huggingface_hub", "safetensors", "sklearn", "matplotlib", "tensorboard")
BLOCK = f"import sys\nfor name in {BLOCKED}:\n    sys.modules[name] = None\n"  # what imports them gets an ImportError
NAMED = "esvae: error: this needs tyro: pip install 'esvae[model]'"


def python(program: str, *before: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*before, ROOT]))}
    return subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)


def installation(folder: Path, *requirements: str) -> Path:
    """A folder for the head of sys.path, where esvae is installed with these requirements."""
    metadata = folder / "esvae-9.8.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: esvae", "Version: 9.8", *(f"Requires-Dist: {r}" for r in requirements)]
    metadata.write_text("\n".join(lines) + "\n")
    return folder


def test_every_command_of_the_overview_runs() -> None:
    assert [*commands.RUN, "info"] == [*COMMANDS]


def test_help_and_version_import_no_packages() -> None:
    """What they take is the start of Python; the imports are what would slow them down."""
    program = """
import sys
before = set(sys.modules)
from esvae.cli import main
codes = [main([]), main(["--help"]), main(["--version"]), main(["paint"])]
assert codes == [2, 0, 0, 2], codes
loaded = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
assert loaded == {"esvae"}, loaded
try:
    main(["train", "--preset", "best", "--help"])
except SystemExit:
    pass
assert "tyro" in sys.modules
assert "torch" not in sys.modules
assert "numpy" not in sys.modules
"""
    done = python(program)
    assert done.returncode == 0, done.stderr
    version = importlib.metadata.version("esvae")
    assert f"\nesvae {version}\n" in done.stdout
    assert done.stdout.count("usage: esvae COMMAND") == 2


def test_what_is_imported_when_asked_for_is_named() -> None:
    assert {"ESVAE", "load_official_state_dict", "data"} <= set(dir(esvae))
    with pytest.raises(AttributeError, match="module 'esvae' has no attribute 'VAE'"):
        _ = esvae.VAE


# -------------------------------------------------------------------------------------------------------------- extras


def test_packages_of_the_extras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (
        "torch>=2.10",
        'pytest>=8; extra == "test"',
        "esvae[model]; extra == 'test'",
        'nothere>=1; extra == "test"',
    )
    monkeypatch.syspath_prepend(installation(tmp_path, *asked, 'gone-too; os_name == "nt" and extra == "model"'))
    assert extras.requirements() == {"test": ["pytest", "nothere"], "model": ["gone-too"]}
    assert extras.missing("test") == ["nothere"]
    assert extras.missing("unknown") == []


@pytest.mark.parametrize("command", ["generate", "train", "demo"])
def test_a_command_without_the_extra_is_one_line(command: str) -> None:
    done = python(f"{BLOCK}from esvae.cli import main\nsys.exit(main([{command!r}]))")
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [NAMED])


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    """By the installed metadata: not one after the other, as each is installed."""
    there = installation(tmp_path, *(f'{name}; extra == "model"' for name in ("absent-one", "rich", "absent-two")))
    done = python(f"{BLOCK}from esvae.cli import main\nsys.exit(main(['demo']))", there)
    assert done.stderr.splitlines() == [
        "esvae: error: this needs absent-one, absent-two: pip install 'esvae[model]'",
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "from esvae import load_official_state_dict",
        "from esvae import data",
        "import esvae.checkpoint",
        "import esvae.figures",
        "import esvae.train",
        "ESVAE.from_pretrained('fashion-mnist')",
        "ESVAE(latent=4).save_pretrained('folder')",
        "ESVAE(latent=4).push_to_hub('someone/model')",
        "ESVAE(latent=4, prior='mixture').mixture.fit(torch.rand(9, 4), seed=0)",
    ],
)
def test_what_needs_the_extra_says_what_to_install(statement: str) -> None:
    done = python(f"{BLOCK}import torch\nfrom esvae import ESVAE\n{statement}")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith("esvae.extras.MissingExtra: this needs ")
    assert line.endswith(": pip install 'esvae[model]'")


def test_networks_run_and_learn_without_the_extra() -> None:
    program = """
import torch
from esvae.config import TrainConfig
from esvae.models import MODELS

config, images, seed = TrainConfig(), torch.rand(2, 1, 32, 32) * 2 - 1, 0
for kind, make in MODELS.items():
    model = make(latent=4, steps=1 if kind == "vae" else 2)
    assert model.generate(3, seed=seed).shape == (3, 1, 32, 32)
    if kind == "gan":
        continue
    optimizer = torch.optim.AdamW(model.parameter_groups(config))
    model.loss(model(images, seed=seed), images, config)["loss"].backward()
    before = model.to_image.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model.to_image.weight, before), kind
"""
    done = python(BLOCK + program)
    assert done.returncode == 0, done.stderr


def test_a_missing_module_of_ours_is_no_missing_extra() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"esvae_kernels\.nothere"), extras.needed("model"):
        import esvae_kernels.nothere  # noqa: F401


# ---------------------------------------------------------------------------------------------------------------- info


def test_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in os.environ if name.startswith("ESVAE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ESVAE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ESVAE_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "mnist").mkdir()
    for split in ("train", "t10k"):
        (tmp_path / "mnist" / f"{split}-images-idx3-ubyte").touch()
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found)[: len(kernels.lines())] == [label for label, _ in kernels.lines()]
    assert found["torch"].startswith(torch.__version__)
    assert found["backend reference"] == "runs"
    assert list(found)[-2:] == ["ESVAE_CACHE_DIR", "ESVAE_DATA_DIR"]
    assert found["ESVAE_DATA_DIR"] == str(tmp_path)
    assert found["data mnist"] == f"found in {tmp_path / 'mnist'}"
    assert found["data cifar10"].startswith(f"not found in {tmp_path / 'cifar-10-batches-bin'}, {tmp_path}, ")
    assert found["data celeba"] == f"not found in {tmp_path / 'celeba'}"
    assert {f"data {name}" for name in SOURCES} - set(found) == {"data digits", "data folder"}
    assert f"pytest {importlib.metadata.version('pytest')}" in found["extra test"]
    assert found["cache"] == f"{tmp_path / 'cache'}, not there yet"

    (tmp_path / "cache" / "images").mkdir(parents=True)
    (tmp_path / "cache" / "images" / "x").write_bytes(bytes(3 << 20))
    assert main(["info"]) == 0
    rows = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    printed = {label: value.strip() for label, _, value in rows}
    assert printed == found | {"cache": f"{tmp_path / 'cache'}, 3.0 MiB"}
    assert len({len(label) + len(value) - len(value.lstrip()) for label, _, value in rows}) == 1  # aligned


def test_info_names_a_folder_of_data_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESVAE_DATA_DIR", str(tmp_path / "none"))
    found = dict(cli_info.lines())
    assert found["data mnist"].startswith("ESVAE_DATA_DIR: got ")


def test_info_needs_no_extra() -> None:
    done = python(f"{BLOCK}from esvae.cli import main\nsys.exit(main(['info']))")
    assert done.returncode == 0, done.stderr
    assert "\ntorch: " in done.stdout
    assert "pip install 'esvae[model]'" in done.stdout


def test_mistake_in_info_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--yaml"]) == 2
    assert capsys.readouterr().err == ("esvae: error: unrecognized arguments: --yaml; see esvae info --help\n")
    with pytest.raises(SystemExit):
        main(["info", "--help"])
    assert "Example: esvae info" in capsys.readouterr().out
