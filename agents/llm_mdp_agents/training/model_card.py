"""README.md of a trained model: what it is, how to load it, what trained it on what, and whether that gradient is
right."""

import functools
import inspect
import json
import platform
import shlex
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_mdp.files import write_text
from llm_mdp.sampling.token_masks import TokenSubset
from llm_mdp_agents.base import Agent, Plain
from llm_mdp_agents.certificates import own_certificate
from llm_mdp_agents.lm.loading import base_of
from llm_mdp_agents.resolve import is_named
from llm_mdp_agents.training.records import load_config, load_metrics
from llm_mdp_agents.training.stopping import best_of
from llm_mdp_envs.task import Task

if TYPE_CHECKING:
    from jinja2 import Template

    from llm_mdp_agents.lm.policy import LanguageModelPolicy

CARD, CURVE = "README.md", "reward.svg"
ROWS = 6
"""Most evaluations in the table: the first, the last, and some between."""
PACKAGES = ("llm-mdp", "torch", "transformers", "peft")


def write_model_card(run: Path, folder: Path, policy: "LanguageModelPolicy", agent: Agent, task: Task) -> Path:
    """Write the card of the model in `folder`, and a drawing of its rewards, from the records of its run.

    Args:
        run: the run's folder: config.json and metrics.jsonl.
        folder: where the model is written now.

    Returns: the card.
    """
    config = load_config(run)
    evaluated = [each for each in load_metrics(run) if each.get("eval/reward") is not None]
    adapters = (folder / "adapter_config.json").exists()
    env = config.get("env", {}).get("id", type(task).__name__)
    arguments = config.get("env", {}).get("arguments", {})
    named = config.get("model", {}).get("model", "")
    base = base_of(policy) or (named if is_named(named) else None)
    model = policy.causal_lm
    ends, trained = model.generation_config.eos_token_id, config.get("train", {})
    best = best_of(evaluated, trained.get("best_by", "eval/reward")) if trained.get("save") == "best" else None
    place = run / "model"
    text = _template().render(
        name=run.resolve().name,
        folder=place,
        base_id=base if base and not Path(base).exists() and "/" in base and "(" not in base else None,
        started=_started(named, model),
        version=version_of("llm-mdp"),
        agent=agent,
        env=env,
        results=_results(evaluated),
        tokens=round(sum(each.get("tokens") or 0 for each in load_metrics(run))),
        words=task.tokenizer is not None,
        adapters={"rank": policy.model.active_peft_config.r, "base": base} if adapters else None,
        temperature=policy.temperature,
        ends=[ends] if isinstance(ends, int) else ends or [],
        begin=policy.begin,
        subset=len(subset.tokens) if isinstance(subset := policy.token_subset, TokenSubset) else 0,
        vocab_size=policy.vocab_size,
        evaluate=f"llm-mdp eval --run {shlex.quote(str(run))}",
        task=_first_paragraph(task),
        arguments=_listed(arguments),
        horizon=task.horizon,
        certificate=certificate_in_words(agent),
        epochs=trained.get("epochs", 1),
        best=best and best.step,
        curve=CURVE if _draw(evaluated, folder / CURVE) else None,
        command=config.get("command", "(a Python program)"),
        options=[
            (f"{part}.{option}", value if isinstance(value, str) else json.dumps(value))
            for part in ("agent", "model", "train", "run")
            for option, value in config.get(part, {}).items()
        ],
        versions=", ".join(f"{name} {version_of(name)}" for name in PACKAGES) + f", Python {platform.python_version()}",
    )
    write_text(folder / CARD, text)
    return folder / CARD


def certificate_in_words(agent: Agent) -> str:
    """The exact certificate of an agent with the options that it trained with, on a small stand-in, in a sentence."""
    kind, config = type(agent), agent.estimator if isinstance(agent, Plain) else agent.config
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = own_certificate(kind, config)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # of any kind: options of a language model may mean nothing to the stand-in
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        return f"Not computed: with the options of this run there is no certificate on a small token MDP ({reason})."
    return (
        f"The expected update of this agent, with the options of this run, is **{found.certificate.verdict}**: "
        f"{str(found.certificate).partition(': ')[2]}. Computed over every outcome of a random token MDP with "
        f"{found.vocab_size} tokens, responses of {found.horizon} and {found.group_size} responses to a prompt, "
        f"against the true gradient of the expected reward; not on this model, which has too many outcomes."
    )


def version_of(package: str) -> str:
    """The version of a package that is installed, or that it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("llm_mdp_agents.training"),
        autoescape=False,  # Markdown; what a person wrote stands in code
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_function"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
    return environment.get_template("model_card.md")


def _started(named: str, model: Any) -> str:
    weights = sum(each.numel() for name, each in model.named_parameters() if "lora_" not in name)
    kind = f"{type(model).__name__}, {weights:,} weights"
    if is_named(named) and not named.endswith(".json") and "(given)" not in named:
        return f"`{named}` ({kind})"
    return f"A language model that began with random weights ({kind})" if named else f"A language model ({kind})"


def _first_paragraph(task: Task) -> str:
    """What a task says of itself."""
    words = (inspect.getdoc(type(task)) or f"{type(task).__name__}.").split("\n\n")[0]
    return " ".join(words.split())


def _listed(arguments: dict[str, Any]) -> str:
    if not arguments:
        return "It had its default arguments."
    return "Its arguments: " + ", ".join(f"`{name}={value!r}`" for name, value in arguments.items()) + "."


def _results(evaluated: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Evenly chosen evaluations, as they are shown."""
    last = len(evaluated) - 1
    chosen = sorted({round(k * last / max(min(ROWS, last + 1) - 1, 1)) for k in range(min(ROWS, last + 1))})
    return [
        {
            "step": str(each["step"]),
            "reward": _number(each["eval/reward"]),
            "interval": f"{_number(each.get('eval/reward_low'))} … {_number(each.get('eval/reward_high'))}",
            "greedy": _number(each.get("eval/greedy_reward")),
        }
        for each in (evaluated[k] for k in chosen)
    ]


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.3f}"


def _draw(evaluated: list[dict[str, Any]], path: Path) -> bool:
    """The evaluations as a curve; False: there are too few for one."""
    if len(evaluated) < 2:
        return False
    from matplotlib.figure import Figure

    from llm_mdp.notebook import house_style

    steps, reward = ([each[name] for each in evaluated] for name in ("step", "eval/reward"))
    with house_style():
        figure = Figure((6, 3))
        axes = figure.add_subplot()
        if all(each.get("eval/reward_low") is not None for each in evaluated):
            low, high = ([each[f"eval/reward_{end}"] for each in evaluated] for end in ("low", "high"))
            axes.fill_between(steps, low, high, alpha=0.25, linewidth=0)
        axes.plot(steps, reward, marker="o", markersize=3)
        axes.set_xlabel("step")
        axes.set_ylabel("mean reward")
        figure.savefig(path, format="svg", metadata={"Date": None})
    return True
