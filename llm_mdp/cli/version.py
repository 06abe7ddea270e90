"""`llm-mdp version`: what is in use."""

import sys
from collections.abc import Sequence

import numpy
import torch

import llm_mdp


def version(argv: Sequence[str]) -> int:
    """Run `llm-mdp version`."""
    parts = (f"torch {torch.__version__}", f"numpy {numpy.__version__}", f"Python {sys.version.split()[0]}")
    print(f"llm-mdp {llm_mdp.__version__}, {', '.join(parts)}")
    return 0
