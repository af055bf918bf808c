"""What is measured on a run for the report, and where it is kept: RUN/report/<analysis>.json, of models that come along
in ESVAE_CACHE_DIR, with the weights and the settings that it was measured by. What was measured by others is measured
again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from .. import pretrained
from ..checkpoint import read_json
from ..classify import EPOCHS
from ..config import PRESETS, Config, option
from ..data import ImageSet
from ..data.places import cache_dir
from ..errors import InputError
from ..evaluate import SEED, Track, load_for, untracked
from ..generate import choose_prior, load_model, run_config
from ..metrics.cache import digest
from ..metrics.fad import PUBLISHED, reference_folder
from ..metrics.inception import inception_weights
from ..models import Model
from ..runs import Run, atomic_write

VERSION = 2  # of what the analyses measure: what was kept by another one is measured again
FOLDER = "report"


@dataclass(frozen=True)
class Settings:
    """By what everything is measured; `esvae report --help` explains each."""

    images: int | None = None
    seed: int = SEED
    precision: str = "fp32"
    classifier_epochs: int = EPOCHS
    own_features: bool = False
    inception: Path | None = None
    download: bool = False


@dataclass(eq=False)
class Subject:
    """A trained model in a folder.

    Attributes:
        run, config: None of a folder with nothing but a model.
        data: the data set that it is measured on.
        weights: SHA-256 of all its tensors.
        notes: what the reader should know: that it has not ended.
    """

    folder: Path
    model: Model
    config: Config | None
    data: str
    weights: str
    notes: list[str]
    run: Run | None = None

    @classmethod
    def open(cls, folder: Path, data: str | None, device: str) -> Subject:
        """Raises InputError where the folder holds no model, or does not say on which data it was trained."""
        loaded = load_model(folder, device)
        name = data or loaded.data
        if name is None:
            raise InputError(f"{folder}: does not say what the model was trained on; accepted is --data NAME")
        run = Run.open(pretrained.find(folder) or folder) if loaded.data is not None else None
        weights = digest(tensor for _, tensor in sorted(loaded.model.state_dict().items()))
        return cls(folder, loaded.model, run and run_config(run), name, weights, loaded.notes, run)

    @property
    def priors(self) -> list[str]:
        """What can be drawn from, first what the model was trained for."""
        default, _ = choose_prior(self.model, None)
        fitted = [p for p in self.model.priors if p != "mixture" or self.model.mixture.fitted]
        return [default, *(p for p in fitted if p != default)]

    @property
    def options(self) -> dict[str, Any]:
        """Of model and training, by name, without the seed: runs with the same ones differ by chance alone."""
        model = dataclasses.asdict(self.model.config)
        train = {} if self.config is None else dataclasses.asdict(self.config.train)
        return {name: value for name, value in {**model, **train}.items() if name != "seed"}

    def options_text(self, *, seed: bool) -> str:
        """The preset and what was changed of it, with or without the seed, as given to `esvae train` in a shell."""
        if self.config is None or self.config.preset not in PRESETS:
            return ""
        changes = [
            shlex.join(option(part, name, value))
            for part, name, value in self.config.changes()
            if name != "channels" and (seed or name != "seed")
        ]
        return " ".join([f"--preset {self.config.preset}", *changes])

    @property
    def trained_on(self) -> str | None:
        """The data set, which `--data` may have it measured on another one than; None where nobody knows."""
        return None if self.config is None else self.config.data

    @property
    def seed(self) -> int:
        return 0 if self.config is None else self.config.train.seed

    def records(self) -> list[dict[str, Any]]:
        """Of its training; none where they are damaged: what is measured on the model does not need them."""
        try:
            return [] if self.run is None else self.run.metrics()
        except InputError:
            return []

    def images_seen(self) -> int | None:
        """In training, by its records; None where they do not say."""
        images = next((record.get("images") for record in self.records()[-1:]), None)
        return images if isinstance(images, int) else None

    @property
    def kept(self) -> Path:
        """Where what is measured on it is kept: in its folder; of a model that comes along, in the user's cache."""
        return cache_dir(FOLDER) / self.folder if self.comes_along else self.folder / FOLDER

    @property
    def comes_along(self) -> bool:
        """With the package."""
        return pretrained.find(self.folder) is not None


# ----------------------------------------------------------------------------------------------------------- analyses


class Context(NamedTuple):
    """What an analysis is given."""

    subject: Subject
    settings: Settings
    prior: str
    track: Track

    def images(self, split: str, labels: bool = False) -> ImageSet:
        return load_for(self.subject.model, self.subject.data, split, self.settings.download, labels=labels)

    def test_images(self) -> ImageSet:
        """As many as the settings say."""
        images = self.images("test")
        count = self.settings.images
        if count is not None and not 1 <= count <= len(images):
            raise InputError(f"images: got {count}, accepted are 1 to {len(images)}, the test images of {images.name}")
        return images.part(0, count)


