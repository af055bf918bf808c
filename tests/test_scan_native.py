"""The engine of row programs (csrc/cpu/scan.cpp): its instructions, and how it goes through time, bit by bit."""

from __future__ import annotations

import array
import itertools
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
import torch
from kernel_helpers import KERNELS, SMOOTH, SURROGATES, Surrogate, cpu_only, needs_compiled, use_kernel
from row_program import ALIF, CHUNK, LIF, RowProgram, Run
from torch import Tensor

import esvae_kernels
from esvae_kernels import native

pytestmark = [needs_compiled, cpu_only("of the CPU's kernels")]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NUMBERS = {"decay": 0.7, "threshold": 0.6, "jump": 0.3, "decay_a": 0.9}


@pytest.fixture(params=KERNELS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(request.param):
        yield request.param


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def mask(of: Tensor, like: Tensor) -> Tensor:
    return of.to(like.dtype)


def scale2(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * torch.exp2(b.double().clamp(-300, 300))).to(a.dtype)


# ATan of shape 2 and scale 1, as csrc/math/surrogate.h has it.
def slope(a: Tensor, b: Tensor) -> Tensor:
    w = torch.tensor(math.pi, dtype=a.dtype) * (a - b)
    return 1 / (1 + w * w)


def primitive(a: Tensor, b: Tensor) -> Tensor:
    return torch.atan(math.pi * (a - b)) / math.pi + 0.5


EXACT: dict[str, Callable[..., Tensor]] = {
    "copy": lambda a: a,
    "neg": torch.neg,
    "not": lambda a: 1 - a,
    "abs": torch.abs,
    "sign": torch.sign,
    "floor": torch.floor,
    "trunc": torch.trunc,
    "sqrt": lambda a: torch.from_numpy(np.sqrt(a.numpy())),  # torch's own is an ulp off in fp64
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "lt": lambda a, b: mask(a < b, a),
    "le": lambda a, b: mask(a <= b, a),
    "eq": lambda a, b: mask(a == b, a),
    "ne": lambda a, b: mask(a != b, a),
    "and": lambda a, b: mask((a != 0) & (b != 0), a),
    "or": lambda a, b: mask((a != 0) | (b != 0), a),
    "where": lambda a, b, c: torch.where(a != 0, b, c),
    "mul_add": lambda a, b, c: a * b + c,
    "mul_sub": lambda a, b, c: a * b - c,
    "sub_mul": lambda a, b, c: c - a * b,
    "scale2": scale2,
    "exponent": lambda a: torch.frexp(a).exponent.to(a.dtype),
    "mantissa": lambda a: torch.frexp(a).mantissa,
    "slope": slope,
}
NEAR: dict[str, Callable[..., Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "atan": torch.atan,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "primitive": primitive,
}
TWO = ["add", "sub", "mul", "div", "minimum", "maximum", "lt", "le", "eq", "ne", "and", "or"]
TWO += ["scale2", "slope", "primitive"]
THREE = ["where", "mul_add", "mul_sub", "sub_mul"]
OPERANDS = {op: 2 if op in TWO else 3 if op in THREE else 1 for op in EXACT | NEAR}


def same(got: Tensor, expected: Tensor, signs: bool = True) -> bool:
    """Equal bits, but for which NaN it is, and for the sign of zeros if they do not count."""
    numbers = (got == expected) & ((got.signbit() == expected.signbit()) | (not signs))
    return bool((numbers | (got.isnan() & expected.isnan())).all())


def special(op: str, dtype: torch.dtype) -> list[Tensor]:
    """Every combination of what is special, and random numbers of all sizes."""
    tiny = torch.finfo(dtype).smallest_normal
    values = [0.0, -0.0, 1.0, -1.0, 1.5, -2.5, math.inf, -math.inf, math.nan, tiny, -tiny / 3, tiny / 1000, 3e38, 0.3]
    generator = torch.Generator().manual_seed(len(op))
    n = OPERANDS[op]
    columns = torch.tensor(list(itertools.product(values, repeat=n)), dtype=dtype).T
    sizes = 2.0 ** torch.randint(-30, 30, (n, 700), generator=generator)
    more = torch.randn(n, 700, generator=generator, dtype=dtype) * sizes
    a = list(torch.cat([columns, more], 1).unbind(0))
    if op in ("not", "and", "or"):
        a = [mask(t > 0, t) for t in a]
    if op == "scale2":
        a[1] = torch.randint(-310, 310, a[1].shape, generator=generator).to(dtype)
    return [t.contiguous() for t in a]


def run_op(op: str, operands: list[Tensor], numbers: Mapping[str, float]) -> Tensor:
    """One step; the operands named in `numbers` are constants."""
    names = ["a", "b", "c"][: len(operands)]
    rows = [name for name in names if name not in numbers]
    program = RowProgram([(op, "r", *names)], inputs=rows, constants=numbers, outs=(), records=("r",))
    inputs = [t[None] for name, t in zip(names, operands, strict=True) if name in rows]
    return Run(program, inputs, 1).forward()[2]["r"][0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("op", [*EXACT, *NEAR])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, of the root of -1
def test_an_instruction_is_torchs(op: str, dtype: torch.dtype, isa: str) -> None:
    function, operands = (EXACT | NEAR)[op], special(op, dtype)

    def check(got: Tensor, expected: Tensor) -> None:
        if op in NEAR:
            torch.testing.assert_close(got, expected, equal_nan=True)
        else:
            assert same(got, expected, signs=op not in ("minimum", "maximum")), op

    check(run_op(op, operands, {}), function(*operands))
    names = ["a", "b", "c"][: len(operands)]
    for fixed in itertools.chain.from_iterable(
        itertools.combinations(range(len(names)), k) for k in range(1, len(names))
    ):
        for value in (0.0, 1.0, 0.75) if op not in ("not", "and", "or") else (0.0, 1.0):
            if op == "scale2" and value == 0.75:
                continue
            given = [torch.full_like(t, value) if k in fixed else t for k, t in enumerate(operands)]
            check(run_op(op, given, {names[k]: value for k in fixed}), function(*given))


def test_a_power_of_two_rounds_once() -> None:
    a = torch.tensor([1.0 + 2**-23, 1.5, 3.0, -1.75, math.inf, math.nan])
    for b in (-149.0, -148.0, -130.0, -126.0, 127.0, 200.0, -300.0, 400.0, -400.0):
        got = run_op("scale2", [a, torch.full_like(a, b)], {})
        assert same(got, (a.double() * 2.0 ** max(-300, min(300, b))).float())
    assert run_op("scale2", [torch.tensor([2.0**-140]), torch.tensor([260.0])], {}).item() == 2.0**120


# ------------------------------------------------------------------------------------------------------ through time


def interpret(program: RowProgram, code: list, rows: dict[str, Tensor], sums: dict[str, Tensor]) -> None:
    for op, result, *names in code:
        operands = [rows[name] for name in names]
        if op == "accumulate":
            sums[result] = sums[result] + operands[0]
        else:
            rows[result] = (EXACT | NEAR)[op](*operands)


def start(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    p = run.program
    fixed = {}
    for k, name in enumerate(p.parameters):
        if run.values[k] is None:
            fixed[name] = torch.full((run.size,), run.parameters[name], dtype=run.state_dtype)
        else:
            channels, inner = run.shapes[k]
            fixed[name] = run.values[k][torch.arange(run.size) // inner % channels]
    fixed |= {name: torch.full((run.size,), v, dtype=run.state_dtype) for name, v in p.constants.items()}
    states = {s: run.initial.get(s, torch.full((run.size,), v, dtype=run.state_dtype)) for s, v in p.states.items()}
    return fixed, states


def inputs_at(run: Run, t: int) -> dict[str, Tensor]:
    rows = zip(run.program.inputs, run.inputs, run.constant, strict=True)
    return {name: (x if constant else x[t]).to(run.state_dtype) for name, x, constant in rows}


def weight(run: Run, t: int) -> Tensor:
    one = torch.ones((), dtype=run.state_dtype)
    return one / run.steps if run.readout == "rate" else one * run.weights[t] if run.readout == "weights" else one


def expected_forward(
    run: Run,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], list[dict[str, Tensor]]]:
    p = run.program
    fixed, states = start(run)
    steps, before = [], []
    for t in range(run.steps):
        before.append(states)
        rows = fixed | states | inputs_at(run, t)
        interpret(p, p.forward, rows, {})
        states = {s: rows[f"{s}'"] for s in p.states}
        steps.append(rows)
    outs = {o: torch.stack([r[o] for r in steps]) for o in p.outs}
    if run.readout != "none":
        sums = torch.zeros(run.size, dtype=run.state_dtype)
        for t, s in enumerate(outs[p.outs[0]]):
            sums = sums + (weight(run, t) * s if run.readout == "weights" else s)
        outs[p.outs[0]] = sums / run.steps if run.readout == "rate" else sums
    records = {r: torch.stack([rows[r] for rows in steps]) for r in p.records}
    return {o: s.to(run.out_dtype) for o, s in outs.items()}, states, records, before


def expected_backward(run: Run, given: Mapping[str, Tensor], before: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    p, zero = run.program, torch.zeros(run.size, dtype=run.state_dtype)
    fixed, _ = start(run)
    back = {s: given.get(f"{s}'", zero) for s in p.states}
    sums = dict.fromkeys(p.parameters, zero)
    dx: dict[str, list[Tensor]] = {name: [] for name in p.inputs}
    for t in reversed(range(run.steps)):
        rows = fixed | before[t] | inputs_at(run, t) | {f"d_{s}'": d for s, d in back.items()}
        for k, o in enumerate(p.outs):
            d = given.get(o)
            read = k == 0 and run.readout != "none"
            rows[f"d_{o}"] = (
                zero if d is None else d.to(run.state_dtype) * weight(run, t) if read else d[t].to(run.state_dtype)
            )
        for r in p.records:
            rows[f"d_{r}"] = given[r][t] if r in given else zero
        interpret(p, p.adjoint, rows, sums)
        back = {s: rows[f"d_{s}"] for s in p.states}
        for name in p.inputs:
            dx[name].insert(0, rows[f"d_{name}"])
    gradients = {}
    for name, x, constant in zip(p.inputs, run.inputs, run.constant, strict=True):
        total = zero
        for d in reversed(dx[name]):
            total = total + d
        gradients[name] = (total if constant else torch.stack(dx[name])).to(x.dtype)
    return gradients | back | sums


def check(run: Run, cotangents: Mapping[str, Tensor]) -> None:
    outs, last, records = run.forward()
    e_outs, e_last, e_records, before = expected_forward(run)
    for got, expected in ((outs, e_outs), (last, e_last), (records, e_records)):
        assert got.keys() == expected.keys()
        for name in got:
            assert torch.equal(got[name], expected[name]), name
    for c in range((run.steps - 1) // CHUNK):
        for k, s in enumerate(run.program.states):
            assert torch.equal(run.saved[k, c], before[(c + 1) * CHUNK][s])
    gradients, expected = run.backward(cotangents), expected_backward(run, cotangents, before)
    for name, got in gradients.items():
        assert torch.equal(got, expected[name]), name


def alif(steps: int, size: int, dtype: torch.dtype, out_dtype: torch.dtype | None = None, **more) -> tuple[Run, dict]:
    generator = torch.Generator().manual_seed(steps * size)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    x = draw(steps, size).to(dtype)
    run = Run(ALIF, [x], steps, more.pop("parameters", NUMBERS), out_dtype=out_dtype, **more)
    state = run.state_dtype
    shape = (size,) if run.readout != "none" else (steps, size)
    given = {"v'": draw(size).to(state), "a'": draw(size).to(state), "m": draw(steps, size).to(state)}
    if run.out_dtype != torch.uint8:
        given["s"] = draw(*shape).to(run.out_dtype)
    return run, given


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("size", [1, 7, 513, 5000])
def test_sizes_and_spans(size: int, steps: int, isa: str) -> None:
    check(*alif(steps, size, torch.float32))


@pytest.mark.parametrize("out_dtype", [None, torch.float32, torch.uint8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types(dtype: torch.dtype, out_dtype: torch.dtype | None, isa: str) -> None:
    check(*alif(17, 1037, dtype, out_dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("readout", ["rate", "weights"])
def test_readouts(readout: str, dtype: torch.dtype, isa: str) -> None:
    weights = [0.1 * t - 0.3 for t in range(33)] if readout == "weights" else ()
    check(*alif(33, 700, dtype, readout=readout, weights=weights))


def test_several_values_as_one_output(isa: str) -> None:
    """An output that is no mask keeps its value in every type."""
    program = RowProgram([("trunc", "s", "x")])
    x = torch.arange(40.0)[None] / 4
    for dtype in (torch.uint8, torch.float16, torch.float32):
        assert torch.equal(Run(program, [x], 1, out_dtype=dtype).forward()[0]["s"], x.trunc().to(dtype))


@pytest.mark.parametrize("inner", [1, 4])
def test_parameters_per_channel(inner: int, isa: str) -> None:
    generator = torch.Generator().manual_seed(inner)
    parameters = NUMBERS | {
        "decay": (torch.rand(6, generator=generator), inner),
        "jump": (torch.rand(5, generator=generator), inner),
        "threshold": (torch.rand(700, generator=generator), 1),
    }
    check(*alif(18, 700, torch.float32, parameters=parameters))


def test_initial_states_and_absent_tensors(isa: str) -> None:
    run, given = alif(20, 300, torch.float32, initial={"a": torch.rand(300)})
    check(run, given)
    check(run, {})
    check(run, {"a'": given["a'"]})
    full = run.backward(given)
    for wanted in (["x"], ["v"], ["jump"], ["x", "threshold", "a"]):
        part = run.backward(given, wanted)
        assert list(part) == [name for name in full if name in wanted]
        assert all(torch.equal(part[name], full[name]) for name in wanted)
    outs, last, _ = run.forward(record=False)
    again, last_again, _ = run.forward()
    assert torch.equal(outs["s"], again["s"])
    assert torch.equal(last["v"], last_again["v"])


TWO_INPUTS = RowProgram(
    [("mul_add", "v'", "g", "v", "x"), ("add", "s", "v'", "g")],
    [
        ("add", "d", "d_s", "d_v'"),
        ("copy", "d_x", "d"),
        ("mul_add", "d_g", "d", "v", "d_s"),
        ("mul", "d_v", "d", "g"),
    ],
    inputs=("x", "g"),
    states={"v": 0.25},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("constant", [(True, False), (False, True), (True, True), (False, False)])
def test_inputs_constant_in_time(constant: tuple[bool, bool], dtype: torch.dtype, isa: str) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.rand((555,) if c else (19, 555), generator=generator).to(dtype) for c in constant]
    check(Run(TWO_INPUTS, inputs, 19), {"s": torch.randn(19, 555, generator=generator).to(dtype)})


def test_threads_do_not_change_bits(threads: Callable[[int], None], isa: str) -> None:
    results = []
    for n in (1, 2):
        threads(n)
        run, given = alif(33, 5003, torch.float32)
        results.append([*(t for group in run.forward() for t in group.values()), *run.backward(given).values()])
    assert all(map(torch.equal, *results))


def test_large_tensors_bypass_the_cache(isa: str) -> None:
    """Past 8 MiB outputs and gradients are stored past the cache."""
    run, given = alif(16, (1 << 17) + 5, torch.float32)
    check(run, given)


def packed(surrogate: Surrogate) -> tuple[int, float, float, float]:
    return surrogate.id, float(surrogate.parameter), float(surrogate.scale), float(surrogate.shift)


@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_lif_is_lif(surrogate: Surrogate, isa: str) -> None:
    x = torch.randn(33, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spikes, _ = esvae_kernels.lif(x, decay=0.7, threshold=0.6, surrogate=surrogate)
    ds = torch.randn(33, 1000, generator=torch.Generator().manual_seed(1))
    (dx,) = torch.autograd.grad(spikes, x, ds)
    run = Run(LIF, [x.detach()], 33, NUMBERS, surrogate=packed(surrogate))
    assert torch.equal(run.forward()[0]["s"], spikes)
    assert torch.equal(run.backward({"s": ds}, ["x"])["x"], dx)


@pytest.mark.parametrize("surrogate", SMOOTH, ids=lambda s: type(s).__name__)
def test_a_smooth_spike_is_lifs(surrogate: Surrogate, isa: str) -> None:
    x = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0))
    program = RowProgram([("primitive", "s", "x", "threshold")], constants={"threshold": 0.6})
    got = Run(program, [x], 1, surrogate=packed(surrogate)).forward()[0]["s"]
    assert torch.equal(got, esvae_kernels.lif(x, decay=0.7, threshold=0.6, surrogate=surrogate)[0])


# ---------------------------------------------------------------------------------------------------- what is refused


def broken(change: Callable[[list[int]], None], name: str = "scan_forward") -> None:
    run, given = alif(17, 64, torch.float32)
    run.forward()
    run.backward(given)
    call, words, *_ = run.calls[name]
    code = list(words)
    change(code)
    words[:] = array.array("q", code)
    call()


@pytest.mark.parametrize("name", ["scan_forward", "scan_backward"])
def test_a_wrong_program_is_refused(name: str) -> None:
    head = 6 + 1 + 2 * len(ALIF.parameters)  # then n_scratch, n_instructions, the first instruction
    broken(lambda code: None, name)
    for place, value in ((0, -1), (1, 1 << 40), (5, 5000), (head, -1), (head + 1, 1 << 30)):
        with pytest.raises(ValueError, match="out of range"):
            broken(lambda code, k=place, v=value: code.__setitem__(k, v), name)
    for place, value, why in (
        (2, 99, "no such op"),
        (2, -1, "no such op"),
        (2, native.module.scan_ops["accumulate"], "not its own|accumulate is for"),
        (3, 0, "not its own"),
        (3, 1000, "not its own"),
        (4, 1000, "no row"),
        (5, -1, "no row"),
        (4, 10, "read before"),
    ):
        with pytest.raises(ValueError, match=why):
            broken(lambda code, k=head + place, v=value: code.__setitem__(k, v), name)


def test_what_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="a result is not written"):
        Run(RowProgram([("copy", "r", "x")]), [torch.zeros(1, 4)], 1).forward()
    with pytest.raises(ValueError, match="surrogate"):
        Run(RowProgram([("slope", "s", "x", "x")]), [torch.zeros(1, 4)], 1, surrogate=(17, 1.0, 1.0, 0.0)).forward()
