"""What OpenRLHF, SkyRL, AReaL, ms-swift and tinker-cookbook do with a batch where it is not what one expects, worked
out by hand from their documents and sources: advantages (B, T), or a loss."""

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch

BETA = 0.3


def groups(batch: Batch) -> Tensor:
    """Rewards, one row a prompt."""
    return batch.response_reward.view(-1, batch.group_size)


def centred(batch: Batch) -> Tensor:
    """r - mean of the group, one column."""
    reward = groups(batch)
    return (reward - reward.mean(-1, keepdim=True)).reshape(-1, 1)


def leave_one_out(batch: Batch) -> Tensor:
    """r - mean of the others, one column."""
    return centred(batch) * batch.group_size / (batch.group_size - 1)


def everywhere(column: Tensor, batch: Batch) -> Tensor:
    return column.expand(batch.mask.shape)


def to_come(x: Tensor) -> Tensor:
    """Σ of this and later tokens."""
    return x.flip(-1).cumsum(-1).flip(-1)


def log_ratio(batch: Batch) -> Tensor:
    return torch.where(batch.mask, batch.old_logp - batch.reference_logp, 0.0)


def mean_over_tokens(x: Tensor, batch: Batch) -> Tensor:
    return (x * batch.mask).sum() / batch.mask.sum()


def over_lengths(x: Tensor, batch: Batch) -> Tensor:
    """The mean over each response's tokens, averaged over responses."""
    return ((x * batch.mask).sum(-1) / batch.mask.sum(-1)).mean()


def whitened(x: Tensor, batch: Batch, *, padding: bool = False) -> Tensor:
    """(x - mean) / std over the batch's tokens; the mean over padding as well."""
    mean = x.mean() if padding else mean_over_tokens(x, batch)
    return (x - mean) * mean_over_tokens((x - mean) ** 2, batch).clamp(min=1e-8).rsqrt()


def dr_grpo_with_kl(batch: Batch) -> Tensor:
    """The group's mean comes off the reward alone, which leaves (K - 1)/K of it; the penalty stays whole."""
    return centred(batch) - BETA * to_come(log_ratio(batch))


def own_log_ratio_only(batch: Batch) -> Tensor:
    """Token t pays for its own log-ratio, not for those of later tokens, which it made more or less likely."""
    return leave_one_out(batch) - BETA * log_ratio(batch)


def token_mean(batch: Batch) -> Tensor:
    return -mean_over_tokens(leave_one_out(batch) * batch.logp, batch)


def mean_ratio(batch: Batch) -> Tensor:
    """GSPO at ratio 1: every response's tokens are divided by their number."""
    return -over_lengths(leave_one_out(batch) * batch.logp, batch)


def kl_keeps_the_mean_over_tokens(batch: Batch) -> Tensor:
    """The policy's part is a mean over each response, the KL's a mean over all tokens."""
    kl = (batch.logp - batch.reference_logp) ** 2 / 2
    return mean_ratio(batch) + BETA * mean_over_tokens(kl, batch)


def no_reference(batch: Batch) -> Tensor:
    """The penalty without a reference is on log π itself."""
    return batch.response_reward[:, None] - 0.1 * to_come(torch.where(batch.mask, batch.old_logp, 0.0))


def one_token_out(batch: Batch) -> Tensor:
    """r less the mean of the group's other tokens: the response's own other tokens are among them."""
    reward = torch.where(batch.mask, batch.response_reward[:, None], 0.0).view(
        -1, batch.group_size, batch.mask.shape[1]
    )
    tokens = batch.mask.view(reward.shape).sum((-2, -1), keepdim=True)
    others = (reward.sum((-2, -1), keepdim=True) - reward) / (tokens - 1).clamp(min=1)
    return (reward - others).view(batch.mask.shape)


def as_wide_as_the_batch(batch: Batch) -> Tensor:
    """Responses of the batch's width weigh nothing, ended or not; the others stay as they are."""
    return torch.where(batch.mask.all(-1, keepdim=True), 0.0, leave_one_out(batch))


def divided_by_the_mean(batch: Batch) -> Tensor:
    mean = groups(batch).mean(-1, keepdim=True)
    return ((groups(batch) - mean) / (mean + 1e-6)).reshape(-1, 1)


def whitened_with_padding(batch: Batch) -> Tensor:
    """Sums over tokens of whitened advantages, by the batch and its width."""
    weight = whitened(leave_one_out(batch) * batch.mask, batch, padding=True)
    return -(weight * batch.logp * batch.mask).sum() / batch.mask.numel()


