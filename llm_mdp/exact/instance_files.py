"""Instance files: an instance as one JSON file that any other program can read.

    {"vocab_size": 3, "eos": 0, "horizon": 3, "gamma": 1.0,
     "nodes": [{"prefix": [], "logits": [0.1, -0.3, 0.7], "token_reward": [0.2, 1.1, -0.4],
                "reference_logits": [0, 0, 0], "value": 0.3}, …]}

One node for every non-terminal prefix, in any order. `eos` may be null (only the horizon ends a response). Optional:
`gamma` (default 1), `reference_logits` (default 0, the uniform policy), `value` (default 0). With prompts other than
the single empty one the file also has `"prompts": [{"tokens": [1], "probability": 0.4}, …]` and every node a
`"prompt"`, its number there. With an environment that draws some of the tokens, `"environment_at": [1, 3]` says after
how many; the `logits` of those nodes are the environment's, which no gradient is taken by.
"""

import json
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.exact.instances import Instance, InstanceError, Node, check_size, node_table, stacked_rows
from llm_mdp.exact.tree_gradient import node_logits
from llm_mdp.files import write_text
from llm_mdp.mdp.environment import Environment, check_places
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP, check_prompts, check_shape
from llm_mdp.mdp.tree import PAD, PrefixTree, context_code, pad_prompts
from llm_mdp.own import did_you_mean
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy, TabularValue

OPTIONAL = ("gamma", "prompts", "environment_at", "order", "adversary")
"""Keys of a file that may be left out."""


def write_instance(instance: Instance, path: str | os.PathLike[str]) -> None:
    """Write an instance file, whole or not at all; reading it gives bit-identical tensors.

    Raises:
        InstanceError: if a number is not finite or the file cannot be written.
    """
    content = instance_to_dict(instance)
    nodes = ",\n".join(json.dumps(node) for node in content.pop("nodes"))
    text = f'{json.dumps(content)[:-1]}, "nodes": [\n{nodes}\n]}}\n'
    try:
        write_text(Path(path), text)
    except OSError as error:
        raise InstanceError(f"{path}: cannot write the instance here ({error.strerror}); name another file.") from None


@torch.no_grad()
def instance_to_dict(instance: Instance) -> dict[str, Any]:
    """The content of the instance file. A policy that is not tabular is written as the logits that it has at every
    prefix.

    Raises:
        InstanceError: if a number is not finite.
    """
    mdp = instance.mdp
    tables = {
        "logits": node_table(instance, node_logits(instance.policy, mdp)),
        "token_reward": node_table(instance, mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)),
        "reference_logits": node_table(instance, list(instance.reference.levels)),
        "value": node_table(instance, [level[:, None] for level in instance.value.levels])[:, 0],
    }
    for key, table in tables.items():
        _check_written(key, table, instance.node_order)
    columns = {key: table.tolist() for key, table in tables.items()}
    content: dict[str, Any] = {"vocab_size": mdp.vocab_size, "eos": mdp.eos, "horizon": mdp.horizon, "gamma": mdp.gamma}
    if mdp.environment is not None:
        content["environment_at"] = list(mdp.environment.at)
    named = mdp.prompts != (Prompt(),)
    if named:
        content["prompts"] = [
            {"tokens": list(prompt.tokens), "probability": prompt.probability} for prompt in mdp.prompts
        ]
    content["nodes"] = [
        ({"prompt": prompt} if named else {})
        | {"prefix": list(prefix)}
        | {key: column[row] for key, column in columns.items()}
        for row, (prompt, prefix) in enumerate(instance.node_order)
    ]
    return content


def _check_written(key: str, table: Tensor, nodes: Sequence[Node]) -> None:
    wrong = (~table.isfinite()).nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        number = table[tuple(wrong[0])].item()
        raise InstanceError(
            f"{key} at {_node_name(nodes[row])} holds {number}; an instance file has finite numbers only."
        )


# --- read -------------------------------------------------------------------------------------------------------------


