"""What the command line says of itself: the commands, an example of each thing that they do, and the help of
`llm-mdp` alone. Nothing heavy is imported here, so that it is said at once."""

import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from llm_mdp.own import did_you_mean

WIDTH = 80
"""Most columns of a help."""
COMMANDS = {
    "verify": (
        "verify",
        "Check which estimators of the policy gradient are unbiased, proportional or biased, and why.",
    ),
    "audit": ("audit", "Certify the real functions of TRL, verl, OpenRLHF and others, or those of a file of yours."),
    "envs": ("envs", "List the Gymnasium environments: turns, vocabulary, graded parts, and what each separates."),
    "agents": ("agents", "List the agents: algorithm, paper, file, claims, and what is certified of them."),
    "train": ("train", "Train a policy with an agent on an environment."),
    "eval": ("evaluate", "Rewards of a policy, or of the one that a run has trained."),
    "variance": ("variance", "How noisy each estimator is, and what a token of sampling buys."),
    "inspect": ("inspect", "A page of responses, every token shaded by the advantage that each estimator gave it."),
    "version": ("version", "Print the versions in use."),
}
"""Each command, the file here that runs it, and what it does."""
EXAMPLES = {
    "verify": (
        ("every claim of the ledger, on several instances", "llm-mdp verify"),
        ("one of them, at the group sizes that people train with", "llm-mdp verify grpo --quick --group-size 3 8 64"),
        ("an estimator of your own, and what to do about it", "llm-mdp verify my_file.py:MyEstimator --quick"),
        ("a page to read, and all results", "llm-mdp verify --html ledger.html --json ledger.json"),
        (
            "on a language model, restricted to ten digits",
            "llm-mdp verify rloo grpo --model FOLDER --env llm_mdp/Arithmetic-v0",
        ),
    ),
    "audit": (
        ("the libraries, and how to install them", "llm-mdp audit"),
        ("every option of one", "llm-mdp audit trl --html trl.html"),
        ("a function of yours, at more prompts an update", "llm-mdp audit my_file.py:my_loss --prompts 1 4"),
    ),
    "envs": (
        ("all of them", "llm-mdp envs"),
        ("for a program", "llm-mdp envs --json envs.json"),
        ("with what there is to earn, measured here", "llm-mdp envs --measure"),
    ),
    "agents": (
        ("all of them", "llm-mdp agents"),
        ("two with the certificates of their defaults", "llm-mdp agents grpo trepo --certify"),
        ("for a program", "llm-mdp agents --json agents.json"),
        (
            "their gradients on a language model",
            "llm-mdp agents grpo --model FOLDER --env llm_mdp/Arithmetic-v0",
        ),
    ),
    "train": (
        ("a table, in seconds", "llm-mdp train rloo Tabular --steps 100"),
        ("a small transformer from scratch, minutes on a laptop", "llm-mdp train trepo llm_mdp/Arithmetic-v0"),
        (
            "a language model, with adapters",
            "llm-mdp train grpo llm_mdp/ReasoningGym-v0 --model FOLDER --lora-rank 16",
        ),
        (
            "your own rows and reward, as TRL calls it",
            "llm-mdp train grpo rows.jsonl --model FOLDER --reward rewards.py:correct",
        ),
        ("names of TRL are understood", "llm-mdp train grpo Tabular --num-generations 4 --max-steps 50"),
        ("go on where a run stands", "llm-mdp train --resume runs/NAME --steps 200"),
        ("the same choices again", "llm-mdp train --config runs/NAME/config.json --seed 1"),
    ),
    "eval": (
        ("what a run has trained", "llm-mdp eval --run runs/NAME"),
        ("a language model as it is", "llm-mdp eval llm_mdp/Arithmetic-v0 --model FOLDER --env-args digits=1"),
        (
            "on longer numbers, to a file",
            "llm-mdp eval --run runs/NAME --env-args digits=2 --json eval.json",
        ),
    ),
    "variance": (
        ("which estimator for a batch of 2,000 tokens", "llm-mdp variance rloo grpo trepo --budget 2000"),
        ("a sweep over lengths and policies", "llm-mdp variance --horizon 2 4 6 --policy tabular ngram --out noise"),
        ("on a task, with the policy of a run", "llm-mdp variance rloo trepo --run runs/NAME"),
    ),
    "inspect": (
        ("the standard page", "llm-mdp inspect"),
        ("three estimators on what a run has trained", "llm-mdp inspect --run runs/NAME --estimators rloo grpo trepo"),
        ("a file of yours, to another page", "llm-mdp inspect Tabular --estimators my_file.py:Mine --html mine.html"),
    ),
    "version": (("what to put into a report of an error", "llm-mdp version"),),
}
"""For every command what an example does, and the example."""

USAGE = """usage: llm-mdp COMMAND [options]

Certify policy gradients, train with what was certified, and measure its noise.

commands:
{commands}

examples:
  llm-mdp verify grpo --quick               is its gradient the true one?
  llm-mdp train rloo Tabular --steps 100    train a policy in seconds
  llm-mdp eval --run runs/rloo-tabular-1    what has it learned?

llm-mdp COMMAND --help has the options and more examples.
The Tab key completes them after this, once (bash; zsh with ~/.zfunc in fpath):
  llm-mdp --tyro-write-completion bash \\
      ~/.local/share/bash-completion/completions/llm-mdp
  llm-mdp --tyro-write-completion zsh ~/.zfunc/_llm-mdp"""


def width() -> int:
    """Columns of a help: those of the terminal, and at most 80."""
    return min(shutil.get_terminal_size().columns, WIDTH)


@contextmanager
def narrow() -> Iterator[None]:
    """While it lasts, the terminal says that it is no wider than a help."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width())
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def usage() -> str:
    """What `llm-mdp --help` says."""
    space = " " * 12
    lines = (
        textwrap.fill(words, width(), initial_indent=f"  {name:<10}", subsequent_indent=space)
        for name, (_, words) in COMMANDS.items()
    )
    return USAGE.format(commands="\n".join(lines))


def examples(command: str) -> str:
    """The examples of a command, as its help has them."""
    lines = (f"  # {words}\n  {line}" for words, line in EXAMPLES[command])
    return "\n".join(["examples:", *lines])


def unknown(name: str) -> str:
    """What is said of a command that there is not."""
    known = f"the commands are {', '.join(COMMANDS)}."
    return f"there is no command {name!r}; {did_you_mean(name, COMMANDS, known)}"
