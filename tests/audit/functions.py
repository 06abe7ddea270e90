"""Estimators of the catalogue written again as plain functions, in the ways in which people write them."""

import numpy as np
import torch

from llm_mdp import Batch


def by_prompt(batch: Batch) -> torch.Tensor:
    return batch.response_reward.view(-1, batch.group_size)


def rloo(batch: Batch):
    reward = by_prompt(batch)
    size = batch.group_size
    return (reward - (reward.sum(-1, keepdim=True) - reward) / (size - 1)).flatten()


def rloo_with_items(batch):
    """One number at a time, in a dictionary keyed by uid."""
    rewards: dict[str, list[float]] = {}
    for uid, reward in zip(batch.uid, batch.response_reward):
        rewards.setdefault(uid, []).append(reward.item())
    advantage = [
        reward.item() - (sum(rewards[uid]) - reward.item()) / (len(rewards[uid]) - 1)
        for uid, reward in zip(batch.uid, batch.response_reward)
    ]
    return torch.tensor(advantage)


def rloo_in_numpy(batch):
    reward = batch.response_reward.numpy().reshape(-1, batch.group_size)
    return (reward - (reward.sum(-1, keepdims=True) - reward) / (batch.group_size - 1)).reshape(-1)


def rloo_in_place(batch):
    reward = batch.response_reward
    grouped = reward.view(-1, batch.group_size)
    size = batch.group_size
    grouped -= grouped.mean(-1, keepdim=True)
    reward *= size / (size - 1)
    batch.mask.fill_(False)
    batch.token_reward.zero_()
    return reward


def rloo_in_float32(batch):
    reward = by_prompt(batch).float()
    out = torch.zeros(reward.shape, dtype=torch.float32)
    out += reward.to(torch.float32) - reward.mean(-1, keepdim=True, dtype=torch.float32)
    return (out * batch.group_size / (batch.group_size - 1)).flatten()[:, None] * batch.mask.float()


RLOO_VARIANTS = (rloo, rloo_with_items, rloo_in_numpy, rloo_in_place, rloo_in_float32)


def grpo(batch):
    reward = by_prompt(batch)
    return (reward - reward.mean(-1, keepdim=True)) / (reward.std(-1, keepdim=True) + 1e-4)


def grpo_with_items(batch):
    out = torch.zeros(len(batch.response_reward))
    for number in batch.group.unique().tolist():
        own = batch.group == number
        values = np.array([float(each) for each in batch.response_reward[own]])
        out[own] = torch.tensor((values - values.mean()) / (values.std(ddof=1) + 1e-4))
    return out


def token_mean(batch):
    mask = batch.mask
    return -(rloo(batch)[:, None] * batch.logp)[mask].sum() / mask.sum()


def token_mean_with_items(batch):
    advantage = rloo(batch).tolist()
    tokens = int(batch.mask.sum().item())
    loss = torch.zeros(())
    for row, weight in enumerate(advantage):
        for step in range(batch.logp.shape[1]):
            if batch.mask[row, step]:
                loss = loss - weight * batch.logp[row, step] / tokens
    return loss


def token_mean_in_place(batch):
    logp = batch.logp
    logp *= rloo(batch)[:, None]
    logp[~batch.mask] = 0.0
    return -logp.float().sum() / batch.mask.float().sum()


def rewards_in_place(batch):
    """The token-mean once more; the rewards are centred where they stand, and used in the loss."""
    reward = batch.response_reward
    size = batch.group_size
    reward.view(-1, size).sub_(reward.view(-1, size).mean(-1, keepdim=True))
    reward.mul_(size / (size - 1))
    return -((batch.logp * reward[:, None]) * batch.mask).sum() / batch.mask.sum()


def surrogate(batch):
    """The clipped surrogate of GRPO with the ratio written out, one mean a response."""
    ratio = (batch.logp - batch.old_logp).exp()
    advantage = grpo(batch).flatten()[:, None]
    loss = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage) * batch.mask
    return (loss.sum(-1) / batch.mask.sum(-1)).mean()


def remax(batch):
    return batch.response_reward - batch.greedy_reward


def k1_in_reward(batch, beta: float = 0.7):
    """REINFORCE with the log-ratio to the reference taken off the reward."""
    ratio = ((batch.old_logp - batch.reference_logp) * batch.mask).sum(-1)
    return batch.response_reward - beta * ratio


def gae(batch, lam: float = 0.6):
    value, advantage = batch.value, torch.zeros_like(batch.token_reward)
    ahead = torch.zeros(len(value))
    for step in reversed(range(advantage.shape[1])):
        delta = batch.token_reward[:, step] + value[:, step + 1] - value[:, step]
        ahead = torch.where(batch.mask[:, step], delta + lam * ahead, 0.0)
        advantage[:, step] = ahead
    return advantage
