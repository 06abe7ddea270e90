"""What the tests of several commands begin with, and what no test may depend on: the speed of the machine."""

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("any machine")

QUICK_EXAMPLES = 20


def pytest_configure(config):
    """No test goes to a GPU by itself: what it shows would depend on the machine."""
    asked = config.option.markexpr.replace("not cuda", "")
    if "cuda" not in asked:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config, items):
    """The fast suite tries a property on fewer examples; the whole one on as many as the test says."""
    if config.option.markexpr != "not slow":
        return
    for test in {getattr(item, "function", None) for item in items}:
        own = getattr(test, "_hypothesis_internal_use_settings", None)
        if own is not None and own.max_examples > QUICK_EXAMPLES:
            test._hypothesis_internal_use_settings = settings(own, max_examples=QUICK_EXAMPLES)


@pytest.fixture(autouse=True)
def heard():
    """Signals that whoever started the tests ignores (nohup, a shell's background) do here what they do elsewhere, in
    the programs that a test starts as well."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    ignored = [number for number in usual if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, usual[number])
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, and no torch threads taken away from other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return tmp_path
