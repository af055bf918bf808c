"""The device and the fixtures of the kernel tests.

`pytest --device cuda` makes every tensor on the GPU and runs the backends that are for it, in all kernel tests
(test_lif, test_bn_lif, test_poisson, test_surrogate, test_kernels_nn) and in test_gpu. `--device cpu:0` does the same
with a part of the CPU in the place of the GPU: see stand_in.py.

`pytest --all` runs every test; without it, see sampling.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import kernel_helpers
import pytest
import torch
from stand_in import StandIn

from esvae_kernels import available_backends, backends, native, use_backend

pytest_plugins = ["sampling"]


def pytest_addoption(parser: pytest.Parser) -> None:
    with suppress(ValueError):  # bench/conftest.py has it too, where both are run
        parser.addoption("--device", default="cpu", choices=("cpu", "cuda", "cpu:0"), help="what tensors are made on")
    parser.addoption(
        "--without", action="append", default=[], choices=("triton", "cuda"), help="a backend that is not there"
    )


def pytest_configure(config: pytest.Config) -> None:
    from sampling import takes_all  # here: pytest has to import a plugin first

    kernel_helpers.sampled = not takes_all(config)
    device = config.getoption("--device")
    if device == "cpu":
        if (
            native.module is None and os.environ.get("ESVAE_BACKEND") != "reference"
        ):  # or fewer tests would look like all
            raise pytest.UsageError(
                f"{native.why_missing}; ESVAE_BACKEND=reference runs what needs no compiled kernels"
            )
        return
    if device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: got cuda, but torch sees no GPU")
    kernel_helpers.run_on(device, config.getoption("--without"))
    missing = set(kernel_helpers.BACKENDS) - set(available_backends())
    if missing:  # to skip would look like success
        raise pytest.UsageError(
            f"--device: got {device}, where these backends cannot run: {', '.join(sorted(missing))}"
        )
    torch.set_default_device(kernel_helpers.DEVICE)
    if device == "cpu:0":
        StandIn(kernel_helpers.DEVICE).__enter__()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Image folders of the tests leave nothing in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ESVAE_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def environment_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ESVAE_BACKEND`, and what can run, is asked for at each call, not at the first alone."""
    monkeypatch.setattr(backends, "environment", backends.environment.__wrapped__)
    monkeypatch.setattr(backends, "_pick", backends._pick.__wrapped__)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system; training_helpers.mount changes its size or what may be done with it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no permission to mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of the compiled kernels, forced for the whole test through `indirect` parametrisation; its backend."""
    with kernel_helpers.use_kernel(request.param) as backend:
        yield backend


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend that is forced for the whole test, through `indirect` parametrisation."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is filled with NaN, so that an element which a kernel forgets shows."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    # A warning where torch itself has no deterministic kernel: of ours none asks.
    torch.use_deterministic_algorithms(True, warn_only=kernel_helpers.on_gpu())
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores torch's thread count after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
