"""Rows about the algorithms that the paper surveys, and its own."""

from llm_mdp.verify.claims.claim import Claim, always, biased_from, interpolated_values, rloo_as_printed
from llm_mdp.verify.statements import dpo_optimum

TOKEN_LEVEL = "“such as GRPO, ReMax, RLOO, have the capability of token-level modeling” (Corollary 1)"
POOLING = (
    "“Since any W⁽ᵏ⁾ is also one W⁽ᵗ⁾ s.t. t<=k, we use this formula to calculate the expectation” (Eq. 31): as a "
    "number it is right where lengths are fixed"
)
INTERPOLATION = (
    "“performing linear interpolation using the information in F2 from two nearest time steps from D” (Algorithm 1, "
    "line 7), among “several approximation techniques to enable efficient implementation” (Section 1)"
)
TEMPERATURES = (
    "“sample predefined number M of full trajectories …, by increasing inference temperature from zero” (Algorithm 1, "
    "line 4), “To improve the efficiency” (Section 3.2)"
)
STEPS = "“time steps t from random samples or application-specific designation” (Algorithm 1, line 3)"
HEURISTIC = (
    "“the partial-reward assumption is largely heuristic, even though it does provide token-level rewards in form” "
    "(Section 1)"
)

ALGORITHMS: tuple[Claim, ...] = (
    Claim(
        "reinforce", "algorithms", "REINFORCE: RM(W) ∇log π(W)", "Corollary 1; Williams 1992", always("unbiased"),
        "RM(W) is one draw of U(W₀,ₜ), so the paper's ≈ is an equality",
        paper="“≈ E_W Σₜ RM(W) ∇log π” (Eq. 27), “though there exists an apparent margin of error” (proof of Corollary "
        "1)", finding="stronger than stated",
    ),
    Claim(
        "rloo", "algorithms", "RLOO: RMₖ - mean of the other K - 1", "Corollary 1; Ahmadian et al. 2024",
        always("unbiased"),
        "the other responses know nothing of wₜ",
        paper=TOKEN_LEVEL, finding="agrees",
    ),
    Claim(
        "rloo-eq36", "algorithms", "RLOO as printed: RMₖ - (sum of all K)/(K - 1)", "Eq. 36", rloo_as_printed,
        "the sum contains RMₖ: (K-2)/(K-1) of the gradient is left, none at K = 2",
        repair="leave response k out of its own sum",
        paper="“use the Leave-One-Out method to estimate the baseline” (Section 4.1), and then bₖ = Σ rₖ / (K - 1) "
        "over all K (Eq. 36; Eq. 37 repeats it)", finding="misprint",
    ),
    Claim(
        "remax", "algorithms", "ReMax: RM - RM(greedy response)", "Eq. 38-39; Li et al. 2023", always("unbiased"),
        "the greedy response depends on the prompt alone",
        paper=TOKEN_LEVEL, finding="agrees",
    ),
    Claim(
        "grpo-mean", "algorithms", "GRPO without std: RMₖ - group mean", "Eq. 34, its numerator; Liu et al. 2025",
        always("proportional"),
        "the mean contains RMₖ: (K-1)/K of the gradient is left",
        repair="times K/(K-1) it is rloo; as a learning rate it does not matter",
    ),
    Claim(
        "grpo", "algorithms", "GRPO: (RMₖ - mean)/(std + 1e-4)", "Eq. 34; Shao et al. 2024", biased_from(1),
        "the std is correlated with RMₖ; easy and hard groups are weighed up (two-valued rewards, one prompt: the "
        "direction is right)",
        repair="drop the std (grpo-mean, rloo)",
        paper="“REINFORCE-based RL algorithms, such as GRPO” (Corollary 1); Eq. 34 divides by “STD” and does not meet "
        "Definition 1, “an unbiased estimator of Lemma 1”", finding="differs",
    ),
    Claim(
        "grpo-length", "algorithms", "GRPO as first published: the same, divided by the response's length",
        "Shao et al. 2024",
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
        paper="“TRePO, direct implementation of Theorem 2” (Remark 7)", finding="agrees",
    ),
    Claim(
        "trepo-eq31", "algorithms", "TRePO as printed: values pooled over the draws of later steps and W itself",
        "Eq. 31, W counted among the draws",
        biased_from(2, otherwise="proportional"),
        "a draw W^(k), k > t, contains wₜ, so the pooled baseline cancels part of the signal: at fixed length T step t "
        "keeps 1/(T - t + 2) of it",
        repair="values from a step's own draws (trepo); to pool, GAE(λ) over them (trepo-lambda)",
        paper=POOLING, finding="differs",
    ),
    Claim(
        "trepo-eq31-without-w", "algorithms", "the same, pooled over drawn responses alone",
        "Eq. 31, W not counted among the draws", biased_from(2),
        "a draw W^(k), k > t, contains wₜ: at fixed length T step t keeps 1/(T - t + 1) of its signal",
        repair="values from a step's own draws (trepo); to pool, GAE(λ) over them (trepo-lambda)",
        paper=POOLING, finding="differs",
    ),
    Claim(
        "trepo-interpolated", "algorithms", "TRePO as printed: steps outside D interpolated linearly",
        "Algorithm 1, line 7", biased_from(3),
        "what is taken from the next segment is a martingale difference: step t keeps 1 - α of its signal",
        repair="one advantage for the whole segment (trepo-segment)",
        paper=INTERPOLATION, finding="differs",
    ),
    Claim(
        "trepo-interpolated-values", "algorithms", "the same with values interpolated: a segment's advantage over its "
        "length, on each of its tokens", "Algorithm 1, line 7", interpolated_values,
        "the last segment is as long as the response makes it; segments of n tokens keep 1/n",
        repair="one advantage for the whole segment (trepo-segment)", paper=INTERPOLATION, finding="differs",
    ),
    *(
        Claim(
            f"trepo-algorithm-1-m{branches}", "algorithms",
            f"Algorithm 1, everything as printed, D = {{1, 3, 5, …}}, M = {branches}: temperatures {temperatures}",
            "Algorithm 1", biased_from(3, otherwise="proportional"),
            "Eq. 31's pooling, interpolation between steps, and draws at other temperatures than the policy's",
            repair="fresh draws of the policy's own at every boundary, one advantage for a segment (trepo)",
            paper="“Based on Theorem 2, we propose a general token-level algorithm, TRePO” (Section 3.2)",
            finding="differs", estimator="trepo-paper", options={"branches": branches},
        )
        for branches, temperatures in ((1, "0"), (2, "0, 1"), (4, "0, 1/3, 2/3, 1"))
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
        "a practice: steps by the finished response", biased_from(4, needs_eos=True),
        "where a segment begins tells how the response will go on: no stopping rule",
        repair="boundaries by stopping rules: every n tokens, separators, drawn in advance",
    ),
    Claim(
        "trepo-random-step", "algorithms", "TRePO: D = {1, d}, d drawn from 1 … T in advance, averaged over d",
        "Algorithm 1, line 3", always("unbiased"),
        "what is drawn before the response is seen knows nothing of it", paper=STEPS, finding="agrees",
    ),
    Claim(
        "trepo-random-step-of-response", "algorithms",
        "TRePO: D = {1, d}, d drawn from the response's own 1 … len, averaged over d",
        "Algorithm 1, line 3, T “the number of output tokens in W”", biased_from(3, needs_eos=True),
        "where a segment begins tells how long the response is: no stopping rule",
        repair="draw the steps in advance (trepo-random-step)", paper=STEPS, finding="differs",
    ),
    Claim(
        "trepo-greedy-values", "algorithms", "TRePO: greedy draws (temperature 0) on both sides",
        "Algorithm 1, line 4", biased_from(2),
        "greedy continuations have another value than the policy's own",
        repair="draw from the policy itself; greedy draws for the baseline only",
        paper=TEMPERATURES + "; this row is its start, temperature 0 alone", finding="differs",
    ),
    Claim(
        "trepo-greedy-ramp", "algorithms", "TRePO: draws at temperatures 0, 1/3, 2/3 and 1 on both sides",
        "Algorithm 1, line 4", biased_from(2),
        "draws at other temperatures have another value than the policy's own",
        repair="draw from the policy itself; other temperatures for the baseline only", paper=TEMPERATURES,
        finding="differs",
    ),
    Claim(
        "trepo-greedy-baseline", "algorithms", "U(W₀,ₜ) - U_greedy(W₀,ₜ₋₁)", "Algorithm 1, line 4", always("unbiased"),
        "any function of the prefix is a baseline (Lemma 2)",
        paper="“a greedy sampling strategy, which is adopted in ReMax” (Section 3.2)", finding="agrees",
    ),
    Claim(
        "vineppo", "algorithms", "VinePPO: branch means every 2 tokens, segment advantages", "Kazemnejad et al. 2024",
        always("unbiased"),
        "fresh branches, boundaries by a stopping rule; no whitening",
        paper="“uses sampling to derive the same algorithm as our TRePO” (Remark 8)", finding="agrees",
    ),
    Claim(
        "ma-rlhf", "algorithms", "MA-RLHF: macro actions of 2 tokens, exact value a macro, λ = 0.95",
        "Chai et al. 2024", always("unbiased"),
        "GAE over segments that a stopping rule marks",
        paper="“merges tokens into macro actions to reduce decision resolution” (Section 6)", finding="agrees",
    ),
    Claim(
        "r3hf", "algorithms", "R3HF: rₜ = RM(sₜ₊₁) - RM(sₜ), return-to-go", "Eq. 43", always("unbiased"),
        "causal, and telescopes to RM(W) - RM(sₜ): a baseline, so no assumption on partial responses is needed",
        paper="“can implicitly examine the quality of a partial trajectory” (Eq. 43)", finding="stronger than stated",
    ),
    Claim(
        "abc-return-to-go", "algorithms", "ABC: rₜ = RM/len (uniform attention), return-to-go",
        "Eq. 42; Chan et al. 2024", biased_from(2),
        "the shares depend on the whole response, so past ones may not be dropped",
        repair="sum all of them (abc-full-sum)",
        paper=HEURISTIC + "; Eq. 42", finding="agrees",
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
        paper="“DPO-enhanced KL rewards in RTO” (Section 3.2)", finding="agrees",
    ),
    Claim(
        "rto-eq41", "algorithms", "RTO as printed: rₜ = π*/ref, return-to-go", "Eq. 41", biased_from(1),
        "ratios, not their logarithms, are summed: another reward",
        repair="β log(π*/ref)",
        paper="r = π_DPO / π_ref (Eq. 41), where Zhong et al. 2024 and “DPO-enhanced KL rewards” (Section 3.2) have "
        "the logarithm", finding="misprint",
    ),
    Claim(
        "prime", "algorithms",
        "PRIME: rₜ = β log(φ/ref) at the cross-entropy optimum (Eq. 44 corrected) plus leave-one-out outcome",
        "Eq. 44-45; Cui et al. 2025",
        always("report"), "follows the outcome 1[RM > median] and its smoothed logit, not RM (labels seen with 5 % "
        "noise). Two things are as in the original and not as printed: the logarithm and β, and the leave-one-out "
        "outcome, which the paper leaves out",
        paper="r = π_φ / π_ref (Eq. 44), “defined similarly to that is RTO” (Section 4.2)", finding="misprint",
    ),
    Claim(
        "dpo-optimum", "algorithms", "the minimiser of the population DPO loss is ref exp(RM/β)/Z",
        "Eq. 40; Rafailov et al. 2023", always("holds"),
        "minimised by Newton's method over all pairs, compared with the closed form",
        paper="“its raw objective before the transformation is equivalent to Corollary 1 with an extra KL loss” "
        "(Remark 7)", finding="agrees", figure=dpo_optimum,
    ),
)  # fmt: skip
