"""What the rooms share: registration in one torch library, vmap by a loop, and derivatives through the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any, TypeVar

import torch
from torch import Tensor

from .surrogate.reference import forward_mode

Result = TypeVar("Result")
Optional = Tensor | None

LIBRARY = torch.library.Library("esvae_kernels", "DEF")


_PLAIN = {torch.nn.Parameter, type(None), str, int, float, bool, torch.dtype}


def register(
    schema: str,
    run: Callable[..., Result],
    fake: Callable[..., Result],
    vmap: Callable[..., tuple[object, object]] | None = None,
    direct: Callable[..., Any] | None = None,
) -> Callable[..., Result]:
    """Defines `esvae_kernels::<schema>` for every device, and returns what calls the op, or where nobody would notice
    `direct`, by default `run`: the way through torch's dispatcher takes 5 to 10 us. `direct` may give None in the place
    of a tensor without elements, which takes 1 to 2 us each. Without a `vmap` rule, it loops."""
    name = schema.split("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    qualified = f"{LIBRARY.ns}::{name}"
    op: Callable[..., Result] = getattr(getattr(torch.ops, LIBRARY.ns), name).default
    straight: Callable[..., Result] = direct or run
    torch.library.register_fake(qualified, fake, lib=LIBRARY)
    torch.library.register_vmap(qualified, vmap or (lambda *call: one_by_one(op, *call)), lib=LIBRARY)

    def call(*arguments: object) -> Result:
        return op(*arguments) if torch.compiler.is_compiling() or _noticed(arguments) else straight(*arguments)

    return call


def _noticed(arguments: Sequence[object]) -> bool:
    """Whether a mode, a transform, a trace, a profiler, or a tensor that is no plain one waits for the op."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or _special(arguments)
    )


def _special(arguments: Sequence[object]) -> bool:
    argument: Any  # of a type that `kind` tells, which mypy does not follow
    for argument in arguments:
        kind = type(argument)
        if kind is Tensor:
            if argument.is_neg() or argument.is_meta:
                return True
        elif kind not in _PLAIN and not (kind is list and not _special(argument)):
            return True
    return False


def require(condition: object, message: Callable[[], str]) -> None:
    """`torch._check`, in a tenth of its 2 us where nothing is symbolic."""
    if condition is not True:
        torch._check(condition, message)


class Autograd(Enum):
    """What an op needs of autograd in a call."""

    NONE = 0  # the raw op alone
    EAGER = 1  # a function of `eager`
    FULL = 2  # the autograd function, which torch.func and torch.compile know
    FORWARD = 3  # the reference, which torch differentiates in any mode


def learning(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done to the tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # `any` of a generator takes 1 us
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def autograd_of(*tensors: Tensor | None) -> Autograd:
    """What a call with these tensors needs.

    Raises:
        RuntimeError: torch.jit.trace with a gradient, which it would drop without a word.
    """
    if torch.compiler.is_compiling():
        return Autograd.FULL
    if forward_mode():
        return Autograd.FORWARD
    if torch._C._are_functorch_transforms_active():
        return Autograd.FULL
    learns = learning(*tensors)
    if learns and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise RuntimeError(
            "torch.jit.trace: got tensors that need a gradient, which a trace drops; accepted is a trace under"
            " torch.no_grad(), and torch.compile or torch.export in its place"
        )
    return Autograd.EAGER if learns else Autograd.NONE


def eager(function: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """The same autograd function with forward and setup_context in one: `apply` of the other form binds the arguments
    to a signature that it inspects anew in each call, which takes 35 us."""

    def forward(ctx: Any, *inputs: Any) -> Any:
        output = function.forward(*inputs)
        function.setup_context(ctx, inputs, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(f"Eager{function.__name__.lstrip('_')}", (torch.autograd.Function,), members)


def one_by_one(
    op: Callable[..., Any], info: Any, dims: Sequence[int | None], *arguments: Any
) -> tuple[Tensor | tuple[Tensor, ...], int | tuple[int, ...]]:
    """The vmap rule that calls the op for each sample: for what samples do not share, such as sums over a batch."""
    calls = [
        op(*(a if d is None else a.select(d, k) for a, d in zip(arguments, dims, strict=True)))
        for k in range(info.batch_size)
    ]
    if isinstance(calls[0], Tensor):
        return torch.stack(calls), 0
    results = tuple(torch.stack(outputs) for outputs in zip(*calls, strict=True))
    return results, (0,) * len(results)


def differentiate(
    function: Callable[..., Sequence[Optional]],
    inputs: Sequence[Optional],
    cotangents: Sequence[Optional],
    *,
    create_graph: bool = False,
) -> list[Optional]:
    """The gradients of <cotangents, function(*inputs)> in each input, zeros where nothing flows; None stays None."""
    with _recording():
        inputs = [_leaf(t) for t in inputs]
        pairs = [
            (out, c) for out, c in zip(function(*inputs), cotangents, strict=True) if out is not None and c is not None
        ]
        return _gradients(pairs, inputs, create_graph)


def differentiate_twice(
    function: Callable[..., Sequence[Optional]],
    inputs: Sequence[Optional],
    cotangents: Sequence[Optional],
    seconds: Sequence[Optional],
) -> tuple[list[Optional], list[Optional]]:
    """The gradients of <seconds, differentiate(function, inputs, cotangents)> in the inputs and in the cotangents."""
    again = torch.is_grad_enabled()  # a third derivative may be wanted
    with _recording():
        inputs, cotangents = [_leaf(t) for t in inputs], [_leaf(t) for t in cotangents]
        first = differentiate(function, inputs, cotangents, create_graph=True)
        pairs = [(f, s) for f, s in zip(first, seconds, strict=True) if f is not None and s is not None]
        both = _gradients(pairs, [*inputs, *cotangents], again)
    return both[: len(inputs)], both[len(inputs) :]


@contextmanager
def _recording() -> Iterator[None]:
    """Autograd records in the block, also where a compiled graph has turned off its dispatch keys: it would record
    nothing there, and all gradients would be zeros."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def _leaf(tensor: Optional) -> Optional:
    """A tensor to differentiate in, part of the graph that it came with."""
    if tensor is None or not tensor.is_floating_point():
        return tensor
    return tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()


def _gradients(pairs: list[tuple[Tensor, Tensor]], inputs: Sequence[Optional], create_graph: bool) -> list[Optional]:
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    pairs = [(out, c) for out, c in pairs if out.requires_grad]
    if not pairs:
        found: Sequence[Tensor] = [torch.zeros_like(t) for t in wanted]
    else:
        outs, cs = zip(*pairs, strict=True)
        found = torch.autograd.grad(
            outs, wanted, cs, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    left = iter(found)
    return [next(left) if t is not None and t.requires_grad else None for t in inputs]
