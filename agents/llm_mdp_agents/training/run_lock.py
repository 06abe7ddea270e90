"""One run, one process: a lock on the folder of a run. The kernel takes it back when the process ends, however it
ends."""

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"
"""The file in the folder of a run that is locked; it says who holds it, and stays when nobody does."""
TAKEN = (errno.EAGAIN, errno.EACCES)
"""What a file system answers when another process holds a lock."""
_held: set[int] = set()


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the folder of a run while the context is open. Where the file system knows no locks, a warning says so.

    Raises:
        ValueError: if a run is at work there, naming its process and machine, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be opened ({error.strerror}); a run needs a folder that it may write to."
        ) from error
    _held.add(descriptor)
    try:
        _take(descriptor, folder)
        yield
    finally:
        if descriptor in _held:
            _let_go(descriptor)


def _take(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise ValueError(
                f"{folder} is in use by {_holder(descriptor)}; wait until it has ended, or end it first."
            ) from None
        warnings.warn(
            f"the file system of {folder} knows no locks ({error.strerror}); make sure that no other process trains "
            f"there",
            stacklevel=4,
        )
    holder = json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode()
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, holder + b"\n", 0)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 1000, 0))
        return f"process {int(holder['process'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has not said so yet
        return "another process"


def _let_go(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _forget() -> None:
    """Close the locks in a process that was forked: it may outlive this one, and would hold them as long."""
    for descriptor in list(_held):
        _let_go(descriptor)


os.register_at_fork(after_in_child=_forget)
