"""What all agents share: an estimator of the core, verified as it stands, and the models that are trained beside the
policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.objectives import KL
from llm_mdp.estimators.practices import EntropyReward, KLLoss, KLReward
from llm_mdp.sampling.evidence import Evidence, Rollouts
from llm_mdp.sampling.policies import Policy, logp_of
from llm_mdp.sampling.sampler import BatchSampler, Sampler
from llm_mdp_agents.action_masks import mask_policy, task_mask
from llm_mdp_agents.models import frozen, parameter_groups
from llm_mdp_agents.optimizers import OptimizerWithMasters
from llm_mdp_agents.penalties import Schedule, check_coefficients, controlled, left, measured_kl, without_reference
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
    kl_target: float | None = None
    """KL(π ‖ reference) of a response, in nats, that β is steered to from `kl` on (Ziegler et al. 2019); None: β stays
    what it is, or follows `kl_schedule`."""
    kl_schedule: Schedule = "constant"
    """Of β over the steps of the run: linear and cosine fall to 0."""
    entropy: float = 0.0
    """β of the bonus β H(π) for the entropy of the response, by its exact gradient (claim entropy-reward); 0: no
    bonus."""
    entropy_schedule: Schedule = "constant"
    """Of the bonus, as `kl_schedule`."""

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
        check_coefficients(self.kl, self.kl_target, self.kl_schedule, self.entropy, self.entropy_schedule)
        if self.kl and self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError(
                'kl_estimator "k1" in the loss has no gradient (claim kl-k1-loss); put it into the reward, or take k2 '
                "or k3."
            )


Options = TypeVar("Options", bound=AgentConfig)


class Agent(Generic[Options]):
    """An algorithm at work.

    `collect`, `advantages` and `loss` are those of a core estimator, plus KL penalty and entropy bonus if there are
    any; `exact_certificate(agent, …)` takes an agent as the trainer runs it. Subclasses make the estimator
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
        self.optimizers: dict[str, OptimizerWithMasters] = {}
        self.numbers: dict[str, float] = {}
        """What else is learned: running means and the like."""
        self.waiting: dict[str, Tensor] = {}
        """A batch that `prepare` drew and the first step takes; {}: there is none."""
        self.notes: list[str] = []
        """What was chosen where nobody said, a sentence each, for people."""
        self.steps: int | None = None
        """Steps of the run, and below those that are done; the trainer says so. None: there is no trainer."""
        self.steps_done = 0
        self.rank = 0
        """Which of the processes that share a batch this is; the trainer says so."""
        self.report: Callable[[str, int, int], None] = lambda stage, done, total: None
        """Told how far `prepare` is: (what it does, how much of it is done, of how much)."""
        self.rows_at_once: int | None = None
        """Most rows that go through an auxiliary model at once, set by the trainer (`micro_batch`); None: all."""
        self.told: dict[str, float] = {}
        """Figures of the latest batch that `collect` alone knows."""
        if config.kl:
            self.models["reference"] = frozen(policy)
        self.build()
        if config.entropy and self.behaviour is not policy:
            raise ValueError(
                f"entropy is {config.entropy}, but {self.name} draws from another policy than the one that trains, so "
                f"its responses do not say how varied that one is; leave entropy at 0."
            )
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
        """What is minimised: the estimator's loss + β KL(π ‖ reference) - β' H(π). No sampling, no model."""
        loss, config = self.estimator.loss(logp, evidence), self.config
        if config.kl:
            penalty = KLReward if config.kl_in == "reward" else KLLoss
            loss = loss + self.kl * penalty(**self.common(), kind=config.kl_estimator).loss(logp, evidence)
        if config.entropy:
            options = self.common() | {"group_size": self.group_size, "group_baseline": self.group_size > 1}
            bonus = EntropyReward(**options).loss(logp, without_reference(evidence))
            loss = loss + self.entropy * bonus
        return loss

    @property
    def kl(self) -> float:
        """β of the KL penalty at this step."""
        return self.numbers.get("kl", self.config.kl) * left(self.config.kl_schedule, self.steps_done, self.steps)

    @property
    def entropy(self) -> float:
        """β of the entropy bonus at this step."""
        return self.config.entropy * left(self.config.entropy_schedule, self.steps_done, self.steps)

    def displacement(self, first_update: Float[Tensor, " parameters"]) -> Float[Tensor, " parameters"] | None:
        """See `Estimator.displacement`."""
        return self.estimator.displacement(first_update)

    def prepare(self, sampler: BatchSampler) -> None:
        """What comes before the first update of the policy: reward models, critics, preference models."""

    def fit(self, evidence: Evidence) -> dict[str, float]:
        """Train the auxiliary models on a batch after its advantages were taken; returns metrics."""
        return {}

    def finish_batch(self, evidence: Evidence) -> dict[str, float]:
        """What comes after a batch's updates and `fit` in every agent: the KL penalty is steered to its target. Returns
        metrics: coefficients that change, branches, and what `collect` told."""
        config, metrics = self.config, dict(self.told)
        if config.kl_target is not None or config.kl_schedule != "constant":
            metrics["kl_coefficient"] = self.kl
        if config.entropy:
            metrics["entropy_coefficient"] = self.entropy
        if config.kl_target is not None:
            self.numbers["kl"] = controlled(self.kl, measured_kl(evidence), config.kl_target)
        if evidence.branches is not None:
            metrics["branches"] = float(len(evidence.branches.row))
        return metrics

    def optimize(
        self, name: str, outputs: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], rows: int
    ) -> tuple[float, Tensor]:
        """One step of an auxiliary model's optimizer; returns the loss before it and all outputs.

        No more than `rows_at_once` rows go through the model together. The loss may be any function of all outputs (a
        mean over tokens, pairs of rows): its derivative by them is taken first, as the trainer does it, so that parts
        never change the gradient. They cost one more forward pass.

        Args:
            outputs: what the model says of some rows, given their numbers: (n, …), differentiable.
            loss: of the outputs of all rows, on which alone it depends.
            rows: how many there are.

        Raises:
            ValueError: if the loss or the gradient is not finite; the model stays as it was.
        """
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        parts = torch.arange(rows).split(self.rows_at_once or max(rows, 1))
        with torch.set_grad_enabled(len(parts) == 1):
            everything = torch.cat([outputs(part) for part in parts])
        if len(parts) > 1:
            everything.requires_grad_()
        value = loss(everything)
        if len(parts) == 1:
            value.backward()
        else:
            (weights,) = torch.autograd.grad(value, everything)
            for part in parts:
                (outputs(part) * weights[part]).sum().backward()
                optimizer.take_gradients()
        optimizer.take_gradients()
        norm = nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        if not (torch.isfinite(value) and torch.isfinite(norm)):
            optimizer.zero_grad()
            raise ValueError(
                f"the loss of the {name} is {float(value.detach())} and its gradient has length {float(norm)}; lower "
                f"its learning rate, or look for a reward without bounds."
            )
        optimizer.step()
        optimizer.zero_grad()
        return float(value.detach()), everything.detach()

    def optimize_policy(
        self, name: str, rollouts: Rollouts, loss: Callable[[Float[Tensor, "B T"]], Float[Tensor, ""]]
    ) -> float:
        """`optimize` for a model that is a policy: the loss is one of the log-probabilities (float64, 0 where the
        policy wrote nothing) that it gives to these responses. Returns the loss before the step."""
        model = self.models[name]

        def outputs(rows: Tensor) -> Tensor:
            return logp_of(model, rollouts.prompt[rows], rollouts.tokens[rows], rollouts.mask[rows]).double()

        return self.optimize(name, outputs, loss, len(rollouts.tokens))[0]

    def add_model(self, name: str, model: nn.Module | Policy, learning_rate: float | None = None) -> None:
        """Train this model beside the policy.

        Args: learning_rate: None: by kind and size (`models.default_learning_rate`); a new head learns faster.
        """
        assert isinstance(model, nn.Module)
        self.models[name] = model
        self.optimizers[name] = OptimizerWithMasters(parameter_groups(model, learning_rate))


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
