"""Agents with transformers of a few hundred weights, on any device, for the tests of devices."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm_mdp_agents.lm.loading import load_policy
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular

CONFIG = TrainConfig(
    prompts_per_step=3, epochs=2, micro_batch=3, learning_rate=0.01, signal_every=1, eval_prompts=4, seed=5
)
OPTIONS = {
    "group_size": 2, "kl": 0.1, "samples": 2, "critic_warm_up": 1, "reward_model_warm_up": 1, "dpo_batches": 2,
}  # fmt: skip
"""Of the agents that have them; the DPO agents are held to their reference without a penalty."""


def make_policy(task: Tabular, kind: str = "llama", device: str = "cpu", **options: Any):
    sizes = {
        "llama": {
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 16,
        },
        "gpt2": {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16},
    }[kind]  # fmt: skip
    config = {"model_type": kind, "vocab_size": task.vocab_size, "bos_token_id": 0, "eos_token_id": None, **sizes}
    return load_policy(config, **({"dtype": "float64", "device": device, "seed": 2} | options))


def make_trainer(name: str, task: Tabular, device: str, config: TrainConfig = CONFIG, **policy: Any) -> Trainer:
    kind = AGENTS[name]
    known = {each.name for each in fields(kind.Config)} - ({"kl"} if "dpo" in name else set())
    options = {key: value for key, value in OPTIONS.items() if key in known}
    ours = make_policy(task, device=device, **policy)
    return Trainer(kind(kind.Config(**options), ours, task, seed=3), task, ours, config)


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().cpu().flatten().double() for each in module.parameters()])


def stepped(trainer: Trainer) -> Trainer:
    trainer.prepare()
    for _ in range(2):
        trainer.step()
    return trainer


def resumed(trainer: Trainer, again: Trainer, folder: Path) -> Trainer:
    """Another trainer, where the first one stands, by a checkpoint in files."""
    tensors, state = trainer.state()
    checkpoint.save(folder, trainer.number, tensors, state, keep=1)
    loaded = checkpoint.load(folder)
    again.restore(loaded.tensors, loaded.state)
    return again
