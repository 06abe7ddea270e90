"""The ledger's figures against an independent program that follows CLAIMS.md word by word: second_opinion.py for its
first edition, second_opinion_rows.py for its second (verify/test_turns.py has a third opinion on conversations)."""

import json
import subprocess
import sys

import numpy as np
import pytest

from llm_mdp.exact.instance_files import instance_from_dict, instance_to_dict
from llm_mdp.exact.instances import node_table, random_instance
from llm_mdp.verify.ledger import run_ledger
from llm_mdp.verify.problem import Problem
from tests import second_opinion as sceptic
from tests import second_opinion_rows as sceptic_rows
from tests.imports import imported_by

TOLERANCE = 1e-9
WITHOUT_OPINION = {
    "prime": "CLAIMS.md has no formula",
    "dpo-optimum": "no estimator",
}

CASES = [
    # (vocabulary, horizon, eos, gamma, seed), K, beta
    pytest.param((3, 3, 0, 1.0, 0), 3, 0.7, id="plain"),
    pytest.param((3, 3, 0, 1.0, 1), 2, 1.9, id="pairs-beta"),
    pytest.param((2, 4, 1, 0.9, 2), 3, 0.7, id="long"),
    pytest.param((2, 4, 1, 0.9, 3), 2, 1.9, id="long-pairs-beta", marks=pytest.mark.slow),
    pytest.param((3, 4, 2, 0.7, 4), 3, 0.3, id="large", marks=pytest.mark.slow),
    pytest.param((3, 3, None, 0.9, 5), 3, 0.7, id="no-end-token", marks=pytest.mark.slow),
    pytest.param((2, 3, None, 0.9, 6), 2, 0.2, id="no-end-token-pairs"),
    pytest.param((2, 5, 0, 0.8, 7), 3, 0.7, id="five-steps"),
    pytest.param((2, 3, 0, 1.0, 8), 4, 0.7, id="groups-of-four"),
    pytest.param((3, 1, 0, 0.5, 9), 2, 0.7, id="one-step"),
]


def second_opinion(problem):
    """Both editions, from the content of the instance file and the logits that responses are drawn from in the rows of
    another policy: their noise is the package's own."""
    content = json.loads(json.dumps(instance_to_dict(problem.instance)))
    q = sceptic.quantities(content, problem.group_size, problem.beta)
    levels = problem.given.behaviour.levels
    behaviour = dict(zip(q.index, node_table(problem.instance, list(levels)).tolist(), strict=True))
    rows = sceptic.first_edition(q) | sceptic_rows.second_edition(q, behaviour)
    return {"J": q.J, "grad": q.grad_J.tolist()} | rows


def differences(document, opinion):
    """{(id, figure): (the ledger's, the sceptic's)} wherever they differ."""
    pairs = {("J", ""): (document["J"], opinion["J"])}
    assert len(document["gradient"]) == len(opinion["grad"])
    for i, pair in enumerate(zip(document["gradient"], opinion["grad"])):
        pairs["gradient", i] = pair
    for name in set(opinion) & set(document["claims"]):
        for figure in opinion[name]:
            pairs[name, figure] = (document["claims"][name][figure], opinion[name][figure])

    def agree(ours, theirs):
        if ours is None or theirs is None:
            return ours is theirs
        return abs(ours - theirs) <= TOLERANCE * max(1.0, abs(theirs))

    return {key: pair for key, pair in pairs.items() if not agree(*pair)}


@pytest.mark.parametrize("shape, group_size, beta", CASES)
def test_ledger_agrees_with_the_second_opinion(shape, group_size, beta):
    vocab_size, horizon, eos, gamma, seed = shape
    instance = random_instance(vocab_size, horizon, eos=eos, gamma=gamma, seed=seed)
    agrees(Problem(instance, group_size=group_size, beta=beta))


