"""Names of what gives credit turn by turn. Where nobody replies, a response is one turn."""

from typing import Any

from llm_mdp.estimators.algorithms import REINFORCE, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryTurn
from llm_mdp.estimators.entry import GIVEN, ORACLE, Entry, Given, K, unbiased
from llm_mdp.estimators.turns import TurnRewards


def _rewards(given: Given, group_size: int, **which: Any) -> Estimator:
    assert given.token_reward is not None  # the sampler hands them out; where nobody knows them, this says so
    return TurnRewards(group_size, gamma=given.gamma, **which)


TURNS: tuple[Entry, ...] = (
    Entry(
        "turn-credit-response", "The reward of the conversation, on every token of the policy.", lambda g: REINFORCE(),
        proved=unbiased,
    ),
    Entry(
        "turn-credit-values", "From turn to turn, the change of the exact value.",
        lambda g: TRePO(boundary=EveryTurn(), critic=g.critic()), **ORACLE,
    ),
    Entry(
        "turn-credit-reached", "The turn's reward, less its mean over the responses that reached the turn.",
        lambda g, group_size: _rewards(g, group_size), K, **GIVEN,
    ),
    Entry(
        "turn-credit-reached-to-go", "The same, summed from the turn on.",
        lambda g, group_size: _rewards(g, group_size, to_go=True), K, **GIVEN,
    ),
    Entry(
        "turn-credit-others", "Rewards from the turn on, less the mean of what the other responses earned from it on.",
        lambda g, group_size: _rewards(g, group_size, others=True), K, **ORACLE,
    ),
)  # fmt: skip
