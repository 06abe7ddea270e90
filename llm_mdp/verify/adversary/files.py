"""The file of an instance that a search found: an instance file, and in it what following the estimator does there."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instance_files import instance_to_dict, read_instance
from llm_mdp.exact.instances import Instance, InstanceError
from llm_mdp.files import write_text
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify.adversary.flow import Flow
from llm_mdp.verify.adversary.search import Adversary, Paths, Row, careful_paths
from llm_mdp.verify.drift import drift

POINTS = 24
"""Points of a path that are kept for its picture."""


@dataclass(frozen=True)
class Found:
    """An instance file with what a search says of it."""

    instance: Instance
    said: dict[str, Any]


def write_adversary(
    name: str, row: Row, found: Adversary, path: str | os.PathLike[str], command: str | None = None
) -> dict[str, Any]:
    """Write an instance file with an entry "adversary"; gives that entry, with the "paths" that the file leaves out.

    Raises:
        InstanceError: if the file cannot be written.
    """
    both = careful_paths(row, found.instance)
    said = describe(name, row, found, both) | ({} if command is None else {"command": command})
    content = instance_to_dict(found.instance)
    if isinstance(found.instance.policy, NgramPolicy):
        content["order"] = found.instance.policy.order
    nodes = ",\n".join(json.dumps(_whole(node)) for node in content.pop("nodes"))
    head = ",\n".join(f"{json.dumps(key)}: {_shown(value)}" for key, value in {**content, "adversary": said}.items())
    try:
        write_text(Path(path), f'{{{head},\n"nodes": [\n{nodes}\n]}}\n')
    except OSError as error:
        raise InstanceError(f"{path}: cannot write here ({error.strerror}); name another file.") from None
    return said | {"paths": {"exact": _curve(both, both.exact), "row": _curve(both, both.row)}}


def read_adversary(path: str | os.PathLike[str]) -> Found:
    """Read a file that `write_adversary` wrote.

    Raises:
        InstanceError: if it is no instance file, or has no entry "adversary".
    """
    instance = read_instance(path)
    said = json.loads(Path(path).read_text(encoding="utf-8-sig")).get("adversary")
    if not isinstance(said, dict):
        raise InstanceError(f"{path}: has no entry 'adversary'; `llm-mdp verify ROW --adversary FILE` writes one.")
    return Found(instance, said)


def describe(name: str, row: Row, found: Adversary, both: Paths) -> dict[str, Any]:
    """What a file says: the estimator, both ends, and what the search was measured against."""
    ends = {"start": both.many.numbers.start, "exact": both.exact.end, "row": both.row.end}
    figures = {key: both.figures(theta) for key, theta in ends.items()}
    said: dict[str, Any] = {
        "row": name,
        "group_size": row.group_size,
        "beta": row.beta,
        "target": row.target,
        "loss": _digits(found.loss),
        "J": {key: _digits(float(each.J)) for key, each in figures.items()},
        "KL to the start": {key: _digits(float(each.kl)) for key, each in figures.items()},
        "expected length": {key: _digits(float(each.length)) for key, each in figures.items()},
    }
    if not both.many.alone:
        said["objective"] = {key: _digits(float(each.objective)) for key, each in figures.items()}
    away = drift(row, found.instance)
    said["from the exact end"] = {"row": _digits(away.later), "at rest": away.rest}
    said["at rest"] = {"exact": bool(both.exact.rest), "row": bool(both.row.rest)}
    said["worst of random draws"] = {"draws": found.draws, "loss": _digits(found.worst_drawn)}
    said["searched"] = found.searched
    said["responses"] = _responses(both, ends)
    return said


def _responses(both: Paths, ends: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
    """RM of every response to every prompt, and its probability at the start and at both ends."""
    many, every = both.many, torch.arange(1)
    e: Enumeration = many.shape.enumeration
    chance = {key: many.leaf_chance(theta, every)[0] for key, theta in ends.items()}
    return [
        {"prompt": prompt, "tokens": [token for token in tokens if token >= 0], "RM": _digits(float(reward))}
        | {key: round(float(each[prompt, leaf]), 4) for key, each in chance.items()}
        for prompt in range(len(many.shape.prompts))
        for leaf, (tokens, reward) in enumerate(zip(e.tokens.tolist(), many.reward[0, prompt]))
    ]


def _curve(both: Paths, flow: Flow) -> dict[str, list[float]]:
    """Time, J, KL and length along a path, at points evenly spread over its steps."""
    places = sorted({round(k * (len(flow.trail) - 1) / (POINTS - 1)) for k in range(POINTS)})
    points = [(flow.trail[place][0], both.figures(flow.trail[place][1])) for place in places]
    return {
        "time": [_digits(float(time)) for time, _ in points],
        "J": [_digits(float(each.J)) for _, each in points],
        "kl": [_digits(float(each.kl)) for _, each in points],
        "length": [_digits(float(each.length)) for _, each in points],
    }


def _digits(number: float) -> float:
    """Four significant digits."""
    return 0.0 if abs(number) < 5e-5 else float(f"{number:.4g}")


def _whole(content: Any) -> Any:
    """Whole numbers without a decimal point, so that they are easy to read."""
    if isinstance(content, dict):
        return {key: _whole(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_whole(value) for value in content]
    return int(content) if isinstance(content, float) and content == round(content) else content


def _shown(value: Any) -> str:
    """JSON on one line, the entry of a search with one line for each of its own."""
    if not isinstance(value, dict):
        return json.dumps(_whole(value))
    rows = ((key, each) for key, each in value.items())
    return "{\n " + ",\n ".join(f"{json.dumps(key)}: {_rows(each)}" for key, each in rows) + "}"


def _rows(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(each) for each in value) + "]"
    return json.dumps(value)
