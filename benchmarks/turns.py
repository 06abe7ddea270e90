"""How the noise of the policy gradient grows with the turns of a conversation: RLOO, and TRePO with a value a turn.

    python benchmarks/turns.py                   # 1 to 8 turns, 20 random conversations each, about a minute

Writes benchmarks/results/turns.json and docs/figures/turns.svg. A turn is one token of the policy, and one of the
environment follows it, drawn from a random table; the policy looks one token back and has the same 6 logits whatever
the number of turns. Every figure is exact: all responses are enumerated, groups and branches by their moments. Up to 3
turns some figures are compared with `exact_moments` of the same estimators, and the run stops if they differ.

Two rewards: "at the end", 1 if the sum of what the turns are worth is large, which it is about half of the time, else
0; and "every turn", that sum itself. Of each estimator:

- noise: tr Cov of one response's share (a group of K has K times less);
- tokens: that the policy draws for a response, branches included;
- tokens to signal: noise × tokens / |∇J|², the tokens of a batch whose noise is as large as its signal.

Means over conversations are geometric, with 95 % intervals (Student's t on logarithms). Growth compares a conversation
with the one of two turns that has the same policy and the same worth of tokens.
"""

import argparse
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from drawing import COLOURS, FOLDER, finish, name_ends, plt
from jaxtyping import Float
from machine import write_results
from rich.console import Console
from rich.progress import track
from scipy import stats
from torch import Tensor

from llm_mdp.estimators.algorithms import RLOO, TRePO
from llm_mdp.estimators.boundaries import EveryTurn
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.mdp.environment import Environment
from llm_mdp.mdp.hidden_rewards import NgramReward, TableReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PrefixTree
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify.moments import exact_moments

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "turns.json"
FIGURE = FOLDER / "turns.svg"
VOCAB_SIZE, GROUP_SIZE, BRANCHES, CHECKED = 2, 4, 4, 3
FIRST = 2
"""Turns that growth is measured from: with one token in all, what is large and what is not can be lopsided."""
REWARDS = ("at the end", "every turn")
ESTIMATORS = {
    "rloo": f"RLOO, K = {GROUP_SIZE}",
    "trepo": f"TRePO, {BRANCHES} draws a turn",
    "trepo-exact": "TRePO, exact values",
}
PAPER = (
    "This limitation leads to high variance as the number of turns increases, making convergence more difficult … In "
    "contrast, our proposed TRePO algorithm enables step-wise reward estimation at any position in the sequence, based "
    "on the terminal reward."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=8, help="most turns, 1 … 8")
    parser.add_argument("--instances", type=int, default=20, help="random conversations for each number of turns")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not 1 <= arguments.turns <= 8 or arguments.instances < 2:
        parser.error(
            f"--turns {arguments.turns} --instances {arguments.instances}: turns are 1 … 8 (32,768 responses), and an "
            "interval needs at least 2 instances."
        )
    torch.set_num_threads(1)
    runs = []
    for turns in track(range(1, arguments.turns + 1), "turns", console=Console(stderr=True)):
        for seed in range(arguments.instances):
            runs += [
                {"turns": turns, "seed": seed, "reward": reward} | measure(turns, seed, reward) for reward in REWARDS
            ]
    results = {"paper": PAPER, "options": vars(arguments) | {"output": str(arguments.output)}, "rows": summaries(runs)}
    write_results(arguments.output, ("torch",), results | {"runs": runs})
    draw(results, FIGURE)
    Console().print(json.dumps(results["rows"][-2:], indent=1))
    Console().print(f"Written to {arguments.output} and {FIGURE}")


# --- one conversation -------------------------------------------------------------------------------------------------


def conversation(turns: int, seed: int) -> Enumeration:
    """Policy and environment take turns, one token each; the policy has the last word."""
    generator = torch.Generator().manual_seed(seed)
    horizon = 2 * turns - 1
    reward = NgramReward.random(VOCAB_SIZE, 1, generator)
    policy = NgramPolicy.random(VOCAB_SIZE, 1, generator, scale=0.5)
    replies = tuple(range(1, horizon, 2))
    environment = Environment.random(PrefixTree(VOCAB_SIZE, None, horizon), 1, replies, generator) if replies else None
    return Enumeration(TokenMDP(VOCAB_SIZE, None, horizon, reward, environment=environment), policy)


def rewards(enumeration: Enumeration, kind: str) -> Float[Tensor, " N"]:
    """RM of every response."""
    worth, chance = enumeration.response_reward[0], enumeration.probability[0]
    if kind == "every turn":
        return worth
    ordered, order = worth.sort(descending=True)
    success = chance[order].cumsum(0)[:-1]
    success[ordered.diff() > -1e-9] = 2.0
    return (worth > ordered[int((success - 0.5).abs().argmin()) + 1] + 1e-10).double()


