"""verl: its `compute_score` functions as tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from llm_mdp_envs.adapters.rows import RowTask, finite, name_of
from llm_mdp_envs.task import Scores
from llm_mdp_envs.text import Reply


class VerlReward(RowTask):
    """A verl `compute_score(data_source, solution_str, ground_truth, extra_info) -> float | dict` as the reward of an
    environment.

    The reward is the number, or the "score" of the dict; what else the dict holds is no summand of it and is left out.
    None, NaN and infinity are errors.

    Args:
        compute_score: called with keywords, once a response.
        rows: as in verl's files: "prompt", "data_source", "reward_model" with a "ground_truth", and "extra_info" if
            there is any.
    """

    needed = ("prompt", "data_source", "reward_model")

    def __init__(self, compute_score: Callable, rows: Sequence[Mapping[str, Any]], **text_options: Any):
        super().__init__(rows, **text_options)
        for number, row in enumerate(self.rows):
            if not isinstance(row["reward_model"], Mapping) or "ground_truth" not in row["reward_model"]:
                raise ValueError(
                    f'rows[{number}]["reward_model"] is {row["reward_model"]!r}; it must hold a "ground_truth".'
                )
        self.compute_score = compute_score

    def grade(self, replies: Sequence[Reply]) -> Scores:
        return Scores(
            np.array([self._grade_one(reply, number) for number, reply in enumerate(replies)], dtype=np.float64)
        )

    def _grade_one(self, reply: Reply, number: int) -> float:
        row, name = reply.secret, name_of(self.compute_score)
        score = self.compute_score(
            data_source=row["data_source"],
            solution_str=reply.text,
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info"),
        )
        if isinstance(score, Mapping):
            if "score" not in score:
                raise ValueError(
                    f'{name} returned a dict without "score" for response {number}: {", ".join(map(repr, score))}.'
                )
            score = score["score"]
        return finite(name, score, number)
