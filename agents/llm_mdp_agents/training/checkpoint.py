"""Checkpoints that a kill cannot tear: a step folder is complete or it does not exist.

    folder/step-000040/tensors.safetensors    every tensor, bit for bit
    folder/step-000040/state.json             format, step, everything that is not a tensor, a checksum of the tensors,
                                              and one of its own bytes, taken with zeros in its place

A checkpoint is written into a hidden folder, flushed to the disk and renamed; nothing is ever changed in place.
Version 1 of the format had no checksum of `state.json`; it is still read.
`pack` turns what torch and numpy keep (states of optimizers, schedulers, generators) into tensors and JSON, `unpack`
back.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = "llm-mdp checkpoint"
VERSION = 2
TENSORS, STATE = "tensors.safetensors", "state.json"
HIDDEN = ".step-"
"""How the names of unfinished and of discarded folders begin."""
PLAIN = (bool, int, float, str)
BLANK = "0" * 64
"""Stands in `state.json` where its checksum will be, while the checksum is taken."""
PARTS = {1: {"format", "version", "step", "tensors", "aliases", "state"}}
PARTS[2] = PARTS[1] | {"checksum"}
"""What `state.json` holds, by version."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be written or read; the sentence says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given."""

    step: int
    tensors: dict[str, Tensor]
    """On the CPU; names that shared one tensor share one again."""
    state: dict[str, Any]
    path: Path


def save(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any], *, keep: int, spared: int | None = None
) -> Path:
    """Write `folder/step-<step>`, then remove the oldest checkpoints beyond the `keep` newest, and unfinished folders.

    Args:
        tensors: on any device, of any layout in memory; a tensor under several names is stored once.
        state: anything that JSON gives back unchanged.
        keep: number of complete checkpoints that stay, this one included.
        spared: the step of a further one that stays, such as the best.

    Returns: the new folder.

    Raises:
        ValueError: if the state is not JSON, or a tensor is not dense, or `keep` or `step` is out of range.
        CheckpointError: if the step is there already, or the disk refuses; earlier checkpoints are then as they were.
    """
    folder = Path(folder)
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least 1 checkpoint is kept, the newest.")
    if step < 0:
        raise ValueError(f"step is {step}; a step is a whole number from 0 on.")
    _check_json(state, "state")
    path = folder / f"step-{step:06d}"
    if path.exists():
        raise CheckpointError(
            f"{path} exists already; call discard_after(folder, step) when a run resumes from an earlier step."
        )
    hidden = folder / f"{HIDDEN}{step:06d}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_hidden(folder)
        hidden.mkdir()
        _write(hidden, step, tensors, state)
        hidden.rename(path)
        _flush(folder)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}; {instead(path)}.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)  # renamed by now, unless something went wrong
    earlier = [each for each in _complete(folder) if _step_of(each) < step and _step_of(each) != spared]
    for old in earlier[: max(0, len(earlier) + 1 - keep)]:
        _discard(old)
    return path


def load(folder: Path, step: int | None = None) -> Checkpoint:
    """Read a checkpoint and check every byte of it.

    Args:
        folder: where `save` put its step folders, or one of them.
        step: None: the newest.

    Raises: CheckpointError: if there is none, or it is torn or foreign; the sentence offers the newest good one before
        it.
    """
    folder = Path(folder)
    if not folder.is_dir() and not (_is_step(folder) and folder.exists()):
        raise CheckpointError(
            f"{folder} is not a folder; give the folder of the checkpoints or one of its folders step-…."
        )
    if _is_step(folder):
        if step not in (None, _step_of(folder)):
            raise CheckpointError(
                f"{folder} is step {_step_of(folder)}, not step {step}; leave the step out, or give the folder above."
            )
        return _read(folder)
    steps = _step_folders(folder)
    if not steps:
        raise CheckpointError(f"{folder} holds no checkpoint (a folder step-… with {TENSORS} and {STATE}).")
    if step is None:
        return _read(steps[-1])
    for path in steps:
        if _step_of(path) == step:
            return _read(path)
    raise CheckpointError(f"{folder} has no checkpoint of step {step}; it has {', '.join(map(str, steps_in(folder)))}.")


