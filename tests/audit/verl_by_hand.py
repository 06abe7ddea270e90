"""What verl's options give, derived by hand: the weight of every token, -∂loss/∂log π, without a line of verl.

Rows are B responses, K adjacent ones to a prompt; β = 0.3.
"""

import torch

BETA = 0.3
SUM = "seq-mean-token-sum"


def grouped(batch, values=None):
    return (batch.response_reward if values is None else values).view(-1, batch.group_size)


def centred(batch):
    reward = grouped(batch)
    return (reward - reward.mean(-1, keepdim=True)).flatten()


def over_deviation(batch, values):
    """Over the group's standard deviation, with K - 1 in its denominator and verl's ε."""
    return values / (grouped(batch).std(-1).repeat_interleave(batch.group_size) + 1e-6)


def others(batch, values=None):
    """Less the mean of the group's others."""
    reward = grouped(batch, values)
    return (reward - (reward.sum(-1, keepdim=True) - reward) / (batch.group_size - 1)).flatten()


def lengths(batch):
    return batch.mask.sum(-1)


def log_ratio(batch):
    return torch.where(batch.mask, batch.old_logp - batch.reference_logp, 0.0)


def whitened(batch, values):
    """Over all tokens of the batch."""
    values = values.expand(batch.mask.shape)
    tokens = values[batch.mask]
    return (values - tokens.mean()) / (tokens.var() + 1e-8).sqrt()


def mean(batch, values):
    """The mean over responses."""
    return values / len(batch.mask)


def best_of_group(batch, scaled):
    """The best response alone, by what it is better than the second."""
    reward = grouped(batch)
    ordered = reward.sort(-1, descending=True).values
    best = torch.nn.functional.one_hot(reward.argmax(-1), batch.group_size)
    weight = (best * (ordered[:, :1] - ordered[:, 1:2])).flatten()
    return over_deviation(batch, weight) if scaled else weight


def of_critic(batch, lam):
    """GAE with γ = 1: Σₛ λ^(s-t) δₛ, δ the reward and the change of the value."""
    value = batch.value[:, :-1] * batch.mask
    following = torch.cat([value[:, 1:], torch.zeros(len(value), 1)], 1)
    delta = batch.token_reward + following - value
    width = delta.shape[1]
    discount = torch.tensor([[lam ** (s - t) if s >= t else 0.0 for s in range(width)] for t in range(width)])
    return (delta * batch.mask) @ discount.T.to(delta)


def discounted(batch, gamma):
    """γ^(len - 1 - t) R."""
    ahead = lengths(batch)[:, None] - 1 - torch.arange(batch.mask.shape[1])
    return batch.response_reward[:, None] * gamma ** ahead.clamp(min=0)


def in_reward(estimate):
    """RLOO on R - β Σₜ estimate(ρₜ), ρ the log-ratio."""
    return lambda b: mean(b, others(b, b.response_reward - BETA * (estimate(log_ratio(b)) * b.mask).sum(-1)))


def in_loss(derivative):
    """RLOO on R, and -β times the estimate's derivative by the token's own log π."""
    return lambda b: mean(b, others(b)[:, None] - BETA * derivative(log_ratio(b)))


def k3(ratio):
    return (-ratio).exp() + ratio - 1


