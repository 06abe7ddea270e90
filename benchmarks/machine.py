"""What figures depend on, written beside every result."""

import json
import os
import platform
import resource
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from llm_mdp.files import write_text


def machine(*packages: str) -> dict:
    """Commit, versions of Python and of these packages, cores, architecture."""
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    )
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {
        "commit": git.stdout.strip() or None,
        "versions": versions,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }


def processor() -> dict[str, str | None]:
    """What Linux says of the processor; elsewhere nothing."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    found = {name.strip(): value.strip() for name, colon, value in (each.partition(":") for each in lines) if colon}
    return {name: found.get(name) for name in ("vendor_id", "model name", "cpu family", "model")}


def cpu_seconds() -> float:
    """Of this process and of those that it waited for."""
    used = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def write_results(path: Path, packages: tuple[str, ...], results: dict) -> None:
    """The results as JSON, with what they depend on and what this process took; whole or not at all, whenever the
    script is killed."""
    document = {**machine(*packages), "took_cpu_seconds": cpu_seconds(), **results}
    write_text(path, json.dumps(document, indent=1) + "\n")


def recorded_in(path: Path, name: str) -> list[dict[str, Any]]:
    """The finished runs of the results at `path`, by whichever clone: a killed script goes on where it was."""
    return json.loads(path.read_text())[name] if path.exists() else []


def finished(run: dict[str, Any], recorded: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The run among `recorded` that was made as `run` says, all of whose settings are compared."""
    return next((found for found in recorded if {name: found.get(name) for name in run} == run), None)
