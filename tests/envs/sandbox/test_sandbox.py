"""The sandbox: programs run, attacks fail, and neither the answers nor the host are theirs to touch."""

# ruff: noqa: E501 (tables)
import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs.sandbox import NO_OUTPUT, Case, Limits, Outcome, Program, SandboxUnavailable, grade, make_sandbox
from llm_mdp_envs.sandbox.forkserver import judge
from llm_mdp_envs.sandbox.grading import COMPARISONS, matches
from llm_mdp_envs.sandbox.inside import codec
from llm_mdp_envs.sandbox.reports import outcome_of_lines
from tests.envs.sandbox.processes import alive, descendants, names_of
from tests.patience import PATIENCE

SECRET = "canary-" + os.urandom(8).hex()
VICTIM = os.path.join(tempfile.mkdtemp(prefix="sandbox-victim-"), "file")
LIMITS = Limits(cpu_seconds=0.4, memory_bytes=256 << 20)
BACKENDS = ("monty", "bwrap", "landlock", pytest.param("auto", marks=pytest.mark.slow))


@pytest.fixture(scope="module", params=BACKENDS)
def sandbox(request):
    os.environ["SANDBOX_TEST_SECRET"] = SECRET
    Path(VICTIM).write_text("whole")
    try:
        made = make_sandbox(request.param, workers=1, limits=LIMITS)
    except SandboxUnavailable as error:
        # A backend that is there and leaks is a failure, and no attack may be tried on it: they are real.
        assert "its probe could" not in str(error), error
        pytest.skip(f"the backend {request.param} does not work on this machine: {error}")
    with made:
        yield made
    assert ours() == [], "a closed sandbox left processes behind"


def run(sandbox, source, *inputs, entry_point="f"):
    return sandbox.run([Program(source, entry_point, list(inputs) or [(1,)])])[0]


# --- What programs can do ---------------------------------------------------------------------------------------------

PLAIN = [
    None,
    True,
    0,
    -7,
    10**40,
    1.5,
    -0.0,
    math.inf,
    "",
    "naïve 😀 \n \x00",
    b"\x00\xff",
    1 + 2j,
    [],
    (),
    set(),
    frozenset({1}),
    {},
    [1, (2, [3.5, {"a": {1, 2}}]), {(1, 2): [None]}],
    {1: 2, "1": 3, None: True},
]


def test_plain_data_crosses_both_ways_with_its_types(sandbox):
    outcome = run(sandbox, "def f(x):\n    return x", *[(value,) for value in PLAIN])
    assert outcome.verdict == "finished" and not outcome.message
    assert [repr(value) for value in outcome.outputs] == [repr(value) for value in PLAIN]


def test_an_input_that_raises_costs_only_its_own_output(sandbox):
    outcome = run(sandbox, "def f(x):\n    return 10 // x", (2,), (0,), (5,))
    assert outcome.verdict == "error" and "ZeroDivisionError" in outcome.message
    assert outcome.outputs == (5, NO_OUTPUT, 2)
    assert grade(outcome, [Case((2,), 5), Case((0,), 0), Case((5,), 2)]).fraction == 2 / 3


def test_calls_cannot_change_what_later_calls_get(sandbox):
    shared = [1]
    assert run(sandbox, "def f(x):\n    x.append(2)\n    return x", (shared,), (shared,)).outputs == ([1, 2], [1, 2])
    assert shared == [1]


def test_runs_do_not_see_each_other(sandbox):
    run(sandbox, "import math\nmath.pi = 3\nleft = 7\ndef f(x):\n    return math.pi")
    assert run(sandbox, "import math\ndef f(x):\n    return math.pi").outputs == (math.pi,)
    assert run(sandbox, "def f(x):\n    return left").verdict == "error"


def test_runs_are_repeatable(sandbox):
    source = "import random\ndef f(x):\n    return [random.random(), list({'a', 'b', 'c', 'd'})]"
    assert run(sandbox, source).outputs == run(sandbox, source).outputs


def test_outcomes_come_in_the_order_of_the_programs(sandbox):
    programs = [Program(f"def f(x):\n    return {number} * x", "f", [(2,)]) for number in range(20)]
    assert [outcome.outputs for outcome in sandbox.run(programs)] == [(2 * number,) for number in range(20)]


def test_sleeping_takes_no_time(sandbox):
    assert run(sandbox, "import time\ndef f(x):\n    time.sleep(10**6)\n    return x").outputs == (1,)


def test_tasks_that_all_wait_are_an_error_and_take_no_time(sandbox):
    if not sandbox.full:
        pytest.skip("Monty has its own loop")
    source = "import asyncio\nasync def main(x):\n    await asyncio.sleep(10**6)\n    await asyncio.Event().wait()\n"
    outcome = run(sandbox, source + "def f(x):\n    return asyncio.run(main(x))")
    assert outcome.verdict == "error" and "every task waits" in outcome.message


