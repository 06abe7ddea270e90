"""A made-up ledger with every claim id, for tests of the reports. Its figures are invented, but consistent with each other."""

import itertools
import math
import random

CLAIMS = """
theorems | lemma-1 | unbiased | γᵗ⁻¹ Q(W₀,ₜ₋₁, wₜ) weights step t | Lemma 1, Eq. 4
theorems | lemma-2 | unbiased | any c(W₀,ₜ₋₁) may be added to the weight of step t | Lemma 2
theorems | theorem-1 | unbiased | U(W₀,ₜ), the expected response reward given the prefix, weights step t | Theorem 1, Eq. 21
theorems | theorem-2 | unbiased | U(W₀,ₜ) - U(W₀,ₜ₋₁) weights step t | Theorem 2, Eq. 28
theorems | corollary-1 | unbiased | the response-level reward RM(W) weights every step | Corollary 1, Eq. 27
theorems | remark-2-return-to-go | unbiased | γᵗ⁻¹ Gₜ of the hidden token rewards | Remark 2
theorems | remark-3-undiscounted | biased | Gₜ without the weight γᵗ⁻¹ | Remark 3, Eq. 26
theorems | remark-4-whitening | biased | advantage normalisation does not change the expected policy gradient | Remark 4
theorems | actor-critic | unbiased | reward on the last token only, exact critic of that process | Trajectory Policy Gradient Theorem
theorems | remark-5-merged | unbiased | half of every token reward observed, all merged into RM | Remark 5, Eq. 30
theorems | remark-5-token-level | unbiased | token-level half as return-to-go, response-level half as a whole | Remark 5
theorems | gae-exact-0 | unbiased | GAE(0), exact values | Remark 6
theorems | gae-exact-0.95 | unbiased | GAE(0.95), exact values | Remark 6
theorems | gae-exact-1 | unbiased | GAE(1), exact values | Remark 6
theorems | gae-wrong-0 | biased | GAE(0) with a wrong critic | Remark 6
theorems | gae-wrong-0.95 | biased | GAE(0.95) with a wrong critic | Remark 6
theorems | gae-wrong-1 | unbiased | GAE(1) with a wrong critic | Remark 6
theorems | gae-discounted | biased | GAE with γ = 0.9 on a reward at the last token | Eq. 33
algorithms | reinforce | unbiased | RM(W) weights every step | Williams 1992
algorithms | rloo | unbiased | RM minus the mean of the other responses | Ahmadian et al. 2024, Eq. 1
algorithms | rloo-eq36 | proportional | RM minus the sum of all K divided by K - 1, as printed | the paper, Eq. 36
algorithms | remax | unbiased | RM minus the reward of the greedy response | Li et al. 2024; the paper, Eq. 38
algorithms | grpo-mean | proportional | RM minus the group mean | the paper, Eq. 34, without the division
algorithms | grpo | biased | (RM - mean) / (std + 1e-4) over the group | Shao et al. 2024; the paper, Eq. 34
algorithms | grpo-length | biased | the same divided by the length of the response | Shao et al. 2024, Eq. 3
algorithms | dr-grpo | proportional | RM minus the group mean, divided by the horizon | Liu et al. 2025
algorithms | trepo | unbiased | TRePO with fresh draws for the baseline, D = every step | the project's repair of Algorithm 1
algorithms | trepo-eq31 | biased | TRePO with pooled draws, D = every step | the paper, Eq. 31
algorithms | trepo-interpolated | biased | TRePO, D = {1, 3, …}, advantages interpolated linearly | the paper, Algorithm 1
algorithms | trepo-segment | unbiased | TRePO, the same D, one advantage a segment | the project's repair
algorithms | trepo-lambda | unbiased | GAE(0.5) over fresh branch means | the project's repair
algorithms | trepo-own-length | biased | D placed at half of the response's own length | the paper, Algorithm 1
algorithms | trepo-greedy-values | biased | greedy completions instead of draws, in Q and in the baseline | the paper, Algorithm 1
algorithms | trepo-greedy-baseline | unbiased | greedy completions in the baseline only | the project's repair
algorithms | vineppo | unbiased | branch means at boundaries every 2 tokens | Kazemnejad et al. 2024
algorithms | ma-rlhf | unbiased | macros of 2 tokens, exact values, λ = 0.95 over macros | Chai et al. 2024
algorithms | r3hf | unbiased | differences of the reward model on prefixes, return-to-go | the paper, Eq. 43
algorithms | abc-return-to-go | biased | attention-weighted rewards, return-to-go | the paper, Eq. 42
algorithms | abc-full-sum | unbiased | attention-weighted rewards, all of them summed | the project's repair
algorithms | rto | unbiased | β log(π*/ref) as token reward | Zhong et al. 2024
algorithms | rto-eq41 | biased | π*/ref as token reward | the paper, Eq. 41
algorithms | prime | report | implicit token rewards plus a leave-one-out outcome | the paper, Eq. 44–45
algorithms | dpo-optimum | holds | the DPO minimiser equals ref exp(RM/β)/Z | the paper, Eq. 40
practices | kl-k1-reward | unbiased | log(π/ref) in the reward | Schulman 2020
practices | kl-k1-loss | biased | log(π/ref) as a loss per token | Schulman 2020
practices | kl-k2-loss | biased | ½ log²(π/ref) as a loss per token | Schulman 2020
practices | kl-k3-loss | biased | ref/π - 1 - log(ref/π) as a loss per token | Schulman 2020
practices | kl-k3-reward | biased | the same in the reward | Schulman 2020
practices | length-normalised | biased | RM divided by the response's own length | common
practices | token-mean | biased | the loss averaged over all tokens of the group | common
practices | masked-truncated | biased | responses that hit the horizon are masked | DAPO, "overlong filtering"
practices | zero-std-filtered | report | groups with equal rewards are left out of the average | DAPO, "dynamic sampling"
practices | temperature-mismatch | biased | responses drawn at temperature 0.6, scored at 1 | common
practices | ppo-second-epoch | biased | a second epoch of the clipped surrogate on the same samples | Schulman et al. 2017
"""

