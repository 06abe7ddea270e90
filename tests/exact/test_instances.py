"""Instance files: exact round trips, the order of nodes, one clear sentence for everything that can be wrong with a
file."""

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instance_files import (
    instance_from_dict,
    instance_to_dict,
    read_instance,
    write_instance,
)
from llm_mdp.exact.instances import (
    Instance,
    InstanceError,
    flatten,
    random_instance,
)
from llm_mdp.mdp.hidden_rewards import LengthCost
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy, TabularValue
from tests.strategies import REWARDS, instances, plain_responses

SMALLEST = """
{"vocab_size": 2, "eos": 0, "horizon": 2, "gamma": 0.5,
 "nodes": [{"prefix": [1], "logits": [3, 4], "token_reward": [0.3, 0.4], "reference_logits": [7, 8], "value": -2},
           {"prefix": [], "logits": [1, 2], "token_reward": [0.1, 0.2]}]}
"""


def tables(instance: Instance) -> list[torch.Tensor]:
    reward = instance.mdp.token_reward.levels(instance.mdp.tree, instance.mdp.prompt_tokens)
    return [*instance.policy.levels, *reward, *instance.reference.levels, *instance.value.levels]


def assert_identical(one: Instance, other: Instance) -> None:
    for name in ("vocab_size", "eos", "horizon", "gamma", "prompts"):
        assert getattr(one.mdp, name) == getattr(other.mdp, name)
    assert one.node_order == other.node_order
    for ours, theirs in zip(tables(one), tables(other), strict=True):
        assert ours.dtype == theirs.dtype == torch.float64
        assert ours.tolist() == theirs.tolist()


# --- right files ---


def test_the_smallest_file_by_hand(tmp_path):
    path = tmp_path / "smallest.json"
    path.write_text(SMALLEST)
    instance = read_instance(path)
    mdp = instance.mdp
    assert (mdp.vocab_size, mdp.eos, mdp.horizon, mdp.gamma, mdp.prompts) == (2, 0, 2, 0.5, (Prompt(),))
    assert [level.tolist() for level in instance.policy.levels] == [[[[1], [2]]], [[[3], [4]]]]
    assert [level.tolist() for level in instance.reference.levels] == [[[[0], [0]]], [[[7], [8]]]], (
        "uniform where not given"
    )
    assert [level.tolist() for level in instance.value.levels] == [[[0]], [[-2]]], "0 where not given"
    response = torch.tensor([1, 1])
    assert mdp.response_reward(mdp.prompt_tokens[0], response, response >= 0).item() == 0.2 + 0.5 * 0.4
    assert instance.node_order == ((0, (1,)), (0, ()))
    assert flatten(instance, list(instance.policy.levels)).tolist() == [3, 4, 1, 2]
    assert instance.name == "smallest"


def test_gamma_defaults_to_one_and_eos_may_be_null():
    node = {"prefix": [], "logits": [1, 2], "token_reward": [3, 4]}
    instance = instance_from_dict({"vocab_size": 2, "eos": None, "horizon": 1, "nodes": [node]}, name="one step")
    assert (instance.mdp.gamma, instance.mdp.eos, instance.name) == (1.0, None, "one step")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "windows.json"
    path.write_bytes(b"\xef\xbb\xbf" + SMALLEST.encode())
    assert read_instance(path).mdp.vocab_size == 2


@settings(deadline=None, max_examples=50)
@given(instances(rewards=("table", "bigram", "potential")), st.randoms(use_true_random=False))
def test_round_trips_are_bit_exact_and_keep_the_order(tmp_path_factory, instance, random):
    order = list(instance.node_order)
    random.shuffle(order)
    shuffled = Instance(instance.mdp, instance.policy, instance.reference, instance.value, node_order=tuple(order))
    path = tmp_path_factory.mktemp("instances") / "it.json"
    write_instance(shuffled, path)
    again = read_instance(path)
    assert again.node_order == tuple(order)
    assert_identical(shuffled, again)
    assert_identical(again, instance_from_dict(instance_to_dict(again)))
    text = path.read_text()
    write_instance(again, path)
    assert path.read_text() == text


