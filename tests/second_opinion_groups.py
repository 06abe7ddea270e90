"""An independent second opinion on group estimators: groups of any size, batches of several prompts.

Like second_opinion.py this program imports NOTHING of the package, only numpy and the standard library, and follows the
definitions of CLAIMS.md. It writes down every response that the policy can give; then either every batch of groups
(each multiset once, weighed with the number of its orders) or as many random batches as it is told to draw.
It knows no classes of responses, no summaries and no convolutions. A sceptic can run it:

    python tests/second_opinion_groups.py FILE --group-size 8 --json

and compare with `llm-mdp verify --instance FILE --group-size 8 --json OTHER`.

Arrays of a batch have the axes (batch, prompt of the batch, response of the group), and weights a fourth, the step.
What a row returns is the factor of the token's score in g, the division by the number of responses included.
Conventions as in second_opinion.py; several prompts are drawn independently, by their probabilities. Groups that are
left out are no part of the batch: its statistics are those of the others, and a batch of which nothing is left is none.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np

ROUNDING = 1e-12  # of the largest: rewards that differ by less are equal, weights below it are none
BLOCK = 2_000_000  # tokens of the batches that are looked at together

# ---------------------------------------------------------------------- the instance


def every_response(vocab_size: int, eos: int | None, horizon: int) -> list[tuple[int, ...]]:
    def below(prefix):
        if len(prefix) == horizon or (prefix and prefix[-1] == eos):
            return [prefix]
        return [W for w in range(vocab_size) for W in below((*prefix, w))]

    return below(())


def read(content: dict, jacobian: np.ndarray | None = None) -> SimpleNamespace:
    """Tables of an instance file, over prompts x, responses n and steps t.

    Args:
        jacobian: the derivative of all logits, node after node, by the parameters, where these are not the logits.
    """
    V, T, eos = content["vocab_size"], content["horizon"], content.get("eos")
    gamma, nodes = content.get("gamma", 1.0), content["nodes"]
    prompts = content.get("prompts", [{"probability": 1.0}])
    theirs = set(content.get("environment_at", []))
    row = {(node.get("prompt", 0), tuple(node["prefix"])): i for i, node in enumerate(nodes)}
    responses = every_response(V, eos, T)
    X, N = len(prompts), len(responses)

    def log_softmax(key):
        logits = np.array([node.get(key, [0.0] * V) for node in nodes], float)
        shifted = logits - logits.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    logp_table, reference = log_softmax("logits"), log_softmax("reference_logits")
    hidden = np.array([node["token_reward"] for node in nodes], float)
    of_prompt = [
        (x, n, t, row[x, W[:t]], W[t]) for x in range(X) for n, W in enumerate(responses) for t in range(len(W))
    ]
    x, n, t, node, token = (np.array(column) for column in zip(*of_prompt))

    def spread(table, fill=0.0):
        answer = np.full((X, N, T), fill)
        answer[x, n, t] = table
        return answer

    own = np.array([[s < len(W) and s not in theirs for s in range(T)] for W in responses])
    log_of_all = spread(logp_table[node, token])
    reward_of_token = spread(gamma**t * hidden[node, token])
    reward = reward_of_token.sum(-1)
    for of_one in reward:  # 0.1 + 0.2 and 0.3 are equal rewards
        for i in range(N):
            of_one[np.abs(of_one - of_one[i]) <= ROUNDING * np.abs(of_one).max()] = of_one[i]

    # ∇ log π of every (node, token), by the logits: a step's score is onehot - π in its node's block
    scores = np.zeros((len(nodes), V, len(nodes), V))
    for i in range(len(nodes)):
        scores[i, :, i, :] = np.eye(V) - np.exp(logp_table[i])
    by_logits = scores.reshape(len(nodes) * V, -1)
    turn = np.cumsum([[s not in theirs and (s == 0 or s - 1 in theirs) for s in range(T)]], axis=1)[0] - 1
    return SimpleNamespace(
        V=V, T=T, eos=eos, X=X, N=N, responses=responses, own=own, length=own.sum(1).astype(float),
        longest=T - len(theirs), rho=np.array([float(p["probability"]) for p in prompts]),
        chance=np.exp(log_of_all.sum(-1)), reward=reward, reward_of_token=reward_of_token,
        logp=np.where(own, log_of_all, 0.0), ref=np.where(own, spread(reference[node, token]), 0.0),
        edge=spread(node * V + token).astype(int), scores=by_logits if jacobian is None else by_logits @ jacobian,
        turn=turn, capped=np.array([eos is None or W[-1] != eos for W in responses]), theirs=theirs,
    )  # fmt: skip


# ---------------------------------------------------------------------- the targets: leaf weights, differentiated


def leaf_gradient(q: SimpleNamespace, factor: np.ndarray) -> np.ndarray:
    """Σ ρ p(W) factor(W) ∇ log π(W): the derivative of Σ ρ p(W) factor(W) where the factor is held fixed."""
    weight = (q.rho[:, None] * q.chance * factor)[..., None] * q.own
    return np.bincount(q.edge.ravel(), weight.ravel(), len(q.scores)) @ q.scores


def targets(q: SimpleNamespace, K: int) -> dict[str, np.ndarray]:
    best = np.zeros((q.X, q.N))
    for x in range(q.X):
        for v in np.unique(q.reward[x]):
            at_most, below = q.reward[x] <= v, q.reward[x] < v
            F, F_below = q.chance[x] @ at_most, q.chance[x] @ below
            best[x] += v * K * (F ** (K - 1) * at_most - F_below ** (K - 1) * below)
    kl = (q.logp - q.ref).sum(-1)
    excess = np.clip((q.length - (q.longest - 2)) / 2, 0, 1)
    return {
        "reward": leaf_gradient(q, q.reward),
        "max of K": leaf_gradient(q, best),
        "kl": -leaf_gradient(q, kl),
        "reward - overlong": leaf_gradient(q, q.reward - excess),
        "reward - 0.1 length": leaf_gradient(q, q.reward - 0.1 * q.length),
    }


# ---------------------------------------------------------------------- what is in a batch


class Batch:
    """Some batches: which prompt (G, P) and which responses (G, P, K), and what follows from them."""

    def __init__(self, q: SimpleNamespace, prompt: np.ndarray, leaf: np.ndarray):
        self.q, self.prompt, self.leaf = q, prompt, leaf
        _, self.P, self.K = leaf.shape
        self.R, self.L = self.of(q.reward), q.length[leaf]
        self.own = q.own[leaf]

    def of(self, table: np.ndarray) -> np.ndarray:
        """A table over prompts and responses, at every row."""
        return table[self.prompt[..., None], self.leaf]


def mean_of_group(values):
    return values.mean(2, keepdims=True)


def centred(b: Batch):
    """Reward less the mean of its group; a common shift first, so that equal rewards give exactly 0."""
    shifted = b.R - b.R[..., :1]
    return shifted - mean_of_group(shifted)


def others(b: Batch, values=None):
    """The mean of a value over the other responses of the group."""
    values = b.R if values is None else values
    return (values.sum(2, keepdims=True) - values) / (b.K - 1)


def deviation(b: Batch):
    return np.sqrt((centred(b) ** 2).sum(2, keepdims=True) / (b.K - 1))


def whitened(values, count):
    """(value - mean) / (std + 1e-8) over the whole batch, where a row counts `count` times; ddof 1."""
    values = values - values[:, :1, :1]  # the std of equal values must not be rounding, divided by 1e-8
    total = count.sum((1, 2), keepdims=True)
    away = values - (count * values).sum((1, 2), keepdims=True) / total
    away = np.where(np.abs(away) <= ROUNDING * np.abs(values).max((1, 2), keepdims=True), 0.0, away)
    return away / (np.sqrt((count * away**2).sum((1, 2), keepdims=True) / (total - 1)) + 1e-8)


def lead_of_best(b: Batch):
    ranked = np.sort(b.R, axis=2)
    return np.where(ranked[..., -1:] == b.R, ranked[..., -1:] - ranked[..., -2:-1], 0.0)


def by_length(b: Batch, own: bool):
    shifted = b.R - b.R[..., :1]
    total, count = (b.L * shifted).sum(2, keepdims=True), b.L.sum(2, keepdims=True)
    if own:
        return shifted - total / count
    return shifted - (total - b.L * shifted) / (count - b.L)


def prefix_values(b: Batch):
    """v(W[:t]), t = 0 … T: mean reward of the group's responses that begin with it; (G, P, K, T + 1)."""
    q = b.q
    same = np.array([[[W[:t] == O[:t] for t in range(q.T + 1)] for O in q.responses] for W in q.responses], float)
    together = same[b.leaf[..., :, None], b.leaf[..., None, :]]
    return np.einsum("gpkjt,gpj->gpkt", together, b.R) / together.sum(3)


