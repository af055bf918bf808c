"""What an installed package does at least, with torch and numpy alone: `python tests/smoke.py` in any environment."""

import torch

import esvae_kernels
from esvae_kernels.info import lines, show


def spikes_and_gradient(backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 8, 64, generator=generator, requires_grad=True)
    with esvae_kernels.use_backend(backend):
        spikes, _ = esvae_kernels.lif(x, decay=0.9, threshold=1.0)
        (gradient,) = torch.autograd.grad(spikes, x, torch.randn(spikes.shape, generator=generator))
    return spikes, gradient


print(show(lines()))
assert "cpu" in esvae_kernels.available_backends(), "the compiled kernels are missing"
(spikes, gradient), (expected, expected_gradient) = map(spikes_and_gradient, ("cpu", "reference"))
assert 0 < spikes.mean() < 1
assert torch.equal(spikes, expected)
torch.testing.assert_close(gradient, expected_gradient)
print("spikes are the reference's bit for bit, gradients within rounding")
