"""What of gpu.py says how fast it is: a training step of a Llama of 0.4 billion weights, by its parts, beside TRL.

Shares are of what the card did in this very run: `ceilings` multiplies two large bf16 matrices and copies 4 GiB.
Floating point operations of an update are those of the least work, every prompt read once, and the backward pass twice
the forward pass:

    3 · (2 N_body R + 4 layers heads head_dim pairs) + 3 · 2 · hidden · V · A

R tokens that are read (shared prompts once, last tokens never), A tokens that were drawn, pairs (query, key) that see
each other. Bytes of drawing: the weights once a column, the keys and values of every column before it, and 88 bytes a
row and word of the logits (float32 copies, float64 sums). So work that is done twice counts against the share.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_mdp_agents.lm import policy as policy_module
from llm_mdp_agents.lm.loading import LoRAOptions, load_policy
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.task import Question, Scores, Task

if TYPE_CHECKING:
    from gpu import Bench

ORDER = (
    "ceilings", "parity", "agents", "certificates", "resume", "step", "generate", "trl", "tests", "waits", "changes",
    "deterministic", "branches and critic", "large",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """A model and a batch."""

    hidden: int = 896
    layers: int = 24
    heads: int = 14
    middle: int = 4864
    vocab: int = 32_000
    prompts: int = 16
    group: int = 8
    prompt: int = 256
    """Tokens of a prompt."""
    response: int = 256
    micro_batch: int = 32

    @property
    def rows(self) -> int:
        return self.prompts * self.group

    @property
    def body(self) -> int:
        """Weights that every token is multiplied with, the head left out."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.middle)

    def update_flops(self) -> float:
        """Of the gradient of a batch."""
        # Nothing comes after the last token of a response, so it is not read.
        length = self.response - 1
        read = self.prompts * self.prompt + self.rows * length
        own = length * (length + 1) / 2
        pairs = self.prompts * self.prompt * (self.prompt + 1) / 2 + self.rows * (length * self.prompt + own)
        body = 2 * self.body * read + 4 * self.layers * self.hidden * pairs
        return 3 * body + 3 * 2 * self.hidden * self.vocab * self.rows * self.response

    def drawing_bytes(self, width: int) -> float:
        """That have to be moved to draw a batch, of weights with `width` bytes."""
        columns = sum(self.prompt + column for column in range(self.response))
        keys = self.rows * columns * 2 * self.layers * self.hidden * width
        weights = self.response * (self.body + self.hidden * self.vocab) * width
        return weights + keys + 88 * self.rows * self.response * self.vocab


TINY = Size(16, 2, 2, 24, 32, prompts=2, group=2, prompt=8, response=4, micro_batch=2)
LARGE = Size(1536, 28, 12, 8960, 32_000, prompts=8, group=8, prompt=256, response=256, micro_batch=8)


