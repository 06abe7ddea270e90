"""Slips of the paper that no row of the ledger is about: what is printed, and what is meant."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Misprint:
    """One slip.

    Args:
        place: section, equation or line.
        printed: what stands there.
        meant: what should.
        why: how the text around it shows that.
    """

    place: str
    printed: str
    meant: str
    why: str


MISPRINTS: tuple[Misprint, ...] = (
    Misprint(
        "Section 2.1, R(τ)",
        "R(τ) = Σₜ₌₀ᵀ⁻¹ γᵀ⁻¹ rₜ, “The cumulative future return starting from sₜ”",
        "R(τ) = Σₖ≥ₜ γᵏ⁻ᵗ rₖ",
        "as printed every reward has the same weight γᵀ⁻¹ and the sum does not depend on t, so it does not define "
        "V(sₜ); Q(sₜ, aₜ) = rₜ₊₁ + γ V(sₜ₊₁) below it needs the exponent that counts from t.",
    ),
    Misprint(
        "Table 1, Gₜ(W)",
        "Gₜ(W) = Σₖ₌ₜᵀ γᵏ⁻ᵗ r(wₜ)",
        "Gₜ(W) = Σₖ₌ₜᵀ γᵏ⁻ᵗ r(wₖ)",
        "the sum runs over k; Remark 2 has wₖ (and lacks the discount instead: row remark-2-return-to-go).",
    ),
    Misprint(
        "Theorem 1, Eq. 24",
        "γᵗ G(W⁽ᵗ⁾ₜ,ₘ) under the expectation over W⁽ᵗ⁺¹⁾",
        "γᵗ G(W⁽ᵗ⁺¹⁾ₜ₊₁,ₘ)",
        "Σₖ₌₁ᵗ γᵏ⁻¹ r(wₖ) holds the reward of step t already, so what is left begins at t + 1, in the response that "
        "shares the first t tokens; the next line, RM(W⁽ᵗ⁺¹⁾), follows only so.",
    ),
    Misprint(
        "Theorem 1, Eq. 25, and Remark 3, Eq. 26",
        "∇log π(wₜ | W⁽ᵗ⁾₀,ₜ₋₁)",
        "∇log π(wₜ | W₀,ₜ₋₁)",
        "the two are equal, for W⁽ᵗ⁾ shares the first t - 1 tokens of W; Eq. 21 has the plain one.",
    ),
    Misprint(
        "Corollary 1, its proof",
        "“can be used as an unbiased estimator of” E RM(W⁽ᵗ⁾)",
        "E RM(W⁽ᵗ⁺¹⁾), given W₀,ₜ",
        "Theorem 1, into which it is put, has W⁽ᵗ⁺¹⁾.",
    ),
    Misprint(
        "Theorem 2, its proof",
        "“we can assume X₁ and X₂ are dependent”",
        "independent",
        "only then is Cov(X₁X₂, X₂) = E X₁ · Var(X₂), the next line. It is an assumption, and why the baseline is "
        "“near-optimal”: row theorem-2-optimal of the variance study has the optimal one.",
    ),
    Misprint(
        "Trajectory Policy Gradient Theorem, its proof",
        "“Use the same analysis on the second term” RM(W⁽ᵗ⁺¹⁾)",
        "RM(W⁽ᵗ⁾)",
        "the second term of Theorem 2 is the baseline E RM(W⁽ᵗ⁾), and it stands beside V(W₀,ₜ₋₁).",
    ),
    Misprint(
        "Remark 7",
        "“namely” E RM(W⁽ᵗ⁾), the expectation over W⁽ᵗ⁺¹⁾, “vs. RM(W)”",
        "E RM(W⁽ᵗ⁺¹⁾)",
        "it names the goal of Theorem 1, Eq. 21.",
    ),
    Misprint(
        "Algorithm 1, line 16",
        "“Calculate the average clipped surrogate gradient loss in Eqn. (30)”",
        "Eq. 33",
        "Eq. 30 sums reward models; the clipped surrogate is Eq. 33.",
    ),
    Misprint(
        "Section 4.1, Eq. 37",
        "rₖ - Σₖ₌₁ᴷ rₖ / (K - 1)",
        "rₖ - Σⱼ≠ₖ rⱼ / (K - 1)",
        "the text says “Leave-One-Out”; Eq. 37 repeats the sum of Eq. 36 (row rloo-eq36), and uses k twice.",
    ),
    Misprint(
        "Section 4.2, R3HF",
        "“R3HF [15]”",
        "R3HF [17]",
        "[15] is ABC; the beginning of the section has “R3HF [17]”.",
    ),
)
