"""What an agent of one's own must satisfy, and in words what is wrong when it does not."""

import copy
import random
from dataclasses import is_dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.check import check_answers
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.weights import EstimatorError
from llm_mdp_envs.tasks.synthetic import TokenMDPTask


class AgentError(ValueError):
    """An agent is malformed; the message says what, and what to do."""


METHODS = ("collect", "advantages", "loss", "make_estimator", "prepare", "fit", "finish_batch")
ATTRIBUTES = {
    "name": str,
    "paper": str,
    "claims": tuple,
    "config": object,
    "policy": nn.Module,
    "behaviour": nn.Module,
    "models": dict,
    "optimizers": dict,
    "numbers": dict,
    "generator": torch.Generator,
}
"""What a trainer asks of an agent."""


def check_agent(agent: Any, config: Any = None, seed: int = 0) -> None:
    """Raise AgentError, in one sentence, if an agent could not be verified, trained or resumed.

    Args:
        agent: a class, tried on a random instance with three tokens and horizon 3, or an object on a task with an `mdp`
            small enough to enumerate. An object stays as it was: copies are tried.
        config: options to make a class with; by default `agent.Config()`.
        seed: of what is drawn.
    """
    if isinstance(agent, type):
        agent = _made(agent, config, seed)
    name = type(agent).__name__
    _check_form(agent)
    mdp = getattr(getattr(agent, "task", None), "mdp", None)
    if not isinstance(mdp, TokenMDP):
        raise AgentError(
            f"{name}.task has no token MDP; make the agent on one, such as llm_mdp_envs.tasks.synthetic.Tabular, to "
            f"check it."
        )
    _check_training(copy.deepcopy(agent), mdp, seed)
    try:
        check_answers(copy.deepcopy(agent), copy.deepcopy(agent), Enumeration(mdp, agent.behaviour))
    except EstimatorError as error:
        raise AgentError(str(error)) from error


def _made(agent: type, config: Any, seed: int) -> Any:
    """An object of the class on a small instance."""
    options = getattr(agent, "Config", None)
    if options is None:
        raise AgentError(
            f"{agent.__name__} has no `Config`; write a frozen dataclass of its options and set `Config` to it."
        )
    instance = random_instance(3, 3, gamma=0.9, n_prompts=2, seed=seed)
    try:
        return agent(options() if config is None else config, instance.policy, TokenMDPTask(instance.mdp), seed)
    except (TypeError, NotImplementedError) as error:
        raise AgentError(f"{agent.__name__}(config, policy, task, seed) fails: {error}") from error


def _check_form(agent: Any) -> None:
    name = type(agent).__name__
    for method in METHODS:
        if not callable(getattr(agent, method, None)):
            raise AgentError(f"{name} has no method `{method}`; subclass llm_mdp_agents.base.Agent, which brings it.")
    for attribute, kind in ATTRIBUTES.items():
        value = getattr(agent, attribute, None)
        if value is None:
            raise AgentError(
                f"{name} has no `{attribute}`; set it, or subclass llm_mdp_agents.base.Agent, which brings most of "
                f"them."
            )
        if not isinstance(value, kind):
            raise AgentError(f"{name}.{attribute} is of type {type(value).__name__}; it must be a {kind.__name__}.")
    config = agent.config
    if not is_dataclass(config) or not config.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        raise AgentError(
            f"{type(config).__name__} is not a frozen dataclass; put @dataclass(frozen=True) above the options of "
            f"{name}."
        )
    known = {claim.id for claim in CLAIMS}
    for claim in agent.claims:
        if claim not in known:
            raise AgentError(
                f"{name}.claims has {claim!r}, which is no row of the ledger; `llm-mdp verify` lists their ids."
            )
    group_size = getattr(agent, "group_size", None)
    if not isinstance(group_size, int) or isinstance(group_size, bool) or group_size < 1:
        raise AgentError(f"{name}.group_size is {group_size!r}; it must be a whole number of at least 1.")
    for model in agent.optimizers:
        if model not in agent.models:
            raise AgentError(
                f"{name}.optimizers has {model!r}, but there is no such model; both go by the same name (`add_model`)."
            )


def _check_training(agent: Any, mdp: TokenMDP, seed: int) -> None:
    """Two batches as in training: randomness from generators only, the policy left to the trainer, metrics that can be
    logged."""
    name, twin = type(agent).__name__, copy.deepcopy(agent)
    before, state = _weights_of(agent.policy), _global_randomness()
    batches = []
    for one in (agent, twin):
        sampler = PolicySampler(one.behaviour, mdp, torch.Generator().manual_seed(seed), prompts_per_batch=32)
        one.prepare(sampler)
        _check_untouched(f"{name}.prepare", one.policy, before)
        for _ in range(2):
            evidence = one.collect(sampler)
            if not isinstance(evidence, Evidence):
                raise AgentError(
                    f"{name}.collect returned {type(evidence).__name__}; return an llm_mdp.sampling.evidence.Evidence."
                )
            _check_untouched(f"{name}.collect", one.policy, before)
            metrics = one.fit(evidence)
            if not isinstance(metrics, dict) or not all(isinstance(value, Real) for value in metrics.values()):
                raise AgentError(
                    f"{name}.fit returned {metrics!r}; return a dict of numbers to log, {{}} if there are none."
                )
            _check_untouched(f"{name}.fit", one.policy, before)
            batches.append(evidence)
    for which, now in _global_randomness().items():
        if now != state[which]:
            raise AgentError(
                f"{name} draws from the global generator of {which}; draw from the sampler, or from the agent's own "
                f"`generator`."
            )
    half = len(batches) // 2
    for one, other in zip(batches[:half], batches[half:]):
        if not torch.equal(one.rollouts.tokens, other.rollouts.tokens) or not torch.equal(
            one.response_reward, other.response_reward
        ):
            raise AgentError(
                f"{name} collects other evidence for the same seeds; draw from the sampler and the agent's own "
                f"`generator`."
            )
    for number, value in agent.numbers.items():
        if isinstance(value, Tensor) or not isinstance(value, Real):
            raise AgentError(
                f"{name}.numbers[{number!r}] is of type {type(value).__name__}; checkpoints hold plain numbers: "
                f"float(…)."
            )


def _check_untouched(place: str, policy: nn.Module, before: dict[str, Tensor]) -> None:
    for parameter, value in policy.state_dict().items():
        if not torch.equal(value, before[parameter]):
            raise AgentError(
                f"{place} changes the policy ({parameter}); the trainer alone updates it, by the gradient of `loss`."
            )


def _weights_of(policy: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def _global_randomness() -> dict[str, Any]:
    """The states of the generators that belong to nobody."""
    numbers = np.random.get_state(legacy=False)["state"]  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (numbers["key"].tolist(), numbers["pos"]),
        "random": random.getstate(),
    }
