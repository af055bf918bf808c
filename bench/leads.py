"""What each change of the preset `best` gives, one at a time: 6,000 images of Fashion-MNIST, 10 epochs.

    ESVAE_FAD_DIR=fad python bench/leads.py --out leads --jobs 2    train and measure all that is not yet there
    python bench/leads.py --out leads --leads base --seeds 3        some of them, with several seeds
    python bench/leads.py --out leads --table                       the table of what is there, as Markdown

Each is a folder of its own in `--out`: a run, and `measured.json`, the figures on all 10,000 test images at the T of
its training (4). `--jobs` trainings run side by side, sharing the threads. "base" is the preset with its schedule on
that budget; the spread of its seeds is what a change has to exceed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import esvae_kernels
from esvae.config import Config, ModelConfig, TrainConfig, build, preset
from esvae.data import ordered_batches
from esvae.errors import InputError
from esvae.evaluate import BATCH, GENERATED, evaluate, find_reference, generated
from esvae.generate import load_model
from esvae.metrics.fad import fad
from esvae.train import load_sets, train

DATA, IMAGES, EPOCHS, STEPS = "fashion-mnist", 6000, 10, 4
BASE = "base"
MEASURED = "measured.json"
COLUMNS = {  # key in measured.json -> heading
    "mse": "MSE",
    "fad_paper": "FAD_paper, mixture",
    "fad_eval": "FAD_eval, mixture",
    "fad_paper_bottleneck": "FAD_paper, bottleneck",
    "fad_paper_reconstructions": "FAD_paper, reconstructions",
    "firing_rate": "firing rate",
    "minutes": "minutes",
}

LEADS: dict[str, dict[str, Any]] = {  # options of the model and of the training, by their names in esvae/config.py
    BASE: {},
    "AdamW": {"optimizer": "adamw", "lr": 4e-3, "bottleneck_lr": 2e-2},
    "rectangular sampler (the paper's)": {"sampler_surrogate": "rectangular"},
    "hard reset (the paper's)": {"reset": "hard"},
    "hard reset, decay 0.25 (the paper's)": {"reset": "hard", "decay": 0.25},
    "decay 0.5": {"decay": 0.5},
    "decay 1": {"decay": 1.0},
    "learnt decays": {"learn_decay": True},
    "no gradient through the reset": {"detach_reset": True},
    "LIF window of the published code": {"lif_shape": 1.0, "lif_center": -0.2},
    "LIF window of 0.35": {"lif_shape": 0.35},
    "LIF window of 0.8": {"lif_shape": 0.8},
    "LIF surrogate: triangle": {"lif_surrogate": "triangular", "lif_shape": 0.7},
    "LIF surrogate: arctangent": {"lif_surrogate": "atan", "lif_shape": 4.0},
    "LIF surrogate: sigmoid": {"lif_surrogate": "sigmoid", "lif_shape": 8.0},
    "fixed readout (the paper's)": {"readout": "decay", "readout_decay": 0.8},
    "fixed readout, a plain sum": {"readout": "decay"},
    "learnt readout from 0.8": {"readout_decay": 0.8},
    "3x3 kernels (the paper's)": {"wide_kernels": 0},
    "4x4 kernels in all layers": {"wide_kernels": 4},
    "resize + convolution": {"wide_kernels": 0, "upsampling": "resize"},
    "d = 64": {"latent": 64},
    "d = 192": {"latent": 192},
    "bottleneck of 3 layers": {"bottleneck_layers": 3},
    "unbiased MMD": {"distance": "unbiased-mmd"},
    "inverse multiquadratics": {"distance": "imq"},
    "sliced Wasserstein": {"distance": "sliced-wasserstein", "mmd_weight": 1e-2},
    "lambda x 10": {"mmd_weight": 1e-2},
    "lambda x 100": {"mmd_weight": 1e-1},
    "mixture of 10": {"mixture_components": 10},
    "mixture of 50": {"mixture_components": 50},
    "constant learning rate": {"schedule": "constant", "lr": 5e-3, "bottleneck_lr": 1.5e-2},
    "no average of the weights": {"ema": 0.0},
    "no clipping": {"clip": 0.0},
    "learning rate x 1/2": {"lr": 5e-3, "bottleneck_lr": 1.5e-2},
    "learning rate x 2": {"lr": 2e-2, "bottleneck_lr": 6e-2},
    "batch of 32": {"batch_size": 32, "lr": 6e-3, "bottleneck_lr": 2e-2},
    "batch of 128": {"batch_size": 128},
    "T = 2 first (10 epochs for 5)": {"epochs": 15, "time_steps": "2/3@2,1/3@4"},
    "T = 8 last (2 epochs for 4)": {"steps": 8, "epochs": 8, "time_steps": "3/4@4,1/4@8"},
    "no penalty on firing rates": {"rate_weight": 0.0},
    "penalty on firing rates x 4": {"rate_weight": 0.02},
}


def config_of(lead: str, seed: int, smoke: bool) -> Config:
    """The preset `best` on the small budget, with one lead's options; with `smoke` one epoch."""
    best = preset("best", DATA)
    changes = LEADS[lead]
    budget = {"epochs": EPOCHS, "min_steps": 0, "time_steps": "", "ema": 0.99, "seed": seed}
    model = dataclasses.asdict(best.model) | {"steps": STEPS}
    train = dataclasses.asdict(best.train) | budget
    for name, value in changes.items():
        (model if name in model else train)[name] = value
    train |= {"epochs": 1, "time_steps": ""} if smoke else {}
    return Config(DATA, "best", build(ModelConfig, model, "model"), build(TrainConfig, train, "train"))


