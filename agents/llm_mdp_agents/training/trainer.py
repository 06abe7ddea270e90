"""Training: collect, loss, step; with the loss that verification sees.

The loss depends on the policy through `logp` alone, so its derivative by `logp`, one weight a token of the whole batch,
is taken first; then the responses go through the model in parts, each part's log-probabilities times its weights.
Splitting a batch into parts, or over processes, therefore never changes the gradient, whatever the reduction; and rows
without weight need not be read at all.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from llm_mdp.estimators.values import has_signal
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts, take_rows
from llm_mdp.sampling.policies import Policy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp_agents.base import Agent
from llm_mdp_agents.lm.engines import Engine
from llm_mdp_agents.models import ScoredTask, default_learning_rate, is_large
from llm_mdp_agents.optimizers import OptimizerWithMasters
from llm_mdp_agents.penalties import left, measured_kl
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.evaluation import Evaluation, evaluation
from llm_mdp_agents.training.first_ratio import check_first_ratio, is_half
from llm_mdp_agents.training.graded import columns, graded, joined
from llm_mdp_agents.training.own_gradient import OwnGradient
from llm_mdp_agents.training.parallel import Parallel
from llm_mdp_agents.training.questions import EvalQuestions, TrainQuestions, eval_questions
from llm_mdp_agents.training.state import fingerprint, frozen_names, restore, state_of
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_envs.task import Task


class NonFinite(RuntimeError):
    """A number of the batch is not finite; nothing was updated."""


class Trainer:
    """One agent on one task. `step` is one batch; `state` and `restore` are all that decides how it goes on.

    Args:
        parallel: the group of processes; by default this one alone.
        engine: who draws the responses; by default the policy itself.
        folder: where a batch goes that could not be used; None: nowhere.
        asked: what the evaluations ask; None: see `eval_questions`.
    """

    def __init__(
        self, agent: Agent, task: Task, policy: Policy, config: TrainConfig, parallel: Parallel | None = None,
        folder: Path | None = None, engine: Engine | None = None, asked: EvalQuestions | None = None,
    ):  # fmt: skip
        assert isinstance(policy, nn.Module)
        self.agent, self.task, self.policy, self.config, self.folder = agent, task, policy, config, folder
        agent.rows_at_once, agent.steps = config.micro_batch, config.n_steps
        if isinstance(task, ScoredTask):
            task.rows_at_once = config.micro_batch
        self.parallel = parallel or Parallel()
        agent.rank = self.parallel.rank
        self.prompts = config.prompts_per_step or (8 if is_large(policy) else 128)
        if config.prompts_per_step is not None and getattr(agent.config, "budget", None) is not None:
            raise ValueError(
                f"prompts_per_step is {config.prompts_per_step}, but the agent's budget decides how many prompts are "
                f"asked; leave one out."
            )
        if self.prompts % self.parallel.size:
            raise ValueError(
                f"prompts_per_step is {self.prompts}, which {self.parallel.size} processes cannot share evenly."
            )
        self.number = 0
        self.scorer = self.parallel.prepare(policy)
        check_trainable(policy)
        trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        rate = config.learning_rate or default_learning_rate(policy)
        self.optimizer = OptimizerWithMasters([(trained, rate)], config.optimizer, config.weight_decay)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer.torch, self._rate)
        self.half, self.ratio_checked = is_half(policy) or config.float32_matmul == "high", False
        self.generator, self.questions = streams([config.seed, self.parallel.rank])
        self.asked = asked or eval_questions(task, config.n_eval_prompts, config.seed, config.eval_split)
        self.ask = TrainQuestions(task, self.asked, [config.seed], self.parallel.rank, self.parallel.size)
        self.sampler = TaskSampler(
            agent.behaviour,
            task,
            self.generator,
            self.questions,
            self.prompts // self.parallel.size,
            config.micro_batch,
            engine,
            self.ask,
        )
        self.own_gradient = OwnGradient(
            agent, policy, self.asked, self.parallel, share=config.measure_share, every=config.signal_every,
            seed=config.seed, rows_at_once=config.micro_batch,
        )  # fmt: skip

    def prepare(self) -> None:
        """What the agent trains before the first update: on whole batches that all processes draw alike, so that its
        models stay alike."""
        config = self.config
        sampler = TaskSampler(
            self.agent.behaviour,
            self.task,
            *streams([config.seed, self.parallel.size]),
            self.prompts,
            config.micro_batch,
            self.sampler.engine,
            TrainQuestions(self.task, self.asked, [config.seed, 1]),
        )
        sampler.cost = self.sampler.cost
        self.parallel.on_whole_model(self.policy, lambda: self.agent.prepare(sampler))
        self._keep_alike()
        self._take_prompts()

    def _keep_alike(self) -> None:
        """What every process trains for itself, as the first one has it."""
        self.parallel.same(self.agent.models[name] for name in self.agent.optimizers)

    def _take_prompts(self) -> None:
        """Where the agent chooses the number of prompts: as many as it says, and every process its part of them, at
        least one."""
        if (chosen := self.agent.prompts) is not None:
            self.sampler.prompts_per_batch = max(chosen // self.parallel.size, 1)

    def step(self) -> dict[str, float]:
        """One batch: collect, update, fit the agent's other models. Returns what to log.

        Raises:
            NonFinite: before anything is updated; the batch is in the folder `failed`.
        """
        start, tokens = time.perf_counter(), self.sampler.cost.tokens
        self.agent.steps_done = self.number
        self.number += 1
        self.sampler.scores.clear()
        # Not kept while the next batch is drawn.
        self.optimizer.zero_grad()
        known = self.own_gradient.figures(self.number, self.sampler.prompts_per_batch * self.parallel.size)
        whole, own = self.parallel.gather(self.parallel.on_whole_model(self.policy, self._collect))
        if whole is None:
            self.scheduler.step()
            return {"skipped": 1.0, "groups_with_signal": 0.0, **known}
        self._check(whole, "reward", whole.response_reward)
        whole, rounding = self._scored_as_trained(whole, own)
        metrics = describe(whole, self.agent.group_size) | self._graded() | rounding | known
        for epoch in range(self.config.epochs):
            weights, loss = self._weights(whole, own, drawn_now=epoch == 0 and self.agent.behaviour is self.policy)
            measured = epoch == 0 and self.config.signal_every > 0 and self.number % self.config.signal_every == 0
            update = self._update(whole, weights, own, measured and len(weights) >= 2 * self.agent.group_size)
            if epoch == 0:
                metrics |= {"loss": loss, **update}
        self.scheduler.step()
        metrics |= self.parallel.on_whole_model(self.policy, lambda: self.agent.fit(whole))
        self._keep_alike()
        metrics |= self.agent.finish_batch(whole)
        seconds, drawn = time.perf_counter() - start, (self.sampler.cost.tokens - tokens) * self.parallel.size
        metrics |= {"seconds": seconds, "tokens": drawn, "tokens_per_second": drawn / seconds}
        return metrics | {"learning_rate": float(self.scheduler.get_last_lr()[0])}

    def evaluate(self) -> dict[str, float]:
        """The figures of `evaluation`."""
        return self.evaluation().figures

    def evaluation(self, shown: int = 0) -> Evaluation:
        """The policy as it is, on questions that are the same every time; so many responses in words."""
        return self.parallel.on_whole_model(
            self.policy, lambda: evaluation(self.policy, self.asked, self.config.seed, shown)
        )

    def _graded(self) -> dict[str, float]:
        """What the task says of all responses of this batch that any process scored."""
        return graded(joined(self.parallel.everyone(columns(self.sampler.scores))))

    def _collect(self) -> Evidence | None:
        try:
            return self.agent.collect(self.sampler)
        except NothingKept:
            return None

    def _scored_as_trained(self, whole: Evidence, own: range) -> tuple[Evidence, dict[str, float]]:
        """The batch with the log-probabilities that training scores: those that were drawn, except in 16 bits, where
        drawing and scoring round apart. The first batch is scored again in any precision, to see that they agree.

        Raises:
            FirstRatio: if they do not.
        """
        drawn, behaviour = whole.rollouts.logp, self.agent.behaviour
        if not self.ratio_checked:
            check_first_ratio(
                whole,
                lambda rollouts: self.parallel.on_whole_model(
                    self.policy, lambda: self.sampler.logp(behaviour, rollouts)
                ),
                self.half,
                drawn,
            )
            self.ratio_checked = True
        if not self.half:
            return whole, {}
        logp, mask = self._score(behaviour, whole, own), whole.rollouts.mask
        difference = float((logp - drawn)[mask].abs().mean()) if mask.any() else 0.0
        return replace(whole, rollouts=replace(whole.rollouts, logp=logp)), {"rounding": difference}

    def _score(self, policy: Policy, whole: Evidence, own: range) -> Float[Tensor, "B T"]:
        """Log-probabilities of the whole batch, of which every process scores its own rows."""
        rollouts = take_rows(whole, torch.tensor(own, dtype=torch.int64)).rollouts
        mine = self.parallel.on_whole_model(
            self.policy, lambda: self.sampler.logp(policy, rollouts) if own else rollouts.logp
        )
        return self.parallel.gather_rows(mine)

    def _weights(self, whole: Evidence, own: range, drawn_now: bool) -> tuple[Float[Tensor, "B T"], float]:
        """∂loss/∂logp of every token of the batch. The policy that drew it has the log-probabilities already."""
        logp = whole.rollouts.logp if drawn_now else self._score(self.policy, whole, own)
        logp = logp.clone().requires_grad_()
        loss = self.agent.loss(logp, whole)
        (weights,) = torch.autograd.grad(loss, logp)
        weights = torch.where(whole.rollouts.mask, weights, 0.0)
        self._check(whole, "loss", loss)
        self._check(whole, "derivative of the loss", weights)
        return weights, float(loss.detach())

    def _update(self, whole: Evidence, weights: Float[Tensor, "B T"], own: range, measured: bool) -> dict[str, float]:
        """One step along Σ weight ∇log π."""
        self.optimizer.zero_grad()
        first_half: list[Tensor | None] | None = None
        metrics = {}
        for rows, last in self._parts(weights, own, measured):
            self._backward(whole.rollouts, weights, rows, last)
            # What a process has before the last part is not yet averaged over all of them.
            if last or self.parallel.size == 1:
                self.optimizer.take_gradients()
            if measured and last and first_half is None:
                first_half = [None if each.grad is None else each.grad.clone() for each in self.optimizer.parameters]
            elif first_half is not None and last:
                metrics["signal_to_noise"] = self._signal_to_noise(first_half)
        norm = self.parallel.clip(self.optimizer.parameters, self.config.max_grad_norm)
        self._check(whole, "gradient norm", torch.tensor(norm))
        self.optimizer.step()
        return {"gradient_norm": norm, **metrics}

    def _parts(self, weights: Tensor, own: range, measured: bool) -> Iterator[tuple[Tensor, bool]]:
        """This process's rows with weight, in parts of at most micro_batch, and whether a part is the last: of the
        batch, or of either half of its groups. Every process has as many parts, some of them empty, for they wait for
        one another."""
        group_size, here = self.agent.group_size, torch.tensor(own, dtype=torch.int64)
        # Where groups are odd in number, every other process has the larger half first.
        boundary = (len(own) // group_size + self.parallel.rank % 2) // 2 * group_size if measured else 0
        for side in ([here[:boundary]] if measured else []) + [here[boundary:]]:
            rows = side[(weights[side] != 0).any(-1)]
            parts = list(rows.split(self.config.micro_batch or max(len(rows), 1)))
            parts += [rows[:0]] * (self.parallel.most(len(parts)) - len(parts))
            for number, part in enumerate(parts):
                yield part, number == len(parts) - 1

    def _backward(self, rollouts: Rollouts, weights: Tensor, rows: Tensor, last: bool) -> None:
        if not len(rows) and self.parallel.size == 1:
            return
        here = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
        with self.parallel.accumulate(last):
            logp = self.scorer(rollouts.prompt[here], rollouts.tokens[here], rollouts.mask[here])
            weight = weights[here].to(logp) if len(rows) else torch.zeros_like(logp)
            (self.parallel.size * weight * logp).sum().backward()

    def _signal_to_noise(self, first_half: list[Tensor | None]) -> float:
        """4 a·b / |a - b|² of the gradients a and b of either half, where they are; in float64, a tensor at a time."""
        signal = noise = 0.0
        for parameter, half in zip(self.optimizer.parameters, first_half):
            if parameter.grad is not None:
                both = self.parallel.whole(parameter.grad).double()
                half = torch.zeros_like(both) if half is None else self.parallel.whole(half).double()
                rest = both - half
                signal, noise = signal + (half * rest).sum(), noise + (half - rest).square().sum()
        return 4 * float(signal) / float(noise) if float(noise) else 0.0

    def _check(self, whole: Evidence, name: str, value: Tensor) -> None:
        if torch.isfinite(value).all():
            return
        where = ""
        if self.folder is not None:
            rollouts = {key: getattr(whole.rollouts, key) for key in ("prompt", "tokens", "mask", "logp")}
            tensors, packed = checkpoint.pack({**rollouts, "response_reward": whole.response_reward}, "batch")
            checkpoint.discard_after(self.folder / "failed", self.number - 1)
            place = checkpoint.save(self.folder / "failed", self.number, tensors, {"batch": packed}, keep=1)
            where = f" The batch is in {place}."
        raise NonFinite(
            f"step {self.number}: the {name} is not finite, and nothing was updated.{where} Look for a reward without "
            f"bounds, or lower the learning rate."
        )

    def _rate(self, step: int) -> float:
        config = self.config
        if step < config.warm_up_steps:
            return (step + 1) / config.warm_up_steps
        return left(config.schedule, step - config.warm_up_steps, max(config.n_steps - config.warm_up_steps, 1))

    @cached_property
    def base(self) -> str | None:
        """Fingerprint of what is frozen in the policy; None: nothing is. All processes ask for it together."""
        frozen = frozen_names(self.policy)
        whole = self.parallel.whole_state(self.policy) if frozen else {}
        return fingerprint({name: each for name, each in whole.items() if name in frozen})

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that decides how training goes on, as tensors and JSON. All processes ask for it together."""
        return state_of(self)

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from what `state` gave.

        Raises:
            ValueError: if another number of processes wrote it, or it is of another model, or of one with another base.
        """
        restore(self, tensors, state)
        self._take_prompts()


def check_trainable(policy: Policy) -> None:
    """Raise ValueError if training would be wrong in the policy's precision."""
    if isinstance(policy, nn.Module) and any(each.dtype == torch.float16 for each in policy.parameters()):
        raise ValueError(
            "the policy has float16 weights, whose gradients vanish below 6e-8; train in bfloat16 (--dtype bfloat16) "
            "or float32."
        )


def describe(evidence: Evidence, group_size: int) -> dict[str, float]:
    """What a batch looks like."""
    rollouts, reward = evidence.rollouts, evidence.response_reward
    metrics = {
        "reward": float(reward.mean()),
        "reward_std": float(reward.std(correction=0)),
        "length": float(rollouts.length.double().mean()),
        "entropy": -float(rollouts.logp.sum() / rollouts.mask.sum()),
        "truncated": float((rollouts.finish == Finish.HORIZON).double().mean()),
    }
    if group_size > 1:
        metrics["groups_with_signal"] = float(has_signal(reward, group_size).double().mean())
    if evidence.reference_logp is not None:
        metrics["kl"] = measured_kl(evidence)
    return metrics
