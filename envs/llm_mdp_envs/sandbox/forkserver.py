"""The outside half of the fork server: starting it, handing it programs, judging how they ended."""

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from llm_mdp_envs.sandbox.filter import filter_instructions
from llm_mdp_envs.sandbox.inside.lockdown import OUT_OF_MEMORY
from llm_mdp_envs.sandbox.program import NO_OUTPUT, Limits, Outcome, Program, SandboxUnavailable, printable
from llm_mdp_envs.sandbox.reports import outcome_of_lines

INSIDE = Path(__file__).parent / "inside"
TIME_ZONES = "/usr/share/zoneinfo"
ENVIRONMENT = {"PYTHONHASHSEED": "0", "PYTHONUTF8": "1", "LANG": "C.UTF-8"}
"""All of it: nothing of the host's environment enters. The fixed hash seed makes runs repeatable."""
START_SECONDS = 60.0
KILL_SECONDS = 60.0
"""A machine without free memory can take long to end a process."""
FIRST_TO_GO = ("/bin/sh", "-c", '{ echo 1000 > /proc/self/oom_score_adj; } 2>/dev/null; exec "$@"', "sh")
"""Where memory is short the kernel ends what runs in here, the largest first, and not the process that trains."""
_STATUS = struct.Struct("<qqd")
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Launch:
    """How to start a fork server.

    Args:
        command: (options that tell of the child, configuration of the server) -> command line.
        readable: paths that Landlock leaves readable, or None where something else hides the files.
        listable: folders that Landlock leaves listable, but not readable.
        names_its_child: the command is bwrap; it takes `--json-status-fd FD` and tells there which process it has
            started.
    """

    command: Callable[[list[str], str], list[str]]
    readable: tuple[str, ...] | None = None
    listable: tuple[str, ...] = ()
    names_its_child: bool = False


