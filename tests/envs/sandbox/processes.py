"""What the tests ask about processes (Linux; elsewhere none are seen)."""

import contextlib
import os
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Living processes below a process (Linux; elsewhere none are seen)."""
    parents: dict[int, list[int]] = {}
    for process in os.listdir("/proc") if os.path.isdir("/proc") else []:
        if not process.isdecimal():
            continue
        with contextlib.suppress(OSError):  # it may end between any two of our looks
            name, _, rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")
            state, parent = rest.split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(name.split()[0]))
    below, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        below += children
        queue += children
    return below


def names_of(pids: list[int]) -> list[str]:
    """The programs that these processes run."""
    names = []
    for below in pids:
        with contextlib.suppress(OSError):
            names.append(os.path.basename(os.readlink(f"/proc/{below}/exe")))
    return names


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def cpu_ticks(pid: int) -> int:
    """Of work, its own; 0 where the process is gone."""
    try:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    except OSError:
        return 0


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