def prefix_differences(b: Batch):
    v = prefix_values(b)
    return v[..., 1:] - v[..., :-1]


def turn_rewards(b: Batch):
    """(G, P, K, turns): the rewards of each turn, and whether the response reached it."""
    q = b.q
    turns = range(q.turn.max() + 1)
    reward = np.stack([(q.reward_of_token * (q.turn == j)).sum(-1) for j in turns], -1)
    reached = np.stack([(q.own & (q.turn == j)).any(-1) for j in turns], -1)
    return b.of(reward), reached[b.leaf]


def from_here_on(values):
    return np.cumsum(values[..., ::-1], -1)[..., ::-1]


def less_mean_of_reached(b: Batch):
    reward, reached = turn_rewards(b)
    return np.where(
        reached, reward - (reward * reached).sum(2, keepdims=True) / np.maximum(reached.sum(2, keepdims=True), 1), 0.0
    )


def less_other_turns(b: Batch):
    earned = from_here_on(turn_rewards(b)[0])
    return earned - (earned.sum(2, keepdims=True) - earned) / (b.K - 1)


def log_ratio(b: Batch):
    return b.of(b.q.logp - b.q.ref)


def k3(b: Batch):
    return np.where(b.own, np.exp(-log_ratio(b)) - 1 + log_ratio(b), 0.0)


