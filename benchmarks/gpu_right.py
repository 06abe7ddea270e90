"""What of gpu.py says whether everything is right on a device: against the CPU, on models of a few thousand weights."""

import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.tree import PAD
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.sampled import policy_certificate, sampled_certificate
from llm_mdp_agents.lm.loading import LoRAOptions, load_policy
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.parallel import Parallel
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular

if TYPE_CHECKING:
    from gpu import Bench

ROOT = Path(__file__).resolve().parents[1]
NEAR = {"float32": 1e-4, "bfloat16": 0.1}
"""Most that log-probabilities (the largest difference) and gradients (relative length of the difference) may be off."""
OPTIONS = {
    "group_size": 4, "kl": 0.1, "samples": 2, "critic_warm_up": 1, "reward_model_warm_up": 1, "dpo_batches": 2,
}  # fmt: skip
"""Of the agents that have them; the DPO agents are held to their reference without a penalty."""


def parity(bench: "Bench") -> dict[str, Any]:
    """Tokens, branches, log-probabilities and gradients of two architectures in two precisions."""
    found: dict[str, Any] = {}
    for kind in ("llama", "gpt2"):
        for dtype in NEAR:
            mine, theirs = (drawn_and_scored(model(kind, dtype, device)) for device in ("cpu", bench.device))
            same = float((mine["tokens"] == theirs["tokens"]).double().mean())
            # Log-probabilities and gradients of the same tokens; in 16 bits others may have been drawn.
            given = drawn_and_scored(model(kind, dtype, bench.device), mine["tokens"])
            logp = float((mine["logp"] - given["logp"]).abs().max())
            gradient = relative(given["gradient"], mine["gradient"])
            drawn = float((theirs["drawn"] - theirs["logp"]).abs().max())
            found[f"{kind} {dtype}"] = {
                "tokens_alike": same, "logp_off": logp, "gradient_off": gradient, "drawn_against_scored": drawn,
                "right": logp <= NEAR[dtype] and gradient <= NEAR[dtype] and (same == 1 or dtype != "float32"),
            }  # fmt: skip
    return found | {"right": all(each["right"] for each in found.values())}


def drawn_and_scored(policy: LanguageModelPolicy, tokens: Tensor | None = None) -> dict[str, Tensor]:
    """Responses and branches of one seed, or those that are given, with the derivative of all log-probabilities."""
    prompt = torch.tensor([[PAD, 1, 2], [3, 0, 1], [2, 2, 3]])
    options = {"eos": 3, "horizon": 12, "generator": torch.Generator().manual_seed(0)}
    rollouts = policy.sample(prompt, 4, **options)
    row, step = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 0, 2])
    branches = policy.branch(rollouts.prompt, rollouts.tokens, row, step, 2, **options)
    prompt, drawn = torch.cat([rollouts.prompt, branches.prompt]), torch.cat([rollouts.logp, branches.logp])
    tokens = torch.cat([rollouts.tokens, branches.tokens]) if tokens is None else tokens
    mask = tokens != PAD
    # What a branch took over has no log-probability of its own.
    mask[len(rollouts.tokens) :] &= drawn[len(rollouts.tokens) :] != 0
    logp = policy.logp(prompt, tokens, mask)
    gradient = flat(torch.autograd.grad(logp.sum(), list(policy.parameters())))
    return {
        "tokens": tokens,
        "logp": logp.detach().double(),
        "drawn": torch.where(mask, drawn, 0.0),
        "gradient": gradient,
    }


def agents(bench: "Bench") -> dict[str, Any]:
    """Two steps of every agent in float32 (two epochs, parts of three responses, a KL penalty): all gradients."""
    found: dict[str, Any] = {}
    for name in AGENTS:
        here, there = (two_steps(name, device) for device in ("cpu", bench.device))
        off = [relative(*pair) for pair in zip(there, here, strict=True)]
        found[name] = {"updates": len(off), "gradient_off": max(off), "right": len(off) == 4 and max(off) <= 1e-4}
    return {"agents": found, "right": len(found) == 14 and all(each["right"] for each in found.values())}


def two_steps(name: str, device: str) -> list[Tensor]:
    """The gradient of every update. Plain gradient descent, for AdamW makes steps of its whole size from rounding."""
    trainer = make_trainer(name, device, optimizer="SGD")
    seen: list[Tensor] = []
    clip = trainer.parallel.clip

    def watched(parameters: list[nn.Parameter], most: float) -> float:
        seen.append(flat([each.grad for each in parameters if each.grad is not None]))
        return clip(parameters, most)

    trainer.parallel.clip = watched
    trainer.prepare()
    trainer.step(), trainer.step()
    return seen


