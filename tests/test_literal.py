"""The yardstick itself is checked: against hand-computed traces, torch's own layers and double loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from literal import LIF, LiteralESVAE, Readout, TdBN, TdLinear, Tensor, lif, loss, mmd

PRESETS = ["official", "paper"]


def trace(values: list[float]) -> Tensor:
    return torch.tensor(values, requires_grad=True)


def batch(model: LiteralESVAE, channels: int, size: int, n: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    d = model.sample_layer[0].in_features
    return torch.rand(n, channels, size, size) * 2 - 1, torch.rand(n, d, model.steps), torch.randn(n, d)


# m = .1, .225 (fires, v = 0), .2 (a tie), then .05 or 0 of it is left: .05 + .16 fires where the tie did not.
@pytest.mark.parametrize(("preset", "expected"), [("official", [0, 1, 0, 1]), ("paper", [0, 1, 1, 0])], ids=PRESETS)
def test_lif_on_a_hand_computed_trace(preset: str, expected: list[float]) -> None:
    assert lif(trace([0.1, 0.2, 0.2, 0.16]), **LIF[preset]).tolist() == expected


# Loss o_0 + 10 o_1 at m = (.3, .1): dL/dx_0 = s_0 + 10 s_1 * .25 * ((1 - o_0) - m_0 s_0), o_0 = 1, slopes 1 or 2.
@pytest.mark.parametrize(("preset", "expected"), [("official", [0.25, 10.0]), ("paper", [-1.0, 20.0])], ids=PRESETS)
def test_lif_gradient_flows_through_the_reset(preset: str, expected: list[float]) -> None:
    x = trace([0.3, 0.1])
    (lif(x, **LIF[preset]) * torch.tensor([1.0, 10.0])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor(expected))


# The official window is |m| < .5 with slope 1, that of the paper |m - .2| < .25 with slope 2.
@pytest.mark.parametrize(
    ("preset", "expected"), [("official", [0, 1, 1, 1, 1, 0]), ("paper", [0, 0, 2, 2, 0, 0])], ids=PRESETS
)
def test_lif_surrogate_window(preset: str, expected: list[float]) -> None:
    x = trace([-0.51, -0.06, -0.04, 0.44, 0.46, 0.51])
    lif(x[:, None], **LIF[preset]).sum().backward()
    assert x.grad.tolist() == expected


@pytest.mark.parametrize(("preset", "slopes"), [("official", [1, 1, 1, 0]), ("paper", [2, 2, 0, 0])], ids=PRESETS)
def test_sampler_fires_below_the_rate_and_sums_its_slopes(preset: str, slopes: list[float]) -> None:
    model = LiteralESVAE(1, 32, latent=4, steps=3, preset=preset)
    rate = torch.tensor([[0.0, 0.5, 0.5, 1.0]], requires_grad=True)
    u = torch.tensor([[[0.0], [0.5 - 2**-24], [0.75 + 2**-20], [0.25]]]).repeat(1, 1, 3)
    z = model.sample(rate, u)
    z.sum().backward()
    assert z[..., 0].tolist() == [[0, 1, 0, 1]]  # u = r = 0 never fires
    assert rate.grad.tolist() == [[3 * slope for slope in slopes]]


@pytest.mark.parametrize("shape", [(3, 5, 4, 2, 7), (6, 5, 7)], ids=["convolution", "linear"])
def test_tdbn_is_batch_norm_on_the_folded_tensor(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    bn = TdBN(shape[1])
    with torch.no_grad():
        bn.weight.normal_()
        bn.bias.normal_()
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    for training, spread in ((True, 3), (True, 0.03), (False, 1)):  # at .03 epsilon matters
        bn.train(training)
        x = torch.randn(shape) * spread + 1
        # Scale the normalised value alone, not the bias, by the threshold.
        expected = F.batch_norm(x.flatten(2), mean, var, 0.2 * bn.weight, bn.bias, training, 0.1, 1e-5)
        torch.testing.assert_close(bn(x), expected.view(shape))
        torch.testing.assert_close((bn.running_mean, bn.running_var), (mean, var))
    assert bn.num_batches_tracked == 2


def test_linear_layer_runs_at_every_step() -> None:
    torch.manual_seed(0)
    layer, x = TdLinear(6, 5, spike=lambda y: y).eval(), torch.randn(2, 6, 3)
    for t in range(3):
        torch.testing.assert_close(
            layer(x)[..., t], 0.2 * F.linear(x[..., t], layer.weight, layer.bias) / math.sqrt(1 + 1e-5)
        )


def test_readout_weighs_the_last_step_most() -> None:
    readout = Readout(16)
    assert readout.coef.shape == (1, 1, 1, 1, 16)
    assert readout.coef.sum().item() == pytest.approx(4.8593, abs=5e-5)
    assert readout(torch.eye(16).view(16, 1, 1, 1, 16)).flatten().tolist() == pytest.approx(
        [0.8 ** (15 - t) for t in range(16)]
    )


def mmd_by_loops(p: list[list[float]], q: list[list[float]], bandwidth: float | None = None) -> tuple[float, float]:
    """The same quantity from scalars: (squared discrepancy, bandwidth)."""
    x = p + q
    distance = [
        [sum((a - b) ** 2 for a, b in zip(x[i], x[j], strict=True)) for j in range(len(x))] for i in range(len(x))
    ]
    bandwidth = bandwidth or sum(map(sum, distance)) / (len(x) * (len(x) - 1))
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            sign = 1 if (i < len(p)) == (j < len(p)) else -1
            total += sign * sum(math.exp(-distance[i][j] / (bandwidth * 2.0**e)) for e in (-2, -1, 0, 1, 2))
    return total / len(p) ** 2, bandwidth


def test_mmd_and_its_gradient_at_a_fixed_bandwidth() -> None:
    torch.manual_seed(0)
    p, q = torch.rand(4, 3, dtype=torch.float64, requires_grad=True), torch.rand(4, 3, dtype=torch.float64)
    expected, bandwidth = mmd_by_loops(p.tolist(), q.tolist())
    value = mmd(p, q)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    value.backward()
    step = torch.zeros_like(q)
    step[2, 1] = 1e-5
    ahead, behind = (mmd_by_loops(x.tolist(), q.tolist(), bandwidth)[0] for x in (p + step, p - step))
    assert p.grad[2, 1].item() == pytest.approx((ahead - behind) / 2e-5, rel=1e-6)


def test_mmd_of_identical_samples_is_zero() -> None:
    p = torch.rand(8, 5, dtype=torch.float64)
    assert mmd(p, p.clone()).item() == pytest.approx(0, abs=1e-15)
    assert mmd(p, p.flip(0)).item() == pytest.approx(0, abs=1e-15)
    assert mmd(p, p + 0.5).item() > 0.1


def test_loss_adds_the_weighted_mmd() -> None:
    x, y, p, q = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5), torch.rand(2, 3), torch.rand(2, 3)
    torch.testing.assert_close(loss(x, y, p, q, mmd_weight=0.1), 0.25 + 0.1 * mmd(p, q))


@pytest.mark.parametrize(
    ("channels", "size", "latent", "parameters"),
    [(1, 32, 32, 855_905), (3, 32, 128, 1_069_411), (3, 64, 128, 3_696_227)],
    ids=["fashion-mnist", "cifar10", "celeba"],
)
def test_parameters_that_work(channels: int, size: int, latent: int, parameters: int) -> None:
    model = LiteralESVAE(channels, size, latent, steps=1)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_dead_weights_are_those_of_the_published_class() -> None:
    model = LiteralESVAE(1, 32, latent=32, steps=16, dead_weights=True)
    dead = [k for k, _ in model.named_parameters() if k.startswith(("prior.", "posterior."))]
    assert sum(model.get_parameter(k).numel() for k in dead) == 191_360
    assert model.prior.layers[0].weight.shape == (64, 32)
    assert model.posterior.layers[0].weight.shape == (64, 64)
    assert "prior.initial_input" in model.state_dict()
    assert model.prior.layers[2].bn.scale == pytest.approx(0.4)


def test_state_dict_has_the_published_names_and_shapes() -> None:
    state = LiteralESVAE(3, 64, latent=128, steps=16).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    norms = ["encoder.4", "before_latent_layer", "decoder_input", "decoder.3", "final_layer.0"]
    for name, outputs in zip(norms, [512, 128, 2048, 32, 32], strict=True):
        for part in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bias"):
            assert shapes[f"{name}.{part}"] == (outputs,)
        assert shapes[f"{name}.bn.num_batches_tracked"] == ()
    assert shapes["encoder.0.weight"] == (32, 3, 3, 3, 1)
    assert shapes["encoder.4.weight"] == (512, 256, 3, 3, 1)
    assert shapes["before_latent_layer.weight"] == (128, 2048)
    assert shapes["decoder_input.weight"] == (2048, 128)
    assert shapes["decoder.0.weight"] == (512, 256, 3, 3, 1)
    assert shapes["decoder.3.weight"] == (64, 32, 3, 3, 1)
    assert shapes["final_layer.0.weight"] == (32, 32, 3, 3, 1)
    assert shapes["final_layer.1.weight"] == (32, 3, 3, 3, 1)
    assert shapes["membrane_output_layer.coef"] == (1, 1, 1, 1, 16)
    assert shapes["sample_layer.0.weight"] == (128, 128)
    assert len(shapes) == 12 * 7 + 2 + 1 + 2  # twelve layers with tdBN, the last convolution, coef, the bottleneck


def test_rate_and_image_are_read_out_over_time() -> None:
    torch.manual_seed(0)
    model, seen = LiteralESVAE(1, 32, latent=8, steps=4), {}
    for name in ("before_latent_layer", "final_layer"):
        model.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: seen.update({name: out}))
    out, r_p, _, _ = model(*batch(model, 1, 32))
    x_e, y = seen["before_latent_layer"], seen["final_layer"]  # (N, 8, T), (N, 1, 32, 32, T)
    torch.testing.assert_close(r_p, (x_e[..., 0] + x_e[..., 1] + x_e[..., 2] + x_e[..., 3]) / 4)
    torch.testing.assert_close(out, torch.tanh(0.512 * y[..., 0] + 0.64 * y[..., 1] + 0.8 * y[..., 2] + y[..., 3]))


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64)])
def test_forward_and_backward(preset: str, channels: int, size: int) -> None:
    torch.manual_seed(0)
    model = LiteralESVAE(channels, size, latent=8, steps=4, preset=preset)
    images, u, z_n = batch(model, channels, size)
    out, r_p, r_q, z = model(images, u, z_n)
    assert out.shape == images.shape
    assert r_p.shape == r_q.shape == (3, 8)
    assert torch.equal(z, (u < r_p[..., None]).float())
    assert torch.equal(r_p * 4, (r_p * 4).round())  # counts of spikes
    assert 0 < r_p.mean() < 1
    loss(images, out, r_p, r_q).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    silent = [k for k, p in model.named_parameters() if not p.grad.any()]
    assert not silent


def test_the_bottleneck_learns_from_the_mmd_alone() -> None:
    torch.manual_seed(0)
    model = LiteralESVAE(1, 32, latent=8, steps=4)
    images, u, z_n = batch(model, 1, 32)
    out, r_p, r_q, _ = model(images, u, z_n)
    out.square().mean().backward()
    assert model.sample_layer[0].weight.grad is None
    assert model.encoder[0].weight.grad.abs().max() > 0
    mmd(r_p.detach(), r_q).backward()
    assert model.sample_layer[0].weight.grad.abs().max() > 0


def test_eval_mode_treats_each_image_alone() -> None:
    torch.manual_seed(0)
    model = LiteralESVAE(1, 32, latent=8, steps=4).double()  # so that rounding moves no neuron across its threshold
    images, u, z_n = (x.double() for x in batch(model, 1, 32))
    for name, parameter in model.named_parameters():
        if name.endswith("bn.bias"):
            parameter.data.uniform_(0, 0.3)  # at the initial running statistics the network is silent without
    model(images, u, z_n)
    model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    together, r_p, _, _ = model(images, u, z_n)
    alone, r_p_alone, _, _ = model(images[:1], u[:1], z_n[:1])
    assert 0 < r_p.mean() < 1
    torch.testing.assert_close((alone, r_p_alone), (together[:1], r_p[:1]))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(model.generate(z_n, u), model.decode((u < model.prior_rate(z_n)[..., None]).double()))
