"""What verl says of its names, in our words, and how to repair what is not what it is called."""

from dataclasses import dataclass

WHITENED = (
    "It is whitened over all tokens of the batch, which no option turns off: take adv_estimator=rloo, or remax, which "
    "have no such step."
)
NO_STD = "set norm_adv_by_std_in_grpo=False"
SUM = "seq-mean-token-sum"
SET_SUM = f"set loss_agg_mode={SUM}"
LATER = "First update, ratio 1: what clips or weighs ratios acts on later ones."


@dataclass(frozen=True)
class Told:
    """About one name of a registry."""

    claim: str
    target: str = "reward"
    """What the name promises a gradient of."""
    repair: str | None = None
    note: str = ""
    beta: float | None = None
    """dro_beta, without which verl refuses DRO."""


UNKNOWN = Told(
    "no description here yet", note="A name that this adapter does not know; what it is was tried all the same."
)

ADVANTAGES = {
    "gae": Told("advantages of a critic, γ = λ = 1 (PPO), whitened over the batch", repair=WHITENED),
    "grpo": Told("GRPO: rewards less the group's mean, over its standard deviation", repair=NO_STD),
    "grpo_vectorized": Told(
        "GRPO as adv_estimator=grpo, computed without a loop",
        repair="set adv_estimator=grpo and norm_adv_by_std_in_grpo=False (here that option is not read)",
    ),
    "gdpo": Told(
        "GDPO: every component of the reward over its group's standard deviation, then whitened over the batch",
        repair=WHITENED,
        note="With one component. Trainer v1 hands over none, so it runs with trainer.use_v1=False only.",
    ),
    "grpo_passk": Told(
        "pass@k: the group's best response alone, by what it is better than the second",
        target="max of K",
        repair=NO_STD,
    ),
    "reinforce_plus_plus_baseline": Told(
        "REINFORCE++ with baseline: rewards less the group's mean, whitened over the batch", repair=WHITENED
    ),
    "rloo": Told("RLOO: rewards less the mean of the group's others"),
    "opo": Told(
        "OPO: rewards less the group's mean, weighted by length, the optimal baseline",
        repair="set adv_estimator=rloo; here a response is part of its own baseline",
    ),
    "reinforce_plus_plus": Told("REINFORCE++: the return from each token on, whitened over the batch", repair=WHITENED),
    "remax": Told(
        "ReMax: rewards less that of the greedy response",
        note="Trainer v1 hands over no reward_baselines, so it runs with trainer.use_v1=False only.",
    ),
    "gpg": Told(
        "GPG: rewards less the group's mean, times the batch's responses per response with a reward other than 0",
        repair="set adv_estimator=rloo; the factor is the batch's own and cannot be set",
    ),
    "rloo_vectorized": Told("RLOO as adv_estimator=rloo, computed without a loop"),
}
"""By name of the advantage estimator, each under sums (`SUM`) and the vanilla loss."""

SUM_OF_SQUARES = (
    "it reads Σπ² of every prefix (sum_pi_squared), which a batch does not have. With it, it is biased: a response is "
    "part of its own baseline, see tests/audit/test_verl.py. Trainer v1 does not hand it over"
)
CANNOT = {"optimal_token_baseline": SUM_OF_SQUARES, "tir_optimal_token_baseline": SUM_OF_SQUARES}
"""Advantage estimators that cannot be called with what a batch has."""

LOSSES = {
    "vanilla": Told("PPO's clipped surrogate, with dual clip", note=LATER),
    "dppo_tv": Told("DPPO: tokens whose probability moved further than a threshold (TV) are left out", note=LATER),
    "dppo_kl": Told("DPPO: tokens whose probability moved further than a threshold (KL) are left out", note=LATER),
    "gspo": Told("GSPO: the ratio of whole responses, its geometric mean by length", note=LATER),
    "sapo": Told(
        "SAPO: a smooth gate in place of clipping; recommends loss_agg_mode=seq-mean-token-mean",
        repair="set loss_mode=vanilla or cispo: sapo takes seq-mean-token-mean whatever loss_agg_mode says",
        note=LATER,
    ),
    "gpg": Told("GPG: log-probabilities times advantages, no ratio"),
    "clip_cov": Told(
        "Clip-Cov: some random tokens of high covariance of advantage and log-probability are left out",
        repair="set loss_mode=vanilla",
        note="It draws from torch's global generator (torch.randperm) wherever a token qualifies.",
    ),
    "kl_cov": Told("KL-Cov: a KL penalty on tokens of high covariance of advantage and log-probability", note=LATER),
    "geo_mean": Told(
        "GMPO: the geometric mean of a response's ratios; says that loss_agg_mode is not used",
        repair=f"set loss_mode=gspo and loss_agg_mode={SUM}",
        note=LATER,
    ),
    "dro": Told(
        "DRO: the log-likelihood times advantages, and a quadratic penalty on log-ratios", beta=0.5, note=LATER
    ),
    "cispo": Told(
        "CISPO: log-probabilities weighted by clipped ratios, so that every token keeps its gradient", note=LATER
    ),
    "bypass_mode": Told(
        "PPO's or REINFORCE's loss, the sampler's log-probabilities in place of the old ones", note=LATER
    ),
}
"""By name of the policy loss, each with `rloo` advantages and loss_agg_mode `SUM`."""

