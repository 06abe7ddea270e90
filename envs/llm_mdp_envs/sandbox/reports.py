"""Reading what a program's side says about itself. A witness with an interest: believed for its outputs, which are
checked, no more."""

from collections.abc import Sequence

from llm_mdp_envs.sandbox.inside.codec import decode_plain_data, parse
from llm_mdp_envs.sandbox.program import NO_OUTPUT, Outcome, Verdict, printable


def outcome_of_lines(lines: Sequence[bytes], inputs: int, cpu_seconds: float) -> Outcome:
    """The outcome that a child's lines report, one line an input.

    Each line is `{"output": tagged plain data}` or `{"exception": [names of the class and its bases], "message":
    text}`. A line that is anything else counts as an error; lines beyond the number of inputs are ignored; missing ones
    are missing outputs.
    """
    outputs: list[object] = []
    failures: list[tuple[Verdict, str]] = []
    for line in lines[:inputs]:
        output, failure = read_line(line)
        outputs.append(output)
        failures += [failure] if failure else []
    if len(outputs) < inputs and not failures:
        failures = [("error", f"the program ended before it gave output {len(outputs) + 1} of {inputs}")]
    outputs += [NO_OUTPUT] * (inputs - len(outputs))
    verdict, message = next(iter(failures), ("finished", ""))
    return Outcome(verdict, tuple(outputs), message, cpu_seconds)


def read_line(line: bytes) -> tuple[object, tuple[Verdict, str] | None]:
    """An output and no failure, or `NO_OUTPUT` and a failure (verdict, message)."""
    try:
        report = parse(line)
        if isinstance(report, dict) and report.keys() == {"output"}:
            return decode_plain_data(report["output"]), None
        if isinstance(report, dict) and report.keys() == {"exception", "message"}:
            return NO_OUTPUT, failure_of_exception(list(map(str, report["exception"])), str(report["message"]))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        return NO_OUTPUT, ("error", printable(f"an output that is not tagged plain data: {error}"))
    return NO_OUTPUT, ("error", "an output that is not tagged plain data")


def failure_of_exception(names: list[str], message: str) -> tuple[Verdict, str]:
    """Verdict and message of an uncaught exception, from the names of its class and bases."""
    verdict: Verdict = "memory" if "MemoryError" in names else "forbidden" if "PermissionError" in names else "error"
    return verdict, printable(": ".join([*names[:1], *([message] if message else [])]))
