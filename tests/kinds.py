"""A small run of every kind of model on some digits: what test_kinds.py and test_kinds_training.py share."""

from __future__ import annotations

import dataclasses

from esvae import data
from esvae.config import Config, preset

EPOCHS, BATCH, STEPS_PER_EPOCH = 2, 8, 3
CASES = {  # presets, and options of the model
    "fsvae": ("fsvae", {"branches": 3}),
    "fsvae-kl-taid-pfa": ("fsvae-kl", {"branches": 3, "readout": "taid", "attention": "pfa"}),
    "vae": ("vae", {}),
    "gan": ("gan", {}),
    "esvae-learnt-pfa": ("paper", {"readout": "learnt", "attention": "pfa"}),
}


def config_of(case: str, **options) -> Config:
    name, model = CASES[case]
    config = preset(name, "digits")
    steps = {} if config.model.kind == "vae" else {"steps": 2}
    small = {"epochs": EPOCHS, "batch_size": BATCH, "ema": 0.5, "precision": "fp32"}
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **{"latent": 6} | steps | model),
        train=dataclasses.replace(config.train, **small | options),
    )


def digits() -> dict[str, data.ImageSet]:
    counts = {"train": BATCH * STEPS_PER_EPOCH, "test": 20}
    return {s: dataclasses.replace(some := data.load("digits", s), pixels=some.pixels[:n]) for s, n in counts.items()}
