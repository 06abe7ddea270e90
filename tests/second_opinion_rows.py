"""An independent second opinion on the rows that the second edition of CLAIMS.md adds.

Like second_opinion.py, whose quantities, words and conventions it uses, this program imports nothing of the package and
follows the written definitions by brute force. A sceptic can run it:

    python tests/second_opinion_rows.py instance.json

Rows of a policy that lags behind, or of an engine that computes other probabilities, draw responses from a behaviour
policy mu. Its logits are an argument; the command line makes them by adding normal noise of size 0.5 to the policy's.

CLAIMS.md marks figures A and B: they were computed on instances that it does not give, so they say the size only.
"""

import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np

try:
    from tests.second_opinion import COMPLEX_STEP, quantities
except ModuleNotFoundError:  # run as a program, beside second_opinion.py
    from second_opinion import COMPLEX_STEP, quantities

RATIO_CAP = 2.0  # mismatch-token-capped, mismatch-sequence-capped
EPS_HIGH = {"": 5.0, "-0.2": 0.2}  # cispo
SAPO_TAU_POSITIVE, SAPO_TAU_NEGATIVE = 1.0, 1.05
RAMP = (0.0, 1 / 3, 2 / 3, 1.0)
MISMATCH_NOISE = 0.5


def second_edition(q: SimpleNamespace, behaviour_logits: dict) -> dict:
    """The second tables of CLAIMS.md, line by line: {id: {"relative_bias", "scale", "cosine", "trace_covariance"}},
    and for rows that are no estimator {id: {name: number}}. `behaviour_logits` maps each prefix to V logits.
    A comma in an id stands before another reading of the row, of the same expected gradient and another noise."""
    return {
        **what_the_paper_says(q),
        **what_the_field_does(q),
        **from_another_policy(q, behaviour_logits),
        **other_objectives(q),
        **turn_by_turn(q),
    }


def slope(loss):
    """d/d log pi of a token's loss(c), where the token's probability is pi times c, at c = 1."""
    return loss(np.exp(1j * COMPLEX_STEP)).imag / COMPLEX_STEP


# ---------------------------------------------------------------------- sums over what is random besides the response


def of_outcomes(q, outcomes, target):
    """Figures from (probability, g, what independent noise adds to E |g|^2) of every outcome."""
    mean, mean_square = 0.0, 0.0
    for p, g, noise in outcomes:
        mean, mean_square = mean + p * g, mean_square + p * (g @ g + noise)
    return q.figures(mean, mean_square, target)


def of_choices(q, choices, A):
    """Figures of g = sum_t A(W, t, choice) grad log pi, where choices(W) lists (probability, choice)."""
    return of_outcomes(
        q,
        (
            (q.probability(W, q.pi) * p, np.array([A(W, t, choice) for t in q.steps(W)]) @ q.scores[W], 0.0)
            for W in q.responses
            for p, choice in choices(W)
        ),
        q.grad_J,
    )


def at_temperature(q, temperature):
    """(mean, variance) of RM over the completions of every prefix, the logits divided by the temperature; temperature
    0 is greedy."""
    return q.moments(q.policy_table(q.logits / temperature) if temperature > 0 else q.greedy)


def of_draws(q, boundaries, temperatures, A):
    """Figures of g = sum_t A(W, drawn)_t grad log pi, where drawn[d, i] is RM of one fresh response from the prefix
    before step d, for every d of boundaries(W), at temperatures[i]. A is linear in the draws (see of_branches)."""
    moments = [at_temperature(q, temperature) for temperature in temperatures]

    def outcome(W):
        keys = [(d, i) for d in boundaries(W) for i in range(len(temperatures))]
        drawn = {(d, i): moments[i][0][W[: d - 1]] for d, i in keys}
        g = np.array(A(W, drawn)) @ q.scores[W]
        noise = 0.0
        for d, i in keys:
            direction = np.array(A(W, {**drawn, (d, i): drawn[d, i] + 1})) @ q.scores[W] - g
            noise += moments[i][1][W[: d - 1]] * (direction @ direction)
        return q.probability(W, q.pi), g, noise

    return of_outcomes(q, map(outcome, q.responses), q.grad_J)


