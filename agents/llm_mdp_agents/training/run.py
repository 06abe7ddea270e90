"""A run from beginning to end: `train` with progress, evaluations, checkpoints, a report; `resume` goes on as if
nothing had happened."""

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.own import visible
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.models import is_large
from llm_mdp_agents.resolve import ModelConfig, is_named
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.determinism import numerics
from llm_mdp_agents.training.live_report import LiveReport
from llm_mdp_agents.training.parts import Parts, assemble, check_alone, warmed_up
from llm_mdp_agents.training.progress_line import Show, progress_line
from llm_mdp_agents.training.recorded import Measured
from llm_mdp_agents.training.records import Records
from llm_mdp_agents.training.run_config import (
    RunConfig,
    choices_of,
    config_to_resume,
    given,
    run_config_of,
    write_run_config,
)
from llm_mdp_agents.training.run_folder import (
    CHECKPOINTS,
    Place,
    begin_anew,
    begun_elsewhere,
    is_main,
    or_anew,
    run_folder,
    way_on,
)
from llm_mdp_agents.training.run_lock import run_lock
from llm_mdp_agents.training.run_report import write_report
from llm_mdp_agents.training.signals import Stop, Stopped, listening
from llm_mdp_agents.training.state import Older, OtherBase
from llm_mdp_agents.training.stopping import best_of, check_measured, why_stopped
from llm_mdp_agents.training.train_config import TrainConfig, replaced
from llm_mdp_agents.training.trained import save_policy
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_envs.task import Task
from llm_mdp_envs.text import require

OnStep = Callable[[Trainer, dict[str, Any]], None]
"""Gets the trainer and the metrics of the step, evaluations included."""
SHOWN_RESPONSES = 8
"""Responses that are kept of every evaluation."""


@dataclass(frozen=True, repr=False)
class Run(Measured):
    """What `train` gives back; see `Measured` for what it shows."""

    agent: Agent
    policy: Policy
    task: Task
    metrics: list[dict[str, Any]]
    """One dictionary a step, evaluations included."""
    folder: Path | None

    seed: int | None = None

    def _called(self) -> str:
        return f"{self.agent.named or self.agent.name} on {type(self.task).__name__}"