class ForkServer:
    """One worker: a fork server, started again when it broke.

    Raises:
        SandboxUnavailable: it does not start; with what it wrote on its way out.
    """

    def __init__(self, launch: Launch, limits: Limits) -> None:
        self._launch, self._limits = launch, limits
        self._process: subprocess.Popen | None = None
        self._start()

    def run(self, program: Program, last_attempt: bool) -> Outcome:
        """The outcome; where the run says nothing of the program, that of one more run."""
        outcome, known = self._attempt(program)
        return outcome if known else self._attempt(program)[0]

    def _attempt(self, program: Program) -> tuple[Outcome, bool]:
        """An outcome, and whether the program is what led to it."""
        if self._process is None:
            self._start()
        try:
            return self._converse(program)
        except BrokenPipeError:
            self.close()
            return died(program), False
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the server and everything in it."""
        if (process := self._process) is None:
            return
        if self._child is None and self._launch.names_its_child:
            self._child = _child_pid(self._told, seconds=1.0)
        if self._child is not None:
            with contextlib.suppress(ProcessLookupError):  # killing bwrap alone can leave what it has just started
                os.kill(self._child, signal.SIGKILL)
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
        for fd in (self._request, self._result, self._status, self._control, self._told):
            os.close(fd)
        self._process = self._child = None

    def _start(self) -> None:
        request, self._request = os.pipe()
        self._result, result = os.pipe()
        self._status, status = os.pipe()
        control, self._control = os.pipe()
        self._told, told = os.pipe()
        inside = {"request": request, "result": result, "status": status, "control": control}
        config = inside | {
            "cpu_seconds": self._limits.cpu_seconds,
            "memory_bytes": self._limits.memory_bytes,
            "filter": filter_instructions().hex(),
            "readable": self._launch.readable,
            "listable": self._launch.listable,
        }
        flags = ["--json-status-fd", str(told)] if self._launch.names_its_child else []
        try:
            self._child, self._number = None, 0
            self._process = subprocess.Popen(
                [*FIRST_TO_GO, *self._launch.command(flags, json.dumps(config))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(*inside.values(), told),
                start_new_session=True,
            )
        finally:
            for fd in (*inside.values(), told):
                os.close(fd)
        os.set_blocking(self._request, False)
        os.set_blocking(self._result, False)
        try:
            if self._launch.names_its_child:
                self._child = _child_pid(self._told, START_SECONDS)
            if not _readable(self._status, START_SECONDS) or len(os.read(self._status, _STATUS.size)) != _STATUS.size:
                raise SandboxUnavailable(self._last_words())
        except BaseException:
            self.close()
            raise

    def _last_words(self) -> str:
        process = self._process
        assert process is not None and process.stderr is not None
        if process.poll() is None and _readable(process.stderr.fileno(), 1.0) is False:
            return f"it did not start within {START_SECONDS:.0f} seconds"
        process.kill()
        lines = process.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return printable(lines[-1]) if lines else f"it ended at once with status {process.wait()}"

    def _converse(self, program: Program) -> tuple[Outcome, bool]:
        """Hand the program to the waiting child, collect its lines, and judge how it ended."""
        self._number += 1
        body = json.dumps(
            {"source": program.source, "entry_point": program.entry_point, "inputs": program.encoded_inputs}
        ).encode()
        pending = memoryview(len(body).to_bytes(8, "little") + body)
        received, killed_for, deadline = bytearray(), "", time.monotonic() + self._limits.wall_seconds
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        poll.register(self._result, select.POLLIN)
        poll.register(self._request, select.POLLOUT)
        while True:
            events = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000 + 1)}
            if self._request in events:
                pending = pending[os.write(self._request, pending[:_CHUNK]) :]
                if not pending:
                    poll.unregister(self._request)
            if self._result in events:
                received += self._read_result()
            if self._status in events:
                break
            late = time.monotonic() > deadline
            if late and killed_for:
                break
            if not killed_for and (late or len(received) > self._limits.output_bytes):
                killed_for, deadline = "wall" if late else "output", time.monotonic() + KILL_SECONDS
                os.write(self._control, self._number.to_bytes(8, "little"))
            if killed_for == "output":
                received = received[: self._limits.output_bytes + 1]
        report = os.read(self._status, _STATUS.size) if self._status in events else b""
        while len(received) <= self._limits.output_bytes and (more := self._read_result()):
            received += more
        begun = not pending and received.startswith(b"started\n")
        if not begun or len(report) != _STATUS.size or len(received) > self._limits.output_bytes:
            self.close()  # what is left in the pipes is not for the next program
        if len(report) != _STATUS.size and not killed_for:
            return died(program), False
        killed_for = "output" if len(received) > self._limits.output_bytes else killed_for
        _, status, cpu_seconds = _STATUS.unpack(report) if report else (0, int(signal.SIGKILL), 0.0)
        if not begun and not killed_for and os.WIFEXITED(status):
            too_large = os.waitstatus_to_exitcode(status) == OUT_OF_MEMORY
            return (too_large_for_memory(program, cpu_seconds), True) if too_large else (died(program), False)
        lines = bytes(received).split(b"\n")[1:-1]
        reported = outcome_of_lines(lines, len(program.inputs), cpu_seconds)
        outcome = judge(status, cpu_seconds, killed_for, reported, self._limits)
        return outcome, bool(killed_for) or not (os.WIFSIGNALED(status) and outcome.verdict == "memory")

    def _read_result(self) -> bytes:
        try:
            return os.read(self._result, _CHUNK)
        except BlockingIOError:
            return b""


def died(program: Program) -> Outcome:
    """The outcome of a program whose worker was killed from elsewhere, by a person or for want of memory, twice."""
    return Outcome("error", (NO_OUTPUT,) * len(program.inputs), "the sandbox's worker died twice; it will be replaced")


def too_large_for_memory(program: Program, cpu_seconds: float) -> Outcome:
    message = "the program and its inputs alone are more than its memory holds"
    return Outcome("memory", (NO_OUTPUT,) * len(program.inputs), message, cpu_seconds)


def judge(status: int, cpu_seconds: float, killed_for: str, reported: Outcome, limits: Limits) -> Outcome:
    """The outcome, from how the process ended (known for certain) and, only where it ended by itself, from what it
    reported.

    Args:
        status: the wait status of the program's process.
        killed_for: "wall" or "output" if it was killed from outside, else "".
    """
    ending = -os.waitstatus_to_exitcode(status)
    if killed_for == "output":
        return replace(reported, verdict="error", message=f"more than {limits.output_bytes} bytes of output")
    if reported.verdict == "finished" and ending == 0:
        return reported
    if ending == signal.SIGSYS:
        return replace(reported, verdict="forbidden", message="a system call that programs may not make")
    if ending in (signal.SIGPROF, signal.SIGXCPU) or cpu_seconds >= limits.cpu_seconds:
        return replace(reported, verdict="timeout", message=f"more than {limits.cpu_seconds:g} seconds of CPU time")
    if killed_for == "wall":
        return replace(
            reported,
            verdict="timeout",
            message=f"more than {limits.wall_seconds:g} seconds passed",
        )
    if ending == signal.SIGKILL:
        return replace(reported, verdict="memory", message="the system ran out of memory")
    if ending > 0:
        return replace(reported, verdict="error", message=f"crashed: {signal.Signals(ending).name}")
    return reported


def start_workers(name: str, launch: Launch, workers: int, limits: Limits) -> list[ForkServer]:
    """Fork servers, all or none."""
    started: list[ForkServer] = []
    try:
        for _ in range(workers):
            started.append(ForkServer(launch, limits))
    except BaseException as error:
        for worker in started:
            worker.close()
        if isinstance(error, SandboxUnavailable):
            raise SandboxUnavailable(f"{name}: {error}") from None
        raise
    return started


@dataclass(frozen=True)
class Runtime:
    """The interpreter to run inside, and what it must be able to read.

    Args:
        executable: outside any virtual environment.
        stdlib: folder of the standard library.
        libraries: folders of shared libraries.
        packages: folders of installed packages that lie within the former; these must stay hidden (they may hold hidden
            tests).
    """

    executable: str
    stdlib: str
    libraries: tuple[str, ...]
    packages: tuple[str, ...]


@cache
def runtime() -> Runtime:
    """The interpreter this process runs on. Shared libraries are found by asking it to import what the standard library
    has and looking."""
    executable = os.path.realpath(sys._base_executable)  # pyright: ignore[reportAttributeAccessIssue]
    stdlib = os.path.realpath(sysconfig.get_path("stdlib"))
    scout = "import bz2, ctypes, decimal, hashlib, lzma, ssl, zlib; print(open('/proc/self/maps').read())"
    ran = subprocess.run(
        [executable, "-I", "-S", "-c", scout], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    paths = {line.split(maxsplit=5)[5] for line in ran.stdout.splitlines() if ".so" in line}
    libraries = {os.path.dirname(path) for path in paths if not path.startswith(stdlib + "/")}
    return Runtime(executable, stdlib, tuple(sorted(libraries)), tuple(_package_folders(stdlib, libraries)))


def server_arguments(config: str) -> list[str]:
    """Arguments of the interpreter. No user or site packages, no bytecode written; the few environment variables are
    ours."""
    return ["-s", "-S", "-P", "-B", str(INSIDE / "server.py"), config]


def _package_folders(stdlib: str, libraries: set[str]) -> list[str]:
    folders = [os.path.join(stdlib, name) for name in ("site-packages", "dist-packages")]
    for library in libraries:
        folders += [
            str(path)
            for pattern in ("python3*/site-packages", "python3*/dist-packages")
            for path in Path(library).glob(pattern)
        ]
    return sorted({folder for folder in folders if os.path.isdir(folder)})


def _child_pid(fd: int, seconds: float) -> int | None:
    """The process that bwrap says it started, or None when it ended without."""
    text = b""
    while b"}" not in text and _readable(fd, seconds) and (more := os.read(fd, 4096)):
        text += more
    return json.loads(text.splitlines()[0])["child-pid"] if b"}" in text else None


def _readable(fd: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(1000 * seconds))