def of_token_groups(q, A, target=None):
    """Figures of g = mean over k of sum_t A(group)[k][t - 1] grad log pi(token t of response k). The order of the
    responses in a group does not matter, so every multiset is weighed with the number of its orders."""

    def outcomes():
        for group in itertools.combinations_with_replacement(q.responses, q.K):
            orders = math.factorial(q.K)
            for W in set(group):
                orders //= math.factorial(group.count(W))
            p = orders * np.prod([q.probability(W, q.pi) for W in group])
            g = sum(np.array(weights) @ q.scores[W] for W, weights in zip(group, A(group), strict=True)) / q.K
            yield p, g, 0.0

    return of_outcomes(q, outcomes(), q.grad_J if target is None else target)


# ---------------------------------------------------------------------- corrected rows, and what the paper adds


def what_the_paper_says(q):
    def whitened_over_responses(R, lengths):
        return q.centred(R) / (R.std(1, ddof=1, keepdims=True) + 1e-8)

    # TRePO: where the steps D are placed
    def beside_step_1(W, t, s):
        D = sorted({1, *q.steps(W)[s - 1 : s]})
        return q.exact_gains(W, D)[q.start_of_segment(t, D)]

    def uniform(n):
        return [(1 / n, s) for s in range(1, n + 1)]

    def averaged(W, t, n):
        return sum(beside_step_1(W, t, s) for s in range(1, n + 1)) / n

    # TRePO: how values are estimated
    def ramp(W, drawn):
        values = {d: np.mean([drawn[d, i] for i in range(len(RAMP))]) for d in q.steps(W)}
        gains = q.segment_gains(W, q.steps(W), values)
        return [gains[t] for t in q.steps(W)]

    ramp_means = [at_temperature(q, temperature)[0] for temperature in RAMP]
    exact_ramp = {p: np.mean([mean[p] for mean in ramp_means]) for p in q.prefixes}

    def eq31_without_W(W, drawn):
        """RM(W) is the value after the end, but it is not pooled into the values before."""
        values = {d: np.mean([drawn[k, 0] for k in q.steps(W) if k >= d]) for d in q.steps(W)}
        gains = q.segment_gains(W, q.steps(W), values)
        return [gains[t] for t in q.steps(W)]

    def interpolated_values(W, t):
        D = q.every_second_step(W)
        start = q.start_of_segment(t, D)
        return q.exact_gains(W, D)[start] / sum(q.start_of_segment(k, D) == start for k in q.steps(W))

    def algorithm_1(draws):
        temperatures = np.linspace(0, 1, draws) if draws > 1 else [0.0]

        def A(W, drawn):
            D = q.every_second_step(W)
            pool = {d: [*(RM for (k, _), RM in drawn.items() if k >= d), q.RM[W]] for d in D}
            F2 = q.segment_gains(W, D, {d: np.mean(pool[d]) for d in D})
            return [q.between(W, F2, t) for t in q.steps(W)]

        return of_draws(q, q.every_second_step, list(temperatures), A)

    def last_reward(W):
        """The reward on the last token, were it not for gamma = 1."""
        return q.gamma ** (q.size(W) - 1) * q.RM[W]

    def spread(A):
        return q.of_weights(A)["trace_covariance"]

    merged, by_token = spread(q.whole), spread(q.half_by_token)

    def expected(A):
        return sum(q.probability(W, q.pi) * np.array([A(W, t) for t in q.steps(W)]) @ q.scores[W] for W in q.responses)

    exact_goal, approximate_goal = expected(lambda W, t: q.U[W[:t]]), expected(q.whole)

    return {
        "remark-4-batch": q.of_groups(q.whitened_over_tokens),
        "remark-4-batch-responses": q.of_groups(whitened_over_responses),
        "trepo-random-step-of-response": q.of_weights(lambda W, t: averaged(W, t, q.size(W))),
        "trepo-random-step-of-response, drawn": of_choices(q, lambda W: uniform(q.size(W)), beside_step_1),
        "trepo-random-step": q.of_weights(lambda W, t: averaged(W, t, q.own_horizon)),
        "trepo-random-step, drawn": of_choices(q, lambda W: uniform(q.own_horizon), beside_step_1),
        "trepo-greedy-ramp": of_draws(q, q.steps, RAMP, ramp),
        "trepo-greedy-ramp, exact": q.of_weights(lambda W, t: exact_ramp[q.state_after(W, t)] - exact_ramp[W[: t - 1]]),
        "trepo-eq31-without-w": of_draws(q, q.steps, [1.0], eq31_without_W),
        "trepo-interpolated-values": q.of_weights(interpolated_values),
        "trepo-algorithm-1-m1": algorithm_1(1),
        "trepo-algorithm-1-m2": algorithm_1(2),
        "trepo-algorithm-1-m4": algorithm_1(4),
        "trajectory-gamma-discounted": q.of_weights(lambda W, t: q.gamma ** (q.steps(W)[-1] - 1) * last_reward(W)),
        "trajectory-gamma": q.of_weights(lambda W, t: last_reward(W)),
        "remark-4-remax": {"baseline": q.U_greedy[()], "value": q.U[()]},
        "remark-5-advantage": {"ratio": by_token / merged if merged else None},
        "remark-7-same-goal": {"difference": float(np.linalg.norm(exact_goal - approximate_goal))},
        "kl-whole-reward": q.of_weights(lambda W, t: sum(np.log(q.policy_ratio(W, k)) for k in q.steps(W)), q.grad_KL),
    }


