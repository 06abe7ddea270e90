"""An agent of one's own in one file, checked, certified and trained: `python examples/own_agent.py`, half a minute.

An agent is an estimator plus what it learns beside the policy. This one learns a single number. `llm-mdp train
examples/own_agent.py:SteadyRLOOAgent Tabular` trains with it; in agents/llm_mdp_agents/zoo/ it is found by its name.
"""

from dataclasses import dataclass

from llm_mdp import Estimator, certify, groups
from llm_mdp_agents.base import Agent, AgentConfig


@dataclass(frozen=True)
class SteadyBaseline(Estimator):
    """The reward less a mixture of two baselines: the mean of the other responses, which is right but noisy in small
    groups, and the mean of earlier batches, which is steady but the same for every prompt.

    Aₖ = RMₖ - (1 - s) mean of the others - s m
    """

    share: float = 0.5
    """s, in [0, 1]; 0: RLOO."""
    mean: float = 0.0
    """m."""

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)  # (..., prompts, responses)
        others = (reward.sum(-1, keepdim=True) - reward) / (self.group_size - 1)
        return (reward - (1 - self.share) * others - self.share * self.mean).flatten(-2)[..., None]


@dataclass(frozen=True)
class SteadyConfig(AgentConfig):
    """Options of steady-rloo; each is a flag of `llm-mdp train`."""

    least_group = 2

    share: float = 0.5
    """How much of the baseline comes from earlier batches."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be in [0, 1].")


class SteadyRLOOAgent(Agent[SteadyConfig]):
    """RLOO whose baseline remembers."""

    name, paper, claims = "steady-rloo", "an example", ()
    Config = SteadyConfig

    def make_estimator(self):
        return SteadyBaseline(**self.common(), share=self.config.share, mean=self.numbers.get("mean", 0.0))

    def fit(self, evidence):
        """After every update: the running mean, for the next batch. It is kept in checkpoints."""
        before, now = self.numbers.get("mean", 0.0), float(evidence.response_reward.mean())
        self.numbers["mean"] = 0.9 * before + 0.1 * now
        self.estimator = self.make_estimator()
        return {"baseline": before}


if __name__ == "__main__":
    from llm_mdp_agents.check import check_agent
    from llm_mdp_agents.resolve import ModelConfig, build_policy
    from llm_mdp_agents.training.train_config import TrainConfig
    from llm_mdp_agents.training.trainer import Trainer
    from llm_mdp_envs.tasks.synthetic import Tabular

    check_agent(SteadyRLOOAgent)
    print("check_agent: nothing wrong with it")
    print("certificate:", certify(SteadyBaseline(group_size=3, mean=0.7)))

    task = Tabular()
    policy = build_policy(ModelConfig(), task, seed=0)
    trainer = Trainer(SteadyRLOOAgent(SteadyConfig(), policy, task), task, policy, TrainConfig(steps=100))
    print(f"expected reward before: {trainer.evaluate()['eval/exact_reward']:6.3f}")
    trainer.prepare()
    for _ in range(100):
        trainer.step()
    print(f"expected reward after:  {trainer.evaluate()['eval/exact_reward']:6.3f}")
