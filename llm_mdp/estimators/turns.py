"""Credit turn by turn, in conversations: a turn is what the policy writes at a stretch, and the reply that follows."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import EveryTurn
from llm_mdp.estimators.values import group_mean, leave_one_out
from llm_mdp.sampling.evidence import Evidence, Rollouts


@dataclass(frozen=True)
class TurnRewards(Estimator):
    """Every turn has a reward of its own, R_kj = Σ γᵗ⁻¹ rₜ over turn j of response k, and a baseline from the group.

    - by default Aₜ = R_kj - mean of R_ij over the responses i that reached turn j, in the turn j of token t. Claim:
      `turn-credit-reached`, biased beyond one turn;
    - `to_go`: the sum of that from turn j on. Claim: `turn-credit-reached-to-go`, biased where a response may end
      before a turn;
    - `others`: Σ of R_k from turn j on, less the mean of the same sum over the *other* responses, which is 0 for those
      that ended before. Claim: `turn-credit-others`, unbiased.

    Args:
        group_size: K of at least 2.
        gamma: the discount of the token MDP, in (0, 1].
    """

    group_size: int = 4
    gamma: float = 1.0
    to_go: bool = False
    others: bool = False

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        reward = sampler.response_reward(rollouts)
        return Evidence(rollouts, reward, token_reward=sampler.hidden_reward(rollouts))

    def advantages(self, evidence):
        turn = turn_index(evidence.rollouts)
        reward, reached = self._turns(evidence, turn)
        if self.others:
            earned = _from_here_on(reward)
            credit = earned - _across(leave_one_out, earned, self.group_size)
        else:
            present = _across(group_mean, reached.to(reward.dtype), self.group_size)
            mean = _across(group_mean, reward, self.group_size) / present.clamp(min=1 / self.group_size)
            credit = torch.where(reached, reward - mean, 0.0)
            credit = _from_here_on(credit) if self.to_go else credit
        return credit.gather(-1, turn)

    def _turns(self, evidence: Evidence, turn: Int[Tensor, "*worlds B T"]) -> tuple[Tensor, Tensor]:
        """The reward of every turn, 0 of those that were not reached, and which were: (…, B, T), turns first."""
        assert evidence.token_reward is not None
        discount = self.gamma ** torch.arange(turn.shape[-1], dtype=evidence.token_reward.dtype)
        reward = torch.zeros_like(evidence.token_reward).scatter_add(-1, turn, discount * evidence.token_reward)
        reached = torch.arange(turn.shape[-1]) <= turn.amax(-1, keepdim=True)
        return reward, reached


def turn_index(rollouts: Rollouts) -> Int[Tensor, "*worlds B T"]:
    """0, 1, 2, … : the turn that every token belongs to, replies to the turn before them; padding to the last one."""
    return (EveryTurn()(rollouts).cumsum(-1) - 1).clamp(min=0)


def _from_here_on(reward: Float[Tensor, "*worlds B T"]) -> Float[Tensor, "*worlds B T"]:
    """Of every turn the sum over it and the later ones."""
    return reward.flip(-1).cumsum(-1).flip(-1)


def _across(statistic, reward: Float[Tensor, "*worlds B T"], group_size: int) -> Float[Tensor, "*worlds B T"]:
    """A statistic of the group, turn by turn."""
    return statistic(reward.transpose(-1, -2), group_size).transpose(-1, -2)
