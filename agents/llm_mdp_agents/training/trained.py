"""The policy that a run trained, in its folder `model`: written at the end, read by every command with --run."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.base import Agent
from llm_mdp_agents.models import scored
from llm_mdp_agents.resolve import ModelConfig, build_policy, find_task
from llm_mdp_agents.training.records import load_config
from llm_mdp_agents.training.run_config import run_config_of
from llm_mdp_envs.task import Task

MODEL, TABLE = "model", "table.safetensors"


def save_policy(policy: Policy, folder: Path, agent: Agent, task: Task) -> None:
    """Into the folder of a run: language models as whoever loads such models expects them, with a card that says what
    trained them; tables as tensors. A kill leaves what was there before, or all of it."""
    place, new = folder / MODEL, folder / f".{MODEL}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    if hasattr(policy, "model"):
        _save_language_model(policy, folder, new, agent, task)
    else:
        from safetensors.torch import save_file

        assert isinstance(policy, nn.Module)
        tensors = {name: tensor.contiguous() for name, tensor in policy.state_dict().items()}
        save_file(tensors, new / TABLE)
    for file in new.glob("*.safetensors"):
        file.chmod(new.stat().st_mode & 0o666)  # safetensors would let only the owner read
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)


def _save_language_model(policy: Policy, run: Path, folder: Path, agent: Agent, task: Task) -> None:
    from transformers.utils import logging

    from llm_mdp_agents.lm.loading import save_model
    from llm_mdp_agents.lm.policy import LanguageModelPolicy
    from llm_mdp_agents.training.model_card import write_model_card

    assert isinstance(policy, LanguageModelPolicy)
    logging.disable_progress_bar()
    merge, ends = load_config(run).get("model", {}).get("merge", False), (*task.ends, *task.turn_ends)
    save_model(policy, folder, merge=merge, tokenizer=task.tokenizer, ends=ends)
    write_model_card(run, folder, policy, agent, task)


def load_policy_of_run(
    run: Path | None, env: str | None, env_arguments: dict[str, Any], model: ModelConfig, seed: int
) -> tuple[Policy, Task]:
    """What a run trained and its environment, or a policy as it is made and an environment by its id.

    Raises:
        ValueError: if there is no such run, model or environment.
    """
    if run is None:
        assert env is not None
        task = find_task(env, env_arguments, model)
        return build_policy(model, task, seed), task
    config, trained = run_config_of(run), run / MODEL
    if not trained.is_dir():
        raise ValueError(
            f"{trained} is not there: the run has not finished; `llm-mdp train --resume {run}` goes on with it."
        )
    task = find_task(env or config.env, env_arguments if env else config.env_arguments | env_arguments, config.model)
    if (trained / TABLE).exists():
        return _load_table(trained / TABLE, build_policy(config.model, task, seed), config.env, task), task
    kept = {name: getattr(config.model, name) for name in ("dtype", "device", "attention", "temperature")}
    as_trained = ModelConfig(str(trained), **kept)
    return build_policy(as_trained, task, seed), task


def policy_and_task(
    run: Path | None, env: str | None, env_arguments: dict[str, Any], model: ModelConfig, seed: int
) -> tuple[Policy, Task]:
    """`load_policy_of_run`, its responses scored by the reward model if one is named."""
    policy, task = load_policy_of_run(run, env, env_arguments, model, seed)
    return policy, scored(task, policy, seed, model.scored_by)


def _load_table(table: Path, policy: Policy, env: str, task: Task) -> Policy:
    """The policy with the tensors of a file."""
    from safetensors.torch import load_file

    assert isinstance(policy, nn.Module)
    tensors, own = load_file(table), policy.state_dict()
    if {name: each.shape for name, each in own.items()} != {name: each.shape for name, each in tensors.items()}:
        raise ValueError(
            f"{table} does not fit {type(task).__name__}; evaluate it on {env}, or on one with the same tokens."
        )
    policy.load_state_dict(tensors)
    return policy
