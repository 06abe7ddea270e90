"""An independent second opinion on every figure of the claims ledger.

This program imports NOTHING of the package (only numpy and the standard library). It follows the definitions of
CLAIMS.md word by word and computes each figure by brute force: it writes down every response the policy can give, every
group of K responses, and adds up probability times estimate. A sceptic can read it from top to bottom, and run it:

    python tests/second_opinion.py instance.json

Words used here: a *prefix* is a tuple of tokens; W is a complete response, also a tuple; `W[:t]` is the paper's W_{0,t}
(t tokens already written), so step t (counted from 1) chooses `W[t - 1]` at the prefix `W[:t - 1]`.

Conventions (DESIGN.md section 4): gradients are flattened in the order of the file's nodes, V entries each; the policy
is a table of logits, so the score of step t, onehot(w_t) - pi(.|prefix), sits in the block of its prefix and nowhere
else. `trace_covariance` is that of the mean over the group for estimators that need a group, otherwise that of one
response's g, noise of the branch draws included. A cosine with an expected gradient of zero (below 1e-12 of the rms of
g) is 0. Figures relative to a target that is zero itself (norm below 1e-14), or given an event that cannot happen, are
None. Rewards that differ by rounding only (1e-12 of the largest) count as equal.
Absent from the answer: prime (CLAIMS.md gives no formula) and dpo-optimum (no estimator).
"""

import itertools
import json
import sys
from types import SimpleNamespace

import numpy as np

TREPO_DRAWS = 4  # fresh draws from the prefix before every step, for trepo and trepo-lambda
VINEPPO_DRAWS = 9  # fresh draws from every boundary
SAMPLING_TEMPERATURE = 0.6  # temperature-mismatch
STEP_SIZE, CLIP = 0.5, 0.2  # ppo-second-epoch
COMPLEX_STEP = 1e-30
ZERO_TARGET = 1e-14
SAME_REWARD = 1e-12


def softmax(logits):
    """Probabilities from logits; also for complex logits, which the complex-step derivative below needs."""
    weights = np.exp(logits - np.real(logits).max())
    return weights / weights.sum()


