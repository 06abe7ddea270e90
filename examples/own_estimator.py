"""An estimator of one's own, certified before it trains anything: `python examples/own_estimator.py`, some seconds.

`advantages` is the whole of it: one weight for every token. `certify` runs it on every group of responses of a small
token MDP (3 tokens, at most 4 a response, 31 responses) and compares its expected gradient with the true one;
`diagnose` says why the two differ, by showing it other rewards and responses.
"""

from dataclasses import dataclass

import torch

from llm_mdp import Estimator, certify, diagnose, groups


@dataclass(frozen=True)
class BestOfGroup(Estimator):
    """The reward less the best reward of the group. It looks sound, and is not: the best reward is often the response's
    own, so the baseline knows the very tokens that it should be blind to."""

    group_size: int = 3

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)  # (..., prompts, responses)
        return (reward - reward.amax(-1, keepdim=True)).flatten(-2)[..., None]  # one weight a token


@dataclass(frozen=True)
class BestOfOthers(BestOfGroup):
    """The repair: the best reward among the other responses, which know nothing of this one."""

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)
        itself = torch.eye(self.group_size, dtype=torch.bool)
        others = reward[..., None, :].masked_fill(itself, -torch.inf)  # (..., prompts, responses, responses)
        return (reward - others.amax(-1)).flatten(-2)[..., None]


if __name__ == "__main__":
    print("before:", certify(BestOfGroup()))
    print("after: ", certify(BestOfOthers()))
    print("why:   ", diagnose(BestOfGroup()))
    print("Now train with it: llm-mdp train examples/own_estimator.py:BestOfOthers Tabular --steps 100")
