"""What the metrics of a run say to somebody whose run learned nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SIGNAL, LEAST = "groups_with_signal", 0.05
"""Share of the groups that have a signal below which a run is said to have learned from next to nothing."""


def without_signal(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A sentence for a run in which hardly a group had two responses with different rewards; "" for others.

    A policy that has learned answers alike at the end, so that the first tenth of the steps has to say the same.
    """
    known = [each[SIGNAL] for each in metrics if SIGNAL in each]
    if not known or max(share := np.mean(known), np.mean(known[: -(-len(known) // 10)])) >= LEAST:
        return ""
    groups = f"{1 - share:.1%} of the groups" if any(known) else "every group"
    return (
        f"In {groups} all rewards were equal, and such groups teach nothing: begin with an easier task, with fewer "
        "tokens to choose from (--token-subset), with supervised batches where the task has answers (--warm-start), or "
        "with a trained model (--model FOLDER)."
    )
