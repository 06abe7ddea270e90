"""What a command loads: importing is most of what people wait for."""

import os
import subprocess
import sys

import pytest

HEAVY = ("sympy", "torch._dynamo", "transformers", "torch._inductor", "scipy", "matplotlib", "joblib", "gymnasium")
RUN = """
import sys
from llm_mdp.cli.__main__ import main
try:
    main()
except SystemExit as end:
    status = end.code or 0
else:
    status = 0
print("status", status, "loaded", *sorted(name for name in {names!r} if name in sys.modules), file=sys.stderr)
"""


def loaded(names: tuple[str, ...], *words: str) -> set[str]:
    """Which of these modules a command leaves loaded."""
    code = [sys.executable, "-c", RUN.format(names=names), *words]
    done = subprocess.run(code, capture_output=True, text=True, timeout=900, env=os.environ | {"OMP_NUM_THREADS": "1"})
    told = done.stderr.splitlines()[-1].split()
    assert told[:3] == ["status", "0", "loaded"], done.stderr
    return set(told[3:])


def test_verify_loads_nothing_heavy():
    assert loaded((*HEAVY, "torch"), "verify", "--quick") == {"torch"}


@pytest.mark.slow
def test_the_whole_ledger_loads_nothing_heavy():
    assert loaded((*HEAVY, "torch"), "verify") == {"torch"}


# One claim of each kind that has drawn in more than it needs, on the policies that have parameters of their own.
@pytest.mark.parametrize("policy", ["ngram", "transformer"])
def test_neither_do_statements_other_policies_and_samples(policy):
    claims = ("dpo-optimum", "prime", "gae-exact-1", "trepo-interpolated", "kl-k1-loss")
    where = ("--vocab", "2", "--horizon", "3", "--policy", policy)
    assert not loaded(HEAVY, "verify", *claims, *where)


def test_samples_load_nothing_heavy():
    assert not loaded(HEAVY, "verify", "rloo", "--vocab", "2", "--horizon", "2", "--sampled", "2000")


@pytest.mark.parametrize("words", [("--help",), ("envs", "--help"), ("agents", "--help")])
def test_help_does_not_wait_for_torch(words):
    assert loaded(("torch", "transformers"), *words) == set()


def test_the_kept_list_of_agents_is_that_of_their_files_or_unused(monkeypatch):
    from llm_mdp.cli import agents
    from llm_mdp.cli.agents_listed import listed

    now = {each["name"]: each for each in listed(())}
    assert agents.kept() in ({}, now)
    monkeypatch.setattr(agents, "files_of_agents", lambda: "other files")
    assert agents.kept() == {}
