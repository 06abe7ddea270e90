"""The ledger: who says what about which estimator, and the verdict expected (`../shared/CLAIMS.md` of the founding
documents).

A claim of "unbiased" or "proportional" is for all instances. A claim of "biased" is that a counter-example is easy to
find; on instances where theory says that the bias cannot show (short horizons, gamma = 1, no end token) the expectation
says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.entry import Entry
from llm_mdp.verify.problem import Problem, Target

Group = Literal["theorems", "algorithms", "practices", "yours"]


@dataclass(frozen=True)
class Claim:
    """One row of the ledger."""

    id: str
    group: Group
    statement: str
    source: str
    expect: Callable[[Problem], str]
    """The verdict expected on an instance: unbiased, proportional, biased, holds, or report when none is."""
    reason: str
    repair: str | None = None
    target: Target = "reward"
    estimator: str | Estimator = ""
    """Its name in the catalogue, if that is not the id, or a user's own."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the estimator, where they are not those of its name."""

    @property
    def entry(self) -> Entry | None:
        """The estimator in the catalogue; None: the claim is about an optimum, or about a user's own estimator."""
        return None if isinstance(self.estimator, Estimator) else CATALOGUE.get(self.estimator or self.id)

    def build(self, problem: Problem) -> Estimator | None:
        """The estimator on this problem, its groups of the problem's size; None for a statement about an optimum."""
        if isinstance(self.estimator, Estimator):
            return self.estimator
        return None if self.entry is None else problem.make(self.entry, **self.options)

    def expected(self, problem: Problem) -> str:
        """The verdict expected, "report" where it cannot show on this instance for want of dimensions, rewards or a
        gradient."""
        verdict = self.expect(problem)
        if verdict == "biased" and not problem.generic:
            return "report"
        return verdict if verdict in ("unbiased", "holds") or problem.has_gradient(self.target) else "report"


def always(verdict: str) -> Callable[[Problem], str]:
    return lambda problem: verdict


def biased_from(horizon: int, *, needs_eos: bool = False, otherwise: str = "unbiased") -> Callable[[Problem], str]:
    """Biased from this horizon on (if responses may differ in length, where that matters)."""

    def expect(problem: Problem) -> str:
        mdp = problem.instance.mdp
        return "biased" if mdp.horizon >= horizon and (mdp.eos is not None or not needs_eos) else otherwise

    return expect


def undiscounted(problem: Problem) -> str:
    mdp = problem.instance.mdp
    return "biased" if mdp.gamma < 1 and mdp.horizon > 1 else "unbiased"


def fixed_length_shrinks(problem: Problem) -> str:
    """Division by lengths: biased where they differ, a constant factor 1/T where they cannot."""
    mdp = problem.instance.mdp
    if mdp.horizon == 1:
        return "unbiased"
    return "biased" if mdp.eos is not None else "proportional"


def rloo_as_printed(problem: Problem) -> str:
    """Scale (K-2)/(K-1): no gradient at all, hence no direction, at K = 2."""
    return "biased" if problem.group_size == 2 else "proportional"


CLAIMS: tuple[Claim, ...] = (
    # --- theorems -----------------------------------------------------------------------------------------------------
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
    # --- algorithms ---------------------------------------------------------------------------------------------------
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
    # --- practices ----------------------------------------------------------------------------------------------------
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
