"""Small tasks in the spirit of bsuite, each built so that one difference between estimators shows.

All are token MDPs, so `synthetic.instance(task)` hands them to the verifier and `llm_mdp.exact.tree_gradient` knows
their values. Their hidden rewards look at the step and the token only, but for `RareSuccess`.
"""

from typing import ClassVar

import torch
from torch import Tensor

from llm_mdp.mdp.hidden_rewards import PositionReward, SparseReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp_envs.arguments import check_finite, check_seed
from llm_mdp_envs.tasks.synthetic import LARGEST_TABLE, TokenMDPTask, check_sizes


class Needle(TokenMDPTask):
    """One token among many, at the last step, is worth 1; everything before it is worth nothing.
    Separates estimators by how a signal that is rare (1 in V) and late reaches its step: for the uniform policy every
    earlier advantage is exactly zero, so credit given to earlier tokens is noise, and grows with the horizon.
    Optimum 1, reached by one token; the uniform policy gets 1/V.

    Args:
        vocab_size: V ≥ 2.
        horizon: T ≥ 1; every response has this length.
        seed: of which token is the needle.
    """

    separates: ClassVar[str] = (
        "how a late, rare signal is found: only the last token matters, all credit before it is noise"
    )

    def __init__(self, vocab_size: int = 8, horizon: int = 4, seed: int = 0):
        vocab_size, horizon = _check_table(vocab_size, horizon)
        weights = _nothing(horizon, vocab_size)
        weights[-1, _drawn_tokens(vocab_size, 1, seed)[0]] = 1.0
        super().__init__(TokenMDP(vocab_size, None, horizon, PositionReward(weights)))


class Credit(TokenMDPTask):
    """The first token is right (+1) or wrong (-1); nothing after it matters, but the reward comes at the end.
    Separates one reward for all tokens, whose variance grows with the horizon (REINFORCE, RLOO, GRPO),
    from values of prefixes, which are exact after one token and give the rest no advantage (TRePO, VinePPO, a critic).
    A better baseline for the prompt does not help here: only advantages that differ within the response do.

    Args:
        vocab_size: V ≥ 2; half of the tokens, rounded down, are right.
        horizon: T ≥ 1; every response has this length.
        seed: of which tokens are right.
    """

    separates: ClassVar[str] = (
        "one reward for all tokens from values of prefixes: only the first of many tokens matters"
    )

    def __init__(self, vocab_size: int = 2, horizon: int = 8, seed: int = 0):
        vocab_size, horizon = _check_table(vocab_size, horizon)
        weights = _nothing(horizon, vocab_size)
        weights[0] = -1.0
        weights[0, _permutation(vocab_size, seed)[: vocab_size // 2]] = 1.0
        super().__init__(TokenMDP(vocab_size, None, horizon, PositionReward(weights)))


class Forked(TokenMDPTask):
    """The first token leads to a rich branch (`height`) or a poor one (0); on either, one token a step is worth 1 then.
    Separates a baseline that all responses to a prompt share (RLOO, GRPO, ReMax), which sits between the branches and
    is wrong by height/2 on both, from values of the state reached (TRePO, VinePPO, a critic), which leave the small
    choices visible. The larger the height, the more the fork drowns what is decided after it.

    Args:
        vocab_size: V ≥ 2; half of the tokens, rounded down, lead to the rich branch.
        horizon: T ≥ 2; every response has this length.
        height: how much more the rich branch is worth, 0 or more.
        seed: of which tokens do what.
    """

    separates: ClassVar[str] = (
        "baselines of the prompt from values of the state: after the fork the two differ by half its height"
    )

    def __init__(self, vocab_size: int = 4, horizon: int = 4, height: float = 10.0, seed: int = 0):
        vocab_size, horizon = _check_table(vocab_size, horizon)
        if horizon < 2:
            raise ValueError(f"horizon is {horizon}; a fork needs a step before it and one after, at least 2.")
        height = check_finite("height", height, 0)
        weights = _nothing(horizon, vocab_size)
        weights[0, _permutation(vocab_size, seed)[: vocab_size // 2]] = height
        weights[torch.arange(1, horizon), _drawn_tokens(vocab_size, horizon - 1, seed)] = 1.0
        super().__init__(TokenMDP(vocab_size, None, horizon, PositionReward(weights)))


class LengthBias(TokenMDPTask):
    """The first token is the answer, right (1) or wrong (0); how long the response goes on is worth nothing either way.
    Separates sums over tokens, under which length performs a random walk, from losses divided by the response's own
    length (GRPO as published, `length-normalised`), which punish a long wrong answer less than a short one, so wrong
    answers grow. Watch the length of wrong responses while training; the exact gradient does not move it.

    Args:
        vocab_size: V ≥ 3; token 0 ends the response, one of the others is right.
        horizon: T ≥ 2, the longest response.
        seed: of which token is right.
    """

    separates: ClassVar[str] = "sums over tokens from means over a response: the latter make wrong answers long"

    def __init__(self, vocab_size: int = 3, horizon: int = 8, seed: int = 0):
        vocab_size, horizon = _check_table(vocab_size, horizon)
        if vocab_size < 3 or horizon < 2:
            raise ValueError(
                f"vocab_size is {vocab_size} and horizon {horizon}; an end token, a right and a wrong answer, and room "
                f"to ramble "
                "take at least 3 and 2."
            )
        weights = _nothing(horizon, vocab_size)
        weights[0, 1 + _drawn_tokens(vocab_size - 1, 1, seed)[0]] = 1.0
        super().__init__(TokenMDP(vocab_size, 0, horizon, PositionReward(weights)))


class RareSuccess(TokenMDPTask):
    """One exact response is worth 1, all others 0: a binary outcome that a uniform policy reaches once in V^T.
    Separates what estimators make of groups without a success, which carry no signal (leave them in the average or
    filter them), and of groups with a single one: their std is the smallest there is, so GRPO's division by it is
    largest. Values of prefixes rise towards the success, so branches find the way where whole responses rarely do.

    Args:
        vocab_size: V ≥ 2.
        horizon: T ≥ 1; every response has this length.
        seed: of which response succeeds.
    """

    separates: ClassVar[str] = (
        "what groups without success and division by their std do: one response in V^T is rewarded"
    )

    def __init__(self, vocab_size: int = 4, horizon: int = 5, seed: int = 0):
        vocab_size, horizon = _check_table(vocab_size, horizon)
        password = tuple(_drawn_tokens(vocab_size, horizon, seed).tolist())
        super().__init__(TokenMDP(vocab_size, None, horizon, SparseReward({password: 1.0})))


def _check_table(vocab_size: int, horizon: int) -> tuple[int, int]:
    """Both as ints; ValueError unless a reward for every step and token can be held."""
    vocab_size, _, horizon, _ = check_sizes(vocab_size, None, horizon)
    if vocab_size * horizon > LARGEST_TABLE:
        raise ValueError(
            f"vocab_size is {vocab_size} and horizon {horizon}; their product, the rewards to hold, must be at most "
            f"{LARGEST_TABLE:,}."
        )
    return vocab_size, horizon


def _nothing(horizon: int, vocab_size: int) -> Tensor:
    return torch.zeros(horizon, vocab_size, dtype=torch.float64)


def _drawn_tokens(vocab_size: int, n: int, seed: int) -> Tensor:
    return torch.randint(vocab_size, (n,), generator=torch.Generator().manual_seed(check_seed(seed)))


def _permutation(vocab_size: int, seed: int) -> Tensor:
    return torch.randperm(vocab_size, generator=torch.Generator().manual_seed(check_seed(seed)))
