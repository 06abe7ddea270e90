"""Everything that decides how training goes on, as tensors and JSON, and standing there again.

What is frozen in the policy (the weights under LoRA adapters) is left out, there and in every other model that has the
same tensors: whoever builds the policy again has it. Its fingerprint stays, so that nobody goes on upon another base.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from llm_mdp_agents.optimizers import OptimizerWithMasters
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.parallel import Parallel

ALONE = Parallel()
"""How the models beside the policy are held: whole, by every process."""


PARTS = {"number", "base", "policy", "optimizer", "scheduler", "processes", "agent"}
OF_PROCESS = {"generator", "questions", "position", "cost"}
OF_AGENT = {"models", "optimizers", "numbers", "waiting", "generator"}
"""What `restore` cannot do without."""


class Older(ValueError):
    """A checkpoint of an earlier version, which did not keep all that decides how training goes on."""


class OtherBase(ValueError):
    """A checkpoint was trained upon other frozen weights than those of the policy."""


def state_of(trainer: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `restore` needs of a `Trainer`; see its `state`."""
    agent, parallel = trainer.agent, trainer.parallel
    frozen, places = _frozen(trainer.policy)
    everything = {
        "number": trainer.number,
        "base": trainer.base,
        "policy": {name: each for name, each in parallel.whole_state(trainer.policy).items() if name not in frozen},
        "optimizer": optimizer_state(trainer.optimizer, parallel),
        "scheduler": trainer.scheduler.state_dict(),
        "processes": parallel.everyone(
            {
                "generator": trainer.generator.get_state(),
                "questions": trainer.questions.bit_generator.state,
                "position": trainer.ask.position,
                "cost": dict(vars(trainer.sampler.cost)),
            }
        ),
        "agent": {
            "models": {
                name: {key: each for key, each in model.state_dict().items() if _place(each) not in places}
                for name, model in agent.models.items()
            },
            "optimizers": {name: optimizer_state(each, ALONE) for name, each in agent.optimizers.items()},
            "numbers": agent.numbers,
            "waiting": agent.waiting,
            "generator": agent.generator.get_state(),
        },
        "own_gradient": trainer.own_gradient.state,
    }
    tensors, packed = checkpoint.pack(everything, "trainer")
    return tensors, {"trainer": packed}


