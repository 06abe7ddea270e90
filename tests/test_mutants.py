"""Planted bugs: each is put into a shared piece, and the ledger must notice, in the claim named.

A check that cannot fail checks nothing. Every row runs the claim unmutated first, where it must hold. Then, with the
bug in place, the claim must not hold (`holds` is False, or None where "biased" was expected) or, where the verdict is
"biased" either way, its figures must move.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from pytest import MonkeyPatch

from llm_mdp.estimators import algorithms as estimators
from llm_mdp.estimators import (
    base,
    boundaries,
    credit,
    learned_credit,
    objectives,
    off_policy,
    practices,
    returns,
    theorems,
    trepo_readings,
    values,
)
from llm_mdp.exact import enumeration, groups, worlds
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.worlds import ExactSampler, WorldSampler
from llm_mdp.mdp.hidden_rewards import last_token
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Finish
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.verify import problem
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.ledger import claim_row
from llm_mdp.verify.problem import Problem

BY_ID = {claim.id: claim for claim in CLAIMS}
FIGURES = ("relative_bias", "scale", "cosine", "trace_covariance")


def wrap(monkeypatch: MonkeyPatch, owner: object, name: str, around: Callable) -> None:
    """Replace owner.name by a function that is given the original and then its arguments."""
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **kwargs: around(original, *args, **kwargs))


# --- what is sampled --------------------------------------------------------------------------------------------------


def end_token_masked_out(monkeypatch):
    """As where pad == eos and everything equal to pad is masked."""

    def around(original, self, *args, **kwargs):
        rollouts = original(self, *args, **kwargs)
        return replace(rollouts, mask=rollouts.mask & (rollouts.tokens != self.enumeration.mdp.eos))

    wrap(monkeypatch, WorldSampler, "rollouts", around)


def mask_shifted_by_one(monkeypatch):
    def around(original, self, *args, **kwargs):
        rollouts = original(self, *args, **kwargs)
        late = torch.cat([torch.zeros_like(rollouts.mask[..., :1]), rollouts.mask[..., :-1]], dim=-1)
        return replace(rollouts, mask=rollouts.mask & late)

    wrap(monkeypatch, WorldSampler, "rollouts", around)


def truncation_not_recorded(monkeypatch):
    monkeypatch.setattr(enumeration, "finish_of", lambda tokens, eos: torch.zeros(tokens.shape[:-1], dtype=torch.int64))


def temperature_ignored_when_drawing(monkeypatch):
    wrap(monkeypatch, Enumeration, "leaf_logp", lambda original, self, temperature=1.0: original(self))


def prompts_asked_equally_often(monkeypatch):
    equal = property(lambda self: torch.full((len(self.prompts),), 1 / len(self.prompts), dtype=torch.float64))
    monkeypatch.setattr(TokenMDP, "prompt_probability", equal)


def orders_of_a_group_not_counted(monkeypatch):
    monkeypatch.setattr(groups, "_orders", lambda groups: torch.ones(len(groups), dtype=torch.float64))


def branch_from_a_prefix_that_holds_the_token(monkeypatch):
    """The branch of step t continues W₀,ₜ in place of W₀,ₜ₋₁."""

    def around(original, self, levels, rollouts):
        table = original(self, levels, rollouts)
        return torch.cat([table[..., 1:], table[..., -1:]], dim=-1)

    wrap(monkeypatch, ExactSampler, "_at_prefix", around)


def greedy_takes_the_last_of_equals(monkeypatch):
    logits = Enumeration.edge_logits.func

    def tilted(self):
        return logits(self) + 1e-9 * torch.arange(self.tree.vocab_size)

    monkeypatch.setattr(Enumeration, "edge_logits", property(tilted))


def greedy_takes_the_least_probable(monkeypatch):
    wrap(monkeypatch, WorldSampler, "branches", _least_probable)


def _least_probable(original, self, *args, **kwargs):
    e = self.enumeration
    e.__dict__.pop("greedy_leaf", None)
    kept, e.__dict__["edge_logits"] = e.edge_logits, -e.edge_logits
    try:
        return original(self, *args, **kwargs)
    finally:
        e.__dict__["edge_logits"] = kept


# --- the policy and the reward ----------------------------------------------------------------------------------------


def end_token_without_gradient(monkeypatch):
    def around(original, policy, mdp):
        scores = original(policy, mdp).clone()
        scores[mdp.eos :: mdp.vocab_size] = 0
        return scores

    wrap(monkeypatch, enumeration, "scores_of", around)


def discount_to_the_power_of_t(monkeypatch):
    """γᵗ in place of γᵗ⁻¹ in RM."""
    late = property(lambda self: self.gamma ** torch.arange(1, self.horizon + 1, dtype=torch.float64))
    monkeypatch.setattr(TokenMDP, "discount", late)


def hidden_rewards_of_the_token_before(monkeypatch):
    def around(original, self, rollouts):
        reward = original(self, rollouts)
        return torch.cat([torch.zeros_like(reward[..., :1]), reward[..., :-1]], dim=-1)

    wrap(monkeypatch, WorldSampler, "hidden_reward", around)


# --- values and baselines ---------------------------------------------------------------------------------------------


def own_reward_in_the_leave_one_out_mean(monkeypatch):
    monkeypatch.setattr(values, "leave_one_out", values.group_mean)


def leave_one_out_divided_by_k(monkeypatch):
    """Harmless to the mean: a baseline is a baseline. The variance grows."""
    wrap(monkeypatch, values, "leave_one_out", lambda original, reward, k: original(reward, k) * (k - 1) / k)


def group_mean_leaves_itself_out(monkeypatch):
    monkeypatch.setattr(values, "group_mean", values.leave_one_out)


def std_with_ddof_0(monkeypatch):
    wrap(monkeypatch, values, "group_std", lambda original, reward, k: original(reward, k) * ((k - 1) / k) ** 0.5)


def baseline_that_contains_the_token(monkeypatch):
    """The value after wₜ as the baseline of step t."""
    wrap(monkeypatch, values, "branch_mean", _one_step_late)
    wrap(monkeypatch, theorems, "branch_mean", _one_step_late)


def _one_step_late(original, branches, rollouts):
    value = original(branches, rollouts)
    return torch.cat([value[..., 1:], value[..., -1:]], dim=-1)


def value_is_only_what_is_to_come(monkeypatch):
    """V in place of U: what the prefix has collected is forgotten."""
    monkeypatch.setattr(Problem, "exact_u", Problem.exact_v)


def pooling_without_the_response_itself(monkeypatch):
    def around(original, branches, response_reward, rollouts, boundary, own):
        return original(branches, torch.zeros_like(response_reward), rollouts, boundary, own)

    wrap(monkeypatch, values, "pooled_branches", around)


def own_response_by_length(monkeypatch):
    """OPO's repair undone: the response itself is in its baseline again."""
    wrap(monkeypatch, values, "length_weighted_mean", lambda original, *args, own: original(*args, own=True))


