"""What numbers a device computes in."""

from __future__ import annotations

import torch


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto`: bf16 where the device multiplies in it, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch asks the current one
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # newer than the oldest torch that is accepted
    capable = device.type == "cpu" and capabilities.get("avx512_bf16", False)
    return "bf16" if capable else "fp32"
