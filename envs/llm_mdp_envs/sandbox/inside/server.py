"""The fork server: one warm interpreter inside the sandbox, one forked child for each program.

It forks *before* a request arrives and never reads one itself, so its memory, which every child inherits, has never
held a program, an input or an output. The child gives up what it can (lockdown), reads one request, runs it, writes one
line for every input, and is gone. Only the server writes to the status pipe, which no child holds: how a child ended
and what it cost are not the child's to tell.

    server.py CONFIG     CONFIG is JSON: descriptors, limits, the seccomp filter, and the readable paths where Landlock
    is to be used
"""

import gc
import importlib
import json
import os
import random
import select
import signal
import struct
import sys
import time
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import codec  # pyright: ignore[reportMissingImports] - beside this file, wherever the sandbox puts it
import lockdown  # pyright: ignore[reportMissingImports]
import waiting  # pyright: ignore[reportMissingImports]

PRELOADED = (
    *(
        "abc",
        "array",
        "bisect",
        "calendar",
        "cmath",
        "collections",
        "collections.abc",
        "contextlib",
        "copy",
        "dataclasses",
        "datetime",
    ),
    *(
        "decimal",
        "enum",
        "fractions",
        "functools",
        "hashlib",
        "heapq",
        "io",
        "itertools",
        "math",
        "numbers",
        "operator",
        "re",
        "secrets",
    ),
    *("statistics", "string", "textwrap", "traceback", "types", "typing", "unicodedata", "warnings"),
)
STATUS = struct.Struct("<qqd")
"""Number of the child, wait status, CPU seconds."""
MESSAGE_CHARACTERS = 500
FORK_SECONDS = 30.0
_sleep = time.sleep


def main(config: dict) -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    waiting.wait_for_nothing()
    lockdown.drop_privileges()
    if config["readable"] is not None:
        lockdown.restrict_files(config["readable"], config["listable"])
    gc.freeze()
    number = 0
    os.write(config["status"], STATUS.pack(number, 0, 0.0))
    while True:
        number += 1
        server, pid = os.getpid(), fork()
        if pid == 0:
            child(config, server)
        os.write(config["status"], STATUS.pack(number, *wait(pid, number, config["control"])))


def fork() -> int:
    """As `os.fork`, with patience for a machine that is short of memory at the moment."""
    deadline = time.monotonic() + FORK_SECONDS
    while True:
        try:
            return os.fork()
        except OSError:
            if time.monotonic() > deadline:
                raise
            _sleep(0.05)


def wait(pid: int, number: int, control: int) -> tuple[int, float]:
    """The child's wait status and CPU seconds. Kills it when told to, and ends with it when nobody is left to tell."""
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(control, select.POLLIN)
    while ended not in (ready := [fd for fd, _ in poll.poll()]):
        if control in ready:
            order = os.read(control, 8)
            if not order:
                os.kill(pid, signal.SIGKILL)
                os._exit(0)
            if int.from_bytes(order, "little") == number:  # an order that comes too late names an earlier child
                os.kill(pid, signal.SIGKILL)
    os.close(ended)
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def child(config: dict, server: int) -> None:
    """Lock the doors, read one request, run it. Never returns."""
    try:
        request, result = config["request"], config["result"]
        lockdown.end_with(server)
        os.dup2(0, 2)
        random.seed(0)  # Python reseeds it after a fork
        low, high = sorted((request, result))
        last = max(256, config["status"], config["control"])  # the host may have many open, and hands on their numbers
        for first, end in ((3, low), (low + 1, high), (high + 1, last + 1)):
            os.closerange(first, end)
        os.set_blocking(request, True)
        lockdown.limit_resources(config["cpu_seconds"], config["memory_bytes"])
        lockdown.load_filter(bytes.fromhex(config["filter"]))
        lockdown.check_filter()
        try:
            program = json.loads(read(request, int.from_bytes(read(request, 8), "little")))
        except MemoryError:
            os._exit(lockdown.OUT_OF_MEMORY)
        os.close(request)
        write_line(result, "started")
        run(program, result)
    finally:
        os._exit(0)


def run(program: dict, result: int) -> None:
    """Execute the source once, then call its entry point with each input; one line each."""
    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        exec(compile(program["source"], "<program>", "exec"), module.__dict__)
        if program["entry_point"] not in module.__dict__:
            raise NameError(f"the program does not define {program['entry_point']}")
        function = module.__dict__[program["entry_point"]]
    except BaseException as error:
        write_line(result, failure(error))
        return
    for arguments in program["inputs"]:
        try:
            text = json.dumps(
                {"output": codec.encode_plain_data(function(*codec.decode_plain_data(arguments)))}, allow_nan=False
            )
        except BaseException as error:
            text = failure(error)
        write_line(result, text)


def failure(error: BaseException) -> str:
    """The line that reports an exception: the names of its classes, the most derived first, and its message."""
    try:
        message = str(error)[:MESSAGE_CHARACTERS]
    except BaseException:
        message = ""
    return json.dumps({"exception": [base.__name__ for base in type(error).__mro__], "message": message})


def write_line(fd: int, text: str) -> None:
    data = memoryview(text.encode() + b"\n")
    while data:
        data = data[os.write(fd, data) :]


def read(fd: int, size: int) -> bytes:
    parts = []
    while size and (part := os.read(fd, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    if size:
        os._exit(0)
    return b"".join(parts)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