def read_instance(path: str | os.PathLike[str]) -> Instance:
    """Read an instance file; the instance is named after it.

    Raises:
        InstanceError: in one sentence, what is wrong with the file and where.
    """
    try:
        return instance_from_dict(_parse(_read_text(path)), name=Path(path).stem)
    except InstanceError as error:
        raise InstanceError(f"{path}: {error}") from None


def instance_from_dict(content: dict[str, Any], name: str = "") -> Instance:
    """The instance that a parsed instance file describes.

    Raises:
        InstanceError: in one sentence, what is wrong and where.
    """
    _check_keys(content, "the instance", ("vocab_size", "eos", "horizon", "nodes"), OPTIONAL)
    vocab_size, eos, horizon = content["vocab_size"], content["eos"], content["horizon"]
    gamma, environment_at = content.get("gamma", 1.0), content.get("environment_at", ())
    try:
        check_shape(vocab_size, eos, horizon, gamma)
        check_places(environment_at, horizon)
        prompts = _read_prompts(content["prompts"]) if "prompts" in content else (Prompt(),)
        check_prompts(prompts, vocab_size)
    except ValueError as error:
        raise InstanceError(str(error)) from None
    tree = PrefixTree(vocab_size, eos, horizon)
    check_size(tree, len(prompts))
    columns = _read_nodes(content["nodes"], tree, len(prompts))
    instance = _build(tree, float(gamma), prompts, tuple(environment_at), columns, name)
    return instance if "order" not in content else _with_shared_logits(instance, content["order"], columns.logits)


@dataclass(frozen=True)
class _Columns:
    """The checked nodes of a file, key by key."""

    node: list[Node]
    logits: list[list[float]]
    token_reward: list[list[float]]
    reference_logits: list[list[float]]
    value: list[float]


def _build(
    tree: PrefixTree,
    gamma: float,
    prompts: tuple[Prompt, ...],
    environment_at: tuple[int, ...],
    columns: _Columns,
    name: str,
) -> Instance:
    order = tuple(columns.node)
    rows = stacked_rows(tree, len(prompts), order)
    tokens = pad_prompts([prompt.tokens for prompt in prompts])

    def levels(table: list[Any]) -> list[Float[Tensor, "P V N"]]:
        stacked = torch.empty(len(rows), len(table[0]), dtype=torch.float64)
        stacked[rows] = torch.tensor(table, dtype=torch.float64)
        parts = stacked.split([len(prompts) * size for size in tree.level_sizes])
        return [part.reshape(len(prompts), -1, len(table[0])).transpose(1, 2).contiguous() for part in parts]

    reward = TableReward(tree, tokens, levels(columns.token_reward))
    value = TabularValue(tree, tokens, [level[:, 0] for level in levels([[number] for number in columns.value])])
    logits = levels(columns.logits)
    environment = Environment({place: logits[place] for place in environment_at}) if environment_at else None
    return Instance(
        TokenMDP(tree.vocab_size, tree.eos, tree.horizon, reward, gamma, prompts, environment),
        TabularPolicy(tree, tokens, logits),
        TabularPolicy(tree, tokens, levels(columns.reference_logits)),
        value,
        name,
        order,
    )


def _with_shared_logits(instance: Instance, order: Any, logits: list[list[float]]) -> Instance:
    """The instance with a policy that knows the last `order` tokens only."""
    mdp = instance.mdp
    if not isinstance(order, int) or isinstance(order, bool) or not 0 <= order <= mdp.horizon:
        raise InstanceError(
            f"order is {_shown(order)}; it must be the number of last tokens that the policy knows, 0 … {mdp.horizon}."
        )
    table = torch.zeros(1, (mdp.vocab_size + 1) ** order, mdp.vocab_size, dtype=torch.float64)
    first: dict[int, Node] = {}
    for node, row in zip(instance.node_order, logits):
        prompt, prefix = node
        if not mdp.policy_steps[len(prefix)]:
            continue
        text = [PAD] * order + [*mdp.prompts[prompt].tokens, *prefix]
        code = int(context_code(torch.tensor(text[len(text) - order :], dtype=torch.int64), mdp.vocab_size))
        there = first.setdefault(code, node)
        if there == node:
            table[0, code] = torch.tensor(row, dtype=torch.float64)
        elif table[0, code].tolist() != row:
            raise InstanceError(
                f"logits at {_node_name(node)} are {_shown(row)}, and at {_node_name(there)} "
                f"{_shown(table[0, code].tolist())}; with order {order} these two are one parameter."
            )
    return replace(instance, policy=NgramPolicy(table, order))


