"""One of the processes of test_parallel.py:  torchrun --nproc-per-node 2 tests/parallel_worker.py FOLDER

Trains every case for a few steps, with copies of the policy and with shards of it, and writes what happened to
FOLDER/<rank>.pt.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from llm_mdp.sampling.sampler import NothingKept
from llm_mdp_agents.lm.loading import LoRAOptions, load_policy, save_model
from llm_mdp_agents.lm.policy import LanguageModelPolicy, tiny_transformer
from llm_mdp_agents.training.parallel import Parallel, Replicated, Sharded, parallel_from_environment
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular

STEPS = 3
CONFIG = TrainConfig(
    steps=STEPS, prompts_per_step=4, micro_batch=3, signal_every=1, learning_rate=0.01, max_grad_norm=1e6
)

CASES: dict[str, tuple[str, dict[str, Any], TrainConfig]] = {
    "sum": ("grpo", {"group_size": 4, "reduction": "sum"}, CONFIG),
    "sequence_mean": ("grpo", {"group_size": 4, "reduction": "sequence_mean"}, CONFIG),
    "token_mean": (
        "grpo",
        {"group_size": 4, "reduction": "token_mean", "kl": 0.1, "kl_in": "loss", "kl_estimator": "k3"},
        CONFIG,
    ),
    "all at once": (
        "grpo",
        {"group_size": 4, "reduction": "token_mean"},
        replace(CONFIG, micro_batch=None, signal_every=0),
    ),
    "branches": ("trepo", {"group_size": 2, "boundary": "random", "positions": 2, "samples": 2}, CONFIG),
    "critic": ("ppo", {"group_size": 2, "critic_warm_up": 2}, replace(CONFIG, max_grad_norm=0.01)),
    "epochs": ("rloo", {"group_size": 4, "clip_low": 0.2}, replace(CONFIG, epochs=2)),
    "drawn by another": ("iterative-dpo", {"refresh": 2}, CONFIG),
    "nothing kept": ("grpo", {"group_size": 4}, CONFIG),
    "adapters": ("ppo", {"group_size": 2, "critic_warm_up": 2, "kl": 0.1}, CONFIG),
    "recomputed": ("grpo", {"group_size": 4}, CONFIG),
}
"""Agent, its options, and how it is trained."""
RESUMED = ("branches", "critic", "adapters")
"""Cases that are also resumed from a checkpoint, and evaluated."""
SAVED = ("branches", "adapters")
"""Cases whose model is also written, to FOLDER/<case> <whether it was in shards>."""


def make_task() -> Tabular:
    return Tabular(vocab_size=4, horizon=5, n_prompts=3, seed=1)


def make_policy(case: str, task: Tabular) -> LanguageModelPolicy:
    """A GPT-2, for Llamas compute some of their layers in float32 whatever they are told."""
    policy = tiny_transformer(task.vocab_size, task.prompt_length + task.horizon, seed=2, width=16, layers=2)
    if case not in ("adapters", "recomputed"):
        return policy
    lora, recompute = LoRAOptions(rank=2) if case == "adapters" else None, case == "recomputed"
    loaded = load_policy(
        policy.model.config.to_dict(), dtype="float64", lora=lora, gradient_checkpointing=recompute, seed=2
    )
    return LanguageModelPolicy(loaded.model, policy.vocab_size, policy.begin)


def make_trainer(case: str, parallel: Parallel) -> Trainer:
    name, options, config = CASES[case]
    task = make_task()
    policy = make_policy(case, task)
    agent = AGENTS[name](AGENTS[name].Config(**options), policy, task, seed=3)
    if case == "nothing kept":
        collect = agent.collect

        def collect_sometimes(sampler):
            if parallel.rank == 1:
                raise NothingKept("for the test.")
            return collect(sampler)

        agent.collect = collect_sometimes
    return Trainer(agent, task, policy, config, parallel)


def gradients_of(parallel: Parallel) -> list[tuple[list[torch.Tensor], bool]]:
    """A list that gets the gradient of every update, and whether it was in shards; training keeps none."""
    kept, clip = [], parallel.clip

    def clip_and_keep(parameters, most):
        norm, in_shards = clip(parameters, most), all(isinstance(each.grad, DTensor) for each in parameters)
        kept.append(([parallel.whole(each.grad).clone() for each in parameters], in_shards))
        return norm

    parallel.clip = clip_and_keep
    return kept


def run(case: str, shard: bool, folder: Path) -> dict[str, Any]:
    """What a case did in this process."""
    parallel = parallel_from_environment(shard)
    assert type(parallel) is (Sharded if shard else Replicated) and parallel.size == 2
    trainer = make_trainer(case, parallel)
    batches, gather = [], parallel.gather

    def gather_and_keep(evidence):
        whole, own = gather(evidence)
        batches.append(whole)
        return whole, own

    parallel.gather, kept = gather_and_keep, gradients_of(parallel)
    trainer.prepare()
    metrics, gradients = [], []
    for _ in range(STEPS):
        metrics.append(trainer.step())
        gradients.append(kept[-1][0])
    tensors, state = trainer.state()
    parameters = list(trainer.policy.parameters())
    result = {
        "batches": list(batches),
        "metrics": metrics,
        "gradients": gradients,
        "checkpoint": (tensors, state),
        "weights": {name: tensor.clone() for name, tensor in parallel.whole_state(trainer.policy).items()},
        "models": {name: model.state_dict() for name, model in trainer.agent.models.items()},
        "sharded": all(isinstance(each, DTensor) for each in parameters) and kept[-1][1],
        "share": sum(each.to_local().numel() if shard else each.numel() for each in parameters)
        / sum(each.numel() for each in parameters),
    }
    if case in SAVED:
        whole = parallel.whole_policy(trainer.policy)
        if parallel.main:
            save_model(whole, folder / f"{case} {shard}")
    if case in RESUMED:
        again = make_trainer(case, parallel_from_environment(shard))
        again.restore(tensors, state)
        trainer.step()
        again.step()
        here, there = (each.parallel.whole_state(each.policy) for each in (trainer, again))
        result["resumed alike"] = all(torch.equal(here[name], there[name]) for name in here)
        result["evaluation"] = again.evaluate()
    return result


def draw_unevenly() -> list[int]:
    """Draw 1 token in the first process and 5 in the second, then train together. The length drawn here, and how many
    came through."""
    parallel = Sharded()
    trainer = make_trainer("sum", parallel)
    prompt, generator = torch.zeros(1, 1, dtype=torch.int64), torch.Generator().manual_seed(0)
    horizon = 1 if parallel.main else 5
    draw = lambda: trainer.policy.sample(prompt, 2, eos=None, horizon=horizon, generator=generator)  # noqa: E731
    drawn = parallel.on_whole_model(trainer.policy, draw)
    trainer.step()
    return [int(drawn.length.max()), len(parallel.everyone(None))]


def main() -> None:
    folder = Path(sys.argv[1])
    results: dict[str, Any] = {}
    for kind, shard in (("replicated", False), ("sharded", True)):
        results[kind] = {case: run(case, shard, folder) for case in CASES}
    results["lengths"], results["folder"] = draw_unevenly(), folder
    results["size"], rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    torch.save(results, folder / f"{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
