"""What a task says of responses besides their reward: graded parts, verdicts and other details, as metrics and as facts
of single responses."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.task import Scores

MOST_VERDICTS = 12
"""Different words that a detail may have to be counted word by word."""
VERDICT = re.compile(r"[A-Za-z][\w -]{0,30}")
"""A word that may name a metric."""

Columns = dict[str, np.ndarray]
"""`part/NAME` and `detail/NAME` -> (N,), one value a response."""


def columns(scores: Sequence[Scores]) -> Columns:
    """Parts and details of all responses of several batches, one after another; what some batches lack is shorter."""
    found: dict[str, list[np.ndarray]] = {}
    for each in scores:
        for kind, named in (("part", each.parts), ("detail", each.details)):
            for name, values in named.items():
                found.setdefault(f"{kind}/{name}", []).append(np.asarray(values))
    return {name: _joined(parts) for name, parts in found.items()}


def joined(several: Sequence[Columns]) -> Columns:
    """The columns of several processes as one."""
    names = dict.fromkeys(name for each in several for name in each)
    return {name: _joined([each[name] for each in several if name in each]) for name in names}


def graded(of: Columns, prefix: str = "") -> dict[str, float]:
    """Metrics of the responses: the mean of a part or of a figure (of a truth value, how often it holds), as
    `part/NAME` and `detail/NAME`; of a detail in words the share of every word, as `detail/NAME/WORD`.

    Values that are not finite are left out. So are details that are texts rather than verdicts: more than
    `MOST_VERDICTS` different ones, or more than half as many as there are responses (four may always be), or ones that
    are no plain words.

    Args:
        prefix: of the names, such as "eval/".
    """
    metrics: dict[str, float] = {}
    for name, values in of.items():
        if values.dtype.kind in "biuf":
            finite = values[np.isfinite(values)]
            metrics |= {f"{prefix}{name}": float(finite.mean())} if len(finite) else {}
        else:
            words = [str(value) for value in values.tolist() if value is not None]
            kinds = sorted(set(words))
            if len(kinds) <= min(MOST_VERDICTS, max(len(words) // 2, 4)) and all(map(VERDICT.fullmatch, kinds)):
                metrics |= {f"{prefix}{name}/{kind}": words.count(kind) / len(words) for kind in kinds}
    return metrics


def facts(of: Columns, row: int) -> dict[str, Any]:
    """Parts and details of one response, as plain values."""
    values = {name: each[row].item() if hasattr(each[row], "item") else each[row] for name, each in of.items()}
    return {
        name: value if isinstance(value, str | int | float | None) else str(value) for name, value in values.items()
    }


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Of values of one kind, or as objects."""
    numbers = all(each.dtype.kind in "biuf" for each in parts)
    return np.concatenate(parts if numbers else [each.astype(object) for each in parts])
