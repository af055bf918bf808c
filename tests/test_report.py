"""The report: from runs of every kind, end to end; what is kept and when it is measured again; what cannot be measured
is named; figures over runs; the page stands alone."""

from __future__ import annotations

import dataclasses
import html
import io
import json
import math
import re
import shlex
import shutil
import statistics
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_helpers import TINY, contents

from esvae import ESVAE, data, train
from esvae.cli import main
from esvae.config import preset
from esvae.errors import InputError
from esvae.evaluate import load_for
from esvae.generate import load_model
from esvae.models import FSVAE, MODELS, Model
from esvae.rates import rate_histograms, rates
from esvae.report import ANALYSES, SECTIONS, Settings, command_line, report
from esvae.report.drawings import fig5, rendered
from esvae.report.measure import Results, Subject, systems
from esvae.report.pictures import pack, unpack
from esvae.report.section import Section, Table, Value
from esvae.report.tables import table1, table2, table3, table4, table5
from esvae_kernels.nn import BNLIF

SIZES = {"train": 40, "test": 20}
SMALL = ("--model.latent", "4", "--train.batch-size", "16", "--train.epochs", "2", "--train.precision", "fp32")
OPTIONS = {
    "best": [*TINY],
    "best-again": [*TINY, "--train.seed", "1"],
    "fsvae": ["--model.steps", "2", "--model.branches", "2", *SMALL],
    "vae": [*SMALL],
    "gan": ["--model.steps", "2", *SMALL],
}
MADE = [what for what in SECTIONS if what != "table5"]
QUICK = ("--classifier-epochs", "2")
QUICKLY = {"classifier_epochs": 2, "images": SIZES["test"]}


@pytest.fixture(scope="module", autouse=True)
def quick_statistics() -> Iterator[None]:
    """tdBN takes over the statistics of each batch at once: after four steps at the usual momentum no neuron fires. And
    no learning curve is drawn, a quarter of the time of a training."""

    def quick(kind: type[Model]) -> type[Model]:
        class Quick(kind):
            def __init__(self, **options: Any) -> None:
                super().__init__(**options)
                for module in self.modules():
                    if isinstance(module, BNLIF):
                        module.momentum = 1.0

        return Quick

    with pytest.MonkeyPatch.context() as patch:
        for name, kind in list(MODELS.items()):
            patch.setitem(MODELS, name, quick(kind))
        patch.setattr(train.figures, "learning_curve", lambda records, path, **about: None)
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digits as an image folder with a folder for each class."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    for split, count in SIZES.items():
        loaded = data.load("digits", split, size=8, labels=True)
        for index in range(count):
            path = folder / split / str(int(loaded.labels[index])) / f"{index:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(loaded.pixels[index, 0].numpy()).save(path)
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, images: str) -> dict[str, Path]:
    """A run of each kind, and of one of them another seed."""
    folder, runs = tmp_path_factory.mktemp("runs"), {}
    for name, options in OPTIONS.items():
        runs[name] = folder / name
        preset = name.partition("-")[0]
        assert main(["train", "--preset", preset, "--data", images, "--out", str(runs[name]), "--quiet", *options]) == 0
    return runs


