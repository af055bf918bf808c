"""The model card that is saved with a model: what it is, how it was trained where that is known, how it is loaded."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ..config import Config, option

PAPER = "https://arxiv.org/abs/2310.14839"
KINDS = {
    "esvae": f"The Efficient Spiking Variational Autoencoder ([arXiv 2310.14839]({PAPER}))",
    "fsvae": "The Fully Spiking Variational Autoencoder",
    "vae": "A variational autoencoder without spikes",
    "gan": "A spiking generative adversarial network",
}

# Filled by huggingface_hub, with Jinja.
TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}{% if training %}, trained on {{ trained_on }}{% endif %}

{{ what }}, of the package `esvae`: {{ "{:,}".format(parameters) }} parameters, \
images of {{ config.size }}x{{ config.size }} in {{ "grey" if config.channels == 1 else "colour" }}, \
d = {{ config.latent }} latent {{ latents }}\
{% if config.kind != "vae" %}, T = {{ config.steps }} time steps{% endif %}. \
All options are in `config.json`.

## Use

FOLDER is the folder that this file lies in; in Python it may also be the name of a repository of the hub.

```sh
esvae generate FOLDER --n 64 --out samples.png
```

```python
from esvae.models import {{ name }}

model = {{ name }}.from_pretrained("FOLDER")
images = model.generate(64, seed=0)  # (64, {{ config.channels }}, {{ config.size }}, {{ config.size }}), in [-1, 1]
```
{% if training %}
## Training

Preset `{{ training.preset }}`; epochs: {{ training.train.epochs }}; \
images per batch: {{ training.train.batch_size }}; seed: {{ training.train.seed }}.

```sh
{{ command }}
```
{% endif %}
## Licence

The package `esvae` is under the MIT licence. These weights are under the one that whoever publishes them gives them.
"""


def command(config: Config) -> str:
    """The command line that trains with this config: preset, data, and each option that is not the preset's."""
    words = ["esvae", "train", "--preset", config.preset, "--data", config.data]
    words += [word for change in config.changes() for word in option(*change)]
    return shlex.join([*words, "--out", "runs/again"])


def fields(model: Any, training: Config | None) -> dict[str, Any]:
    """What the template asks for."""
    return {
        "name": type(model).__name__,
        "what": KINDS[model.kind],
        "latents": "numbers" if model.kind == "vae" else "neurons",
        "config": model.config,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": training,
        "trained_on": _data_name(training.data) if training else None,
        "command": command(training) if training else None,
    }


def _data_name(data: str) -> str:
    """A folder by its name: where it lies says nothing to a reader."""
    kind, _, path = data.partition(":")
    return f"the image folder {Path(path).name}" if kind == "folder" else data