@pytest.mark.parametrize("number", [5e-324, -0.0, 0.1, 1 / 3, 1.7976931348623157e308, 2.2250738585072014e-308, -1e-17])
def test_awkward_numbers_survive(tmp_path, number):
    instance = random_instance(2, 1)
    instance.mdp.token_reward.table[0][0, 1, 0] = number
    write_instance(instance, tmp_path / "it.json")
    read = read_instance(tmp_path / "it.json").mdp.token_reward.table[0][0, 1, 0].item()
    assert repr(read) == repr(number)


@settings(deadline=None, max_examples=40)
@given(instances(kinds=("n-gram",), rewards=tuple(REWARDS)))
def test_any_policy_and_reward_are_written_as_tables_that_say_the_same(instance):
    mdp, again = instance.mdp, instance_from_dict(instance_to_dict(instance))
    assert isinstance(again.policy, TabularPolicy)
    tokens = mdp.tree.leaves
    for prompt in mdp.prompt_tokens:
        prompt = prompt.expand(len(tokens), -1)
        mask = tokens >= 0
        ours, theirs = (policy.logits(prompt, tokens)[mask] for policy in (instance.policy, again.policy))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        rewards = [which.response_reward(prompt, tokens, mask) for which in (mdp, again.mdp)]
        torch.testing.assert_close(*rewards, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(instances(max_prompts=3), st.randoms(use_true_random=False))
def test_flatten_follows_the_nodes_of_the_file(instance, random):
    """Every entry of a level is tagged with what it is: 10⁶ × prompt + 10³ × node + token."""
    tree = instance.mdp.tree
    prefixes = sorted({response[:t] for response in plain_responses(tree) for t in range(len(response))})
    levels = [torch.full((len(instance.mdp.prompts), tree.vocab_size, size), -1.0) for size in tree.level_sizes]
    tag = {}
    for p, (number, prefix) in itertools.product(range(len(instance.mdp.prompts)), enumerate(prefixes)):
        place = tree.level_prefixes(len(prefix)).tolist().index(list(prefix))
        tag[p, prefix] = [10.0**6 * p + 10**3 * number + token for token in range(tree.vocab_size)]
        levels[len(prefix)][p, :, place] = torch.tensor(tag[p, prefix])
    assert set(instance.node_order) == set(tag)
    order = list(instance.node_order)
    random.shuffle(order)
    for nodes in (instance.node_order, tuple(order)):
        ordered = Instance(instance.mdp, instance.policy, instance.reference, instance.value, node_order=nodes)
        assert flatten(ordered, levels).tolist() == [entry for node in nodes for entry in tag[node]]


def test_default_order_is_prompt_by_prompt_level_by_level():
    prefixes = [(), (0,), (2,), (0, 0), (2, 0), (0, 2), (2, 2)]
    instance = random_instance(3, 3, eos=1, n_prompts=2)
    assert instance.node_order == tuple((prompt, prefix) for prompt in (0, 1) for prefix in prefixes)


def test_flatten_can_be_differentiated_through_and_refuses_other_shapes():
    instance = random_instance(3, 2)
    flatten(instance, list(instance.policy.levels))[4].backward()
    assert [level.grad.sum().item() for level in instance.policy.levels] == [0, 1]
    with pytest.raises(ValueError, match=r"levels have the shapes \[\(1, 3, 1\)\]; this tree needs"):
        flatten(instance, list(instance.policy.levels)[:1])
    with pytest.raises(ValueError, match="this tree needs"):
        flatten(instance, [level.transpose(1, 2) for level in instance.policy.levels])


def test_one_empty_prompt_gives_the_minimal_format_and_others_are_named(tmp_path):
    minimal = instance_to_dict(random_instance(3, 2))
    assert list(minimal) == ["vocab_size", "eos", "horizon", "gamma", "nodes"]
    assert {tuple(node) for node in minimal["nodes"]} == {
        ("prefix", "logits", "token_reward", "reference_logits", "value")
    }
    several = instance_to_dict(random_instance(3, 2, n_prompts=2))
    assert several["prompts"] == [{"tokens": [0], "probability": 1 / 3}, {"tokens": [1], "probability": 2 / 3}]
    assert [node["prompt"] for node in several["nodes"]] == [0, 0, 0, 1, 1, 1]
    path = tmp_path / "it.json"
    write_instance(random_instance(3, 2), path)
    assert json.loads(path.read_text()) == minimal


# --- random instances ---


def test_a_random_instance_is_decided_by_its_seed():
    same, again, other = (random_instance(3, 3, eos=2, gamma=0.9, seed=seed, name="n") for seed in (7, 7, 8))
    assert_identical(same, again)
    assert (same.name, same.mdp.eos, same.mdp.gamma) == ("n", 2, 0.9)
    numbers = [torch.cat([table.detach().flatten() for table in tables(instance)]) for instance in (same, other)]
    assert not torch.isin(numbers[0], numbers[1]).any()
    assert len(numbers[0].unique()) == len(numbers[0]), "every number is its own draw"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 2]), st.sampled_from([0.3, 0.8]))