def k3_slope(b: Batch):
    return np.where(b.own, 1 - np.exp(-log_ratio(b)), 0.0)


# ---------------------------------------------------------------------- the rows: the weight of every token's score


def evenly(advantage: Callable) -> Callable:
    """Mean over the responses of the batch, sum over the tokens of each."""

    def weight(b):
        values = advantage(b)
        return (values if values.ndim == 4 else values[..., None]) / (b.P * b.K)

    return weight


def by_own_length(advantage: Callable) -> Callable:
    return evenly(lambda b: advantage(b) / b.L)


def by_all_tokens(advantage: Callable) -> Callable:
    """Summed over the batch, divided by its tokens."""
    return lambda b: (advantage(b) / b.L.sum((1, 2), keepdims=True))[..., None]


def grpo(b):
    return centred(b) / (deviation(b) + 1e-4)


def of_turns(credit: Callable) -> Callable:
    return evenly(lambda b: credit(b)[..., b.q.turn])


ROWS: dict[str, Callable] = {
    "rloo": evenly(lambda b: b.R - others(b)),
    "rloo-eq36": evenly(lambda b: b.R - b.R.sum(2, keepdims=True) / (b.K - 1)),
    "grpo-mean": evenly(centred),
    "grpo": evenly(grpo),
    "grpo-length": by_own_length(grpo),
    "gspo": by_own_length(grpo),
    "dr-grpo": evenly(lambda b: centred(b) / b.q.longest),
    "length-normalised-loo": by_own_length(lambda b: b.R - others(b)),
    "token-mean-loo": by_all_tokens(lambda b: b.R - others(b)),
    "token-mean": by_all_tokens(lambda b: b.R),
    "zero-std-filtered": evenly(lambda b: b.R - others(b)),
    "remark-4-whitening": evenly(lambda b: whitened(b.R, b.L)),
    "remark-4-batch": evenly(lambda b: whitened(b.R, b.L)),
    "remark-4-batch-responses": evenly(lambda b: whitened(b.R, np.ones_like(b.R))),
    "reinforce++": evenly(lambda b: whitened(centred(b), b.L)),
    "opo": evenly(lambda b: by_length(b, own=True)),
    "opo-left-out": evenly(lambda b: by_length(b, own=False)),
    "pass-at-k": evenly(lead_of_best),
    "tempo-td": evenly(prefix_differences),
    "tempo": evenly(lambda b: centred(b)[..., None] + prefix_differences(b)),
    "turn-credit-reached": of_turns(less_mean_of_reached),
    "turn-credit-reached-to-go": of_turns(lambda b: from_here_on(less_mean_of_reached(b))),
    "turn-credit-others": of_turns(less_other_turns),
}
"""Every row of the ledger that compares responses, but prime, for which CLAIMS.md has no formula."""

