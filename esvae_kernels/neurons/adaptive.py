"""Neurons whose threshold follows what they did."""

from __future__ import annotations

from typing import Any

from ..dynamics import spike
from ..neuron import neuron


@neuron(states={"v": 0.0, "a": 0.0})
def alif(x: Any, v: Any, a: Any, *, decay: Any, threshold: Any, jump: Any, decay_a: Any) -> Any:
    """Adaptive leaky integrate-and-fire neurons: a spike raises the threshold by `jump`, and of that `decay_a` is left
    after a step (LSNN; Bellec et al., 2018, arXiv 1803.09574, here with a reset to 0).

    m_t = decay v_{t-1} + x_t, s_t = [m_t >= threshold + jump a_{t-1}], v_t = m_t (1 - s_t),
    a_t = decay_a a_{t-1} + s_t.

    Records: "membrane", m.
    """
    m = decay * v + x
    s = spike(m, threshold + jump * a)
    return s, (m * (1 - s), decay_a * a + s), {"membrane": m}
