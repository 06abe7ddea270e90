"""The `bwrap` backend: bubblewrap around the fork server. New name spaces, no network, no /proc, nothing mounted but
the interpreter."""

import os
import shutil
from functools import partial

from llm_mdp_envs.sandbox.forkserver import INSIDE, TIME_ZONES, Launch, runtime, server_arguments, start_workers
from llm_mdp_envs.sandbox.program import Limits, PoolSandbox, SandboxUnavailable

INSTALL = "apt-get install -y bubblewrap (or your distribution's package of that name)"


def bwrap_command(program: str, options: list[str], config: str) -> list[str]:
    """The command line that starts the fork server in a world of its own."""
    python = runtime()
    command = [
        program,
        *options,
        "--unshare-all",
        "--unshare-user",
        "--cap-drop",
        "ALL",
        "--uid",
        "65534",
        "--gid",
        "65534",
    ]
    command += ["--new-session", "--hostname", "sandbox"]
    for folder in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(folder):
            command += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            command += ["--ro-bind", folder, folder]
    for path in (*python.libraries, python.stdlib, python.executable, str(INSIDE)):
        command += ["--ro-bind", path, path]
    for path in ("/usr/lib64", "/etc/ld.so.cache", TIME_ZONES):
        command += ["--ro-bind-try", path, path]
    for folder in python.packages:
        command += ["--tmpfs", folder, "--remount-ro", folder]
    return [*command, "--remount-ro", "/", "--chdir", "/", "--", python.executable, *server_arguments(config)]


def bwrap_sandbox(workers: int, limits: Limits) -> PoolSandbox:
    """
    Raises:
        SandboxUnavailable: bubblewrap is missing, or the system refuses it what it needs (Docker's seccomp profile,
        Ubuntu's AppArmor).
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxUnavailable(f"bwrap: not installed; {INSTALL}")
    launch = Launch(partial(bwrap_command, program), names_its_child=True)
    return PoolSandbox("bwrap", start_workers("bwrap", launch, workers, limits), limits)
