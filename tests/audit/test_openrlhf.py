"""The audit of OpenRLHF: a row for every choice of its command line, its own functions, and what was worked out by
hand."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytest.importorskip("openrlhf", reason="the audit of OpenRLHF needs openrlhf")

from llm_mdp.audit.adapter import advantages_of, loss_of
from llm_mdp.audit.library import find_library
from llm_mdp.audit.openrlhf import trainer
from llm_mdp.audit.openrlhf.rows import NO_KL, settings
from llm_mdp.exact.instances import random_instance
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from tests.audit.others_by_hand import ADVANTAGES, LOSSES

AUDITED = (
    "algo.advantage.estimator", "algo.advantage.is_correction_level", "algo.advantage.is_correction_mode",
    "algo.advantage.is_correction_gating", "algo.kl.estimator", "actor.policy_loss_type", "actor.loss_agg_mode",
)  # fmt: skip
"""Options with choices that the advantages or the loss read."""
ROWS = {each.name: each for each in settings()}
BY_HAND = [(name, ADVANTAGES[library, name]) for library, name in ADVANTAGES if library == "openrlhf"]
LOSS_BY_HAND = [(name, LOSSES[library, name]) for library, name in LOSSES if library == "openrlhf"]


@pytest.fixture(scope="module")
def problem():
    return Problem(random_instance(2, 3, seed=1), group_size=3)


def certificate(estimator, problem, target="reward"):
    return exact_certificate(estimator, problem.enumeration, problem.target(target), problem.magnitude(target))


def command_line() -> dict[str, dict[str, object]]:
    """Options of train_ppo_ray, with choices and defaults, read from its source."""
    source = Path(find_spec("openrlhf").submodule_search_locations[0], "cli", "train_ppo_ray.py").read_text()
    options = {}
    for call in ast.walk(ast.parse(source)):
        named = isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"
        if named and isinstance(call.args[0], ast.Constant):
            told = {each.arg: each.value for each in call.keywords if each.arg in ("choices", "default")}
            options[call.args[0].value.removeprefix("--")] = {key: _constant(each) for key, each in told.items()}
    return options


def _constant(node: ast.expr) -> object:
    """What an expression is; None where it is computed."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def test_every_choice_has_a_row():
    options = command_line()
    for option in AUDITED:
        for choice in options[option]["choices"]:
            if trainer.DEFAULTS[option] != choice:
                assert any(f"{option}={choice}" in name.split(" ")[0].split(",") for name in ROWS), (option, choice)


def test_defaults_are_the_command_lines():
    options = command_line()
    sizes = {"rollout.n_samples_per_prompt", "actor.eps_clip_low_high", "actor.entropy_coef", "actor.aux_loss_coef"}
    for name, value in trainer.DEFAULTS.items():
        if name in options and "default" in options[name] and name not in sizes:
            assert options[name]["default"] == value, name


def test_one_row_is_the_default_and_names_are_unique():
    assert [each.name for each in ROWS.values() if each.is_default] == ["algo.advantage.estimator=gae"]
    assert len(ROWS) == len(settings())
    assert find_library("openrlhf").warning() is None


@pytest.mark.parametrize(("name", "by_hand"), BY_HAND, ids=[name for name, _ in BY_HAND])
def test_its_advantages_are_those_worked_out_by_hand(name, by_hand, problem):
    row = ROWS[name]
    theirs = certificate(advantages_of(row.advantages, problem, name=name), problem, row.target)
    ours = certificate(advantages_of(by_hand, problem), problem, row.target)
    assert theirs.relative_bias == pytest.approx(ours.relative_bias, rel=1e-6, abs=1e-9)
    assert theirs.trace_covariance == pytest.approx(ours.trace_covariance, rel=1e-6)


@pytest.mark.parametrize(("name", "by_hand"), LOSS_BY_HAND, ids=[name for name, _ in LOSS_BY_HAND])
def test_its_loss_is_the_one_worked_out_by_hand(name, by_hand, problem):
    row = ROWS[name]
    theirs = certificate(loss_of(row.loss, problem, name=name), problem, row.target)
    ours = certificate(loss_of(by_hand, problem), problem, row.target)
    assert theirs.relative_bias == pytest.approx(ours.relative_bias, rel=1e-6)
    assert theirs.trace_covariance == pytest.approx(ours.trace_covariance, rel=1e-6)


@pytest.mark.parametrize("kind", ["k1", "k2"])
def test_unbiased_gradient_is_the_same_for_every_estimator_of_the_kl(kind, problem):
    options = {"algo.advantage.estimator": "rloo", "algo.kl.init_coef": 0.3, "algo.kl.use_loss": True}
    options["algo.kl.unbiased_gradient"] = True

    def weights(estimator):
        def function(batch):
            return trainer.advantages(batch, {**options, "algo.kl.estimator": estimator})

        return certificate(advantages_of(function, problem), problem).relative_bias

    assert weights(kind) == pytest.approx(weights("k3"), rel=1e-9)


def test_whitening_is_of_the_batch_and_its_row_says_so_at_one_prompt(problem):
    name = "algo.advantage.estimator=reinforce,actor.loss_agg_mode=token-mean,algo.kl.init_coef=0.0"
    estimator = advantages_of(ROWS[name].advantages, problem)
    assert not estimator.together


def test_its_own_functions_are_what_is_audited(problem, monkeypatch):
    options = {"algo.advantage.estimator": "rloo", **NO_KL}
    maker, actor = trainer.modules().maker, trainer.modules().actor

    def sizes():
        return (
            certificate(advantages_of(lambda batch: trainer.advantages(batch, options), problem), problem).scale,
            certificate(loss_of(lambda batch: trainer.loss(batch, options), problem), problem).scale,
        )

    before = sizes()
    assert before[0] == pytest.approx(1.0)
    monkeypatch.setattr(maker, "compute_reward", lambda reward, coefficient, kl, **_: torch.zeros_like(kl))
    assert sizes()[0] == 0.0
    monkeypatch.undo()
    kept = actor.PolicyLoss.forward
    monkeypatch.setattr(actor.PolicyLoss, "forward", lambda *a, **k: (0.5 * kept(*a, **k)[0], *kept(*a, **k)[1:]))
    assert sizes()[1] == pytest.approx(before[1] / 2)


def test_nothing_of_the_library_or_its_stand_ins_is_left_behind():
    import sys

    trainer.modules()
    left = [name for name in sys.modules if name.split(".")[0] in ("deepspeed", "vllm") or name.startswith("openrlhf.")]
    assert not left
