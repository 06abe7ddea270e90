"""Rows about responses that another policy drew, μ, than the one that is differentiated, π; ρₜ = π(wₜ)/μ(wₜ)."""

from collections.abc import Callable

from llm_mdp.estimators.objectives import Level, log_ratio
from llm_mdp.verify.claims.claim import Claim, always, biased_from
from llm_mdp.verify.problem import Problem


def capped(level: Level, cap: float) -> Callable[[Problem], str]:
    """Biased where a ratio is above the cap; where none is, as without a cap: one token's ratio is the response's."""

    def expect(problem: Problem) -> str:
        e = problem.enumeration
        ratio = log_ratio(e.leaf_logp(), e.leaf_logp_of(problem.given.behaviour), e.mask, level).exp()
        exact = level == "sequence" or problem.instance.mdp.longest == 1
        return "unbiased" if exact and float(ratio.max()) <= cap else "biased"

    return expect


MINDED = "times the ratio of the whole response (mismatch-sequence), or fresh samples"

OFF_POLICY: tuple[Claim, ...] = (
    Claim(
        "mismatch-ignored", "practices", "responses of μ, A = RM - J: logits off by 0.5 (engine, or an older policy)",
        "Yao et al. 2025", biased_from(1),
        "the samples come from another policy than the one differentiated", repair=MINDED,
    ),
    Claim(
        "mismatch-token", "practices", "responses of μ, ρₜ A", "token-level importance sampling; Yao et al. 2025",
        biased_from(2),
        "ρₜ corrects the draw of wₜ, not those of the tokens before and after it", repair=MINDED,
    ),
    Claim(
        "mismatch-token-capped", "practices", "responses of μ, min(ρₜ, 2) A",
        "truncated importance sampling; Yao et al. 2025", capped("token", 2.0),
        "the same, and the cap takes from tokens that π prefers", repair=MINDED,
    ),
    Claim(
        "mismatch-sequence", "practices", "responses of μ, (Πₜ ρₜ) A", "importance sampling; Liu et al. 2025",
        always("unbiased"),
        "E over μ of (Π ρ) X is E over π of X; its variance grows with the length",
    ),
    Claim(
        "mismatch-sequence-capped", "practices", "responses of μ, min(Πₜ ρₜ, 2) A",
        "sequence-level truncation; Liu et al. 2025", capped("sequence", 2.0),
        "the cap takes from the responses that π prefers most: less variance for a bias",
        repair="a higher cap, or none",
    ),
    Claim(
        "gspo", "practices", "GSPO, first update: GRPO's advantage, divided by the response's length",
        "Zheng et al. 2025", biased_from(1),
        "every ratio is 1, so this is grpo-length: the std, and long wrong answers are punished less",
        repair="drop the std and divide by a constant (dr-grpo)",
    ),
    Claim(
        "gspo-stale", "practices", "responses of μ, (Πₜ ρₜ)^(1/len) A: GSPO's ratio, no clipping, lengths aside",
        "Zheng et al. 2025", biased_from(2),
        "a power of the importance weight is not the weight: it corrects 1/len of the mismatch", repair=MINDED,
    ),
    Claim(
        "cispo", "practices", "CISPO, first update: min(ρₜ, 6) A, ρₜ constant, A = RM - J", "MiniMax 2025",
        always("unbiased"),
        "every ratio is 1 and no cap above 1 touches it",
    ),
    Claim(
        "cispo-0.2", "practices", "CISPO, first update: min(ρₜ, 1.2) A, ρₜ constant, A = RM - J", "MiniMax 2025",
        always("unbiased"),
        "every ratio is 1 and no cap above 1 touches it",
    ),
    Claim(
        "cispo-stale", "practices", "responses of μ, CISPO: min(ρₜ, 6) A", "MiniMax 2025", capped("token", 6.0),
        "ρₜ corrects the draw of wₜ, not those of the tokens before and after it", repair=MINDED,
    ),
    Claim(
        "cispo-0.2-stale", "practices", "responses of μ, CISPO: min(ρₜ, 1.2) A", "MiniMax 2025", capped("token", 1.2),
        "the same, and the cap takes from tokens that π prefers", repair=MINDED,
    ),
    Claim(
        "sapo", "practices", "SAPO, first update: gate σ(τ(ρₜ - 1)) 4/τ, τ = 1 for A > 0 and 1.05 else, A = RM - J",
        "Gao et al. 2025", always("unbiased"),
        "the slope of the gate is 1 at ρ = 1, whatever τ",
    ),
    Claim(
        "sapo-stale", "practices", "responses of μ, SAPO's gate", "Gao et al. 2025", biased_from(1),
        "away from ρ = 1 the gate keeps less than ρₜ, and ρₜ is not enough", repair=MINDED,
    ),
)  # fmt: skip
