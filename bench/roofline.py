"""What the Triton kernels ask of a GPU, read from their compiled code: `python bench/roofline.py`.

Nothing is measured, and no GPU is needed. Each kernel is compiled as it would be launched, and disassembled. A loop is
a branch backward and all that lies on a way to it from where it leads. Of the ways through a loop over time that one
counts that loads and stores as many bytes as an iteration has to, or the longest of these: so what runs every 16 steps
at most, or behind the last step, is left out. A loop within is counted by itself; where the backward computes
potentials again, as often as that happens in 16 steps. Instructions are divided by the elements of a thread and the
steps of an iteration; predicated ones count, for they are issued. What is done once per kernel is left out.

A share is the time that a multiprocessor needs to issue, or that a pipe needs to execute, over the time that memory
needs for the bytes. Above 100 % memory waits. Latencies are left out, so a real kernel is slower than any share says.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from launches import Launch, compiled, cuobjdump, recording

import esvae_kernels as ek
from esvae_kernels.ops.bn_lif.triton import _AHEAD
from esvae_kernels.ops.lif.reference import CHUNK
from esvae_kernels.ops.lif.triton import _GAIN
from esvae_kernels.ops.poisson.triton import _LANES
from esvae_kernels.surrogate import ATan, Rectangular, Surrogate

STEPS = 16
ENDS = (" forward", " backward")
AHEAD, GAIN, LANES = _AHEAD.value, _GAIN.value, _LANES.value
SURROGATES = {"atan": ATan(), "rectangular": Rectangular(0.5)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BYTES = {"*fp64": 8, "*fp32": 4, "*bf16": 2, "*fp16": 2}


class Chip(NamedTuple):
    """Memory and clock by the data sheet, lanes per multiprocessor and cycle by the CUDA programming guide."""

    name: str
    bandwidth: float  # TB/s
    clock: float  # GHz, boost
    sms: int
    fma: int  # fp32
    fp64: int
    alu: int = 64
    imad: int = 64  # of the lanes for fp32, those that multiply integers
    xu: int = 16
    issue: int = 128  # 4 instructions of 32 threads

    @property
    def bytes_per_cycle(self) -> float:
        """Of a multiprocessor."""
        return self.bandwidth * 1e3 / (self.clock * self.sms)


CHIPS = {
    80: Chip("A100 80 GB", 2.039, 1.41, 108, fma=64, fp64=32),
    90: Chip("H200", 4.8, 1.98, 132, fma=128, fp64=64),
    100: Chip("B200", 8.0, 1.965, 148, fma=128, fp64=64),  # its 37 Tflop/s of fp64 are 64 lanes
}


# -------------------------------------------------------------------------------------------------------- disassembly

PIPES = {
    "ALU": "IADD IADD3 LOP3 LOP SHF SHL SHR ISETP ICMP SEL FSEL FSETP FSET FMNMX FMNMX3 IMNMX VIMNMX VIMNMX3 VIADD "
    "VIADDMNMX PRMT LEA MOV PLOP3 F2FP I2FP F2IP SGXT BMSK IABS P2R R2P HMNMX2 HSETP2",
    "FMA": "FADD FMUL FFMA FHADD HFMA2 HADD2 HMUL2",
    "FMA twice": "FADD2 FMUL2 FFMA2",  # of two fp32 numbers
    "IMAD": "IMAD",
    "FP64": "DADD DMUL DFMA DSETP DMNMX",
    "XU": "MUFU F2F I2F F2I FRND POPC FLO BREV",
    "memory": "LDG STG LDS STS LDL STL LDC LDCU ATOMG RED",
}  # fmt: skip
LEAVES = ("EXIT", "RET")
PIPE_OF = {name: pipe for pipe, names in PIPES.items() for name in names.split()}


class Instruction(NamedTuple):
    address: int
    predicated: bool
    name: str  # with what stands behind its dots
    target: int | None  # of a branch

    @property
    def base(self) -> str:
        return self.name.partition(".")[0]

    @property
    def pipe(self) -> str:
        """ "other": control, uniform registers, which have a pipe of their own, and what the table does not know."""
        return PIPE_OF.get(self.base, "other")

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes that a thread loads from global memory and stores there."""
        if self.base not in ("LDG", "STG"):
            return 0, 0
        width = re.search(r"\.(?:[US](8|16)|(64|128)|ENL2\.(256))\b", self.name)
        size = int(next(filter(None, width.groups()))) // 8 if width else 4
        return (size, 0) if self.base == "LDG" else (0, size)