def kl_over_lengths(batch: Batch) -> Tensor:
    """Sums over tokens in the policy's part, a mean over each response in the KL's, by k3."""
    less = batch.reference_logp - batch.logp
    policy = -(leave_one_out(batch) * batch.logp * batch.mask).sum() / batch.mask.numel()
    return policy + BETA * over_lengths(less.exp() - 1 - less, batch)


def a_fifth(batch: Batch) -> Tensor:
    """CISPO's cap, read as a bound on the ratio itself: 0.2 of every token's weight is left."""
    return -0.2 * mean_over_tokens(leave_one_out(batch) * batch.logp, batch)


def own_log_ratio_less_the_mean(batch: Batch) -> Tensor:
    """Rewards centred, which leaves (K - 1)/K of them; the penalty whole, on each token's own log-ratio, less the mean
    over the batch's tokens."""
    return centred(batch) + BETA * (mean_over_tokens(log_ratio(batch), batch) - log_ratio(batch))


def standardised(batch: Batch) -> Tensor:
    """GRPO's advantages, the standard deviation taken with K - 1."""
    reward = groups(batch)
    return ((reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True) + 1e-9)).reshape(-1, 1)


def whitened_returns(batch: Batch) -> Tensor:
    return whitened(everywhere(batch.response_reward[:, None], batch), batch)


_RLOO, _NO_KL, _BETA = "algo.advantage.estimator=rloo", "algo.kl.init_coef=0.0", "algo.kl.init_coef=0.3"
CORRECTED = f"algo.kl.unbiased_gradient=True,algo.kl.estimator=k3,algo.kl.use_loss=True,{_RLOO},{_BETA}"
_CONSTANT = "loss_reduction=seq_mean_token_sum_norm"
ADVANTAGES = {
    ("openrlhf", f"{_BETA},algo.advantage.estimator=dr_grpo"): dr_grpo_with_kl,
    ("openrlhf", f"{_BETA},algo.advantage.estimator=dr_grpo (β = 0.45)"): dr_grpo_with_kl,
    ("openrlhf", CORRECTED): own_log_ratio_only,
    ("openrlhf", f"{CORRECTED} (KL at visited states)"): own_log_ratio_only,
    ("openrlhf", f"algo.advantage.estimator=reinforce,actor.loss_agg_mode=token-mean,{_NO_KL}"): whitened_returns,
    ("openrlhf", f"algo.advantage.estimator=group_norm,actor.loss_agg_mode=token-mean,{_NO_KL}"): standardised,
    ("areal", "defaults"): no_reference,
    ("areal", "kl_ctl=0.1 (without a reference, against an entropy bonus)"): no_reference,
    ("areal", "adv_norm=group mean, leave one out"): one_token_out,
    ("areal", "mask_no_eos_with_zero=True"): as_wide_as_the_batch,
    ("areal", "kl_ctl=0.3,reward_norm=group mean"): dr_grpo_with_kl,
    ("skyrl", f"advantage_estimator=maxrl,{_CONSTANT}"): divided_by_the_mean,
    ("tinker", "kl_penalty_coef=0.3"): own_log_ratio_less_the_mean,
}
"""By library and setting."""
LOSSES = {
    ("openrlhf", f"{_RLOO},actor.loss_agg_mode=token-mean,{_NO_KL}"): token_mean,
    ("openrlhf", f"actor.policy_loss_type=gspo,{_RLOO},{_NO_KL}"): mean_ratio,
    (
        "openrlhf",
        f"actor.loss_agg_mode=seq-mean-token-mean,algo.kl.estimator=k2,algo.kl.use_loss=True,{_RLOO},{_BETA}",
    ): kl_keeps_the_mean_over_tokens,
    ("skyrl", f"advantage_batch_normalize=True,advantage_estimator=rloo,{_CONSTANT}"): whitened_with_padding,
    (
        "skyrl",
        f"use_kl_loss=True,kl_estimator_type=k3,advantage_estimator=rloo,{_CONSTANT},kl_loss_coef=0.3",
    ): kl_over_lengths,
    ("skyrl", "loss_reduction=token_mean_legacy,advantage_estimator=rloo"): mean_ratio,
    ("ms-swift", "loss_type=cispo,advantage_estimator=rloo,scale_rewards=none,beta=0.0"): a_fifth,
}
