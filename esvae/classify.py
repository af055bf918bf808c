"""How much an encoder keeps of the image's class (paper, section IV-F, Table IV): classifiers on its frozen rates.

The paper's classifier has four fully connected layers, d-512-256-128-classes, and is trained for 200 epochs by SGD at a
learning rate of 0.01. It gives no activation, batch size or momentum: here they are ReLU, 128 and none. Accuracies are
of the last epoch, not of the best one. Beside it stands a linear probe, multinomial logistic regression on the
standardised rates: what can be read off without hidden layers.
"""

from __future__ import annotations

import statistics
import warnings
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data
from .arguments import integer
from .errors import InputError
from .evaluate import BATCH, SEED, Track, autocast, device_of, untracked
from .models import Model, require

HIDDEN = (512, 256, 128)
EPOCHS = 200
LR = 0.01
BATCH_SIZE = 128
SEEDS = 3
PROBE_ITERATIONS = 1000


def classify(
    model: Model,
    train: data.ImageSet,
    test: data.ImageSet,
    *,
    seeds: int = SEEDS,
    epochs: int = EPOCHS,
    seed: int = SEED,
    precision: str = "fp32",
    track: Track = untracked,
) -> dict[str, Any]:
    """Train classifiers on the rates that `model.encode` gives for `train`, and measure them on those of `test`.

    Args:
        model: with `encode`.
        train, test: with labels (`data.load(..., labels=True)`), unflipped.
        seeds: classifiers to train, at least 2: weights and order are drawn from `seed`, `seed + 1`, ..
        epochs: of each.
        precision: of the encoder, "fp32" or "bf16"; classifiers are fp32.

    Returns:
        `data`, `train_images`, `test_images`, `classes`, `latent` (d), `steps` (T), `seed`, `precision`, `device`;
        `classifier` with its `layers`, `epochs`, `lr`, `batch_size`, the `accuracy` of each seed in percent, their
        `mean` and `sd` (n - 1); `linear_probe` with its `accuracy` in percent and whether it `converged`; `majority`,
        the accuracy in percent of always naming the commonest class of the training set.

    Raises:
        InputError: the model has no encoder, a set has no labels, training has fewer than two classes, or the test set
            has one that training has not; an argument is not accepted; rates are not finite.
    """
    require(model, "encode", "classify")
    seeds, epochs, seed = check_arguments(seeds, epochs, seed)
    for part in (train, test):
        if part.labels is None:
            raise InputError(f"labels of {part.name}: got none, need one per image")
    classes = len(train.labels.unique())
    if classes < 2 or int(train.labels.max()) >= classes or int(test.labels.max()) >= classes:
        raise InputError(f"labels of {train.name}: need two or more classes, each of them in the training images")
    rates, test_rates = (_rates(model, part, precision, track) for part in (train, test))
    labels, test_labels = (part.labels.to(rates.device) for part in (train, test))
    accuracies = []
    for k in range(seeds):
        classifier = _train(rates, labels, classes, seed + k, epochs, track)
        with torch.no_grad():
            accuracies.append(_percent(classifier(test_rates).argmax(1), test_labels))
    return {
        "data": train.name,
        "train_images": len(train),
        "test_images": len(test),
        "classes": classes,
        "latent": rates.shape[1],
        "steps": model.steps,
        "seed": seed,
        "precision": precision,
        "device": rates.device.type,
        "classifier": {
            "layers": [rates.shape[1], *HIDDEN, classes],
            "epochs": epochs,
            "lr": LR,
            "batch_size": BATCH_SIZE,
            "accuracy": accuracies,
            "mean": statistics.mean(accuracies),
            "sd": statistics.stdev(accuracies),
        },
        "linear_probe": _linear_probe(rates, labels, test_rates, test_labels),
        "majority": _percent(labels.mode().values, test_labels),
    }


def check_arguments(seeds: int, epochs: int, seed: int) -> tuple[int, int, int]:
    """Refuse what `classify` would refuse, before anything is read; the same as ints.

    Raises:
        InputError: an argument is not accepted.
    """
    seeds = integer("seeds", seeds, 2, 10_000)
    return seeds, integer("epochs", epochs, 1, 10_000), integer("seed", seed, 0, 2**63 - 1)


@torch.no_grad()
def _rates(model: Model, images: data.ImageSet, precision: str, track: Track) -> Tensor:
    """r_p (N, d), fp32, on the model's device."""
    model.eval()
    device = device_of(model)
    found = []
    batches = data.ordered_batches(images, BATCH, device)
    for batch in track(batches, description="encoding", total=-(-len(images) // BATCH)):
        with autocast(device, precision):
            found.append(model.encode(batch).float())
    rates = torch.cat(found)
    if not rates.isfinite().all():
        raise InputError("rates: got values that are not finite; the model's weights give no rates")
    return rates


def _train(rates: Tensor, labels: Tensor, classes: int, seed: int, epochs: int, track: Track) -> nn.Module:
    """The paper's classifier, trained on rates (N, d) and their labels (N)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise((rates.shape[1], *HIDDEN, classes)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    classifier = nn.Sequential(*layers[:-1]).to(rates.device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=LR)
    for epoch in track(range(epochs), description="classifying", total=epochs):
        for rows in data.epoch_order(len(rates), seed, epoch).to(rates.device).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(classifier(rates[rows]), labels[rows]).backward()
            optimizer.step()
    return classifier


def _linear_probe(rates: Tensor, labels: Tensor, test_rates: Tensor, test_labels: Tensor) -> dict[str, Any]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=PROBE_ITERATIONS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        probe.fit(rates.cpu().numpy(), labels.cpu().numpy())
    found = torch.from_numpy(probe.predict(test_rates.cpu().numpy()))
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return {"accuracy": _percent(found, test_labels.cpu()), "converged": converged}


def _percent(found: Tensor, labels: Tensor) -> float:
    return 100 * float((found == labels).double().mean())