def measure(turns: int, seed: int, kind: str) -> dict[str, Any]:
    """Noise, tokens and tokens to signal of every estimator, exact."""
    enumeration = conversation(turns, seed)
    known = Known.of(enumeration, rewards(enumeration, kind), turns)
    noise = {"rloo": known.rloo(GROUP_SIZE), "trepo": known.trepo(BRANCHES), "trepo-exact": known.trepo(None)}
    if turns <= CHECKED and seed < CHECKED:
        check(enumeration, known, noise)
    branch_tokens = BRANCHES * turns * (turns + 1) / 2
    tokens = {"rloo": turns, "trepo": turns + branch_tokens, "trepo-exact": None}
    signal = float(known.gradient @ known.gradient)
    return {
        "gradient_norm": math.sqrt(signal),
        "noise": noise,
        "tokens": tokens,
        "tokens_to_signal": {name: noise[name] * spent / signal for name, spent in tokens.items() if spent},
    }


@dataclass(frozen=True)
class Known:
    """What the closed forms below are made of: probabilities, rewards, and scores of turns, response by response."""

    chance: Float[Tensor, " N"]
    reward: Float[Tensor, " N"]
    score: Float[Tensor, "N turns parameters"]
    value: Float[Tensor, "N turns1"]
    """E[RM | what stands before each turn], RM itself at the end."""
    variance: Float[Tensor, "N turns"]
    """Var[RM | what stands before each turn]."""

    @staticmethod
    def of(enumeration: Enumeration, reward: Float[Tensor, " N"], turns: int) -> "Known":
        chance, tokens = enumeration.probability[0], enumeration.tokens
        policy = enumeration.policy
        assert isinstance(policy, NgramPolicy)
        pi = policy.table.detach()[0].softmax(-1)
        value, variance, score = [], [], []
        for place in range(0, tokens.shape[1], 2):
            # Without an end token the responses below a prefix of this length are neighbours, as many for each.
            total, mean = (each.reshape(VOCAB_SIZE**place, -1) for each in (chance, chance * reward))
            below = mean.sum(1) / total.sum(1)
            spread = (total * (reward.reshape(total.shape) - below[:, None]).square()).sum(1) / total.sum(1)
            value.append(below.repeat_interleave(total.shape[1]))
            variance.append(spread.repeat_interleave(total.shape[1]))
            context = tokens[:, place - 1] if place else torch.full((len(tokens),), VOCAB_SIZE)
            each = torch.zeros(len(tokens), *pi.shape, dtype=torch.float64)
            each[torch.arange(len(tokens)), context] -= pi[context]
            each[torch.arange(len(tokens)), context, tokens[:, place]] += 1
            score.append(each.flatten(1))
        assert len(score) == turns
        return Known(chance, reward, torch.stack(score, 1), torch.stack([*value, reward], 1), torch.stack(variance, 1))

    def mean(self, each: Tensor) -> Tensor:
        return torch.tensordot(self.chance, each, dims=1)

    @property
    def gradient(self) -> Float[Tensor, " parameters"]:
        """∇J = E RM Σ scores (Corollary 1)."""
        return self.mean(self.reward[:, None] * self.score.sum(1))

    def rloo(self, K: int) -> float:
        """K tr Cov of g = (1/K) Σₖ (rₖ - mean of the others) Sₖ, S the score of a response: with a = r S, m = E r and
        E S = 0, E |g|² = (E |a|² + (K-1) |E a|²)/K - 2 m E[r |S|²]/K + (E |S|² (E r² + (K-2) m²) + |E a|²)/(K (K-1)).
        """
        whole, gradient = self.score.sum(1), self.gradient
        square, signal = whole.square().sum(-1), float(gradient @ gradient)
        m, r2 = float(self.mean(self.reward)), float(self.mean(self.reward**2))
        own = (float(self.mean(self.reward**2 * square)) + (K - 1) * signal) / K
        cross = m * float(self.mean(self.reward * square)) / K
        others = (float(self.mean(square)) * (r2 + (K - 2) * m**2) + signal) / (K * (K - 1))
        return K * (own - 2 * cross + others - signal)

    def trepo(self, branches: int | None) -> float:
        """tr Cov of g = Σⱼ (Ûⱼ₊₁ - Ûⱼ) sⱼ, Ûⱼ a mean over fresh draws before turn j: its noise moves g by sⱼ₋₁ - sⱼ."""
        gain = self.value[:, 1:] - self.value[:, :-1]
        g = (gain[..., None] * self.score).sum(1)
        square = self.mean(g.square().sum(-1))
        if branches is not None:
            before = torch.cat([torch.zeros_like(self.score[:, :1]), self.score[:, :-1]], dim=1)
            square = square + self.mean((self.variance * (before - self.score).square().sum(-1)).sum(-1)) / branches
        return float(square - self.gradient.square().sum())