BY_HAND = {
    "adv_estimator=gae": lambda b: mean(b, whitened(b, of_critic(b, 1.0))),
    "adv_estimator=gae,lam=0.95": lambda b: mean(b, whitened(b, of_critic(b, 0.95))),
    "adv_estimator=gae,loss_agg_mode=token-mean": lambda b: whitened(b, of_critic(b, 1.0)) / lengths(b).sum(),
    "adv_estimator=grpo": lambda b: mean(b, over_deviation(b, centred(b))),
    "adv_estimator=grpo,loss_agg_mode=token-mean": lambda b: over_deviation(b, centred(b)) / lengths(b).sum(),
    "adv_estimator=grpo,norm_adv_by_std_in_grpo=False": lambda b: mean(b, centred(b)),
    "adv_estimator=grpo_vectorized": lambda b: mean(b, over_deviation(b, centred(b))),
    "adv_estimator=grpo_vectorized,norm_adv_by_std_in_grpo=False": lambda b: mean(b, over_deviation(b, centred(b))),
    "adv_estimator=gdpo": lambda b: mean(b, whitened(b, over_deviation(b, centred(b))[:, None])),
    "adv_estimator=gdpo,norm_adv_by_std_in_grpo=False": lambda b: mean(
        b, whitened(b, over_deviation(b, centred(b))[:, None])
    ),
    "adv_estimator=grpo_passk": lambda b: mean(b, best_of_group(b, scaled=True)),
    "adv_estimator=grpo_passk,norm_adv_by_std_in_grpo=False": lambda b: mean(b, best_of_group(b, scaled=False)),
    "adv_estimator=reinforce_plus_plus_baseline": lambda b: mean(b, whitened(b, centred(b)[:, None])),
    "adv_estimator=reinforce_plus_plus": lambda b: mean(b, whitened(b, discounted(b, 1.0))),
    "adv_estimator=reinforce_plus_plus,gamma=0.9": lambda b: mean(b, whitened(b, discounted(b, 0.9))),
    "adv_estimator=rloo": lambda b: mean(b, others(b)),
    "adv_estimator=remax": lambda b: mean(b, b.response_reward - b.greedy_reward),
    "adv_estimator=opo": lambda b: mean(
        b,
        (
            grouped(b)
            - (grouped(b) * grouped(b, lengths(b))).sum(-1, keepdim=True) / grouped(b, lengths(b)).sum(-1, keepdim=True)
        ).flatten(),
    ),
    "adv_estimator=gpg": lambda b: centred(b) / b.response_reward.count_nonzero().clamp(min=1),
    "loss_mode=sapo": lambda b: mean(b, others(b) / lengths(b)),
    "loss_mode=geo_mean": lambda b: mean(b, others(b) / lengths(b)),
    "adv_estimator=rloo,loss_mode=gspo,loss_agg_mode=seq-mean-token-mean": lambda b: mean(b, others(b) / lengths(b)),
    "loss_agg_mode=token-mean": lambda b: others(b) / lengths(b).sum(),
    "loss_agg_mode=token-sum": others,
    "loss_agg_mode=seq-mean-token-mean": lambda b: mean(b, others(b) / lengths(b)),
    f"loss_agg_mode={SUM}-norm": lambda b: mean(b, others(b)) / lengths(b).max(),
    f"loss_agg_mode={SUM}-norm,loss_scale_factor=3": lambda b: mean(b, others(b)) / 3,
    f"adv_estimator=grpo,norm_adv_by_std_in_grpo=False,loss_agg_mode={SUM}-norm": lambda b: (
        mean(b, centred(b)) / lengths(b).max()
    ),
    "kl_penalty=kl (k1)": in_reward(lambda ratio: ratio),
    "kl_penalty=abs": in_reward(torch.abs),
    "kl_penalty=mse (k2)": in_reward(lambda ratio: ratio**2 / 2),
    "kl_penalty=low_var_kl (k3)": in_reward(k3),
    "kl_penalty=k1+": in_reward(lambda ratio: ratio),
    "kl_penalty=k3+": in_reward(k3),
    "kl_loss_type=kl (k1)": in_loss(torch.ones_like),
    "kl_loss_type=abs": in_loss(torch.sign),
    "kl_loss_type=mse (k2)": in_loss(lambda ratio: ratio),
    "kl_loss_type=low_var_kl (k3)": in_loss(lambda ratio: 1 - (-ratio).exp()),
    "kl_loss_type=k1+": in_loss(lambda ratio: ratio),
    "kl_loss_type=k3+": in_loss(lambda ratio: ratio),
}
"""By a row's name: batch -> weights (B, T) or (B,)."""


def weights_by_hand(name, batch):
    """(B, T), 0 where mask is False."""
    found = BY_HAND[name](batch)
    return (found[:, None] if found.dim() == 1 else found) * batch.mask


def loss_by_hand(name):
    """A loss whose derivatives these weights are."""

    def loss(batch):
        return -(weights_by_hand(name, batch) * batch.logp).sum()

    return loss


PENALISED = f"reward - {BETA} kl"
TARGETS = {
    name: "max of K" if "passk" in name else PENALISED if name.startswith("kl_") else "reward" for name in BY_HAND
}