# ---------------------------------------------------------------------- practices of the field: advantages


def what_the_field_does(q):
    drawn_mean = sum(q.probability(W, q.colder) * q.RM[W] for W in q.responses)

    def weighed_by_length(R, lengths):
        shifted = R - R[:, :1]
        return shifted - (lengths * shifted).sum(1, keepdims=True) / lengths.sum(1, keepdims=True)

    def weighed_by_length_of_others(R, lengths):
        total, count = (lengths * R).sum(1, keepdims=True), lengths.sum(1, keepdims=True)
        return R - (total - lengths * R) / (count - lengths)

    def best_over_second(R, lengths):
        ranked = np.sort(R, axis=1)
        lead = ranked[:, -1:] - ranked[:, -2:-1]  # 0 where two are best
        return np.where(ranked[:, -1:] == R, lead, 0.0)

    def best_of(table):
        """E max of K rewards: the chance that all are at most x, minus that all are below x."""
        answer, below = 0.0, 0.0
        for x in np.unique(q.reward):
            up_to = sum(q.probability(W, table) for W, reward in zip(q.responses, q.reward, strict=True) if reward <= x)
            answer, below = answer + x * (up_to**q.K - below**q.K), up_to
        return answer

    def shaped(W):
        return q.RM[W] - np.clip((q.size(W) - (q.own_horizon - 2)) / 2, 0, 1)

    def shorter(W):
        return q.RM[W] - 0.1 * q.size(W)

    def expected_reward(of):
        return q.gradient(lambda table: sum(q.probability(W, table) * of(W) for W in q.responses))

    new_gradient = sum(
        q.probability(W, q.pi) * q.gradient(q.total_reward, at=q.after_a_step_on(W)) for W in q.responses
    )

    def prefix_values(group):
        """The mean RM of the group's responses that begin with a prefix."""

        def v(p):
            rewards = [q.RM[W] for W in group if W[: len(p)] == p]
            return sum(rewards) / len(rewards)

        return v

    def prefix_tree(with_outcome):
        def A(group):
            v = prefix_values(group)
            outcome = [with_outcome * (q.RM[W] - np.mean([q.RM[X] for X in group])) for W in group]
            return [
                [a + v(q.state_after(W, t)) - v(W[: t - 1]) for t in q.steps(W)]
                for W, a in zip(group, outcome, strict=True)
            ]

        return A

    return {
        "token-mean-loo": q.of_groups(lambda R, L: q.leave_one_out(R) / L.sum(1, keepdims=True) * q.K),
        "length-normalised-loo": q.of_groups(lambda R, L: q.leave_one_out(R) / L),
        "temperature-mismatch-centred": q.of_weights(lambda W, t: q.RM[W] - drawn_mean, table=q.colder),
        "reinforce++": q.of_groups(lambda R, L: q.whitened_over_tokens(q.centred(R), L)),
        "opo": q.of_groups(weighed_by_length),
        "opo-left-out": q.of_groups(weighed_by_length_of_others),
        "pass-at-k": q.of_groups(best_over_second, target=q.gradient(best_of)),
        "overlong-shaping": q.of_weights(lambda W, t: shaped(W)),
        "overlong-shaping-shaped": q.of_weights(lambda W, t: shaped(W), expected_reward(shaped)),
        "length-penalty": q.of_weights(lambda W, t: shorter(W)),
        "length-penalty-shaped": q.of_weights(lambda W, t: shorter(W), expected_reward(shorter)),
        "tempo-td": of_token_groups(q, prefix_tree(0.0)),
        "tempo": of_token_groups(q, prefix_tree(1.0)),
        "gspo": q.of_groups(lambda R, L: q.grpo(R) / L),
        "ppo-second-epoch-new-theta": q.of_responses(q.second_epoch, new_gradient),
    }