AGGREGATIONS = {
    "token-mean": Told("all tokens of the batch count alike", repair=SET_SUM),
    "token-sum": Told("the sum over all tokens of the batch"),
    SUM: Told("the sum over a response's tokens, the mean over responses"),
    "seq-mean-token-mean": Told("the mean over a response's tokens, the mean over responses", repair=SET_SUM),
    "seq-mean-token-sum-norm": Told(
        "Dr. GRPO's: the sum over a response's tokens over a constant, the response length",
        repair="set loss_scale_factor to a constant, the largest response length",
        note=(
            "Trainer v1 hands over responses without padding; then the divisor is the longest response of each "
            "micro-batch (the legacy trainer's is the padded width, a constant)."
        ),
    ),
}
"""By loss_agg_mode, each with `rloo` advantages and the vanilla loss."""

WITHOUT_STD = {
    "grpo": Told("Dr. GRPO's advantages: rewards less the group's mean"),
    "grpo_vectorized": Told(
        "rewards less the group's mean, as with adv_estimator=grpo",
        repair="set adv_estimator=grpo: compute_advantage hands the option to that one only",
        note="The function has an argument of this name, which the trainer leaves at True.",
    ),
    "gdpo": Told(
        "GDPO without standard deviations of groups",
        repair=f"compute_advantage does not hand the option over; and {WHITENED[0].lower()}{WHITENED[1:]}",
        note=ADVANTAGES["gdpo"].note,
    ),
    "grpo_passk": Told("pass@k without the standard deviation", target="max of K"),
}
"""By name of the advantage estimator, with norm_adv_by_std_in_grpo=False."""
SCALED = Told("the sum over a response's tokens over a constant that is given (3, the largest response length)")

VISITED = (
    "Its KL part is exactly the gradient of the divergence at the visited prefixes, these held fixed; what a token "
    "does to the KL of later tokens is missing."
)
IN_REWARD = "set kl_penalty=kl, whose sum over a response is the log-ratio itself"
BY_REWARD = "set use_kl_loss=False, algorithm.use_kl_in_reward=True and algorithm.kl_penalty=kl"
PENALTIES = {
    "kl": "the log-ratio (k1)",
    "abs": "the absolute value of the log-ratio",
    "mse": "half the square of the log-ratio (k2)",
    "low_var_kl": "the low-variance estimate (k3)",
    "k1+": "the log-ratio, with the gradient of k2 put in its place",
    "k3+": "the low-variance estimate, with the gradient of k2 put in its place",
}
"""What kl_penalty estimates the KL of a token by; a plus is said to make its gradient unbiased."""
FULL = "the KL over the whole vocabulary"


def in_reward(names: tuple[str, ...]) -> Told:
    """A penalty in the reward."""
    if names[0] not in PENALTIES:
        return UNKNOWN
    note = "No gradient flows through rewards, so the plus changes nothing." if names[0].endswith("+") else ""
    repair = None if names[0] in ("kl", "k1+") else IN_REWARD
    return Told(f"a penalty in the reward: {PENALTIES[names[0]]}", repair=repair, note=note)


def in_loss(names: tuple[str, ...]) -> Told:
    """A penalty in the loss."""
    if names[0] not in PENALTIES:
        return UNKNOWN
    notes = {
        "kl": "Its gradient is Σ ∇log π, zero in expectation: no penalty is left at the first update.",
        "low_var_kl": "The default. Its gradient is that of the reverse divergence, at the visited prefixes.",
    }
    visited = names[0] == "mse" or names[0].endswith("+")
    note = VISITED if visited else notes.get(names[0], "")
    return Told(f"a penalty in the loss: {PENALTIES[names[0]]}", repair=BY_REWARD, note=note)


NOT_CALLED = (
    (
        "entropy_coeff",
        "an entropy bonus",
        "verl/workers/utils/losses.py, ppo_loss",
        "it reads the entropy of every next token, which a batch does not have",
    ),
    (
        "use_pf_ppo",
        "PF-PPO: responses are drawn again, in proportion to their rewards",
        "verl/trainer/ppo/core_algos.py, compute_pf_ppo_reweight_data",
        "it draws random numbers of its own (torch.multinomial), so it has no exact expectation",
    ),
    (
        "rollout_correction",
        "weights and rejection for samplers whose probabilities differ from the policy's",
        "verl/trainer/ppo/rollout_corr_helper.py",
        "it reads the sampler's own log-probabilities (rollout_log_probs); where they are the policy's, weights are 1 "
        "and nothing is rejected, see loss_mode=bypass_mode",
    ),
    (
        "filter_groups",
        "DAPO: groups whose rewards are all equal are drawn again",
        "verl/trainer/ppo/v1/replay_buffer.py",
        "it is the replay buffer's, before any advantage; llm-mdp's own row, dynamic sampling, is the same choice",
    ),
)
"""(option, claim, place, reason) of what is not one update on one batch of responses."""


def distillation(names: str) -> tuple[str, str, str, str]:
    """The same of distillation, with the names that its registry has."""
    return (
        "distillation_loss.loss_mode",
        f"a teacher's distribution is learned ({names})",
        "verl/trainer/distillation/losses.py",
        "it reads a teacher's log-probabilities and promises no gradient of a reward",
    )
