"""Noise at equal cost: the one figure by which estimators of different scale and cost can be compared."""

import math
from typing import Any

import numpy as np


def tokens_to_signal(trace: float, tokens: float, signal: float) -> float:
    """q = v c / |E g|²: the tokens of a batch at which signal equals noise; infinite without a signal.

    n estimates cost n c tokens, and their mean scatters with v / n; at n c = q that is |E g|². Neither a constant
    factor in front of g nor the size of a group changes what q says. The signal is E g, which only an unbiased or
    proportional estimator has in the direction of the true gradient.

    Args:
        trace: v ≥ 0, trace of the covariance of one estimate.
        tokens: c > 0, generated tokens that one estimate costs, branches included.
        signal: |E g|²; a sampled one may come out below 0, which is no signal.
    """
    return ratio(trace * tokens, signal, math.inf)


def ratio(above: Any, below: Any, otherwise: float) -> Any:
    """above / below where below > 0, else `otherwise`; of numbers, or of arrays entry by entry."""
    if not isinstance(below, np.ndarray):
        return above / below if below > 0 else otherwise
    return np.divide(above, below, out=np.full(below.shape, otherwise), where=below > 0)


def positive(value: Any) -> Any:
    """max(value, 0), of a number or of an array."""
    return np.maximum(value, 0.0) if isinstance(value, np.ndarray) else max(value, 0.0)


def root(value: Any) -> Any:
    """√max(value, 0), of a number or of an array."""
    return np.sqrt(positive(value)) if isinstance(value, np.ndarray) else math.sqrt(positive(value))


def at_most_1(value: Any) -> Any:
    """Cut off at -1 and 1; of a number or of an array."""
    return np.clip(value, -1.0, 1.0) if isinstance(value, np.ndarray) else max(-1.0, min(1.0, value))
