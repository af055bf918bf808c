"""Make the model that comes with the package from a run: its weights, its records, what was measured, a model card.

    ESVAE_FAD_DIR=fad python bench/ship.py runs/fashion --machine "2 cores of an AMD EPYC (Zen 3), torch 2.13.0"

writes esvae/pretrained/<data set>/, with the first test images and their licence. Minutes: the whole test set is
reconstructed, images are drawn from each prior; with --classifier the classifiers of `esvae classify` are trained,
which takes 20 more. As by `esvae report`, what was measured is kept in the run's folder. The run has to be that of the
preset `best`, so that the card's command trains it again. A copy of the package's folder of the model is such a run as
well: what is said of it is then measured anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import rich.progress

import esvae_kernels
from esvae import data, figures, pretrained
from esvae.config import preset
from esvae.energy import ratio_with_updates
from esvae.evaluate import find_reference
from esvae.generate import run_config
from esvae.pretrained import EVALUATION
from esvae.report.measure import Results, Settings, Subject
from esvae.report.published import TABLE1, TABLE4
from esvae.report.tables import SHARES, published_rows
from esvae.runs import CONFIG, Run

DATA = "fashion-mnist"  # whose card it is
TEST_IMAGES = 64  # of the data set's own size, the first ones: for `esvae demo`, which needs no data set
NOTICE = "test-images.LICENSE.txt"
KEPT_EVERY = 500  # updates, of the records of training; those at the end of an epoch are all kept

CARD = """\
---
library_name: esvae
license: mit
tags: [spiking-neural-network, vae, image-generation]
datasets: [{data}]
---

# ESVAE, {data}