class Analysis(NamedTuple):
    """`run` measures; `settings` says what it depends on beside weights, images, T, seed and precision."""

    run: Callable[[Context], dict[str, Any]]
    settings: Callable[[Context], dict[str, Any]] = lambda context: {}
    draws: bool = False  # images from the prior: results differ by prior
    splits: tuple[str, ...] = ("test",)  # of the data set, that it reads
    labels: bool = False  # that it reads as well
    needs: str | None = None  # what a model must have for it


def _evaluate(context: Context) -> dict[str, Any]:
    from ..evaluate import evaluate

    subject, settings = context.subject, context.settings
    return evaluate(
        subject.model,
        subject.data,
        prior=context.prior,
        precision=settings.precision,
        seed=settings.seed,
        download=settings.download,
        own_features=settings.own_features,
        inception=settings.inception,
        track=context.track,
    )


NETWORKS = ("fad", "inception", "own_features")


def _networks(context: Context) -> dict[str, Any]:
    """The feature networks that are there, by their files' content."""
    settings, folder = context.settings, reference_folder()
    published = PUBLISHED.get(context.subject.data)
    files = [folder / file for file in published.files] if folder and published else []
    return {
        "fad": [_sha256(file) for file in files] if all(file.is_file() for file in files) else [],
        "inception": _sha256(inception_weights(settings.inception)),
        "own_features": settings.own_features,
    }


def _sha256(path: Path | None) -> str | None:
    return _sha256_at(path, path.stat().st_mtime_ns) if path and path.is_file() else None


