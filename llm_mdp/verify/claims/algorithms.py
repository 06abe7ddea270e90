"""Rows about the algorithms that the paper surveys, and its own."""

from llm_mdp.verify.claims.claim import Claim, always, biased_from, rloo_as_printed

ALGORITHMS: tuple[Claim, ...] = (
    Claim(
        "reinforce", "algorithms", "REINFORCE: RM(W) ∇log π(W)", "Corollary 1; Williams 1992", always("unbiased"),
        "Corollary 1",
    ),
    Claim(
        "rloo", "algorithms", "RLOO: RMₖ - mean of the other K - 1", "Eq. 37; Ahmadian et al. 2024", always("unbiased"),
        "the other responses know nothing of wₜ",
    ),
    Claim(
        "rloo-eq36", "algorithms", "RLOO as printed: RMₖ - (sum of all K)/(K - 1)", "Eq. 36", rloo_as_printed,
        "the sum contains RMₖ: (K-2)/(K-1) of the gradient is left, none at K = 2",
        repair="leave response k out of its own sum",
    ),
    Claim(
        "remax", "algorithms", "ReMax: RM - RM(greedy response)", "Eq. 38-39; Li et al. 2023", always("unbiased"),
        "the greedy response depends on the prompt alone",
    ),
    Claim(
        "grpo-mean", "algorithms", "GRPO without std: RMₖ - group mean", "Eq. 34-35; Liu et al. 2025",
        always("proportional"),
        "the mean contains RMₖ: (K-1)/K of the gradient is left",
        repair="times K/(K-1) it is rloo; as a learning rate it does not matter",
    ),
    Claim(
        "grpo", "algorithms", "GRPO: (RMₖ - mean)/(std + 1e-4)", "Eq. 34-35; Shao et al. 2024", biased_from(1),
        "the std is correlated with RMₖ; easy and hard groups are weighed up (two-valued rewards, one prompt: the "
        "direction is right)",
        repair="drop the std (grpo-mean, rloo)",
    ),
    Claim(
        "grpo-length", "algorithms", "GRPO as first published: the same, divided by the response's length",
        "Eq. 34; Shao et al. 2024",
        biased_from(1), "the std, and long wrong answers are punished less",
        repair="drop the std and divide by a constant (dr-grpo)",
    ),
    Claim(
        "dr-grpo", "algorithms", "Dr. GRPO: RMₖ - mean, divided by the constant T", "Liu et al. 2025",
        always("proportional"),
        "(K-1)/(K T) of the gradient",
    ),
    Claim(
        "trepo", "algorithms", "TRePO repaired: fresh draws at every step, Û(W₀,ₜ) - Û(W₀,ₜ₋₁)",
        "Algorithm 1, repaired", always("unbiased"),
        "the draws of step t know nothing of wₜ",
    ),
    Claim(
        "trepo-eq31", "algorithms", "TRePO as printed: values pooled over the draws of later steps", "Eq. 31",
        biased_from(2, otherwise="proportional"),
        "a draw W^(k), k > t, contains wₜ, so the pooled baseline cancels part of the signal",
        repair="values from a step's own draws (trepo); to pool, GAE(λ) over them (trepo-lambda)",
    ),
    Claim(
        "trepo-interpolated", "algorithms", "TRePO as printed: steps outside D interpolated linearly",
        "Algorithm 1, line 7", biased_from(3),
        "what is taken from the next segment is a martingale difference: step t keeps 1 - α of its signal",
        repair="one advantage for the whole segment (trepo-segment)",
    ),
    Claim(
        "trepo-segment", "algorithms", "TRePO: every token of a segment gets U(end) - U(start)",
        "Algorithm 1, repaired", always("unbiased"),
        "what the segment's earlier tokens changed is fixed by the prefix",
    ),
    Claim(
        "trepo-lambda", "algorithms", "TRePO: GAE(0.5) over fresh branch means", "Algorithm 1, repaired",
        always("unbiased"),
        "weights fixed in advance pool the draws without looking at wₜ",
        estimator="trepo", options={"lam": 0.5},
    ),
    Claim(
        "trepo-own-length", "algorithms", "TRePO: D placed as a fraction of the response's length",
        "Algorithm 1, line 3", biased_from(4, needs_eos=True),
        "where a segment begins tells how the response will go on: no stopping rule",
        repair="boundaries by stopping rules: every n tokens, separators, drawn in advance",
    ),
    Claim(
        "trepo-greedy-values", "algorithms", "TRePO: greedy draws (temperature 0) on both sides",
        "Algorithm 1, line 4", biased_from(2),
        "greedy continuations have another value than the policy's own",
        repair="draw from the policy itself; greedy draws for the baseline only",
    ),
    Claim(
        "trepo-greedy-baseline", "algorithms", "U(W₀,ₜ) - U_greedy(W₀,ₜ₋₁)", "Algorithm 1, line 4", always("unbiased"),
        "any function of the prefix is a baseline (Lemma 2)",
    ),
    Claim(
        "vineppo", "algorithms", "VinePPO: branch means every 2 tokens, segment advantages", "Kazemnejad et al. 2024",
        always("unbiased"),
        "fresh branches, boundaries by a stopping rule; no whitening",
    ),
    Claim(
        "ma-rlhf", "algorithms", "MA-RLHF: macro actions of 2 tokens, exact value a macro, λ = 0.95",
        "Chai et al. 2024", always("unbiased"),
        "GAE over segments that a stopping rule marks",
    ),
    Claim(
        "r3hf", "algorithms", "R3HF: rₜ = RM(sₜ₊₁) - RM(sₜ), return-to-go", "Eq. 43", always("unbiased"),
        "causal, and telescopes to RM(W) - RM(sₜ): a baseline",
    ),
    Claim(
        "abc-return-to-go", "algorithms", "ABC: rₜ = RM/len (uniform attention), return-to-go",
        "Eq. 42; Chan et al. 2024", biased_from(2),
        "the shares depend on the whole response, so past ones may not be dropped",
        repair="sum all of them (abc-full-sum)",
    ),
    Claim(
        "abc-full-sum", "algorithms", "ABC: the same rewards, all of them summed", "Eq. 42, repaired",
        always("unbiased"),
        "the shares sum to RM(W)",
        estimator="abc",
    ),
    Claim(
        "rto", "algorithms", "RTO: rₜ = β log(π*/ref) at the DPO optimum, return-to-go", "Eq. 41; Zhong et al. 2024",
        always("unbiased"),
        "the rewards sum to RM(W) minus a constant of the prompt, and are causal",
    ),
    Claim(
        "rto-eq41", "algorithms", "RTO as printed: rₜ = π*/ref, return-to-go", "Eq. 41", biased_from(1),
        "ratios, not their logarithms, are summed: another reward",
        repair="β log(π*/ref)",
    ),
    Claim(
        "prime", "algorithms",
        "PRIME: implicit process rewards at the cross-entropy optimum plus leave-one-out outcome",
        "Eq. 44-45; Cui et al. 2025",
        always("report"), "follows the outcome 1[RM > median] and its smoothed logit, not RM (labels seen with 5 % "
        "noise)",
    ),
    Claim(
        "dpo-optimum", "algorithms", "the minimiser of the population DPO loss is ref exp(RM/β)/Z",
        "Eq. 40; Rafailov et al. 2023", always("holds"),
        "minimised by Newton's method over all pairs, compared with the closed form",
    ),
)  # fmt: skip
