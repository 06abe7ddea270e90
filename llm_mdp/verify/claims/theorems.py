"""Rows about the paper's lemmas, theorems and remarks."""

from llm_mdp.verify.claims.claim import Claim, always, biased_from, undiscounted

THEOREMS: tuple[Claim, ...] = (
    Claim(
        "lemma-1", "theorems", "Aₜ = γᵗ⁻¹ Q(W₀,ₜ₋₁, wₜ) gives ∇J", "Lemma 1, Eq. 4", always("unbiased"),
        "the policy gradient theorem for deterministic transitions",
    ),
    Claim(
        "lemma-2", "theorems", "adding any c(W₀,ₜ₋₁) to the weight of step t changes nothing", "Lemma 2",
        always("unbiased"),
        "E[∇log π | prefix] = 0, so what depends on the prefix alone drops out",
    ),
    Claim(
        "theorem-1", "theorems", "Aₜ = E RM(W^(t+1)) = U(W₀,ₜ): response-level rewards suffice", "Theorem 1, Eq. 21",
        always("unbiased"),
        "U(W₀,ₜ) is γᵗ⁻¹ Q plus the reward already collected, which the prefix fixes",
    ),
    Claim(
        "theorem-2", "theorems", "Aₜ = U(W₀,ₜ) - U(W₀,ₜ₋₁)", "Theorem 2, Eq. 28", always("unbiased"),
        "Theorem 1 with the value of the prefix as its baseline",
    ),
    Claim(
        "corollary-1", "theorems", "Aₜ = RM(W) for every token", "Corollary 1, Eq. 27", always("unbiased"),
        "RM(W) is one draw of U(W₀,ₜ)",
        estimator="reinforce",
    ),
    Claim(
        "remark-2-return-to-go", "theorems", "Aₜ = γᵗ⁻¹ Gₜ of the true token rewards", "Remark 2", always("unbiased"),
        "Gₜ is one draw of Q(W₀,ₜ₋₁, wₜ)",
    ),
    Claim(
        "remark-3-undiscounted", "theorems", "Aₜ = Gₜ, the weight γᵗ⁻¹ dropped", "Remark 3, Eq. 26", undiscounted,
        "step t counts γ¹⁻ᵗ times too much; nothing is lost at γ = 1",
        repair="keep the weight γᵗ⁻¹, or put RM(W) on every token",
    ),
    Claim(
        "remark-4-whitening", "theorems", "normalising advantages over the batch keeps the expected gradient",
        "Remark 4", biased_from(1),
        "mean and std contain the response they normalise, and the mean over tokens weighs long responses more",
        repair="leave-one-out mean (rloo); a scale from earlier batches",
    ),
    Claim(
        "actor-critic", "theorems", "rₜ + Vₜ₊₁ - Vₜ, RM(W) on the last token, exact critic",
        "Trajectory Policy Gradient Theorem",
        always("unbiased"), "with all reward at the end the exact critic is U, and this is Theorem 2",
        estimator="ppo", options={"lam": 0.0},
    ),
    Claim(
        "remark-5-merged", "theorems", "token- and response-level rewards merged into one RM(W)", "Remark 5, Eq. 30",
        always("unbiased"),
        "the sum is again a response-level reward (Theorem 1)",
    ),
    Claim(
        "remark-5-token-level", "theorems", "γᵗ⁻¹ Gₜ of the token-level part, the response-level part whole",
        "Remark 5", always("unbiased"),
        "each part is unbiased for its share of the reward",
    ),
    *(
        Claim(
            f"gae-exact-{lam:g}", "theorems", f"GAE, λ = {lam:g}, exact critic", "Remark 6; Schulman et al. 2016",
            always("unbiased"),
            "every δ has mean zero given its prefix but for the effect of wₜ",
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
        )
        for lam in (0, 0.95, 1)
    ),
    Claim(
        "gae-discounted", "theorems", "GAE with γ = 0.9 on the reward at the end",
        "practice, against the zero-reward reading",
        biased_from(2), "RM(W) reaches early tokens shrunk by 0.9 a step, so the length of what follows is punished",
        repair="γ = 1 whenever the reward comes once, at the end",
    ),
)  # fmt: skip