def resume(bench: "Bench") -> dict[str, Any]:
    """One more step, and the same step from a checkpoint in a folder: are the weights equal bit by bit?"""
    found = {}
    for name, options in (
        ("grpo", {}), ("ppo", {"lora": LoRAOptions(rank=2)}), ("prime", {}), ("trepo", {"dtype": "bfloat16"}),
    ):  # fmt: skip
        trainer, again = make_trainer(name, bench.device, **options), make_trainer(name, bench.device, **options)
        trainer.prepare()
        trainer.step()
        tensors, state = trainer.state()
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(Path(folder), trainer.number, tensors, state, keep=1)
            loaded = checkpoint.load(Path(folder))
        again.restore(loaded.tensors, loaded.state)
        trainer.step(), again.step()
        found[name] = float((flat(trainer.policy.parameters()) - flat(again.policy.parameters())).abs().max())
    return {"weights_off": found, "right": not any(found.values())}


def certificates(bench: "Bench") -> dict[str, Any]:
    """Of RLOO and GRPO with a policy on the device: the exact one, the sampled one, and the one token by token."""
    task, found = Tabular(vocab_size=3, horizon=2, n_prompts=2, seed=1), {}
    for name in ("rloo", "grpo"):
        both = []
        for device in ("cpu", bench.device):
            policy = model("gpt2", "float64", device, task.vocab_size)
            agent: Any = AGENTS[name](AGENTS[name].Config(group_size=2), policy, task, 0)
            enumeration = Enumeration(task.mdp, policy)
            target = flat(exact_gradient(policy, task.mdp)[1])
            both.append(
                (
                    exact_certificate(agent, enumeration, target, 1.0),
                    sampled_certificate(agent, enumeration, target, 400),
                    policy_certificate(agent, policy, task.mdp, target, 400, batches=4),
                )
            )
        pairs = [(here.relative_bias or 0.0, there.relative_bias or 0.0) for here, there in zip(*both)]
        found[name] = {
            "bias_off": max(abs(here - there) / (abs(here) or 1.0) for here, there in pairs),
            "verdicts": [each.verdict for each in both[1]],
            "verdicts_alike": [each.verdict for each in both[0]] == [each.verdict for each in both[1]],
        }
    right = all(each["bias_off"] < 1e-6 and each["verdicts_alike"] for each in found.values())
    return {"agents": found, "right": right}


def cuda_tests(bench: "Bench") -> dict[str, Any]:
    """`pytest -m cuda`."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
        "tests/agents/test_cuda.py",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=max(bench.left - 5, 1)
    )
    words = done.stdout.strip().splitlines()
    # 5: none was collected; all are skipped where there is no CUDA.
    right = done.returncode == 0 and (not bench.on_cuda or "passed" in words[-1])
    return {"right": right, "last_line": words[-1] if words else done.stderr[-500:], "output": done.stdout[-3000:]}


def model(kind: str, dtype: str, device: str, vocab_size: int = 4) -> LanguageModelPolicy:
    """A few thousand random weights, the same on every device."""
    sizes = {
        "llama": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
            "max_position_embeddings": 32,
        },
        "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32},
    }[kind]  # fmt: skip
    config = {"model_type": kind, "vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": None, **sizes}
    return load_policy(config, dtype=dtype, device=device, seed=2)


def make_trainer(
    name: str, device: str, dtype: str = "float32", lora: LoRAOptions | None = None, optimizer: str = "AdamW"
) -> Trainer:
    """An agent on a small table of rewards, with a transformer for its policy."""
    task, kind = Tabular(vocab_size=4, horizon=4, n_prompts=2, seed=1), AGENTS[name]
    known = {each.name for each in fields(kind.Config)} - ({"kl"} if "dpo" in name else set())
    options = {key: value for key, value in OPTIONS.items() if key in known}
    policy = load_policy(
        model("llama", dtype, "cpu").model.config.to_dict(), dtype=dtype, device=device, lora=lora, seed=2
    )
    config = TrainConfig(
        prompts_per_step=2, epochs=2, micro_batch=3, learning_rate=0.01, signal_every=0, seed=5, optimizer=optimizer
    )
    return Trainer(kind(kind.Config(**options), policy, task, seed=3), task, policy, config, Parallel())


def flat(tensors: Any) -> Tensor:
    """One vector on the CPU, in float64."""
    return torch.cat([each.detach().to("cpu", torch.float64).flatten() for each in tensors])


def relative(one: Tensor, other: Tensor) -> float:
    """|one - other| / |other|."""
    return float((one - other).norm() / other.norm()) if float(other.norm()) else float(one.norm())


ITEMS = [
    ("parity", 10.0, parity),
    ("agents", 40.0, agents),
    ("certificates", 10.0, certificates),
    ("resume", 15.0, resume),
    ("tests", 60.0, cuda_tests),
]
"""Names, seconds about, functions."""
