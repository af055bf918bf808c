"""The Inception Score (Salimans et al. 2016, arXiv 1606.03498, section 4): exp of the mean KL(p(y|x) || p(y)).

The standard reading, from the classes that an Inception network sees in generated images, over 10 splits. It grows with
the number of images (5,000 here, 50,000 in most papers) and says little about images of other things than ImageNet's.
Table I of the paper cannot be set beside it: the published code feeds the network values in 0..255, where it was
trained on [-1, 1], and takes another network (torchvision's, with other weights and 1,000 classes) and other splits.
That reading is not offered: it needs weights that nothing else here needs, to measure by a slip.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esvae.errors import InputError

SPLITS = 10


def inception_score(logits: Tensor, splits: int = SPLITS) -> tuple[float, float]:
    """Mean and standard deviation over `splits` consecutive parts of the images' logits (N, classes); in fp64.

    Raises `InputError` for fewer images than splits, and values that are not finite.
    """
    if logits.ndim != 2 or len(logits) < splits or not logits.isfinite().all():
        got = f"{tuple(logits.shape)}{'' if logits.isfinite().all() else ', some not finite'}"
        raise InputError(f"logits: finite ones of the shape (N, classes) with N >= {splits} are wanted, not {got}")
    scores = []
    for part in logits.double().log_softmax(1).tensor_split(splits):
        marginal = part.exp().mean(0).log()
        scores.append((part.exp() * (part - marginal)).sum(1).mean().exp())
    scores = torch.stack(scores)
    return scores.mean().item(), scores.std(correction=0).item()