def quantities(instance: dict, group_size: int = 3, beta: float = 0.7) -> SimpleNamespace:
    """Everything that the rows are made of: all names that this function defines."""
    # ------------------------------------------------------------------ the instance
    V, T, eos = instance["vocab_size"], instance["horizon"], instance.get("eos")
    gamma, K = instance.get("gamma", 1.0), group_size
    nodes = instance["nodes"]
    index = {tuple(node["prefix"]): i for i, node in enumerate(nodes)}
    logits = np.array([node["logits"] for node in nodes], float)
    token_reward = np.array([node["token_reward"] for node in nodes], float)
    reference_logits = np.array([node.get("reference_logits", [0.0] * V) for node in nodes], float)
    value = {prefix: float(nodes[i].get("value", 0.0)) for prefix, i in index.items()}
    environment_at = set(instance.get("environment_at", []))
    own_horizon = T - len(environment_at)  # the most tokens that the policy may write
    environment_rows = np.array([len(prefix) in environment_at for prefix in index])

    def policy_table(policy_logits):
        """Next-token probabilities for every node; what the environment draws is the same for every policy."""
        rows = np.where(environment_rows[:, None], logits, policy_logits)
        return np.array([softmax(row) for row in rows])

    pi, ref = policy_table(logits), policy_table(reference_logits)

    # ------------------------------------------------------------------ every response
    def is_complete(prefix):
        return len(prefix) == T or (eos is not None and len(prefix) > 0 and prefix[-1] == eos)

    def completions(prefix):
        """Every complete response that starts with this prefix."""
        if is_complete(prefix):
            return [prefix]
        return [W for w in range(V) for W in completions((*prefix, w))]

    responses = completions(())

    def all_steps(W):
        return range(1, len(W) + 1)

    def steps(W):
        """The steps at which the policy draws: all of them but for an environment. Estimators know no other."""
        return [t for t in all_steps(W) if t - 1 not in environment_at]

    def size(W):
        """The number of tokens that the policy drew."""
        return len(steps(W))

    def number(W, t):
        """Step t is the policy's first, second, ..."""
        return steps(W).index(t) + 1

    def state_after(W, t):
        """What is written when the policy draws again, or when the response has ended."""
        return next((W[: k - 1] for k in steps(W) if k > t), W)

    def probability(W, table, start=0):
        """Probability that `table` writes the tokens of W after the first `start` ones."""
        return np.prod([table[index[W[:t]], W[t]] for t in range(start, len(W))])

    def r(W, t):
        """The hidden token reward of step t."""
        return token_reward[index[W[: t - 1]], W[t - 1]]

    RM = {W: sum(gamma ** (t - 1) * r(W, t) for t in all_steps(W)) for W in responses}
    prefixes = {W[:t] for W in responses for t in range(len(W) + 1)}  # the complete responses among them

    def moments(table):
        """Mean and variance of RM over the responses that start with p, as `table` completes them; for every p."""
        mean, variance = {}, {}
        for p in prefixes:
            chances = np.array([probability(W, table, len(p)) for W in completions(p)])
            rewards = np.array([RM[W] for W in completions(p)])
            mean[p] = chances @ rewards
            variance[p] = chances @ (rewards - mean[p]) ** 2
        return mean, variance

    greedy = policy_table(np.where(np.eye(V)[pi.argmax(1)] > 0, 0.0, -np.inf))
    U = moments(pi)[0]
    U_greedy = moments(greedy)[0]  # of one response, unless the environment draws

    # V(p), the expected discounted future reward, straight from its definition
    future = {
        p: sum(
            probability(W, pi, len(p)) * sum(gamma ** (t - len(p) - 1) * r(W, t) for t in all_steps(W) if t > len(p))
            for W in completions(p)
        )
        for p in prefixes
    }

    def optimal_value(p):
        """beta log sum ref exp(value / beta) over what the policy may write, the mean over what the environment may:
        pi* is the policy that maximises E RM - beta KL(pi || ref), without an environment ref exp(RM / beta) / Z."""
        if is_complete(p):
            return RM[p]
        values = np.array([optimal_value((*p, w)) for w in range(V)])
        if environment_rows[index[p]]:
            return pi[index[p]] @ values
        return values.max() + beta * np.log(ref[index[p]] @ np.exp((values - values.max()) / beta))

    # ------------------------------------------------------------------ the targets: differentiate the sums themselves
    def total_reward(table):
        return sum(probability(W, table) * RM[W] for W in responses)

    def kl_to_reference(table):
        return sum(
            probability(W, table) * (np.log(probability(W, table)) - np.log(probability(W, ref))) for W in responses
        )

    def gradient(function, at=logits):
        """Complex-step derivative with respect to every logit of the policy: Im f(x + ih) / h, exact to rounding."""
        answer = np.zeros(logits.shape)
        for i, v in np.ndindex(*logits.shape):
            if not environment_rows[i]:
                nudged = at[i].astype(complex)
                nudged[v] += 1j * COMPLEX_STEP
                table = policy_table(at).astype(complex)
                table[i] = softmax(nudged)
                answer[i, v] = function(table).imag / COMPLEX_STEP
        return answer.ravel()

    J, grad_J, grad_KL = total_reward(pi), gradient(total_reward), gradient(kl_to_reference)

    # ------------------------------------------------------------------ scores, and the four figures
    def score(W, t, table):
        """grad log table(w_t | prefix), a flat vector."""
        block = np.zeros(logits.shape)
        block[index[W[: t - 1]]] = -table[index[W[: t - 1]]]
        block[index[W[: t - 1]], W[t - 1]] += 1
        return block.ravel()

    scores = {W: np.array([score(W, t, pi) for t in steps(W)]) for W in responses}  # (len, parameters)

    def figures(mean, mean_square, target):
        """From E g and E |g|^2."""
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

    def of_responses(estimate, target=grad_J, table=pi):
        """Figures of an estimator g = estimate(W) that looks at one response."""
        chances = np.array([probability(W, table) for W in responses])
        g = np.array([estimate(W) for W in responses])
        return figures(chances @ g, chances @ (g**2).sum(1), target)

    def of_weights(A, target=grad_J, table=pi):
        """The same for g = sum_t A_t grad log pi, where A(W, t) is the weight of step t."""
        return of_responses(lambda W: np.array([A(W, t) for t in steps(W)]) @ scores[W], target, table)

    def of_branches(boundaries, A, draws, table=pi):
        """The same where A(W, Ubar) is a list of weights that uses, for each step b of `boundaries(W)`, the mean
        Ubar[b] of the RM of `draws` independent fresh responses, which `table` draws from the prefix before step b. A
        is linear in these means, so each independent mean, of variance Var(RM | prefix) / draws, moves g by its own
        constant direction, and the noise adds the variance times the squared length of that direction to E |g|^2."""
        mean, mean_square = 0.0, 0.0
        expected, variance = moments(table)
        for W in responses:
            exact = {b: expected[W[: b - 1]] for b in boundaries(W)}
            g = np.array(A(W, exact)) @ scores[W]
            square = g @ g
            for b in boundaries(W):
                direction = np.array(A(W, {**exact, b: exact[b] + 1})) @ scores[W] - g
                square += variance[W[: b - 1]] / draws * (direction @ direction)
            mean = mean + probability(W, pi) * g
            mean_square += probability(W, pi) * square
        return figures(mean, mean_square, grad_J)

    # every K-tuple of responses, handled in blocks that share the first response
    chance = np.array([probability(W, pi) for W in responses])
    reward = np.array([RM[W] for W in responses])
    for i in range(len(reward)):  # 0.1 + 0.2 and 0.3 are equal rewards
        reward[np.abs(reward - reward[i]) <= SAME_REWARD * np.abs(reward).max()] = reward[i]
    length = np.array([size(W) for W in responses], float)
    whole_score = np.array([scores[W].sum(0) for W in responses])
    rest = np.array(list(itertools.product(range(len(responses)), repeat=K - 1)))

    def of_groups(weights, keep=None, target=grad_J):
        """Figures of g = mean over k of weights(rewards, lengths)_k times the whole score of response k; the arrays
        have one row for each group and K columns. With `keep`, given that keep(rewards) holds."""
        kept, mean, mean_square = 0.0, 0.0, 0.0
        for first in range(len(responses)):
            groups = np.column_stack([np.full(len(rest), first), rest])
            p = chance[groups].prod(1)
            if keep is not None:
                p = p * keep(reward[groups])
            a = weights(reward[groups], length[groups])
            g = sum(a[:, k, None] * whole_score[groups[:, k]] for k in range(K)) / K
            kept, mean, mean_square = kept + p.sum(), mean + p @ g, mean_square + p @ (g**2).sum(1)
        if kept == 0:
            return dict.fromkeys(("relative_bias", "scale", "cosine", "trace_covariance"))
        return figures(mean / kept, mean_square / kept, target)

    # ------------------------------------------------------------------ the pieces that several estimators share
    def return_to_go(W, t):
        """G_t, the discounted return-to-go of the true token rewards."""
        return sum(gamma ** (k - t) * r(W, k) for k in all_steps(W) if k >= t)

    def gae(W, t, v, L, discount=1.0):
        """GAE(L) with reward RM(W) on the last token, 0 elsewhere; the value after the end is 0."""

        def delta(k):
            after = state_after(W, k)
            return (RM[W] if after == W else discount * v[after]) - v[W[: k - 1]]

        return sum((discount * L) ** i * delta(k) for i, k in enumerate(k for k in steps(W) if k >= t))

    def every_second_step(W):
        return steps(W)[::2]  # 1, 3, 5, ...

    def halves(W):
        return sorted({1, steps(W)[size(W) // 2]})

    def segment_gains(W, D, values):
        """F_d = value at the next boundary (RM(W) after the last one) - value at d; values[d]: of the prefix before
        d."""
        ends = [*(values[d] for d in D[1:]), RM[W]]
        return {d: end - values[d] for d, end in zip(D, ends, strict=True)}

    def exact_gains(W, D):
        return segment_gains(W, D, {d: U[W[: d - 1]] for d in D})

    def start_of_segment(t, D):
        return max(d for d in D if d <= t)

    def between(W, F, t):
        """Linear interpolation of F at step t between the boundaries on either side; after the last one, constant."""
        return float(np.interp(number(W, t), [number(W, d) for d in sorted(F)], [F[d] for d in sorted(F)]))

    def interpolated(W, t):
        return between(W, exact_gains(W, every_second_step(W)), t)

    def lambda_sum(gains, L):
        """sum_{l >= d} L^(number of segments between) gain_l, for every d."""
        D = sorted(gains)
        return {d: sum(L ** (j - i) * gains[D[j]] for j in range(i, len(D))) for i, d in enumerate(D)}

    def trepo_weights(W, Ubar):
        gains = segment_gains(W, steps(W), Ubar)
        return [gains[t] for t in steps(W)]

    def remax_weights(W, greedy_reward):
        return [RM[W] - greedy_reward[1] for t in steps(W)]

    def greedy_baseline_weights(W, greedy_reward):
        return [U[W[:t]] - greedy_reward[t] for t in steps(W)]

    def trepo_lambda_weights(W, Ubar):
        sums = lambda_sum(segment_gains(W, steps(W), Ubar), 0.5)
        return [sums[t] for t in steps(W)]

    def eq31_weights(W, drawn):
        """drawn[k] = RM(W^(k)); W itself stands in as k = len + 1; pooled over all k >= t."""
        all_drawn = {**drawn, len(W) + 1: RM[W]}
        pooled = {d: np.mean([all_drawn[k] for k in all_drawn if k >= d]) for d in steps(W)}
        gains = segment_gains(W, steps(W), pooled)
        return [gains[t] for t in steps(W)]

    def vineppo_weights(W, Ubar):
        D = every_second_step(W)
        gains = segment_gains(W, D, Ubar)
        return [gains[start_of_segment(t, D)] for t in steps(W)]

    def ma_rlhf(W, t):
        D = every_second_step(W)
        return lambda_sum(exact_gains(W, D), 0.95)[start_of_segment(t, D)]

    def r3hf_reward(W, t):
        after = state_after(W, t)
        return (RM[W] if after == W else value[after]) - value[W[: t - 1]]

    def optimum_ratio(W, t):
        """pi*(w_t | prefix) / ref(w_t | prefix)."""
        return np.exp((optimal_value(W[:t]) - optimal_value(W[: t - 1])) / beta)

    def policy_ratio(W, t):
        """pi(w_t | prefix) / ref(w_t | prefix)."""
        return pi[index[W[: t - 1]], W[t - 1]] / ref[index[W[: t - 1]], W[t - 1]]

    def to_go(token_reward_of):
        """Undiscounted return-to-go of some token reward."""
        return lambda W, t: sum(token_reward_of(W, k) for k in steps(W) if k >= t)

    def half_by_token(W, t):
        """Half of the rewards of the policy's tokens are observed token by token; all else only as a whole."""
        observed = {k: gamma ** (k - 1) * r(W, k) / 2 for k in steps(W)}
        return sum(observed[k] for k in observed if k >= t) + RM[W] - sum(observed.values())

    def after_a_step_on(W):
        return logits + (STEP_SIZE * RM[W] * scores[W].sum(0)).reshape(logits.shape)

    def second_epoch(W):
        """Gradient, at the parameters reached by one step on W, of the clipped surrogate on the same W."""
        new_pi = policy_table(after_a_step_on(W))
        g = np.zeros(logits.size)
        for t in steps(W):
            rho = new_pi[index[W[: t - 1]], W[t - 1]] / pi[index[W[: t - 1]], W[t - 1]]
            if rho * RM[W] <= np.clip(rho, 1 - CLIP, 1 + CLIP) * RM[W]:  # otherwise the constant side is the minimum
                g += RM[W] * rho * score(W, t, new_pi)
        return g

    # weights of the group estimators; R and lengths have one row for each group, one column for each response
    def centred(R):
        R = R - R[:, :1]  # a common shift changes nothing and makes equal rewards exactly 0
        return R - R.mean(1, keepdims=True)

    def leave_one_out(R, lengths=None):
        return R - (R.sum(1, keepdims=True) - R) / (K - 1)

    def grpo(R, lengths=None):
        return centred(R) / (R.std(1, ddof=1, keepdims=True) + 1e-4)

    def whitened_over_tokens(R, lengths):
        R = R - R[:, :1]  # as above; the std of equal rewards must not be rounding that is divided by 1e-8
        count = lengths.sum(1, keepdims=True)
        mean = (lengths * R).sum(1, keepdims=True) / count
        std = np.sqrt((lengths * (R - mean) ** 2).sum(1, keepdims=True) / (count - 1))
        return (R - mean) / (std + 1e-8)

    def differ(R):
        return np.ptp(R, axis=1) > 0

    colder = policy_table(logits / SAMPLING_TEMPERATURE)

    def Q(W, t):
        return r(W, t) + gamma * future[W[:t]]

    def whole(W, t):
        return RM[W]

    return SimpleNamespace(**locals())


def second_opinion(instance: dict, group_size: int = 3, beta: float = 0.7) -> dict:
    """{"J": number, "grad": list, id: {"relative_bias", "scale", "cosine", "trace_covariance"}, ...}."""
    q = quantities(instance, group_size, beta)
    return {"J": float(q.J), "grad": q.grad_J.tolist(), **first_edition(q)}


def first_edition(q: SimpleNamespace) -> dict:
    """The first table of CLAIMS.md, line by line."""
    return {
        "lemma-1": q.of_weights(lambda W, t: q.gamma ** (t - 1) * q.Q(W, t)),
        "lemma-2": q.of_weights(lambda W, t: q.gamma ** (t - 1) * q.Q(W, t) + q.value[W[: t - 1]]),
        "theorem-1": q.of_weights(lambda W, t: q.U[W[:t]]),
        "theorem-2": q.of_weights(lambda W, t: q.U[W[:t]] - q.U[W[: t - 1]]),
        "corollary-1": q.of_weights(q.whole),
        "reinforce": q.of_weights(q.whole),
        "actor-critic": q.of_weights(lambda W, t: q.gae(W, t, q.U, 0.0)),
        "remark-2-return-to-go": q.of_weights(lambda W, t: q.gamma ** (t - 1) * q.return_to_go(W, t)),
        "remark-3-undiscounted": q.of_weights(q.return_to_go),
        "remark-4-whitening": q.of_groups(q.whitened_over_tokens),
        "remark-5-merged": q.of_weights(
            lambda W, t: sum(q.gamma ** (k - 1) * q.r(W, k) / 2 for k in q.all_steps(W)) + q.RM[W] / 2,
        ),
        "remark-5-token-level": q.of_weights(q.half_by_token),
        "gae-exact-0": q.of_weights(lambda W, t: q.gae(W, t, q.U, 0.0)),
        "gae-exact-0.95": q.of_weights(lambda W, t: q.gae(W, t, q.U, 0.95)),
        "gae-exact-1": q.of_weights(lambda W, t: q.gae(W, t, q.U, 1.0)),
        "gae-wrong-0": q.of_weights(lambda W, t: q.gae(W, t, q.value, 0.0)),
        "gae-wrong-0.95": q.of_weights(lambda W, t: q.gae(W, t, q.value, 0.95)),
        "gae-wrong-1": q.of_weights(lambda W, t: q.gae(W, t, q.value, 1.0)),
        "gae-discounted": q.of_weights(lambda W, t: q.gae(W, t, q.U, 1.0, discount=0.9)),
        "rloo": q.of_groups(q.leave_one_out),
        "rloo-eq36": q.of_groups(lambda R, lengths: R - R.sum(1, keepdims=True) / (q.K - 1)),
        "remax": q.of_branches(lambda W: [1], q.remax_weights, 1, q.greedy),
        "grpo-mean": q.of_groups(lambda R, lengths: q.centred(R)),
        "grpo": q.of_groups(q.grpo),
        "grpo-length": q.of_groups(lambda R, lengths: q.grpo(R) / lengths),
        "dr-grpo": q.of_groups(lambda R, lengths: q.centred(R) / q.own_horizon),
        "trepo": q.of_branches(q.steps, q.trepo_weights, TREPO_DRAWS),
        "trepo-eq31": q.of_branches(q.steps, q.eq31_weights, 1),
        "trepo-interpolated": q.of_weights(q.interpolated),
        "trepo-segment": q.of_weights(
            lambda W, t: q.exact_gains(W, q.every_second_step(W))[q.start_of_segment(t, q.every_second_step(W))]
        ),
        "trepo-lambda": q.of_branches(q.steps, q.trepo_lambda_weights, TREPO_DRAWS),
        "trepo-own-length": q.of_weights(
            lambda W, t: q.exact_gains(W, q.halves(W))[q.start_of_segment(t, q.halves(W))]
        ),
        "trepo-greedy-values": q.of_branches(q.steps, q.trepo_weights, 1, q.greedy),
        "trepo-greedy-baseline": q.of_branches(q.steps, q.greedy_baseline_weights, 1, q.greedy),
        "vineppo": q.of_branches(q.every_second_step, q.vineppo_weights, VINEPPO_DRAWS),
        "ma-rlhf": q.of_weights(q.ma_rlhf),
        "r3hf": q.of_weights(q.to_go(q.r3hf_reward)),
        "abc-return-to-go": q.of_weights(q.to_go(lambda W, t: q.RM[W] / q.size(W))),
        "abc-full-sum": q.of_weights(lambda W, t: sum(q.RM[W] / q.size(W) for _ in q.steps(W))),
        "rto": q.of_weights(q.to_go(lambda W, t: q.beta * np.log(q.optimum_ratio(W, t)))),
        "rto-eq41": q.of_weights(q.to_go(q.optimum_ratio)),
        "kl-k1-reward": q.of_weights(q.to_go(lambda W, t: np.log(q.policy_ratio(W, t))), q.grad_KL),
        "kl-k1-loss": q.of_weights(lambda W, t: 1.0, q.grad_KL),
        "kl-k2-loss": q.of_weights(lambda W, t: np.log(q.policy_ratio(W, t)), q.grad_KL),
        "kl-k3-loss": q.of_weights(lambda W, t: 1 - 1 / q.policy_ratio(W, t), q.grad_KL),
        "kl-k3-reward": q.of_weights(
            q.to_go(lambda W, t: 1 / q.policy_ratio(W, t) - 1 + np.log(q.policy_ratio(W, t))), q.grad_KL
        ),
        "length-normalised": q.of_weights(lambda W, t: q.RM[W] / q.size(W)),
        "token-mean": q.of_groups(lambda R, lengths: R / lengths.sum(1, keepdims=True) * q.K),  # of_groups divides by K
        "masked-truncated": q.of_weights(lambda W, t: q.RM[W] if q.eos is not None and W[-1] == q.eos else 0.0),
        "zero-std-filtered": q.of_groups(q.leave_one_out, keep=q.differ),
        "temperature-mismatch": q.of_weights(q.whole, table=q.colder),
        "ppo-second-epoch": q.of_responses(q.second_epoch),
    }


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        opinion = second_opinion(json.load(file))
    print(f"J = {opinion.pop('J'):.12g}")
    print("grad J =", np.array2string(np.array(opinion.pop("grad")), precision=6, max_line_width=120))
    print(f"{'id':24}{'relative bias':>18}{'scale':>18}{'cosine':>18}{'tr Cov':>18}")
    for name, row in opinion.items():
        print(
            f"{name:24}"
            + "".join(f"{'undefined' if row[key] is None else format(row[key], '.10g'):>18}" for key in row)
        )


if __name__ == "__main__":
    main()