def parse(sass: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass`, of one kernel."""
    found = []
    for address, predicate, name, rest in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@\S+ )?([A-Z]\S*)([^;/]*);", sass):
        target = re.search(r"\b0x([0-9a-f]+)\s*$", rest.strip()) if name.startswith("BRA") else None
        conditional = bool(predicate) or (name.startswith("BRA") and bool(re.search(r"U?P\d", rest)))
        found.append(Instruction(int(address, 16), conditional, name, int(target[1], 16) if target else None))
    return found


Moved = tuple[int, int]  # bytes loaded and stored by a thread


class Code:
    """Basic blocks in their order, and those that follow each."""

    def __init__(self, instructions: list[Instruction]) -> None:
        index = {i.address: k for k, i in enumerate(instructions)}
        ends = {k + 1 for k, i in enumerate(instructions) if i.target is not None or i.base in LEAVES}
        targets = {index[i.target] for i in instructions if i.target is not None}
        starts = sorted(({0} | ends | targets) - {len(instructions)})
        number = {start: k for k, start in enumerate(starts)}
        self.blocks = [instructions[a:b] for a, b in zip(starts, [*starts[1:], len(instructions)], strict=True)]
        self.next: list[list[int]] = []
        for k, (*_, last) in enumerate(self.blocks):
            following = [] if last.target is None else [number[index[last.target]]]
            goes_on = last.predicated or (last.target is None and last.base not in LEAVES)
            self.next.append(following + [k + 1] * (goes_on and k + 1 < len(self.blocks)))

    def _reached(self, without: int | None = None) -> set[int]:
        """From the start, and not through `without`."""
        reached, waiting = set(), [0]
        while waiting:
            k = waiting.pop()
            if k != without and k not in reached:
                reached.add(k)
                waiting += self.next[k]
        return reached

    def loops(self) -> dict[int, set[int]]:
        """The blocks of each loop, by its first one: that which every way to the branch backward leads through."""
        reached, found = self._reached(), {}
        for tail, head in ((a, b) for a in reached for b in self.next[a]):
            if tail != head and tail in self._reached(without=head):
                continue
            inside, waiting = found.setdefault(head, {head}), [tail]
            while waiting:
                k = waiting.pop()
                if k not in inside:
                    inside.add(k)
                    waiting += [b for b in reached if k in self.next[b]]
        return found

    def ways(self, head: int = 0) -> dict[Moved, Counter]:
        """Instructions by pipe on the longest way through a loop, or from the start to the end, for each number of
        bytes that is moved on a way. Loops within are passed by."""
        loops = self.loops()
        inside = loops.get(head, set(range(len(self.blocks))))
        within = [loop for first, loop in loops.items() if first != head and loop < inside]
        known: dict[int, dict[Moved, Counter]] = {}

        def onward(k: int) -> dict[Moved, Counter]:
            if k in known:
                return known[k]
            own, moved, following = Counter(i.pipe for i in self.blocks[k]), (0, 0), self.next[k]
            for i in self.blocks[k]:
                moved = (moved[0] + i.moved[0], moved[1] + i.moved[1])
            if around := [loop for loop in within if k in loop]:
                loop = max(around, key=len)
                own, moved, following = Counter(), (0, 0), [b for a in loop for b in self.next[a] if b not in loop]
            rests: list[dict[Moved, Counter]] = [{(0, 0): Counter()}] if head in following or not following else []
            known[k] = {}
            for rest in rests + [onward(b) for b in following if b in inside and b != head]:
                for (loaded, stored), counts in rest.items():
                    to = (moved[0] + loaded, moved[1] + stored)
                    known[k][to] = max(own + counts, known[k].get(to, Counter()), key=Counter.total)
            return known[k]

        return onward(head)


# ------------------------------------------------------------------------------------------------------------ kernels


class Walk(NamedTuple):
    """A loop over time, or a kernel without one."""

    steps: int  # that an iteration takes
    loads: tuple[str, ...]  # the tensors of which a row is loaded in each step
    stores: tuple[str, ...]
    times: float  # iterations in STEPS steps


def walks(launch: Launch) -> list[Walk]:
    constants, kernel = dict(launch.constants), launch.kernel
    if kernel == "_lif_forward":
        return [Walk(constants["GROUP"], ("x",), ("out",), STEPS / constants["GROUP"])]
    if kernel == "_lif_backward":
        span, ahead, by_x = constants["SPAN"], constants["AHEAD"], constants["KIND"].WANTED & GAIN
        spans = Walk(span, ("x", "dout", *(("x",) if by_x else ())), ("dx",), STEPS / span)
        again = sum(first % CHUNK for first in range(0, STEPS, span))
        return [spans] + ([Walk(ahead, ("x",), (), again / ahead)] if again else [])
    if kernel == "_bn_moments":
        return [Walk(AHEAD, ("y",), (), STEPS / AHEAD)]
    if kernel == "_bn_correct":
        return [Walk(1, ("dx", "y"), ("dy",), STEPS)]
    if kernel == "_poisson_forward":
        return [Walk(LANES, (), ("out",), STEPS / LANES)]
    return [Walk(LANES, ("dspikes",), (), STEPS / LANES)]


class Row(NamedTuple):
    """A line of the table; figures per element and time step, shares as a part of the memory's time."""

    kernel: str
    dtype: str
    arch: int
    instructions: float
    registers: int
    warps: int
    bytes: int
    accessed: float  # bytes too, counting as often as they are loaded those that are so again, perhaps from a cache
    shares: dict[str, float]


def elements_of(launch: Launch) -> int:
    """Of a thread."""
    constants = dict(launch.constants)
    return constants["TILE_ROWS"] * constants["TILE_COLUMNS"] // (32 * dict(launch.options)["num_warps"])


def counted(launch: Launch, sass: str) -> Counter:
    """Instructions by pipe, per element and time step."""
    code, types, total = Code(parse(sass)), dict(launch.types), Counter()
    loops, elements = code.loops(), elements_of(launch)
    inner_first = sorted(loops, key=lambda first: len(loops[first]))
    for walk in walks(launch):
        moved = tuple(
            sum(BYTES[types[n]] for n in names) * walk.steps * elements for names in (walk.loads, walk.stores)
        )
        ways = [found[moved] for found in map(code.ways, inner_first) if moved in found]
        if not loops:  # parameters are loaded too
            ways = [max((way for to, way in code.ways().items() if to >= moved), key=Counter.total)]
        if not ways:
            raise RuntimeError(f"{launch.kernel}: none of {len(loops)} loops moves {moved} bytes")
        for pipe, count in ways[0].items():
            total[pipe] += count * walk.times / (STEPS * elements)
    return total


def shares(counts: Counter, size: int, chip: Chip) -> dict[str, float]:
    floats, integers = counts["FMA"] + 2 * counts["FMA twice"], counts["IMAD"]
    cycles = {
        "issue": counts.total() / chip.issue,
        "ALU": counts["ALU"] / chip.alu,
        "FMA": max((floats + integers) / chip.fma, integers / chip.imad),
        "FP64": counts["FP64"] / chip.fp64,
        "XU": counts["XU"] / chip.xu,
    }
    return {pipe: needed * chip.bytes_per_cycle / size for pipe, needed in cycles.items()}


def warps_of(registers: int, warps: int) -> int:
    """On a multiprocessor of 65536 registers, which a warp gets in units of 256: whole programs, 64 warps at most."""
    return min(64, 65536 // (math.ceil(registers * 32 / 256) * 256) // warps * warps)


def row_of(launch: Launch, name: str, dtype: str, arch: int, chip: Chip) -> Row:
    cubin = compiled(launch, ("cuda", arch, 32))["cubin"]
    counts = counted(launch, cuobjdump(cubin, "-sass"))
    registers = int(re.search(r"REG:(\d+)", cuobjdump(cubin, "--dump-resource-usage"))[1])
    first, types = walks(launch)[0], dict(launch.types)
    size = sum(BYTES[types[name]] for name in {*first.loads, *first.stores})  # each once, however often it is read
    accessed = sum(BYTES[types[n]] * w.steps * w.times / STEPS for w in walks(launch) for n in w.loads + w.stores)
    warps = warps_of(registers, dict(launch.options)["num_warps"])
    return Row(name, dtype, arch, counts.total(), registers, warps, size, accessed, shares(counts, size, chip))


def launches(dtype: torch.dtype, surrogate: Surrogate) -> dict[str, Launch]:
    """Hard reset, Rectangular or ATan; batch norm over channels-last tensors, in training."""
    neuron = {"decay": 0.25, "threshold": 0.3, "surrogate": surrogate}

    def empty(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)

    def differentiate(out: torch.Tensor) -> None:
        out.backward(torch.empty_like(out))

    found = {}
    with recording() as caught:
        differentiate(ek.lif(empty(STEPS, 4096), **neuron)[0])
        found |= {f"lif{end}": launch for end, launch in zip(ENDS, caught, strict=True)}
        caught.clear()
        weight, bias, mean, variance = (empty(64, dtype=torch.float32) for _ in range(4))
        y = empty(STEPS, 4, 8, 8, 64).movedim(-1, 2)
        differentiate(ek.bn_lif(y, weight, bias, mean.detach(), variance.detach(), training=True, **neuron)[0])
        moments, _, *ends, correct = caught
        found["bn_lif statistics"] = moments
        found |= {f"bn_lif{end}": launch for end, launch in zip(ENDS, ends, strict=True)}
        found["bn_lif correction"] = correct
        caught.clear()
        differentiate(ek.poisson(empty(8, 4096), STEPS, surrogate=surrogate))
        found |= {f"poisson{end}": launch for end, launch in zip(ENDS, caught, strict=True)}
    return found


def head(chips: dict[int, Chip], surrogate: str) -> str:
    return "\n".join(
        [
            "From compiled code, not measured on a GPU: instructions per element and time step, registers, warps and",
            "the share of the memory's time that issue and each pipe take. T = 16, hard reset, "
            f"{surrogate} surrogate. Taken for granted, per multiprocessor and cycle:",
            "",
            *(
                f"- sm_{arch}: {c.bytes_per_cycle:.1f} bytes ({c.name}: {c.bandwidth} TB/s, {c.sms} multiprocessors at "
                f"{c.clock} GHz), 4 instructions of a warp; results: {c.alu} ALU, {c.fma} fp32, {c.imad} integer "
                f"products, {c.fp64} fp64, {c.xu} XU"
                for arch, c in chips.items()
            ),
        ]
    )


def table(rows: Iterable[Row]) -> str:
    names = ("issue", "ALU", "FMA", "FP64", "XU")
    cells = [("kernel", "dtype", "sm", "instructions", "registers", "warps", "bytes", "accessed", *names)]
    cells.append(("---", "---") + ("---:",) * 11)
    for r in rows:
        figures = (
            f"{r.instructions:.1f}",
            r.registers,
            r.warps,
            r.bytes,
            f"{r.accessed:g}",
            *(f"{r.shares[n]:.0%}" for n in names),
        )
        cells.append((r.kernel, r.dtype, r.arch, *figures))
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in cells)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", choices=CHIPS, default=[*CHIPS])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=[*DTYPES])
    parser.add_argument("--kernel", default="", help="those whose name contains it")
    parser.add_argument("--surrogate", choices=SURROGATES, default="rectangular")
    defaults = ", ".join(f"sm_{arch} {c.bandwidth} / {c.clock} / {c.sms}" for arch, c in CHIPS.items())
    parser.add_argument("--bandwidth", type=float, help=f"of the memory, TB/s (this / clock / sms: {defaults})")
    parser.add_argument("--clock", type=float, help="GHz")
    parser.add_argument("--sms", type=int, help="multiprocessors")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there as well")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("bandwidth", "clock", "sms") if getattr(options, name)}
    chips = {arch: CHIPS[arch]._replace(**given) for arch in options.arch}
    rows = [
        row_of(launch, name, dtype, arch, chips[arch])
        for dtype in options.dtype
        for name, launch in launches(DTYPES[dtype], SURROGATES[options.surrogate]).items()
        if options.kernel in name
        for arch in options.arch
    ]
    print(head(chips, options.surrogate), table(rows), sep="\n\n")
    if options.json:
        assumed: dict[str, Any] = {str(arch): chip._asdict() for arch, chip in chips.items()}
        found = {"source": "compiled code, not measured", "steps": STEPS, "surrogate": options.surrogate}
        options.json.write_text(json.dumps(found | {"chips": assumed, "rows": [r._asdict() for r in rows]}, indent=1))


if __name__ == "__main__":
    main()
