# %% [markdown]
# # Certify your estimator
#
# You have a rule that turns rewards into advantages. Does the gradient that comes of it point where the expected
# reward rises? At the end you can ask that of any function of yours, read the answer, find out why it is what it is,
# repair it, and keep it right in your tests. Ten minutes of reading; the code takes some seconds of a CPU.

# %%
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch

from llm_mdp import Estimator, certify, diagnose, groups, random_instance
from llm_mdp.testing import assert_unbiased

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## A function of rewards
#
# Trainers that draw K responses to a prompt hold their rewards in a table of P prompts and K responses. What they do
# with it is often one line. Here is the line of GRPO: subtract the mean of the group, divide by its standard
# deviation.


# %%
def grpo(rewards):
    return (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)


certificate = certify(grpo, group_size=3)
print(certificate)

# %% [markdown]
# `certify` took a small *token MDP*: three tokens, responses of at most four, a random reward for each. There it
# listed all 31 responses and all groups of three of them, called your function on each group, and added up the
# gradients with their probabilities. So nothing is sampled, and there is no interval: this is the expected gradient, E
# g, to nine digits. The true gradient of the expected reward, ∇J, was computed in another way. Then the two were
# compared:
#
# - **scale**: how much of ∇J is in E g. A learning rate undoes it.
# - **cosine**: that of the angle between the two. No learning rate undoes it.
# - **relative bias**: the distance of their ends, over the length of ∇J.
#
# So GRPO's direction is off here, by some 25 degrees. A picture says the same:

# %%
certificate.plot()
plt.show()

# %% [markdown]
# ## What is to blame?
#
# Try the parts one at a time. Without the division:


# %%
def centred(rewards):
    return rewards - rewards.mean(-1, keepdim=True)


def leave_one_out(rewards):
    others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
    return rewards - others


for function in (grpo, centred, leave_one_out):
    print(f"{function.__name__:14} {certify(function, group_size=3)}")

# %% [markdown]
# The standard deviation turned the gradient. Subtracting the mean leaves two thirds of it, for each response is a
# third of its own baseline: *proportional*, and harmless once you know. The mean of the *other* responses is
# *unbiased*.
#
# "Biased" is shown by one example. "Unbiased" and "proportional" are claims about all of them, so ask again on others:
# rewards that are right or wrong, on two prompts of different difficulty.

# %%
for function in (grpo, centred, leave_one_out):
    print(f"{function.__name__:14} {certify(function, group_size=3, reward='right-or-wrong')}")

# %% [markdown]
# There GRPO is proportional: of three rewards that are 0 or 1 all mixed groups have the same standard deviation. This
# one example would have misled; the verdict on GRPO is that of the worst.
#
# ## Does it go away with larger groups?
#
# An error that comes from small groups should die with K; one that is in the rule stays. Here are two, on a very small
# token MDP with one prompt and rewards of right or wrong. The sine of the angle is the part of E g that no learning
# rate undoes.


# %%
def own_length(batch):
    """Each response's loss is divided by its own length, as `loss_type="grpo"` does it."""
    reward = batch.response_reward.view(-1, batch.group_size)
    advantage = leave_one_out(reward).flatten()[:, None]
    return advantage / batch.mask.sum(-1, keepdim=True) * batch.mask


def all_tokens(batch):
    """The loss is divided by the tokens of the batch, as `loss_type="bnpo"` does it."""
    reward = batch.response_reward.view(-1, batch.group_size)
    advantage = leave_one_out(reward).flatten()[:, None]
    return advantage / batch.mask.sum() * batch.mask


instance = random_instance(vocab_size=2, horizon=3, success=0.4, seed=7)
sizes = (2, 3, 4, 8, 16)
sines = {
    function.__name__: [certify(function, instance, group_size=size).sine for size in sizes]
    for function in (own_length, all_tokens)
}
for name, values in sines.items():
    print(f"{name:11}", " ".join(f"K={size}: {value:.3f} " for size, value in zip(sizes, values)))

# %%
figure, axes = plt.subplots()
for name, values in sines.items():
    (line,) = axes.plot(sizes, values, "o-")
    axes.annotate(
        name, (sizes[-1], values[-1]), (8, 0), textcoords="offset points", color=line.get_color(), va="center"
    )
axes.set_xscale("log", base=2)
axes.set_xticks(sizes, [str(size) for size in sizes])
axes.set(xlabel="K, responses to a prompt", ylabel="sine of the angle to ∇J", xlim=(1.8, 26), ylim=(0, None))
axes.set_title("One error dies with the group, one stays (exact, one token MDP)")
plt.show()

# %% [markdown]
# A function of a `batch`, as the last two are, sees what a trainer has at hand: log-probabilities, masks, rewards,
# lengths. It may also return the loss itself.
#
# ## Why is it biased?
#
# An estimator that draws for itself is a class. This one subtracts the best reward of the group. `diagnose` looks for
# the reason by showing it made-up rewards and responses, and reads neither names nor source.


# %%
@dataclass(frozen=True)
class BestOfGroup(Estimator):
    group_size: int = 3

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)  # (..., prompts, responses)
        return (reward - reward.amax(-1, keepdim=True)).flatten(-2)[..., None]  # one weight a token


print(certify(BestOfGroup()))
print(diagnose(BestOfGroup()))

# %% [markdown]
# The best reward is often the response's own, so the baseline knows the very tokens that it should be blind to. The
# repair is in the finding: the best of the others.


# %%
@dataclass(frozen=True)
class BestOfOthers(BestOfGroup):
    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)
        itself = torch.eye(self.group_size, dtype=torch.bool)
        others = reward[..., None, :].masked_fill(itself, -torch.inf)
        return (reward - others.amax(-1)).flatten(-2)[..., None]


print(certify(BestOfOthers()))

# %% [markdown]
# ## Keep it right
#
# The same question as a unit test, on three token MDPs. Its message is the diagnosis.

# %%
assert_unbiased(leave_one_out, group_size=3)
assert_unbiased(centred, group_size=3, up_to_scale=True)  # where a learning rate may undo the scale
try:
    assert_unbiased(centred, group_size=3)
except AssertionError as error:
    print(error)

# %% [markdown]
# ## Next
#
# - Your own function: put it into a file and say `llm-mdp audit my_file.py:my_loss`.
# - [What a bias costs](what_a_bias_costs.md) in reward, and [how much noise](noise_at_equal_tokens.md) an unbiased one
#   has.
# - [Certify the library](certify_your_library.md) that you train with.
# - All symbols, and how it is computed: [certificates](../certificates.md). In your CI: [ci](../ci.md).