REASONS = {
    "unbiased": "the weight of step t differs from U(W₀,ₜ) only by what the prefix W₀,ₜ₋₁ already fixes, and that has mean zero against the score",
    "proportional": "each response is in its own baseline, which takes away a constant share of the gradient",
    "biased": "the weight of step t depends on wₜ beyond the reward, so part of the signal is cancelled, a different part at every prefix",
    "holds": "the two distributions agree in every log-probability",
    "fails": "the two distributions differ",
    "undecided": "the confidence interval still holds both verdicts; draw more samples",
    "not computed": "this estimator needs one reward for every prefix, which an n-gram instance does not list",
}

INSTANCES = [
    dict(vocab_size=3, horizon=3, gamma=1.0, policy="tabular"),
    dict(vocab_size=2, horizon=4, gamma=0.7, policy="tabular"),
    dict(vocab_size=4, horizon=3, gamma=0.9, policy="ngram", prompts=2),
    dict(vocab_size=3, horizon=3, gamma=1.0, policy="transformer"),
    dict(vocab_size=4, horizon=5, gamma=1.0, policy="tabular"),
]


def instance_file(rng: random.Random, vocab_size: int, horizon: int, gamma: float, prompts: int = 1) -> dict:
    """A random instance file with one node for every prefix (of every prompt)."""

    def node(prompt: int, prefix: tuple[int, ...]) -> dict:
        entry = {
            "prefix": list(prefix),
            "logits": [rng.gauss(0, 1) for _ in range(vocab_size)],
            "token_reward": [rng.gauss(0, 1) for _ in range(vocab_size)],
            "reference_logits": [0.0] * vocab_size,
            "value": rng.gauss(0, 1),
        }
        return entry | {"prompt": prompt} if prompts > 1 else entry

    prefixes = [prefix for length in range(horizon) for prefix in itertools.product(range(1, vocab_size), repeat=length)]
    instance = {"vocab_size": vocab_size, "eos": 0, "horizon": horizon, "gamma": gamma}
    if prompts > 1:
        instance["prompts"] = [{"tokens": [prompt], "probability": 1 / prompts} for prompt in range(prompts)]
    return instance | {"nodes": [node(prompt, prefix) for prompt in range(prompts) for prefix in prefixes]}


