"""The `landlock` backend: the fork server without name spaces, its files walled off by the kernel's Landlock.

For machines that refuse name spaces. Everything else is as with bwrap. Beyond the interpreter's files a program can
read nothing, but it can still ask whether a path exists and how large it is.
"""

import os
from pathlib import Path

from llm_mdp_envs.sandbox.forkserver import TIME_ZONES, Launch, runtime, server_arguments, start_workers
from llm_mdp_envs.sandbox.inside.lockdown import landlock_version
from llm_mdp_envs.sandbox.program import Limits, PoolSandbox, SandboxUnavailable


def landlock_sandbox(workers: int, limits: Limits) -> PoolSandbox:
    """
    Raises:
        SandboxUnavailable: the kernel has no Landlock.
    """
    if landlock_version() < 1:
        raise SandboxUnavailable(
            "landlock: this kernel offers none (Linux 5.13 or later, with landlock among its active security modules)"
        )
    python = runtime()
    launch = Launch(
        lambda options, config: [python.executable, *server_arguments(config)], readable_paths(), (python.stdlib,)
    )
    return PoolSandbox("landlock", start_workers("landlock", launch, workers, limits), limits)


def readable_paths() -> tuple[str, ...]:
    """What the interpreter reads: the standard library without installed packages, shared libraries, time zones."""
    python = runtime()
    entries = [os.path.join(python.stdlib, name) for name in sorted(os.listdir(python.stdlib))]
    libraries = [path for folder in python.libraries for path in _library_files(folder, python.packages)]
    zones = [TIME_ZONES] if os.path.isdir(TIME_ZONES) else []
    return (*(path for path in entries if path not in python.packages), *libraries, *zones)


def _library_files(folder: str, packages: tuple[str, ...]) -> list[str]:
    """The folder itself, or only the libraries in it where packages lie below."""
    if not any(package.startswith(folder + "/") for package in packages):
        return [folder]
    return [str(path) for path in sorted(Path(folder).glob("*.so*")) if path.is_file()]
