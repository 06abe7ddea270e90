"""The audit of TRL: verdicts, the surprising ones derived again without TRL, and nothing of TRL's typed again."""

import contextlib
import random
import socket
import tempfile

import numpy as np
import pytest
import torch

pytest.importorskip("trl", reason="the audit of TRL needs TRL")

from llm_mdp.audit.adapter import advantages_of, loss_of, some_worlds
from llm_mdp.audit.batch import Batch, batch_of
from llm_mdp.audit.double import in_double
from llm_mdp.audit.library import find_library
from llm_mdp.audit.trl import trainers
from llm_mdp.audit.trl.settings import CAPPED, settings
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Finish
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError

K, T = 3, 3
SETTINGS = {each.name: each for each in settings()}
RECIPE = "loss_type=dr_grpo,scale_rewards=none"


@pytest.fixture(scope="module")
def problem():
    """4 responses, so that 20 groups are all."""
    return Problem(random_instance(2, T, seed=1), group_size=K)


@pytest.fixture(scope="module")
def batch():
    """Four groups of K responses, some cut off, with a reference."""
    dense = Problem(random_instance(3, T, n_prompts=2, seed=2), group_size=K)
    estimator = loss_of(lambda b: (b.reference_logp * b.logp).sum(), dense)
    evidence = some_worlds(estimator, dense, 4)
    found = batch_of(evidence, evidence.rollouts.logp, K)
    assert 0 < (found.finish == Finish.HORIZON).sum() < len(found.finish)
    return found


def certificate(function, problem, target="reward", make=loss_of):
    estimator = make(function, problem)
    return exact_certificate(estimator, problem.enumeration, problem.target(target), problem.magnitude(target))


def weights(function, batch: Batch):
    """-∂loss/∂log π of every token."""
    logp = batch.logp.clone().requires_grad_()
    with in_double():
        loss = function(batch.__class__(**vars(batch) | {"logp": logp}))
    return -torch.autograd.grad(loss, logp)[0] * batch.mask


# --- verdicts ---------------------------------------------------------------------------------------------------------

KEEP_DIRECTION = {
    RECIPE, "loss_type=luspo,scale_rewards=none", f"{RECIPE},delta=1.5", f"{RECIPE},num_iterations=2",
    f"{RECIPE},importance_sampling_level=sequence",
    "loss_type=luspo,scale_rewards=none,importance_sampling_level=sequence",
    f"{RECIPE},off_policy_mask_threshold=0.5", f"{RECIPE},multi_objective_aggregation=sum_then_normalize",
}  # fmt: skip
EXACT = {"RLOOTrainer", "RLOOTrainer,beta=0.0", "RLOOTrainer,beta=0.0,num_iterations=2"}


ENTROPIES = [f"{RECIPE},top_entropy_quantile=0.2", f"{RECIPE},entropy_coef=0.01"]
"""What a batch does not hold."""


@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in ENTROPIES])
def test_verdicts(name, problem):
    setting = SETTINGS[name]
    expected = "unbiased" if name in EXACT else "proportional" if name in KEEP_DIRECTION else "biased"
    assert certificate(setting.loss, problem, setting.target).verdict == expected
    assert (expected == "biased") == (setting.repair is not None)


@pytest.mark.parametrize("name", ENTROPIES)
def test_options_that_read_entropies_are_refused_in_words(name, problem):
    with pytest.raises(EstimatorError, match="it reads the entropy of the policy at every prefix"):
        certificate(SETTINGS[name].loss, problem)


def test_advantages_alone_are_proportional_without_a_standard_deviation_and_exact_for_rloo(problem):
    plain, scaled, rloo = (SETTINGS[name] for name in (RECIPE, "GRPOTrainer", "RLOOTrainer,beta=0.0"))
    found = certificate(plain.advantages, problem, make=advantages_of)
    assert found.verdict == "proportional" and found.scale == pytest.approx((K - 1) / K)
    assert certificate(scaled.advantages, problem, make=advantages_of).verdict == "biased"
    assert certificate(rloo.advantages, problem, make=advantages_of).verdict == "unbiased"


def test_advantages_are_shown_beside_every_loss_but_those_with_a_penalty_of_its_own():
    without = {name for name, each in SETTINGS.items() if each.advantages is None}
    assert without == {name for name in SETTINGS if "beta=0.1" in name}


def test_the_recipe_is_the_gradient_times_one_constant(problem):
    for name, scale in ((RECIPE, (K - 1) / (K * T)), ("loss_type=luspo,scale_rewards=none", (K - 1) / K)):
        assert certificate(SETTINGS[name].loss, problem).scale == pytest.approx(scale)


