"""How to train, whatever the agent."""

import math
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from types import NoneType
from typing import Any, Literal, get_args

from llm_mdp_agents.optimizers import check_optimizer
from llm_mdp_agents.penalties import Schedule


@dataclass(frozen=True)
class TrainConfig:
    """How to train, whatever the agent."""

    steps: int | None = None
    """Batches; None: 500, and 100 for language models that have a name or 20 million parameters."""
    prompts_per_step: int | None = None
    """Prompts of a batch, over all processes; None: 128 for tables and small models, 8 for large ones."""
    epochs: int = 1
    """Updates on each batch; from the second on the clipped surrogate is biased (claim ppo-second-epoch)."""
    micro_batch: int | None = None
    """Most responses that go through the model at once; None: all. Never changes the gradient."""
    learning_rate: float | None = None
    """None: 0.05 for tables, 2e-4 for small models, 1e-4 for LoRA, 1e-5 for other large models."""
    optimizer: str = "AdamW"
    """A name in `torch.optim`; weights of 16 bits are trained by copies in float32."""
    schedule: Schedule = "constant"
    """Of the learning rate, after the warm-up."""
    warm_up_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Longer gradients are shortened to this."""
    eval_every: int = 20
    """Steps between evaluations; the first comes before training and one after it."""
    eval_prompts: int | None = None
    """Most questions of an evaluation, the same ones every time; None: 256, and 64 for those language models. Training
    never asks them, unless it would lose more than a quarter of its own."""
    eval_split: float | None = None
    """Share of the questions that is kept for evaluation, chosen by what they ask; 0: evaluate on those of the
    training; None: `eval_prompts` of them."""
    eval_problems: str | None = None
    """Evaluate on the problems of this file instead, for tasks over a list of problems."""
    best_by: str = "eval/reward"
    """The metric of the evaluations by which the best checkpoint is kept: the larger the better."""
    save: Literal["last", "best"] = "last"
    """Which weights the run leaves in its folder `model`."""
    stop_after: int | None = None
    """Stop after this many evaluations in a row without a better `best_by`; None: never."""
    signal_every: int = 10
    """Steps between measurements of the gradient's signal-to-noise ratio, and of what `measure_share` is for; 0:
    never."""
    measure_share: float = 0.05
    """Most of the run that goes into the agent's expected gradient on the questions of the evaluation: its cosine to
    RLOO's, and the tokens at which its noise equals its signal (`own_gradient`); as often as this affords, 0: never."""
    checkpoint_every: int = 50
    """Steps between checkpoints, where there is a folder for them."""
    keep: int = 2
    """Checkpoints that stay."""
    seed: int = 0
    """Of prompts, responses and auxiliary models."""
    deterministic: bool = False
    """On a GPU: kernels that add up in one order, where there are such (slower); the CPU always does."""
    float32_matmul: Literal["highest", "high"] = "highest"
    """Products of float32 in float32, or ("high", on GPUs with TF32) faster and rounded to 10 bits; log-probabilities
    are then scored again as in 16 bits."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value, kinds = getattr(self, field.name), get_args(field.type) or (field.type,)
            kind = Integral if int in kinds else Real if float in kinds else object
            if not isinstance(value, kind) and not (value is None and NoneType in kinds):
                raise ValueError(f"{field.name} is {value!r}; it must be a {'whole ' * (int in kinds)}number.")
        for name in ("epochs", "eval_every", "checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("steps", "eval_prompts", "prompts_per_step", "micro_batch", "stop_after"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} is {number}; it must be at least 1.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0.")
        for name in ("warm_up_steps", "signal_every", "seed", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if not 0 <= self.measure_share <= 1:
            raise ValueError(f"measure_share is {self.measure_share}; it is a share of the run, from 0 to 1.")
        if self.eval_split is not None and not 0 <= self.eval_split < 1:
            raise ValueError(f"eval_split is {self.eval_split}; it is a share, at least 0 and below 1.")
        if self.eval_split is not None and self.eval_problems is not None:
            raise ValueError(
                f"eval_split is {self.eval_split} and eval_problems {self.eval_problems!r}; choose one of them."
            )
        if not self.best_by.startswith("eval/"):
            raise ValueError(f"best_by is {self.best_by!r}; name a metric of the evaluations, such as 'eval/reward'.")
        check_optimizer(self.optimizer)
        if not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm is {self.max_grad_norm}; it must be above 0.")
        if self.float32_matmul not in ("highest", "high"):
            raise ValueError(f"float32_matmul is {self.float32_matmul!r}; choose 'highest' or 'high'.")

    @property
    def n_steps(self) -> int:
        """Batches, where nobody said how many those of a small model."""
        return 500 if self.steps is None else self.steps

    @property
    def n_eval_prompts(self) -> int:
        """Questions of an evaluation, where nobody said how many those of a small model."""
        return 256 if self.eval_prompts is None else self.eval_prompts

    def filled(self, large: bool) -> "TrainConfig":
        """With what nobody said by the size of the model."""
        if not large:
            return replace(self, steps=self.n_steps, eval_prompts=self.n_eval_prompts)
        return replace(self, steps=self.steps or 100, eval_prompts=self.eval_prompts or 64)


def replaced(config: TrainConfig, options: dict[str, Any]) -> TrainConfig:
    """With these options instead.

    Raises:
        ValueError: if there is no such option.
    """
    for name in options:
        if name not in TrainConfig.__dataclass_fields__:
            raise ValueError(f"train has no option {name!r}; it has {', '.join(TrainConfig.__dataclass_fields__)}.")
    return replace(config, **options)
