"""Every benchmark of speed that needs no environment of its own, one after the other: `make bench`.

    python benchmarks/bench.py
    python benchmarks/bench.py --into /tmp/somewhere growth tree_dp    # only these, and results elsewhere

They run in turn, for two at a time would share the memory and slow each other down. Every result says what it took.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS: dict[str, tuple[str, ...]] = {
    "tree_dp": (),
    "sampled_rate": ("--rounds", "3"),
    "env_rate": (),
    "sandbox_rate": (),
    "startup": ("--runs", "3"),
    "lm_rate": ("--times", "2"),
    "branching": (),
    "trepo_cost": ("--rounds", "3"),
    "pilot_cost": (),
    "sb3": (),
    "turns": (),
    "growth": (),
}
OUTPUT = {"startup": "--out"}
"""Where the option for the results has another name."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("script", nargs="*", choices=[*SCRIPTS, []], help="default: all")
    parser.add_argument("--into", type=Path, default=HERE / "results", help="folder of the results")
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    begun, failed = time.perf_counter(), []
    for name in arguments.script or SCRIPTS:
        command = [sys.executable, str(HERE / f"{name}.py"), *SCRIPTS[name]]
        command += [OUTPUT.get(name, "--output"), str(arguments.into / f"{name}.json")]
        print(f"python benchmarks/{name}.py {' '.join(SCRIPTS[name])}", flush=True)
        done = subprocess.run(command, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
        failed += [name] * bool(done.returncode)
    print(f"{(time.perf_counter() - begun) / 60:.0f} minutes")
    if failed:
        sys.exit(f"ended with an error: {', '.join(failed)}")


if __name__ == "__main__":
    main()
