"""Rows about conversations: an environment draws tokens between the policy's turns, so transitions are stochastic."""

from collections.abc import Callable

from llm_mdp.verify.claims.claim import Claim, always
from llm_mdp.verify.problem import Problem


def beyond_one_turn(*, needs_eos: bool = False) -> Callable[[Problem], str]:
    """Biased where a response has several turns (and may end before the last one, where that matters); a turn that all
    responses reach keeps (K-1)/K of its gradient."""

    def expect(problem: Problem) -> str:
        mdp = problem.instance.mdp
        own = mdp.policy_steps.long()
        turns = int((own.diff(prepend=own.new_zeros(1)) == 1).sum())
        return "biased" if turns > 1 and (mdp.eos is not None or not needs_eos) else "proportional"

    return expect


APPLICABLE = (
    "“TRePO is widely applicable to those LLM-based application scenarios where classic online RL applies”, “at any "
    "position in the sequence, based on the terminal reward” (Section 5.1)"
)
REPAIR = "what the other responses earned from that turn on, 0 for those that ended before (turn-credit-others)"

TURNS: tuple[Claim, ...] = (
    Claim(
        "turn-credit-response", "practices", "conversations: RM(W) on the policy's tokens, none on the replies",
        "Lemma 1 with stochastic transitions", always("unbiased"),
        "replies do not depend on the parameters, so they have no score",
        paper="“after each action, the environment transitions to the next state, sₜ₊₁ = sₜ : [aₜ]” (Section 2.1): it "
        "is proved for an environment that says nothing", finding="stronger than stated",
    ),
    Claim(
        "turn-credit-values", "practices", "conversations: every token of a turn gets U(next turn) - U(turn)",
        "Theorem 2 with stochastic transitions", always("unbiased"),
        "where a turn begins is decided by the prefix, and a reply's surprise has mean 0",
        paper=APPLICABLE, finding="agrees",
    ),
    Claim(
        "turn-credit-reached", "practices",
        "conversations: the turn's reward, less its mean over the group's responses that reached that turn",
        "turn-level group baselines", beyond_one_turn(),
        "what a turn does for later ones is forgotten, and of n responses that reached it 1/n of its signal is lost",
        repair=f"all rewards from the turn on, less {REPAIR}",
    ),
    Claim(
        "turn-credit-reached-to-go", "practices", "conversations: the same, summed from the turn on",
        "turn-level group baselines", beyond_one_turn(needs_eos=True),
        "whether a response reaches a later turn depends on its earlier tokens, and so does what is subtracted",
        repair=REPAIR,
    ),
    Claim(
        "turn-credit-others", "practices",
        "conversations: rewards from the turn on, less the mean of the other responses' rewards from it on",
        "the repair of turn-credit-reached", always("unbiased"),
        "the other responses know nothing of this one, those that ended early included",
    ),
)  # fmt: skip