# ---------------------------------------------------------------------- practices of the field: importance weights


def from_another_policy(q, behaviour_logits):
    mu = q.policy_table(np.array([behaviour_logits[prefix] for prefix in q.index], float))

    def rho(W, t, drawn_from):
        row = q.index[W[: t - 1]]
        return q.pi[row, W[t - 1]] / drawn_from[row, W[t - 1]]

    def whole_rho(W):
        return np.prod([rho(W, t, mu) for t in q.steps(W)])

    def A(W):
        return q.RM[W] - q.J

    def cispo(eps_high, drawn_from):
        return q.of_weights(lambda W, t: min(rho(W, t, drawn_from), 1 + eps_high) * A(W), table=drawn_from)

    def sapo(drawn_from):
        """The surrogate is A sigma(tau (rho - 1)) 4 / tau."""

        def weight(W, t):
            tau = SAPO_TAU_POSITIVE if A(W) > 0 else SAPO_TAU_NEGATIVE
            ratio = rho(W, t, drawn_from)
            return slope(lambda c: A(W) * 4 / tau / (1 + np.exp(-tau * (ratio * c - 1))))

        return q.of_weights(weight, table=drawn_from)

    def rows(weight):
        return q.of_weights(weight, table=mu)

    return {
        "mismatch-ignored": rows(lambda W, t: A(W)),
        "mismatch-token": rows(lambda W, t: rho(W, t, mu) * A(W)),
        "mismatch-token-capped": rows(lambda W, t: min(rho(W, t, mu), RATIO_CAP) * A(W)),
        "mismatch-sequence": rows(lambda W, t: whole_rho(W) * A(W)),
        "mismatch-sequence-capped": rows(lambda W, t: min(whole_rho(W), RATIO_CAP) * A(W)),
        "gspo-stale": rows(lambda W, t: whole_rho(W) ** (1 / q.size(W)) * A(W)),
        **{f"cispo{name}": cispo(eps_high, q.pi) for name, eps_high in EPS_HIGH.items()},
        **{f"cispo{name}-stale": cispo(eps_high, mu) for name, eps_high in EPS_HIGH.items()},
        "sapo": sapo(q.pi),
        "sapo-stale": sapo(mu),
    }


# ---------------------------------------------------------------------- practices of the field: KL and entropy


