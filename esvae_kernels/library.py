"""The registration that all rooms share: one torch library, plain functional ops with a fake and a vmap rule each."""

from __future__ import annotations

from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("esvae_kernels", "DEF")


def register(schema: str, run: Callable, fake: Callable, vmap: Callable) -> Callable:
    """Defines `esvae_kernels::<schema>` for every device, and returns the op."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    qualified = f"{LIBRARY.ns}::{name}"
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    torch.library.register_vmap(qualified, vmap, lib=LIBRARY)
    return getattr(getattr(torch.ops, LIBRARY.ns), name).default