def test_right_or_wrong_rewards_are_one_with_about_the_chance_that_was_asked_for(seed, n_prompts, success):
    shape = {"vocab_size": 4, "horizon": 3, "n_prompts": n_prompts, "seed": seed}
    instance, dense = random_instance(**shape, success=success), random_instance(**shape)
    e = Enumeration(instance.mdp, instance.policy)
    assert set(e.response_reward.flatten().tolist()) == {0.0, 1.0}
    chance = float(e.mdp.prompt_probability @ (e.probability * e.response_reward).sum(-1))
    assert abs(chance - success) < float(e.probability.max())  # as close as whole responses come
    assert all(torch.equal(one, other) for one, other in zip(instance.policy.levels, dense.policy.levels))


def test_a_chance_of_success_is_between_0_and_1():
    with pytest.raises(ValueError, match=r"success is 1.0; .* above 0 and below 1"):
        random_instance(success=1.0)


def test_random_numbers_are_standard_normal():
    for table in tables(random_instance(9, 4, eos=None)):
        if table.numel() > 500:
            assert abs(table.mean().item()) < 5 / table.numel() ** 0.5
            assert table.std().item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("n_prompts", "length"), [(1, 0), (2, 1), (3, 1), (4, 2), (9, 2), (10, 3)])
def test_random_prompts_are_distinct_short_and_unequally_likely(n_prompts, length):
    prompts = random_instance(3, 1, n_prompts=n_prompts).mdp.prompts
    assert len({prompt.tokens for prompt in prompts}) == len({prompt.probability for prompt in prompts}) == n_prompts
    assert {len(prompt.tokens) for prompt in prompts} == {length}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_prompts": 0}, r"n_prompts is 0; it must be a whole number of at least 1"),
        ({"vocab_size": 1}, r"vocab_size is 1"),
        ({"eos": 9}, r"eos is 9, outside the vocabulary"),
        (
            {"vocab_size": 50, "horizon": 10},
            r"vocab_size 50, horizon 10 and 1 prompt\(s\) make too large a tree; .*5,000,000",
        ),
        ({"vocab_size": 2, "horizon": 10**9}, r"horizon 1000000000 .*too large a tree"),
        ({"vocab_size": 3, "horizon": 2, "n_prompts": 2_000_000}, r"2000000 prompt\(s\) make too large a tree"),
    ],
)
def test_impossible_random_instances_are_refused_before_anything_is_built(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_instance(**arguments)


def test_parts_that_do_not_belong_together_are_refused():
    instance = random_instance(3, 2)
    mdp, policy, reference, value = instance.mdp, instance.policy, instance.reference, instance.value
    other = random_instance(3, 3)
    with pytest.raises(
        InstanceError, match=r"policy is a table over .*horizon=3.*not over the tree and prompts of the MDP"
    ):
        Instance(mdp, other.policy, reference, value)
    with pytest.raises(InstanceError, match="reference is a table over"):
        Instance(mdp, policy, other.reference, value)
    with pytest.raises(InstanceError, match="value is a table over"):
        Instance(mdp, policy, reference, random_instance(3, 2, n_prompts=2).value)
    with pytest.raises(InstanceError, match="policy has vocab_size 4, the MDP 3"):
        Instance(mdp, NgramPolicy.random(4, 1, torch.Generator()), reference, value)
    order = instance.node_order
    for nodes in (order[:-1], (*order, (0, ())), (*order[:-1], (0, ())), (*order[:-1], (0, (0,)))):
        with pytest.raises(InstanceError, match=r"node_order must hold each of the 3 nodes of .* exactly once"):
            Instance(mdp, policy, reference, value, node_order=nodes)


# --- wrong files ---

BASE = instance_to_dict(random_instance(3, 3, eos=0, gamma=0.9))
"""Prefixes [], [1], [2], [1, 1], [2, 1], [1, 2], [2, 2]."""
TWO_PROMPTS = instance_to_dict(random_instance(3, 2, eos=0, n_prompts=2))
HUGE = 10**400


def put(path: str, value):
    """A mutation that puts a value at a place such as 'nodes/3/logits'."""
    return lambda content: _container(content, path).__setitem__(_last(path), value)


def drop(path: str):
    return lambda content: _container(content, path).__delitem__(_last(path))


def append(path: str, value):
    return lambda content: _container(content, f"{path}/-").append(value)


def _last(path: str):
    last = path.split("/")[-1]
    return int(last) if last.lstrip("-").isdigit() else last


def _container(content, path: str):
    for step in path.split("/")[:-1]:
        content = content[int(step) if step.isdigit() else step]
    return content


def node(*prefix: int, **more):
    return {"prefix": list(prefix), "logits": [0, 0, 0], "token_reward": [0, 0, 0], **more}


ROWS = ("logits", "token_reward", "reference_logits")
AT_3 = r"nodes\[3\] \(prefix \[1, 1\]\): "

WRONG = [
    # keys
    (put("horizn", 3), r"the instance has the unknown key 'horizn'; did you mean horizon\?"),
    (
        put("flavour", 3),
        r"the instance has the unknown key 'flavour'; the keys are vocab_size, eos, horizon, nodes, gamma",
    ),
    (
        put("nodes/3/token_rewards", []),
        r"nodes\[3\] has the unknown key 'token_rewards'; did you mean token_reward\?",
    ),
    (put("nodes/3/parent", 0), r"nodes\[3\] has the unknown key 'parent'; .*the keys are prefix, logits"),
    *(
        (drop(key), rf"the instance has no '{key}'; add it \(required: vocab_size, eos, horizon, nodes\)")
        for key in list(BASE)
        if key != "gamma"
    ),
    *((drop(f"nodes/3/{key}"), rf"nodes\[3\] has no '{key}'; add it") for key in ("prefix", "logits", "token_reward")),
    # numbers of the whole
    (put("vocab_size", 1), r"vocab_size is 1; .*at least 2"),
    (put("vocab_size", "3"), r"vocab_size is '3'; .*whole number"),
    (put("vocab_size", True), r"vocab_size is True; .*whole number"),
    (put("vocab_size", 3.0), r"vocab_size is 3\.0; .*whole number"),
    (put("vocab_size", None), r"vocab_size is None; .*whole number"),
    (put("eos", 3), r"eos is 3, outside the vocabulary 0 … 2"),
    (put("eos", -1), r"eos is -1, outside the vocabulary 0 … 2"),
    (put("eos", "0"), r"eos is '0', outside the vocabulary"),
    (put("eos", False), r"eos is False, outside the vocabulary"),
    (put("horizon", 0), r"horizon is 0; .*at least 1"),
    (put("horizon", 2.5), r"horizon is 2\.5; .*whole number"),
    (put("horizon", [3]), r"horizon is \[3\]; .*whole number"),
    (put("gamma", 0), r"gamma is 0; .*\(0, 1\]"),
    (put("gamma", 1.5), r"gamma is 1\.5; .*\(0, 1\]"),
    (put("gamma", float("nan")), r"gamma is nan; .*\(0, 1\]"),
    (put("gamma", "0.9"), r"gamma is '0\.9'; .*\(0, 1\]"),
    (put("gamma", None), r"gamma is None; .*\(0, 1\]"),
    # too large
    (put("horizon", 60), r"vocab_size 3, horizon 60 and 1 prompt\(s\) make too large a tree; .*at most 5,000,000"),
    (put("horizon", 10**30), r"horizon 10{30} .*too large a tree"),
    (put("vocab_size", 10**9), r"vocab_size 1000000000, .*too large a tree"),
    # nodes
    (put("nodes", {}), r"nodes is \{\}; it must be a list with one object for every prefix"),
    (put("nodes", None), r"nodes is None; it must be a list"),
    (put("nodes", "abc"), r"nodes is 'abc'; it must be a list"),
    (
        put("nodes", []),
        r"nodes has no entry for prefix \[\] and 6 more; every prefix of 0 … 2 tokens .*needs one, 7 in all",
    ),
    (
        put("nodes/3", [1, 1]),
        r"nodes\[3\] is \[1, 1\]; it must be an object with the keys prefix, logits, token_reward",
    ),
    (put("nodes/3", None), r"nodes\[3\] is None; it must be an object"),
    (drop("nodes/5"), r"nodes has no entry for prefix \[1, 2\]; every prefix .*7 in all"),
    (drop("nodes/1"), r"nodes has no entry for prefix \[1\]; "),
    (append("nodes", node(2, 1)), r"nodes\[7\] \(prefix \[2, 1\]\) repeats nodes\[4\]; keep one of the two"),
    (append("nodes", node()), r"nodes\[7\] \(prefix \[\]\) repeats nodes\[0\]"),
    # prefixes
    (
        put("nodes/3/prefix", [1, 0]),
        r"nodes\[3\] \(prefix \[1, 0\]\): prefix\[1\] is 0, the end token; .*leave this node out",
    ),
    (
        put("nodes/3/prefix", [3, 1]),
        r"nodes\[3\] \(prefix \[3, 1\]\): prefix\[0\] is 3; tokens are whole numbers 0 … 2",
    ),
    (put("nodes/3/prefix", [1, -1]), r"prefix\[1\] is -1; tokens are whole numbers 0 … 2"),
    (put("nodes/3/prefix", [1, 1.0]), r"prefix\[1\] is 1\.0; tokens are whole numbers"),
    (put("nodes/3/prefix", [True, 1]), r"prefix\[0\] is True; tokens are whole numbers"),
    (put("nodes/3/prefix", ["1", 1]), r"prefix\[0\] is '1'; tokens are whole numbers"),
    (put("nodes/3/prefix", [[1], 1]), r"prefix\[0\] is \[1\]; tokens are whole numbers"),
    (put("nodes/3/prefix", "11"), r"nodes\[3\] \(prefix '11'\): prefix is '11'; it must be a list of tokens, \[\] for"),
    (put("nodes/3/prefix", 1), r"prefix is 1; it must be a list of tokens"),
    (
        append("nodes", node(1, 1, 1)),
        r"nodes\[7\] \(prefix \[1, 1, 1\]\): the prefix has 3 tokens; with horizon 3 .*at most 2",
    ),
    # rows of numbers
    *(
        (put(f"nodes/3/{row}", [1, 2]), AT_3 + rf"{row} has 2 entries; it must have 3, one for every token")
        for row in ROWS
    ),
    *((put(f"nodes/3/{row}", [1, 2, 3, 4]), AT_3 + rf"{row} has 4 entries; it must have 3") for row in ROWS),
    *((put(f"nodes/3/{row}", 1.5), AT_3 + rf"{row} is 1\.5; it must be a list of 3 numbers") for row in ROWS),
    *((put(f"nodes/3/{row}", None), AT_3 + rf"{row} is None; it must be a list of 3 numbers") for row in ROWS),
    *((put(f"nodes/3/{row}", "abc"), AT_3 + rf"{row} is 'abc'; it must be a list of 3 numbers") for row in ROWS),
    *((put(f"nodes/3/{row}/1", "2"), AT_3 + rf"{row}\[1\] is '2'; it must be a finite number") for row in ROWS),
    *((put(f"nodes/3/{row}/1", True), AT_3 + rf"{row}\[1\] is True; it must be a finite number") for row in ROWS),
    *((put(f"nodes/3/{row}/1", None), AT_3 + rf"{row}\[1\] is None; it must be a finite number") for row in ROWS),
    *(
        (put(f"nodes/3/{row}/0", float("nan")), AT_3 + rf"{row}\[0\] is nan; it must be a finite number")
        for row in ROWS
    ),
    *(
        (put(f"nodes/3/{row}/2", float("-inf")), AT_3 + rf"{row}\[2\] is -inf; it must be a finite number")
        for row in ROWS
    ),
    (put("nodes/3/logits/2", HUGE), AT_3 + r"logits\[2\] is 10{59}…; it must be a finite number"),
    (put("nodes/3/value", "0"), AT_3 + r"value is '0'; it must be a finite number"),
    (put("nodes/3/value", False), AT_3 + r"value is False; it must be a finite number"),
    (put("nodes/3/value", [0]), AT_3 + r"value is \[0\]; it must be a finite number"),
    (put("nodes/3/value", float("inf")), AT_3 + r"value is inf; it must be a finite number"),
    (put("nodes/3/value", -HUGE), AT_3 + r"value is -10{58}…; it must be a finite number"),
    # prompts
    (put("nodes/3/prompt", 1), AT_3 + r"prompt is 1; it must be the number of one of the prompts, 0 … 0"),
    (put("prompts", {}), r"prompts is \{\}; it must be a list of objects with tokens and probability"),
    (put("prompts", []), r"prompts is empty"),
]

WRONG_PROMPTS = [
    (put("prompts/1", [1]), r"prompts\[1\] is \[1\]; it must be an object with the keys tokens, probability"),
    (put("prompts/1/token", 1), r"prompts\[1\] has the unknown key 'token'; did you mean tokens\?"),
    (drop("prompts/1/probability"), r"prompts\[1\] has no 'probability'; add it"),
    (put("prompts/1/tokens", 1), r"prompts\[1\]: tokens is 1; it must be a list of tokens"),
    (put("prompts/1/tokens", [3]), r"prompts\[1\] holds the token 3, outside the vocabulary 0 … 2"),
    (put("prompts/1/tokens", [[1]]), r"prompts\[1\] holds the token \[1\], outside the vocabulary"),
    (put("prompts/1/tokens", [True]), r"prompts\[1\] holds the token True, outside the vocabulary"),
    (put("prompts/1/tokens", [0]), r"two prompts have the same tokens; merge"),
    (put("prompts/1/probability", 0), r"prompts\[1\] has probability 0\.0; it must be in \(0, 1\]"),
    (put("prompts/1/probability", 0.5), r"probabilities sum to 0\.83\d*; they must sum to 1"),
    (put("prompts/1/probability", True), r"prompts\[1\]: probability is True; it must be a number in \(0, 1\]"),
    (put("prompts/1/probability", "1"), r"prompts\[1\]: probability is '1'; it must be a number"),
    (put("prompts/1/probability", float("nan")), r"prompts\[1\]: probability is nan; it must be a number"),
    (
        put("nodes/4/prompt", 2),
        r"nodes\[4\] \(prefix \[1\]\): prompt is 2; it must be the number of one of the prompts, 0 … 1",
    ),
    (put("nodes/4/prompt", -1), r"prompt is -1; it must be the number"),
    (put("nodes/4/prompt", True), r"prompt is True; it must be the number"),
    (put("nodes/4/prompt", "0"), r"prompt is '0'; it must be the number"),
    (drop("nodes/4/prompt"), r"nodes\[4\] \(prompt 0, prefix \[1\]\) repeats nodes\[1\]"),
    (drop("nodes/4"), r"nodes has no entry for prompt 1, prefix \[1\]; every prefix .*6 in all"),
    (drop("prompts"), r"nodes\[3\] \(prefix \[\]\): prompt is 1; it must be the number of one of the prompts, 0 … 0"),
]


@pytest.mark.parametrize(
    ("base", "mutation", "message"),
    [(BASE, *case) for case in WRONG] + [(TWO_PROMPTS, *case) for case in WRONG_PROMPTS],
    ids=[message[:60] for _, message in WRONG + WRONG_PROMPTS],
)
def test_wrong_files_are_explained(tmp_path, base, mutation, message):
    instance_from_dict(base)
    content = copy.deepcopy(base)
    mutation(content)
    with pytest.raises(InstanceError, match=message) as from_dict:
        instance_from_dict(content)
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InstanceError) as from_file:
        read_instance(path)
    assert str(from_file.value) == f"{path}: {from_dict.value}", "a file's message begins with its name"
    assert "\n" not in str(from_file.value)
    assert from_file.value.__cause__ is None and from_file.value.__suppress_context__