def claim(rng: random.Random, line: str, sampled: bool, gamma: float) -> tuple[str, dict]:
    """One claim's object; relative bias, scale and cosine belong to one vector."""
    group, claim_id, expected, statement, source = (cell.strip() for cell in line.split(" | "))
    if claim_id == "remark-3-undiscounted" and gamma == 1:
        expected = "unbiased"
    verdict = "biased" if expected == "report" else expected
    along, across = {"unbiased": (1.0, 0.0), "proportional": (2 / 3, 0.0)}.get(verdict, (rng.gauss(0.8, 0.5), rng.expovariate(2)))
    noise = rng.uniform(1e-3, 5e-3) if sampled else rng.uniform(1e-16, 9e-16)
    figures = {
        "relative_bias": math.hypot(along - 1, across) + noise,
        "scale": along + noise,
        "cosine": along / math.hypot(along, across),
        "trace_covariance": rng.lognormvariate(0, 1.5),
    }
    if claim_id == "kl-k1-loss":
        figures |= {"relative_bias": 1.0, "scale": 0.0, "cosine": None}
    if verdict == "holds":
        figures = dict.fromkeys(figures)
    body = {"group": group, "verdict": verdict, "expected": expected, "holds": None if expected == "report" else True, **figures}
    repair = "use the leave-one-out mean; it costs nothing" if verdict in ("biased", "proportional") else None
    body |= {"statement": statement, "source": source, "reason": REASONS[verdict], "repair": repair}
    if sampled:
        bound = figures["relative_bias"] or 0.0
        text = f"relative bias below {bound + 0.01:.3f} with 99 % confidence"
        body |= {"bound": bound + 0.01, "confidence": 0.9999, "samples": 1_000_000, "certificate": text}
    return claim_id, body


def set_verdict(document: dict, number: int, claim_id: str, verdict: str, holds: bool | None) -> None:
    """Change one verdict of one instance; a claim that is not computed has no figures."""
    body = document["instances"][number]["claims"][claim_id]
    body.update(verdict=verdict, holds=holds, reason=REASONS[verdict])
    if verdict == "not computed":
        body.update(relative_bias=None, scale=None, cosine=None, trace_covariance=None)


def single_document(seed: int = 0, sampled: bool = False, number: int = 0) -> dict:
    """The document of one instance."""
    rng = random.Random(seed + number)
    setting = dict(INSTANCES[number])
    policy = setting.pop("policy")
    instance = instance_file(rng, **setting)
    gradient = [rng.gauss(0, 0.2) for node in instance["nodes"] for _ in node["logits"]]
    return {
        "instance": instance,
        "name": f"V={instance['vocab_size']} T={instance['horizon']} γ={instance['gamma']:g}" + (" 2 prompts" if "prompts" in instance else ""),
        "policy": policy,
        "mode": "sampled" if sampled else "exact",
        "group_size": 3,
        "beta": 0.7,
        "seed": 0,
        "version": "0.1.0",
        "command": "llm-mdp verify --seed 0" + (" --sampled 1000000" if sampled else ""),
        "J": rng.gauss(0, 1),
        "grad_norm": math.sqrt(sum(x * x for x in gradient)),
        "gradient": gradient,
        "claims": dict(claim(rng, line, sampled, instance["gamma"]) for line in CLAIMS.strip().splitlines()),
    }


def several_document(sampled: bool = False) -> dict:
    """The document of five instances, with two contradictions, one undecided verdict and one that was not computed."""
    document = {"instances": [single_document(0, sampled, number) for number in range(len(INSTANCES))]}
    set_verdict(document, 1, "remax", "biased", False)
    document["instances"][1]["claims"]["remax"].update(relative_bias=0.31, scale=0.79, cosine=0.961)
    set_verdict(document, 4, "trepo-own-length", "unbiased", False)
    set_verdict(document, 2, "abc-full-sum", "undecided", None)
    set_verdict(document, 3, "vineppo", "not computed", None)
    return document
