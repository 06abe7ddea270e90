"""A run from beginning to end: `train` with progress, evaluations, checkpoints, a report; `resume` goes on as if
nothing had happened."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_mdp.estimators.base import Estimator
from llm_mdp.files import write_text
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_agents.lm.engines import Engine, make_engine
from llm_mdp_agents.models import scored
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy, device_of, find_agent, find_task, own_policy
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.evaluation import samples
from llm_mdp_agents.training.parallel import Parallel, parallel_from_environment
from llm_mdp_agents.training.progress_line import Show, progress_line
from llm_mdp_agents.training.records import CONFIG, Records, check_loggers, load_config, load_metrics
from llm_mdp_agents.training.run_config import RunConfig, given, run_config_of
from llm_mdp_agents.training.run_report import write_report
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trained import save_policy
from llm_mdp_agents.training.trainer import Trainer, check_trainable
from llm_mdp_agents.training.warm_start import batches_of, warm_start
from llm_mdp_envs.task import Task
from llm_mdp_envs.text import require

CHECKPOINTS = "checkpoints"
"""Their folder in the folder of a run."""
SHOWN_RESPONSES = 8
"""Responses that are kept of every evaluation."""

Place = Path | str | Callable[[], Path]
"""The folder of a run, or what makes it."""


@dataclass(frozen=True, repr=False)
class Run:
    """What `train` gives back."""

    agent: Agent
    policy: Policy
    task: Task
    metrics: list[dict[str, Any]]
    """One dictionary a step, evaluations included."""
    folder: Path | None

    def __repr__(self) -> str:
        reward = next((each["eval/reward"] for each in reversed(self.metrics) if "eval/reward" in each), None)
        found = "" if reward is None else f", eval/reward {reward:.3f}"
        return f"Run({self.agent.name} on {type(self.task).__name__}, {self.metrics[-1]['step']} steps{found})"

    def __getitem__(self, name: str) -> float:
        """The latest value of a metric.

        Raises:
            KeyError: naming the metrics that there are.
        """
        for each in reversed(self.metrics):
            if name in each:
                return each[name]
        raise KeyError(
            f"the run has no metric {name!r}; it has "
            f"{', '.join(dict.fromkeys(key for each in self.metrics for key in each))}."
        )


def train(
    agent: str | AgentConfig | Estimator,
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
    **options: Any,
) -> Run:
    """Train a policy with an agent on an environment.

        run = train("rloo", "llm_mdp/Tabular-v0", steps=100)
        run["eval/reward"]

    Args:
        agent: a name ("rloo"), options (`RLOOAgent.Config(group_size=4)`), or any estimator of your own (an object, or
            "FILE.py:CLASS").
        env: an id, or a task.
        policy: a policy (trained in place), or which one to make, see `ModelConfig`.
        folder: where config, metrics, samples, checkpoints and the report go (no other run's), or what makes that
            folder once all choices are found to be possible; None: nothing is written.
        warm_start: see `RunConfig`.
        progress: show a line of figures on the terminal.
        config, options: see `TrainConfig`; options are its fields.

    Raises:
        ValueError: in words, before any work starts.
        trainer.NonFinite: see there.
    """
    _check_options(options)
    chosen = replace(config or TrainConfig(), **options)
    own = None if isinstance(policy, str | ModelConfig) else policy
    if isinstance(policy, str):
        policy = ModelConfig(policy)
    model = policy if isinstance(policy, ModelConfig) else ModelConfig(given(policy))
    choices = RunConfig(agent, env, env_arguments or {}, model, chosen, warm_start, loggers, shard)
    return _run(choices, own, folder, progress, resumed=None)


def resume(folder: Path | str, *, progress: bool = True, steps: int | None = None) -> Run:
    """Go on with a run from its newest checkpoint, or from the checkpoint that is named, as if nothing had happened.

    Args:
        folder: a run's folder, or one of its checkpoints.
        steps: a new number of steps in all.

    Raises:
        ValueError: if there is nothing to go on from; the sentence says what there is.
    """
    folder = Path(folder)
    place = folder if folder.name.startswith("step-") else folder / CHECKPOINTS
    home = folder.parent.parent if folder.name.startswith("step-") else folder
    config = run_config_of(home)
    if not (home / CHECKPOINTS).is_dir():
        raise ValueError(
            f"{home} has no checkpoint, for the run ended before its first step; start it anew: "
            f"llm-mdp train --config {home / CONFIG}"
        )
    resumed = checkpoint.load(place)
    if steps is not None:
        config = replace(config, train=replace(config.train, steps=steps))
    if config.train.steps < resumed.step:
        raise ValueError(
            f"steps is {config.train.steps}, but {resumed.path} is of step {resumed.step}; give more steps, or an "
            f"earlier checkpoint."
        )
    return _run(config, None, home, progress, resumed)


def _check_options(options: dict[str, Any]) -> None:
    for name in options:
        if name not in TrainConfig.__dataclass_fields__:
            raise ValueError(f"train has no option {name!r}; it has {', '.join(TrainConfig.__dataclass_fields__)}.")


def _run(
    config: RunConfig, own: Policy | None, place: Place | None, progress: bool, resumed: checkpoint.Checkpoint | None
) -> Run:
    """Everything that can be refused, then the folder, then the work."""
    begun = time.time()
    if place is not None:
        require("matplotlib", "train", "the report of a run")
    parts = assemble(config, own)
    main = parts.parallel.main
    folder = None if place is None or not main else _folder_of(config, place, begun, resumed is not None)
    records = Records(folder, loggers=config.loggers) if folder else None
    totals = {"warm start": parts.batches, "training": config.train.steps}
    with records or nullcontext(), progress_line(progress and main, totals) as show:
        if resumed is None:
            parts = warmed_up(parts, config.train.seed, show)
        session = Session(parts, config.train, records, place is not None, show)
        if resumed is None:
            session.begin()
        else:
            session.go_on(resumed)
        while session.trainer.number < config.train.steps:
            session.step()
    session.finish()
    return Run(parts.agent, parts.policy, parts.task, session.metrics, folder)


@dataclass(frozen=True)
class Parts:
    """What a run is made of, before anything is trained or written."""

    parallel: Parallel
    task: Task
    policy: Policy
    batches: int
    """Supervised batches before training."""
    make_agent: Callable[[], Agent]
    agent: Agent
    engine: Engine


def assemble(config: RunConfig, own: Policy | None) -> Parts:
    """The parts that a config names.

    Args:
        own: the policy, where a Python program gave one.

    Raises:
        ValueError: in words, if there is no such part.
    """
    # The group first: in it "cuda" is this process's GPU.
    parallel = parallel_from_environment(config.shard, device_of(config.model.device) if own is None else "cpu")
    seed = config.train.seed
    plain_task = find_task(config.env, config.env_arguments, config.model)
    policy = own_policy(own, plain_task) if own is not None else build_policy(config.model, plain_task, seed)
    check_trainable(policy)
    task = scored(plain_task, policy, seed, config.model.scored_by)
    batches = batches_of(config.warm_start, task, config.model.model if own is None else None)
    found = find_agent(config.agent)
    make_agent = partial(build_agent, found if isinstance(found, Estimator) else config.agent, policy, task, seed)
    agent = make_agent()
    check_loggers(config.loggers)
    options = {"max_length": task.prompt_length + task.horizon + 1} if config.model.engine == "vllm" else {}
    engine = make_engine(config.model.engine, policy, **options)
    return Parts(parallel, task, policy, batches, make_agent, agent, engine)


def warmed_up(parts: Parts, seed: int, show: Show) -> Parts:
    """The parts after the supervised batches: the agent anew, for reference and critic begin as copies of the
    policy."""
    if not parts.batches:
        return parts

    def show_loss(loss: float) -> None:
        show("warm start", {"loss": loss})

    warm_start(parts.policy, parts.task, parts.batches, seed, progress=show_loss)
    return replace(parts, agent=parts.make_agent())


def _folder_of(config: RunConfig, place: Place, begun: float, resumed: bool) -> Path:
    """The folder of a run, with its config.json.

    Raises:
        ValueError: if it is another run's.
    """
    document = config.document()
    folder = Path(place() if callable(place) else place)
    if not resumed and (folder / CONFIG).exists():
        raise ValueError(f"{folder} holds a run already; go on with it by resume, or choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    start = {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "begun": begun}
    write_text(folder / CONFIG, json.dumps(document | start | load_config(folder) | document, indent=1) + "\n")
    return folder


class Session:
    """A run at work: the trainer, and what is recorded of it.

    Every process of a group has one; all call its methods together, and the main one alone has a folder.

    Args:
        recorded: whether the main process has a folder, for some of what goes there is made by all together.
    """

    def __init__(self, parts: Parts, config: TrainConfig, records: Records | None, recorded: bool, show: Show):
        self.parts, self.config, self.records, self.recorded, self.show = parts, config, records, recorded, show
        self.folder = records.folder if records else None
        self.metrics: list[dict[str, Any]] = []
        self.trainer = Trainer(parts.agent, parts.task, parts.policy, config, parts.parallel, self.folder, parts.engine)

    def begin(self) -> None:
        """What comes before the first step."""
        self.show("preparing", {})
        self.trainer.prepare()
        self.record(self.evaluate())
        self.save()

    def go_on(self, resumed: checkpoint.Checkpoint) -> None:
        """Stand where a checkpoint was written, and forget what came after it."""
        self.trainer.restore(resumed.tensors, resumed.state)
        number = self.trainer.number
        if self.folder and self.records:
            self.metrics = [each for each in load_metrics(self.folder) if each["step"] <= number]
            self.records.resume(number)
            checkpoint.discard_after(self.folder / CHECKPOINTS, number)

    def step(self) -> None:
        """One batch, and every so often an evaluation and a checkpoint; both after the last one."""
        figures = self.trainer.step()
        number = self.trainer.number
        last = number == self.config.steps
        if last or number % self.config.eval_every == 0:
            figures |= self.evaluate()
        self.record(figures)
        self.show("training", figures, step=number)
        if last or number % self.config.checkpoint_every == 0:
            self.save()

    def evaluate(self) -> dict[str, float]:
        """Figures of the policy as it is; some of its responses are kept."""
        parts = self.parts
        if self.recorded:
            responses = parts.parallel.on_whole_model(
                parts.policy, lambda: samples(parts.policy, parts.task, SHOWN_RESPONSES, self.config.seed)
            )
            if self.records:
                self.records.samples(self.trainer.number, responses)
        return self.trainer.evaluate()

    def record(self, figures: dict[str, float]) -> None:
        """A line of metrics."""
        self.metrics.append({"step": self.trainer.number, **figures})
        if self.records:
            self.records.metrics(self.trainer.number, figures)

    def save(self) -> None:
        """A checkpoint, of which every process has a part."""
        tensors, state = self.trainer.state() if self.recorded else ({}, {})
        if self.folder:
            checkpoint.save(self.folder / CHECKPOINTS, self.trainer.number, tensors, state, keep=self.config.keep)

    def finish(self) -> None:
        """The model, the report, and everything given back."""
        parts = self.parts
        if self.recorded:
            whole = parts.parallel.whole_policy(parts.policy)
            if self.folder:
                save_policy(whole, self.folder, parts.agent, parts.task)
                write_report(self.folder)
        parts.engine.close()
        parts.task.close()
