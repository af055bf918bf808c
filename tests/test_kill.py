"""A trial of soak_kill.py at every commit; with `--all` four."""

from __future__ import annotations

import sys

import pytest
from sampling import takes_all
from training_helpers import run_script


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that use torch, as is safe on Linux alone")
def test_killed_runs_end_like_undisturbed_ones(pytestconfig: pytest.Config) -> None:
    trials = 4 if takes_all(pytestconfig) else 1
    done = run_script("soak_kill.py", "--trials", str(trials))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{trials} trials" in done.stdout