The Efficient Spiking Variational Autoencoder ([arXiv 2310.14839](https://arxiv.org/abs/2310.14839)), preset `best` of
the package `esvae`: spiking encoder and decoder, Poisson latent of d = {latent} spike trains, T = {steps} time steps,
images of 32x32 in grey. {parameters:,} parameters, and a Gaussian mixture of {components} components over firing rates,
{prior_numbers:,} numbers, fitted to training images once training was done.

```sh
esvae generate {data} --n 64 --out samples.png
esvae reconstruct {data} --out reconstructions.png
ESVAE_FAD_DIR=fad esvae evaluate {data} --json
ESVAE_FAD_DIR=fad esvae report all {data} --out report
```

```python
import torch
from esvae import ESVAE

model = ESVAE.from_pretrained("{data}")
with torch.inference_mode():
    images = model.generate(64, seed=0)  # (64, 1, 32, 32), in [-1, 1]
```

## Training

`esvae train --preset best --data {data} --out runs/{data}`: all {train_images:,} training images, {epochs} epochs
(shares at T: {schedule}), {seen:,} images seen in {minutes:.0f} minutes on {machine}; seed {seed}, the last epoch.
No test image was trained on; the preset was chosen by the figures, on test images, of short trainings.

## Measured

On {measured_on}, {date}; all {images:,} test images, {generated:,} generated ones. Published: best epoch of each
measure, chosen on test statistics.

| | this model | published ESVAE | real images |
|---|---:|---:|---:|
{rows}

FAD is the Frechet distance of the features of the autoencoder that the paper's authors published, to those of the test
set: `fad_paper` normalises each batch by its own statistics, as their code does, and is blind to global contrast;
`fad_eval` uses the running statistics. Energy: additions of 0.9 pJ at each connection that a spike goes out on,
multiply-accumulates of 4.6 pJ where values are real (45 nm); the twin is the same network on real values.

## Test images

`test-images.png`, beside the folder of this file, has the first {test_images} test images: Fashion-MNIST, (c) 2017
Zalando SE, under the MIT licence, which lies next to it.

## Limits

Grey 32x32 images of clothes, as in its training set; nothing else. Images are drawn unconditionally. The weights are
those of one seed. The preset `best` was chosen by figures of test images too, and is no reproduction of the paper.
"""

LICENCE = f"""\
{pretrained.TEST_IMAGES}: the first {TEST_IMAGES} test images of Fashion-MNIST (https://github.com/zalandoresearch/fashion-mnist),
unchanged, as one grid.

The MIT License (MIT)

Copyright (c) 2017 Zalando SE, https://tech.zalando.com

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def rows(found: dict[str, Any]) -> list[str]:
    """Of the card's table."""
    published = {
        key: value
        for table in (TABLE1, TABLE4)
        for row in published_rows(table, found["data"])
        if row.system == "ESVAE"
        for key, value in row.figures.items()
    }
    first, *others = found["evaluate"]  # of the model's own prior
    measured, text = found["evaluate"][first], []

    def row(name: str, ours: str, paper: str = "", real: str = "") -> None:
        text.append(f"| {name} | {ours} | {paper} | {real} |")

    row("MSE of reconstructions, on [-1, 1]", f"{measured['mse']:.4f}", f"{published['mse']:.3f}")
    for prior in (first, *others):
        for key, paper in (("fad_paper", published["fad"] if prior == "bottleneck" else None), ("fad_eval", None)):
            ours, floor = found["evaluate"][prior][key], measured[f"{key}_floor"]
            row(f"`{key}`, {prior} prior", f"{ours:.2f}", f"{paper:.2f}" if paper else "", f"{floor:.2f}")
    for key in ("fad_paper", "fad_eval"):
        row(
            f"`{key}`, reconstructions",
            f"{measured[f'{key}_reconstructions']:.2f}",
            "",
            f"{measured[f'{key}_floor']:.2f}",
        )
    for key in SHARES:
        row(f"{key}, {first} prior", f"{measured[f'prdc_{key}']:.3f}", "", f"{measured[f'prdc_{key}_floor']:.3f}")
    if "classify" in found:
        accuracy = found["classify"]["classifier"]
        name = f"accuracy of the paper's classifier on frozen rates, {len(accuracy['accuracy'])} seeds"
        row(name, f"{accuracy['mean']:.2f} % ± {accuracy['sd']:.2f}", f"{published['accuracy']:.2f} %")
    for part in ("encode", "generate"):
        spent = found["energy"][part]
        row(f"energy to {part} an image", f"{spent['energy_uj']:.1f} µJ, {spent['energy_ratio']:.2f} of the ANN twin's")
        spent_in_all = spent["energy_uj"] + spent["neuron_updates_uj"]
        row("with the updates of its neurons", f"{spent_in_all:.1f} µJ, {ratio_with_updates(spent):.2f} of the twin's")
    return text


def card(found: dict[str, Any], run: Run) -> str:
    """The model card, from what was measured and the run's records."""
    config, measured, last = run_config(run), next(iter(found["evaluate"].values())), run.metrics()[-1]
    return CARD.format(
        data=config.data,
        latent=config.model.latent,
        steps=config.model.steps,
        parameters=found["parameters"],
        prior_numbers=found["prior_numbers"],
        components=config.model.mixture_components,
        train_images=found["train_images"],
        epochs=config.train.epochs,
        schedule=config.train.time_steps.replace(",", ", "),
        seen=last["images"],
        minutes=last["seconds"] / 60,
        machine=found["machine"],
        measured_on=found["measured_on"],
        seed=config.train.seed,
        date=found["date"],
        images=measured["images"],
        test_images=TEST_IMAGES,
        generated=measured["generated"],
        rows="\n".join(rows(found)),
    )


def measure(run: Path, machine: str, measured_on: str, classifier: bool) -> dict[str, Any]:
    """All that the card says."""
    subject = Subject.open(run, None, "cpu")
    results = Results(Settings(), print, rich.progress.track)
    config = subject.model.config
    d, components = config.latent, config.mixture_components
    return {
        "data": subject.data,
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "measured_on": measured_on,
        "weights": subject.weights,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "prior_numbers": components * (1 + d + d * (d + 1) // 2),
        "train_images": len(data.load(subject.data, "train")),
        "evaluate": {prior: results.get(subject, "evaluate", prior) for prior in subject.priors},
        "energy": results.get(subject, "energy"),
        **({"classify": results.get(subject, "classify")} if classifier else {}),
    }


def copy(run: Path, to: Path) -> Run:
    """The run's folder as it comes along: config, records, model."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run / "model", to / "model", ignore=shutil.ignore_patterns("README.md"))
    shutil.copy(run / CONFIG, to / CONFIG)
    records = Run.open(run).metrics()
    kept = [r for r in records if "test_mse" in r or r["step"] % KEPT_EVERY == 0 or r is records[-1]]
    Run(to, {}).metrics_file.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return Run.open(to)


def write_test_images(name: str, to: Path) -> None:
    """The first test images as one grid without gaps, and their licence."""
    pixels = data.load(name, "test", size=pretrained.TEST_SIDE).pixels[:TEST_IMAGES]
    grid = figures.image_grid(pixels, columns=pretrained.TEST_COLUMNS, scale=1, pad=0)
    grid.save(to / pretrained.TEST_IMAGES, optimize=True)
    (to / NOTICE).write_text(LICENCE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--machine", required=True, help="where it was trained, and is measured, for the card")
    parser.add_argument("--measured-on", help="where it is measured, if elsewhere")
    parser.add_argument("--classifier", action="store_true", help="train the classifiers too")
    options = parser.parse_args()
    esvae_kernels.tune_allocator()
    config = run_config(Run.open(options.run))
    if config != preset("best", config.data):
        asked, best = (dataclasses.asdict(c) for c in (config, preset("best", config.data)))
        sys.exit(f"{options.run}: not the preset 'best': {asked} is not {best}")
    if config.data != DATA:
        sys.exit(f"{options.run}: trained on {config.data}; the card is written for {DATA}")
    if missing := find_reference(DATA)[1]:
        sys.exit(missing)
    found = measure(options.run, options.machine, options.measured_on or options.machine, options.classifier)
    text = card(found, Run.open(options.run))  # before the one that is there is gone
    run = copy(options.run, pretrained.FOLDER / DATA)
    write_test_images(DATA, run.folder)
    (run.folder / EVALUATION).write_text(json.dumps(found, indent=1) + "\n")
    (run.folder / "model" / "README.md").write_text(text)
    print(run.folder)


if __name__ == "__main__":
    main()
