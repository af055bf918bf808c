"""Which of torch's layers can take all time steps at once, as one larger batch."""

from __future__ import annotations

from torch import nn

_KINDS = ("Conv", "ConvTranspose", "MaxPool", "AvgPool", "AdaptiveMaxPool", "AdaptiveAvgPool", "ConstantPad", "ZeroPad")
# Each sample by itself, whatever the batch is, and nothing kept between calls.
STATELESS = frozenset(getattr(nn, f"{kind}{d}d") for kind in _KINDS for d in (1, 2, 3)) | {
    *(nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardtanh),
    *(nn.Hardsigmoid, nn.Hardswish, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign),
}
RANDOM = frozenset({nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout})
BATCH_STATISTICS = frozenset(getattr(nn, f"{kind}Norm{d}d") for kind in ("Batch", "Instance") for d in (1, 2, 3))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in HOOKS)


def fixed_statistics(norm: nn.Module) -> bool:
    """Whether a layer of BATCH_STATISTICS, as it is now, treats each sample by itself."""
    alone = norm.running_mean is not None and not norm.training
    return alone or (type(norm).__name__.startswith("Instance") and not norm.track_running_stats)
