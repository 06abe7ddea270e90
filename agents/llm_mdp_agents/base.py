"""What all agents share: an estimator of the core, verified as it stands, and the models that are trained beside the
policy."""

from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, Boundary, EveryNTokens
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.objectives import KL
from llm_mdp.estimators.practices import KLLoss, KLReward
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Policy
from llm_mdp.sampling.sampler import BatchSampler, Sampler
from llm_mdp_agents.action_masks import mask_policy, task_mask
from llm_mdp_agents.models import SequenceScorer, frozen, scorer
from llm_mdp_envs.task import Task


@dataclass(frozen=True)
class AgentConfig:
    """Options of every agent."""

    least_group: ClassVar[int] = 1
    """Responses that the estimator needs of each prompt."""

    group_size: int = 8
    """K, responses drawn to each prompt."""
    clip_low: float | None = None
    """ε of the clipped surrogate, below; None: plain policy gradient. The first update on a batch is the same with and
    without."""
    clip_high: float | None = None
    """ε above; None: as below."""
    kl: float = 0.0
    """β of the penalty β KL(π ‖ reference), the reference being the policy before training; 0: no penalty."""
    kl_in: Literal["reward", "loss"] = "reward"
    """Where the penalty acts. Only k1 in the reward has the gradient of the divergence (claims kl-*)."""
    kl_estimator: KL = "k1"
    """Which estimate of the divergence, see `llm_mdp.estimators.objectives.kl_estimate`."""

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            choices = [
                choice for part in (hint, *get_args(hint)) if get_origin(part) is Literal for choice in get_args(part)
            ]
            value = getattr(self, name)
            if choices and value not in choices and not (value is None and NoneType in get_args(hint)):
                raise ValueError(f"{name} is {value!r}; choose {', '.join(map(repr, choices))}.")
        if self.group_size < self.least_group:
            raise ValueError(
                f"group_size is {self.group_size}; this agent needs at least {self.least_group} responses to a prompt."
            )
        for name in ("clip_low", "clip_high"):
            if (clip := getattr(self, name)) is not None and not clip > 0:
                raise ValueError(f"{name} is {clip}; it must be above 0, or None for no clipping.")
        if self.kl < 0:
            raise ValueError(f"kl is {self.kl}; the weight of the penalty is at least 0.")
        if self.kl and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                'kl_estimator "k1" in the loss has no gradient (claim kl-k1-loss); put it into the reward, or take k2 '
                "or k3."
            )


@dataclass(frozen=True)
class CriticConfig(AgentConfig):
    """Options of agents with a learned critic."""

    critic: str | None = None
    """A sequence classifier with one label to start from; None: the policy's own body with a new head (tables: a small
    transformer)."""
    critic_learning_rate: float = 1e-3
    critic_epochs: int = 1
    """Passes over each batch."""
    critic_warm_up: int = 10
    """Batches on which the critic is trained before the policy's first update."""
    lam: float = 0.95
    """λ of GAE. With a learned critic only 1 is unbiased (claims gae-wrong-*)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam is {self.lam}; it must be in [0, 1].")


@dataclass(frozen=True)
class SegmentConfig(AgentConfig):
    """Options of agents that cut responses into segments, always by a stopping rule (claim trepo-own-length is why)."""

    boundary: Literal["every", "separators", "random"] = "every"
    """A segment begins: every n tokens, after certain tokens, or at random steps drawn before the responses."""
    every: int = 1
    """n of "every"."""
    separators: tuple[int, ...] = ()
    """Token ids of "separators": the next segment begins after one of them."""
    positions: int = 4
    """|D| of "random": steps drawn anew for each batch, uniform over the horizon, the first step besides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boundary == "separators" and not self.separators:
            raise ValueError('boundary is "separators", but there are none; give token ids in `separators`.')
        if self.positions < 1:
            raise ValueError(f"positions is {self.positions}; draw at least 1.")


