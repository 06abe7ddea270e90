"""What figures depend on, written beside every result."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


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


def write_results(path: Path, packages: tuple[str, ...], results: dict) -> None:
    """The results as JSON, with what they depend on."""
    path.write_text(json.dumps({**machine(*packages), **results}, indent=1) + "\n")