MORE: dict[str, Callable] = {
    # rows of one response at a time, here in groups: the mean of K independent estimates
    "reinforce": evenly(lambda b: b.R),
    "length-normalised": by_own_length(lambda b: b.R),
    "masked-truncated": evenly(lambda b: np.where(b.q.capped[b.leaf], 0.0, b.R)),
    "overlong-shaping": evenly(lambda b: b.R - np.clip((b.L - (b.q.longest - 2)) / 2, 0, 1)),
    "length-penalty": evenly(lambda b: b.R - 0.1 * b.L),
    "kl-k1-reward": evenly(lambda b: -from_here_on(log_ratio(b))),
    "kl-k2-loss": evenly(lambda b: -log_ratio(b)),
    "kl-k3-loss": evenly(lambda b: -k3_slope(b)),
    "kl-k3-reward": evenly(lambda b: -from_here_on(k3(b))),
    # what trainers add up
    "grpo with k3 in the loss": evenly(lambda b: grpo(b)[..., None] - 0.3 * k3_slope(b)),
    "grpo with k3 in the loss, token mean": lambda b: (
        (grpo(b)[..., None] - 0.3 * k3_slope(b)) / b.L.sum((1, 2), keepdims=True)[..., None]
    ),
}
"""What is no row of groups, but can be had in groups."""

TARGETS = {"pass-at-k": "max of K"} | dict.fromkeys([name for name in MORE if name.startswith("kl-")], "kl")


def differ(b: Batch):
    """Do the rewards of a group differ?"""
    return np.ptp(b.R, axis=2) > 0


KEEP = {"zero-std-filtered": differ}
"""Rows that leave groups out: which they keep, (G, P)."""


# ---------------------------------------------------------------------- sums over all batches, or over drawn ones