def every_best_response_gets_the_lead_of_the_first(monkeypatch):
    """The lead over the second best, given to all, as a group's constant."""

    def around(original, reward, group_size):
        lead = original(reward, group_size).unflatten(-1, (-1, group_size))
        return lead.amax(-1, keepdim=True).expand_as(lead).flatten(-2)

    wrap(monkeypatch, values, "lead_of_best", around)


def steps_drawn_from_the_response(monkeypatch):
    """What was to be drawn in advance, drawn from the response's own steps."""
    around = lambda original, self, evidence: original(replace(self, of_response=True), evidence)  # noqa: E731
    wrap(monkeypatch, trepo_readings.RandomStep, "advantages", around)


def length_in_a_penalty_without_the_end_token(monkeypatch):
    def around(original, self, evidence):
        finished = (evidence.rollouts.finish == Finish.EOS)[..., None]
        return original(self, evidence) + torch.where(finished, self.price, 0.0)

    wrap(monkeypatch, practices.LengthPenalty, "advantages", around)


# --- credit, returns --------------------------------------------------------------------------------------------------


def reward_on_the_first_token(monkeypatch):
    def first(response_reward, mask):
        return torch.where(mask & (mask.cumsum(-1) == 1), response_reward[..., None], 0.0)

    monkeypatch.setattr(credit, "terminal", first)