def steps_in(folder: Path) -> list[int]:
    """The steps of which something stands in the folder, torn ones included."""
    return [_step_of(path) for path in _step_folders(Path(folder))]


def discard_after(folder: Path, step: int) -> None:
    """Remove the checkpoints after `step`: a run that resumes from it writes its own."""
    for path in _step_folders(Path(folder)):
        if _step_of(path) > step:
            _discard(path)


def pack(value: Any, name: str) -> tuple[dict[str, Tensor], Any]:
    """Nested dicts, lists and tuples of tensors and plain values, as tensors and JSON; `unpack` gives back the same,
    tuples included.

    Args: name: prefix of the tensors' names; one for each thing that goes into a checkpoint.
    Raises: ValueError: naming the place of a value that is neither tensor nor plain.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _pack(value, name, tensors)


def unpack(tensors: dict[str, Tensor], packed: Any) -> Any:
    """The value that `pack` was given, with copies of the tensors."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "dict":
        return {key: unpack(tensors, each) for key, each in content}
    return {"list": list, "tuple": tuple}[kind](unpack(tensors, each) for each in content)


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if place in tensors:
            raise ValueError(f"two tensors would be stored as {place!r}; rename a key so that their paths differ.")
        tensors[place] = value
        return {"tensor": place}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(each, f"{place}/{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_pack(each, f"{place}/{k}", tensors) for k, each in enumerate(value)]}
    if value is None or isinstance(value, PLAIN):
        return value
    raise ValueError(
        f"{place} is a {type(value).__name__}, which a checkpoint cannot hold; use tensors, numbers, strings, dicts."
    )


def _check_json(value: Any, place: str) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            if not isinstance(key, str):
                raise ValueError(
                    f"{place} has the key {key!r}, which JSON would turn into a string; use `pack` for it."
                )
            _check_json(each, f"{place}[{key!r}]")
    elif isinstance(value, list):
        for k, each in enumerate(value):
            _check_json(each, f"{place}[{k}]")
    elif not (value is None or isinstance(value, PLAIN)):
        raise ValueError(
            f"{place} is a {type(value).__name__}, which JSON would not give back unchanged; use `pack` for it."
        )


def _write(hidden: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored, aliases = _separate(tensors)
    try:
        save_file(stored, hidden / TENSORS)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    _flush(hidden / TENSORS)
    about = {"file": TENSORS, "bytes": (hidden / TENSORS).stat().st_size, "sha256": _sha256(hidden / TENSORS)}
    document = {
        "format": FORMAT,
        "version": VERSION,
        "checksum": BLANK,
        "step": step,
        "tensors": about,
        "aliases": aliases,
        "state": state,
    }
    blank = json.dumps(document).encode()
    (hidden / STATE).write_bytes(blank.replace(BLANK.encode(), _checksum(blank), 1))
    shutil.copymode(hidden / STATE, hidden / TENSORS)  # safetensors would let only the owner read
    _flush(hidden / STATE)
    _flush(hidden)


def _separate(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors as safetensors takes them (contiguous, no memory in common), and {other name: name stored} for the same
    tensor."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple, str] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided:
            raise ValueError(
                f"tensor {name!r} has layout {tensor.layout}; a checkpoint holds dense tensors, use .to_dense()."
            )
        same = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in first:
            aliases[name] = first[same]
            continue
        first[same] = name
        plain = tensor.detach().cpu().contiguous()
        # Views of one memory, such as rows of a table, are stored as tensors of their own.
        if plain.untyped_storage().data_ptr() in memory:
            plain = plain.clone()
        memory.add(plain.untyped_storage().data_ptr())
        stored[name] = plain
    return stored, aliases


def _read(path: Path) -> Checkpoint:
    """The checkpoint of one step folder, or CheckpointError with the way out."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    wrong = _wrong(path) or _wrong_bytes(path)
    try:
        if not wrong:
            document = _document(path)
            tensors = load_file(path / TENSORS)
            tensors |= {name: tensors[stored] for name, stored in document["aliases"].items()}
            return Checkpoint(document["step"], tensors, document["state"], path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        wrong = f"{path / TENSORS} cannot be read ({error})"
    raise CheckpointError(f"{wrong}; {instead(path)}.")


def _document(path: Path) -> dict[str, Any]:
    return json.loads((path / STATE).read_bytes().decode("utf-8"))


def _wrong(path: Path) -> str | None:
    """What one sees is wrong without reading the tensors; None: nothing."""
    if not path.is_dir():
        return f"{path} is not a folder, so it is no checkpoint of LLM-MDP"
    for file in (path / STATE, path / TENSORS):
        if not file.is_file():
            return f"{file} is missing, so {path.name} is torn or not a checkpoint of LLM-MDP"
    try:
        document, raw, size = _document(path), (path / STATE).read_bytes(), (path / TENSORS).stat().st_size
    except OSError as error:
        return f"{path / STATE} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return f"{path / STATE} is not JSON, so {path.name} is torn"
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return f"{path / STATE} is not of a checkpoint of LLM-MDP (its format is not {FORMAT!r})"
    version = document.get("version")
    if not isinstance(version, int) or version not in PARTS:
        return f"{path / STATE} has format version {version!r}, and this LLM-MDP reads up to version {VERSION}"
    if set(document) != PARTS[version] or not _has_kinds(document):
        return f"{path / STATE} lacks a part of format version {version}"
    if version > 1 and not _is_sealed(raw, document["checksum"]):
        return f"{path / STATE} has another checksum than it says, so its bytes were changed"
    if document["step"] != _step_of(path):
        return f"{path / STATE} is of step {document['step']}, so {path.name} was renamed"
    if size != (bytes_then := document["tensors"]["bytes"]):
        return f"{path / TENSORS} has {size} bytes instead of {bytes_then}, so {path.name} is torn"
    return None


def _has_kinds(document: dict[str, Any]) -> bool:
    return all(isinstance(document[name], dict) for name in ("tensors", "aliases", "state")) and (
        set(document["tensors"]) == {"file", "bytes", "sha256"}
    )


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _is_sealed(raw: bytes, checksum: Any) -> bool:
    """Are these the bytes that the checksum in them was taken of?"""
    said = str(checksum).encode()
    return len(said) == len(BLANK) and _checksum(raw.replace(said, BLANK.encode(), 1)) == said


def _wrong_bytes(path: Path) -> str | None:
    try:
        if _sha256(path / TENSORS) != _document(path)["tensors"]["sha256"]:
            return f"{path / TENSORS} has another checksum than {STATE} says, so its bytes were changed"
    except OSError as error:
        return f"{path / TENSORS} cannot be read ({error.strerror})"
    return None


def instead(path: Path) -> str:
    """Where to go on instead of from this step folder, as the end of a sentence: the newest good one before it."""
    before = _good_before(path.parent, _step_of(path))
    if before is None:
        return "there is no good checkpoint before it"
    return f"resume from step {_step_of(before)} with --resume {shlex.quote(str(before))}"


def _good_before(folder: Path, step: int) -> Path | None:
    earlier = [path for path in _complete(folder) if _step_of(path) < step]
    return next((path for path in reversed(earlier) if not _wrong_bytes(path)), None)


def _complete(folder: Path) -> list[Path]:
    return [path for path in _step_folders(folder) if not _wrong(path)]


def _step_folders(folder: Path) -> list[Path]:
    """Everything that is named like a step folder, torn ones included, by step."""
    return sorted((path for path in folder.glob("step-*") if _is_step(path)), key=_step_of)


def _is_step(path: Path) -> bool:
    return re.fullmatch(r"step-\d{6,}", path.name) is not None


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _discard(path: Path) -> None:
    """Remove a step folder; hidden first, so that a kill half-way leaves no torn one."""
    hidden = path.with_name(f"{HIDDEN}discarded.{path.name}.{os.getpid()}")
    path.rename(hidden)
    _remove(hidden)


def _remove_hidden(folder: Path) -> None:
    for path in folder.glob(f"{HIDDEN}*"):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
