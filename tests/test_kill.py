"""A few trials of soak_kill.py at every commit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes that use torch, as is safe on Linux alone")
def test_killed_runs_end_like_undisturbed_ones() -> None:
    tests = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tests), *filter(None, sys.path)])}
    command = [sys.executable, str(tests / "soak_kill.py"), "--trials", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 trials" in done.stdout
