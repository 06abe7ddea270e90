"""`llm-mdp version`: what is in use."""

import sys
from collections.abc import Sequence

import numpy
import torch

import llm_mdp


def version(argv: Sequence[str]) -> int:
    """Run `llm-mdp version`."""
    print(
        f"llm-mdp {llm_mdp.__version__}, torch {torch.__version__}, numpy {numpy.__version__}, Python {sys.version.split()[0]}"
    )
    return 0
