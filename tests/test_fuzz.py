"""Some of the damaged files that soak_fuzz.py tries a million of, at every commit; with `--all` some thousand."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from fuzzing import TARGETS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sampling import takes_all
from training_helpers import run_script


@pytest.mark.parametrize("name", TARGETS)
def test_readers_take_a_file_or_refuse_it_in_a_line(tmp_path: Path, name: str, pytestconfig: pytest.Config) -> None:
    target = TARGETS[name](tmp_path / "files")
    examples = 500 if takes_all(pytestconfig) else 100

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.randoms())
    def check(chance: random.Random) -> None:
        target.case(chance)

    check()


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_readers_take_little_time_and_memory(pytestconfig: pytest.Config) -> None:
    each = 1000 if takes_all(pytestconfig) else 100
    done = run_script("soak_fuzz.py", "--cases", str(each * len(TARGETS)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f": {each} files") == len(TARGETS)
