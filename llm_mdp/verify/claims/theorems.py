"""Rows about the paper's lemmas, theorems and remarks."""

from llm_mdp.verify.claims.claim import Claim, always, biased_from, discounted_at_the_end, undiscounted
from llm_mdp.verify.statements import greedy_baseline, same_goal, token_level_spread

NORMALISATION = "“This setting does not change the expected policy gradient” (Remark 4, of advantage normalisation)"
GAMMA = (
    "“which suggests γ=1; otherwise, it should be γᵀ⁻¹RM(W)” (proof of the Trajectory Policy Gradient Theorem, of the "
    "last action's reward)"
)

THEOREMS: tuple[Claim, ...] = (
    Claim(
        "lemma-1", "theorems", "Aₜ = γᵗ⁻¹ Q(W₀,ₜ₋₁, wₜ) gives ∇J", "Lemma 1, Eq. 4", always("unbiased"),
        "the policy gradient theorem for deterministic transitions",
        paper="“the policy gradient theorem with a discounted reward factor γ” (Lemma 1, Eq. 4)", finding="agrees",
    ),
    Claim(
        "lemma-2", "theorems", "adding any c(W₀,ₜ₋₁) to the weight of step t changes nothing", "Lemma 2",
        always("unbiased"),
        "E[∇log π | prefix] = 0, so what depends on the prefix alone drops out",
        paper="“Adding a state-dependent constant … does not affect the expectation of the policy gradient” (Lemma 2)",
        finding="agrees",
    ),
    Claim(
        "theorem-1", "theorems", "Aₜ = E RM(W^(t+1)) = U(W₀,ₜ): response-level rewards suffice", "Theorem 1, Eq. 21",
        always("unbiased"),
        "U(W₀,ₜ) is γᵗ⁻¹ Q plus the reward already collected, which the prefix fixes",
        paper="“the policy gradient can be unbiasedly estimated from mere response-level rewards, regardless of the "
        "values of r … and γ” (Theorem 1, Eq. 21)", finding="agrees",
    ),
    Claim(
        "theorem-2", "theorems", "Aₜ = U(W₀,ₜ) - U(W₀,ₜ₋₁)", "Theorem 2, Eq. 28", always("unbiased"),
        "Theorem 1 with the value of the prefix as its baseline",
        paper="“Theorem 1 with a near-optimal baseline for the gradient variance reduction” (Theorem 2, Eq. 28)",
        finding="agrees",
    ),
    Claim(
        "corollary-1", "theorems", "Aₜ = RM(W) for every token", "Corollary 1, Eq. 27", always("unbiased"),
        "RM(W) is one draw of U(W₀,ₜ): so it is for REINFORCE, ReMax and RLOO; GRPO, which the corollary names first, "
        "divides by a std (Eq. 34) and is no unbiased estimator, as Definition 1 asks (row grpo)",
        paper="“REINFORCE-based RL algorithms, such as GRPO, ReMax, RLOO, have the capability of token-level "
        "modeling” (Corollary 1), “if its policy gradient is an unbiased estimator of Lemma 1” (Definition 1)",
        finding="differs", estimator="reinforce",
    ),
    Claim(
        "remark-2-return-to-go", "theorems", "Aₜ = γᵗ⁻¹ Gₜ of the true token rewards", "Remark 2", always("unbiased"),
        "Gₜ is one draw of Q(W₀,ₜ₋₁, wₜ); Table 1 has the discounts γᵏ⁻ᵗ that the remark's sum lacks, and without "
        "which it is biased where γ < 1",
        paper="“People often use the currently sampled” W and Gₜ(W) = Σₖ₌ₜᵀ r(W, wₖ) (Remark 2)", finding="misprint",
    ),
    Claim(
        "remark-3-undiscounted", "theorems", "Aₜ = Gₜ, the weight γᵗ⁻¹ dropped", "Remark 3, Eq. 26", undiscounted,
        "step t counts γ¹⁻ᵗ times too much; nothing is lost at γ = 1",
        repair="keep the weight γᵗ⁻¹, or put RM(W) on every token",
        paper="“this new formula will surprisingly do the contrary thing by putting more weight on later states” "
        "(Remark 3, Eq. 26)", finding="agrees",
    ),
    Claim(
        "remark-4-whitening", "theorems", "RM(W) normalised over all tokens of one prompt's K responses",
        "Remark 4", biased_from(1),
        "mean and std contain the response they normalise, and the mean over tokens weighs long responses more",
        repair="leave-one-out mean (rloo); a scale from earlier batches", paper=NORMALISATION, finding="differs",
    ),
    Claim(
        "remark-4-batch", "theorems", "RM(W) normalised over the tokens of a batch of N responses, N = P K",
        "Remark 4", biased_from(1),
        "differs at finite N: each response is in the mean and the std that it is compared with. The error of the "
        "direction falls like 1/N; that of a std of its own for every prompt (grpo) does not",
        repair="large batches; leave-one-out mean (rloo), a scale from earlier batches", paper=NORMALISATION,
        finding="differs", estimator="remark-4-whitening",
    ),
    Claim(
        "remark-4-batch-responses", "theorems", "RM(W) normalised over the N responses of a batch, N = P K",
        "Remark 4", biased_from(1),
        "differs at finite N, as over tokens (remark-4-batch)",
        repair="large batches; leave-one-out mean (rloo), a scale from earlier batches", paper=NORMALISATION,
        finding="differs",
    ),
    Claim(
        "remark-4-remax", "theorems", "ReMax's baseline RM(greedy) is U(w₀), Theorem 2's at t = 1", "Remark 4",
        always("report"),
        "the greedy response is one response, and not the expectation; any function of the prompt is a baseline all "
        "the same, so ReMax stays unbiased (row remax)",
        paper="“or one greedily sampled W … It is equivalent to our derived baseline term … with t=1” (Remark 4)",
        finding="differs", figure=greedy_baseline,
    ),
    Claim(
        "actor-critic", "theorems", "rₜ + Vₜ₊₁ - Vₜ, RM(W) on the last token, exact critic",
        "Trajectory Policy Gradient Theorem",
        always("unbiased"), "with all reward at the end the exact critic is U, and this is Theorem 2",
        paper="“can be unbiasedly estimated using a response-level reward model in REINFORCE and Actor-Critic RL "
        "algorithms, regardless of whether the Zero-Reward Assumption is applied” (Trajectory Policy Gradient Theorem)",
        finding="agrees", estimator="ppo", options={"lam": 0.0},
    ),
    Claim(
        "trajectory-gamma", "theorems", "γˡᵉⁿ⁻¹ RM(W) on the last token, return-to-go not discounted",
        "Trajectory Policy Gradient Theorem, its proof", discounted_at_the_end,
        "the reward of the last of T tokens counts γᵀ⁻¹ times in RM(W) already, so this shrinks long responses again; "
        "nothing happens at γ = 1",
        repair="RM(W) / γᵀ⁻¹ on the last token (its γᵗ⁻¹ Gₜ is RM(W)), or γ = 1", paper=GAMMA, finding="differs",
    ),
    Claim(
        "trajectory-gamma-discounted", "theorems", "γˡᵉⁿ⁻¹ RM(W) on the last token, Aₜ = γᵗ⁻¹ Gₜ (Lemma 1)",
        "Trajectory Policy Gradient Theorem, its proof", discounted_at_the_end,
        "Aₜ is γ²⁽ᵀ⁻¹⁾ RM(W): long responses are shrunk twice; nothing happens at γ = 1",
        repair="RM(W) / γᵀ⁻¹ on the last token (its γᵗ⁻¹ Gₜ is RM(W)), or γ = 1", paper=GAMMA, finding="differs",
    ),
    Claim(
        "remark-5-merged", "theorems", "token- and response-level rewards merged into one RM(W)", "Remark 5, Eq. 30",
        always("unbiased"),
        "the sum is again a response-level reward (Theorem 1)",
        paper="“we can merge them into a response-level reward model” (Remark 5, Eq. 30)", finding="agrees",
    ),
    Claim(
        "remark-5-token-level", "theorems", "γᵗ⁻¹ Gₜ of the token-level part, the response-level part whole",
        "Remark 5", always("unbiased"),
        "each part is unbiased for its share of the reward",
        paper="“the two treatments are theoretically equivalent” (Remark 5)", finding="agrees",
    ),
    Claim(
        "remark-5-advantage", "theorems", "tr Cov of the token-level form is at most that of the merged one",
        "Remark 5", always("report"),
        "past token rewards are noise that Gₜ leaves out; they can also cancel noise of the rest, so the ratio is "
        "below 1 on most instances and not on all",
        paper="“The second treatment may bring an advantage in the early stage of training” (Remark 5)",
        finding="agrees", figure=token_level_spread,
    ),
    *(
        Claim(
            f"gae-exact-{lam:g}", "theorems", f"GAE, λ = {lam:g}, exact critic", "Remark 6; Schulman et al. 2016",
            always("unbiased"),
            "every δ has mean zero given its prefix but for the effect of wₜ" if lam < 1 else
            "the sum telescopes to RM(W) less the value of the prefix",
            paper="“high-bias/low-variance (small λ)” (Remark 6): with the exact critic there is no bias at any λ"
            if lam < 1 else "“When λ=1, then Q … = RM(W)” (Remark 6)",
            finding="stronger than stated" if lam < 1 else "agrees",
            estimator="ppo", options={"lam": lam},
        )
        for lam in (0, 0.95, 1)
    ),
    *(
        Claim(
            f"gae-wrong-{lam:g}", "theorems", f"GAE, λ = {lam:g}, wrong critic", "Remark 6; Schulman et al. 2016",
            biased_from(2) if lam < 1 else always("unbiased"),
            "the critic's errors enter through vₜ₊₁, which wₜ chose" if lam < 1 else "the sum telescopes to RM(W) - "
            "v(W₀,ₜ₋₁): a baseline",
            repair="λ = 1, or branches in place of the critic (vineppo, trepo)" if lam < 1 else None,
            paper="“is inaccurate, which would induce a so-called self-referential bias” (Remark 6, of the critic)"
            if lam < 1 else "“When λ=1, then Q … = RM(W)” (Remark 6)", finding="agrees",
        )
        for lam in (0, 0.95, 1)
    ),
    Claim(
        "gae-discounted", "theorems", "GAE with γ = 0.9 on the reward at the end", "Remark 3; a practice of PPO",
        biased_from(2), "RM(W) reaches early tokens shrunk by 0.9 a step, so the length of what follows is punished",
        repair="γ = 1 whenever the reward comes once, at the end",
        paper="“If γ≠1, it would lead to an undesired result” (Remark 3)", finding="agrees",
    ),
    Claim(
        "remark-7-same-goal", "theorems", "E g is the same with U(W₀,ₜ) on token t (Theorem 1) and RM(W) on all "
        "(Corollary 1)", "Remark 7", always("holds"),
        "E[RM(W) | W₀,ₜ] = U(W₀,ₜ): the goal is one; what differs is the noise",
        paper="“trained towards the exact goal in Theorem 1, as opposed to the others being trained towards an "
        "approximate goal in Corollary 1” (Remark 7)", finding="differs", figure=same_goal,
    ),
)  # fmt: skip
