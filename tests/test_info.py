"""`python -m esvae_kernels.info`, and what `import esvae_kernels` brings along."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esvae_kernels import available_backends, info, native

ROOT = Path(__file__).resolve().parent.parent


def python(*arguments: str) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_lines_say_what_runs_and_why_the_rest_does_not() -> None:
    found = dict(info.lines())
    assert {name for name in found if found[name] == "runs"} == {f"backend {name}" for name in available_backends()}
    refused = [
        text for label, text in found.items() if label.startswith("backend ") and text.startswith("cannot run: ")
    ]
    assert all(len(text) > len("cannot run: ") for text in refused)
    assert found["torch"].startswith(f"{torch.__version__}, built ")
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert native.module is not None
    assert f"vector width {native.module.isa()} of " in found["compiled module"]
    assert found["threads"] == f"{torch.get_num_threads()} of torch"


@pytest.mark.usefixtures("environment_anew")
def test_a_missing_module_and_a_wrong_backend_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", None)
    monkeypatch.setattr(native, "why_missing", "the compiled module could not be built: no compiler")
    monkeypatch.setenv("ESVAE_BACKEND", "quantum")
    found = dict(info.lines())
    assert found["compiled module"] == "the compiled module could not be built: no compiler"
    assert found["backend cpu"] == "cannot run: the compiled module could not be built: no compiler"
    assert found["backend in use"].startswith("ESVAE_BACKEND: got 'quantum', accepted are reference, ")


def test_as_a_program() -> None:
    labels = [line.partition(":")[0] for line in python("-m", "esvae_kernels.info")]
    assert labels == [label for label, _ in info.lines()]


def test_importing_the_kernels_imports_no_other_package() -> None:
    """Nor Triton, nor what of torch takes long: beyond torch they take some 20 ms."""
    code = """
import sys, torch, numpy
before = set(sys.modules)
import esvae_kernels
print(*sorted(set(sys.modules) - before), sep="\\n")
"""
    loaded = {name.partition(".")[0] for name in python("-c", code)} - set(sys.stdlib_module_names)
    assert loaded == {"esvae_kernels", "_esvae_kernels"}
