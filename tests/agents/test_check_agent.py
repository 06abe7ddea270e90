"""Broken agents, each with the message that its author gets; and every agent of the zoo, which must pass."""

import random
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from llm_mdp.estimators.algorithms import GRPO, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.verify.check import check_estimator
from llm_mdp.verify.weights import EstimatorError
from llm_mdp_agents.base import Agent, AgentConfig, Plain
from llm_mdp_agents.check import AgentError, check_agent
from llm_mdp_agents.segments import SegmentConfig, WithSegments
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_agents.zoo.rloo import RLOOAgent, RLOOConfig
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.synthetic import Tabular, TokenMDPTask


@dataclass(frozen=True)
class SmallConfig(AgentConfig):
    """Options of the agents below."""

    group_size: int = 2


class Sound(Agent):
    """Leave-one-out; the broken ones below differ from it in one thing."""

    name, paper, claims = "sound", "this file", ("rloo",)
    Config = SmallConfig

    def make_estimator(self):
        return RLOO(**self.common())


def made(agent: type[Agent], **options) -> Agent:
    task = Tabular(3, 3, n_prompts=2)
    policy = TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator().manual_seed(0))
    return agent(agent.Config(**options), policy, task)


# --- agents that are fine ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_of_the_zoo_passes(name):
    check_agent(AGENTS[name])


@pytest.mark.parametrize(
    "name, options",
    [
        ("grpo", {"variant": "dapo"}),
        ("grpo", {"variant": "dr-grpo", "kl": 0.1, "kl_in": "loss", "kl_estimator": "k3"}),
        ("trepo", {"variant": "paper"}),
        ("trepo", {"boundary": "random"}),
        ("ma-rlhf", {"boundary": "separators", "separators": (1,), "kl": 0.1}),
        ("iterative-dpo", {"refresh": 1}),
        ("abc", {"to_go": True}),
    ],
)
def test_options_pass(name, options):
    agent = AGENTS[name]
    check_agent(agent, agent.Config(**options))
    check_agent(made(agent, **options))


def test_an_estimator_of_one_s_own_passes_as_an_agent():
    instance = random_instance(3, 3)
    check_agent(Plain(GRPO(group_size=8), instance.policy, TokenMDPTask(instance.mdp)))
    check_agent(
        Plain(
            GRPO(group_size=8), NgramPolicy.random(3, 1, torch.Generator().manual_seed(0)), TokenMDPTask(instance.mdp)
        )
    )


def test_large_groups_are_no_obstacle_for_estimators_either():
    check_estimator(GRPO(group_size=16))
    with pytest.raises(EstimatorError, match="mixes worlds"):

        @dataclass(frozen=True)
        class Mixes(Estimator):
            def advantages(self, evidence):
                return (evidence.response_reward - evidence.response_reward.mean())[..., None]

        check_estimator(Mixes(group_size=16))


def test_an_agent_and_its_policy_stay_as_they_were():
    agent = made(AGENTS["ppo"])
    before = {name: tensor.clone() for name, tensor in agent.models["critic"].state_dict().items()}
    policy, state = [level.clone() for level in agent.policy.levels], agent.generator.get_state()
    check_agent(agent)
    assert all(torch.equal(tensor, before[name]) for name, tensor in agent.models["critic"].state_dict().items())
    assert all(torch.equal(level, old) for level, old in zip(agent.policy.levels, policy))
    assert not agent.optimizers["critic"].torch.state and torch.equal(agent.generator.get_state(), state)


# --- agents that are not ----------------------------------------------------------------------------------------------


class NoConfig:
    pass


class NothingBut:
    Config = SmallConfig

    def __init__(self, *args):
        pass


class WithCollectOnly(NothingBut):
    def collect(self, sampler):
        return None


class NoFit(Sound):
    fit = None


class NoPrepare(Sound):
    prepare = None


class NoLoss(Sound):
    loss = None


class NoAdvantages(Sound):
    advantages = None


class NoEstimator(Agent):
    name, paper, claims = "none", "this file", ()
    Config = SmallConfig


class NoName(Sound):
    name = None


class ListOfClaims(Sound):
    claims = ["rloo"]  # noqa: RUF012


class UnknownClaim(Sound):
    claims = ("rloo", "rlooo")