def test_a_kl_with_bias_correction_lacks_what_later_tokens_add(problem):
    loss = SETTINGS[f"{RECIPE},beta=0.1"].loss
    assert certificate(loss, problem, "reward - 0.1 kl").verdict == "biased"
    assert certificate(loss, problem, "reward - 0.1 kl at visited states").verdict == "biased"
    beside = f"reward - {0.1 * K / (K - 1):.17g} kl at visited states"
    assert certificate(loss, problem, beside).verdict == "proportional"


# --- derived a second time, from first principles ---------------------------------------------------------------------


def lengths(batch):
    return batch.mask.sum(-1)


def centred(batch, rewards=None):
    rewards = (batch.response_reward if rewards is None else rewards).view(-1, K)
    return (rewards - rewards.mean(-1, keepdim=True)).flatten()


def deviation(rewards):
    """Of a group, with K - 1 in the denominator, and TRL's ε."""
    return rewards.view(-1, K).std(-1).repeat_interleave(K) + 1e-4


def standardised(rewards):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def others(rewards):
    grouped = rewards.view(-1, K)
    return (grouped - (grouped.sum(-1, keepdim=True) - grouped) / (K - 1)).flatten()


def default(batch):
    return centred(batch) / deviation(batch.response_reward) / lengths(batch).sum()


def by_length(batch):
    return centred(batch) / len(batch.mask) / lengths(batch)


def without_cut_off(batch):
    return centred(batch) * (batch.finish == Finish.EOS) / (len(batch.mask) * T)


def gdpo(batch):
    both = batch.response_reward, -0.1 * lengths(batch).double()
    total = sum(centred(batch, each) / deviation(each) for each in both)
    return standardised(total) / (len(batch.mask) * T)


def penalised(batch, of_token):
    return (centred(batch)[:, None] - 0.1 * of_token) / (len(batch.mask) * T)


def log_ratio(batch):
    return batch.old_logp - batch.reference_logp


def forward(batch):
    return penalised(batch, 1 - (-log_ratio(batch)).exp())


def one_ratio(batch):
    """The whole response's k3, once a token of it, beside each token's own derivative."""
    rho = log_ratio(batch)
    k3 = ((-rho).exp() + rho - 1) * batch.mask
    return penalised(batch, k3.sum(-1, keepdim=True) / lengths(batch)[:, None] + 1 - (-rho).exp())


def rloo_with_kl(batch):
    return others(batch.response_reward - 0.05 * (log_ratio(batch) * batch.mask).sum(-1)) / len(batch.mask)


