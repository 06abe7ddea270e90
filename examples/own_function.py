"""Functions as a trainer has them, certified as they are: `python examples/own_function.py`, some seconds.

No class, nothing of ours inside. A function of `rewards` (P, K), K to each of P prompts, returns as many advantages.
One of a `batch` (`logp`, `old_logp`, `mask`, shape (B, T); `response_reward`, (B,); `group_size`; …) returns those or
the loss. The same from a terminal, and from pytest (docs/ci.md):

    llm-mdp audit examples/own_function.py:centred examples/own_function.py:my_loss
"""

from llm_mdp import certify


def centred(rewards):
    """The advantages of Dr. GRPO: each reward less its group's mean."""
    return rewards - rewards.mean(-1, keepdim=True)


def leave_one_out(rewards):
    """The repair: the mean of the others."""
    return centred(rewards) * rewards.shape[-1] / (rewards.shape[-1] - 1)


def my_loss(batch):
    """GRPO as many write it: group std, clipped ratio, mean over all tokens."""
    rewards = batch.response_reward.view(-1, batch.group_size)
    advantages = centred(rewards) / (rewards.std(-1, keepdim=True) + 1e-4)
    advantages = advantages.flatten()[:, None]
    ratio = (batch.logp - batch.old_logp).exp()
    surrogate = (ratio * advantages).minimum(ratio.clamp(0.8, 1.2) * advantages)
    return -surrogate[batch.mask].mean()


if __name__ == "__main__":
    for function in (centred, leave_one_out, my_loss):
        print(f"{function.__name__}: {certify(function, group_size=3)}")