@dataclass
class Thawed:
    group_size: int = 2
    clip_low = clip_high = None
    kl = entropy = 0.0


class ThawedConfig(Sound):
    Config = Thawed


class NoClass(Sound):
    class Config:
        group_size = 2
        clip_low = clip_high = None
        kl = entropy = 0.0


class OtherArguments(Sound):
    def __init__(self, policy):
        super().__init__(SmallConfig(), policy, None)


class StrayOptimizer(Sound):
    def build(self):
        self.optimizers["critic"] = torch.optim.SGD(self.policy.parameters(), 0.1)


class FitTrainsThePolicy(Sound):
    def fit(self, evidence):
        with torch.no_grad():
            self.policy.levels[1].add_(0.1)
        return {}


class PrepareTrainsThePolicy(Sound):
    def prepare(self, sampler):
        with torch.no_grad():
            self.policy.levels[0].add_(0.1)


class FitForgetsItsMetrics(Sound):
    def fit(self, evidence):
        pass


class FitReturnsWords(Sound):
    def fit(self, evidence):
        return {"loss": "small"}


class FitReturnsTensors(Sound):
    def fit(self, evidence):
        return {"loss": evidence.response_reward.mean()}


class KeepsTensors(Sound):
    def fit(self, evidence):
        self.numbers["mean"] = evidence.response_reward.mean()
        return {}


def noisy(evidence, noise: float):
    return replace(evidence, response_reward=evidence.response_reward + noise)


class GlobalTorch(Sound):
    def collect(self, sampler):
        return noisy(super().collect(sampler), float(torch.rand(())))


class GlobalNumpy(Sound):
    def collect(self, sampler):
        return noisy(super().collect(sampler), np.random.random())  # noqa: NPY002


class GlobalRandom(Sound):
    def fit(self, evidence):
        return {"loss": random.random()}


class OwnUnseeded(Sound):
    def collect(self, sampler):
        return noisy(super().collect(sampler), np.random.default_rng().random())


class CollectsNothing(Sound):
    def collect(self, sampler):
        sampler.rollouts(self.group_size)


class IgnoresLogp(Sound):
    def loss(self, logp, evidence):
        return super().loss(logp, evidence).detach()


class OneLossForAll(Sound):
    def loss(self, logp, evidence):
        return super().loss(logp, evidence).mean()


class OneWeightAResponse(Sound):
    def make_estimator(self):
        @dataclass(frozen=True)
        class Flat(RLOO):
            def advantages(self, evidence):
                return super().advantages(evidence)[..., 0]

        return Flat(**self.common())


class MixesWorlds(Sound):
    def make_estimator(self):
        @dataclass(frozen=True)
        class Mean(RLOO):
            def advantages(self, evidence):
                return (evidence.response_reward - evidence.response_reward.mean())[..., None]

        return Mean(**self.common())


