"""`llm-mdp version`: what is in use."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

import llm_mdp
from llm_mdp.cli.parsing import parse


@dataclass(frozen=True)
class VersionArguments:
    """Print the versions of llm-mdp, torch, numpy and Python in use."""


def version(argv: Sequence[str]) -> int:
    """Run `llm-mdp version`."""
    parse(VersionArguments, argv, "version")
    parts = (f"torch {torch.__version__}", f"numpy {numpy.__version__}", f"Python {sys.version.split()[0]}")
    print(f"llm-mdp {llm_mdp.__version__}, {', '.join(parts)}")
    return 0
