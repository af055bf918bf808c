"""Models that come with the package: a folder each, that of a run without its checkpoints, and a model card."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Of all models that come with the package."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def find(name: Path | str) -> Path | None:
    """The folder of the model of that name; None where there is none, or something of that name where one is."""
    return FOLDER / name if str(name) in names() and not os.path.lexists(name) else None
