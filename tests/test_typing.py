"""What mypy passes runs as well. mypy itself, over that script and over what it has to refuse, is in `make lint`."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_what_passes_runs() -> None:
    runpy.run_path(str(Path(__file__).with_name("typing") / "passes.py"))