def test_subclasses_cross_as_their_base(sandbox):
    if sandbox.name == "monty":
        pytest.skip("Monty has no inheritance")
    for base, value in (
        ("str", "'x'"),
        ("list", "[1, 2]"),
        ("int", "3"),
        ("dict", "{1: 2}"),
        ("tuple", "(1, 2)"),
        ("float", "2.5"),
    ):
        source = f"class S({base}):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x):\n    return S({value})"
        (output,) = run(sandbox, source).outputs
        assert repr(output) == value and type(output) is type(eval(value))


FULL_PYTHON = {
    "generator": "def f(x):\n    def count():\n        yield 1\n        yield 2\n    return list(count())",
    "inheritance": "class A:\n    y = [1, 2]\nclass B(A):\n    pass\ndef f(x):\n    return B().y",
    "heapq": "import heapq\ndef f(x):\n    return heapq.nsmallest(2, [3, 2, 1])",
    "maketrans": "def f(x):\n    return [int(c) for c in 'ab'.translate(str.maketrans('ab', '12'))]",
    "lazy import": "import xml.etree.ElementTree as tree\ndef f(x):\n    return [1, int(tree.fromstring('<a>2</a>').text)]",
    "property": "class A:\n    @property\n    def y(self):\n        return [1, 2]\ndef f(x):\n    return A().y",
    "exception": "class E(Exception):\n    pass\ndef f(x):\n    try:\n        raise E\n    except E:\n        return [1, 2]",
    "string module": "import string\ndef f(x):\n    return [string.digits.index(c) for c in '12']",
    "dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass, field\n@dataclass(order=True)\nclass P:\n"
    "    y: list = field(default_factory=lambda: [1, 2])\ndef f(x):\n    return P().y",
    "del": "def f(x):\n    y = [0, 1, 2]\n    del y[0]\n    return y",
}


@pytest.mark.parametrize("feature", FULL_PYTHON)
def test_all_of_python_runs_or_is_called_unsupported(sandbox, feature):
    outcome = run(sandbox, FULL_PYTHON[feature])
    if sandbox.name == "monty" and outcome.verdict != "finished":
        assert outcome.unsupported, outcome
    else:
        assert (outcome.verdict, outcome.outputs, outcome.unsupported) == ("finished", ([1, 2],), False)


@pytest.mark.parametrize(
    "source",
    ["def f(x):\n    return undefined", "def f(x:", "def f(x):\n    return 'a'.no_such_method()", "import no_such"],
)
def test_the_programs_own_mistakes_are_not_called_unsupported(sandbox, source):
    outcome = run(sandbox, source)
    assert (outcome.verdict, outcome.unsupported) == ("error", False) and outcome.message


def test_auto_gives_full_python_its_speed_where_it_runs():
    with (
        contextlib.suppress(SandboxUnavailable),
        make_sandbox("auto", workers=1, limits=Limits(cpu_seconds=1.0)) as sandbox,
    ):
        if not sandbox.full:
            pytest.skip(f"needs an isolating backend; this machine has {sandbox.name}")
        outcome = run(
            sandbox,
            "def f(x):\n    total = 0\n    for i in range(4_000_000):\n        total += i & 1\n    return total",
        )
        assert outcome.outputs == (2_000_000,), outcome


def test_a_sandbox_says_whether_it_speaks_all_of_python(sandbox):
    outcome = run(sandbox, "def f(x):\n    return x")
    assert sandbox.full is outcome.full is (sandbox.name in ("bwrap", "landlock"))


def test_long_numbers_cross_both_ways(sandbox):
    values = [10**5000, -(10**5000), 2**500_000, {10**4400: [10**300, 10**299]}]
    outcome = run(sandbox, "def f(x):\n    return x, [x]", *[(value,) for value in values])
    assert outcome.outputs == tuple((value, [value]) for value in values)


def test_collections_of_many_different_keys_cross(sandbox):
    outcome = run(sandbox, "def f(x):\n    return {i: 0 for i in range(10_000)}, {2**i for i in range(1000)}")
    assert outcome.outputs == ((dict.fromkeys(range(10_000), 0), {2**i for i in range(1000)}),)


# --- What they cannot do ----------------------------------------------------------------------------------------------

