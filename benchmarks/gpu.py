"""Is everything right on a GPU, and how fast? One command, under 8 minutes, on a machine that has nothing but PyTorch.

    python benchmarks/gpu.py                                    # all items on the first CUDA device
    python benchmarks/gpu.py --only step trl                    # some of them
    python benchmarks/gpu.py --device cpu --tiny                # the whole script on a toy size, as its test runs it
    python benchmarks/gpu.py --device pretend --tiny            # on the pretended device of tests/agents, without TRL

What the machine lacks travels with the checkout, as wheels in a folder that git ignores:

    python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl \\
        gymnasium==1.4.0 farama-notifications==0.0.6 tyro==1.0.17 docstring-parser==0.18.0 typeguard==4.6.1 \\
        trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 gguf==0.19.0
    python benchmarks/gpu.py --wheels .whl

(4 MB; installed into a folder of their own that is gone afterwards. The machine needs torch, transformers, accelerate,
peft, pyarrow, pandas, jaxtyping, rich, joblib, jinja2 and matplotlib; pytest and hypothesis for the last item.)

Every item writes one line of JSON into --output as soon as it is done: its name, when it began, how long it took, its
figures or its error; the first line has the card and the versions. Items are in the order of their worth. One that
would not end in time is left out, and the one at work when the time is over is cut off; both say so, and the last line
is always {"item": "end", …}, with what was aimed at. The script ends with 1 if an item that says what is right says no.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "accelerate", "peft", "trl", "datasets", "numpy")


class OutOfTime(BaseException):
    """The time is over."""


@dataclass(frozen=True)
class Item:
    """Something to find out."""

    name: str
    seconds: float
    """About, on an H100; with less time left it is not begun."""
    run: Callable[["Bench"], dict[str, Any]]
    right: bool = False
    """Its figures have an entry "right", and the script fails where that is False."""


@dataclass
class Bench:
    """What items ask for."""

    device: str
    tiny: bool
    deadline: float
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of the items that are done, by name."""

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")

    def wait(self) -> None:
        """Until the device has done all that it was told."""
        if self.on_cuda:
            import torch

            torch.cuda.synchronize()

    def forget(self) -> None:
        """Give memory back, and count its peak anew."""
        import gc

        gc.collect()
        if self.on_cuda:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """Most memory of the device that was in use since `forget`; 0 on the CPU."""
        if not self.on_cuda:
            return 0
        import torch

        return torch.cuda.max_memory_allocated()

    def seconds(self, function: Callable[[], Any]) -> float:
        """Of one call."""
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--minutes", type=float, default=7.5, help="time for everything, the start included")
    parser.add_argument("--device", default="cuda", help="cuda, cpu or pretend")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for this run")
    parser.add_argument("--only", nargs="+", help="names of items")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.wheels is not None:
            install(arguments.wheels, folder)
        sys.path[:0] = [folder, *(str(ROOT / part) for part in ("benchmarks", "agents", "envs", ".")), str(ROOT)]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH")]))
        bench = Bench(arguments.device, arguments.tiny, begun + 60 * arguments.minutes)
        chosen = choose(arguments.only)
        with arguments.output.open("w", encoding="utf-8") as file, surroundings(arguments.device):
            return run_all(bench, chosen, begun, lambda line: write(file, line))


def install(wheels: Path, folder: str) -> None:
    """Wheels into a folder, whatever else is there."""
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target"]
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        raise SystemExit(f"there are no wheels in {wheels}; see the docstring for the command that downloads them.")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, folder, *files], check=True)


def choose(names: list[str] | None) -> list[Item]:
    """Items by name, in the order of their worth; None: all."""
    import gpu_fast
    import gpu_right

    every = [Item(name, seconds, run, right=True) for name, seconds, run in gpu_right.ITEMS]
    every += [Item(name, seconds, run) for name, seconds, run in gpu_fast.ITEMS]
    every.sort(key=lambda item: gpu_fast.ORDER.index(item.name))
    known = [item.name for item in every]
    for name in names or ():
        if name not in known:
            raise SystemExit(f"there is no item {name!r}; choose from {', '.join(known)}.")
    return [item for item in every if names is None or item.name in names]


def surroundings(device: str) -> Any:
    """Where the items run."""
    if device != "pretend":
        return nullcontext()
    from tests.agents.pretend_device import Pretending

    return Pretending()


def run_all(bench: Bench, items: list[Item], begun: float, say: Callable[[dict[str, Any]], None]) -> int:
    """All items within the time; what `main` returns."""

    def ring(*_: Any) -> None:
        raise OutOfTime

    for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ring)
    signal.setitimer(signal.ITIMER_REAL, max(bench.left, 0.01))
    wrong, cut = [], None
    try:
        say({"item": "machine", **machine(bench)})
        for item in items:
            cut, start = item.name, time.monotonic()
            if bench.left < item.seconds and not bench.tiny:
                say({"item": item.name, "left out": f"{bench.left:.0f} s were left, and it takes {item.seconds:.0f}"})
                continue
            try:
                figures = item.run(bench)
            except Exception as error:
                figures = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-1500:]}
            bench.found[item.name] = figures
            if item.right and not figures.get("right"):
                wrong.append(item.name)
            say({"item": item.name, "at": start - begun, "seconds": time.monotonic() - start, **figures})
            bench.forget()
        cut = None
    except OutOfTime:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    from gpu_fast import goals

    say({"item": "end", "at": time.monotonic() - begun, "cut off": cut, "wrong": wrong, "goals": goals(bench.found)})
    return 1 if wrong else 0


def machine(bench: Bench) -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    found: dict[str, Any] = {"device": bench.device, "tiny": bench.tiny, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    found |= {"commit": said("git", "rev-parse", "HEAD"), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    if bench.on_cuda:
        card = torch.cuda.get_device_properties(bench.device)
        driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found |= {"card": card.name, "memory": card.total_memory, "cuda": torch.version.cuda, "driver": driver}
    return found


def said(*command: str) -> str | None:
    """What a program prints; None where it is not here, or says nothing."""
    if shutil.which(command[0]) is None:
        return None
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip() or None


def write(file: Any, line: dict[str, Any]) -> None:
    """One line, at once."""
    text = json.dumps(line)
    file.write(text + "\n")
    file.flush()
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