def final_score_missing_from_the_differences(monkeypatch):
    wrap(
        monkeypatch,
        credit,
        "prefix_difference",
        lambda original, score, reward, mask: original(score, 0 * reward, mask),
    )


def attention_not_renormalised(monkeypatch):
    def around(original, reward, attention, mask, beta=1.0):
        return original(reward, attention, mask, beta) * mask.sum(-1, keepdim=True)

    wrap(monkeypatch, credit, "attention_shares", around)


def gae_without_the_last_delta(monkeypatch):
    def around(original, token_reward, value, mask, **options):
        return original(token_reward, value, mask & ~last_token(mask), **options)

    wrap(monkeypatch, estimators, "gae", around)


def gae_bootstraps_from_this_state(monkeypatch):
    """δₜ = rₜ + vₜ - vₜ."""

    def around(original, token_reward, value, mask, **options):
        late = torch.cat([value[..., :1], value[..., :-1]], dim=-1)
        late = torch.where(torch.nn.functional.pad(mask, (0, 1)), late, 0.0)
        return original(token_reward, late, mask, **options)

    wrap(monkeypatch, estimators, "gae", around)


def return_to_go_leaves_out_the_present(monkeypatch):
    def around(original, token_reward, mask, gamma=1.0):
        return original(token_reward, mask, gamma) - token_reward

    wrap(monkeypatch, learned_credit, "return_to_go", around)
    wrap(monkeypatch, returns, "return_to_go", around)


def whitening_with_ddof_0(monkeypatch):
    def around(original, advantage, mask, eps=1e-8):
        count = mask.sum((-2, -1), keepdim=True)
        return original(advantage, mask, eps) * (count / (count - 1)).sqrt()

    wrap(monkeypatch, theorems, "whiten", around)


def interpolation_forgotten(monkeypatch):
    monkeypatch.setattr(estimators, "interpolate", lambda advantage, boundary, mask: advantage)


# --- boundaries -------------------------------------------------------------------------------------------------------


def boundary_looks_ahead(monkeypatch):
    """Every n tokens counted from the end of the response."""

    def from_the_end(self, rollouts):
        mask = rollouts.mask
        first = mask & (mask.cumsum(-1) == 1)
        return first | (mask & (mask.flip(-1).cumsum(-1).flip(-1) % self.n == 0))

    monkeypatch.setattr(boundaries.EveryNTokens, "__call__", from_the_end)


# --- objectives -------------------------------------------------------------------------------------------------------


def mean_in_place_of_sum(monkeypatch):
    def around(original, per_token, mask, reduction="sum", constant=None):
        return original(per_token, mask, "sequence_mean" if reduction == "sum" else reduction, constant)

    wrap(monkeypatch, objectives, "reduce", around)


def mean_over_the_padded_width(monkeypatch):
    def around(original, per_token, mask, reduction="sum", constant=None):
        return original(per_token, mask, reduction, constant) / mask.shape[-1]

    wrap(monkeypatch, objectives, "reduce", around)


def responses_summed_not_averaged(monkeypatch):
    def around(original, per_token, mask, reduction="sum", constant=None):
        return original(per_token, mask, reduction, constant) * mask.shape[-2]

    wrap(monkeypatch, objectives, "reduce", around)


def loss_of_the_wrong_sign(monkeypatch):
    wrap(monkeypatch, base, "policy_gradient", lambda original, *args: -original(*args))


def ratio_upside_down(monkeypatch):
    wrap(monkeypatch, base, "clipped_surrogate", lambda original, logp, old, *rest: original(old, logp, *rest))


def clip_range_too_wide(monkeypatch):
    wrap(monkeypatch, base, "clipped_surrogate", lambda original, *args: original(*args[:4], 10.0, 10.0, *args[6:]))


def divergence_the_other_way_round(monkeypatch):
    wrap(monkeypatch, practices, "kl_estimate", lambda original, logp, reference, kind: original(reference, logp, kind))


