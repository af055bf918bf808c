"""Resolves what the package asks for, with constraints.txt, on every platform and Python that it is for, as `uv pip
compile` does from an index: no wheel is downloaded. `make check-install`.

constraints.txt pins versions, torch's wheels pin others (Triton), and they differ by platform: what is installed on one
machine says nothing about the others. macOS 14 is what torch's wheels ask for.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORMS = {
    "Linux x86_64": "x86_64-manylinux_2_28",
    "Linux aarch64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows x86_64": "x86_64-pc-windows-msvc",
}
# Extras whose requirements conflict are resolved one at a time, the others together; `test` has `model` and `triton`.
ALONE = ("norse", "sinabs")
FROM_SOURCE = ("norse",)  # has no wheels


def resolve(python: str, platform: str, extras: Iterable[str]) -> str:
    """Why they do not resolve, "" if they do."""
    command = ["uv", "pip", "compile", "--quiet", "--python-version", python, "--python-platform", platform]
    command += ["--constraint", "constraints.txt", "--only-binary", ":all:"]
    command += [word for name in FROM_SOURCE for word in ("--no-binary", name)]
    command += [word for extra in extras for word in ("--extra", extra)]
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0", "UV_PYTHON_DOWNLOADS": "never"}
    done = subprocess.run([*command, "pyproject.toml"], cwd=ROOT, env=environment, capture_output=True, text=True)
    return " ".join(done.stderr.split()) if done.returncode else ""


def main() -> int:
    try:
        reached = resolve(PYTHONS[0], PLATFORMS["Linux x86_64"], [])
    except FileNotFoundError:
        print("check-install: uv is missing, `pip install uv`", file=sys.stderr)
        return 2
    if "Failed to fetch" in reached or "Could not connect" in reached:
        print(f"check-install: skipped, there is no index here ({reached:.120})")
        return 0
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    together = [extra for extra in extras if extra not in ALONE]
    groups = [together, *([extra] for extra in ALONE)]
    cases = list(product(PYTHONS, PLATFORMS, groups))
    with ThreadPoolExecutor(8) as pool:
        reasons = list(pool.map(lambda case: resolve(case[0], PLATFORMS[case[1]], case[2]), cases))
    for python in PYTHONS:
        for platform in PLATFORMS:
            failed = [
                (group, why)
                for (p, s, group), why in zip(cases, reasons, strict=True)
                if (p, s) == (python, platform) and why
            ]
            print(f"Python {python}  {platform:<16}{'does not resolve' if failed else 'resolves'}")
            for group, why in failed:
                print(f"  [{', '.join(group)}] {why}")
    return int(any(reasons))


if __name__ == "__main__":
    sys.exit(main())