@pytest.mark.parametrize("content", [[], 3, None, "nodes"])
def test_what_is_no_object_is_refused(content):
    with pytest.raises(InstanceError, match=r"the instance is .*; it must be an object with the keys vocab_size, eos"):
        instance_from_dict(content)


WRONG_TEXTS = [
    ("", r"line 1, column 1 is not JSON \(Expecting value\)"),
    ('{"vocab_size": 3,\n "eos": }', r"line 2, column 9 is not JSON \(Expecting value\)"),
    ('{"vocab_size": 3,\n}', r"is not JSON"),
    ("{'vocab_size': 3}", r"line 1, column 2 is not JSON \(Expecting property name"),
    (SMALLEST + "{}", r"line 5, column 1 is not JSON \(Extra data\)"),
    ("[" * 100_000, r"nested too deeply"),
    (SMALLEST.replace('"gamma": 0.5', '"gamma": 1' + "0" * 5000), r"a number cannot be read"),
    (
        SMALLEST.replace("[3, 4]", "[3, NaN]"),
        r"nodes\[0\] \(prefix \[1\]\): logits\[1\] is nan; it must be a finite number",
    ),
    (
        SMALLEST.replace("[3, 4]", "[-Infinity, 4]"),
        r"nodes\[0\] \(prefix \[1\]\): logits\[0\] is -inf; it must be a finite",
    ),
    (
        SMALLEST.replace("[0.3, 0.4]", "[0.3, 1e999]"),
        r"nodes\[0\] \(prefix \[1\]\): token_reward\[1\] is inf; it must be",
    ),
    (
        SMALLEST.replace('"value": -2', '"value": 1, "value": 2'),
        r"node with prefix \[1\] has the key 'value' more than once",
    ),
    (SMALLEST.replace('"eos": 0', '"eos": 0, "eos": 1'), r"an object has the key 'eos' more than once; keep one"),
]


