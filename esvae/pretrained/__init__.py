"""Models that come with the package: a folder each, that of a run without its checkpoints, and a model card."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Of all models that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def resolve(run: Path | str) -> Path:
    """The folder that `run` means: the model of that name, unless there is a folder of that name where one is."""
    return FOLDER / run if str(run) in names() and not os.path.lexists(run) else Path(run)
