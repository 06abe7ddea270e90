"""Reward functions by their names, FILE.py:FUNCTION, as a command line and a config.json write them."""

import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

from llm_mdp.own import did_you_mean, load_module, whole_file
from llm_mdp_envs.adapters.trl import TRLReward
from llm_mdp_envs.arguments import check_text, shown
from llm_mdp_envs.tasks.rows import read_rows

NAMED = re.compile(r"(?P<place>.+):(?P<function>[A-Za-z_]\w*)(?:=(?P<weight>[^=:]*))?")
FORM = "write FILE.py:FUNCTION, or FILE.py:FUNCTION=WEIGHT such as my_rewards.py:short=0.5"


class RewardFunctions(TRLReward):
    """Reward functions in files of your own, f(prompts, completions, **columns) -> list of numbers, on the rows of a
    data set: `TRLReward` by names.

    Args:
        rows: see `RowTask`.
        rewards: FILE.py:FUNCTION, or MODULE:FUNCTION, each with =WEIGHT behind it if that is not 1.
        prompt_column: the column that is asked, where it is not called "prompt"; it goes to the functions as well.
        others: see `TRLReward`.

    Raises:
        ValueError: naming what is no such function, or the row and what it lacks.
    """

    def __init__(
        self,
        rows: Any,
        rewards: Sequence[str],
        *,
        prompt_column: str = "prompt",
        split: str | None = None,
        **options: Any,
    ):
        if isinstance(rewards, str) or not isinstance(rewards, list | tuple) or not rewards:
            raise ValueError(f"rewards is {shown(rewards)}; it must be a list of names: {FORM}.")
        functions, weights = zip(*map(named_reward, rewards))
        if check_text("prompt_column", prompt_column) != "prompt":
            placed = read_rows(rows, split)
            for place, row in placed:
                if prompt_column not in row:
                    raise ValueError(f"{place} has no {prompt_column!r}, only {', '.join(map(repr, row))}.")
            rows, split = [{**row, "prompt": row[prompt_column]} for _, row in placed], None
        super().__init__(list(functions), rows, weights=list(weights), split=split, **options)


def named_reward(name: str) -> tuple[Callable, float]:
    """The function of FILE.py:FUNCTION=WEIGHT, and its weight, 1 where there is none.

    Raises:
        ValueError: if it is not written so, or there is no such file or function.
    """
    parts = NAMED.fullmatch(name) if isinstance(name, str) else None
    if parts is None:
        # A path is shown whole, for its end says which file it is.
        said = repr(name) if isinstance(name, str) else shown(name)
        file = whole_file(name, FunctionType) if isinstance(name, str) else ""
        raise ValueError(f"the reward {said} names no function; {file or f'{FORM}.'}")
    try:
        weight = 1.0 if parts["weight"] is None else float(parts["weight"])
    except ValueError:
        raise ValueError(
            f"the reward {name!r} has the weight {parts['weight']!r}, which is no number; {FORM}."
        ) from None
    module, function = load_module(parts["place"]), parts["function"]
    if not callable(found := getattr(module, function, None)):
        own = [key for key, each in vars(module).items() if getattr(each, "__module__", "") == module.__name__]
        hint = did_you_mean(function, own, f"it defines {', '.join(own) or 'none'}.")
        raise ValueError(f"{parts['place']} has no function {function!r}; {hint}")
    return found, weight