def check(enumeration: Enumeration, known: Known, noise: dict[str, float]) -> None:
    """Compare with the estimators themselves, on the same responses.

    Raises: RuntimeError if a figure differs.
    """
    mdp, levels = enumeration.mdp, enumeration.tree.level_sizes
    table = [torch.zeros(1, VOCAB_SIZE, size, dtype=torch.float64) for size in levels]
    last = enumeration.tree.prefix_index(enumeration.tokens)[:, -1]
    table[-1][0, enumeration.tokens[:, -1], last] = known.reward
    same = replace(mdp, token_reward=TableReward(enumeration.tree, mdp.prompt_tokens, table))
    e = Enumeration(same, enumeration.policy)  # pyright: ignore[reportArgumentType]
    turn = EveryTurn()
    estimators = {
        "rloo": RLOO(2),
        "trepo": TRePO(boundary=turn, temperatures=(1.0,) * BRANCHES),
        "trepo-exact": TRePO(boundary=turn, critic=e.exact_u),
    }
    expected = noise | {"rloo": known.rloo(2)}
    for name, estimator in estimators.items():
        moments = exact_moments(estimator, e)
        pairs = [(estimator.group_size * moments.trace_covariance, expected[name])]
        pairs += list(zip(moments.mean.tolist(), known.gradient.tolist()))
        if any(abs(one - other) > 1e-9 * (1 + abs(other)) for one, other in pairs):
            raise RuntimeError(f"{name}: the closed form gives {expected[name]}, exact_moments {pairs[0][0]}.")


# --- all of them ------------------------------------------------------------------------------------------------------


def summaries(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Geometric means over conversations and their intervals, for every number of turns and reward."""
    rows = []
    for turns in sorted({run["turns"] for run in runs}):
        for reward in REWARDS:
            chosen = [run for run in runs if (run["turns"], run["reward"]) == (turns, reward)]
            row: dict[str, Any] = {"turns": turns, "reward": reward, "tokens": chosen[0]["tokens"]}
            for figure in ("noise", "tokens_to_signal"):
                row[figure] = {name: geometric([run[figure][name] for run in chosen]) for name in chosen[0][figure]}
            first = {run["seed"]: run["noise"] for run in runs if run["turns"] == FIRST and run["reward"] == reward}
            if first:
                row["growth"] = {
                    name: geometric([run["noise"][name] / first[run["seed"]][name] for run in chosen])
                    for name in ESTIMATORS
                }
            row["trepo_over_rloo"] = {
                figure: geometric([run[figure]["trepo"] / run[figure]["rloo"] for run in chosen])
                for figure in ("noise", "tokens_to_signal")
            }
            rows.append(row)
    return rows


def geometric(values: list[float]) -> tuple[float, float, float]:
    """Geometric mean, and its 95 % interval."""
    logs = torch.tensor(values, dtype=torch.float64).log()
    middle, half = float(logs.mean()), float(stats.t.ppf(0.975, len(logs) - 1) * logs.std() / math.sqrt(len(logs)))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def draw(results: dict[str, Any], path: Path) -> None:
    """Noise of one response, and tokens to signal, against turns; the reward at the end."""
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3))
    at_the_end = [row for row in results["rows"] if row["reward"] == REWARDS[0]]
    turns = [row["turns"] for row in at_the_end]
    ends: list[list[tuple[float, str, str]]] = [[], []]
    for (name, words), colour in zip(ESTIMATORS.items(), COLOURS):
        for axis, key, which in zip(axes, ("noise", "tokens_to_signal"), ends):
            if name in at_the_end[0][key]:
                middle, low, high = zip(*(row[key][name] for row in at_the_end))
                axis.plot(turns, middle, color=colour, marker="o", markersize=3)
                axis.fill_between(turns, low, high, color=colour, alpha=0.2, linewidth=0)
                which.append((middle[-1], words, colour))
    axes[0].set(xlabel="turns", ylabel="tr Cov of one response", ylim=(0, None))
    axes[1].set(xlabel="turns", ylabel="tokens to signal", yscale="log")
    for axis, which in zip(axes, ends):
        axis.margins(x=0)
        name_ends(axis, which)
    many = results["options"]["instances"]
    said = f"exact; geometric means of {many} conversations and their 95 % intervals"
    finish(figure, f"Conversations with one reward at the end\n{said}", path)


if __name__ == "__main__":
    main()