@pytest.fixture
def runs(trained: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Copies, without what reports have left in them."""
    for name, folder in trained.items():
        shutil.copytree(folder, tmp_path / name, ignore=shutil.ignore_patterns("report"))
    return {name: tmp_path / name for name in trained}


@pytest.fixture(scope="module")
def whole(trained: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """`report all` on a run of every kind: the folder, and what was said on stderr."""
    out, said = tmp_path_factory.mktemp("reports") / "report", []
    settings = Settings(**QUICKLY)
    report("all", list(trained.values()), out, command="esvae report all", settings=settings, say=said.append)
    return out, said


def table_rows(out: Path, what: str, table: int = 0) -> dict[str, dict[str, Any]]:
    """Rows of a table that were measured, by system."""
    found = json.loads((out / f"{what}.json").read_text())["tables"][table]
    return {r["system"]: r for r, ours in zip(found["rows"], found["measured_here"], strict=True) if ours}


# -------------------------------------------------------------------------------------------------------- end to end


class TestAllOfEveryKind:
    def test_files(self, whole: tuple[Path, list[str]]) -> None:
        """Of attention modules nothing, since no run has one."""
        expected = {f"{what}.{suffix}" for what in MADE for suffix in ("md", "json")} | {"report.html", "report.md"}
        expected |= {f"{what}.{s}" for what in MADE if not what.startswith("table") for s in ("png", "svg")}
        assert {path.name for path in whole[0].iterdir()} == expected

    def test_systems_are_rows_and_seeds_are_spread(
        self, whole: tuple[Path, list[str]], trained: dict[str, Path]
    ) -> None:
        rows = table_rows(whole[0], "table1")
        assert set(rows) == {
            *(f"ESVAE, preset best, {prior} prior" for prior in ("mixture", "bottleneck")),
            *("FSVAE", "ANN VAE", "spiking GAN"),
        }
        errors = [
            json.loads((trained[name] / "report" / "evaluate.json").read_text())["result"]["mse"]
            for name in ("best", "best-again")
        ]
        found = rows["ESVAE, preset best, mixture prior"]["MSE ↓"]
        assert found["values"] == errors
        assert found["mean"] == pytest.approx(statistics.mean(errors))
        assert found["sd"] == pytest.approx(statistics.stdev(errors))
        assert rows["spiking GAN"] == {
            "system": "spiking GAN",
            "weights and protocol": "not measured, see below",
            "MSE ↓": None,
        }
        protocol = rows["ESVAE, preset best, mixture prior"]["weights and protocol"]
        assert protocol.startswith("last epoch of 2 (64 images seen), 2 runs; ")

    def test_what_a_kind_lacks_is_named_once(self, whole: tuple[Path, list[str]], trained: dict[str, Path]) -> None:
        out, said = whole
        lacking = {
            ("gan", "evaluate"),
            ("gan", "robustness"),
            ("gan", "classify"),
            ("gan", "rates"),
            ("vae", "robustness"),
            ("vae", "rates"),
        }
        for kind, analysis in lacking:
            (line,) = [text for text in said if text.startswith(f"{trained[kind]}: no {analysis}: ")]
            assert ("no FAD" if analysis == "evaluate" else f"kind: got {kind!r}") in line
            assert "\n" not in line
        missing = json.loads((out / "table2.json").read_text())["not_measured"]
        assert set(missing) == {f"robustness of {trained[kind]}" for kind in ("vae", "gan")}
        missing = json.loads((out / "table1.json").read_text())["not_measured"]
        assert "no FAD" in missing["fad of digits (image folder)"]
        assert len(said) == len(lacking)

    def test_epochs(self, whole: tuple[Path, list[str]]) -> None:
        drawn = json.loads((whole[0] / "fig7.json").read_text())["data"]
        assert len(drawn) == 2  # ESVAE and FSVAE
        for records in drawn.values():
            assert [r["epoch"] for r in records] == [0, 1]
            for r in records:
                assert len(r["rate_histogram"]) == len(r["prior_rate_histogram"]) == r["steps"] + 1
                assert sum(r["rate_histogram"]) == sum(r["prior_rate_histogram"]) == SIZES["test"] * 4

    def test_markdown_has_every_row(self, whole: tuple[Path, list[str]]) -> None:
        text = (whole[0] / "table3.md").read_text()
        for name in ("ESVAE, preset best", "FSVAE", "ANN VAE", "spiking GAN"):
            assert f"| **{name}** |" in text

    @pytest.mark.parametrize("what", [what for what in SECTIONS if not what.startswith("table")])
    def test_drawings_are_not_clipped(self, whole: tuple[Path, list[str]], what: str) -> None:
        page = np.asarray(Image.open(whole[0] / f"{what}.png").convert("L"))
        assert all((edge == 255).all() for edge in (page[:2], page[-2:], page[:, :2], page[:, -2:]))
        assert (page < 255).mean() > 0.005
        assert page.shape[1] == 1500

    def test_index_leads_to_every_section(self, whole: tuple[Path, list[str]]) -> None:
        text = (whole[0] / "report.md").read_text()
        assert re.findall(r"\]\((\w+)\.md\)", text) == MADE
        assert "--model.latent 4 --train.epochs 2 --train.batch-size 16" in text
        assert re.search(r"```sh\n(esvae train --preset .* --out .*\n){5}esvae report all\n```", text)
        assert "--train.seed 1" in text  # in the command of one run, and in no row
        assert (whole[0] / "table1.md").read_text().endswith("\n[All sections](report.md)\n")

    def test_page_stands_alone(self, whole: tuple[Path, list[str]]) -> None:
        text = (whole[0] / "report.html").read_text()
        parser = Parsed()
        parser.feed(text)
        assert parser.open == []
        assert "script" not in parser.tags
        assert "link" not in parser.tags
        assert all(source.startswith("data:image/png;base64,") for source in parser.sources)
        assert len(parser.sources) == 6
        assert {link.removeprefix("#") for link in parser.links} == {*MADE, "reproduce"}
        assert set(MADE) <= parser.ids
        assert all(image.get("alt") for image in parser.images)
        assert "--model.latent 4 --train.epochs 2 --train.batch-size 16" in parser.text
        assert parser.text.count("--train.seed") == 1

    def test_of_one_s_own_folder_nothing_is_published(self, whole: tuple[Path, list[str]]) -> None:
        """No row, no note, no title, no column without a figure."""
        texts = {what: (whole[0] / f"{what}.md").read_text() for what in ("report", *MADE)}
        for what, text in texts.items():
            text = re.sub("- not measured: .*|published code", "", text)
            assert "published" not in text, what
            assert not re.search("SWGAN (spiking|\\()|Table III alone|clean-fid|cites", text), what
        parser = Parsed()
        parser.feed((whole[0] / "report.html").read_text())
        assert "published figures" not in parser.text
        assert "Table V" not in parser.text
        for what in (what for what in MADE if what.startswith("table")):
            for table in json.loads((whole[0] / f"{what}.json").read_text())["tables"]:
                assert all(table["measured_here"])
                for column in table["rows"][0]:
                    assert any(row[column] is not None for row in table["rows"]), (what, column)
        assert len(json.loads((whole[0] / "table3.json").read_text())["tables"]) == 1  # the formula is for Table III


def test_the_page_speaks_of_what_is_there(runs: dict[str, Path], tmp_path: Path) -> None:
    make("table1", [runs["best"]], tmp_path / "best")
    text = html.unescape((tmp_path / "best" / "table1.html").read_text())
    for word in ("mixture", "bottleneck", "Preset best", "nobody knows the spread over seeds"):
        assert word in text, word
    for word in ("FSVAE", "ANN VAE", "GAN", "Preset paper", "Preset official", "autoregressive", "published models"):
        assert word not in text, word
    make("table1", [runs["vae"], runs["gan"]], tmp_path / "others")
    text = html.unescape((tmp_path / "others" / "table1.html").read_text())
    for word in ("The ANN VAE is the same without spikes", "with the GAN's critic", "The VAE's is a normal"):
        assert word in text, word
    for word in ("mixture", "bottleneck", "Preset best", "FSVAE"):
        assert word not in text, word


class Parsed(HTMLParser):
    """Which tags there are, whether each is closed, and what they refer to."""

    VOID = ("meta", "img", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self.ids |= {found["id"]} if "id" in found else set()
        if tag == "a":
            self.links.append(found["href"])
        if "src" in found:
            self.sources.append(found["src"])
        if tag == "img":
            self.images.append(found)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_command_line(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """By default into the first run's folder; the page has the command."""
    assert main(["report", "table4", str(runs["vae"]), str(runs["fsvae"]), *QUICK]) == 0
    out = runs["vae"] / "report"
    printed = capsys.readouterr().out.splitlines()
    assert printed == [str(out / name) for name in ("table4.md", "table4.json", "table4.html")]
    assert set(table_rows(out, "table4")) == {"ANN VAE", "FSVAE"}
    command = command_line("table4", [runs["vae"], runs["fsvae"]], {"out": out, "classifier_epochs": 2})
    assert html.escape(command) in (out / "table4.html").read_text()
    assert command.endswith("--classifier-epochs 2")


# --------------------------------------------------------------------------------------------------------- what is kept


def make(
    what: str,
    folders: list[Path],
    out: Path,
    said: list[str] | None = None,
    data: str | None = None,
    **settings: Any,
) -> None:
    say = (said if said is not None else []).append
    report(what, folders, out, command="", settings=Settings(**QUICKLY | settings), data=data, say=say)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(context: Any) -> None:
        raise AssertionError("measured again")

    for name, analysis in ANALYSES.items():
        monkeypatch.setitem(ANALYSES, name, analysis._replace(run=called))


def test_what_is_kept_is_not_measured_again(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("table3", [runs["gan"]], tmp_path / "one")
    forbid(monkeypatch)
    make("table3", [runs["gan"]], tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for change in ({"seed": 1}, {"images": 7}, {"precision": "bf16"}):
        with pytest.raises(AssertionError, match="measured again"):
            make("table3", [runs["gan"]], tmp_path / "three", **change)


def test_other_weights_are_measured(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("table3", [runs["vae"]], tmp_path / "one")
    model = load_model(runs["vae"]).model
    model.to_image.bias.data += 1
    model.save_pretrained(runs["vae"] / "model")
    forbid(monkeypatch)
    with pytest.raises(AssertionError, match="measured again"):
        make("table3", [runs["vae"]], tmp_path / "two")


@pytest.mark.few(1)
@pytest.mark.parametrize("damage", ["cut", "edited"])
def test_a_damaged_result_is_measured_again(runs: dict[str, Path], tmp_path: Path, damage: str) -> None:
    make("table3", [runs["gan"]], tmp_path / "one")
    kept = runs["gan"] / "report" / "energy.json"
    good = kept.read_bytes()
    if damage == "cut":
        kept.write_bytes(good[: len(good) // 2])
    else:
        content = json.loads(good)
        content["result"]["images"] += 1
        kept.write_text(json.dumps(content))
    make("table3", [runs["gan"]], tmp_path / "two")
    assert kept.read_bytes() == good
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_model_without_a_run(runs: dict[str, Path], tmp_path: Path, images: str) -> None:
    """A folder with weights and config alone: on the data that are asked for."""
    with pytest.raises(InputError, match="accepted is --data NAME"):
        make("table3", [runs["fsvae"] / "model"], tmp_path / "out")
    settings = Settings(images=5)
    report("table3", [runs["fsvae"] / "model"], tmp_path / "out", command="", settings=settings, data=images)
    assert set(table_rows(tmp_path / "out", "table3")) == {"FSVAE"}


def test_other_images_behind_the_same_name_are_measured(
    runs: dict[str, Path], images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where there are none, what is kept is taken."""
    copy = tmp_path / "images"
    shutil.copytree(images.removeprefix("folder:"), copy)

    def error() -> float:
        make("table2", [runs["best"]], tmp_path / "out", data=f"folder:{copy}")
        name = "ESVAE, preset best, trained on digits (image folder)"
        return table_rows(tmp_path / "out", "table2")[name]["vs original ↓"]["mean"]

    first = error()
    for path in (copy / "test").rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    second = error()
    assert second != first
    shutil.rmtree(copy)
    assert error() == second


def test_what_failed_for_a_passing_reason_is_tried_again(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"images": 1, "steps": 2, "not_measured": {"fad_own": "the cache cannot be written to"}}
    monkeypatch.setattr("esvae.evaluate.evaluate", lambda *args, **options: dict(found))
    subject = Subject.open(runs["gan"], None, "cpu")
    assert Results(Settings(), print).get(subject, "evaluate") == found  # not asked for: kept
    asked = Settings(own_features=True)
    assert Results(asked, print).get(subject, "evaluate") == found
    found["not_measured"] = {}
    assert Results(asked, print).get(subject, "evaluate") == found
    found["not_measured"] = {"fad": "by the way"}
    assert Results(asked, print).get(subject, "evaluate")["not_measured"] == {}


# -------------------------------------------------------------------------------------------------------- what is wrong


def test_a_bad_run_leaves_the_others(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(runs["vae"] / "config.json", half)
    folders = [tmp_path / "nowhere", half, runs["vae"], runs["vae"]]
    assert main(["report", "table4", *map(str, folders), "--out", str(tmp_path / "out"), *QUICK]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": not in the report: ")[0] for line in lines] == [str(tmp_path / "nowhere"), str(half)]
    text = (tmp_path / "out" / "table4.html").read_text()
    assert "no such folder" in text
    assert "has no checkpoint yet" in text
    assert set(table_rows(tmp_path / "out", "table4")) == {"ANN VAE"}


def test_the_same_weights_count_once(runs: dict[str, Path], tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(runs["gan"], copied)
    said: list[str] = []
    make("table3", [runs["gan"], copied], tmp_path / "out", said)
    assert said == [f"{copied}: not in the report: has the weights of {runs['gan']}, and counts once"]
    assert table_rows(tmp_path / "out", "table3")["spiking GAN"]["firing rate, all neurons"]["n"] == 1


def test_data_that_are_gone(runs: dict[str, Path], tmp_path: Path) -> None:
    """What needs no data is measured."""
    for name in ("gan", "vae"):
        config = json.loads((runs[name] / "config.json").read_text())
        config["data"] = f"folder:{tmp_path / 'gone'}"
        (runs[name] / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    make("table3", [runs["gan"], runs["vae"]], tmp_path / "out", said)
    assert set(table_rows(tmp_path / "out", "table3")) == {"spiking GAN"}
    (line,) = said
    assert line.startswith(f"{runs['vae']}: no energy: ")
    missing = json.loads((tmp_path / "out" / "table3.json").read_text())["not_measured"]
    assert list(missing) == [f"energy of {runs['vae']}"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["table9", "RUN"], "table9"),
        (["table1"], "RUN"),
        (["table1", "nowhere"], "nowhere: no such folder"),
        (["table3", "RUN", "--images", "0"], "images: got 0, accepted is at least 1"),
        (["table4", "RUN", "--classifier-epochs", "0"], "--classifier-epochs: got 0"),
        (["table3", "RUN", "--out", "RUN/config.json"], "config.json"),
    ],
    ids=["what", "no-run", "nowhere", "images", "epochs", "out"],
)
def test_mistakes(
    arguments: list[str], line: str, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(trained["gan"])
    assert main(["report", *(argument.replace("RUN", run) for argument in arguments)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert line in err


def test_more_images_than_there_are(runs: dict[str, Path], tmp_path: Path) -> None:
    said: list[str] = []
    make("table3", [runs["vae"]], tmp_path / "out", said, images=10**6)
    assert said[0].startswith(f"{runs['vae']}: no energy: images: got 1000000, accepted are 1 to {SIZES['test']}")


def test_a_folder_that_cannot_be_written_to_is_told(runs: dict[str, Path], tmp_path: Path) -> None:
    (runs["gan"] / "report").write_text("a file in the way")
    said: list[str] = []
    make("table3", [runs["gan"]], tmp_path / "out", said)
    assert len(said) == 1
    assert "energy is not kept" in said[0]
    assert set(table_rows(tmp_path / "out", "table3")) == {"spiking GAN"}


def test_unfinished_run_is_a_row_of_its_own(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.rmtree(runs["best-again"] / "model")
    make("table3", [runs["best"], runs["best-again"]], tmp_path / "out")
    assert set(table_rows(tmp_path / "out", "table3")) == {"ESVAE, preset best", "ESVAE, preset best, unfinished"}


@pytest.mark.slow
def test_names_tell_runs_apart(runs: dict[str, Path], images: str, tmp_path: Path) -> None:
    other = tmp_path / "wide"
    options = [*TINY, "--model.latent", "5"]
    assert main(["train", "--preset", "best", "--data", images, "--out", str(other), "--quiet", *options]) == 0
    subjects = [Subject.open(folder, None, "cpu") for folder in (runs["best"], other, runs["best-again"])]
    names = {system.name: len(system.subjects) for system in systems(subjects)}
    assert names == {"ESVAE, preset best, latent 4": 2, "ESVAE, preset best, latent 5": 1}


@pytest.mark.slow
def test_runs_of_other_data_or_of_one_seed_are_no_spread(runs: dict[str, Path], images: str, tmp_path: Path) -> None:
    """Both would be called training seeds; `--data` has runs of any data set measured on one."""
    copy = tmp_path / "copy"
    shutil.copytree(images.removeprefix("folder:"), copy)
    options = ["--preset", "best", "--quiet", *TINY]
    for name, folder in (("elsewhere", f"folder:{copy}"), ("once-more", images)):
        assert main(["train", "--data", folder, "--out", str(tmp_path / name), *options]) == 0
    model = load_model(tmp_path / "once-more").model
    model.to_image.bias.data += 1  # the same seed, other weights
    model.save_pretrained(tmp_path / "once-more" / "model")
    elsewhere = tmp_path / "elsewhere" / "model" / "model.safetensors"
    shutil.copy(tmp_path / "once-more" / "model" / "model.safetensors", elsewhere)
    folders = [runs["best"], runs["best-again"], tmp_path / "elsewhere", tmp_path / "once-more"]
    names = {s.name: len(s.subjects) for s in systems(Subject.open(f, images, "cpu") for f in folders)}
    assert names == {
        f"ESVAE, preset best ({runs['best']})": 2,
        f"ESVAE, preset best ({tmp_path / 'once-more'})": 1,
        "ESVAE, preset best, trained on copy (image folder)": 1,
    }


@pytest.mark.slow
def test_changes_are_what_the_command_line_takes(images: str, tmp_path: Path) -> None:
    """Those of every type: a run that is trained by them is the same."""
    options = [*TINY, "--model.no-strict", "--model.detach-reset", "--train.time-steps", "", "--train.lr", "0.02"]
    arguments = ["train", "--preset", "best", "--data", images, "--quiet", *options]
    assert main([*arguments, "--out", str(tmp_path / "one")]) == 0
    subject = Subject.open(tmp_path / "one", None, "cpu")
    found = subject.options_text(seed=True)
    assert "--model.detach-reset" in found
    assert "--train.time-steps ''" in found
    again = ["train", "--data", images, "--quiet", *shlex.split(found), "--out", str(tmp_path / "two")]
    assert main(again) == 0
    assert (tmp_path / "one" / "config.json").read_bytes() == (tmp_path / "two" / "config.json").read_bytes()


def test_what_a_network_measured_is_kept_without_it(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"images": 1, "steps": 2, "fad_own": 3.0, "not_measured": {}}
    monkeypatch.setattr("esvae.evaluate.evaluate", lambda *args, **options: dict(found))
    subject = Subject.open(runs["gan"], None, "cpu")
    assert Results(Settings(own_features=True), print).get(subject, "evaluate") == found
    forbid(monkeypatch)
    assert Results(Settings(), print).get(subject, "evaluate") == found


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "change",
    [
        {"epoch": "q"},
        {"steps": True},
        *({"rate_histogram": bad} for bad in ("abc", [], [0, 0, 0], [1, -1, 2], [1, 2.5, 1], [1, None], [10**400, 1])),
    ],
    ids=lambda change: str(change)[:40],
)
def test_edited_records_of_rates_are_not_drawn(runs: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    records = [json.loads(line) for line in (runs["best"] / "metrics.jsonl").read_text().splitlines()]
    edited = "".join(json.dumps(r | change if "rate_histogram" in r else r) + "\n" for r in records)
    (runs["best"] / "metrics.jsonl").write_text(edited)
    make("fig7", [runs["best"]], tmp_path / "out")
    missing = json.loads((tmp_path / "out" / "fig7.json").read_text())["not_measured"]
    assert missing == {"ESVAE, preset best": "its training recorded no firing rates"}


def test_text_from_outside_is_only_text(runs: dict[str, Path], tmp_path: Path) -> None:
    evil = tmp_path / "<script>alert(1)<|script>"
    shutil.move(runs["gan"], evil)
    make("table3", [evil], tmp_path / "out")
    make("table2", [evil], tmp_path / "out")
    assert "<script" not in (tmp_path / "out" / "table3.html").read_text()
    text = (tmp_path / "out" / "table2.md").read_text()
    assert "&lt;script>alert(1)&lt;\\|script>" in text


@pytest.mark.parametrize("content", ['{"step": 1}\n', '{"step": 1}\nno JSON\n{"step": 2}\n'])
def test_damaged_records_of_training_cost_their_figures_alone(
    runs: dict[str, Path], tmp_path: Path, content: str
) -> None:
    (runs["best"] / "metrics.jsonl").write_text(content)
    make("table3", [runs["best"]], tmp_path / "out")
    assert set(table_rows(tmp_path / "out", "table3")) == {"ESVAE, preset best"}


def test_a_mistyped_run_is_no_place_for_the_report(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "table2", str(tmp_path / "typo"), str(runs["gan"])]) == 2
    assert "typo: no such folder; without --out" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()


# ------------------------------------------------------------------------------------------------ the published figures


class Given(Results):
    """Results that need no run."""

    def __init__(self, results: dict[str, dict[str, Any]]) -> None:
        super().__init__(Settings(), say=lambda line: None)
        self.results = results

    def get(self, subject: Subject, analysis: str, prior: str | None = None) -> dict[str, Any]:
        if analysis not in self.results:
            raise InputError("no such thing")
        return self.results[analysis]


def members(name: str = "fashion-mnist") -> list:
    """A system of a model that nobody trained."""
    return systems([Subject(Path("run"), ESVAE(latent=4).eval(), None, name, "0" * 64, [])])


def measured(section: Section, table: int = 0) -> tuple[dict[str, list], dict[str, list]]:
    """Rows by system: ours, published."""
    found = section.tables[table]
    ours = {row[0]: row for row, own in zip(found.rows, found.ours, strict=True) if own}
    return ours, {row[0]: row for row, own in zip(found.rows, found.ours, strict=True) if not own}


def test_quality_beside_the_published_rows() -> None:
    figures = {"fid": 30.0, "fid_floor": 3.0, "inception_score": 4.0, "fad_paper": 5.0, "fad_paper_floor": 0.9}
    about = {"images": 10_000, "steps": 16, "mse": 0.02, "fid_implementation": "pytorch-fid", "fad_eval": 12.0}
    section = table1(members(), Given({"evaluate": figures | about}))
    ours, theirs = measured(section)
    assert {"ANN VAE", "FSVAE", "ESVAE", "SGAD (spiking GAN)", "FSDDIM, T = 8"} <= set(theirs)
    columns = section.tables[0].columns
    row = dict(zip(columns, map(str, theirs["ESVAE"]), strict=True))
    assert (row["MSE ↓"], row["FAD ↓"], row["FID ↓"]) == ("0.019", "11.13", "125.30 (clean-fid)")
    assert row["IS ↑"] == "6.227 (values in 0..255)"
    assert "best epoch of each measure" in row["weights and protocol"]
    row = dict(zip(columns, map(str, ours["ESVAE"]), strict=True))
    assert (row["MSE ↓"], row["FAD ↓"], row["FID ↓"]) == ("0.0200", "5.00", "30.00 (pytorch-fid)")
    assert row["IS ↑"] == "4.000 (standard)"
    assert str(ours["real training images"][3]) == "0.90"
    assert section.tables[1].columns == ["system", "fad_eval ↓"]  # columns without a figure are left out


def test_every_table_without_any_result_still_has_the_published_rows() -> None:
    for made, name in ((table1, "mnist"), (table2, "mnist"), (table3, "mnist"), (table4, "mnist"), (table5, "cifar10")):
        section = made(members(name), Given({}))
        theirs = [own for table in section.tables for own in table.ours]
        assert theirs.count(False) >= 2, section.what
        assert section.missing
        for text in (section.markdown(), json.dumps(section.to_json())):
            assert "no" in text


def energies() -> dict[str, Any]:
    """What `energy` returned before the ratio with updates was in it."""
    part = {
        **{"synaptic_operations": 1e6, "macs": 1e5, "energy_uj": 4.0, "twin_energy_uj": 10.0, "energy_ratio": 0.4},
        **{"energy_range_uj": [4.0, 4.0], "firing_rate": 0.1, "neuron_updates_uj": 1.0},
    }
    formula = {"additions": 1.0, "multiplications": 1.0, "firing_rate": 0.1, "energy_j": 1.0}
    return {"images": 3, "encode": part, "generate": part, "paper_formula": formula}


def test_the_ratio_to_the_twin_without_and_with_updates_of_neurons() -> None:
    section = table3(members("digits"), Given({"energy": energies()}))
    (table,) = section.tables
    for row in table.rows:
        cells = dict(zip(table.columns, map(str, row), strict=True))
        assert (cells["ratio ↓"], cells["updates, µJ"], cells["ratio with updates ↓"]) == ("0.40", "1.00", "0.50")
    assert "updates of the neurons" in section.notes[0]
    assert "formula" not in section.markdown()


def test_the_formula_stands_beside_table_3_alone() -> None:
    section = table3(members("mnist"), Given({"energy": energies()}))
    ours, theirs = measured(section, 1)
    assert list(theirs) == ["ANN VAE", "FSVAE", "ESVAE"]
    assert ours["ESVAE"][1] == "ours: per image, encoded and drawn"
    drawn = table3(members("mnist"), Given({"energy": energies() | {"encode": None}}))
    assert measured(drawn, 1)[0]["ESVAE"][1] == "ours: per image, drawn, since it has no encoder"


def test_attention_stands_beside_its_sibling() -> None:
    plain, attentive = ESVAE(latent=4, steps=2), ESVAE(latent=4, steps=2, attention="pfa")
    subjects = [
        Subject(Path(name), model.eval(), None, "cifar10", name * 32, [])
        for name, model in (("a", plain), ("b", attentive))
    ]
    ours, theirs = measured(table5(systems(subjects), Given({"evaluate": {"images": 1, "steps": 2, "fad_paper": 1.0}})))
    assert list(ours) == ["ESVAE", "ESVAE + PFA"]
    assert list(theirs) == ["ESVAE", "TAID", "PFA", "ESVAE + TAID", "ESVAE + PFA"]


def test_feature_networks_of_our_own_are_not_mixed() -> None:
    def found(weights: str, value: float) -> dict[str, Any]:
        about = {"images": 100, "steps": 16, "mse": 0.02, "prdc_features": "fad_own", "prdc_precision": value}
        return about | {"fad_own": value, "fad_own_weights": weights}

    class Two(Given):
        def get(self, subject: Subject, analysis: str, prior: str | None = None) -> dict[str, Any]:
            return found("a" * 16, 0.25) if subject.folder == Path("run") else found("b" * 16, 0.75)

    (system,) = members()
    system.subjects.append(dataclasses.replace(system.first, folder=Path("other")))
    section = table1([system], Two({}))
    ours, _ = measured(section, 1)
    row = dict(zip(section.tables[1].columns, ours["ESVAE"], strict=True))
    assert row["fad_own ↓"].values == row["precision ↑"].values == (0.25,)
    assert "network bbbbbbbb, the other runs by aaaaaaaa" in section.missing["fad_own of other"]
    assert sum("must not be set beside a published FAD" in note for note in section.notes) == 1


def test_exported_models_are_systems_of_their_own() -> None:
    """Nothing says that they differ by chance alone."""
    subjects = [Subject(Path(name), ESVAE(latent=4), None, "digits", name, []) for name in ("a/model", "b/model")]
    assert {s.name: len(s.subjects) for s in systems(subjects)} == {"ESVAE (a/model)": 1, "ESVAE (b/model)": 1}


def test_names_are_unique_and_short(runs: dict[str, Path]) -> None:
    def named(*subjects: Subject) -> list[str]:
        return [system.name for system in systems(subjects)]

    def of(name: str, folder: str, **options: Any) -> Subject:
        config = preset(name, "digits")
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **options))
        model = MODELS[config.model.kind](**dataclasses.asdict(config.model))
        return Subject(Path(folder), model, config, "digits", folder, [])

    exported = dataclasses.replace(of("vae", "b"), config=None)
    assert named(of("vae", "a"), exported) == ["ANN VAE (a)", "ANN VAE (b)"]
    unfinished = [
        dataclasses.replace(of("paper", folder, latent=latent), notes=["has not ended"])
        for folder, latent in (("a", 4), ("b", 4), ("c", 5))
    ]
    name = "ESVAE, preset paper, unfinished, latent"
    assert named(*unfinished) == [f"{name} 4 (a)", f"{name} 4 (b)", f"{name} 5"]


def test_options_beside_the_preset_are_those_of_the_command_line() -> None:
    config = preset("paper", "celeba")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, size=32, latent=8))
    subject = Subject(Path("run"), ESVAE(latent=8), config, "celeba", "0" * 64, [])
    assert subject.options_text(seed=False) == "--preset paper --model.size 32 --model.latent 8"
    assert dataclasses.replace(subject, config=None).options_text(seed=False) == ""


def test_a_curve_has_one_colour_on_all_data_sets() -> None:
    spread = {"mean": 0.1, "sd": 0.01}
    curve = [{"a": a, "original": spread, "vanilla": spread} for a in (0.0, 0.1)]
    every = systems(
        [
            Subject(Path("a"), ESVAE(latent=4, steps=2), None, "mnist", "a", []),
            Subject(Path("b"), FSVAE(latent=4, steps=2), None, "mnist", "b", []),
            Subject(Path("c"), FSVAE(latent=4, steps=2), None, "digits", "c", []),
        ]
    )
    figure = fig5(every, Given({"robustness": {"noise": curve, "flips": curve}})).figure
    colours: dict[str, set[str]] = {}
    for panel in figure.axes:
        for line in panel.lines:
            colours.setdefault(line.get_label(), set()).add(line.get_color())
    assert len(colours) == 4
    assert all(len(found) == 1 for found in colours.values())


# ------------------------------------------------------------------------------------------------------------ the parts


def test_values() -> None:
    assert str(Value((0.0123,), ".3f")) == "0.012"
    assert str(Value((1.0, 3.0), ".1f", note="fid")) == "2.0 ± 1.4 (fid, 2 runs)"
    assert str(Value((1.0,), ".1f", (0.25, "3 draws"))) == "1.0 ± 0.2 (3 draws)"
    assert str(Value((1.0, 3.0), ".1f", (0.25, "3 draws"))) == "2.0 ± 1.4 (2 runs)"  # runs say more than repetitions
    assert Value((1.0, 3.0), ".1f").to_json() == {"mean": 2.0, "sd": math.sqrt(2), "n": 2, "values": [1.0, 3.0]}


def test_markdown_of_a_table() -> None:
    table = Table("t", ["a", "b"])
    table.add(["x|y", Value((1.0,), ".1f")])
    table.add(["<b>", None], ours=False)
    text = Section("table1", "Title", ["About *this*."], [table], missing={"z": "why\nnot"}).markdown()
    assert "| **x\\|y** | 1.0 |" in text
    assert "| &lt;b> | - |" in text
    assert "About \\*this\\*." in text
    assert "- not measured: z: why not" in text


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_they_were(channels: int) -> None:
    pixels = torch.randint(0, 256, (3, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack(pack(data.normalize(pixels))), pixels)


def test_drawings_are_the_same_bytes_each_time(whole: tuple[Path, list[str]], trained: dict[str, Path]) -> None:
    subjects = [Subject.open(trained["fsvae"], None, "cpu")]
    results = Results(Settings(**QUICKLY), say=lambda line: None)
    first, second = (rendered(SECTIONS["fig5"](systems(subjects), results).figure) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first["png"])).format == "PNG"


def test_rates_are_those_of_the_spikes(trained: dict[str, Path], images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches."""
    model = load_model(trained["best"]).model
    test = load_for(model, images, "test")
    with torch.no_grad():
        z = model.latent_spikes(data.normalize(test.pixels), seed=5, sample_ids=torch.arange(len(test)))
        drawn = model.prior_spikes(len(test), seed=5, prior="bottleneck")
    monkeypatch.setattr("esvae.rates.BATCH", 8)
    found = rates(model, test, prior="bottleneck", seed=5)
    counts = rate_histograms(model, test, prior="bottleneck", seed=5)
    for key, histogram, spikes in (
        ("posterior", "rate_histogram", z),
        ("prior_draws", "prior_rate_histogram", drawn),
    ):
        per_neuron = spikes.sum(0)
        expected = [int((per_neuron == k).sum()) for k in range(model.steps + 1)]
        assert found[key]["histogram"] == counts[histogram] == expected
        assert found[key]["means"] == pytest.approx(spikes.mean((0, 1)).tolist())
        assert found[key]["single"] == pytest.approx(spikes[:, 0].mean(0).tolist())
        assert found[key]["raster"] == ["".join(str(int(s)) for s in row) for row in spikes[:, 0]]
