"""A few trials of soak_kill.py."""

from __future__ import annotations

import sys

import pytest
from training_helpers import run_script


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that use torch, as is safe on Linux alone")
def test_killed_runs_end_like_undisturbed_ones() -> None:
    done = run_script("soak_kill.py", "--trials", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials" in done.stdout
