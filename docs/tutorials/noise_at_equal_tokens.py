# %% [markdown]
# # Compare noise at equal tokens
#
# Two estimators are unbiased. Which is better? The one with less noise *for the tokens that it takes*. At the end you
# can read the two figures that decide, draw what a budget of tokens buys, and see whether training agrees. Ten minutes
# of reading; ten seconds of a CPU.

# %%
import matplotlib.pyplot as plt
import numpy as np

from llm_mdp import GRPO, REINFORCE, RLOO, EveryNTokens, ReMax, VinePPO, certify
from llm_mdp_agents import train

plt.style.use("llm_mdp.report.figures")

# %% [markdown]
# ## Two figures
#
# An exact certificate also has the noise of one estimate (the trace of its covariance) and what it costs in generated
# tokens. An estimate of RLOO is a group; VinePPO draws one response and then branches from it, which costs tokens,
# too.

# %%
estimators = {
    "reinforce": REINFORCE(),
    "rloo K=2": RLOO(group_size=2),
    "rloo K=4": RLOO(group_size=4),
    "grpo K=4": GRPO(group_size=4),
    "remax": ReMax(),
    "vineppo": VinePPO(boundary=EveryNTokens(2), temperatures=(1.0, 1.0)),
}
found = {name: certify(estimator) for name, estimator in estimators.items()}
print("                     tokens     noise   tokens to signal   cosine")
for name, each in found.items():
    print(
        f"{name:10} {each.verdict:9} {each.tokens:6.2f}  {each.trace_covariance:8.2f}  {each.tokens_to_signal:17.1f}",
        end="",
    )
    print(f"  {each.cosine:7.4f}")

# %% [markdown]
# *Noise* alone misleads: who draws more has less of it. **Tokens to signal** do not: q = noise x tokens / |E g|² are
# the tokens of a batch at which the noise is as long as the signal. Half the q is half the tokens for the same
# quality. The **cosine** is the ceiling of a biased one, which no number of tokens lifts.
#
# With B tokens a batch, the best step along the estimate gains
#
#     progress = cosine² / (1 + q / B)
#
# of what the best step along the true gradient would gain. Two figures say all:


# %%
def progress(certificate, budget):
    return certificate.cosine**2 / (1 + certificate.tokens_to_signal / budget)


budgets = np.geomspace(4, 4000, 100)
heights = dict(zip(("grpo K=4", "rloo K=4", "rloo K=2", "remax", "vineppo", "reinforce"), np.arange(0.2, 0.8, 0.1)))
figure, axes = plt.subplots(figsize=(8, 4))
for name, each in found.items():
    (line,) = axes.plot(budgets, progress(each, budgets), linestyle="-" if each.verdict == "unbiased" else "--")
    at = each.tokens_to_signal * heights[name] / (each.cosine**2 - heights[name])
    ground = {"facecolor": figure.get_facecolor(), "edgecolor": "none", "pad": 1}
    axes.text(at, heights[name], name, color=line.get_color(), ha="center", va="center", bbox=ground)
axes.set_xscale("log")
axes.set(xlabel="B, tokens of a batch", ylabel="share of the exact gradient's progress", ylim=(0, 1))
axes.set_title("What a budget buys (exact; V = 3, T = 4, γ = 0.9; dashed: biased)")
plt.show()

# %% [markdown]
# With few tokens GRPO, though biased, is ahead: it has the least noise. With many its ceiling shows, and RLOO passes
# it. Where the lines cross:

# %%
rloo, grpo = found["rloo K=4"], found["grpo K=4"]
crossing = budgets[np.argmax(progress(rloo, budgets) > progress(grpo, budgets))]
print(f"RLOO of four is ahead of GRPO of four from about {crossing:.0f} tokens a batch on")

# %% [markdown]
# ## Does training agree?
#
# The same rewards as above, now with a policy that begins uniform and learns. Every estimator gets as many prompts a
# step as make 200 tokens at the policy above; responses are longer here, so it is more of them, and the axis below
# counts those that were drawn. The same optimizer for all, and six seeds.

# %%
chosen = ("rloo K=4", "reinforce", "vineppo")
arguments = {"vocab_size": 3, "horizon": 4, "gamma": 0.9}
curves = {}
for name in chosen:
    runs = []
    for seed in range(6):
        prompts = max(1, round(200 / found[name].tokens))
        options = {"steps": 30, "prompts_per_step": prompts, "eval_every": 3, "signal_every": 0, "progress": False}
        run = train(estimators[name], "llm_mdp/Tabular-v0", env_arguments=arguments, seed=seed, **options)
        tokens = np.cumsum([each.get("tokens", 0) for each in run.metrics])
        points = [
            (tokens[each["step"]], each["eval/exact_reward"]) for each in run.metrics if "eval/exact_reward" in each
        ]
        runs.append(points)
    curves[name] = np.array(runs)
    ends = curves[name][:, -1, 1]
    spent = curves[name][:, -1, 0].mean()
    print(f"{name:10} {spent:6.0f} tokens: reward {ends.mean():.2f}, the six from {ends.min():.2f} to {ends.max():.2f}")

# %%
figure, axes = plt.subplots(figsize=(8, 3.8))
for name, runs in curves.items():
    tokens, rewards = runs[:, :, 0].mean(0), runs[:, :, 1]
    (line,) = axes.plot(tokens, rewards.mean(0))
    axes.fill_between(tokens, rewards.min(0), rewards.max(0), color=line.get_color(), alpha=0.15, linewidth=0)
    under = {"reinforce": "top"}.get(name, "center")  # not on VinePPO's curve, which goes on
    axes.annotate(f" {name}", (tokens[-1], rewards.mean(0)[-1]), color=line.get_color(), va=under)
axes.set(xlabel="generated tokens", ylabel="expected reward, exact")
axes.margins(x=0.12)
axes.set_title("Learning at equal tokens (mean of six seeds; the band holds all six)")
plt.show()

# %% [markdown]
# RLOO is ahead, as was forecast. VinePPO, which the figures put before REINFORCE, is not: they are figures of another
# policy than the one that learns, and of the best step along an estimate, where this optimizer's steps have a length of
# their own. A forecast is no promise.
#
# ## Next
#
# - For your policy, task and budget, with intervals where enumeration is too much: `llm-mdp variance rloo grpo trepo
#   --budget 2000`, and `--env llm_mdp/Arithmetic-v0` or `--run runs/NAME` on a task. See [variance](../variance.md).
# - How a budget is split between responses and branches: `allocate` on the same page.
# - Noise is half of it: [what a bias costs](what_a_bias_costs.md).