def another_beta_in_the_closed_form(monkeypatch):
    wrap(monkeypatch, problem, "regularised_optimum", lambda original, mdp, ref, beta: original(mdp, ref, 1.001 * beta))


def ratio_to_the_policy_that_drew_upside_down(monkeypatch):
    wrap(monkeypatch, off_policy, "log_ratio", lambda original, logp, old, *rest: original(old, logp, *rest))


def ratio_of_the_first_token_only(monkeypatch):
    def around(original, logp, old, mask, *rest):
        return original(logp, old, mask & (mask.cumsum(-1) == 1), *rest)

    wrap(monkeypatch, off_policy, "log_ratio", around)


def another_policy_scored_as_the_policy_itself(monkeypatch):
    def around(original, self, group_size, temperature=1.0, behaviour=None):
        rollouts = original(self, group_size, temperature, behaviour)
        return replace(rollouts, logp=worlds.of_rows(self.enumeration.leaf_logp(temperature), rollouts))

    wrap(monkeypatch, WorldSampler, "rollouts", around)


def another_policy_does_not_draw(monkeypatch):
    """The log-probabilities are the other policy's, the responses are not."""

    def around(original, self, group_size, leaf_logp):
        return original(self, group_size, self.enumeration.leaf_logp())

    wrap(monkeypatch, ExactSampler, "_worlds", around)


def gate_without_its_factor(monkeypatch):
    wrap(monkeypatch, off_policy, "soft_gate", lambda original, *args: original(*args) / 4)


def ratio_in_the_penalty_is_a_constant(monkeypatch):
    wrap(monkeypatch, practices, "log_ratio", lambda original, *args: original(*args).detach())


def filter_keeps_everything(monkeypatch):
    wrap(
        monkeypatch,
        WorldSampler,
        "keep",
        lambda original, self, evidence, groups: original(self, evidence, torch.ones_like(groups)),
    )


@dataclass(frozen=True)
class Mutant:
    plant: Callable[[MonkeyPatch], None]
    claim: str
    """The claim that catches it."""
    moves: bool = False
    """Expect other figures, not another verdict."""
    ties: bool = False
    """On the uniform policy, where every token is as probable as every other."""


