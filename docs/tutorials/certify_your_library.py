# %% [markdown]
# # Certify the library that you train with
#
# Nobody trains with a formula; people train with a library, whose options have names. At the end you know what TRL's
# `GRPOTrainer` follows with each of its loss types, which options make it follow the gradient of the reward, and how
# to ask the same of the loss in your own repository. Ten minutes of reading; about half a minute of a CPU.
#
# It needs TRL: `pip install "trl>=1.16,<1.17"`. What comes out is about the version that is installed here.

# %%
import logging
import warnings

import matplotlib.pyplot as plt

from llm_mdp import certify, random_instance
from llm_mdp.audit.run import audit

plt.style.use("llm_mdp.report.figures")
warnings.simplefilter("ignore")  # what TRL says while it is imported
logging.disable(logging.WARNING)

# %% [markdown]
# ## The trainer as it comes
#
# `audit` calls TRL's own functions, those that the trainer calls: its advantages and its loss, one after the other, on
# *every* group of three responses of a token MDP. Nothing of TRL's was typed again. Here the MDP is very small (three
# tokens, at most two of them a response), so that it takes seconds; `llm-mdp audit trl` takes three larger ones.

# %%
small = {"small": random_instance(vocab_size=3, horizon=2, seed=1)}
(row,) = audit("trl", ["GRPOTrainer"], instances=small, prompts=(1,))
print(row.setting.name, "is called:", row.setting.claim)
print("and is:", row.finding)
print("repair:", row.setting.repair)

# %% [markdown]
# *Biased* says that its expected gradient points elsewhere than the gradient of the expected reward, ∇J, and *cosine*
# is that of the angle between them. It is a fact about the option, not a fault: most losses never claimed to be
# unbiased. The figures are exact, for the first update on fresh responses.
#
# ## Is the repair one?
#
# It is in the library's own options, so ask for them. An option is written as TRL writes it.

# %%
(row,) = audit("trl", ["loss_type=dr_grpo,scale_rewards=none"], instances=small, prompts=(1,))
print(row.finding)

# %% [markdown]
# The direction is right, and a learning rate undoes the factor.
#
# ## All loss types
#
# Each loss type with TRL's default, rewards over the standard deviation of their group, and without that division.

# %%
names = ("grpo", "bnpo", "dapo", "dr_grpo", "cispo", "sapo", "luspo", "vespo")
found = {}
for name in names:
    options = ["GRPOTrainer" if name == "dapo" else f"loss_type={name}", f"loss_type={name},scale_rewards=none"]
    for option in options:
        rows = audit("trl", [option], instances=small, prompts=(1,))
        found[name, option.endswith("none")] = rows[0].problems["small"]
for name in names:
    print(f"{name:8} std: {found[name, False].verdict:13} none: {found[name, True].verdict}")

# %%
figure, axes = plt.subplots(figsize=(8, 3.8))
for place, name in enumerate(reversed(names)):
    std, none = (found[name, which].sine for which in (False, True))
    axes.plot([none, std], [place, place], color="#c9c6bd", zorder=1)
    axes.scatter(std, place, color="#c2410c", zorder=2)
    axes.scatter(none, place, color="#3a5fcd", zorder=2)
axes.set_yticks(range(len(names)), [f"loss_type={name}" for name in reversed(names)])
axes.annotate("rewards over their std (default)", (std, place), (8, -4), textcoords="offset points", color="#c2410c")
axes.annotate("scale_rewards=none", (none, place), (0, 8), textcoords="offset points", color="#3a5fcd", ha="center")
axes.set(xlabel="sine of the angle between its expected gradient and ∇J", xlim=(-0.02, None), ylim=(-0.6, 8))
axes.set_title("What TRL's loss types follow (exact, K = 3, one small token MDP)")
plt.show()

# %% [markdown]
# Two loss types with `scale_rewards=none` have the right direction. Two things turn the others: the standard deviation
# weighs groups by how their rewards scatter, and a division by tokens weighs responses by their length.
#
# ## Your own loss
#
# The function in your repository is asked in the same way. Give it a parameter `batch` and let it return the loss:


# %%
def my_loss(batch):
    """GRPO as many write it: group std, clipped ratio, mean over all tokens."""
    rewards = batch.response_reward.view(-1, batch.group_size)
    advantages = (rewards - rewards.mean(-1, keepdim=True)) / (rewards.std(-1, keepdim=True) + 1e-4)
    advantages = advantages.flatten()[:, None]
    ratio = (batch.logp - batch.old_logp).exp()
    surrogate = (ratio * advantages).minimum(ratio.clamp(0.8, 1.2) * advantages)
    return -surrogate[batch.mask].mean()


mine = certify(my_loss, small["small"], group_size=3)
print("mine:          ", mine)
print("loss_type=bnpo:", found["bnpo", False])

# %% [markdown]
# The same figures: your loss is TRL's `bnpo`. With `sum(-1).mean()` in place of the mean over tokens, and without the
# std, it has the right direction:


# %%
def my_repaired_loss(batch):
    rewards = batch.response_reward.view(-1, batch.group_size)
    advantages = (rewards - rewards.mean(-1, keepdim=True)).flatten()[:, None]
    ratio = (batch.logp - batch.old_logp).exp()
    surrogate = (ratio * advantages).minimum(ratio.clamp(0.8, 1.2) * advantages)
    return -(surrogate * batch.mask).sum(-1).mean()


print(certify(my_repaired_loss, small["small"], group_size=3))

# %% [markdown]
# ## Next
#
# - From a terminal: `llm-mdp audit` lists the libraries. `llm-mdp audit trl loss_type=dr_grpo,scale_rewards=none
#   --prompts 1 2 4` says whether an error dies with the batch: ten seconds of a CPU for one option.
#   (`scale_rewards=none` alone takes all 24 options that have it, of 40, and minutes.) `--html FILE` writes a page,
#   `llm-mdp audit my_file.py:my_loss` asks of yours.
# - What came out for eight libraries, 227 options: [the audit](../audit.md).
# - Whether it matters: [what a bias costs](what_a_bias_costs.md).
