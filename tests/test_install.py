"""What is built and installed: an sdist, the wheel that is made of it, and packages of machines on which not all can be
compiled. Takes minutes, and an index for what a build needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def run(*command: str | Path, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, text=True, capture_output=True, **options)  # type: ignore[call-overload]
    if check and done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}: {done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout of its own: builds write into it."""
    folder = tmp_path_factory.mktemp("source") / "esvae"
    for name in ("csrc", "esvae", "esvae_kernels"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "not_built.txt"))
    for path in (*ROOT.glob("*.*"), ROOT / "LICENSE", ROOT / "Makefile", ROOT / "tests" / "smoke.py"):
        if path.is_file() and path.suffix != ".so":
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    return folder


def install(source: Path, target: Path, **environment: str) -> str:
    """Installs into a folder that is put in front of this environment's packages; what was printed."""
    command = [sys.executable, "-m", "pip", "install", "--verbose", "--no-deps", "--target", target, source]
    done = run(*command, env=os.environ | environment)
    return done.stdout + done.stderr


def python(code: str, target: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code with the package of that folder, in a folder where there is no other."""
    paths = os.environ | {"PYTHONPATH": str(target)} | environment
    return run(sys.executable, "-c", code, env=paths, cwd=target, check=False)


# ---------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made of the sdist by the command of the Makefile; on Linux for any distribution that is new enough."""
    run("make", "wheel", f"BIN={Path(sys.executable).parent}", "INSTALL=", cwd=source)
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def empty(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel and what it asks for; its PATH leads to nothing else, and to no compiler."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    constraints = ("--constraint", ROOT / "constraints.txt")
    run(folder / "bin" / "pip", "install", "--quiet", *constraints, f"esvae[model] @ {wheel.as_uri()}")
    return folder


@pytest.mark.skipif(sys.platform != "linux", reason="manylinux is for Linux")
def test_the_wheel_is_for_any_linux(wheel: Path) -> None:
    assert "-manylinux_2_" in wheel.name


def test_the_sdist_holds_what_a_build_needs(wheel: Path) -> None:
    (sdist,) = wheel.parent.glob("*.tar.gz")
    names = run("tar", "-tzf", sdist).stdout.splitlines()
    inside = {name.partition("/")[2] for name in names}
    assert {"CMakeLists.txt", "csrc/module.cpp", "csrc/cuda/lif.cu", "constraints.txt", "LICENSE"} <= inside


def test_forward_and_backward_without_a_compiler(empty: Path) -> None:
    done = run(empty / "bin" / "python", ROOT / "tests" / "smoke.py", cwd=empty, env={"PATH": str(empty / "bin")})
    assert str(empty) in done.stdout
    assert "bit for bit" in done.stdout


def test_generate_without_a_compiler(empty: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples.png"
    environment = {"PATH": str(empty / "bin"), "HOME": str(tmp_path)}
    run(empty / "bin" / "esvae", "generate", "fashion-mnist", "--n", "8", "--out", out, cwd=tmp_path, env=environment)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_kernels_need_torch_and_numpy_alone(empty: Path) -> None:
    code = "import importlib.metadata as m; print([r for r in m.requires('esvae') if 'extra' not in r])"
    required = run(empty / "bin" / "python", "-c", code).stdout
    assert required.split("'")[1::2] == ["torch>=2.10", "numpy>=1.26"]


# ------------------------------------------------------------------------------------- where not all can be compiled

USE = """
import sys, warnings
sys.modules["_esvae_kernels"] = None  # that of the environment which torch is taken from
import torch, esvae_kernels as ek
print(ek.available_backends())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        x = torch.ones(3, 2, requires_grad=True)
        ek.lif(x, decay=0.5, threshold=1.0)[0].sum().backward()
print(*(w.message for w in caught), sep="\\n")
"""


@pytest.mark.parametrize("compiler", ["false", "/no/compiler"])
def test_without_a_compiler_the_reference_runs_and_says_why(source: Path, tmp_path: Path, compiler: str) -> None:
    printed = install(source, tmp_path, CXX=compiler)
    (note,) = (tmp_path / "esvae_kernels").glob("not_built.txt")
    why = note.read_text().strip()
    assert compiler in why
    assert "install GCC or Clang" in why
    assert "\n" not in why
    assert sum(why in line for line in printed.splitlines()) == 1
    assert not list(tmp_path.glob("_esvae_kernels*"))
    done = python(USE, tmp_path)
    assert done.returncode == 0, done.stderr
    backends, *warned = done.stdout.splitlines()
    assert backends == "['reference']"
    assert len(warned) == 1  # of four calls
    assert why in warned[0]


def test_without_openmp_the_kernels_have_one_thread(source: Path, tmp_path: Path) -> None:
    install(source, tmp_path, CMAKE_ARGS="-DESVAE_CUDA=OFF -DCMAKE_DISABLE_FIND_PACKAGE_OpenMP=ON")
    done = python((ROOT / "tests" / "smoke.py").read_text(), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the kernels have one: there was no OpenMP when it was built" in done.stdout
    (module,) = tmp_path.glob("_esvae_kernels*")
    assert b"GOMP_parallel" not in module.read_bytes()


def test_an_unknown_compiler_is_named(source: Path, tmp_path: Path) -> None:
    """As MSVC, whose place a compiler takes that says it is another one."""
    toolchain = tmp_path / "toolchain.cmake"
    toolchain.write_text(
        'set(CMAKE_CXX_COMPILER_ID "MSVC")\nset(CMAKE_CXX_COMPILER_ID_RUN 1)\nset(CMAKE_CXX_COMPILER_FORCED 1)\n'
    )
    install(source, tmp_path / "package", CMAKE_ARGS=f"-DCMAKE_TOOLCHAIN_FILE={toolchain}")
    why = (tmp_path / "package" / "esvae_kernels" / "not_built.txt").read_text()
    assert why.startswith("The kernels are written for GCC and Clang, and this compiler is MSVC; install GCC or Clang")