MUTANTS = (
    Mutant(end_token_masked_out, "reinforce"),
    Mutant(mask_shifted_by_one, "reinforce"),
    Mutant(truncation_not_recorded, "masked-truncated"),
    Mutant(temperature_ignored_when_drawing, "temperature-mismatch"),
    Mutant(prompts_asked_equally_often, "reinforce"),
    Mutant(orders_of_a_group_not_counted, "rloo"),
    Mutant(branch_from_a_prefix_that_holds_the_token, "trepo"),
    Mutant(branch_from_a_prefix_that_holds_the_token, "vineppo"),
    Mutant(greedy_takes_the_last_of_equals, "trepo-greedy-values", moves=True, ties=True),
    Mutant(greedy_takes_the_least_probable, "trepo-greedy-values", moves=True),
    Mutant(end_token_without_gradient, "reinforce"),
    Mutant(discount_to_the_power_of_t, "lemma-1"),
    Mutant(discount_to_the_power_of_t, "remark-2-return-to-go"),
    Mutant(hidden_rewards_of_the_token_before, "remark-2-return-to-go"),
    Mutant(own_reward_in_the_leave_one_out_mean, "rloo"),
    Mutant(leave_one_out_divided_by_k, "rloo", moves=True),
    Mutant(group_mean_leaves_itself_out, "grpo-mean"),
    Mutant(std_with_ddof_0, "grpo", moves=True),
    Mutant(baseline_that_contains_the_token, "trepo"),
    Mutant(baseline_that_contains_the_token, "trepo-greedy-baseline"),
    Mutant(value_is_only_what_is_to_come, "theorem-1"),
    Mutant(pooling_without_the_response_itself, "trepo-eq31", moves=True),
    Mutant(own_response_by_length, "opo-left-out"),
    Mutant(every_best_response_gets_the_lead_of_the_first, "pass-at-k"),
    Mutant(steps_drawn_from_the_response, "trepo-random-step"),
    Mutant(length_in_a_penalty_without_the_end_token, "length-penalty-shaped"),
    Mutant(reward_on_the_first_token, "actor-critic"),
    Mutant(final_score_missing_from_the_differences, "r3hf"),
    Mutant(attention_not_renormalised, "abc-full-sum"),
    Mutant(gae_without_the_last_delta, "gae-exact-1"),
    Mutant(gae_bootstraps_from_this_state, "gae-exact-0"),
    Mutant(return_to_go_leaves_out_the_present, "rto"),
    Mutant(return_to_go_leaves_out_the_present, "remark-2-return-to-go"),
    Mutant(whitening_with_ddof_0, "remark-4-whitening", moves=True),
    Mutant(interpolation_forgotten, "trepo-interpolated"),
    Mutant(boundary_looks_ahead, "vineppo"),
    Mutant(boundary_looks_ahead, "trepo-segment"),
    Mutant(mean_in_place_of_sum, "reinforce"),
    Mutant(mean_over_the_padded_width, "theorem-2"),
    Mutant(responses_summed_not_averaged, "rloo"),
    Mutant(loss_of_the_wrong_sign, "reinforce"),
    Mutant(ratio_upside_down, "ppo-second-epoch", moves=True),
    Mutant(clip_range_too_wide, "ppo-second-epoch", moves=True),
    Mutant(divergence_the_other_way_round, "kl-k1-reward"),
    Mutant(another_beta_in_the_closed_form, "dpo-optimum"),
    Mutant(another_beta_in_the_closed_form, "rto"),
    Mutant(ratio_to_the_policy_that_drew_upside_down, "mismatch-sequence"),
    Mutant(ratio_of_the_first_token_only, "mismatch-sequence"),
    Mutant(another_policy_scored_as_the_policy_itself, "mismatch-sequence"),
    Mutant(another_policy_does_not_draw, "mismatch-sequence"),
    Mutant(gate_without_its_factor, "sapo"),
    Mutant(ratio_in_the_penalty_is_a_constant, "kl-rho-k3-loss-visited"),
    Mutant(filter_keeps_everything, "zero-std-filtered", moves=True),
)


def ledger_row(claim: str, ties: bool) -> dict:
    """The claim on an instance made afresh, so that nothing computed without the bug is left over."""
    instance = random_instance(3, 4, gamma=0.8, n_prompts=2, seed=11)
    if ties:
        mdp = instance.mdp
        instance = replace(
            instance, policy=TabularPolicy.random(mdp.tree, mdp.prompt_tokens, torch.Generator(), scale=0.0)
        )
    return claim_row(BY_ID[claim], Problem(instance), sampled=None, seed=0, confidence=0.99)


def close(one: dict, other: dict) -> bool:
    """Are all figures the same?"""
    pairs = [(one[name], other[name]) for name in FIGURES]
    return all(a == pytest.approx(b, rel=1e-6, abs=1e-9) for a, b in pairs if a is not None and b is not None)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.plant.__name__}-{mutant.claim}")
def test_the_ledger_notices(mutant, monkeypatch):
    sound = ledger_row(mutant.claim, mutant.ties)
    assert sound["holds"] is True
    assert close(sound, ledger_row(mutant.claim, mutant.ties)), "figures that wander by themselves could not show a bug"
    mutant.plant(monkeypatch)
    broken = ledger_row(mutant.claim, mutant.ties)
    if mutant.moves:
        assert not close(sound, broken)
    else:
        assert broken["holds"] is not True, (broken["verdict"], broken["scale"])


def test_mutants_that_only_move_figures_keep_the_verdict(monkeypatch):
    """So the column `moves` says no more than is needed: these bugs cannot be seen in a verdict."""
    for mutant in MUTANTS:
        if mutant.moves:
            with monkeypatch.context() as patch:
                mutant.plant(patch)
                assert ledger_row(mutant.claim, mutant.ties)["holds"] is True, mutant.plant.__name__
    assert ledger_row("rloo", ties=False)["holds"] is True