class Prompts(Task):
    """Random prompts of one length, every response of full length; the reward is the share of the lower half of the
    vocabulary."""

    eos, separates = None, ""

    def __init__(self, size: Size):
        self.vocab_size, self.horizon, self.prompt_length = size.vocab, size.response, size.prompt
        shape = (8 * size.prompts, size.prompt)
        self.prompts = torch.randint(size.vocab, shape, generator=torch.Generator().manual_seed(0)).tolist()
        self.asked = itertools.cycle([Question(tuple(prompt)) for prompt in self.prompts])

    def question(self, generator: np.random.Generator) -> Question:
        return next(self.asked)

    def score(self, questions, tokens, mask) -> Scores:
        return Scores((tokens < self.vocab_size // 2).mean(-1))


def size_of(bench: "Bench") -> Size:
    return TINY if bench.tiny else Size()


def llama(size: Size) -> dict[str, Any]:
    """Its config, for `load_policy`."""
    return {
        "model_type": "llama", "vocab_size": size.vocab, "hidden_size": size.hidden, "intermediate_size": size.middle,
        "num_hidden_layers": size.layers, "num_attention_heads": size.heads, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
        "max_position_embeddings": size.prompt + size.response + 1,
    }  # fmt: skip


def load(bench: "Bench", size: Size, **options: Any) -> LanguageModelPolicy:
    """A policy of this size, in bf16 if nothing else is said; its weights are drawn where they will be."""
    with torch.device(bench.device):
        return load_policy(llama(size), **({"dtype": "bfloat16", "device": bench.device} | options))


def make_trainer(bench: "Bench", name: str, size: Size, policy: dict[str, Any], **options: Any) -> Trainer:
    """An agent at this size; `policy`: options of `load_policy`."""
    task, kind = Prompts(size), AGENTS[name]
    ours = load(bench, size, **policy)
    config = TrainConfig(
        prompts_per_step=size.prompts, micro_batch=size.micro_batch, learning_rate=1e-5, signal_every=0
    )
    agent = kind(kind.Config(**({"group_size": size.group} | options)), ours, task, 0)
    return Trainer(agent, task, ours, config)


PARTS = {"draw": "_collect", "score": "_scored_as_trained", "update": "_update"}
"""Methods of the trainer that the parts of a step are."""


@contextmanager
def timed_parts(bench: "Bench", trainer: Trainer) -> Iterator[dict[str, float]]:
    """Seconds of every part of the steps in here."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result: list[Any] = []
            spent[part] += bench.seconds(lambda: result.append(function(*arguments)))
            return result[0]

        return run

    for part, name in PARTS.items():
        setattr(trainer, name, timed(part, getattr(trainer, name)))
    yield spent
    for name in PARTS.values():
        delattr(trainer, name)


def steps_of(bench: "Bench", trainer: Trainer, size: Size, steps: int = 3) -> dict[str, Any]:
    """Medians of some steps after one that is not timed, with shares of the card's ceilings."""
    trainer.step()
    bench.forget()
    taken = []
    for _ in range(steps):
        with timed_parts(bench, trainer) as parts:
            whole = bench.seconds(trainer.step)
        taken.append({"step": whole, **parts})
    seconds = {part: median(each[part] for each in taken) for part in taken[0]}
    drawn = size.rows * size.response
    width = next(trainer.policy.parameters()).element_size()
    figures = {
        "seconds": seconds,
        "seconds_of_each": taken,
        "tokens_per_second": drawn / seconds["step"],
        "drawn_per_second": drawn / seconds["draw"],
        "ms_a_column": 1000 * seconds["draw"] / size.response,
        "peak_bytes": bench.peak_bytes(),
        "weights": sum(each.numel() for each in trainer.policy.parameters()),
    }
    ceilings = bench.found.get("ceilings", {})
    if "flops_per_second" in ceilings:
        figures["update_share_of_peak"] = size.update_flops() / seconds["update"] / ceilings["flops_per_second"]
        figures["drawing_share_of_bandwidth"] = (
            size.drawing_bytes(width) / seconds["draw"] / ceilings["bytes_per_second"]
        )
    return figures


def ceilings(bench: "Bench") -> dict[str, Any]:
    """What a product of two random bf16 matrices and a copy reach."""
    side, count = (64, 2**16) if bench.tiny else (8192, 2**31)
    one, other = (torch.randn(side, side).to(bench.device, torch.bfloat16) for _ in range(2))
    source = torch.ones(count, dtype=torch.bfloat16, device=bench.device)
    target = torch.empty_like(source)
    found = {}
    for name, work, function in (
        ("flops_per_second", 2 * side**3, lambda: one @ other),
        ("bytes_per_second", 2 * 2 * count, lambda: target.copy_(source)),
    ):
        function(), function()
        ten = lambda function=function: [function() for _ in range(10)]  # noqa: E731
        found[name] = 10 * work / median(bench.seconds(ten) for _ in range(3))
    return found


def step(bench: "Bench") -> dict[str, Any]:
    """GRPO and RLOO in bf16."""
    size, found = size_of(bench), {}
    for name in ("grpo", "rloo"):
        found[name] = steps_of(bench, make_trainer(bench, name, size, {}), size)
        bench.forget()
    return {"size": vars(size), **found}


def generate(bench: "Bench") -> dict[str, Any]:
    """Hugging Face's `generate`, as it comes, beside drawing by the policy: same model, prompts and lengths."""
    size = size_of(bench)
    policy = load(bench, size)
    prompt = torch.tensor(Prompts(size).prompts[: size.prompts])
    rows = prompt.repeat_interleave(size.group, 0).to(bench.device)
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": size.response, "min_new_tokens": size.response}
    ours = {"eos": None, "horizon": size.response, "generator": torch.Generator().manual_seed(0)}

    def theirs() -> Any:
        return policy.model.generate(rows, attention_mask=torch.ones_like(rows), pad_token_id=0, **options)

    def own() -> Any:
        return policy.sample(prompt, size.group, **ours)

    found: dict[str, Any] = {"generate": [], "ours": [], "compiled": []}
    own(), theirs()
    for _ in range(2):
        found["ours"].append(bench.seconds(own))
        found["generate"].append(bench.seconds(theirs))
    found["times_faster"] = median(found["generate"]) / median(found["ours"])
    if bench.left < 60 and not bench.tiny:
        return found | {"compiled": "left out: no time"}
    policy.decode = "static"
    found["compile_seconds"] = bench.seconds(own)
    found["compiled"] = [bench.seconds(own) for _ in range(2)]
    return found | {"times_faster_compiled": median(found["generate"]) / median(found["compiled"])}


def trl(bench: "Bench") -> dict[str, Any]:
    """TRL's GRPO with generation of its own and ours, by turns."""
    if bench.device == "pretend":
        return {"left out": "TRL asks CUDA by name"}
    from gpu_trl import make_peer

    size = size_of(bench)
    found: dict[str, Any] = {"size": vars(size)}
    ours = make_trainer(bench, "grpo", size, {}, reduction="token_mean")
    found["ours"] = [steps_of(bench, ours, size)]
    for name, options in (
        ("trl, bf16 by autocast", {}),
        ("trl, bf16 weights", {"weights": "bfloat16"}),
        ("trl as it comes", {"defaults": True}),
    ):
        if bench.left < 40 and not bench.tiny:
            found[name] = "left out: no time"
            continue
        peer = make_peer(bench, size, Prompts(size).prompts, **options)
        bench.forget()
        found[name] = peer(3) | {"peak_bytes": bench.peak_bytes()}
        del peer
        bench.forget()
    found["ours"].append(steps_of(bench, ours, size))
    own = min(each["seconds"]["step"] for each in found["ours"])
    peers = [each["seconds"]["step"] for each in found.values() if isinstance(each, dict) and "seconds" in each]
    return found | {"step_of_theirs": own / min(peers) if peers else None}


def waits(bench: "Bench") -> dict[str, Any]:
    """How often the host waits for the device in a step, and the kernels that take the longest."""
    import warnings

    size = size_of(bench)
    if not bench.tiny:
        size = replace(size, response=32)
    trainer = make_trainer(bench, "grpo", size, {})
    trainer.step()
    if not bench.on_cuda:
        return {"waits": None}
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        trainer.step()
    torch.cuda.set_sync_debug_mode("default")
    lines: dict[str, int] = {}
    for each in seen:
        place = "/".join(each.filename.split("/")[-2:]) + f":{each.lineno}"
        lines[place] = lines.get(place, 0) + 1
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        trainer.step()
        bench.wait()
    kernels = sorted(profile.key_averages(), key=lambda each: -each.self_device_time_total)[:10]
    return {
        "waits": len(seen),
        "columns": size.response,
        "lines": dict(sorted(lines.items(), key=lambda each: -each[1])[:20]),
        "kernels": [[each.key[:80], each.count, each.self_device_time_total / 1e6] for each in kernels],
    }


def changes(bench: "Bench") -> dict[str, Any]:
    """GRPO with one thing changed at a time; how far drawn and scored log-probabilities are apart."""
    size = size_of(bench)
    shorter = size if bench.tiny else replace(size, response=64)
    found: dict[str, Any] = {"size": vars(shorter)}
    for name, made, policy in (
        ("as it is", shorter, {}),
        ("float32", shorter, {"dtype": "float32"}),
        ("float32, tf32", shorter, {"dtype": "float32"}),
        ("adapters", shorter, {"lora": LoRAOptions(16)}),
        ("recomputed", shorter, {"gradient_checkpointing": True}),
        ("logits in pieces", shorter, {}),
        ("prompts of 16", replace(shorter, prompt=min(16, size.prompt)), {}),
        ("parts of 8", replace(shorter, micro_batch=min(8, size.micro_batch)), {}),
        ("twice the rows", replace(shorter, prompts=2 * size.prompts), {}),
    ):
        if bench.left < 20 and not bench.tiny:
            found[name] = "left out: no time"
            continue
        with settings(tf32=name == "float32, tf32", pieces=name == "logits in pieces"):
            trainer = make_trainer(bench, "grpo", made, policy)
            found[name] = steps_of(bench, trainer, made, steps=2) | rounding(trainer)
        del trainer
        bench.forget()
    return found


def rounding(trainer: Trainer) -> dict[str, float]:
    """Mean and largest difference of log-probabilities as they were drawn and as they are scored."""
    policy: Any = trainer.policy
    drawn = trainer.sampler.rollouts(2)
    with torch.no_grad():
        scored = trainer.sampler.logp(policy, drawn)
    off = (scored - drawn.logp)[drawn.mask].abs()
    return {"drawn_against_scored": float(off.mean()), "drawn_against_scored_most": float(off.max())}


@contextmanager
def settings(tf32: bool, pieces: bool) -> Iterator[None]:
    """Of PyTorch, and how much memory logits may take at a time."""
    before, size = torch.get_float32_matmul_precision(), policy_module.ACCELERATOR_LOGIT_BYTES
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    policy_module.ACCELERATOR_LOGIT_BYTES = 2**26 if pieces else size
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        policy_module.ACCELERATOR_LOGIT_BYTES = size


def deterministic(bench: "Bench") -> dict[str, Any]:
    """Are two runs equal bit by bit, with and without PyTorch's deterministic kernels, and what do these cost?"""
    from llm_mdp_agents.training.determinism import numerics

    size = size_of(bench)
    shorter = size if bench.tiny else replace(size, response=32)
    found: dict[str, Any] = {"size": vars(shorter)}
    for name, asked in (("without", False), ("with", True)):
        with numerics(deterministic=asked):
            weights = []
            for _ in range(2):
                trainer = make_trainer(bench, "grpo", shorter, {})
                figures = steps_of(bench, trainer, shorter, steps=2)
                weights.append([each.detach().cpu() for each in trainer.policy.parameters()])
                del trainer
                bench.forget()
        found[name] = figures | {"equal": all(torch.equal(*pair) for pair in zip(*weights, strict=True))}
    return found


def branches_and_critic(bench: "Bench") -> dict[str, Any]:
    """TRePO's branches and PPO's critic."""
    size = size_of(bench)
    shorter = size if bench.tiny else replace(size, prompts=4, response=64)
    found: dict[str, Any] = {"size": vars(shorter)}
    for name, options in (
        ("trepo", {"group_size": 2, "boundary": "every", "every": max(shorter.response // 4, 1)}),
        ("ppo", {"critic_warm_up": 0}),
    ):
        trainer = make_trainer(bench, name, shorter, {}, **options)
        trainer.prepare()
        found[name] = steps_of(bench, trainer, shorter, steps=2)
        del trainer
        bench.forget()
    return found


def large(bench: "Bench") -> dict[str, Any]:
    """1.5 billion weights."""
    size = TINY if bench.tiny else LARGE
    policy = {"gradient_checkpointing": True}
    return {"size": vars(size), "grpo": steps_of(bench, make_trainer(bench, "grpo", size, policy), size, steps=2)}


def goals(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What was aimed at beside what was found; None where it was not measured."""
    steps, drawn, peers = (found.get(name, {}) for name in ("step", "generate", "trl"))
    return {
        "step, as a part of TRL's, at most 0.5": peers.get("step_of_theirs"),
        "update, as a share of the peak, at least 0.35": steps.get("grpo", {}).get("update_share_of_peak"),
        "drawing, times generate, at least 5": drawn.get("times_faster"),
        "drawing with a compiled step, times generate, at least 5": drawn.get("times_faster_compiled"),
    }


ITEMS = [
    ("ceilings", 5.0, ceilings),
    ("step", 60.0, step),
    ("generate", 75.0, generate),
    ("trl", 60.0, trl),
    ("waits", 15.0, waits),
    ("changes", 60.0, changes),
    ("deterministic", 40.0, deterministic),
    ("branches and critic", 30.0, branches_and_critic),
    ("large", 45.0, large),
]
"""Names, seconds about, functions."""
