"""Workers that die, stop or are short of memory, in the middle of a program: the program does not pay for it."""

# ruff: noqa: E501 (tables)
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mdp_envs.sandbox import Limits, Program, SandboxUnavailable, forkserver, make_sandbox
from tests.envs.sandbox.processes import alive, cpu_ticks, descendants, names_of, parent
from tests.patience import PATIENCE

LIMITS = Limits(cpu_seconds=10, wall_seconds=PATIENCE, memory_bytes=256 << 20)
SHORT = Program("def f(x):\n    return x + 1", "f", [(1,)])
BUSY = Program(
    "def f(x):\n    total = 0\n    for i in range(x):\n        total += i\n    return total", "f", [(2 * 10**7,)]
)
BUSY_OUTPUTS = (199999990000000,)
ENDLESS = Program("def f(x):\n    while True: pass", "f", [(1,)])
TICKS = 5
"""Of work (0.05 s) tell the process that runs a program from those that wait."""


def start(backend: str, limits: Limits = LIMITS):
    try:
        return make_sandbox(backend, workers=1, limits=limits)
    except SandboxUnavailable as error:
        pytest.skip(f"the backend {backend} does not work on this machine: {error}")


def run_and_disturb(sandbox, program: Program, times: int, disturb: Callable[[int], None]):
    """The outcome of a program during which the process that runs it was disturbed, so many times."""
    before = {pid: cpu_ticks(pid) for pid in descendants(os.getpid())}
    disturbed, ended = [], threading.Event()

    def watch():
        while not ended.is_set() and len(disturbed) < times:
            for pid in descendants(os.getpid()):
                if pid not in disturbed and cpu_ticks(pid) - before.get(pid, 0) > TICKS and is_program(pid):
                    disturbed.append(pid)
                    disturb(pid)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        return sandbox.run([program])[0]
    finally:
        ended.set()
        watcher.join()
        assert len(disturbed) == times, "the program ended before it could be disturbed"


def is_program(pid: int) -> bool:
    """Monty's process, or a fork server's child; not bwrap, and not a server that is busy importing."""
    if names_of([pid]) == ["monty"]:
        return True
    try:
        above = parent(pid)
    except OSError:
        return False
    return above != os.getpid() and names_of([above]) == [Path(sys.executable).resolve().name]


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_server(pid: int) -> None:
    os.kill(parent(pid), signal.SIGKILL)


def stop_server(pid: int) -> None:
    os.kill(parent(pid), signal.SIGSTOP)


@pytest.mark.slow
@pytest.mark.parametrize("backend,disturb", [
    ("bwrap", kill), ("bwrap", kill_server), ("landlock", kill), ("landlock", kill_server), ("monty", kill),
])  # fmt: skip
def test_a_program_whose_worker_is_killed_runs_once_more(backend, disturb):
    program, outputs = (
        (BUSY, BUSY_OUTPUTS) if backend != "monty" else (Program(BUSY.source, "f", [(2 * 10**6,)]), (1999999000000,))
    )
    with start(backend) as sandbox:
        outcome = run_and_disturb(sandbox, program, 1, disturb)
        assert (outcome.verdict, outcome.outputs) == ("finished", outputs), outcome
        assert sandbox.run([SHORT])[0].outputs == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
@pytest.mark.parametrize(
    "disturb,verdict,message", [(kill, "memory", "out of memory"), (kill_server, "error", "worker died twice")]
)
def test_killed_twice_it_is_reported(backend, disturb, verdict, message):
    with start(backend) as sandbox:
        outcome = run_and_disturb(sandbox, ENDLESS, 2, disturb)
        assert outcome.verdict == verdict and message in outcome.message
        assert sandbox.run([SHORT])[0].outputs == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_a_program_out_of_time_is_so_even_if_the_worker_does_not_answer(backend, monkeypatch):
    monkeypatch.setattr(forkserver, "KILL_SECONDS", 0.2)
    with start(backend, Limits(cpu_seconds=2, wall_seconds=2)) as sandbox:
        outcome = run_and_disturb(sandbox, ENDLESS, 2, stop_server)
        assert outcome.verdict == "timeout"
        assert sandbox.run([SHORT])[0].outputs == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_a_program_out_of_time_is_so_even_if_it_is_stopped(backend):
    with start(backend, Limits(cpu_seconds=2, wall_seconds=2)) as sandbox:
        outcome = run_and_disturb(sandbox, ENDLESS, 1, lambda pid: os.kill(pid, signal.SIGSTOP))
        assert outcome.verdict == "timeout"
        assert sandbox.run([SHORT])[0].outputs == (2,)


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_inputs_that_the_memory_cannot_hold_are_no_fault_of_the_worker(backend):
    with start(backend, Limits(memory_bytes=64 << 20)) as sandbox:
        outcome = sandbox.run([Program(SHORT.source, "f", [([()] * 200_000,)])])[0]
        assert outcome.verdict == "memory" and "inputs" in outcome.message
        assert sandbox.run([SHORT])[0].outputs == (2,)


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_where_memory_is_short_the_programs_go_first(backend):
    own = Path("/proc/self/oom_score_adj").read_text()
    with start(backend) as sandbox:
        sandbox.run([SHORT])
        scores = {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in descendants(os.getpid())}
        assert scores >= {"1000\n"}
    assert Path("/proc/self/oom_score_adj").read_text() == own


@pytest.mark.slow
def test_no_program_outlives_its_fork_server():
    source = "import threading\ndef f(x):\n    sum(range(3 * 10**7))\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()"
    programs: list[int] = []

    def orphan(pid: int) -> None:
        programs.append(pid)
        kill_server(pid)

    with start("landlock", Limits(cpu_seconds=2, wall_seconds=2)) as sandbox:
        run_and_disturb(sandbox, Program(source, "f", [(1,)]), 1, orphan)
        deadline = time.monotonic() + PATIENCE
        while alive(programs[0]) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not alive(programs[0])
