"""What a process gives up for good before it reads a program: capabilities, files (Landlock), resources (rlimits),
system calls (seccomp).

Runs inside the sandbox, on the standard library alone.
"""

import ctypes
import os
import resource
import signal

OUT_OF_MEMORY = 12
"""Exit status of a process that could not even hold the program and its inputs."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_PR_GET_NO_NEW_PRIVS = 39
_SECCOMP_MODE_FILTER = 2
_LANDLOCK_CREATE, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_LANDLOCK_READ_FILE, _LANDLOCK_READ_DIR = 1 << 2, 1 << 3
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


def drop_privileges() -> None:
    """No capabilities, no new ones through exec, not traceable, memory not readable by others of the same user."""
    _call("prctl(PR_SET_NO_NEW_PRIVS)", _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    header, nothing = _CapabilityHeader(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", _libc.capset(ctypes.byref(header), nothing))
    _call("prctl(PR_SET_DUMPABLE)", _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0))


def end_with(parent: int) -> None:
    """This process, a child of `parent`, does not outlive it."""
    _call("prctl(PR_SET_PDEATHSIG)", _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))
    if os.getppid() != parent:
        os._exit(0)


def landlock_version() -> int:
    """The kernel's Landlock ABI version; 0 where Landlock is missing or switched off."""
    return max(0, _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1))


def restrict_files(readable: list[str], listable: list[str]) -> None:
    """Only these files and folders may be read, only these listed; nothing written; no TCP; no signal leaves (as far as
    the kernel knows).

    Raises:
        OSError: the kernel has no Landlock.
    """
    version = landlock_version()
    if version < 1:
        raise OSError("the kernel offers no Landlock (Linux 5.13 or later with landlock among the active LSMs)")
    files = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ruleset = _Ruleset(files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    fd = _call(
        "landlock_create_ruleset", _libc.syscall(_LANDLOCK_CREATE, ctypes.byref(ruleset), ctypes.c_size_t(size), 0)
    )
    for path in readable:
        _allow(fd, path, _LANDLOCK_READ_FILE | (_LANDLOCK_READ_DIR if os.path.isdir(path) else 0))
    for path in listable:
        _allow(fd, path, _LANDLOCK_READ_DIR)
    _call("landlock_restrict_self", _libc.syscall(_LANDLOCK_RESTRICT, fd, 0))
    os.close(fd)


def limit_resources(cpu_seconds: float, memory_bytes: int) -> None:
    """CPU time (a signal that the program cannot catch once the filter is loaded), address space, no files, no core
    dumps, no locks."""
    for name, limit in (
        (resource.RLIMIT_CPU, int(cpu_seconds) + 2),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 0),
    ):
        resource.setrlimit(name, (limit, limit))
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def load_filter(instructions: bytes) -> None:
    """Install a seccomp filter, given as classic BPF (8 bytes an instruction)."""
    program = _Filter(len(instructions) // 8, instructions)
    _call("prctl(PR_SET_SECCOMP)", _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0))


def check_filter() -> None:
    """
    Raises:
        OSError: the filter is not in force: a harmless call that it refuses was answered.
    """
    if _libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) >= 0:
        raise OSError("the seccomp filter is not in force")


def _allow(ruleset: int, path: str, access: int) -> None:
    parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    rule = _PathBeneath(access, parent)
    _call(f"landlock_add_rule({path})", _libc.syscall(_LANDLOCK_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0))
    os.close(parent)


def _call(name: str, answer: int) -> int:
    if answer < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return answer