LOOP = "def f(x):\n    while True:\n        pass"
SPOOF = "def write(text):\n    for fd in range(256):\n        try:\n            os.write(fd, text)\n        except OSError:\n            pass\n"
ENDED = {"error", "forbidden"}
# Each would do little harm if it came through: bounded, signal 0, a file of no worth. Keep it so: one day a wall will
# be down.
ATTACKS = {
    "infinite loop": (LOOP, {"timeout"}),
    "infinite loop at import": ("while True:\n    pass", {"timeout"}),
    "loop that catches everything": (
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        {"timeout"},
    ),
    "loop in C": ("def f(x):\n    return sum(range(10**14))", {"timeout", "error"}),
    "huge power": ("def f(x):\n    return len(str(7 ** (7 ** 9)))", {"timeout", "memory", "error"}),
    "regular expression": (
        "import re\ndef f(x):\n    return re.match('(a|a|aa)+$', 'a' * 200 + 'b') is None",
        {"timeout", "error", "finished"},
    ),
    "memory bomb": (
        "def f(x):\n    y = []\n    while len(y) < 2000:\n        y.append('x' * 10**6 + str(len(y)))",
        {"memory", "timeout"},
    ),  # whichever limit a busy machine comes to first
    "memory bomb at once": ("def f(x):\n    return [0] * 10**11", {"memory"}),
    "fork bomb": ("import os\ndef f(x):\n    for _ in range(20):\n        os.fork() or os._exit(0)", ENDED),
    "fork bomb that catches": (
        "import os\ndef f(x):\n    for _ in range(20):\n        try:\n            os.fork() or os._exit(0)\n        "
        "except BaseException: pass\n    return 41",
        ENDED | {"finished"},
    ),
    "recursion": ("def f(x):\n    return f(x)", {"error", "memory"}),
    "deep recursion": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef f(x):\n    return [f(x)]",
        {"error", "memory", "timeout"},
    ),
    "recursion in C": (
        "import sys\nsys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr([self])\ndef f(x):\n  "
        "  return repr(A())",
        {"error", "memory", "timeout"},
    ),
    "flood of prints": ("def f(x):\n    while True:\n        print('x' * 10**5)", {"timeout", "memory"}),
    "flood of descriptors": (
        "import os\ndef f(x):\n    while True:\n"
        + SPOOF.replace("\n", "\n        ")
        .rstrip(" ")
        .replace("def write(text):\n            for", "for")
        .replace("text", "b'x' * 60000"),
        {"error", "timeout"},
    ),
    "huge output": ("def f(x):\n    return 'x' * 10**8", {"error", "memory", "timeout"}),
    "huge output, slowly": ("def f(x):\n    return ['x' * 1000] * 10**4", {"error", "memory", "timeout"}),
    "nested output": ("def f(x):\n    for i in range(10**5):\n        x = [x]\n    return x", {"error"}),
    "cyclic output": ("def f(x):\n    y = []\n    y.append(y)\n    return y", {"error"}),
    "billion laughs": (
        "def f(x):\n    for i in range(50):\n        x = [x, x]\n    return x",
        {"error", "timeout", "memory"},
    ),
    "huge int": ("def f(x):\n    return 1 << 10**6", {"error"}),
    "colliding keys": ("def f(x):\n    return {i * (2**61 - 1) for i in range(5000)}", {"error", "timeout"}),
    "generator": ("def f(x):\n    yield 42", {"error"}),
    "endless iterator": ("import itertools\ndef f(x):\n    return itertools.count()", {"error", "timeout", "memory"}),
    "password file": ("def f(x):\n    return open('/etc/passwd').read()", ENDED),
    "the test itself": (f"def f(x):\n    return open({__file__!r}).read()", ENDED),
    "installed packages": (
        f"def f(x):\n    return open({math.__name__!r}.join([{str(Path(pytest.__file__).parent)!r} + '/', '']) [:-4] + "
        f"'__init__.py').read()",
        ENDED,
    ),
    "own memory map": ("def f(x):\n    return open('/proc/self/maps').read()", ENDED),
    "parent's environment": ("import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/environ').read()", ENDED),
    "parent's memory": ("import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/mem', 'rb').read(100)", ENDED),
    "host's memory": (f"def f(x):\n    return open('/proc/{os.getpid()}/mem', 'rb').read(100)", ENDED),
    "write a file": ("def f(x):\n    open('/tmp/sandbox-was-here', 'w').write('x')", ENDED),
    "truncate while reading": (f"import os\ndef f(x):\n    os.open({VICTIM!r}, os.O_RDONLY | os.O_TRUNC)", ENDED),
    "temporary file": ("import tempfile\ndef f(x):\n    tempfile.TemporaryFile()", ENDED),
    "make a folder": ("import os\ndef f(x):\n    os.mkdir('/tmp/sandbox-was-here')", ENDED),
    "remove": (f"import os\ndef f(x):\n    os.remove({VICTIM!r})", ENDED),
    "change mode": (f"import os\ndef f(x):\n    os.chmod({VICTIM!r}, 0)", ENDED),
    "symbolic link": ("import os\ndef f(x):\n    os.symlink('/', '/tmp/sandbox-was-here')", ENDED),
    "socket": ("import socket\ndef f(x):\n    socket.create_connection(('127.0.0.1', 80), 1)", ENDED),
    "unix socket": ("import socket\ndef f(x):\n    socket.socket(socket.AF_UNIX)", ENDED),
    "system": ("import os\ndef f(x):\n    return os.system('echo hello')", ENDED),
    "subprocess": ("import subprocess\ndef f(x):\n    return subprocess.run(['/bin/true']).returncode", ENDED),
    "exec": ("import os\ndef f(x):\n    os.execv('/bin/true', ['true'])", ENDED),
    "kill parent": ("import os\ndef f(x):\n    os.kill(os.getppid(), 0)", ENDED),
    "kill host": (f"import os\ndef f(x):\n    os.kill({os.getpid()}, 0)", ENDED),
    "kill a group": ("import os\ndef f(x):\n    os.killpg(0, 0)", ENDED),
    "ptrace": ("import ctypes, os\ndef f(x):\n    ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0)", ENDED),
    "raw system call": ("import ctypes\ndef f(x):\n    ctypes.CDLL(None).syscall(425, 1, 0)", ENDED),
    "read another's memory": (
        "import ctypes, os\ndef f(x):\n    ctypes.CDLL(None).syscall(310, os.getppid(), 0, 0, 0, 0, 0)",
        ENDED,
    ),
    "signal by descriptor": (
        "import fcntl, os\ndef f(x):\n    for fd in range(9):\n        try: fcntl.fcntl(fd, fcntl.F_SETOWN, "
        "os.getppid())\n        except OSError: pass",
        ENDED,
    ),
    "memory file": ("import os\ndef f(x):\n    os.memfd_create('x')", ENDED),
    "null pointer": ("import ctypes\ndef f(x):\n    ctypes.string_at(0)", ENDED),
    "thread": ("import threading\ndef f(x):\n    threading.Thread(target=print).start()", ENDED),
    "processes": ("import multiprocessing\ndef f(x):\n    multiprocessing.Process(target=print).start()", ENDED),
    "signal handler": (
        "import signal\nsignal.signal(signal.SIGPROF, signal.SIG_IGN)\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"
        + LOOP,
        ENDED,
    ),
    "blocked signals": ("import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\n" + LOOP, ENDED),
    "timer": ("import signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\n" + LOOP, ENDED),
    "raised limits": ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\n" + LOOP, ENDED),
    "deadlock": (
        "import threading\ndef f(x):\n    lock = threading.Lock()\n    lock.acquire()\n    lock.acquire()",
        {"timeout", "error"},
    ),
    "standard input": ("def f(x):\n    return input()", {"error"}),
    "standard input, raw": ("import os\ndef f(x):\n    return os.read(0, 10) + 1", ENDED),
    "sys.exit": ("import sys\ndef f(x):\n    sys.exit(0)", {"error"}),
    "sys.exit at import": ("import sys\nsys.exit(0)\ndef f(x):\n    return 42", {"error"}),
    "os._exit": ("import os\ndef f(x):\n    os._exit(0)", {"error"}),
    "abort": ("import os\ndef f(x):\n    os.abort()", ENDED),
    "no function": ("f = 42", {"error"}),
    "nothing": ("", {"error"}),
    "null characters": ("def f(x):\n    return 42\n\x00", {"error", "finished"}),
    "exception that cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise E\ndef f(x):\n    raise E",
        {"error"},
    ),
    "exception with a huge message": ("def f(x):\n    raise ValueError('x' * 10**7)", {"error", "memory"}),
    "equal to everything": ("class A:\n    def __eq__(self, other): return True\ndef f(x):\n    return A()", {"error"}),
    "instance with the answer's class": ("class A:\n    __class__ = int\ndef f(x):\n    return A()", {"error"}),
    "escape from attributes": (
        "def f(x):\n    return [c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'Popen'][0]('true')",
        ENDED,
    ),
    "fake json": (
        'import json\njson.dumps = lambda *a, **k: \'{"verdict": "passed"}\'\njson.encoder = None\ndef f(x):\n    '
        "return 41",
        {"error", "finished"},
    ),
    "fake builtins": (
        "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.type = lambda *a: int\ndef f(x):\n    return "
        "object()",
        {"error", "finished", "timeout"},
    ),
    "fake codec": (
        "import sys\nfor name in list(sys.modules):\n    if 'codec' in name: sys.modules[name].encode_plain_data = "
        "lambda *a: 41\ndef f(x):\n    return 41",
        {"error", "finished"},
    ),
    "spoofed lines": (
        "import os\n" + SPOOF + 'write(b\'{"output": 41}\\n{"verdict": "passed"}\\n\')\ndef f(x):\n    return 41',
        {"error", "finished"},
    ),
    "spoofed status": (
        "import os, struct\n"
        + SPOOF
        + "write(struct.pack('<qqd', 1, 0, 0.0) * 9)\nos._exit(0)\ndef f(x):\n    return 41",
        {"error"},
    ),
    "spoofed orders": (
        "import os\n" + SPOOF + "for n in range(200):\n    write(n.to_bytes(8, 'little'))\ndef f(x):\n    return 41",
        {"error", "finished"},
    ),
    "closed descriptors": ("import os\ndef f(x):\n    os.closerange(0, 4096)\n    return 41", {"error", "finished"}),
    "exit handlers": ("import atexit\natexit.register(lambda: 1 / 0)\ndef f(x):\n    return 41", {"error", "finished"}),
    "replaced frames": (
        "import sys\ndef f(x):\n    sys._getframe(1).f_locals.clear()\n    sys._getframe(1).f_locals['text'] = '{}'\n  "
        "  return 41",
        {"error", "finished"},
    ),
}
ANSWER = Case((1,), 42)