def restore(trainer: Any, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Let a `Trainer` go on from what `state_of` gave; see its `restore`."""
    everything, agent, parallel = checkpoint.unpack(tensors, state["trainer"]), trainer.agent, trainer.parallel
    _check_whole(everything)
    processes, size = everything["processes"], parallel.size
    if len(processes) != size:
        raise ValueError(
            f"the checkpoint is of a group of {len(processes)}, each with draws of its own, but this is one of {size}."
        )
    if everything["base"] != trainer.base:
        raise OtherBase(
            "the frozen weights of the policy are not those that the checkpoint was trained upon (their sha256 is "
            f"{str(trainer.base)[:12]} instead of {str(everything['base'])[:12]}); put the base model back as it was, "
            "or start a run anew."
        )
    frozen, places = _frozen(trainer.policy)
    policy = _completed(everything["policy"], dict(parallel.whole_state(trainer.policy)), frozen, "policy")
    models = {
        name: _completed(
            everything["agent"]["models"].get(name, {}),
            own := dict(model.state_dict()),
            {key for key, each in own.items() if _place(each) in places},
            name,
        )
        for name, model in agent.models.items()
    }
    own = processes[parallel.rank]
    trainer.number = everything["number"]
    parallel.load_whole_state(trainer.policy, policy)
    load_optimizer_state(trainer.optimizer, everything["optimizer"], parallel)
    trainer.scheduler.load_state_dict(everything["scheduler"])
    trainer.generator.set_state(own["generator"])
    trainer.questions.bit_generator.state = own["questions"]
    trainer.ask.position = own["position"]
    trainer.sampler.cost.__dict__.update(own["cost"])
    for name, model in agent.models.items():
        model.load_state_dict(models[name])
    for name, optimizer in agent.optimizers.items():
        load_optimizer_state(optimizer, everything["agent"]["optimizers"][name], ALONE)
    agent.numbers, agent.waiting = everything["agent"]["numbers"], everything["agent"]["waiting"]
    agent.generator.set_state(everything["agent"]["generator"])
    # Where nothing was measured yet, the next measurement comes when a run would have its first.
    trainer.own_gradient.restore(everything.get("own_gradient", trainer.own_gradient.state))
    agent.estimator = agent.make_estimator()


def _check_whole(everything: dict[str, Any]) -> None:
    """Raise Older where a part of the state is missing."""
    missing = PARTS - everything.keys()
    if not missing:
        missing = {f"processes.{name}" for each in everything["processes"] for name in OF_PROCESS - each.keys()}
        missing |= {f"agent.{name}" for name in OF_AGENT - everything["agent"].keys()}
    if missing:
        raise Older(f"is of an earlier version of LLM-MDP, which did not keep {', '.join(sorted(missing))}")


def frozen_names(policy: Any) -> set[str]:
    """The parameters of a policy that are not trained, by their names in its state."""
    return {name for name, each in policy.named_parameters(remove_duplicate=False) if not each.requires_grad}


def _frozen(policy: Any) -> tuple[set[str], set[tuple]]:
    """`frozen_names`, and where in memory these tensors are."""
    frozen = frozen_names(policy)
    return frozen, {_place(each) for name, each in policy.state_dict().items() if name in frozen}


def fingerprint(tensors: Mapping[str, Tensor]) -> str | None:
    """sha256 of names, types, shapes and bytes, in the order of the names; None: of nothing."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest() if tensors else None


def optimizer_state(optimizer: OptimizerWithMasters | torch.optim.Optimizer, parallel: Parallel) -> dict[str, Any]:
    """The state of an optimizer, as a single process has it, with the float32 copies that it works on."""
    if isinstance(optimizer, OptimizerWithMasters):
        masters = [parallel.whole(each).cpu() for each in optimizer.masters.state()]
        return {"torch": parallel.whole_optimizer_state(optimizer.torch), "masters": masters}
    return {"torch": parallel.whole_optimizer_state(optimizer), "masters": []}


def load_optimizer_state(
    optimizer: OptimizerWithMasters | torch.optim.Optimizer, state: dict[str, Any], parallel: Parallel
) -> None:
    """Stand where `optimizer_state` was taken."""
    if isinstance(optimizer, OptimizerWithMasters):
        parallel.load_whole_optimizer_state(optimizer.torch, state["torch"])
        there = optimizer.masters.state()
        optimizer.masters.load_state([parallel.part(*pair) for pair in zip(state["masters"], there, strict=True)])
    else:
        parallel.load_whole_optimizer_state(optimizer, state["torch"])


def _place(tensor: Tensor) -> tuple:
    """The same for two tensors that are one in memory, and for no others."""
    tensor = cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor.detach()
    if not tensor.numel():
        return (id(tensor),)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _completed(saved: dict[str, Tensor], own: dict[str, Tensor], left_out: set[str], what: str) -> dict[str, Tensor]:
    """The whole state of a model from a checkpoint and what it left out.

    Raises:
        ValueError: if the model has other tensors than the checkpoint.
    """
    shapes = {name: each.shape for name, each in own.items()}
    missing = sorted(shapes.keys() - saved.keys() - left_out)
    other = sorted(name for name, each in saved.items() if shapes.get(name) != each.shape)
    if missing or other:
        name = (missing or other)[0]
        raise ValueError(
            f"the checkpoint is of another model: {name} of the {what} is "
            f"{'not in it' if missing else f'of shape {tuple(saved[name].shape)} in it'}; resume it with the agent, "
            f"the model and the environment that it was written with."
        )
    return own | saved
