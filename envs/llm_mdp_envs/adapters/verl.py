"""verl: its `compute_score` functions as tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.adapters.rows import RowTask, awaited, call, finite, name_of
from llm_mdp_envs.arguments import check_callable, shown
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import Reply


class VerlReward(RowTask):
    """A verl `compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict` as the reward of an
    environment.

    The reward is the number, or the "score" of the dict; what else the dict holds is no summand of it and is left out.
    None, NaN and infinity are errors.

    Args:
        compute_score: called with keywords, once a response; arguments that it does not have are left out. Coroutine
            functions are awaited, all responses of a batch at the same time.
        rows: as in verl's files, or the files themselves: "prompt", "data_source", "reward_model" with a
            "ground_truth", and "extra_info" if there is any. What pandas reads from Parquet (arrays of messages) is as
            good as lists.
        others: see `RowTask`.

    Raises:
        ValueError: naming the row and what it lacks, or the response and what it was given for a reward.
    """

    needed = ("prompt", "data_source", "reward_model")

    def __init__(self, compute_score: Callable, rows: Any, **text_options: Any):
        self.compute_score = check_callable("compute_score", compute_score)
        super().__init__(rows, **text_options)
        for place, row in zip(self.places, self.rows):
            if not isinstance(row["reward_model"], Mapping) or "ground_truth" not in row["reward_model"]:
                raise ValueError(
                    f'{place} has the "reward_model" {shown(row["reward_model"])}; it must hold a "ground_truth".'
                )

    def grade(self, replies: Sequence[Reply]) -> Scores:
        scores = awaited([call(self.compute_score, self._arguments(reply)) for reply in replies])
        return Scores(np.array([self._number(score, number) for number, score in enumerate(scores)], dtype=np.float64))

    @staticmethod
    def _arguments(reply: Reply) -> dict[str, Any]:
        row = reply.secret
        return {
            "data_source": row["data_source"],
            "solution_str": reply.text,
            "ground_truth": row["reward_model"]["ground_truth"],
            "extra_info": row.get("extra_info"),
        }

    def _number(self, score: Any, number: int) -> float:
        name = name_of(self.compute_score)
        if isinstance(score, Mapping):
            if "score" not in score:
                raise ValueError(
                    f'{name} returned a dict without "score" for response {number}: {", ".join(map(repr, score))}.'
                )
            score = score["score"]
        return finite(name, score, number)