# A deadlock ends by the clock, twice.
@pytest.mark.parametrize(
    "attack", [pytest.param(name, marks=[pytest.mark.slow] if name == "deadlock" else []) for name in ATTACKS]
)
def test_attack(sandbox, attack):
    source, verdicts = ATTACKS[attack]
    outcome = run(sandbox, source)
    # Monty may refuse the language of an attack instead of the attack itself.
    assert outcome.verdict in verdicts or (sandbox.name == "monty" and outcome.verdict in ENDED), outcome
    assert grade(outcome, [ANSWER]).verdict != "passed" or (
        attack in ("generator", "null characters") and sandbox.name == "monty"
    )
    assert SECRET not in repr(outcome)
    assert not Path("/tmp/sandbox-was-here").exists()
    assert Path(VICTIM).read_text() == "whole" and Path(VICTIM).stat().st_mode & 0o400
    assert run(sandbox, "def f(x):\n    return x + 1").outputs == (2,), "the worker did not survive"
    time.sleep(0.01)
    assert set(names_of(ours())) <= {"bwrap", "monty", Path(sys.executable).resolve().name}, "something else is running"
    assert len(ours()) <= 6, (
        "the attack left processes"
    )  # Monty's one, bwrap's two, the server, its child, a zombie's grace


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_the_status_is_out_of_reach_even_where_the_host_has_many_files_open(backend):
    with contextlib.ExitStack() as files:
        for _ in range(300):
            files.enter_context(open(os.devnull))
        try:
            sandbox = files.enter_context(make_sandbox(backend, workers=1, limits=LIMITS))
        except SandboxUnavailable as error:
            pytest.skip(f"the backend {backend} does not work on this machine: {error}")
        write = SPOOF.replace("range(256)", "range(1024)") + "write(struct.pack('<qqd', 1, 0, 0.0))\n"
        source = "import os, struct\n" + write + "def f(x):\n    while True: pass"
        assert run(sandbox, source).verdict == "timeout"


