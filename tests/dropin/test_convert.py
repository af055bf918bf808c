"""`convert` and `revert`, on a small library made for the test: what they do with any library."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from kernel_helpers import one_line
from torch import Tensor, nn

from esvae_kernels.dropin import Entry, convert, revert


class Neuron(nn.Module):
    """What all neurons of the library derive from."""

    __module__ = "made_up.neurons"

    def __init__(self, lacking: str | None = None) -> None:
        super().__init__()
        self.lacking = lacking
        self.w = nn.Parameter(torch.tensor(0.5))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


class Replaced(Neuron):
    pass


class Unknown(Neuron):
    pass


class Derived(Replaced):
    pass


class Ours(Replaced):
    @classmethod
    def why_not(cls, layer: Replaced) -> str | None:
        return layer.lacking

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) - x * self.w  # the same, by other operations


class DerivedFromOurs(Ours):
    pass


@pytest.fixture(autouse=True)
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("dropin_of.made_up")
    module.REPLACEMENTS, module.NEURONS = {Replaced: Ours}, (Neuron,)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules[convert.__module__], "LIBRARIES", (("made_up", module.__name__),))


def network(*neurons: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), *neurons)


def classes(model: nn.Module) -> list[type]:
    return [type(layer) for layer in model.modules()]


def test_report_and_what_is_replaced() -> None:
    model = network(Replaced(), Unknown(), Derived(), Replaced("no such thing"), nn.Sequential(Replaced()))
    report = convert(model)
    assert [type(layer) for layer in model[1:5]] == [Ours, Unknown, Derived, Replaced]
    assert type(model[5][0]) is Ours
    assert report.replaced == (Entry("1", "made_up Replaced", None), Entry("5.0", "made_up Replaced", None))
    assert report.kept == (
        Entry("2", "made_up Unknown", "no kernel for it"),
        Entry("3", "made_up Derived", "a subclass of Replaced, left alone"),
        Entry("4", "made_up Replaced", "no such thing"),
    )
    lines = str(report).splitlines()
    assert lines[0].split() == ["1", "made_up", "Replaced", "replaced"]
    assert lines[3].endswith("no such thing")
    assert lines[-1] == "2 of 5 neuron layers replaced"


def test_the_model_itself_and_no_neurons() -> None:
    layer = Replaced()
    assert "(the model)" in str(convert(layer))
    assert type(layer) is Ours
    assert str(convert(nn.Linear(2, 2))) == "0 of 0 neuron layers replaced"


def test_everything_else_stays() -> None:
    model = network(Replaced()).eval()
    layer, calls = model[1], []
    layer.register_forward_hook(lambda *_: calls.append(1))
    before = dict(layer.__dict__)
    tensors = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    convert(model)
    assert model[1] is layer
    assert layer.__dict__ == before
    assert not layer.training
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == tensors
    model(torch.ones(2, 3))
    assert calls == [1]


def test_an_optimiser_goes_on() -> None:
    model = network(Replaced())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    convert(model)
    before = model[1].w.item()
    model(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    assert model[1].w.item() != before


def test_a_shared_layer_counts_once() -> None:
    layer = Replaced()
    model = network(layer, layer)
    assert len(convert(model).entries) == 1
    assert type(model[2]) is Ours


def test_twice_and_half_converted() -> None:
    model = network(Replaced(), Ours(), DerivedFromOurs())
    first = convert(model)
    assert convert(model) == first
    assert [entry.layer for entry in first.replaced] == ["made_up Replaced"] * 2
    assert first.kept == (Entry("3", "made_up DerivedFromOurs", "a subclass of Replaced, left alone"),)
    assert [type(layer) for layer in model[1:]] == [Ours, Ours, DerivedFromOurs]


def test_revert_undoes() -> None:
    model = network(Replaced(), Unknown(), Derived(), Replaced("no such thing"), DerivedFromOurs())
    before = classes(model)
    convert(model)
    assert classes(model) != before
    revert(model)
    assert classes(model) == before


def test_strict_raises_and_changes_nothing() -> None:
    model = network(Replaced(), Unknown(), Replaced("no such thing"))
    before = classes(model)
    one_line(
        lambda: convert(model, strict=True), ValueError, "model: 2 neuron layers cannot be replaced: 2 (made_up Un"
    )
    with pytest.raises(ValueError, match=r"3 \(made_up Replaced\): no such thing"):
        convert(model, strict=True)
    assert classes(model) == before
    assert len(convert(network(Replaced()), strict=True).replaced) == 1


def test_tensors_on_several_devices() -> None:
    model = network(Replaced(), Replaced())
    model[2].count = model[2].count.to("meta")
    assert convert(model).kept == (Entry("2", "made_up Replaced", "its tensors are on several devices: cpu, meta"),)
    one_line(lambda: convert(network(model[2]), strict=True), ValueError, "model: 1 neuron layers cannot be replaced")


@pytest.mark.parametrize("function", [convert, revert])
def test_not_a_module(function) -> None:
    one_line(lambda: function([Replaced()]), TypeError, "model: got list, accepted is a torch.nn.Module")


def test_a_library_that_the_model_has_nothing_of_may_be_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    libraries = sys.modules[convert.__module__].LIBRARIES
    broken = ("other", "dropin_of.other")  # there is no such module of ours
    monkeypatch.setitem(sys.modules, "other", ModuleType("other"))
    monkeypatch.setattr(sys.modules[convert.__module__], "LIBRARIES", (broken, *libraries))
    assert len(convert(network(Replaced())).replaced) == 1


def test_no_library_is_imported() -> None:
    """`convert` looks only for libraries that the model can be made of."""
    code = (
        "import sys, torch; from esvae_kernels.dropin import convert; convert(torch.nn.Linear(2, 2)); "
        "print([m for m in ('spikingjelly', 'snntorch', 'norse', 'sinabs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
