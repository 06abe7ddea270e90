"""What the tests of several commands begin with."""

import os

import pytest


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, and no torch threads taken away from other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return tmp_path