@pytest.mark.parametrize(
    "attack",
    ["fork bomb", "kill host", "ptrace", "raw system call", "write a file", "socket", "thread", "signal handler"],
)
def test_what_is_forbidden_is_called_so(sandbox, attack):
    if sandbox.name == "monty":
        pytest.skip("Monty has none of these to forbid")
    assert run(sandbox, ATTACKS[attack][0]).verdict == "forbidden"


def test_the_environment_stays_outside(sandbox):
    outcome = run(sandbox, "import os\ndef f(x):\n    return dict(os.environ)")
    assert SECRET not in repr(outcome)
    if outcome.verdict == "finished":
        assert set(outcome.outputs[0]) <= {"PYTHONHASHSEED", "PYTHONUTF8", "LANG", "PWD", "LC_CTYPE"}


def test_a_program_finds_nothing_of_the_one_before(sandbox):
    """The fork server never reads programs, so its memory, which every program inherits, holds none."""
    if sandbox.name == "monty":
        pytest.skip("Monty has no garbage collector to ask; a checkout never serves two programs")
    run(sandbox, f"kept = {SECRET!r}\ndef f(x):\n    return [kept, x]", ([SECRET, 42],))
    half = len(SECRET) // 2
    search = f"""
import ctypes, gc, sys
def f(x, plant):
    planted = [(x + {SECRET[half:]!r}).encode()] if plant else []
    pools = {{id(o) >> 14 << 14 for o in gc.get_objects() if sys.getsizeof(o) < 400}} | {{id(o) >> 14 << 14 for o in planted}}
    found = 0
    for pool in pools:
        before, *after = ctypes.string_at(pool, 1 << 14).split(x.encode())
        found += sum(rest.startswith({SECRET[half:]!r}.encode()) for rest in after)
    return found > 0
"""
    clean, planted = run(sandbox, search, (SECRET[:half], False)), run(sandbox, search, (SECRET[:half], True))
    assert planted.outputs == (True,), "the search would not find it"
    assert clean.outputs == (False,)


def test_expected_outputs_have_no_way_in():
    assert set(Program.__dataclass_fields__) == {"source", "entry_point", "inputs"}


def test_a_retry_forgives_a_busy_machine_once(monkeypatch):
    from llm_mdp_envs.sandbox.program import PoolSandbox

    class Slow:
        """Out of time without having used it, as on a machine that is busy elsewhere."""

        attempts = 0

        def run(self, program, last_attempt):
            self.attempts += 1
            return Outcome("finished", (1,)) if last_attempt else Outcome("timeout", (NO_OUTPUT,), cpu_seconds=0.01)

        def close(self):
            pass

    worker = Slow()
    with PoolSandbox("slow", [worker], LIMITS) as sandbox:
        assert run(sandbox, "").verdict == "finished" and worker.attempts == 2


