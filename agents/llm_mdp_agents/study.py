"""What a study of noise (`llm_mdp.variance.study`) measures where there are tasks and language models: one cell for a
whole task, for its estimators share their draws; and tiny transformers for settings."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llm_mdp.estimators.entry import Given
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import Policy
from llm_mdp.variance.forecast import Forecast
from llm_mdp.variance.grid import Candidate, Grid
from llm_mdp.variance.measurement import Measurement
from llm_mdp.variance.study import AXES, Plan, chosen, forecast_of, identity, measure_setting, source_of
from llm_mdp.verify.check import load_estimator
from llm_mdp_agents.measuring import measure_task
from llm_mdp_agents.resolve import ModelConfig, find_task
from llm_mdp_agents.training.run_config import run_config_of
from llm_mdp_agents.training.trained import MODEL, policy_and_task
from llm_mdp_agents.training.warm_start import check_answers, warm_up

PROMPTS_AT_ONCE = 16
"""Prompts of a task that are drawn together."""
MANY, FEW = 256, 32
"""Prompts that are drawn if nobody says how many: with a small policy, with a language model."""


@dataclass(frozen=True)
class Subject:
    """A task, and the policy that is measured on it: a run's, or one that is made."""

    env: str | None = None
    env_arguments: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = ModelConfig()
    run: Path | None = None
    """Its own environment and model; arguments go over its own."""
    warm_start: int | None = None
    """Supervised batches; None: as many as training would begin with."""


def task_plan(subject: Subject, names: Sequence[str], grid: Grid, prompts: int | None, seed: int) -> Plan:
    """One cell for a whole task.

    Args:
        names: estimators; none: those that can be had on a task.
        prompts: how many are drawn; None: `MANY` or `FEW`.

    Raises:
        ValueError: for an environment, a run, an estimator or answers that are not there.
    """
    env, env_arguments, model = subject.env, subject.env_arguments, subject.model
    if subject.run is not None:
        config = run_config_of(subject.run)
        env, env_arguments, model = config.env, config.env_arguments | env_arguments, config.model
    assert env is not None
    task = find_task(env, env_arguments, model)
    if subject.warm_start:
        check_answers(task)
    listed = chosen(names, grid, task.horizon, known_values=False)
    if prompts is None:
        prompts = MANY if subject.model.model in ("auto", "small", "tabular", "ngram") else FEW
    folders = [subject.run / MODEL] if subject.run else [Path(each) for each in (model.model, model.scored_by) if each]
    document = {
        "env": env,
        "env_arguments": env_arguments,
        "model": asdict(subject.model),
        "run": subject.run and str(subject.run),
        "warm_start": subject.warm_start,
        **source_of(env),
        "written": max(map(_written, folders)),
    }
    candidates = [identity(candidate) for candidate in listed]
    cell = {"name": env, "task": document, "candidates": candidates, "prompts": prompts, "seed": seed}
    words = f"{(subject.run or Path(model.model)).name} on {env.rpartition(':')[2]}, {prompts} prompts"
    known = {"policy": Path(subject.model.model).name, "vocab_size": task.vocab_size, "horizon": task.horizon}
    return Plan(env.rpartition(":")[2], words, dict.fromkeys(AXES.values()) | known, tuple(listed), (cell,))


def _written(folder: Path) -> int:
    """When a model was last written: one that was trained on makes another cell. 0 if there is no such folder."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*")), default=0)


def measure_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """What a cell asks for: facts of a setting, one candidate's measurement, or everything about a task."""
    return measure_task_cell(cell) if "task" in cell else measure_setting(cell, _transformer)


measure_cell.version = 4  # pyright: ignore[reportFunctionMemberAccess]


def _transformer(mdp: TokenMDP, seed: int) -> Policy:
    from llm_mdp_agents.lm.policy import tiny_transformer

    return tiny_transformer(mdp.vocab_size, mdp.prompt_tokens.shape[1] + mdp.horizon, seed)


Foretell = Callable[[Measurement, float], None]
"""Told what a pilot came to, and the seconds of a prompt; see `measure_task`."""
_TELL: ContextVar[Callable[[int], None]] = ContextVar("tell", default=lambda prompts: None)
_FORETELL: ContextVar[Foretell | None] = ContextVar("foretell", default=None)


@contextmanager
def telling(tell: Callable[[int], None], foretell: Foretell | None = None) -> Iterator[None]:
    """Whoever measures a task in this process meanwhile tells how many prompts are done, and what a pilot came to."""
    tokens = _TELL.set(tell), _FORETELL.set(foretell)
    try:
        yield
    finally:
        _TELL.reset(tokens[0])
        _FORETELL.reset(tokens[1])


def setting_forecast(plan: Plan, budget: float) -> Forecast | None:
    """How many estimates an answer on a setting is likely to need; None if nothing is drawn there."""
    return forecast_of(plan, budget, _transformer)


def measure_task_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Every candidate on one task, on shared draws."""
    content, seed = cell["task"], cell["seed"]
    run, model = content["run"] and Path(content["run"]), ModelConfig(**content["model"])
    policy, task = policy_and_task(run, content["env"], content["env_arguments"], model, seed)
    warm_up(policy, task, None if run else model.model, content["warm_start"], seed)
    listed = [Candidate(each["name"], each["options"]) for each in cell["candidates"]]
    estimators = {candidate.label: candidate.build(Given(task.horizon), load_estimator) for candidate in listed}
    measured, facts = measure_task(
        estimators,
        policy,
        task,
        cell["prompts"],
        seed,
        known={candidate.label: candidate.proved for candidate in listed},
        prompts_at_once=PROMPTS_AT_ONCE,
        tell=_TELL.get(),
        foretell=_FORETELL.get(),
    )
    base = facts.pop("base")
    rows = {label: measurement.document() for label, measurement in measured.items()}
    return {"facts": facts, "rows": rows, "base": base.document()}
