"""What every model is: made from a `ModelConfig`, trained by `Trainer`, saved and loaded where the extra `model` is."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..arguments import check_tensor, integer, start_of
from ..config import ModelConfig, TrainConfig, build
from ..errors import InputError
from ..extras import MissingExtra, needed

try:
    with needed("model"):
        from .hub import Hub
except MissingExtra as missing:

    class Hub:
        """In its place: the networks run and learn with torch alone, and say what saving and loading need."""

        _why = str(missing)

        @classmethod
        def from_pretrained(cls, *_: Any, **__: Any) -> NoReturn:
            raise MissingExtra(cls._why)

        save_pretrained = push_to_hub = generate_model_card = from_pretrained


class Model(nn.Module, Hub):
    """A generative model of images (N, C, H, W) in [-1, 1].

    A subclass has `generate`; with an encoder also `encode` and `reconstruct`; and for its training `forward`, `loss`
    and, where not all of it learns at one rate, `parameter_groups`.

    Attributes:
        kind: as in `ModelConfig`.
        config: its options.
        priors: what `generate` can draw from.
        outer: how the names of weights begin that are next to the image or a score, not between hidden layers.
    """

    kind: str
    priors: tuple[str, ...]
    outer: tuple[str, ...] = ("encoder.0.", "to_image.", "attention.", "taid.")

    def __init__(self, **options) -> None:
        super().__init__()
        self.config = build(ModelConfig, {"kind": self.kind} | options, "model")
        if self.config.kind != self.kind:
            raise InputError(f"kind: got {self.config.kind!r}, accepted by {type(self).__name__} is {self.kind!r}")
        self._hub_mixin_config = dataclasses.asdict(self.config)  # all of it: defaults may change after it is saved
        self.steps = self.config.steps

    @property
    def steps(self) -> int:
        """Time steps T in use, an int; may be set, where the model can run at others than those it was made for: an
        InputError where it cannot."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        steps = integer("steps", steps, 1)
        self.config.check_steps(steps)
        self._steps = steps

    @property
    def default_prior(self) -> str:
        """The one of `priors` that `generate` draws from unless told otherwise."""
        return self.priors[0]

    def check_images(self, images: Tensor) -> None:
        """That they have the model's shape, dtype and device, and values in [-1, 1]: others would come out as something
        else, or not at all."""
        wanted = ("N", self.config.channels, self.config.size, self.config.size)
        check_tensor("images", images, wanted, next(self.parameters()), -1, 1)

    def drawn_ids(self, n: int, start: int | Tensor) -> Tensor:
        """start .. start + n - 1, on the model's device."""
        return start_of(start) + torch.arange(integer("n", n, 0), device=next(self.parameters()).device)

    def chosen_prior(self, prior: str | None) -> str:
        """`prior`, or the default one; an InputError where the model has no such prior."""
        if prior is not None and prior not in self.priors:
            raise InputError(f"prior: got {prior!r}, accepted are {', '.join(self.priors)}")
        return prior or self.default_prior

    def generate(
        self, n: int, *, seed: int | Tensor | None = None, start: int | Tensor = 0, prior: str | None = None
    ) -> Tensor:
        """Images number `start` .. `start + n - 1` of the sequence that `seed` names.

        Args:
            n: 0 or more.
            seed: of 64 bits, or an int64 tensor of one element on the model's device; by default one from torch's
                generator.
            start: 0 or more, or such a tensor.
            prior: which of `priors` it draws from; default: `default_prior`.

        Returns:
            images (n, C, H, W) in [-1, 1], of the weights' dtype, or of what autocast computes in.

        Raises:
            InputError: an argument is none of these, or the prior is a mixture that is not fitted yet.
        """
        raise NotImplementedError

    def loss(self, out: Any, images: Tensor, config: TrainConfig) -> dict[str, Tensor]:
        """What `forward` returned for `images` -> `loss`, and beside it what is worth recording; scalars, each rank's
        mean over its part of the batch."""
        raise NotImplementedError

    def parameter_groups(self, config: TrainConfig) -> list[dict[str, Any]]:
        """All parameters in groups with a learning rate `lr` each."""
        return [{"params": list(self.parameters()), "lr": config.lr}]
