"""The system calls that a program may make: what an interpreter needs to compute and to read modules. Everything else
kills it.

No process, thread, socket, signal, timer, trace, new name space, file change or permission change. libseccomp knows the
numbers of each architecture; calls of foreign architectures (32 bit, x32) kill too.
"""

import errno
import tempfile
from functools import cache

from llm_mdp_envs.sandbox.program import SandboxUnavailable

ALLOWED = (
    *(
        "read",
        "readv",
        "pread64",
        "write",
        "writev",
        "close",
        "close_range",
        "lseek",
        "fstat",
        "stat",
        "lstat",
        "newfstatat",
        "statx",
    ),
    *("access", "faccessat", "faccessat2", "readlink", "readlinkat", "getcwd", "getdents64"),
    *(
        "mmap",
        "munmap",
        "mremap",
        "mprotect",
        "madvise",
        "brk",
        "futex",
        "set_robust_list",
        "rseq",
        "sigaltstack",
        "rt_sigreturn",
    ),
    *("clock_gettime", "clock_getres", "gettimeofday", "time", "times", "getrusage", "getrandom", "uname", "sysinfo"),
    *("getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid"),
    *("sched_getaffinity", "sched_yield", "restart_syscall", "exit", "exit_group"),
)
REFUSED = (
    *("ioctl", "dup", "prctl", "getrlimit", "rt_sigaction", "rt_sigprocmask", "socket"),
    *("poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1"),
)
"""Answered with EPERM instead: the standard library tries them in passing and copes."""

_WRITES = (
    0o3 | 0o100 | 0o1000 | 0o2000 | 0o20000000
)  # access mode, O_CREAT, O_TRUNC, O_APPEND, O_TMPFILE: the same on x86-64 and arm64
_F_GETFD, _F_SETFD, _F_GETFL = 1, 2, 3


@cache
def filter_instructions() -> bytes:
    """The filter as classic BPF, 8 bytes an instruction.

    Raises:
        SandboxUnavailable: libseccomp or its Python binding is missing, with the command that installs it.
    """
    try:
        import pyseccomp
    except (ImportError, RuntimeError, OSError) as error:
        remedy = "pip install 'llm-mdp[code]', apt-get install libseccomp2 (or your distribution's package of it)"
        raise SandboxUnavailable(f"no seccomp filter ({error}); {remedy}") from None
    seccomp = pyseccomp.SyscallFilter(pyseccomp.KILL_PROCESS)
    for name in ALLOWED:
        seccomp.add_rule(pyseccomp.ALLOW, name)
    for name in REFUSED:
        seccomp.add_rule(pyseccomp.ERRNO(errno.EPERM), name)
    for command in (_F_GETFD, _F_SETFD, _F_GETFL):
        seccomp.add_rule(pyseccomp.ALLOW, "fcntl", pyseccomp.Arg(1, pyseccomp.EQ, command))
    seccomp.add_rule(pyseccomp.ALLOW, "openat", pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _WRITES, 0))
    for bit in (1 << position for position in range(32) if _WRITES >> position & 1):
        seccomp.add_rule(pyseccomp.ERRNO(errno.EPERM), "openat", pyseccomp.Arg(2, pyseccomp.MASKED_EQ, bit, bit))
    seccomp.add_rule(pyseccomp.ALLOW, "prlimit64", pyseccomp.Arg(0, pyseccomp.EQ, 0), pyseccomp.Arg(2, pyseccomp.EQ, 0))
    with tempfile.TemporaryFile() as file:
        seccomp.export_bpf(file)
        file.seek(0)
        return file.read()