@cache
def _sha256_at(path: Path, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _robustness(context: Context) -> dict[str, Any]:
    from ..robustness import robustness

    settings = context.settings
    images = context.test_images()
    return robustness(
        context.subject.model, images, seed=settings.seed, precision=settings.precision, track=context.track
    )


def _classify(context: Context) -> dict[str, Any]:
    from ..classify import classify

    settings = context.settings
    train, test = (context.images(split, labels=True) for split in ("train", "test"))
    return classify(
        context.subject.model,
        train,
        test,
        epochs=settings.classifier_epochs,
        seed=settings.seed,
        precision=settings.precision,
        track=context.track,
    )


def _energy(context: Context) -> dict[str, Any]:
    from ..energy import energy

    model = context.subject.model
    images = context.test_images() if hasattr(model, "encode") else None
    return energy(
        model,
        images,
        n=context.settings.images,
        prior=context.prior,
        seed=context.settings.seed,
        track=context.track,
    )


def _rates(context: Context) -> dict[str, Any]:
    from ..rates import rates

    settings = context.settings
    return rates(
        context.subject.model,
        context.test_images(),
        prior=context.prior,
        precision=settings.precision,
        seed=settings.seed,
        track=context.track,
    )


def _pictures(context: Context) -> dict[str, Any]:
    from .pictures import pictures

    images = context.images("test") if hasattr(context.subject.model, "encode") else None
    return pictures(
        context.subject.model,
        images,
        prior=context.prior,
        precision=context.settings.precision,
        seed=context.settings.seed,
    )


def _images(context: Context) -> dict[str, Any]:
    return {"images": context.settings.images}


ANALYSES = {
    "evaluate": Analysis(_evaluate, _networks, draws=True, splits=("train", "test")),
    "robustness": Analysis(_robustness, _images, needs="latent_spikes"),
    "classify": Analysis(
        _classify,
        lambda context: {"epochs": context.settings.classifier_epochs},
        splits=("train", "test"),
        labels=True,
        needs="encode",
    ),
    "energy": Analysis(_energy, _images, draws=True),
    "rates": Analysis(_rates, _images, draws=True, needs="latent_spikes"),
    "pictures": Analysis(_pictures, draws=True),
}


# -------------------------------------------------------------------------------------------------------------- results


@dataclass
class Results:
    """All that is measured for one report: from the runs' folders where it is there, else now. Each that cannot be
    measured is told once, by `say`, and remembered."""

    settings: Settings
    say: Callable[[str], None]
    track: Track = untracked
    _known: dict[tuple[Path, str, str], dict[str, Any] | InputError] = field(default_factory=dict)
    _digests: dict[tuple[Any, ...], str | None] = field(default_factory=dict)

    def get(self, subject: Subject, analysis: str, prior: str | None = None) -> dict[str, Any]:
        """Raises InputError where it cannot be measured."""
        prior = prior or subject.priors[0]
        name = f"{analysis}-{prior}" if prior != subject.priors[0] else analysis
        key = (subject.folder, analysis, prior)
        if key not in self._known:
            try:
                self._known[key] = self._measured(subject, analysis, name, prior)
            except InputError as error:
                self._known[key] = error
                self.say(f"{subject.folder}: no {analysis}: {error}")
        found = self._known[key]
        if isinstance(found, InputError):
            raise found
        return found

    def _measured(self, subject: Subject, analysis: str, name: str, prior: str) -> dict[str, Any]:
        made = ANALYSES[analysis]
        context = Context(subject, self.settings, prior, partial(self._track, subject.folder.name))
        identity = {
            "version": VERSION,
            "weights": subject.weights,
            "model": dataclasses.asdict(subject.model.config),
            "data": subject.data,
            "pixels": {split: self._digest(context, split, made.labels) for split in made.splits},
            "steps": subject.model.steps,
            "seed": self.settings.seed,
            "precision": self.settings.precision,
            **({"prior": prior} if made.draws else {}),
            **made.settings(context),
        }
        path = subject.kept / f"{name}.json"
        if (kept := _kept(path, identity)) is not None:
            return kept
        result = made.run(context)
        if _to_be_tried_again(result, identity):
            return result
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"identity": identity, "sha256": _checksum(result), "result": result}
            atomic_write(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        except (OSError, InputError) as error:  # a folder that is not ours to write in
            self.say(f"{subject.folder}: {analysis} is not kept: {error}")
        return result

    def _digest(self, context: Context, split: str, labels: bool) -> str | None:
        """Of a split's images, as the model takes them: a data set's name can come to stand for others. None where they
        are not at hand."""
        config = context.subject.model.config
        key = (context.subject.data, split, labels, config.size, config.channels)
        if key not in self._digests:
            try:
                images = context.images(split, labels)
                self._digests[key] = digest([images.pixels, *([images.labels] if labels else [])])
            except InputError:
                self._digests[key] = None
        return self._digests[key]

    def _track(self, run: str, iterable: Iterable, description: str, total: int) -> Iterable:
        return self.track(iterable, description=f"{run}: {description}", total=total)


def _to_be_tried_again(result: dict[str, Any], identity: dict[str, Any]) -> bool:
    """That a network which is there could not measure: what hindered it may be mended, with the same identity."""
    given = {"fad": "fad", "fad_own": "own_features", "fid": "inception", "inception_score": "inception"}
    return any(identity.get(given.get(name, "")) for name in result.get("not_measured", {}))


def _kept(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path, "a result of `esvae report`")
    except InputError:  # damaged: measured again
        return None
    result, known = content.get("result"), content.get("identity")
    if not isinstance(known, dict):
        return None
    if None in identity["pixels"].values():  # nothing at hand to measure again from
        known |= {"pixels": identity["pixels"]}
    # A network that is not at hand now has not changed what was measured by it.
    known |= {name: identity[name] for name in NETWORKS if name in identity and not identity[name]}
    same = known == json.loads(json.dumps(identity))
    return result if same and content.get("sha256") == _checksum(result) else None


def _checksum(result: Any) -> str:
    return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------------- systems

NAMES = {
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR10",
    "celeba": "CelebA",
    "digits": "digits of scikit-learn",
}


def data_name(data: str) -> str:
    kind, _, path = data.partition(":")
    return f"{Path(path).name} (image folder)" if kind == "folder" else NAMES.get(data, data)


KINDS = {"esvae": "ESVAE", "fsvae": "FSVAE", "vae": "ANN VAE", "gan": "spiking GAN"}


@dataclass(eq=False)
class System:
    """Runs that differ by their seed alone: one row of a table."""

    name: str
    data: str
    subjects: list[Subject]

    @property
    def first(self) -> Subject:
        """The run that is drawn where only one can be: that of the lowest seed."""
        return self.subjects[0]


def systems(subjects: Iterable[Subject]) -> list[System]:
    """In the order of their first runs, by data set."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        # Weights of some step or other, or trained nobody knows how, are comparable with none.
        alone = str(subject.folder) if subject.notes or subject.config is None else None
        key = json.dumps([subject.data, subject.trained_on, alone, subject.options], sort_keys=True)
        members = groups.setdefault(key, [])
        if any(member.seed == subject.seed for member in members):  # what else they differ by is in no option
            members = groups.setdefault(f"{key} {subject.folder}", [])
        members.append(subject)
    made = [
        System(_name(members[0]), members[0].data, sorted(members, key=lambda subject: subject.seed))
        for members in groups.values()
    ]
    names = [(system.data, system.name + _difference(system, made)) for system in made]
    for system, name in zip(made, names, strict=True):
        system.name = name[1] if names.count(name) == 1 else f"{name[1]} ({system.first.folder})"
    return sorted(made, key=lambda system: [other.data for other in made].index(system.data))


def _name(subject: Subject) -> str:
    config = subject.model.config
    name = KINDS[config.kind]
    if subject.config is not None and subject.config.train.latent_loss == "kl":
        name += " (KL)"
    name += " + TAID" if config.readout == "taid" else ""
    name += " + PFA" if config.attention == "pfa" else ""
    if config.kind == "esvae" and subject.config is not None:
        name += f", preset {subject.config.preset}"
    if subject.trained_on not in (None, subject.data):
        name += f", trained on {data_name(subject.trained_on)}"
    return f"{name}, unfinished" if subject.notes else name


def _difference(system: System, all_systems: list[System]) -> str:
    """The options that tell it from others of the same name on the same data, of those that all of them know."""
    alike = [s.first.options for s in all_systems if s.data == system.data and s.name == system.name]
    own = system.first.options
    differing = [name for name in own if all(name in o for o in alike) and any(o[name] != own[name] for o in alike)]
    return "".join(f", {name.replace('_', ' ')} {own[name]}" for name in differing)


def by_data(members: Iterable[System]) -> dict[str, list[System]]:
    groups: dict[str, list[System]] = {}
    for system in members:
        groups.setdefault(system.data, []).append(system)
    return groups