def other_objectives(q):
    def rho_k3(W, t):
        """rho k3 on the policy's own samples: rho = 1, k3 = 1/x - 1 + log x at x = pi/ref."""
        x = q.policy_ratio(W, t)
        return slope(lambda c: c * (1 / (x * c) - 1 + np.log(x * c)))

    def state_chance(p):
        return sum(q.probability(W, q.pi) for W in q.completions(p))

    visits = {p: state_chance(p) for p in q.index if len(p) not in q.environment_at}

    def kl_at_visited_states(table):
        """KL of the next token, summed over the states as the present policy visits them."""
        return sum(
            visit * sum(table[q.index[p], v] * np.log(table[q.index[p], v] / q.ref[q.index[p], v]) for v in range(q.V))
            for p, visit in visits.items()
        )

    def entropy(table):
        """Of what the policy draws."""
        return -sum(
            q.probability(W, table) * np.log(table[q.index[W[: t - 1]], W[t - 1]])
            for W in q.responses
            for t in q.steps(W)
        )

    grad_entropy = q.gradient(entropy)

    def surprise(W, t):
        return -np.log(q.pi[q.index[W[: t - 1]], W[t - 1]])

    def gradient_of_token_entropies(W):
        """sum_t grad H(pi(. | W[:t-1])), the visited prefixes held fixed; at the logits of a state the derivative of H
        is -pi (log pi + H)."""
        g = np.zeros(q.logits.shape)
        for t in q.steps(W):
            p = q.pi[q.index[W[: t - 1]]]
            g[q.index[W[: t - 1]]] -= p * (np.log(p) - p @ np.log(p))
        return g.ravel()

    return {
        "kl-rho-k3-loss": q.of_weights(rho_k3, q.grad_KL),
        "kl-rho-k3-loss-visited": q.of_weights(rho_k3, q.gradient(kl_at_visited_states)),
        "entropy-token-loss": q.of_weights(surprise, grad_entropy),
        "entropy-token-loss, whole distribution": q.of_responses(gradient_of_token_entropies, grad_entropy),
        "entropy-reward": q.of_weights(q.to_go(surprise), grad_entropy),
    }


# ---------------------------------------------------------------------- conversations


def turn_by_turn(q):
    """A turn is what the policy writes before the environment replies, and the reply. Without an environment the
    response is one turn."""

    def turns(W):
        """The policy's steps, turn by turn."""
        answer = []
        for t in q.steps(W):
            if t - 1 in q.steps(W):
                answer[-1].append(t)
            else:
                answer.append([t])
        return answer

    def starts(W):
        return [turn[0] for turn in turns(W)]

    def turn_rewards(W):
        """Discounted rewards of each turn, those of its reply included."""
        bounds = [*starts(W), len(W) + 1]
        return [
            sum(q.gamma ** (k - 1) * q.r(W, k) for k in range(bounds[j], bounds[j + 1])) for j in range(len(bounds) - 1)
        ]

    def spread_over_tokens(W, of_turn):
        return [a for turn, a in zip(turns(W), of_turn, strict=True) for _ in turn]

    def less_mean_of_reached(group):
        """The reward of each turn less its mean over the group's responses that have this turn."""
        rewards = [turn_rewards(W) for W in group]
        means = [np.mean([own[j] for own in rewards if len(own) > j]) for j in range(max(len(own) for own in rewards))]
        return [[reward - mean for reward, mean in zip(own, means)] for own in rewards]

    def reached(group):
        return [spread_over_tokens(W, own) for W, own in zip(group, less_mean_of_reached(group), strict=True)]

    def reached_to_go(group):
        return [
            spread_over_tokens(W, [sum(own[j:]) for j in range(len(own))])
            for W, own in zip(group, less_mean_of_reached(group), strict=True)
        ]

    def others(group):
        """Rewards from the turn on, 0 for a response that has ended."""
        rewards = [turn_rewards(W) for W in group]
        return [
            spread_over_tokens(
                W,
                [
                    sum(own[j:]) - sum(sum(other[j:]) for i, other in enumerate(rewards) if i != k) / (q.K - 1)
                    for j in range(len(own))
                ],
            )
            for k, (W, own) in enumerate(zip(group, rewards, strict=True))
        ]

    return {
        "turn-credit-response": q.of_weights(q.whole),
        "turn-credit-values": q.of_weights(lambda W, t: q.exact_gains(W, starts(W))[q.start_of_segment(t, starts(W))]),
        "turn-credit-reached": of_token_groups(q, reached),
        "turn-credit-reached-to-go": of_token_groups(q, reached_to_go),
        "turn-credit-others": of_token_groups(q, others),
    }


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        instance = json.load(file)
    q = quantities(instance)
    noise = np.random.default_rng(0).normal(0, MISMATCH_NOISE, q.logits.shape)
    opinion = second_edition(q, {p: q.logits[i] + noise[i] for p, i in q.index.items()})
    for name, row in opinion.items():
        figures = (f"{key} {'undefined' if x is None else format(x, '.10g')}" for key, x in row.items())
        print(f"{name:40}" + "  ".join(figures))


if __name__ == "__main__":
    main()