def _read_text(path: str | os.PathLike[str]) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InstanceError("there is no such file; `llm-mdp verify --save-instance FILE` writes one.") from None
    except IsADirectoryError:
        raise InstanceError("this is a folder; name an instance file.") from None
    except UnicodeDecodeError as error:
        raise InstanceError(f"byte {error.start} is not UTF-8; an instance file is JSON in UTF-8.") from None
    except OSError as error:
        raise InstanceError(f"cannot read the file ({error.strerror}); check its name and permissions.") from None


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys)
    except json.JSONDecodeError as error:
        raise InstanceError(
            f"line {error.lineno}, column {error.colno} is not JSON ({error.msg}); correct it there."
        ) from None
    except RecursionError:
        raise InstanceError("its lists or objects are nested too deeply; an instance file has three levels.") from None
    except InstanceError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise InstanceError(f"a number cannot be read ({error}); write numbers that fit in a float64.") from None


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        where = f"the node with prefix {_shown(content['prefix'])}" if "prefix" in content else "an object"
        raise InstanceError(f"{where} has the key {repeated!r} more than once; keep one.")
    return content


def _read_prompts(content: Any) -> tuple[Prompt, ...]:
    if not isinstance(content, list | tuple):
        raise InstanceError(f"prompts is {_shown(content)}; it must be a list of objects with tokens and probability.")
    prompts = []
    for number, prompt in enumerate(content):
        _check_keys(prompt, f"prompts[{number}]", ("tokens", "probability"), ())
        tokens, probability = prompt["tokens"], prompt["probability"]
        if not isinstance(tokens, list | tuple):
            raise InstanceError(
                f"prompts[{number}]: tokens is {_shown(tokens)}; it must be a list of tokens, such as [1, 2]."
            )
        if not _finite(probability):
            raise InstanceError(
                f"prompts[{number}]: probability is {_shown(probability)}; it must be a number in (0, 1]."
            )
        prompts.append(Prompt(tuple(tokens), float(probability)))
    return tuple(prompts)


def _read_nodes(content: Any, tree: PrefixTree, n_prompts: int) -> _Columns:
    if not isinstance(content, list | tuple):
        raise InstanceError(f"nodes is {_shown(content)}; it must be a list with one object for every prefix.")
    columns, number_of = _Columns([], [], [], [], []), {}
    for number, node in enumerate(content):
        place = f"nodes[{number}]"
        _check_keys(node, place, ("prefix", "logits", "token_reward"), ("reference_logits", "value", "prompt"))
        try:
            key = _read_node(node, tree, n_prompts, columns)
        except InstanceError as error:
            raise InstanceError(f"{place} (prefix {_shown(node['prefix'])}): {error}") from None
        first = number_of.setdefault(key, number)
        if first != number:
            raise InstanceError(f"{place} ({_node_name(key, n_prompts)}) repeats nodes[{first}]; keep one of the two.")
    missing = n_prompts * tree.n_nodes - len(number_of)
    if missing:
        raise InstanceError(
            f"nodes has no entry for {_node_name(_first_missing(number_of, tree, n_prompts), n_prompts)}"
            f"{f' and {missing - 1} more' if missing > 1 else ''}; "
            f"every prefix of 0 … {tree.horizon - 1} tokens without the end token needs one, "
            f"{n_prompts * tree.n_nodes} in all."
        )
    return columns