@pytest.mark.parametrize(("text", "message"), WRONG_TEXTS, ids=[message[:50] for _, message in WRONG_TEXTS])
def test_wrong_texts_are_explained(tmp_path, text, message):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(InstanceError, match=message) as caught:
        read_instance(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_explained(tmp_path, monkeypatch):
    with pytest.raises(InstanceError, match=r"none\.json: there is no such file; .*--save-instance"):
        read_instance(tmp_path / "none.json")
    with pytest.raises(InstanceError, match="this is a folder; name an instance file"):
        read_instance(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"vocab_size": 3, "\xe9": 1}')
    with pytest.raises(InstanceError, match=r"latin\.json: byte 19 is not UTF-8"):
        read_instance(tmp_path / "latin.json")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(
        InstanceError, match=r"cannot read the file \(Permission denied\); check its name and permissions"
    ):
        read_instance(tmp_path / "secret.json")


# --- writing ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "it.json"
    write_instance(random_instance(seed=1), path)
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(
            InstanceError, match=r"it\.json: cannot write the instance here \(No space left on device\)"
        ):
            write_instance(random_instance(seed=2), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    write_instance(random_instance(seed=2), path)
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_file_is_whole_before_the_old_one_goes(tmp_path, monkeypatch):
    path, seen = tmp_path / "it.json", []
    write_instance(random_instance(seed=1), path)
    replace = Path.replace

    def watched(self, target):
        seen.append((read_instance(target), read_instance(self)))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    write_instance(random_instance(seed=2), path)
    ((old, new),) = seen
    assert_identical(old, random_instance(seed=1))
    assert_identical(new, random_instance(seed=2))


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "it.json")
    write_instance(random_instance(), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "it.json").is_file()


@pytest.mark.parametrize("path", ["/dev/null", "/", "/nonexistent/folder/it.json"])
def test_places_where_no_file_can_be_written_are_explained(path):
    with pytest.raises(InstanceError, match=rf"{path}: cannot write the instance here \(.*\); name another file"):
        write_instance(random_instance(), path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_written(tmp_path, number):
    instance = random_instance(3, 2)
    instance.value.levels[1][0, 1] = number
    with pytest.raises(InstanceError, match=rf"value at prompt 0, prefix \[2\] holds {number}; .*finite numbers only"):
        write_instance(instance, tmp_path / "it.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_large_file_comes_back_whole(tmp_path):
    instance = random_instance(4, 10, eos=3)
    assert len(instance.node_order) == 29_524
    write_instance(instance, tmp_path / "it.json")
    assert_identical(instance, read_instance(tmp_path / "it.json"))


def test_a_reward_that_is_not_a_table_needs_no_prompt_table():
    tree = PrefixTree(3, 0, 2)
    mdp = TokenMDP(3, 0, 2, LengthCost(0.5), prompts=(Prompt((1,), 1.0),))
    generator = torch.Generator().manual_seed(0)
    tabular = TabularPolicy.random(tree, mdp.prompt_tokens, generator)
    value = TabularValue.random(tree, mdp.prompt_tokens, generator)
    content = instance_to_dict(Instance(mdp, NgramPolicy.random(3, 1, generator), tabular, value))
    assert content["prompts"] == [{"tokens": [1], "probability": 1.0}]
    assert all(row["token_reward"] == [-0.5, -0.5, -0.5] for row in content["nodes"])