# --- Processes --------------------------------------------------------------------------------------------------------


OTHERS: set[int] = set()
"""Processes that tests of other files have left running below this one: their graders and sandboxes."""


@pytest.fixture(autouse=True, scope="module")
def _remember_others():
    OTHERS.update(descendants(os.getpid()))


def ours() -> list[int]:
    """Living processes that the tests of this file started."""
    return [pid for pid in descendants(os.getpid()) if pid not in OTHERS]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["monty", "bwrap", "landlock"])
@pytest.mark.parametrize("moment", ["starting", "running"])
def test_nothing_is_left_when_the_host_process_is_killed(backend, moment):
    try:
        make_sandbox(backend, workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"the backend {backend} does not work on this machine: {error}")
    body = "sandbox.run([Program('def f(x):\\n    while True: pass', 'f', [(1,)])])"
    limits = "Limits(cpu_seconds=4, wall_seconds=8)"  # Monty's workers notice when their time is up, the others at once
    code = f"from llm_mdp_envs.sandbox import *\nprint(1, flush=True)\nsandbox = make_sandbox({backend!r}, workers=2, limits={limits})\n"
    code += "print(2, flush=True)\n" + body
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    host = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    host.stdout.read(2)
    if moment == "running":
        host.stdout.read(2)
        time.sleep(0.3)
    deadline = time.monotonic() + PATIENCE
    while not (left := descendants(host.pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    host.kill()
    host.wait()
    host.stdout.close()
    assert left
    while any(alive(pid) for pid in left) and time.monotonic() < deadline:
        time.sleep(0.05)
    survivors = [pid for pid in left if alive(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_a_worker_that_dies_is_replaced(backend):
    try:
        sandbox = make_sandbox(backend, workers=1, limits=LIMITS)
    except SandboxUnavailable as error:
        pytest.skip(f"the backend {backend} does not work on this machine: {error}")
    with sandbox:
        for pid in ours():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert run(sandbox, "def f(x):\n    return x").outputs == (1,)
    assert ours() == []


def test_without_a_backend_nothing_is_run(monkeypatch, tmp_path):
    """Real backends, each made impossible as machines do it: a program that is not there, a package that is not there,
    an old kernel."""
    from llm_mdp_envs.sandbox import landlock

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    monkeypatch.setattr(landlock, "landlock_version", lambda: 0)
    with pytest.raises(
        SandboxUnavailable,
        match=r"none is run.*bwrap: not installed; apt-get install.*landlock: this kernel.*monty: not installed",
    ):
        make_sandbox("auto")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["eval", "llm_mdp/Code-v0"], ["train", "rloo", "llm_mdp/Code-v0"]])
def test_commands_say_in_one_sentence_that_there_is_no_sandbox(monkeypatch, tmp_path, capsys, command):
    from llm_mdp.cli.__main__ import main
    from llm_mdp_envs.sandbox import landlock

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pydantic_monty", None)
    monkeypatch.setattr(landlock, "landlock_version", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["llm-mdp", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1
    assert said.startswith("llm-mdp: no backend keeps programs in on this machine") and "apt-get install" in said


def test_a_worker_that_cannot_be_replaced_is_named_with_a_remedy(monkeypatch):
    from llm_mdp_envs.sandbox import forkserver

    try:
        sandbox = make_sandbox("bwrap", workers=1, limits=LIMITS)
    except SandboxUnavailable as error:
        pytest.skip(f"bwrap does not work on this machine: {error}")
    with sandbox:
        monkeypatch.setattr(forkserver, "FIRST_TO_GO", ("/bin/sh", "-c", "echo no more processes >&2; exit 1"))
        for pid in ours():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with pytest.raises(SandboxUnavailable, match=r"bwrap: .*no more processes.*use fewer workers"):
            run(sandbox, "def f(x):\n    return x")


def test_bwrap_that_is_refused_says_what_it_was_told(monkeypatch, tmp_path):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SandboxUnavailable, match="No permissions to create new namespace"):
        make_sandbox("bwrap", workers=1)


def test_a_backend_that_does_not_isolate_is_not_used(monkeypatch):
    """bwrap with the whole host mounted: the probe reads a file of the host and refuses."""
    from llm_mdp_envs.sandbox import bwrap

    try:
        make_sandbox("bwrap", workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"bwrap does not work on this machine: {error}")
    command = bwrap.bwrap_command

    def opened(*arguments):
        words = command(*arguments)
        return [*words[:3], "--ro-bind", "/", "/", *words[words.index("--chdir") :]]

    monkeypatch.setattr(bwrap, "bwrap_command", opened)
    with pytest.raises(SandboxUnavailable, match="could read a file of the host"):
        make_sandbox("bwrap", workers=1)


@pytest.mark.parametrize("backend", ["bwrap", "landlock"])
def test_a_backend_without_its_filter_runs_nothing(monkeypatch, backend):
    """A filter that lets everything pass: every child notices and ends before it reads a program."""
    from llm_mdp_envs.sandbox import forkserver

    try:
        make_sandbox(backend, workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"the backend {backend} does not work on this machine: {error}")
    monkeypatch.setattr(
        forkserver, "filter_instructions", lambda: bytes.fromhex("060000000000ff7f")
    )  # return SECCOMP_RET_ALLOW
    with pytest.raises(SandboxUnavailable, match="could not run a program"):
        make_sandbox(backend, workers=1)


# --- Data and verdicts ------------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.tuples(st.text(max_size=2)), max_size=3)
        | st.frozensets(st.integers(), max_size=3)
    ),
    max_leaves=20,
)


@given(plain)
def test_the_codec_is_its_own_inverse(value):
    back = codec.loads(codec.dumps(value))
    assert back == value and sorted(repr(back)) == sorted(repr(value))  # sets have no order; 1, 1.0 and True are equal


HOSTILE = [
    "",
    "{",
    "NaN",
    "Infinity",
    '{"float": "1"}',
    '{"tuple": 3}',
    '{"tuple": "abc"}',
    '{"set": [[1]]}',
    '{"dict": [[1]]}',
    '{"dict": [[[1], 2]]}',
    '{"dict": [[1, 2, 3]]}',
    '{"bytes": "zz"}',
    '{"bytes": 3}',
    '{"complex": [1]}',
    '{"complex": ["a", 1]}',
    '{"unknown": 1}',
    '{"tuple": [], "set": []}',
    "{}",
    "[" * 100 + "]" * 100,
    "[" * 100_000,
    '{"tuple": [' * 70 + "]}" * 70,
    "9" * 5000,
    '{"set": [' + "1," * 5000 + "1]}",
    '{"float": []}',
    '{"set": [1, 1.0]}',
    '{"int": 3}',
    '{"int": "zz"}',
    '{"int": "0x' + "f" * 140_000 + '"}',
    '{"set": [' + ",".join(str(number * (2**61 - 1)) for number in range(2000)) + "]}",
    '[{"dict": [' + ",".join(f"[{number * (2**61 - 1)}, 0]" for number in range(600)) + "]}" + ",0" * 9 + ', {"set": ['
    + ",".join(str(number * (2**61 - 1)) for number in range(600)) + "]}]",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:30])