BY_HAND = {
    "GRPOTrainer": default,
    "loss_type=cispo": lambda b: default(b) / 5,
    "loss_type=grpo,scale_rewards=none": by_length,
    "loss_type=grpo,scale_rewards=none,importance_sampling_level=sequence": by_length,
    "loss_type=dapo,scale_rewards=none": lambda b: centred(b) / lengths(b).sum(),
    "loss_type=sapo": lambda b: by_length(b) / deviation(b.response_reward),
    "loss_type=vespo": default,
    "loss_type=luspo": lambda b: centred(b) / deviation(b.response_reward) / len(b.mask),
    "loss_type=cispo,scale_rewards=none,epsilon_high=5.0": lambda b: centred(b) / lengths(b).sum(),
    "loss_type=dr_grpo,scale_rewards=batch": lambda b: (
        centred(b) / (b.response_reward.std() + 1e-4) / (len(b.mask) * T)
    ),
    f"{RECIPE},mask_truncated_completions=True": without_cut_off,
    f"{RECIPE},multi_objective_aggregation=normalize_then_sum": gdpo,
    f"{RECIPE},beta=0.1": lambda b: penalised(b, log_ratio(b)),
    f"{RECIPE},beta=0.1,use_bias_correction_kl=False": forward,
    f"{RECIPE},importance_sampling_level=sequence,beta=0.1": one_ratio,
    "RLOOTrainer": rloo_with_kl,
    "RLOOTrainer,beta=0.0": lambda b: others(b.response_reward) / len(b.mask),
    "RLOOTrainer,beta=0.0,normalize_advantages=True": lambda b: standardised(others(b.response_reward)) / len(b.mask),
    "RLOOTrainer,beta=0.0,reward_clip_range=(-0.5,0.5)": lambda b: (
        others(b.response_reward.clamp(-0.5, 0.5)) / len(b.mask)
    ),
    "RLOOTrainer,beta=0.0,mask_truncated_completions=True": lambda b: (
        others(b.response_reward) * (b.finish == Finish.EOS) / len(b.mask)
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_weights_of_tokens_are_those_derived_by_hand(name, batch, problem):
    by_hand = BY_HAND[name](batch)
    by_hand = (by_hand[:, None] if by_hand.dim() == 1 else by_hand) * batch.mask
    torch.testing.assert_close(weights(SETTINGS[name].loss, batch), by_hand, rtol=1e-11, atol=1e-14)


def test_certificates_are_those_of_the_weights_derived_by_hand(problem):
    for name in ("GRPOTrainer", "loss_type=cispo", f"{RECIPE},beta=0.1", f"{RECIPE},mask_truncated_completions=True"):
        derived = BY_HAND[name]

        def loss(batch, derived=derived):
            weight = derived(batch)
            return -((weight[:, None] if weight.dim() == 1 else weight) * batch.logp * batch.mask).sum()

        target = SETTINGS[name].target
        theirs, ours = certificate(SETTINGS[name].loss, problem, target), certificate(loss, problem, target)
        for figure in ("relative_bias", "scale", "cosine", "trace_covariance"):
            assert getattr(theirs, figure) == pytest.approx(getattr(ours, figure), rel=1e-9), (name, figure)
        assert theirs.verdict == ours.verdict


def test_a_fifth_is_left_by_the_default_cap_of_cispo_and_all_by_the_recommended_one(batch):
    assert SETTINGS["loss_type=cispo"].note == CAPPED
    capped, wide = (
        weights(SETTINGS[f"loss_type=cispo,scale_rewards=none{more}"].loss, batch) for more in ("", ",epsilon_high=5.0")
    )
    torch.testing.assert_close(5 * capped, wide, rtol=1e-12, atol=0)


# --- nothing of TRL's was typed again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind", [(RECIPE, "GRPOTrainer"), ("RLOOTrainer,beta=0.0", "RLOOTrainer")])
def test_a_loss_of_zero_in_trl_is_a_certificate_of_zero(name, kind, problem, monkeypatch):
    import trl

    original = getattr(trl, kind)._compute_loss
    monkeypatch.setattr(getattr(trl, kind), "_compute_loss", lambda *args: 0.0 * original(*args))
    found = certificate(SETTINGS[name].loss, problem)
    assert (found.verdict, found.cosine) == ("biased", 0.0)


def test_a_standard_deviation_of_zero_in_trl_changes_the_certificate(problem, monkeypatch):
    import trl.trainer.grpo_trainer as module

    before = certificate(SETTINGS["loss_type=dr_grpo"].loss, problem)
    nanstd = module.nanstd
    monkeypatch.setattr(module, "nanstd", lambda *args, **rest: 0.0 * nanstd(*args, **rest))
    after = certificate(SETTINGS["loss_type=dr_grpo"].loss, problem)
    assert before.verdict == "biased" and after.verdict == "proportional"
    assert after.scale == pytest.approx((K - 1) / (K * T) / 1e-4)


def test_no_digit_is_lost_by_leaving_casts_inside_trl_alone(batch, monkeypatch):
    computed = {name: each for name, each in SETTINGS.items() if name not in ENTROPIES}
    found = {name: weights(each.loss, batch) for name, each in computed.items()}
    monkeypatch.setattr(torch._C, "DisableTorchFunction", contextlib.nullcontext)
    for name, setting in computed.items():
        torch.testing.assert_close(weights(setting.loss, batch), found[name], rtol=1e-12, atol=1e-16)


# --- layout, leftovers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", trainers.OWN)
def test_another_layout_is_a_sentence(name, monkeypatch):
    import trl

    for kind in trl.RLOOTrainer.__mro__:
        if name in vars(kind):
            monkeypatch.delattr(kind, name)
    with pytest.raises(UsageError, match=rf"has no RLOOTrainer\.{name}; .*pip install --no-deps trl==1\.16\.0"):
        settings()


def test_an_option_that_is_gone_is_a_sentence(monkeypatch):
    import trl

    monkeypatch.delitem(trl.GRPOConfig.__dataclass_fields__, "off_policy_mask_threshold")
    with pytest.raises(UsageError, match=r"has no GRPOConfig\(off_policy_mask_threshold=…\)"):
        settings()


def test_a_loss_that_asks_for_nothing_is_a_sentence(batch, monkeypatch):
    import trl

    monkeypatch.setattr(trl.GRPOTrainer, "_compute_loss", lambda *_: torch.zeros((), requires_grad=True))
    with pytest.raises(UsageError, match="without calling _get_per_token_logps_and_entropies"):
        SETTINGS[RECIPE].loss(batch)


def test_a_trainer_leaves_no_files_no_metrics_and_no_seed_and_asks_no_network(batch, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    trainers.trainer_of.cache_clear()
    options = (("beta", 0.1), ("loss_type", "dr_grpo"))
    trainers.loss("GRPOTrainer", options, batch)
    trainer = trainers.trainer_of("GRPOTrainer", options, K, T)
    assert not list(tmp_path.iterdir()) and not trainer._metrics["train"] and trainer.batch is None
    assert len(trainer._logs["prompt"]) <= trainer.args.generation_batch_size
    assert torch.equal(states[0], torch.get_rng_state()) and states[2] == random.getstate()
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002


def test_the_adapter_knows_the_version_that_is_installed():
    assert find_library("trl").warning() is None