def groups_outright(q: SimpleNamespace, K: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Prompt, responses and probability of every multiset of K responses to every prompt."""
    leaf = np.array(list(itertools.combinations_with_replacement(range(q.N), K)))
    orders = np.ones(len(leaf))
    for n in range(q.N):
        count = (leaf == n).sum(1)
        orders /= np.array([math.factorial(k) for k in range(K + 1)], float)[count]
    orders *= math.factorial(K)
    prompt = np.repeat(np.arange(q.X), len(leaf))
    leaf = np.tile(leaf, (q.X, 1))
    chance = q.rho[prompt] * np.tile(orders, q.X) * q.chance[prompt[:, None], leaf].prod(1)
    return prompt, leaf, chance


def batches_outright(q: SimpleNamespace, K: int, P: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every batch of P groups, in order, each with its probability."""
    prompt, leaf, chance = groups_outright(q, K)
    total = len(prompt) ** P
    step = max(1, BLOCK // (P * K * q.T))
    for start in range(0, total, step):
        number = np.arange(start, min(start + step, total))
        which = np.stack([number // len(prompt) ** i % len(prompt) for i in range(P)], 1)
        yield Batch(q, prompt[which], leaf[which]), chance[which].prod(1)


def gradients(weight: Callable, b: Batch) -> tuple[np.ndarray, np.ndarray]:
    """g of every batch (G, parameters), and the largest weight in each of its groups (G, P)."""
    weights, scores = np.where(b.own, weight(b), 0.0), b.q.scores
    edge = b.of(b.q.edge) + len(scores) * np.arange(len(b.leaf))[:, None, None, None]
    flat = np.bincount(edge.ravel(), weights.ravel(), len(scores) * len(b.leaf))
    return flat.reshape(-1, len(scores)) @ scores, np.abs(weights).max((2, 3))


def updates(weight: Callable, b: Batch, keep: Callable | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """g of the groups that are kept of every batch, the largest weight in each group (0 in others), and which are kept
    (G, P)."""
    if keep is None:
        return *gradients(weight, b), np.ones(b.prompt.shape, bool)
    kept = keep(b)
    g, loudest = np.zeros((len(kept), b.q.scores.shape[1])), np.zeros(kept.shape)
    for number in range(1, b.P + 1):  # what is kept is a smaller batch
        here = kept.sum(1) == number
        which = here[:, None] & kept
        rest = Batch(b.q, b.prompt[which].reshape(-1, number), b.leaf[which].reshape(-1, number, b.K))
        g[here], loud = gradients(weight, rest)
        loudest[which] = loud.ravel()
    return g, loudest, kept


def figures(mean: np.ndarray, mean_square: float, target: np.ndarray) -> dict:
    trace, size, length = float(mean_square - mean @ mean), np.linalg.norm(target), np.linalg.norm(mean)
    if size < 1e-14:
        return {**dict.fromkeys(("relative_bias", "scale", "cosine")), "trace_covariance": trace}
    zero = length < ROUNDING * np.sqrt(mean_square) or length == 0
    return {
        "relative_bias": float(np.linalg.norm(mean - target) / size),
        "scale": float(mean @ target / size**2),
        "cosine": 0.0 if zero else float(mean @ target / (length * size)),
        "trace_covariance": trace,
    }


def opinion(
    q: SimpleNamespace,
    weight: Callable,
    K: int,
    P: int = 1,
    *,
    target: np.ndarray | None = None,
    keep: Callable | None = None,
) -> dict:
    """E g, tr Cov and what else a certificate says of g = Σ weight(batch) · score, over every batch outright.

    Args:
        weight: batch -> (G, P, K, T), or what broadcasts to it.
        keep: batch -> which groups (G, P) are not left out; None: all are kept.
    """
    mean, square, total, tokens, groups, loudness = np.zeros(q.scores.shape[1]), 0.0, 0.0, 0.0, 0.0, []
    for b, chance in batches_outright(q, K, P):
        g, loudest, kept = updates(weight, b, keep)
        left = chance * kept.any(1)
        mean, square, total = mean + left @ g, square + left @ (g**2).sum(1), total + left.sum()
        tokens, groups = tokens + chance @ b.L.sum((1, 2)), groups + chance @ kept.sum(1)
        loudness.append((chance[:, None] * kept, loudest))
    if total == 0:
        return {"kept": 0.0}
    mean, square = mean / total, square / total
    largest = max(loud[left > 0].max(initial=0.0) for left, loud in loudness)
    loud = sum(left[loud > ROUNDING * largest].sum() for left, loud in loudness) if largest else 0.0
    answer = figures(mean, square, target if target is not None else targets(q, K)["reward"])
    cost, signal = tokens / total, float(mean @ mean)
    return answer | {
        "mean": mean,
        "tokens": float(cost),
        "tokens_to_signal": float(answer["trace_covariance"] * cost / signal) if answer.get("cosine") else None,
        "kept": float(groups / P),
        "with_signal": float(loud / groups),
        "root_mean_square": float(np.sqrt(square)),
    }


def row_opinion(q: SimpleNamespace, row: str, K: int, P: int = 1) -> dict:
    """The opinion on a row of the ledger."""
    return opinion(q, (ROWS | MORE)[row], K, P, target=targets(q, K)[TARGETS.get(row, "reward")], keep=KEEP.get(row))


def drawn(
    q: SimpleNamespace, weight: Callable, K: int, P: int, batches: int, seed: int, keep: Callable | None = None
) -> np.ndarray:
    """g of so many random batches, (batches kept, parameters)."""
    generator = np.random.default_rng(seed)
    answer = []
    step = max(1, BLOCK // (P * K * q.T))
    cumulative = np.cumsum(q.chance, 1)
    for start in range(0, batches, step):
        size = min(step, batches - start)
        prompt = generator.choice(q.X, (size, P), p=q.rho)
        place = generator.random((size, P, K))
        leaf = np.zeros((size, P, K), int)
        for x in range(q.X):
            found = np.searchsorted(cumulative[x] / cumulative[x, -1], place, side="right").clip(max=q.N - 1)
            leaf = np.where(prompt[..., None] == x, found, leaf)
        g, _, kept = updates(weight, Batch(q, prompt, leaf), keep)
        answer.append(g[kept.any(1)])
    return np.concatenate(answer)


def multisets(q: SimpleNamespace, K: int) -> int:
    return q.X * math.comb(q.N + K - 1, K)


def main() -> None:
    parser = argparse.ArgumentParser(description="A second opinion on the group rows of an instance file.")
    parser.add_argument("file")
    parser.add_argument("--group-size", type=int, default=3, metavar="K")
    parser.add_argument("--prompts", type=int, default=1, metavar="P")
    parser.add_argument("--json", action="store_true", help="one JSON object, {row: {figure: number}}")
    options = parser.parse_args()
    with open(options.file, encoding="utf-8") as file:
        q = read(json.load(file))
    K, P = options.group_size, options.prompts
    if multisets(q, K) ** P > 3_000_000:
        parser.error(f"{multisets(q, K) ** P:,} batches are too many to write down; take a smaller K, P or instance.")
    rows = {row: row_opinion(q, row, K, P) for row in ROWS}
    for row in rows.values():
        row.pop("mean", None)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    names = ("relative_bias", "scale", "cosine", "trace_covariance", "tokens_to_signal", "kept", "with_signal")
    print(f"{'row':38}" + "".join(f"{name:>18}" for name in names))
    for name, row in rows.items():
        print(
            f"{name:38}" + "".join(f"{'-' if row.get(key) is None else format(row[key], '.10g'):>18}" for key in names)
        )


if __name__ == "__main__":
    main()
