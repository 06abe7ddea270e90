"""The audit of verl: a row for every name, its own functions, and weights that were derived by hand."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("verl", reason="the audit of verl needs verl")

from llm_mdp.audit.adapter import FunctionEstimator, loss_of, some_worlds
from llm_mdp.audit.batch import PARTS, batch_of
from llm_mdp.audit.double import in_double
from llm_mdp.audit.library import find_library
from llm_mdp.audit.problems import problems
from llm_mdp.audit.verl import rows, told
from llm_mdp.audit.verl.told import SUM
from llm_mdp.audit.verl.trainer import Update, modules
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.sampling.policies import TabularValue
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError
from tests.audit.verl_by_hand import BY_HAND, weights_by_hand

K, T = 3, 3
UNBIASED = {
    "adv_estimator=rloo", "adv_estimator=rloo_vectorized", "adv_estimator=remax", f"loss_agg_mode={SUM}",
    "loss_mode=vanilla", "loss_mode=vanilla,clip_ratio_low=0.01,clip_ratio_high=0.01", "loss_mode=dppo_tv",
    "loss_mode=dppo_kl", "loss_mode=gspo", "loss_mode=gpg", "loss_mode=clip_cov", "loss_mode=kl_cov",
    "loss_mode=dro,dro_beta=0.5", "loss_mode=cispo", "loss_mode=bypass_mode",
    "loss_mode=bypass_mode,loss_type=reinforce,rollout_is=token",
    "loss_mode=bypass_mode,loss_type=reinforce,rollout_is=sequence", "kl_penalty=kl (k1)", "kl_penalty=k1+",
    "kl_loss_type=mse (k2),at visited states", "kl_loss_type=k1+,at visited states",
    "kl_loss_type=k3+,at visited states",
}  # fmt: skip
PROPORTIONAL = {
    "adv_estimator=grpo,norm_adv_by_std_in_grpo=False", "adv_estimator=grpo_passk,norm_adv_by_std_in_grpo=False",
    "adv_estimator=gpg", "loss_agg_mode=token-sum", f"loss_agg_mode={SUM}-norm,loss_scale_factor=3",
    f"adv_estimator=grpo,norm_adv_by_std_in_grpo=False,loss_agg_mode={SUM}-norm,loss_scale_factor=3",
}  # fmt: skip
"""On dense rewards; clip_cov leaves out nothing here, as no token's covariance is above its threshold of 1."""


@pytest.fixture(scope="module")
def settings():
    return {each.name: each for each in rows.settings()}


@pytest.fixture(scope="module")
def problem():
    """4 responses, so that 20 groups are all."""
    return Problem(random_instance(2, T, seed=1), group_size=K)


@pytest.fixture(scope="module")
def batch():
    """K responses that are all shorter than T, and two groups, with all optional parts."""
    dense = Problem(random_instance(3, T, n_prompts=2, seed=2), group_size=K)

    def all_parts(b):
        return (b.reference_logp.sum() + b.value.sum() + b.greedy_reward.sum()) * b.logp.sum()

    estimator = loss_of(all_parts, dense)
    evidence = some_worlds(estimator, dense, 1500)
    whole = batch_of(evidence, evidence.rollouts.logp, K)
    firsts = [i for i in range(0, len(whole.logp), K) if len(whole.response_reward[i : i + K].unique()) == K]
    short = next(i for i in firsts if int(whole.mask[i : i + K].sum(-1).max()) < T)
    return {"short": whole.rows(short, short + K), "two": whole.rows(firsts[0], firsts[0] + 2 * K)}


def certificate(function, problem, target="reward", gives="loss", critic=None):
    """World by world, without trying whether worlds can be together."""
    estimator = FunctionEstimator(
        group_size=K, function=function, gives=gives, needs=PARTS,
        reference=problem.instance.reference, critic=critic or problem.instance.value,
    )  # fmt: skip
    return exact_certificate(estimator, problem.enumeration, problem.target(target), problem.magnitude(target))


def weights(function, batch):
    """-∂loss/∂log π of every token."""
    logp = batch.logp.clone().requires_grad_()
    with in_double():
        loss = function(replace(batch, logp=logp))
    return -torch.autograd.grad(loss, logp)[0] * batch.mask


def test_every_name_of_verls_registries_has_a_row(settings):
    core = modules().core
    for option, registry in (
        ("adv_estimator", core.ADV_ESTIMATOR_REGISTRY),
        ("loss_mode", core.POLICY_LOSS_REGISTRY),
    ):
        assert len(registry) > 10
        for name in registry:
            found = [each for key, each in settings.items() if key.split(",")[0] == f"{option}={name}"]
            assert found and all(each.claim != told.UNKNOWN.claim for each in found), name
    for mode in told.AGGREGATIONS:
        assert f"loss_agg_mode={mode}" in settings
    for kind in ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3", "full", "k1+", "k3+"):
        for option in ("kl_penalty", "kl_loss_type"):
            assert any(key.startswith(option) and kind in key.replace("(", "=").replace(")", "") for key in settings)