def _read_node(node: dict[str, Any], tree: PrefixTree, n_prompts: int, columns: _Columns) -> Node:
    prefix = _read_prefix(node["prefix"], tree)
    prompt = node.get("prompt", 0)
    if not isinstance(prompt, int) or isinstance(prompt, bool) or not 0 <= prompt < n_prompts:
        raise InstanceError(
            f"prompt is {_shown(prompt)}; it must be the number of one of the prompts, 0 … {n_prompts - 1}."
        )
    value = node.get("value", 0.0)
    if not _finite(value):
        raise InstanceError(f"value is {_shown(value)}; it must be a finite number.")
    columns.node.append((prompt, prefix))
    columns.logits.append(_read_row("logits", node["logits"], tree.vocab_size))
    columns.token_reward.append(_read_row("token_reward", node["token_reward"], tree.vocab_size))
    given = "reference_logits" in node
    columns.reference_logits.append(
        _read_row("reference_logits", node["reference_logits"], tree.vocab_size) if given else [0.0] * tree.vocab_size
    )
    columns.value.append(float(value))
    return prompt, prefix


def _read_prefix(content: Any, tree: PrefixTree) -> tuple[int, ...]:
    if not isinstance(content, list | tuple):
        raise InstanceError(f"prefix is {_shown(content)}; it must be a list of tokens, [] for the beginning.")
    for place, token in enumerate(content):
        if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < tree.vocab_size:
            raise InstanceError(
                f"prefix[{place}] is {_shown(token)}; tokens are whole numbers 0 … {tree.vocab_size - 1}."
            )
        if token == tree.eos:
            raise InstanceError(
                f"prefix[{place}] is {token}, the end token; no node lies beyond it, so leave this node out."
            )
    if len(content) >= tree.horizon:
        longest = f"with horizon {tree.horizon} a node has at most {tree.horizon - 1}"
        raise InstanceError(f"the prefix has {len(content)} tokens; {longest}, so leave it out or raise the horizon.")
    return tuple(content)


def _read_row(key: str, content: Any, length: int) -> list[float]:
    if not isinstance(content, list | tuple):
        raise InstanceError(f"{key} is {_shown(content)}; it must be a list of {length} numbers, one for every token.")
    if len(content) != length:
        raise InstanceError(
            f"{key} has {len(content)} entries; it must have {length}, one for every token of the vocabulary."
        )
    if not all(map(_finite, content)):
        place = next(place for place, number in enumerate(content) if not _finite(number))
        raise InstanceError(f"{key}[{place}] is {_shown(content[place])}; it must be a finite number.")
    return [float(number) for number in content]


def _check_keys(content: Any, place: str, required: Collection[str], optional: Collection[str]) -> None:
    """Raise InstanceError unless `content` is an object with all of the required keys and none beyond the optional
    ones."""
    if not isinstance(content, dict):
        raise InstanceError(f"{place} is {_shown(content)}; it must be an object with the keys {', '.join(required)}.")
    known = [*required, *optional]
    for key in content:
        if key not in known:
            remedy = did_you_mean(str(key), known, f"the keys are {', '.join(known)}.")
            raise InstanceError(f"{place} has the unknown key {_shown(key)}; {remedy}")
    for key in required:
        if key not in content:
            raise InstanceError(f"{place} has no {key!r}; add it (required: {', '.join(required)}).")


def _finite(number: Any) -> bool:
    """Whether it is a number, not a bool, and fits in a float64. False for NaN; exact for integers too long for a
    float."""
    return isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= sys.float_info.max


def _shown(content: Any) -> str:
    text = repr(content)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _first_missing(present: Collection[Node], tree: PrefixTree, n_prompts: int) -> Node:
    """The first node, in default order, that is not among the present ones. Never looks at more than len(present) + 1
    nodes."""
    for prompt in range(n_prompts):
        for level, size in enumerate(tree.level_sizes):
            for index in range(size):
                ranks = [index // tree.branching**place % tree.branching for place in range(level)]
                prefix = tuple(rank + (tree.eos is not None and rank >= tree.eos) for rank in ranks)
                if (prompt, prefix) not in present:
                    return prompt, prefix
    raise AssertionError("no node is missing")


# --- nodes and levels -------------------------------------------------------------------------------------------------


def _node_name(node: Node, n_prompts: int = 2) -> str:
    prompt, prefix = node
    return f"prompt {prompt}, prefix {list(prefix)}" if n_prompts > 1 else f"prefix {list(prefix)}"
