"""Situations that users of the field reported, as scripts: each says what it wanted, and exits 0 if it got it all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in HERE.glob("c[0-9]*.py")))
def test_case(script):
    ran = subprocess.run(
        [sys.executable, script],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert ran.returncode == 0, ran.stdout
