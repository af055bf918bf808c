"""Builds the compiled module `_esvae_kernels` with CMake and ninja; everything else is in pyproject.toml.

Where it cannot be built, the package is installed without it and runs on the reference, in pure PyTorch. The file
esvae_kernels/not_built.txt then holds the reason in one line, which the package repeats when it is first used.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
WAY_OUT = "install GCC or Clang (apt-get install g++; xcode-select --install), then `pip install .` again"
# CMake's messages are sentences below a heading, a compiler's are lines.
WHY = re.compile(r"CMake Error[^\n]*:\n(.+?\.)\n|^([^\n]*\berror\b[^\n]*)", re.DOTALL | re.MULTILINE | re.IGNORECASE)


class BuildAnew(build_py):
    """Without what an earlier build left in build/lib*: a file that has gone since would be installed again."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class CMakeBuild(build_ext):
    """Configures, builds and puts the module where setuptools wants it. No torch is needed."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(build, ignore_errors=True)  # a cache would name the ninja of a build environment that is gone
        build.mkdir(parents=True)
        note = target / "esvae_kernels" / "not_built.txt"
        note.unlink(missing_ok=True)
        try:
            run(
                *("cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"),
                f"-DESVAE_VERSION={self.distribution.get_version()}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
                *os.environ.get("CMAKE_ARGS", "").split(),
            )
            run("cmake", "--build", str(build))
        except CompileError as why:
            note.parent.mkdir(exist_ok=True)
            note.write_text(f"{why}\n", encoding="utf-8")
            raise  # setuptools makes a warning of it, as the extension is optional, and goes on


def run(*command: str) -> None:
    """Runs a step of the build and shows what it prints; where it fails, a CompileError of one line."""
    text = ""
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as step:
            for line in step.stdout:
                text += (line := line.decode(errors="replace"))
                print(line, end="", flush=True)
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be run: {error.strerror}") from error
    if step.returncode:
        found = WHY.search(text)
        why = " ".join((found[1] or found[2]).split()) if found else f"cmake: exit status {step.returncode}"
        raise CompileError(f"{why.rstrip('.'):.300}; {WAY_OUT}")


setup(
    ext_modules=[Extension("_esvae_kernels", sources=[], optional=True)],
    cmdclass={"build_py": BuildAnew, "build_ext": CMakeBuild},
)