def test_a_new_name_has_a_row_that_says_so(monkeypatch, settings):
    core = modules().core
    monkeypatch.setitem(core.ADV_ESTIMATOR_REGISTRY, "brand_new", core.ADV_ESTIMATOR_REGISTRY["rloo"])
    (new,) = [each for each in rows.settings() if each.name == "adv_estimator=brand_new"]
    assert new.claim == "no description here yet"


def test_verdicts(settings, problem):
    for name, setting in settings.items():
        if isinstance(setting.loss, rows.Refused):
            with pytest.raises(EstimatorError, match="not certified: "):
                certificate(setting.loss, problem)
            continue
        expected = "unbiased" if name in UNBIASED else "proportional" if name in PROPORTIONAL else "biased"
        assert certificate(setting.loss, problem, setting.target).verdict == expected, name


@pytest.mark.parametrize("name", BY_HAND)
def test_weights_of_tokens_are_those_derived_by_hand(name, batch, settings):
    # verl adds 1e-8 to the number of tokens and to variances.
    for each in batch.values():
        found, expected = weights(settings[name].loss, each), weights_by_hand(name, each)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_trainer_v1_hands_over_responses_without_padding_and_the_loss_is_the_same(batch):
    update = Update({"adv_estimator": "rloo"}, {"loss_agg_mode": f"{SUM}-norm"})
    for each in batch.values():
        output, data = update._micro_batch(each)
        length, ragged = each.mask.sum(-1), {}
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
        for name in ("responses", "response_mask", "old_log_probs", "advantages"):
            flat = data[name][each.mask[:, : data[name].shape[1]]]
            ragged[name] = torch.nested.nested_tensor_from_jagged(flat, offsets, max_seqlen=int(length.max()))
        rows_ = torch.arange(len(length) + 1)
        ragged["prompts"] = torch.nested.nested_tensor_from_jagged(torch.zeros(len(length)), rows_)
        counts = {name: data[name] for name in ("dp_size", "batch_num_tokens", "global_batch_size")}
        losses = modules().losses
        theirs, _ = losses.ppo_loss(update.actor_config, output, losses.tu.get_tensordict(ragged, counts))
        torch.testing.assert_close(theirs, update.loss(each), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("problem", problems().values(), ids=problems())
def test_where_the_longest_response_is_the_divisor_worlds_are_asked_for_one_by_one(problem, settings):
    assert not loss_of(settings[f"loss_agg_mode={SUM}-norm"].loss, problem).together


def test_optimal_token_baselines_are_biased_with_sums_of_squares(problem):
    e = problem.enumeration
    sums = TabularValue(e.tree, e.prompt, [level.softmax(1).square().sum(1) for level in e.logits])
    for name in told.CANNOT:
        update = Update(
            {"adv_estimator": name}, {"loss_agg_mode": SUM}, more=lambda b: {"sum_pi_squared": b.value[:, :-1]}
        )
        assert certificate(update.loss, problem, critic=sums).verdict == "biased", name


def test_what_draws_random_numbers_is_refused(batch, settings):
    update = Update({"adv_estimator": "rloo"}, {"loss_agg_mode": SUM}, {"loss_mode": "clip_cov", "clip_cov_lb": -9.0})
    with pytest.raises(EstimatorError, match="loss_mode=clip_cov draws random numbers of its own"):
        update.loss(batch["two"])


# --- nothing of verl's was typed again --------------------------------------------------------------------------------


def test_advantages_of_zero_in_verl_are_a_certificate_of_zero(settings, problem, monkeypatch):
    registry = modules().core.ADV_ESTIMATOR_REGISTRY
    original = registry["rloo"]
    monkeypatch.setitem(registry, "rloo", lambda **given: tuple(0.0 * each for each in original(**given)))
    for found in (
        certificate(settings["adv_estimator=rloo"].loss, problem),
        certificate(settings["adv_estimator=rloo"].advantages, problem, gives="advantages"),
    ):
        assert (found.verdict, found.cosine) == ("biased", 0.0)


@pytest.mark.parametrize(
    "module, function, name",
    [
        ("core", "agg_loss", "loss_agg_mode=seq-mean-token-sum"),
        ("losses", "kl_penalty", "kl_loss_type=k1+"),
        ("core", "kl_penalty", "kl_penalty=kl (k1)"),
    ],
)
def test_a_function_of_zero_in_verl_changes_the_certificate(module, function, name, settings, problem, monkeypatch):
    setting, owner = settings[name], getattr(modules(), module)
    before = certificate(setting.loss, problem, setting.target)
    original = getattr(owner, function)
    monkeypatch.setattr(owner, function, lambda *args, **given: 0.0 * original(*args, **given))
    after = certificate(setting.loss, problem, setting.target)
    assert after.verdict == "biased" and abs(after.cosine - before.cosine) > 1e-6


# --- layout -----------------------------------------------------------------------------------------------------------


def test_another_layout_is_a_sentence(monkeypatch):
    monkeypatch.setattr(modules().core, "kl_penalty_forward", lambda *args: None)
    with pytest.raises(UsageError, match="names no choices where this adapter looks for them"):
        rows.settings()


def test_the_adapter_knows_the_version_that_is_installed():
    assert find_library("verl").warning() is None
