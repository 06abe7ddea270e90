"""What a run is made of, found by the names in its choices, before anything is trained or written."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from llm_mdp.estimators.base import Estimator
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.base import Agent
from llm_mdp_agents.devices import device_of, place_of
from llm_mdp_agents.lm.engines import Engine, make_engine
from llm_mdp_agents.models import ScoredTask, scored
from llm_mdp_agents.resolve import build_agent, build_policy, find_agent, find_task, own_policy
from llm_mdp_agents.training.loggers import check_loggers
from llm_mdp_agents.training.parallel import Parallel, parallel_from_environment
from llm_mdp_agents.training.progress_line import Show
from llm_mdp_agents.training.questions import EvalQuestions, TrainQuestions, eval_questions
from llm_mdp_agents.training.run_config import RunConfig
from llm_mdp_agents.training.signals import Stop
from llm_mdp_agents.training.trainer import check_trainable
from llm_mdp_agents.training.warm_start import batches_of, warm_start
from llm_mdp_envs.task import Task


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
    asked: EvalQuestions
    """By the evaluations."""


def assemble(config: RunConfig, own: Policy | None) -> Parts:
    """The parts that a config names.

    Args:
        own: the policy, where a Python program gave one.

    Raises:
        ValueError: in words, if there is no such part.
    """
    # The group first: in it "cuda" is this process's GPU.
    chosen = config.model
    device = device_of(chosen.device, chosen.model, chosen.engine) if own is None else place_of(own)
    parallel = parallel_from_environment(config.shard, device)
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
    return Parts(parallel, task, policy, batches, make_agent, agent, engine, questions_of(config, task))


def questions_of(config: RunConfig, task: Task, prompts: int | None = None) -> EvalQuestions:
    """What the evaluations of a run ask.

    Args:
        prompts: how many at most, in place of the run's own number.

    Raises:
        ValueError: if there are none, or the run kept fewer from its training.
    """
    train = config.train
    other = None if train.eval_problems is None else _eval_task(config, task, train.eval_problems)
    asked = eval_questions(task, train.n_eval_prompts, train.seed, train.eval_split, other)
    if prompts is None or prompts == len(asked.questions):
        return asked
    if prompts < len(asked.questions):
        return replace(asked, questions=asked.questions[:prompts])
    if asked.held_out and other is None and not train.eval_split:
        raise ValueError(
            f"prompts is {prompts:,}, but the run kept {len(asked.questions):,} questions from its training; give at "
            f"most as many."
        )
    return eval_questions(task, prompts, train.seed, train.eval_split, other)


def _eval_task(config: RunConfig, task: Task, problems: str) -> Task:
    """The task of a run over other problems.

    Raises:
        ValueError: if it is no task over a list of problems, or the run has a task and not its name.
    """
    if task.listed_by is None or not isinstance(config.env, str):
        what = "a task that a program made" if task.listed_by else "not a task over a list of problems"
        raise ValueError(
            f"eval_problems is {problems!r}, but {type(task).__name__} is {what}; keep some of its own questions by "
            f"eval_split instead."
        )
    arguments = {name: value for name, value in config.env_arguments.items() if name != "split"}
    other = find_task(config.env, arguments | {task.listed_by: problems}, config.model)
    return task.scoring(other) if isinstance(task, ScoredTask) else other


def warmed_up(parts: Parts, seed: int, show: Show, stop: Stop) -> Parts:
    """The parts after the supervised batches: the agent anew, for reference and critic begin as copies of the
    policy."""
    if not parts.batches:
        return parts

    def show_loss(loss: float) -> None:
        show("warm start", {"loss": loss})
        check_alone(stop, parts.parallel)

    ask = TrainQuestions(parts.task, parts.asked, [seed, 2]) if parts.asked.held_out else None
    warm_start(parts.policy, parts.task, parts.batches, seed, progress=show_loss, ask=ask)
    return replace(parts, agent=parts.make_agent())


def check_alone(stop: Stop, parallel: Parallel) -> None:
    """End here if a signal came, and nobody waits for this process in the middle of a batch."""
    if parallel.size == 1:
        stop.check()