def train(
    agent: str | AgentConfig | type[Agent] | Estimator,
    env: str | Task,
    policy: Policy | ModelConfig | str = "auto",
    *,
    folder: Place | None = None,
    env_arguments: dict[str, Any] | None = None,
    warm_start: int | None = None,
    loggers: tuple[str, ...] = (),
    shard: bool = False,
    progress: bool = True,
    config: TrainConfig | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> Run:
    """Train a policy with an agent on an environment.

        run = train("rloo", "llm_mdp/Tabular-v0", steps=100)
        run["eval/reward"]

    Args:
        agent: a name ("rloo"), options (`RLOOAgent.Config(group_size=4)`), an agent of your own (its class, its options
            or "FILE.py:CLASS"), or any estimator (an object, or "FILE.py:CLASS").
        env: an id, or a task.
        policy: a policy (trained in place), or which one to make, see `ModelConfig`.
        folder: where config, metrics, samples, checkpoints and the report go (no other run's), or what makes that
            folder once all choices are found to be possible; None: nothing is written.
        warm_start: see `RunConfig`.
        progress: show a line of figures on the terminal.
        config, options: see `TrainConfig`; options are its fields.
        on_step: called before the first step and after every step; it may change what `trainer.task` asks next, for a
            curriculum. What it changes is in no checkpoint: let it follow from the figures or the step.

    Raises:
        ValueError: in words, before any work starts.
        trainer.NonFinite: see there.
    """
    chosen = replaced(config or TrainConfig(), options)
    own = None if isinstance(policy, str | ModelConfig) else policy
    if isinstance(policy, str):
        policy = ModelConfig(policy)
    model = policy if isinstance(policy, ModelConfig) else ModelConfig(given(policy))
    chosen = chosen.filled(is_named(model.model) if own is None else is_large(own))
    choices = RunConfig(agent, env, env_arguments or {}, model, chosen, warm_start, loggers, shard)
    return _run(choices, own, folder, progress, resumed=None, on_step=on_step)


def resume(
    folder: Path | str, *, progress: bool = True, steps: int | None = None, on_step: OnStep | None = None
) -> Run:
    """Go on with a run from its newest checkpoint, or from the checkpoint that is named, as if nothing had happened.

    Args:
        folder: a run's folder, or one of its checkpoints.
        steps: a new number of steps in all.
        on_step: as of `train`; first called with the figures of the step that the checkpoint was written after.

    Raises:
        ValueError: if there is nothing to go on from; the sentence says what there is.
    """
    folder = Path(folder)
    named = folder.name.startswith("step-")
    home = folder.parent.parent if named else folder
    if not (home / CHECKPOINTS).exists():
        run_config_of(home)
        raise ValueError(begin_anew(home))
    with run_lock(home) if is_main() else nullcontext():
        if not checkpoint.steps_in(home / CHECKPOINTS):
            raise ValueError(begin_anew(home))
        resumed = checkpoint.load(folder if named else home / CHECKPOINTS)
        config = config_to_resume(home, resumed)
        if steps is not None:
            config = replace(config, train=replace(config.train, steps=steps))
        if config.train.n_steps < resumed.step:
            raise ValueError(
                f"steps is {config.train.n_steps}, but {resumed.path} is of step {resumed.step}; give more steps, or "
                f"an earlier checkpoint."
            )
        return _run(config, None, home, progress, resumed, on_step)


def _run(
    config: RunConfig, own: Policy | None, place: Place | None, progress: bool, resumed: checkpoint.Checkpoint | None,
    on_step: OnStep | None,
) -> Run:  # fmt: skip
    """Everything that can be refused, then the folder, then the work."""
    begun = time.time()
    if place is None and config.train.save == "best":
        raise ValueError("save is 'best', which needs checkpoints; give the run a folder.")
    if place is not None:
        require("matplotlib", "train", "the report of a run")
        choices_of(config)
    try:
        parts = assemble(config, own)
    except (ValueError, OSError) as error:
        if resumed is not None and isinstance(place, Path) and (where := begun_elsewhere(place)):
            raise ValueError(f"{error} {where}") from error
        raise
    if own is None and config.model.fast_matmul == "auto":
        # What was found here is written down, so that a run that goes on does the same.
        found = getattr(parts.policy, "fast_matmul", "auto")
        config = replace(config, model=replace(config.model, fast_matmul=found))
    with ExitStack() as stack:
        stack.enter_context(numerics(config.train.deterministic, config.train.float32_matmul))
        stack.callback(parts.task.close)
        stack.callback(parts.asked.task.close)
        stack.callback(parts.engine.close)
        stop = stack.enter_context(listening(place is not None))
        folder = None
        if place is not None and parts.parallel.main:
            folder = stack.enter_context(run_folder(config, place, begun, new=resumed is None))
        try:
            session = _work(config, parts, folder, place is not None, progress, begun, resumed, stop, on_step)
        except (Exception, KeyboardInterrupt) as error:
            if not stop.number:
                raise
            raise Stopped(stop.number, way_on(folder, None if isinstance(error, Stopped) else error)) from error
        if stop.number:
            raise Stopped(stop.number, way_on(folder))
    return Run(session.parts.agent, parts.policy, parts.task, session.metrics, folder, config.train.seed)


def _work(
    config: RunConfig, parts: Parts, folder: Path | None, recorded: bool, progress: bool, begun: float,
    resumed: checkpoint.Checkpoint | None, stop: Stop, on_step: OnStep | None,
) -> "Session":  # fmt: skip
    """Training itself, to its end or until it is asked to stop."""
    main = parts.parallel.main
    records = Records(folder, loggers=config.loggers) if folder else None
    totals = {"warm start": parts.batches, "training": config.train.n_steps}
    with records or nullcontext(), progress_line(progress and main, totals) as show:
        if resumed is None:
            parts = warmed_up(parts, config.train.seed, show, stop)
        choices = choices_of(config) if recorded else {}
        session = Session(parts, config.train, records, recorded, show, choices, stop)
        if resumed is None:
            session.begin(totals, progress and main)
        else:
            session.go_on(resumed)
            if folder:  # it may have more steps
                write_run_config(folder, config, begun)
        tell = on_step or (lambda trainer, figures: None)
        # Where the metrics were lost, nothing is known but the step.
        tell(session.trainer, session.metrics[-1] if session.metrics else {"step": session.trainer.number})
        while session.trainer.number < config.train.n_steps and not session.ended and not session.asked_to_stop():
            session.step()
            tell(session.trainer, session.metrics[-1])
    if session.trainer.number < config.train.n_steps and not session.ended:
        session.halt()
    else:
        session.finish()
    return session


class Session:
    """A run at work: the trainer, and what is recorded of it.

    Every process of a group has one; all call its methods together, and the main one alone has a folder.

    Args:
        recorded: whether the main process has a folder, for some of what goes there is made by all together.
        choices: all that config.json says, for the checkpoints.
    """

    def __init__(
        self, parts: Parts, config: TrainConfig, records: Records | None, recorded: bool, show: Show,
        choices: dict[str, Any], stop: Stop,
    ):  # fmt: skip
        self.parts, self.config, self.records, self.recorded, self.show = parts, config, records, recorded, show
        self.choices, self.stop = choices, stop
        self.folder = records.folder if records else None
        self.saved: int | None = None
        self.metrics: list[dict[str, Any]] = []
        self.ended = False
        """Whether no evaluation has been better for `stop_after` of them."""
        self.page = LiveReport(self.folder) if self.folder else None
        self.trainer = Trainer(
            parts.agent, parts.task, parts.policy, config, parts.parallel, self.folder, parts.engine, parts.asked
        )

    def begin(self, totals: dict[str, int], spoken: bool) -> None:
        """What comes before the first step.

        Args:
            totals: of the stages that are shown; those of the preparation come in.
            spoken: whether the agent's notes are said.
        """

        def report(stage: str, done: int, total: int) -> None:
            totals.setdefault(stage, total)
            self.show(stage, {}, step=done)
            check_alone(self.stop, self.parts.parallel)

        self.show("preparing", {})
        self.parts.agent.report = report
        self.trainer.prepare()
        trainer = self.trainer
        unmeasured = trainer.own_gradient.notice(trainer.prompts, self.config.n_steps)
        for note in [*self.parts.agent.notes, *filter(None, [unmeasured])] if spoken else ():
            print(visible(note), file=sys.stderr)
        self.record(self.evaluate())
        check_measured(self.config.best_by, self.metrics[-1])
        self.save()
        self.show("training", {}, step=self.trainer.number)

    def go_on(self, resumed: checkpoint.Checkpoint) -> None:
        """Stand where a checkpoint was written, and forget what came after it."""
        try:
            self.trainer.restore(resumed.tensors, resumed.state)
        except OtherBase:
            raise  # an earlier checkpoint is of the same base
        except Older as error:
            raise checkpoint.CheckpointError(
                f"{resumed.path} {error}; {or_anew(resumed.path.parent.parent)}"
            ) from error
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise checkpoint.CheckpointError(
                f"{resumed.path} does not fit this run ({' '.join(str(error).split())}); "
                f"{checkpoint.instead(resumed.path)}."
            ) from error
        self.saved = number = self.trainer.number
        if self.records:
            checkpoints = self.records.folder / CHECKPOINTS
            # In this order: a kill in between must not leave a checkpoint whose steps are not in the metrics.
            self.metrics = self.records.resume(number, lambda: checkpoint.discard_after(checkpoints, number))
            missing = sorted(set(range(number + 1)) - {each["step"] for each in self.metrics})
            if missing:
                warnings.warn(
                    f"the metrics in {self.folder} lack step {missing[0]} and {len(missing) - 1} others; the curves "
                    f"have a gap there",
                    stacklevel=2,
                )
        self.metrics = self.parts.parallel.everyone(self.metrics)[0]
        self.ended = bool(why_stopped(self.metrics, self.config))
        self.show("training", {}, step=number)

    def asked_to_stop(self) -> bool:
        """Whether any process of the group heard a signal; all hear the same answer."""
        found = self.parts.parallel.most(self.stop.number)
        self.stop.heard_elsewhere(found)
        return found > 0

    def step(self) -> None:
        """One batch, and every so often an evaluation and a checkpoint; both after the last one. The best evaluation
        has a checkpoint, too."""
        figures = self.trainer.step()
        number, config = self.trainer.number, self.config
        last = number == config.n_steps
        evaluated = last or number % config.eval_every == 0
        if evaluated:
            figures |= self.evaluate()
        self.record(figures)
        self.show("training", figures, step=number)
        best = False
        if evaluated:
            # One process decides, for another's figures may be rounded otherwise.
            found = best_of(self.metrics, config.best_by), bool(why_stopped(self.metrics, config))
            found, self.ended = self.parts.parallel.everyone(found)[0]
            best = found is not None and found.step == number
        if last or best or self.ended or number % config.checkpoint_every == 0:
            self.save()
        if evaluated and self.page:
            self.page.update()

    def evaluate(self) -> dict[str, float]:
        """Figures of the policy as it is; some of its responses are kept."""
        self.show("evaluation", {})
        found = self.trainer.evaluation(SHOWN_RESPONSES if self.recorded else 0)
        if self.records:
            self.records.samples(self.trainer.number, found.samples)
        return found.figures

    def record(self, figures: dict[str, float]) -> None:
        """A line of metrics."""
        self.metrics.append({"step": self.trainer.number, **figures})
        if self.records:
            self.records.metrics(self.trainer.number, figures)

    def save(self) -> None:
        """A checkpoint, of which every process has a part."""
        number, self.saved = self.trainer.number, self.trainer.number
        tensors, state = self.trainer.state() if self.recorded else ({}, {})
        if self.folder and self.records:
            self.records.flush()
            state |= {"config": self.choices}
            best = best_of(self.metrics, self.config.best_by)
            checkpoint.save(
                self.folder / CHECKPOINTS, number, tensors, state, keep=self.config.keep, spared=best and best.step
            )

    def halt(self) -> None:
        """What a run leaves that was asked to stop: a checkpoint of where it stands, and the report."""
        if self.saved != self.trainer.number:
            self.save()
        if self.folder:
            write_report(self.folder)

    def take_best(self) -> None:
        """Let the policy be that of the best evaluation, as its checkpoint has it."""
        place, best = self.parts.parallel.everyone((self.folder, best_of(self.metrics, self.config.best_by)))[0]
        if place is None or best is None or best.step == self.trainer.number:
            return
        try:
            kept = checkpoint.load(place / CHECKPOINTS, best.step)
        except checkpoint.CheckpointError as error:
            warnings.warn(
                f"the model is that of the last step, for that of the best is not there: {error}", stacklevel=2
            )
            return
        self.trainer.restore(kept.tensors, kept.state)

    def finish(self) -> None:
        """The model, of the last step or of the best evaluation, and the report."""
        parts = self.parts
        if self.recorded:
            if self.config.save == "best":
                self.take_best()
            whole = parts.parallel.whole_policy(parts.policy)
            if self.folder:
                save_policy(whole, self.folder, parts.agent, parts.task)
                write_report(self.folder)
