"""The Python of the READMEs, run as it is written there, but for what takes minutes or data that may not be here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTEAD = {  # what is run in its place
    'data.load("fashion-mnist", "test")': 'data.load("digits", "test")',
    'train(preset("best", "digits"), Path("runs/digits"))': 'model.save_pretrained("runs/digits/model")',
}


def blocks(path: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / path).read_text(), re.DOTALL)


@pytest.mark.parametrize(
    "first",
    [
        "import torch\nimport esvae_kernels",
        "import torch\nfrom esvae_kernels import neuron",
        "import torch\nfrom torch",
        "from sklearn",
        "from pathlib",
    ],
)
def test_readme(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = (block for block in blocks("README.md") if block.startswith(first))
    for written, run in INSTEAD.items():
        code = code.replace(written, run)
    exec(compile(code, "README.md", "exec"), {})


def test_every_replacement_is_of_something() -> None:
    assert all(any(written in block for block in blocks("README.md")) for written in INSTEAD)


@pytest.mark.parametrize("library", ["spikingjelly", "snntorch", "nir"])
def test_dropins(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    pattern = rf"^(import|from) {library}"
    code = next(block for block in blocks("esvae_kernels/dropin/README.md") if re.match(pattern, block))
    loops = "for t in range(T):" in code  # over a current of the reader's
    exec(
        compile(
            "import torch\nx, T, mem = torch.rand(4, 2, 8), 4, torch.zeros(2, 8)\n" * loops + code, "README.md", "exec"
        ),
        {},
    )


def test_model_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("esvae/pretrained/fashion-mnist/model/README.md")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert tuple(names["images"].shape) == (64, 1, 32, 32)
    assert not names["images"].requires_grad