BASE = "subclass llm_mdp_agents.base.Agent, which brings it."
BROKEN = {
    NoConfig: "NoConfig has no `Config`; write a frozen dataclass of its options and set `Config` to it.",
    NothingBut: f"NothingBut has no method `collect`; {BASE}",
    WithCollectOnly: f"WithCollectOnly has no method `advantages`; {BASE}",
    NoAdvantages: f"NoAdvantages has no method `advantages`; {BASE}",
    NoLoss: f"NoLoss has no method `loss`; {BASE}",
    NoPrepare: f"NoPrepare has no method `prepare`; {BASE}",
    NoFit: f"NoFit has no method `fit`; {BASE}",
    NoEstimator: (
        "NoEstimator(config, policy, task, seed) fails: NoEstimator has no `make_estimator`; return the core estimator "
        "that it trains with."
    ),
    NoName: "NoName has no `name`; set it, or subclass llm_mdp_agents.base.Agent, which brings most of them.",
    ListOfClaims: "ListOfClaims.claims is of type list; it must be a tuple.",
    UnknownClaim: "UnknownClaim.claims has 'rlooo', which is no row of the ledger; `llm-mdp verify` lists their ids.",
    ThawedConfig: "Thawed is not a frozen dataclass; put @dataclass(frozen=True) above the options of ThawedConfig.",
    NoClass: "Config is not a frozen dataclass; put @dataclass(frozen=True) above the options of NoClass.",
    OtherArguments: (
        "OtherArguments(config, policy, task, seed) fails: OtherArguments.__init__() takes 2 positional arguments but "
        "5 were given"
    ),
    StrayOptimizer: (
        "StrayOptimizer.optimizers has 'critic', but there is no such model; both go by the same name (`add_model`)."
    ),
    FitTrainsThePolicy: (
        "FitTrainsThePolicy.fit changes the policy (levels.1); the trainer alone updates it, by the gradient of `loss`."
    ),
    PrepareTrainsThePolicy: (
        "PrepareTrainsThePolicy.prepare changes the policy (levels.0); the trainer alone updates it, by the gradient "
        "of `loss`."
    ),
    FitForgetsItsMetrics: (
        "FitForgetsItsMetrics.fit returned None; return a dict of numbers to log, {} if there are none."
    ),
    FitReturnsWords: (
        "FitReturnsWords.fit returned {'loss': 'small'}; return a dict of numbers to log, {} if there are none."
    ),
    KeepsTensors: "KeepsTensors.numbers['mean'] is of type Tensor; checkpoints hold plain numbers: float(…).",
    GlobalTorch: (
        "GlobalTorch draws from the global generator of torch; draw from the sampler, or from the agent's "
        "own `generator`."
    ),
    GlobalNumpy: (
        "GlobalNumpy draws from the global generator of numpy; draw from the sampler, or from the agent's "
        "own `generator`."
    ),
    GlobalRandom: (
        "GlobalRandom draws from the global generator of random; draw from the sampler, or from the agent's "
        "own `generator`."
    ),
    OwnUnseeded: (
        "OwnUnseeded collects other evidence for the same seeds; draw from the sampler and the agent's own `generator`."
    ),
    CollectsNothing: "CollectsNothing.collect returned NoneType; return an llm_mdp.sampling.evidence.Evidence.",
    IgnoresLogp: (
        "IgnoresLogp.loss: loss does not depend on logp; multiply advantages by logp (see objectives.policy_gradient)."
    ),
    OneLossForAll: (
        "OneLossForAll.loss: loss has shape (), but there are worlds (225,): return one number a world, "
        "reducing over the last two dimensions only (dim=(-2, -1))."
    ),
    OneWeightAResponse: (
        "OneWeightAResponse.advantages has shape (225, 2), but tokens have shape (worlds, B, T) = (225, 2, 3); "
        "one weight a response must end in a dimension of 1: add [..., None]."
    ),
    MixesWorlds: (
        "MixesWorlds mixes worlds: evidence may have leading dimensions that must not meet, so reduce over "
        "the last ones only, e.g. response_reward.mean(-1, keepdim=True) instead of response_reward.mean()."
    ),
}


@pytest.mark.parametrize("agent", BROKEN, ids=lambda agent: agent.__name__)
def test_a_broken_agent_is_told_what_is_wrong(agent):
    with pytest.raises(AgentError, match=f"^{re.escape(BROKEN[agent])}$"):
        check_agent(agent)


def test_tensors_among_the_metrics_are_refused():
    with pytest.raises(
        AgentError, match=r"^FitReturnsTensors\.fit returned \{'loss': tensor\(.*\)\}; return a dict of numbers to log"
    ):
        check_agent(FitReturnsTensors)


def test_the_sound_one_passes():
    check_agent(Sound)
    check_agent(made(Sound))


def test_an_object_on_a_task_without_token_mdp_cannot_be_checked():
    task = Arithmetic()
    agent = RLOOAgent(RLOOConfig(), NgramPolicy.random(task.vocab_size, 1, torch.Generator().manual_seed(0)), task)
    with pytest.raises(
        AgentError,
        match=r"^RLOOAgent\.task has no token MDP; make the agent on one, such as llm_mdp_envs\.tasks\.synthetic\.Tab",
    ):
        check_agent(agent)


def test_a_boundary_drawn_afresh_in_every_batch_is_no_second_answer():
    """The agent's own generator moves on; that is not what "two answers to the same samples" means."""

    class Drawn(WithSegments, Sound):
        @dataclass(frozen=True)
        class Config(SegmentConfig):
            group_size: int = 2
            boundary: str = "random"

        def make_estimator(self):
            from llm_mdp.estimators.algorithms import VinePPO

            return VinePPO(**self.common(), boundary=self.boundary, temperatures=(1.0,))

    check_agent(Drawn)
