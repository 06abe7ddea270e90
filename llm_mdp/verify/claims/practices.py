"""Rows about the field's habits."""

from llm_mdp.verify.claims.claim import Claim, always, biased_from, fixed_length_shrinks

PRACTICES: tuple[Claim, ...] = (
    Claim(
        "kl-k1-reward", "practices", "KL penalty k1 = log π/ref as a token reward", "target ∇KL(π‖ref)",
        always("unbiased"),
        "KL is the expected sum of k1, and E ∇k1 = 0", target="kl",
    ),
    Claim(
        "kl-k1-loss", "practices", "k1 added to the loss", "target ∇KL(π‖ref)", biased_from(1),
        "its expected gradient is E ∇log π = 0: the penalty does nothing",
        repair="k1 in the reward", target="kl",
    ),
    Claim(
        "kl-k2-loss", "practices", "k2 = (log π/ref)²/2 added to the loss", "target ∇KL(π‖ref)", biased_from(2),
        "right for each state, but blind to which states the policy will visit",
        repair="k1 in the reward", target="kl",
    ),
    Claim(
        "kl-k3-loss", "practices", "k3 = ref/π - 1 - log ref/π added to the loss (GRPO)", "target ∇KL(π‖ref)",
        biased_from(1),
        "its expected gradient is that of the reverse divergence KL(ref‖π), state by state", repair="k1 in the reward",
        target="kl",
    ),
    Claim(
        "kl-k3-reward", "practices", "k3 as a token reward", "target ∇KL(π‖ref)", biased_from(1),
        "E k3 = KL, but k3 itself depends on π and that part is not differentiated", repair="k1 in the reward",
        target="kl",
    ),
    Claim(
        "kl-whole-reward", "practices", "k1 of the whole response, log π(W)/ref(W), on each of its tokens",
        "target ∇KL(π‖ref)", always("unbiased"),
        "a response-level reward like any other (Corollary 1), and E ∇log π(W) = 0",
        paper="“This penalty can be applied at the token level or the response level”", finding="agrees", target="kl",
    ),
    Claim(
        "kl-rho-k3-loss", "practices", "ρ k3 added to the loss, ρ = π/π_old differentiated too (“unbiased KL”)",
        "target ∇KL(π‖ref); DeepSeek-V3.2 2025", biased_from(2),
        "at ρ = 1 the derivative of ρ k3 is k3 + k3' = log π/ref, that of k2: blind to which states the policy will "
        "visit",
        repair="k1 in the reward", target="kl",
    ),
    Claim(
        "kl-rho-k3-loss-visited", "practices", "the same, against the divergence at the visited prefixes, held fixed",
        "target E Σₜ ∇KL(π(·|W₀,ₜ₋₁)‖ref); DeepSeek-V3.2 2025", always("unbiased"),
        "state by state, E log π/ref ∇log π is ∇KL: this is what is unbiased about it",
        target="kl at visited states", estimator="kl-rho-k3-loss",
    ),
    Claim(
        "entropy-reward", "practices", "entropy bonus: -log π(wₜ) as a token reward",
        "target ∇ of the response's entropy",
        always("unbiased"),
        "the entropy is the expected sum of -log π, and E ∇log π = 0", target="entropy",
    ),
    Claim(
        "entropy-token-loss", "practices", "entropy bonus: each token's entropy added to the loss (common default)",
        "target ∇ of the response's entropy", biased_from(2),
        "right for each state, but blind to the entropy of the states that a token leads to",
        repair="-log π in the reward (entropy-reward)", target="entropy",
    ),
    Claim(
        "length-normalised", "practices", "RM/len: mean over a response's tokens", "reduction sequence_mean",
        fixed_length_shrinks,
        "long responses count less", repair="sum, or divide by a constant",
    ),
    Claim(
        "token-mean", "practices", "sum over the group divided by its number of tokens", "reduction token_mean; DAPO",
        fixed_length_shrinks,
        "the divisor is correlated with the responses it divides", repair="divide by a constant",
    ),
    Claim(
        "masked-truncated", "practices", "responses that hit the length cap left out of the loss",
        "overlong filtering", biased_from(1),
        "the policy is not told what happens at the cap", repair="keep them, with the reward they earned",
    ),
    Claim(
        "zero-std-filtered", "practices", "RLOO, groups of equal rewards left out of the average",
        "dynamic sampling; DAPO", always("report"),
        "those groups have no gradient, so leaving them out divides by the fraction of groups with signal",
        repair="keep them in the denominator",
    ),
    Claim(
        "temperature-mismatch", "practices", "responses drawn at temperature 0.6, scored at 1", "common default",
        biased_from(1),
        "the samples come from another policy than the one differentiated",
        repair="divide the logits by the temperature in both places",
    ),
    Claim(
        "ppo-second-epoch", "practices",
        "clipped surrogate (ε = 0.2) after one update of step size 0.5 on the same samples, A = RM", "Eq. 32",
        biased_from(1), "the samples have shaped the policy that they now judge",
        repair="one update a batch, or small steps and fresh samples",
    ),
)  # fmt: skip