@dataclass(frozen=True)
class BranchConfig(SegmentConfig):
    """Options of agents whose values are means of fresh responses."""

    samples: int = 2
    """M, branches from each boundary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; a value needs at least 1 branch.")


@dataclass(frozen=True)
class RewardModelConfig(AgentConfig):
    """Options of agents that look into a reward model."""

    reward_model: str | None = None
    """A trained sequence classifier with one label, left as it is; None: a new one, fitted to the rewards as they
    come."""
    reward_model_learning_rate: float = 1e-3
    reward_model_warm_up: int = 10
    """Batches on which a new one is fitted before the policy's first update."""


Options = TypeVar("Options", bound=AgentConfig)
CriticOptions = TypeVar("CriticOptions", bound=CriticConfig)
SegmentOptions = TypeVar("SegmentOptions", bound=SegmentConfig)
RewardModelOptions = TypeVar("RewardModelOptions", bound=RewardModelConfig)


class Agent(Generic[Options]):
    """An algorithm at work.

    `collect`, `advantages` and `loss` are those of a core estimator, plus the KL penalty if there is one;
    `exact_certificate(agent, …)` takes an agent as the trainer runs it. Subclasses make the estimator
    (`make_estimator`) and train what else they need (`prepare`, `fit`).

    Args:
        config: its options.
        policy: what is trained; reference policies are copies of it as it is now.
        task: for the shapes of auxiliary models.
        seed: of auxiliary models and of the agent's own draws.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where it was published, and its equations in the paper that this project checks."""
    named: ClassVar[str] = ""
    """Its estimator in the catalogue, where that has another name than the agent."""
    claims: ClassVar[tuple[str, ...]] = ()
    """Rows of the ledger that are about it; those that the catalogue lists, if it does not say."""
    why_the_default: ClassVar[str] = ""
    """Where the certificate of the default options says biased: why they are the default all the same."""
    Config: ClassVar[type[AgentConfig]] = AgentConfig

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        entry = CATALOGUE.get(cls.named or vars(cls).get("name", ""))
        if entry is not None and "claims" not in vars(cls):
            cls.claims = entry.rows

    def __init__(self, config: Options, policy: Policy, task: Task, seed: int = 0):
        self.config, self.policy, self.task, self.seed = config, policy, task, seed
        # Before any copy of it is made, for copies obey the masks that they find.
        mask_policy(policy, task_mask(task))
        self.generator = torch.Generator().manual_seed(seed)
        self.models: dict[str, Any] = {}
        """Every `nn.Module` that is kept or trained beside the policy."""
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.numbers: dict[str, float] = {}
        """What else is learned: running means and the like."""
        if config.kl:
            self.models["reference"] = frozen(policy)
        self.build()
        self.estimator = self.make_estimator()

    def build(self) -> None:
        """Make auxiliary models."""

    def make_estimator(self) -> Estimator:
        """The core estimator in its present state; asked again after `fit`."""
        raise NotImplementedError(
            f"{type(self).__name__} has no `make_estimator`; return the core estimator that it trains with."
        )

    def common(self) -> dict[str, Any]:
        """The options that every estimator has."""
        return {
            "group_size": self.config.group_size,
            "clip_low": self.config.clip_low,
            "clip_high": self.config.clip_high,
        }

    @property
    def group_size(self) -> int:
        return self.estimator.group_size

    @property
    def prompts(self) -> int | None:
        """Prompts of a batch, over all processes, where the agent chooses their number in `prepare`; None: it does
        not."""
        return None

    @property
    def behaviour(self) -> Policy:
        """The policy that draws the responses."""
        return self.policy

    def collect(self, sampler: Sampler) -> Evidence:
        """Draw what `advantages` needs. All randomness, no gradient."""
        evidence = self.estimator.collect(sampler)
        if self.config.kl:
            evidence = replace(evidence, reference_logp=sampler.logp(self.models["reference"], evidence.rollouts))
        return evidence

    def advantages(self, evidence: Evidence) -> Float[Tensor, "*worlds B T"]:
        """One weight for every token, without the penalty."""
        return self.estimator.advantages(evidence)

    def loss(self, logp: Float[Tensor, "*worlds B T"], evidence: Evidence) -> Float[Tensor, "*worlds"]:
        """What is minimised: the estimator's loss + β KL(π ‖ reference). No sampling, no model."""
        loss, config = self.estimator.loss(logp, evidence), self.config
        if config.kl:
            penalty = KLReward if config.kl_in == "reward" else KLLoss
            loss = loss + config.kl * penalty(**self.common(), kind=config.kl_estimator).loss(logp, evidence)
        return loss

    def displacement(self, first_update: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"] | None:
        """See `Estimator.displacement`."""
        return self.estimator.displacement(first_update)

    def prepare(self, sampler: BatchSampler) -> None:
        """What comes before the first update of the policy: reward models, critics, preference models."""

    def fit(self, evidence: Evidence) -> dict[str, float]:
        """Train the auxiliary models on a batch after its advantages were taken; returns metrics."""
        return {}

    def optimize(self, name: str, loss: Tensor) -> float:
        """One step of an auxiliary model's optimizer."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.models[name].parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    def add_model(self, name: str, model: nn.Module | Policy, learning_rate: float) -> None:
        """Train this model beside the policy."""
        assert isinstance(model, nn.Module)
        self.models[name] = model
        self.optimizers[name] = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.0)


class WithCritic(Agent[CriticOptions]):
    """Base of agents with a learned value of every prefix: regression on RM(W), the return of the zero-reward
    reading."""

    def build(self) -> None:
        model = scorer(self.policy, self.task, self.seed, self.config.critic)
        self.add_model("critic", model, self.config.critic_learning_rate)

    def prepare(self, sampler: BatchSampler) -> None:
        for _ in range(self.config.critic_warm_up):
            self.fit(self.collect(sampler))

    def fit(self, evidence: Evidence) -> dict[str, float]:
        critic, rollouts = self.models["critic"], evidence.rollouts
        losses = []
        for _ in range(self.config.critic_epochs):
            value = critic(rollouts.prompt, rollouts.tokens, rollouts.mask)[..., :-1]
            error = torch.where(rollouts.mask, value - evidence.response_reward[:, None], 0.0)
            losses.append(self.optimize("critic", (error**2).sum() / rollouts.mask.sum()))
        return {"critic/loss": losses[0]} if losses else {}


class WithSegments(Agent[SegmentOptions]):
    """Base of agents that cut responses into segments."""

    drawn: AtSteps | None = None

    @property
    def boundary(self) -> Boundary:
        if self.config.boundary == "separators":
            return AfterTokens(self.config.separators)
        if self.config.boundary == "random":
            return self.drawn or AtSteps(())
        return EveryNTokens(self.config.every)

    def collect(self, sampler: Sampler) -> Evidence:
        if self.config.boundary == "random":
            steps = torch.randperm(self.task.horizon, generator=self.generator)[: self.config.positions]
            self.drawn = AtSteps(tuple(steps.tolist()))
            self.estimator = self.make_estimator()
        return super().collect(sampler)


class WithRewardModel(Agent[RewardModelOptions]):
    """Base of agents with a model of RM(W), fitted to the environment's rewards of whole responses."""

    def build(self) -> None:
        model = scorer(self.policy, self.task, self.seed, self.config.reward_model)
        self.add_model("reward_model", model, self.config.reward_model_learning_rate)

    def prepare(self, sampler: BatchSampler) -> None:
        for _ in range(0 if self.config.reward_model else self.config.reward_model_warm_up):
            self.fit(self.collect(sampler))

    def fit(self, evidence: Evidence) -> dict[str, float]:
        if self.config.reward_model:
            return {}
        model, rollouts = self.models["reward_model"], evidence.rollouts
        assert isinstance(model, SequenceScorer)
        error = model.final(rollouts.prompt, rollouts.tokens) - evidence.response_reward
        return {"reward_model/loss": self.optimize("reward_model", (error**2).mean())}


class Plain(Agent[AgentConfig]):
    """Any estimator as an agent: of the catalogue, or a user's own."""

    name = "yours"
    paper = "your own"
    claims = ()

    def __init__(self, estimator: Estimator, policy: Policy, task: Task, seed: int = 0, name: str = "yours"):
        self._given, self.name = estimator, name  # pyright: ignore[reportAttributeAccessIssue]
        super().__init__(AgentConfig(group_size=estimator.group_size), policy, task, seed)

    def make_estimator(self) -> Estimator:
        return self._given