def folder_of(out: Path, lead: str, seed: int, smoke: bool) -> Path:
    name = "".join(c if c.isalnum() else "-" for c in lead)
    return out / f"{name}-{seed}{'-smoke' if smoke else ''}"


def row_of(path: Path, smoke: bool) -> dict[str, Any] | None:
    """What was measured by the config of today, if it was: an older base or lead of the same name is another one."""
    row = json.loads(path.read_text()) if path.exists() else {}
    try:
        own = Config.from_dict(row.get("config", {}))  # options that came later have their defaults
    except InputError:  # with options that are no more
        return None
    return row if row.get("lead") in LEADS and own == config_of(row["lead"], row["seed"], smoke) else None


def is_measured(out: Path, lead: str, seed: int, smoke: bool) -> bool:
    return row_of(folder_of(out, lead, seed, smoke) / MEASURED, smoke) is not None


def run_one(out: Path, lead: str, seed: int, smoke: bool) -> None:
    """Train, or go on with an interrupted training, and measure; with `smoke` on few images, for a moment."""
    esvae_kernels.tune_allocator()
    config, folder = config_of(lead, seed, smoke), folder_of(out, lead, seed, smoke)
    sets = load_sets(config)
    sets["train"] = sets["train"].part(0, 64 if smoke else IMAGES)
    run = train(config, folder, sets=sets, resume=(folder / "config.json").exists(), progress=False)
    model = load_model(run.folder).model
    with torch.no_grad():
        some = ordered_batches(sets["test"].part(0, 2048), BATCH)
        rate = float(torch.cat([model.encode(batch) for batch in some]).mean())
    found = evaluate(model, DATA, prior="mixture")
    bottleneck = fad(find_reference(DATA)[0], generated(model, GENERATED, prior="bottleneck"), BATCH)
    minutes = max(record["seconds"] for record in run.metrics()) / 60
    extra = {"fad_paper_bottleneck": bottleneck["fad_paper"], "fad_eval_bottleneck": bottleneck["fad_eval"]}
    extra |= {
        "firing_rate": rate,
        "minutes": round(minutes, 2),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    about = {"lead": lead, "seed": seed, "options": LEADS[lead], "config": config.to_dict()}
    measured = found | extra | about  # the seed of the training, not that of the evaluation
    (folder / MEASURED).write_text(json.dumps(measured, indent=1) + "\n")


def measured(out: Path, smoke: bool) -> dict[str, list[dict[str, Any]]]:
    """What is there, by lead."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob(f"*/{MEASURED}")):
        if row := row_of(path, smoke):
            found.setdefault(row["lead"], []).append(row)
    return found


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """A line per lead: the mean over its seeds, and for the base the standard deviation."""
    lines = ["| | seeds | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " ---: |" * (len(COLUMNS) + 1)]
    for lead in (lead for lead in LEADS if lead in rows):
        cells = [_cell([row[key] for row in rows[lead]], key) for key in COLUMNS]
        lines.append(f"| {lead} | {len(rows[lead])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: list[float], key: str) -> str:
    digits = {"mse": 4, "firing_rate": 2, "minutes": 1}.get(key, 1)
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of all the runs")
    parser.add_argument("--leads", nargs="+", choices=LEADS, default=list(LEADS), metavar="LEAD", help="default: all")
    parser.add_argument("--seeds", type=int, default=1, help="how many of each (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side (default: 1)")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    parser.add_argument("--smoke", action="store_true", help="one epoch of 64 images, to see that it works")
    parser.add_argument("--one", nargs=2, metavar=("LEAD", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        run_one(options.out, options.one[0], int(options.one[1]), options.smoke)
        return
    failed = 0
    if not options.table:
        if missing := find_reference(DATA)[1]:
            sys.exit(missing)
        todo = [(lead, seed) for seed in range(options.seeds) for lead in options.leads]
        todo = [(lead, seed) for lead, seed in todo if not is_measured(options.out, lead, seed, options.smoke)]
        with ThreadPoolExecutor(options.jobs) as pool:
            failed = sum(pool.map(lambda pair: _in_own_process(options, *pair), todo))
    print(table(measured(options.out, options.smoke)))
    sys.exit(1 if failed else 0)


def _in_own_process(options: argparse.Namespace, lead: str, seed: int) -> bool:
    """Whether it failed."""
    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    command = [sys.executable, __file__, "--out", str(options.out), "--one", lead, str(seed)]
    command += ["--smoke"] if options.smoke else []
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": threads}, stderr=subprocess.PIPE, text=True)
    last = done.stderr.strip().splitlines()[-1:] if done.returncode else ["measured"]
    print(f"{lead}, seed {seed}: {' '.join(last)}", file=sys.stderr)
    return done.returncode != 0


if __name__ == "__main__":
    main()