def test_the_codec_refuses_what_it_did_not_write(text):
    with pytest.raises(ValueError):
        codec.loads(text)
    outcome = outcome_of_lines([b'{"output": ' + text.encode() + b"}"], 1, 0.0)
    assert outcome.verdict == "error" and outcome.outputs == (NO_OUTPUT,)


PRIME = 2**61 - 1
"""Its multiples all have the hash 0."""
COLLISIONS = {
    "numbers": {"set": [number * PRIME for number in range(40_000)]},
    "tuples with a common beginning": {"set": [{"tuple": [0.5] * 120 + [number * PRIME]} for number in range(1900)]},
    "frozensets with a common part": {
        "set": [{"frozenset": [n * PRIME for n in (*range(100), number)]} for number in range(200, 500)]
    },
    "many sets": [{"set": [number * PRIME for number in range(700)]} for _ in range(60)],
    "keys of a dict": {"dict": [[number * PRIME, 0] for number in range(35_000)]},
    "in a list": [number * PRIME for number in range(40_000)],
    "deep, to be sorted": [
        functools.reduce(lambda x, _: [x], range(55), [0] * 300 + [number * 7919 % 1300]) for number in range(1300)
    ],
}


@pytest.mark.parametrize("kind", COLLISIONS)
def test_outputs_made_to_collide_cost_the_host_little(kind):
    line = json.dumps({"output": COLLISIONS[kind]}, separators=(",", ":")).encode()
    assert len(line) < Limits().output_bytes
    begin = time.process_time()
    outcome = outcome_of_lines([line], 1, 0.0)
    for comparison in COMPARISONS:
        grade(outcome, [Case((1,), [1], comparison)])
    assert time.process_time() - begin < 4


@settings(max_examples=300)
@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([b'{"output": 1}', b'{"exception": [], "message": ""}', b"started"]),
        max_size=4,
    )
)
def test_no_lines_are_too_strange_to_read(lines):
    outcome = outcome_of_lines(lines, 2, 0.0)
    assert len(outcome.outputs) == 2
    assert (outcome.verdict == "finished") == all(output is not NO_OUTPUT for output in outcome.outputs)


@pytest.mark.parametrize("ending,cpu,killed,expected", [
    (0, 0.1, "", "finished"), (signal.SIGSYS, 0.1, "", "forbidden"), (signal.SIGPROF, 0.49, "", "timeout"), (signal.SIGKILL, 0.6, "", "timeout"),
    (signal.SIGKILL, 0.1, "wall", "timeout"), (signal.SIGKILL, 0.1, "output", "error"), (signal.SIGKILL, 0.1, "", "memory"), (signal.SIGSEGV, 0.1, "", "error"),
])  # fmt: skip
def test_how_a_process_ended_outweighs_what_it_said(ending, cpu, killed, expected):
    assert judge(int(ending), cpu, killed, Outcome("finished", (1,)), LIMITS).verdict == expected