CONVERSATIONS = [
    # (vocabulary, horizon, eos, gamma, seed), after how many tokens the environment draws
    pytest.param((2, 4, 0, 0.9, 3), (1,), id="two-turns"),
    pytest.param((2, 4, None, 0.8, 6), (2, 3), id="reply-of-two-tokens-at-the-end"),
    pytest.param((2, 5, 0, 0.9, 4), (1, 3), id="three-turns", marks=pytest.mark.slow),
    pytest.param((3, 3, 0, 1.0, 5), (1,), id="three-tokens", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("shape, environment_at", CONVERSATIONS)
def test_ledger_agrees_where_an_environment_draws_some_tokens(shape, environment_at):
    vocab_size, horizon, eos, gamma, seed = shape
    instance = random_instance(vocab_size, horizon, eos=eos, gamma=gamma, environment_at=environment_at, seed=seed)
    agrees(Problem(instance, group_size=3, beta=0.7))


def agrees(problem):
    document, opinion = run_ledger(problem), second_opinion(problem)
    assert set(document["claims"]) - set(opinion) == set(WITHOUT_OPINION)
    assert {id for id in opinion if "," not in id} - {"J", "grad"} <= set(document["claims"])
    assert differences(document, opinion) == {}


def small_instance(**changes):
    """Two tokens, two steps; `changes` replace fields of every node (a function of the node, or a list by node)."""
    instance = instance_to_dict(random_instance(2, 2, eos=0, gamma=1.0, seed=1))
    for i, node in enumerate(instance["nodes"]):
        for field, change in changes.items():
            node[field] = change(node) if callable(change) else change[i]
    return instance


SPECIAL = [
    pytest.param(
        instance_to_dict(random_instance(2, 2, eos=0, seed=9)),
        id="whitening-of-equal-rewards",
    ),
    pytest.param(
        small_instance(reference_logits=lambda node: node["logits"]),
        id="policy-is-reference",
    ),
    pytest.param(
        small_instance(token_reward=[[0.3, 0.1], [0.2, 0.9]]),
        id="rewards-equal-but-for-rounding",
    ),
    pytest.param(
        small_instance(token_reward=[[0.0, 0.0], [0.0, 0.0]]),
        id="no-reward-anywhere",
    ),
]


@pytest.mark.parametrize("instance", SPECIAL)
def test_ledger_agrees_on_special_instances(instance):
    agrees(Problem(instance_from_dict(instance), group_size=3, beta=0.7))


@pytest.mark.parametrize(
    "program, imports",
    [
        (sceptic, {"itertools", "json", "sys", "types", "numpy"}),
        (
            sceptic_rows,
            {"itertools", "json", "math", "sys", "types", "numpy", "second_opinion", "tests.second_opinion"},
        ),
    ],
)
def test_second_opinion_imports_nothing_of_the_package(program, imports):
    assert imported_by(program) == imports


def test_second_opinion_runs_on_a_file_with_defaults_left_out(tmp_path):
    instance = {
        "vocab_size": 2,
        "eos": None,
        "horizon": 2,
        "nodes": [
            {"prefix": [], "logits": [0.1, -0.4], "token_reward": [1.0, 0.0]},
            {"prefix": [1], "logits": [0.0, 0.3], "token_reward": [0.5, -1.0]},
            {"prefix": [0], "logits": [0.7, 0.2], "token_reward": [0.0, 2.0]},
        ],
    }
    file = tmp_path / "instance.json"
    file.write_text(json.dumps(instance), encoding="utf-8")
    command = [sys.executable, sceptic.__file__, str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = {line.split()[0]: line.split()[1:] for line in output.splitlines()}
    assert float(rows["reinforce"][0]) < 1e-12
    assert float(rows["masked-truncated"][0]) == 1.0  # no end token: every response is truncated


# --- what THEORY.md proves of the rows: two equal mistakes would agree with each other -------------------------------


def quantities_of(vocab_size, horizon, *, group_size=3, **options):
    instance = random_instance(vocab_size, horizon, **options)
    return sceptic.quantities(instance_to_dict(instance), group_size)


def noisy(q, seed):
    noise = np.random.default_rng(seed).normal(0, 0.5, q.logits.shape)
    return {prefix: q.logits[i] + noise[i] for prefix, i in q.index.items()}


UNBIASED_BY_THEORY = (
    "trepo-random-step",
    "turn-credit-response",
    "turn-credit-values",
    "turn-credit-others",
    "kl-whole-reward",
    "opo-left-out",
    "overlong-shaping-shaped",
    "length-penalty-shaped",
    "mismatch-sequence",
    "cispo",
    "cispo-0.2",
    "sapo",
    "kl-rho-k3-loss-visited",
    "entropy-reward",
)


@pytest.mark.parametrize("eos, group_size, environment_at", [(0, 3, ()), (None, 2, ()), (0, 2, (1,))])
def test_the_rows_obey_what_theory_proves(eos, group_size, environment_at):
    q = quantities_of(2, 4, eos=eos, gamma=0.9, seed=11, group_size=group_size, environment_at=environment_at)
    rows = sceptic_rows.second_edition(q, noisy(q, 1))
    assert {id for id in UNBIASED_BY_THEORY if rows[id]["relative_bias"] > 1e-12} == set()
    assert rows["kl-rho-k3-loss"] == pytest.approx(sceptic.first_edition(q)["kl-k2-loss"], rel=1e-9)
    assert rows["pass-at-k"]["scale"] == pytest.approx(1 / group_size)
    assert rows["pass-at-k"]["cosine"] == pytest.approx(1)
    assert rows["remark-7-same-goal"]["difference"] < 1e-12
    readings = [id for id in rows if "," in id]
    assert len(readings) == 4
    for id in readings:
        assert rows[id]["scale"] == pytest.approx(rows[id.split(",")[0]]["scale"])
        assert rows[id]["trace_covariance"] != pytest.approx(rows[id.split(",")[0]]["trace_covariance"])


BEHAVIOUR_ROWS = (
    *("mismatch-ignored", "mismatch-token", "mismatch-token-capped", "mismatch-sequence", "mismatch-sequence-capped"),
    *("gspo-stale", "cispo-stale", "cispo-0.2-stale", "sapo-stale"),
)


def test_importance_weights_matter_only_where_the_behaviour_differs():
    q = quantities_of(3, 3, eos=1, gamma=1.0, seed=12)
    same = sceptic_rows.second_edition(q, {prefix: q.logits[i] + 3.0 for prefix, i in q.index.items()})
    assert {id for id in BEHAVIOUR_ROWS if same[id]["relative_bias"] > 1e-12} == set()
    other = sceptic_rows.second_edition(q, noisy(q, 2))
    assert {id for id in BEHAVIOUR_ROWS if other[id]["relative_bias"] < 1e-6} == {"mismatch-sequence"}


@pytest.mark.parametrize("pool_own_response, left", [(True, 2), (False, 1)])
def test_equation_31_keeps_its_share_of_each_step_at_fixed_length(pool_own_response, left):
    """THEORY.md: step t keeps 1/(T - t + 2) of its gradient, 1/(T - t + 1) where the response itself is not pooled."""
    q = quantities_of(2, 4, eos=None, gamma=0.9, seed=13)
    q.figures = lambda mean, mean_square, target: mean
    mean = (
        sceptic_rows.of_draws(
            q, q.steps, [1.0], lambda W, drawn: q.eq31_weights(W, {d: RM for (d, _), RM in drawn.items()})
        )
        if pool_own_response
        else sceptic_rows.what_the_paper_says(q)["trepo-eq31-without-w"]
    )
    share = np.array([1 / (q.T - len(node["prefix"]) - 1 + left) for node in q.nodes])
    assert mean == pytest.approx(np.repeat(share, q.V) * q.grad_J, abs=1e-12)
