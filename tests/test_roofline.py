"""bench/roofline.py: loops found and instructions counted in a listing written here, and in one compiled kernel."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
sys.path.append(str(Path(__file__).resolve().parent.parent / "bench"))
import roofline  # noqa: E402

compiles = pytest.mark.skipif(triton.knobs.runtime.interpret, reason="the interpreter is on: nothing is compiled")

# A loop from 0x10 to 0x90 around one at 0x30, with a store that is passed by now and then; the last line pads.
LISTING = """
    /*0000*/                   LDC R1, c[0x0][0x28] ;                  /* 0x00000a00ff017b82 */
                                                                       /* 0x000fe20000000a00 */
    /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;        /* 0x0000000402047981 */
    /*0020*/                   UISETP.GE.U32.AND UP0, UPT, UR4, 0x1, UPT ;  /* 0x0000000104007c0c */
    /*0030*/                   DADD R8, R8, R4 ;                       /* 0x0000000004087229 */
    /*0040*/               @P1 BRA 0x30 ;                              /* 0x0000000000047947 */
    /*0050*/              @!P0 BRA 0x70 ;                              /* 0x0000000000047947 */
    /*0060*/                   STG.E desc[UR4][R2.64], R8 ;            /* 0x0000000802007986 */
    /*0070*/                   FADD R8, R8, R4 ;                       /* 0x0000000408087221 */
    /*0080*/              @!P2 MUFU.RCP R8, R8 ;                       /* 0x0000000408087221 */
    /*0090*/                   BRA.U UP0, 0x10 ;                       /* 0x0000000100087547 */
    /*00a0*/                   EXIT ;                                  /* 0x000000000000794d */
    /*00b0*/                   BRA 0xb0;                               /* 0xfffffffc00fc7947 */
"""


def test_instructions_and_their_pipes() -> None:
    found = roofline.parse(LISTING)
    pipes = "memory memory other FP64 other other memory FMA XU other other other"
    assert [i.pipe for i in found] == pipes.split()
    assert [i.address for i in found if i.predicated] == [0x40, 0x50, 0x80, 0x90]
    assert [i.target for i in found if i.target is not None] == [0x30, 0x70, 0x10, 0xB0]


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("LDG.E", (4, 0)),
        ("LDG.E.U16.CONSTANT", (2, 0)),
        ("STG.E.U8", (0, 1)),
        ("LDG.E.64", (8, 0)),
        ("STG.E.128", (0, 16)),
        ("LDG.E.ENL2.256", (32, 0)),
        ("LDS.128", (0, 0)),
    ],
)
def test_bytes_of_an_access(name: str, moved: tuple[int, int]) -> None:
    assert roofline.Instruction(0, False, name, None).moved == moved


def test_loops_and_the_ways_through_them() -> None:
    code = roofline.Code(roofline.parse(LISTING))
    lines = {head: sorted(i.address for k in loop for i in code.blocks[k]) for head, loop in code.loops().items()}
    assert sorted(lines.values()) == [list(range(0x10, 0xA0, 0x10)), [0x30, 0x40]]
    outer, inner = sorted(lines, key=lambda head: -len(lines[head]))
    assert code.ways(inner) == {(0, 0): {"FP64": 1, "other": 1}}
    passed_by = {"memory": 1, "other": 3, "FMA": 1, "XU": 1}
    assert code.ways(outer) == {(16, 0): passed_by, (16, 4): passed_by | {"memory": 2}}


def test_warps_that_registers_allow() -> None:
    assert [roofline.warps_of(registers, 4) for registers in (32, 33, 40, 128, 168, 255)] == [64, 48, 48, 16, 12, 8]


def test_share_of_the_memorys_time() -> None:
    chip = roofline.Chip(
        "", bandwidth=1.6, clock=1.0, sms=100, fma=128, fp64=32
    )  # 16 bytes a cycle: 8 take half of one
    counts = roofline.Counter({"ALU": 32, "FMA": 12, "FMA twice": 2, "IMAD": 16, "FP64": 8, "XU": 4, "other": 54})
    expected = {"issue": 2.0, "ALU": 1.0, "FMA": 0.5, "FP64": 0.5, "XU": 0.5}
    assert roofline.shares(counts, 8, chip) == pytest.approx(expected)


@compiles
def test_a_kernel_that_is_compiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The forward's iteration takes 4 steps of 4 neurons: of each a product, a sum, a comparison and a reset."""
    path = tmp_path / "roofline.json"
    options = ["--arch", "90", "--dtype", "fp32", "--kernel", "lif forward", "--json", str(path)]
    roofline.main(options)
    printed = capsys.readouterr().out
    assert "not measured" in printed
    rows = [line for line in printed.splitlines() if line.startswith("| lif forward | fp32 | 90 |")]
    assert len(rows) == 1
    found = json.loads(path.read_text())["rows"][0]
    assert found["bytes"] == found["accessed"] == 8
    assert 4 < found["instructions"] < 40
    assert found["shares"]["FP64"] == 0 < found["shares"]["issue"]
    roofline.main([*options, "--bandwidth", "9.6"])
    twice = json.loads(path.read_text())["rows"][0]
    assert twice["shares"]["issue"] == pytest.approx(2 * found["shares"]["issue"])