@pytest.mark.parametrize("comparison,expected,right,wrong", [
    ("equal", 1, [1, 1.0, True], [2, "1", None, [1]]),
    ("equal", [1, 2], [[1, 2]], [(1, 2), [2, 1], {1, 2}]),
    ("identical", True, [True], [1, "True", False, [True]]),
    ("truth", True, [True, 1, "x"], [0, "", None, []]),
    ("close", 0.5, [0.5, 0.5000001, 0.5 + 0j], [0.51, "0.5", None, math.nan, math.inf, [0.5]]),
    ("tuple", [1, 2], [[1, 2], (1, 2)], [[2, 1], 12, None]),
    ("sorted", [1, 2], [[2, 1], (1, 2)], [[1], [1, "a"], 3]),
    ("set", [1, 2], [[2, 1, 1], {1, 2}, [1, 2] * 5000], [[1], [[1]], 3]),
    ("root", 0.0, [1.0, 1 + 1e-6], [1.1, "1", None, math.nan, math.inf, 10**400, [1]]),
])  # fmt: skip
def test_each_comparison_tells_right_from_wrong(comparison, expected, right, wrong):
    case = Case(([-1, 1],), expected, comparison)  # the polynomial x - 1
    assert all(matches(output, case) for output in right)
    assert not any(matches(output, case) for output in wrong)
    assert not matches(NO_OUTPUT, case)


def test_all_inputs_share_the_limit_of_elapsed_time(monkeypatch):
    from llm_mdp_envs.sandbox import monty

    monkeypatch.setattr(monty, "cpu_clock", lambda pid: lambda: 0.0)  # as when the process waits instead of working
    try:
        sandbox = make_sandbox("monty", workers=1, limits=Limits(cpu_seconds=0.5, wall_seconds=0.5))
    except SandboxUnavailable as error:
        pytest.skip(f"Monty does not work on this machine: {error}")
    with sandbox:
        outcome = run(sandbox, "def f(x):\n    for i in range(20_000):\n        x += i\n    return x", *[(1,)] * 1000)
    assert outcome.verdict == "timeout" and outcome.outputs[-1] is NO_OUTPUT


def test_a_forbidden_program_earns_nothing():
    graded = grade(Outcome("forbidden", (42, 42)), [ANSWER, ANSWER])
    assert (graded.verdict, graded.passed, graded.fraction) == ("forbidden", 0, 0.0)


@pytest.mark.parametrize("make,message", [
    (lambda: make_sandbox("docker"), r"backend is 'docker'; .*'auto', 'monty', 'bwrap' or 'landlock'"),
    (lambda: make_sandbox("monty", workers=0), r"workers is 0; .*1 to 1024"),
    (lambda: make_sandbox("monty", workers=True), r"workers is True"),
    (lambda: Limits(cpu_seconds=0), r"cpu_seconds is 0; .*above 0"),
    (lambda: Limits(cpu_seconds=math.nan), r"cpu_seconds is nan"),
    (lambda: Limits(cpu_seconds=20), r"wall_seconds is 10\.0, less than cpu_seconds, 20"),
    (lambda: Limits(memory_bytes=1000), r"memory_bytes is 1000; .*64 MiB"),
    (lambda: Program(b"", "f", []), r"source is a bytes"),
    (lambda: Program("", "f()", []), r"entry_point is 'f\(\)'; .*name of a function"),
    (lambda: Program("", "class", []), r"entry_point is 'class'"),
    (lambda: Program("", "f", [[1]]), r"inputs\[0\] is \[1\]; .*tuple"),
    (lambda: Program("", "f", [(object,)]).encoded_inputs, r"inputs\[0\] of f cannot enter a sandbox: type is not plain data"),
    (lambda: Case([1], 2), r"arguments is \[1\]; .*tuple"),
    (lambda: Case((1,), 2, "almost"), r"comparison is 'almost'; .*equal"),
    (lambda: grade(Outcome("finished", ()), []), r"0 outputs and 0 cases"),
])  # fmt: skip
def test_bad_arguments_are_named_with_their_value_and_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_that_cannot_enter_stop_the_run_before_it_starts(sandbox):
    good = Program("def f(x):\n    return x", "f", [(1,)])
    with pytest.raises(ValueError, match=r"inputs\[0\] of f cannot enter"):
        sandbox.run([good, Program("", "f", [(object(),)])])
    with pytest.raises(ValueError, match=r"program 1 and its inputs take \d+ bytes; request_bytes is"):
        sandbox.run([good, Program("#" * (LIMITS.request_bytes + 1), "f", [(1,)])])
