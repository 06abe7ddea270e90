"""An independent second opinion on conversations: instances in which an environment draws some of the tokens.

Like second_opinion.py, whose words and conventions it uses, this program imports nothing of the package and follows the
written definitions by brute force. A sceptic can run it on an instance with one prompt, with an environment or without:

    python tests/second_opinion_turns.py instance.json

`environment_at` lists after how many tokens the environment draws the next one; the logits of those nodes are its own.
An *own* step is one of the policy's. A turn is a stretch of own steps, and what the environment says after it.
"""

import functools
import itertools
import json
import sys

import numpy as np

COMPLEX_STEP = 1e-30
ZERO_TARGET = 1e-14


def softmax(logits):
    weights = np.exp(logits - np.real(logits).max())
    return weights / weights.sum()


def turn_rows(instance: dict, group_size: int = 3) -> dict:
    """{id: {"relative_bias", "scale", "cosine", "trace_covariance"}} of the rows turn-credit-*."""
    return conversation(instance, group_size, others=False)["turns"]


def conversation(instance: dict, group_size: int = 3, beta: float = 0.7, others: bool = True) -> dict:
    """{"J": number, "grad": list, "turns": rows turn-credit-*, "others": rows that gaps between own steps touch}."""
    V, T, eos, gamma, K = instance["vocab_size"], instance["horizon"], instance["eos"], instance["gamma"], group_size
    theirs = set(instance.get("environment_at", []))
    nodes = instance["nodes"]
    index = {tuple(node["prefix"]): i for i, node in enumerate(nodes)}
    logits = np.array([node["logits"] for node in nodes], float)
    token_reward = np.array([node["token_reward"] for node in nodes], float)
    value = {prefix: nodes[i].get("value", 0.0) for prefix, i in index.items()}
    pi = np.array([softmax(row) for row in logits])
    is_own = np.array([len(node["prefix"]) not in theirs for node in nodes])
    ref_logits = np.array([node.get("reference_logits", [0.0] * V) for node in nodes], float)
    ref = np.array([softmax(row) for row in np.where(is_own[:, None], ref_logits, logits)])
    colder = np.array([softmax(row) for row in np.where(is_own[:, None], logits / 0.6, logits)])

    def is_complete(prefix):
        return len(prefix) == T or (eos is not None and len(prefix) > 0 and prefix[-1] == eos)

    def completions(prefix):
        if is_complete(prefix):
            return [prefix]
        return [W for w in range(V) for W in completions((*prefix, w))]

    responses = completions(())

    def probability(W, table, start=0):
        return np.prod([table[index[W[:t]], W[t]] for t in range(start, len(W))])

    def all_steps(W):
        return range(1, len(W) + 1)

    @functools.cache
    def own(W):
        return [t for t in all_steps(W) if t - 1 not in theirs]

    def r(W, t):
        return token_reward[index[W[: t - 1]], W[t - 1]]

    RM = {W: sum(gamma ** (t - 1) * r(W, t) for t in all_steps(W)) for W in responses}
    prefixes = {W[:t] for W in responses for t in range(len(W) + 1)}

    def expected(p, function, table=pi):
        return sum(probability(W, table, len(p)) * function(W) for W in completions(p))

    U = {p: expected(p, RM.__getitem__) for p in prefixes}
    variance = {p: expected(p, lambda W, p=p: (RM[W] - U[p]) ** 2) for p in prefixes}
    future = {
        p: expected(p, lambda W, p=p: sum(gamma ** (t - len(p) - 1) * r(W, t) for t in all_steps(W) if t > len(p)))
        for p in prefixes
    }
    greedy = np.array([np.eye(V)[np.argmax(row)] if mine else row for row, mine in zip(pi, is_own)])
    U_greedy = {p: expected(p, RM.__getitem__, greedy) for p in prefixes}
    greedy_variance = {p: expected(p, lambda W, p=p: (RM[W] - U_greedy[p]) ** 2, greedy) for p in prefixes}

    def log_ratio(W, t):
        return np.log(pi[index[W[: t - 1]], W[t - 1]] / ref[index[W[: t - 1]], W[t - 1]])

    def divergence(table):
        def of(W):
            places = [(index[W[: t - 1]], W[t - 1]) for t in own(W)]
            return sum(np.log(table[place]) - np.log(ref[place]) for place in places)

        return sum(probability(W, table) * of(W) for W in responses)

    def gradient(function):
        answer = np.zeros(logits.shape)
        for i, v in np.ndindex(*logits.shape):
            if is_own[i]:
                nudged = logits[i].astype(complex)
                nudged[v] += 1j * COMPLEX_STEP
                table = pi.astype(complex)
                table[i] = softmax(nudged)
                answer[i, v] = function(table).imag / COMPLEX_STEP
        return answer.ravel()

    grad_J = gradient(lambda table: sum(probability(W, table) * RM[W] for W in responses))
    grad_KL = gradient(divergence)

    def score(W, t):
        block = np.zeros(logits.shape)
        block[index[W[: t - 1]]] = -pi[index[W[: t - 1]]]
        block[index[W[: t - 1]], W[t - 1]] += 1
        return block.ravel()

    scores = {W: np.array([score(W, t) for t in own(W)]) for W in responses}

    def figures(mean, mean_square, target=grad_J):
        length, target_length = np.linalg.norm(mean), np.linalg.norm(target)
        if target_length < ZERO_TARGET:
            undefined = dict.fromkeys(("relative_bias", "scale", "cosine"))
            return {**undefined, "trace_covariance": float(mean_square - mean @ mean)}
        is_zero = length < 1e-12 * np.sqrt(mean_square) or length == 0
        return {
            "relative_bias": float(np.linalg.norm(mean - target) / target_length),
            "scale": float(mean @ target / target_length**2),
            "cosine": 0.0 if is_zero else float(mean @ target / (length * target_length)),
            "trace_covariance": float(mean_square - mean @ mean),
        }

    def of_weights(A, target=grad_J, table=pi, noise=lambda W: 0.0):
        mean, mean_square = 0.0, 0.0
        for W in responses:
            g = np.array([A(W, t) for t in own(W)]) @ scores[W]
            mean = mean + probability(W, table) * g
            mean_square += probability(W, table) * (g @ g + noise(W))
        return figures(mean, mean_square, target)

    def of_groups(A):
        """A(group) has a list of weights for every response, one an own step."""
        mean, mean_square = 0.0, 0.0
        chance = {W: probability(W, pi) for W in responses}
        for group in itertools.product(responses, repeat=K):
            p = np.prod([chance[W] for W in group])
            g = np.sum([np.array(weights) @ scores[W] for W, weights in zip(group, A(group))], axis=0) / K
            mean, mean_square = mean + p * g, mean_square + p * (g @ g)
        return figures(mean, mean_square)

    # ------------------------------------------------------------------ turns
    @functools.cache
    def turn_of(W, t):
        """0, 1, 2, ...: the number of own stretches that have begun up to step t, less one."""
        return sum(1 for s in own(W) if s <= t and (s == 1 or s - 2 in theirs)) - 1

    @functools.cache
    def turns(W):
        return sorted({turn_of(W, t) for t in own(W)})

    @functools.cache
    def turn_reward(W, j):
        return sum(gamma ** (t - 1) * r(W, t) for t in all_steps(W) if turn_of(W, t) == j)

    def before_turn(W, j):
        return W[: min(t for t in own(W) if turn_of(W, t) == j) - 1]

    def turn_gain(W, t):
        j = turn_of(W, t)
        end = U[before_turn(W, j + 1)] if j + 1 in turns(W) else RM[W]
        return end - U[before_turn(W, j)]

    def centred(group, W, j):
        there = [turn_reward(other, j) for other in group if j in turns(other)]
        return turn_reward(W, j) - sum(there) / len(there)

    def reached(group):
        return [[centred(group, W, turn_of(W, t)) for t in own(W)] for W in group]

    def reached_to_go(group):
        return [[sum(centred(group, W, j) for j in turns(W) if j >= turn_of(W, t)) for t in own(W)] for W in group]

    def earned(W, j):
        return sum(turn_reward(W, i) for i in turns(W) if i >= j)

    def less_others(group):
        return [
            [
                earned(W, turn_of(W, t))
                - sum(earned(o, turn_of(W, t)) for n, o in enumerate(group) if n != k) / (K - 1)
                for t in own(W)
            ]
            for k, W in enumerate(group)
        ]

    # ------------------------------------------------------------------ rows that gaps touch
    def next_own(W, t):
        later = [s for s in own(W) if s > t]
        return W[: later[0] - 1] if later else None

    def gae(W, t, v, L, discount=1.0):
        def delta(k):
            after = next_own(W, k)
            return (RM[W] if after is None else discount * v[after]) - v[W[: k - 1]]

        return sum((discount * L) ** i * delta(k) for i, k in enumerate(s for s in own(W) if s >= t))

    def trepo_noise(W):
        """Four fresh draws before every own step: each mean moves the weight of its step and of the one before it."""
        total = 0.0
        for place, t in enumerate(own(W)):
            direction = np.zeros(len(own(W)))
            direction[place] -= 1
            if place:
                direction[place - 1] += 1
            moved = direction @ scores[W]
            total += variance[W[: t - 1]] / 4 * (moved @ moved)
        return total

    def remax_noise(W):
        whole = scores[W].sum(0)
        return greedy_variance[()] * (whole @ whole)

    def soft(p):
        """log Z of the optimum of E RM - beta KL: the policy tilts, the environment does not."""
        if is_complete(p):
            return 0.0
        each = [gamma ** len(p) * token_reward[index[p], w] / beta + soft((*p, w)) for w in range(V)]
        return np.log(np.dot(ref[index[p]], np.exp(each))) if is_own[index[p]] else np.dot(pi[index[p]], each)

    def implicit(W, t):
        return beta * (gamma ** (t - 1) * r(W, t) / beta + soft(W[:t]) - soft(W[: t - 1]))

    def to_go(reward_of):
        return lambda W, t: sum(reward_of(W, k) for k in own(W) if k >= t)

    def grpo(group):
        R = np.array([RM[W] for W in group])
        A = (R - R.mean()) / (R.std(ddof=1) + 1e-4) if np.ptp(R) > 1e-12 * np.abs(R).max() else 0 * R
        return [[a / len(own(W))] * len(own(W)) for a, W in zip(A, group)]

    return {
        "J": float(U[()]),
        "grad": grad_J.tolist(),
        "turns": {
            "turn-credit-response": of_weights(lambda W, t: RM[W]),
            "turn-credit-values": of_weights(turn_gain),
            "turn-credit-reached": of_groups(reached),
            "turn-credit-reached-to-go": of_groups(reached_to_go),
            "turn-credit-others": of_groups(less_others),
        },
        "others": {} if not others else {
            "lemma-1": of_weights(lambda W, t: gamma ** (t - 1) * (r(W, t) + gamma * future[W[:t]])),
            "theorem-1": of_weights(lambda W, t: U[W[:t]]),
            "theorem-2": of_weights(lambda W, t: U[W[:t]] - U[W[: t - 1]]),
            "remark-2-return-to-go": of_weights(
                lambda W, t: sum(gamma ** (k - 1) * r(W, k) for k in all_steps(W) if k >= t)
            ),
            "remark-3-undiscounted": of_weights(
                lambda W, t: sum(gamma ** (k - t) * r(W, k) for k in all_steps(W) if k >= t)
            ),
            "gae-exact-0": of_weights(lambda W, t: gae(W, t, U, 0.0)),
            "gae-exact-0.95": of_weights(lambda W, t: gae(W, t, U, 0.95)),
            "gae-wrong-0": of_weights(lambda W, t: gae(W, t, value, 0.0)),
            "gae-discounted": of_weights(lambda W, t: gae(W, t, U, 1.0, discount=0.9)),
            "remax": of_weights(lambda W, t: RM[W] - U_greedy[()], noise=remax_noise),
            "grpo-length": of_groups(grpo),
            "trepo": of_weights(lambda W, t: gae(W, t, U, 0.0), noise=trepo_noise),
            "trepo-greedy-baseline": of_weights(
                lambda W, t: U[W[:t]] - U_greedy[W[: t - 1]],
                noise=lambda W: sum(
                    greedy_variance[W[: t - 1]] * (s @ s) for t, s in zip(own(W), scores[W])
                ),
            ),
            "r3hf": of_weights(lambda W, t: RM[W] - value[W[: t - 1]]),
            "rto": of_weights(to_go(implicit)),
            "kl-k1-reward": of_weights(to_go(log_ratio), grad_KL),
            "kl-k2-loss": of_weights(log_ratio, grad_KL),
            "length-normalised": of_weights(lambda W, t: RM[W] / len(own(W))),
            "masked-truncated": of_weights(lambda W, t: RM[W] if eos is not None and W[-1] == eos else 0.0),
            "temperature-mismatch": of_weights(lambda W, t: RM[W], table=colder),
        },
    }  # fmt: skip


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        found = conversation(json.load(file))
    print(f"J = {found['J']:.12g}")
    for name, row in (found["turns"] | found["others"]).items():
        print(f"{name:28}" + "".join(f"{row[key]:>20.10g}" for key in row))


if __name__ == "__main__":
    main()
