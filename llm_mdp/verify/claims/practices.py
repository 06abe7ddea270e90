"""Rows about the field's habits."""

from llm_mdp.verify.claims.claim import (
    Claim,
    always,
    biased_from,
    fixed_length_shrinks,
    tempo_difference,
    where_lengths_differ,
)
from llm_mdp.verify.statements import second_epoch_at_its_policy

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
        "length-normalised-loo", "practices", "leave-one-out advantage, mean over a response's tokens",
        "reduction sequence_mean; GRPO as first published", fixed_length_shrinks,
        "long responses count less, whether good or bad", repair="sum, or divide by a constant",
    ),
    Claim(
        "length-normalised", "practices", "RM/len, the raw reward: mean over a response's tokens, no baseline",
        "reduction sequence_mean", fixed_length_shrinks,
        "long responses count less", repair="sum, or divide by a constant",
    ),
    Claim(
        "token-mean-loo", "practices", "leave-one-out advantages, sum over the group divided by its number of tokens",
        "reduction token_mean; DAPO", fixed_length_shrinks,
        "the divisor is correlated with the responses it divides, less and less as the group grows",
        repair="divide by a constant",
    ),
    Claim(
        "token-mean", "practices", "raw reward, no baseline: sum over the group divided by its number of tokens",
        "reduction token_mean; DAPO", fixed_length_shrinks,
        "the divisor is correlated with the responses it divides, and without a baseline that is most of what is left",
        repair="a baseline first (token-mean-loo); divide by a constant",
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
        "temperature-mismatch-centred", "practices",
        "drawn at temperature 0.6, scored at 1, A = RM less its mean at 0.6", "common default", biased_from(1),
        "the samples come from another policy than the one differentiated",
        repair="divide the logits by the temperature in both places",
    ),
    Claim(
        "temperature-mismatch", "practices", "the same with the raw reward, A = RM", "common default", biased_from(1),
        "the samples come from another policy than the one differentiated, and under it E ∇log π is not 0, so the raw "
        "reward's level counts too",
        repair="divide the logits by the temperature in both places",
    ),
    Claim(
        "ppo-second-epoch", "practices",
        "clipped surrogate (ε = 0.2) after one update of step size 0.5 on the same samples, A = RM",
        "Eq. 33; Schulman et al. 2017",
        biased_from(1), "the samples have shaped the policy that they now judge",
        repair="one update a batch, or small steps and fresh samples",
    ),
    Claim(
        "ppo-second-epoch-new-theta", "practices",
        "the same second update, compared with ∇J at the policies it is taken at", "Eq. 33; Schulman et al. 2017",
        always("report"),
        "each update moves the policy along its own samples, so the new policies' gradients do not explain it either",
        figure=second_epoch_at_its_policy,
    ),
    Claim(
        "reinforce++", "practices",
        "REINFORCE++: RMₖ - group mean, normalised over the tokens of the batch's P prompts, P = 1 unless stated",
        "Hu et al. 2025", biased_from(1),
        "with one prompt it is remark-4-whitening, for a constant shift is normalised away; with many the error of the "
        "direction falls like 1/P (--prompts), that of the length stays",
        repair="many prompts a batch; leave-one-out mean (rloo)",
    ),
    Claim(
        "opo", "practices", "OPO: RMₖ - Σ len RM / Σ len over the group", "Hao et al. 2025",
        where_lengths_differ("proportional"),
        "the response's own reward is in its baseline, with a weight that its own length decides",
        repair="leave it out (opo-left-out)",
    ),
    Claim(
        "opo-left-out", "practices", "OPO, the response itself left out of both sums", "Hao et al. 2025, repaired",
        always("unbiased"), "the other responses know nothing of wₜ",
    ),
    Claim(
        "pass-at-k", "practices", "pass@k: best of the group - second best, for the best response",
        "target ∇E max of K; Walder and Karkhanis 2025", always("proportional"),
        "the best of the others is a baseline that knows nothing of W: summed over the group it is exact, the mean "
        "over the group leaves 1/K",
        repair="times K; as a learning rate it does not matter", target="max of K",
    ),
    Claim(
        "overlong-shaping", "practices", "RM - clip((len - (T - 2))/2, 0, 1), against ∇J of RM alone",
        "DAPO, Yu et al. 2025", where_lengths_differ(), "another objective: responses close to the cap are punished",
        repair="say that this is the objective (overlong-shaping-shaped)",
    ),
    Claim(
        "overlong-shaping-shaped", "practices", "the same, against ∇ of the shaped reward", "DAPO, Yu et al. 2025",
        always("unbiased"), "a response-level reward like any other (Corollary 1)",
        target="reward - overlong", estimator="overlong-shaping",
    ),
    Claim(
        "length-penalty", "practices", "RM - 0.1 len, against ∇J of RM alone", "common practice",
        where_lengths_differ(), "another objective: tokens cost",
        repair="say that this is the objective (length-penalty-shaped)",
    ),
    Claim(
        "length-penalty-shaped", "practices", "the same, against ∇ of the shaped reward", "common practice",
        always("unbiased"), "a response-level reward like any other (Corollary 1)",
        target="reward - 0.1 length", estimator="length-penalty",
    ),
    Claim(
        "tempo", "practices", "TEMPO: RMₖ - group mean + v̂(W₀,ₜ) - v̂(W₀,ₜ₋₁), v̂ = the prefix's mean in the group",
        "Tran et al. 2025, without std", tempo_difference(2.0),
        "the prefix's mean holds the response's own reward, and a prefix that nobody shares has no baseline left",
        repair="leave-one-out mean (rloo); fresh draws for the prefix (trepo, vineppo)",
    ),
    Claim(
        "tempo-td", "practices", "TEMPO's temporal difference alone: v̂(W₀,ₜ) - v̂(W₀,ₜ₋₁)",
        "Tran et al. 2025", tempo_difference(1.0),
        "the prefix's mean holds the response's own reward; where no other response shares the prefix the difference "
        "is 0, whatever the token did",
        repair="leave-one-out mean (rloo); fresh draws for the prefix (trepo, vineppo)",
    ),
)  # fmt: skip
