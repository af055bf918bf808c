"""Fixtures of the kernel tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_helpers import vector_width

from esvae_kernels import use_backend


@pytest.fixture
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One vector width of the compiled module, through `indirect` parametrisation."""
    with vector_width(request.param):
        yield request.param


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend that is forced for the whole test, through `indirect` parametrisation."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Fresh memory is filled with NaN, so that an element which a kernel forgets shows."""
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
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
