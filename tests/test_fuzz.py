"""Some thousand of the damaged files that soak_fuzz.py tries a million of, at every commit."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from fuzzing import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from training_helpers import run_script


@pytest.mark.parametrize("name", TARGETS)
def test_readers_take_a_file_or_refuse_it_in_a_line(tmp_path: Path, name: str) -> None:
    target = TARGETS[name](tmp_path / "files")

    @settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms())
    def check(chance: random.Random) -> None:
        target.case(chance)

    check()


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_readers_take_little_time_and_memory() -> None:
    done = run_script("soak_fuzz.py", "--cases", "5000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1000 files") == len(TARGETS)
