"""Where a policy calculates: names of devices, and what a process of several may have of them."""

import os
from typing import Any

import torch


def device_of(name: str, model: str = "", engine: str = "hf") -> str:
    """The device of a name. Nothing is allocated on any: in a group, each process has yet to be given its own.

    Args:
        name: "cpu", "cuda", "cuda:1" …; "auto": cuda for a language model that has a name, where there is one, and the
            CPU for tables and small transformers, which are faster there.
        model: the policy's, see `ModelConfig`.
        engine: who draws; vLLM draws on the CPU.

    Raises:
        ValueError: if there is no such device here, drawing does not work on it, or it has a number though this is one
            of several processes.
    """
    if name == "auto":
        named = model not in ("", "auto", "small", "tabular", "ngram")
        name = "cuda" if named and engine == "hf" and torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"device is {name!r}, which is not here; give cpu, cuda, cuda:1 … or auto.") from error
    if device.type == "cpu":
        return "cpu"
    if device.type == "mps":
        raise ValueError(f"device is {name!r}, which has no float64, and tokens are drawn in float64; give cpu.")
    number = _number_of(device.type)
    if (device.index or 0) >= number:
        raise ValueError(f"device is {name!r}, which is not here; give cpu, cuda, cuda:1 … or auto.")
    if device.index is not None and processes() > 1:
        raise ValueError(
            f"device is {name!r}, but this is one of {processes()} processes, and each takes a GPU of its own; give "
            f"{device.type}."
        )
    if processes() > 1 and (place := int(os.environ.get("LOCAL_RANK", "0"))) >= number:
        raise ValueError(
            f"device is {name!r}, and this is process {place + 1} of a machine that has {number} of them; start no "
            f"more processes than that (--nproc-per-node {number})."
        )
    return name


def place_of(policy: Any) -> str:
    """The device of a policy's parameters; "cpu" if it has none."""
    return next((str(each.device) for each in policy.parameters()), "cpu")


def processes() -> int:
    """How many of them torchrun started, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _number_of(kind: str) -> int:
    """Devices of a kind that are here."""
    try:
        module = torch.get_device_module(kind)
    except (RuntimeError, AttributeError):
        return 0
    return module.device_count() if module.is_available() else 0
