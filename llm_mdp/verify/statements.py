"""Rows of the ledger that are no certificate of an estimator: a statement of the paper, and the figures that decide it.

Each function takes a problem and returns what its row shows: `verdict` ("holds" or "fails" on this instance, or that of
a certificate), `certificate`, the figures in words, and the figures themselves.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.optima import dpo_minimiser
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.verify.certificate import FIGURES, ROUNDING, UNBIASED, judge
from llm_mdp.verify.choice import shared_moments
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import flatten_gradients

HOLDS = 1e-6
"""Largest difference of log-probabilities at which two optima are the same, and of values, as a part of the largest
reward, at which two baselines are."""


def dpo_optimum(problem: Problem) -> dict[str, Any]:
    """`dpo-optimum`: the minimised loss against the closed form."""
    mdp, reference = problem.instance.mdp, Enumeration(problem.instance.mdp, problem.instance.reference)
    closed_form = Enumeration(mdp, problem.dpo_policy).leaf_logp().sum(-1)
    difference = float((dpo_minimiser(reference, problem.beta) - closed_form).abs().max())
    words = f"log-probabilities differ by at most {difference:.2g}"
    return _said(difference < HOLDS, words, max_difference=difference)


def greedy_baseline(problem: Problem) -> dict[str, Any]:
    """`remark-4-remax`: RM of the greedy response against U(w₀), prompt by prompt; figures are means over prompts."""
    e = problem.enumeration
    greedy, value = e.at_temperature(0).values.U[0][:, 0], e.values.U[0][:, 0]
    difference = float((greedy - value).abs().max())
    same = difference <= HOLDS * float(e.response_reward.abs().max())
    baseline, expected = (float(e.mdp.prompt_probability @ each) for each in (greedy, value))
    words = f"RM of the greedy response is {baseline:.4g}, U(w₀) {expected:.4g}"
    return _said(same, words, baseline=baseline, value=expected, max_difference=difference)


def token_level_spread(problem: Problem) -> dict[str, Any]:
    """`remark-5-advantage`: tr Cov of token rewards as return-to-go over that of their sum on every token."""
    by_token, merged = (
        shared_moments(problem.make(CATALOGUE[name]), problem.enumeration).trace_covariance
        for name in ("remark-5-token-level", "remark-5-merged")
    )
    if merged == 0:
        return _said(True, "neither form has any variance here", ratio=None)
    ratio = by_token / merged
    return _said(ratio <= 1, f"tr Cov of the token-level form is {ratio:.3g} times that of the merged one", ratio=ratio)


def same_goal(problem: Problem) -> dict[str, Any]:
    """`remark-7-same-goal`: E g with U(W₀,ₜ) on token t (Theorem 1) against E g with RM(W) on every token
    (Corollary 1)."""
    exact, approximate = (
        shared_moments(problem.make(CATALOGUE[name]), problem.enumeration) for name in ("theorem-1", "reinforce")
    )
    difference, size = float((exact.mean - approximate.mean).norm()), float(exact.mean.norm())
    floor = 10 * ROUNDING * max(exact.root_mean_square, approximate.root_mean_square)
    words = f"the two expected gradients differ by {difference:.2g}, their norm is {size:.3g}"
    return _said(difference <= max(UNBIASED * size, floor), words, difference=difference)


def second_epoch_at_its_policy(problem: Problem) -> dict[str, Any]:
    """`ppo-second-epoch-new-theta`: the second update against ∇J at the policies where it is taken, E ∇J(θ + η g(W)),
    and not at the policy that drew."""
    e, estimator = problem.enumeration, problem.make(CATALOGUE["ppo-second-epoch"])
    moments = shared_moments(estimator, e)
    target, policy = torch.zeros_like(moments.mean), copy.deepcopy(problem.instance.policy)
    assert isinstance(policy, nn.Module)
    start = parameters_to_vector(policy.parameters()).detach()
    for prompt, chances in enumerate(e.mdp.prompt_probability[:, None] * e.probability):
        for leaf, chance in enumerate(chances):
            score = e.scores[e.edge[prompt, leaf, e.mask[leaf]]].sum(0)
            step = estimator.displacement(e.response_reward[prompt, leaf] * score)
            assert step is not None
            vector_to_parameters(start + step.to(start), policy.parameters())
            target += chance * _gradient_of(policy, e)
    certificate = judge(moments, target, problem.magnitude("reward"))
    return {name: getattr(certificate, name) for name in FIGURES} | {"holds": True, "certificate": str(certificate)}


def _gradient_of(policy: Policy, enumeration: Enumeration) -> Float[Tensor, " parameters"]:
    """∇ Σ_W P(W) RM(W) of another policy on the responses that are enumerated, in one backward pass."""
    assert isinstance(policy, nn.Module)
    e, parameters = enumeration, list(policy.parameters())
    prompt, tokens, mask = e.prompt.repeat_interleave(len(e.tokens), 0), e.tokens, e.mask
    every = logp_of(policy, prompt, tokens.repeat(e.n_prompts, 1), mask.repeat(e.n_prompts, 1)).sum(-1)
    chance = (every.view(e.n_prompts, -1) + e.reply_logp).exp()
    J = (e.mdp.prompt_probability[:, None] * chance * e.response_reward).sum()
    return flatten_gradients(torch.autograd.grad(J, parameters, allow_unused=True), parameters)


def _said(true: bool, words: str, **figures: Any) -> dict[str, Any]:
    return {"verdict": "holds" if true else "fails", "holds": true, "certificate": words, **figures}
