"""From what a person writes (names, ids, options) to agents, tasks and policies."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch

from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.entry import Entry, Given
from llm_mdp.own import did_you_mean, is_own, load, place_in_own_code, whole_file
from llm_mdp.sampling.policies import NgramPolicy, Policy, PolicyModule, TabularPolicy
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp.verify.check import check_estimator, load_estimator
from llm_mdp_agents.action_masks import tokens_written_with
from llm_mdp_agents.base import Agent, AgentConfig, Plain
from llm_mdp_agents.devices import device_of
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.arguments import shown
from llm_mdp_envs.check import check_task
from llm_mdp_envs.registry import ENTRIES, made, make_task
from llm_mdp_envs.registry import Entry as RegistryEntry
from llm_mdp_envs.task import Task
from llm_mdp_envs.tokenizers import default_tokenizer

LARGEST_TABLE = 1_000_000
"""Most logits of a table that "auto" chooses."""


@dataclass(frozen=True)
class ModelConfig:
    """Which policy to train."""

    model: str = "auto"
    """A Hugging Face name or folder, a .gguf file, a config.json (random weights); "small" (a transformer from
    scratch), "tabular", "ngram"; "auto": a table for small token MDPs, n-grams for large ones, "small" for tasks with
    their own alphabet."""
    width: int = 64
    """Of the hidden states of "small"."""
    layers: int = 2
    """Of "small"."""
    heads: int = 4
    """Of "small"."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """Of a language model's weights."""
    device: str = "auto"
    """cpu, cuda, cuda:1 …; "auto": cuda, if there is one, for a language model that has a name."""
    scored_by: str | None = None
    """A sequence classifier with one label (name or folder) whose score is the reward, instead of the environment's."""
    engine: Literal["hf", "vllm"] = "hf"
    """Who draws the responses: the model that trains, or vLLM beside it (an extra of its own, see engines.py)."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of all weights; 0: all weights."""
    lora_alpha: float = 32.0
    """Scale of the adapters."""
    lora_targets: str = "all-linear"
    """Which layers get adapters: the last parts of their names with commas between them, such as "q_proj,v_proj";
    "all-linear": every linear layer but the head."""
    merge: bool = False
    """Save the trained model with its adapters added to the weights; else the adapters alone, with the name of the
    model below them (one from a .gguf file or a config.json has none, and is merged)."""
    attention: str = "auto"
    """Kernel of the attention: sdpa, eager, flash_attention_2 and what else transformers knows; "auto": its own choice
    for the model."""
    decode: Literal["growing", "static"] = "growing"
    """How keys and values are kept while responses are drawn: with room for the next tokens, or at a fixed width with a
    compiled step, which takes half a minute once for every shape and pays where starting kernels takes the time (few
    rows, small models, a GPU)."""
    fast_matmul: Literal["auto", "off", "on"] = "auto"
    """Whether large matrix products in float32 on the CPU are oneDNN's; "auto": on AMD processors with AVX-512, where
    they are faster. config.json then holds which it was, on or off."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    temperature: float = 1.0
    """Divides the logits wherever the policy samples or scores, so that the two never differ."""
    token_subset: str | None = None
    """Characters: the policy draws only tokens that are written with these alone, and end tokens; None: every token."""

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank is {self.lora_rank}; it must be at least 1, or 0 to train all weights.")
        if not all(name.strip() for name in self.lora_targets.split(",")):
            raise ValueError(
                f"lora_targets is {self.lora_targets!r}; give names of layers with commas between them, such as "
                f"q_proj,v_proj, or all-linear."
            )
        for name in ("lora_alpha", "lora_targets"):
            if not self.lora_rank and getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ValueError(f"{name} is {getattr(self, name)}, but lora_rank is 0: there are no adapters.")
        for name in ("lora_alpha", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")


SHAPE = ("width", "layers", "heads")
ADAPTERS = ("lora_rank", "lora_alpha", "lora_targets", "merge", "attention", "decode", "gradient_checkpointing")
WITHOUT_MODEL = (*SHAPE, *ADAPTERS, "dtype", "fast_matmul", "temperature")
NO_EFFECT = {"tabular": WITHOUT_MODEL, "ngram": WITHOUT_MODEL, "small": ADAPTERS}
"""Options that change nothing about a kind of policy; SHAPE, for a model that has a name."""


def is_plain(name: str) -> bool:
    """Does this name an estimator without options here: FILE.py:CLASS that is no agent, or one of the catalogue that is
    none?"""
    return not _is_agent(load(name)) if is_own(name) else name in CATALOGUE and name not in AGENTS


def _is_agent(thing: Any) -> TypeGuard[type[Agent]]:
    return isinstance(thing, type) and issubclass(thing, Agent)


def find_agent(agent: str | AgentConfig | type[Agent] | Estimator) -> type[Agent] | Estimator | Entry:
    """The class of an agent by its name (or FILE.py:CLASS) or its options, or as it is. An estimator is an agent as it
    is: an object, FILE.py:CLASS, or a name of the catalogue.

    Raises:
        ValueError: if there is no such agent, or it is made from values that nobody has in training.
    """
    if isinstance(agent, str) and is_plain(agent):
        if is_own(agent):
            return load_estimator(agent)
        if CATALOGUE[agent].given_values:
            raise ValueError(
                f"{agent} is made from exact values, which training does not have; `llm-mdp verify {agent}` has."
            )
        return CATALOGUE[agent]
    if isinstance(agent, str | AgentConfig) or _is_agent(agent):
        return agent_class(agent)
    if isinstance(agent, type) or not hasattr(agent, "collect"):
        raise ValueError(
            f"agent is {agent!r}; give a name such as 'rloo', an agent's Config(…) or an estimator object."
        )
    check_estimator(agent)
    return agent


def agent_class(agent: str | AgentConfig | type[Agent]) -> type[Agent]:
    """The class of an agent of the zoo, by its name or its options, or of one of somebody's own: as it is, by
    FILE.py:CLASS or by its options.

    Raises:
        ValueError: if there is no such agent, or one's own lacks what tells it from others.
    """
    if isinstance(agent, str) and is_own(agent):
        return agent_class(load(agent))
    if isinstance(agent, str):
        if agent in AGENTS:
            return AGENTS[agent]
        otherwise = f"choose one of {', '.join(AGENTS)}."
        hint = whole_file(agent, Estimator) or did_you_mean(agent, [*AGENTS, *CATALOGUE], otherwise)
        raise ValueError(f"there is no agent {agent!r}; {hint}")
    if isinstance(agent, type):
        return agent if agent in AGENTS.values() else _complete(agent)
    for known in AGENTS.values():
        if type(agent) is known.Config:
            return known
    for known in _below(Agent):
        if type(agent) is vars(known).get("Config"):
            return _complete(known)
    raise ValueError(
        f"{type(agent).__name__} is of no agent; give an agent's own Config, such as RLOOAgent.Config(), or the class."
    )


def _below(kind: type[Agent]) -> Iterator[type[Agent]]:
    """Every subclass that there is."""
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _complete(agent: type[Agent]) -> type[Agent]:
    """An agent as it is, if it has a name, and options by which it is found again."""
    name = agent.__name__
    if not isinstance(getattr(agent, "name", None), str):
        raise ValueError(f"{name} has no name; write `name = {name.lower()!r}` into the class.")
    others = (vars(each).get("Config") for each in _below(Agent) if each.__qualname__ != agent.__qualname__)
    own = vars(agent).get("Config")
    if own is None or not issubclass(own, AgentConfig) or own in (AgentConfig, *others):
        raise ValueError(
            f"{name} has no options of its own; write a frozen dataclass of them, a subclass of "
            f"{agent.Config.__name__ if issubclass(agent.Config, AgentConfig) else 'AgentConfig'}, and set `Config` to "
            f"it."
        )
    return agent


def build_agent(agent: str | AgentConfig | type[Agent] | Estimator, policy: Policy, task: Task, seed: int) -> Agent:
    """The agent itself, with its models."""
    found = find_agent(agent)
    if isinstance(found, Entry):
        return Plain(found.make(Given(task.horizon)), policy, task, seed, found.name)
    if not isinstance(found, type):
        return Plain(found, policy, task, seed)
    return found(agent if isinstance(agent, AgentConfig) else found.Config(), policy, task, seed)


def find_task(env: str | Task, arguments: dict[str, Any] | None = None, model: ModelConfig | None = None) -> Task:
    """A task by the id of its environment, or FILE.py:CLASS. Tasks in words that name no tokenizer get that of the
    model, whatever their constructors look like.

    Raises:
        ValueError: if there is no such environment, it has no such argument, or the task is wrong (`check_task`).
    """
    if not isinstance(env, str):
        check_task(env)
        return env
    name, make = _own_task(env) if is_own(env) else _registered_task(env)
    with default_tokenizer(partial(_tokenizer_with, model)):
        try:
            task = make(**(arguments or {}))
        except TypeError as error:
            if place_in_own_code(error) is not None:
                raise
            raise ValueError(f"{name}: {error}") from error
    check_task(task)
    return task


def _tokenizer_with(model: ModelConfig | None) -> Any:
    """The tokenizer that tasks in words get with a model; None for bytes."""
    if model is None or not is_named(model.model):
        return None
    from llm_mdp_agents.lm.vocabulary import tokenizer_for_words

    return tokenizer_for_words(model.model)


def registered() -> dict[str, RegistryEntry]:
    """The environments of the registry by their ids, and by what is left of these without llm_mdp/ and -v0."""
    return {entry.id: entry for entry in ENTRIES} | {
        entry.id.removeprefix("llm_mdp/").removesuffix("-v0"): entry for entry in ENTRIES
    }


def _registered_task(env: str) -> tuple[str, Callable[..., Task]]:
    """Id, and the class with the arguments of the entry, of an environment in the registry."""
    entries = registered()
    if env not in entries:
        hint = whole_file(env, Task) or did_you_mean(env, entries, "`llm-mdp envs` lists them.")
        if Path(env).is_file() and not env.endswith(".py"):
            hint = f"a data set is trained on with reward functions of yours: {env} --reward FILE.py:FUNCTION"
        raise ValueError(f"there is no environment {env!r}; {hint}")
    entry = entries[env]
    return entry.id, partial(make_task, entry.task, **entry.kwargs)


def _own_task(name: str) -> tuple[str, Callable[..., Task]]:
    """The same of FILE.py:CLASS, or MODULE:CLASS."""
    factory = load(name)
    if not callable(factory):
        raise ValueError(
            f"{name} is {shown(factory)}, which makes no task; name a class derived from llm_mdp_envs.Task."
        )
    return name, lambda **arguments: made(factory, arguments)


def is_named(model: str) -> bool:
    """Is this the name of a model, rather than a kind that is made here?"""
    return model not in ("auto", "small", "tabular", "ngram")


def build_policy(config: ModelConfig, task: Task, seed: int) -> Policy:
    """The policy before training. Tables and n-grams begin uniform.

    Raises:
        ValueError: if the task has no such policy, or there is no such model; if `token_subset` leaves no token.
    """
    if config.token_subset is None:
        return _unlimited_policy(config, task, seed)
    tokens = tokens_written_with(task, config.token_subset)
    policy = _unlimited_policy(config, task, seed)
    policy.token_subset = TokenSubset(tokens, policy.vocab_size)
    return policy


def own_policy(policy: Policy, task: Task) -> Policy:
    """A policy that a program gives, as it is.

    Raises:
        ValueError: if it has not as many tokens as the task.
    """
    size = getattr(policy, "vocab_size", task.vocab_size)
    if size != task.vocab_size:
        raise ValueError(
            f"the policy has {size:,} tokens and {type(task).__name__} {task.vocab_size:,}, so they do not belong "
            f"together; for a language model: load_policy(…, tokenizer=task.tokenizer)."
        )
    return policy


def _unlimited_policy(config: ModelConfig, task: Task, seed: int) -> PolicyModule:
    """The policy that may draw every token."""
    mdp, kind = task.mdp, config.model
    if kind == "auto":
        if mdp is not None:
            kind = "tabular" if mdp.tree.n_nodes * mdp.vocab_size * len(mdp.prompts) <= LARGEST_TABLE else "ngram"
        elif task.tokenizer is not None:
            raise ValueError(
                f"{type(task).__name__} is in words; name a language model (--model FOLDER), or --model small to begin "
                f"from nothing."
            )
        else:
            kind = "small"
    _check_effect(config, kind)
    generator = torch.Generator().manual_seed(seed)
    if kind == "tabular":
        if mdp is None:
            raise ValueError(
                f"{type(task).__name__} is no token MDP, so it has no table; use --model small or name a language "
                f"model."
            )
        return TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator, scale=0.0)
    if kind == "ngram":
        return NgramPolicy.random(task.vocab_size, 1, generator, scale=0.0)
    return _language_model(config, kind, task, seed)


def _check_effect(config: ModelConfig, kind: str) -> None:
    for name in NO_EFFECT.get(kind, SHAPE):
        if getattr(config, name) != getattr(ModelConfig(), name):
            raise ValueError(
                f"{name} is {getattr(config, name)}, which changes nothing about the model {kind!r}; leave it out."
            )


def _language_model(config: ModelConfig, kind: str, task: Task, seed: int) -> PolicyModule:
    from llm_mdp_agents.lm.loading import LoRAOptions, load_policy, small_transformer
    from llm_mdp_agents.lm.vocabulary import adopt_ends, check_size, check_words

    device = device_of(config.device, kind, config.engine)
    if kind == "small":
        shape = {"width": config.width, "layers": config.layers, "heads": config.heads}
        policy = small_transformer(
            task.vocab_size, task.prompt_length + task.horizon, **shape, seed=seed, dtype=config.dtype,
            fast_matmul=config.fast_matmul,
        )  # fmt: skip
        policy.temperature = config.temperature
        return policy.to(device)
    check_words(task, kind)
    lora = None
    if config.lora_rank:
        names = tuple(name.strip() for name in config.lora_targets.split(","))
        targets = names[0] if names == ("all-linear",) else names
        lora = LoRAOptions(rank=config.lora_rank, alpha=config.lora_alpha, target_modules=targets)
    policy = load_policy(
        kind, tokenizer=task.tokenizer, dtype=config.dtype, device=device, lora=lora, attention=config.attention,
        decode=config.decode, fast_matmul=config.fast_matmul, gradient_checkpointing=config.gradient_checkpointing,
        temperature=config.temperature, seed=seed,
    )  # fmt: skip
    check_size(task, policy, kind)
    policy.check_length(task.prompt_length + int(policy.begin is not None) + task.horizon - 1)
    if not kind.endswith(".json"):
        adopt_ends(task, policy)
    return policy


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass, or an estimator, as JSON; what is no plain value is left out."""
    values = (
        {each.name: getattr(config, each.name) for each in fields(config)} if is_dataclass(config) else vars(config)
    )
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, str | int | float | bool | list | tuple | None)
    }
