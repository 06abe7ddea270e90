# %% [markdown]
# # What a bias costs
#
# "So it is biased: does it matter?" A certificate says how far the expected gradient points away from the true one. A
# *price* says what that loses, in reward. At the end you know how a price is measured, how to ask for that of a rule
# of yours, and that a bias that looks large may be cheap. Five minutes of reading; ten seconds of a CPU.

# %%
import matplotlib.pyplot as plt
import numpy as np

from llm_mdp import certify, random_instance

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## One price
#
# Take a small token MDP with random rewards, and follow a rule that divides each response's loss by its length.

# %%
instance = random_instance(vocab_size=3, horizon=3, seed=1)
certificate = certify("length-normalised-loo", instance)
print(certificate)
price = certificate.price()
print(price)

# %% [markdown]
# Both walkers begin at the policy of the instance and may move equally far: so many nats of KL divergence from where
# they began, as with a KL penalty. With that, the true gradient buys `J_best`, and the rule buys `J_row`. The price is
# the share of the gain that is lost: 0 is harmless, 1 means that nothing was gained, above 1 the policy got worse.
#
# Because both move equally far, a factor in front of the gradient costs nothing, as it should (what is below 0.0004 is
# not told from 0):

# %%
print(certify("rloo-eq36", instance))
print(certify("rloo-eq36", instance).price())

# %% [markdown]
# ## Of a rule of your own
#
# Rewards are often clipped. Is that dear?


# %%
def clipped(rewards):
    rewards = rewards.clamp(-1, 1)
    others = (rewards.sum(-1, keepdim=True) - rewards) / (rewards.shape[-1] - 1)
    return rewards - others


certificate = certify(clipped, instance, group_size=3)
print(certificate)
print(certificate.price())

# %% [markdown]
# It loses some 4 % of the gain.
#
# ## Many prices
#
# One table is one table. So take twelve, drawn at random with the seeds 1 to 12, and several rules. Each price is
# exact; their mean over tables is not known but for twelve of them, so it gets a 95 % interval (bootstrap over the
# tables).

# %%
rules = {
    "rloo": "leave-one-out, the reference",
    "token-mean-loo": "divided by the tokens of the group",
    "grpo": "divided by the group's std",
    "length-normalised-loo": "divided by each response's length",
    "grpo-length": "the last two together",
    "masked-truncated": "responses at the cap are masked",
}
tables = [random_instance(vocab_size=3, horizon=3, seed=seed) for seed in range(1, 13)]
generator = np.random.default_rng(0)
found = {}
for name in rules:
    certificates = [certify(name, table) for table in tables]
    prices = [certificate.price().value for certificate in certificates]
    known = np.array([price for price in prices if price is not None])
    means = generator.choice(known, size=(4000, len(known))).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    sine = np.mean([certificate.sine for certificate in certificates])
    found[name] = (sine, known.mean(), low, high)
    print(f"{name:22} sine {sine:.3f}  price {known.mean():.3f} [{low:.3f}, {high:.3f}] on {len(known)} of 12 tables")

# %%
figure, axes = plt.subplots(figsize=(8, 3.6))
for place, (sine, price, low, high) in enumerate(found.values()):
    colour = "#3a5fcd" if sine < 1e-6 else "#c2410c"
    axes.hlines(place, low, high, color=colour, linewidth=4, alpha=0.4)
    axes.plot(price, place, "o", color=colour)
    axes.annotate(f"sine {sine:.2f}", (high, place), (8, 0), textcoords="offset points", va="center", color=colour)
axes.set_yticks(range(len(found)), [f"{name}\n{rules[name]}" for name in found], fontsize=8)
axes.set(xlabel="price: share of the gain that is lost", xlim=(-0.01, 0.42), ylim=(len(found) - 0.4, -0.6))
axes.set_title("What biases cost (K = 3; mean and 95 % of 11 random tables)")
plt.show()

# %% [markdown]
# One of the twelve has no price: its policy begins so near the best that there is too little to lose.
#
# Dividing by the tokens of the group is a bias by its certificate and costs next to nothing. Masking the responses
# that were cut off loses a large part of what there was to gain: to be masked, a response has only to be long, so the
# policy never hears of long ones.
#
# A price is about where following the rule comes to rest. It does not say how noisy the way is.
#
# ## Next
#
# - From a terminal, with every row that you name: `llm-mdp verify grpo my_file.py:Mine --quick --price`.
# - [The price of every row of the ledger](../price.md), and where following is worst: [adversarial](../adversarial.md).
# - [How much noise](noise_at_equal_tokens.md) an unbiased one has.
