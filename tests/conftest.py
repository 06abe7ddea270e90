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
    """Tests on clusters run when asked for. The fast suite tries a property on fewer examples; the whole one on as many
    as the test says."""
    if "cluster" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("cluster")]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if config.option.markexpr != "not slow":
        return
    for test in {getattr(item, "function", None) for item in items}:
        own = getattr(test, "_hypothesis_internal_use_settings", None)
        if own is not None and own.max_examples > QUICK_EXAMPLES:
            test._hypothesis_internal_use_settings = settings(own, max_examples=QUICK_EXAMPLES)


@pytest.fixture(autouse=True)
def heard():
    """Signals do in every test what they do in a program of its own, and in the programs that a test starts: whoever
    started the tests may ignore them (nohup, a shell's background), and a library may have left a handler behind that
    would end all tests."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in, and no torch threads taken away from other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    return tmp_path
