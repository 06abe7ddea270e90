"""SkyRL, AReaL, torchtune, ms-swift and tinker-cookbook where they are installed; single modules and stand-ins
everywhere."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from llm_mdp.audit.adapter import advantages_of, loss_of
from llm_mdp.audit.library import find_library
from llm_mdp.audit.single_modules import import_alone
from llm_mdp.exact.instances import random_instance
from llm_mdp.own import UsageError
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from tests.audit.others_by_hand import ADVANTAGES, LOSSES

PACKAGES = {
    "skyrl": "skyrl",
    "areal": "areal",
    "torchtune": "torchtune",
    "ms-swift": "swift",
    "tinker": "tinker_cookbook",
}
"""The package that each library is imported as."""
BY_HAND = [(key, "advantages", each) for key, each in ADVANTAGES.items() if key[0] != "openrlhf"]
BY_HAND += [(key, "loss", each) for key, each in LOSSES.items() if key[0] != "openrlhf"]


@pytest.fixture(scope="module")
def problem():
    return Problem(random_instance(2, 3, seed=1), group_size=3)


def certificate(estimator, problem, target="reward"):
    return exact_certificate(estimator, problem.enumeration, problem.target(target), problem.magnitude(target))


def library_of(name: str):
    if find_spec(PACKAGES[name]) is None:
        pytest.skip(f"the audit of {name} needs {PACKAGES[name]}")
    return find_library(name)


def row_of(library: str, name: str):
    return {each.name: each for each in library_of(library).settings()}[name]


@pytest.mark.parametrize("name", PACKAGES)
def test_rows_have_names_of_their_own_and_one_is_the_default(name):
    rows = library_of(name).settings()
    assert len({each.name for each in rows}) == len(rows)
    assert sum(each.is_default for each in rows) == 1


@pytest.mark.parametrize(("key", "what", "by_hand"), BY_HAND, ids=[" ".join(key) for key, _, _ in BY_HAND])
def test_it_gives_what_was_worked_out_by_hand(key, what, by_hand, problem):
    row = row_of(*key)
    make = loss_of if what == "loss" else advantages_of
    theirs = certificate(make(getattr(row, what), problem, name=row.name), problem, row.target)
    ours = certificate(make(by_hand, problem), problem, row.target)
    assert theirs.relative_bias == pytest.approx(ours.relative_bias, rel=1e-6, abs=1e-9)
    assert theirs.trace_covariance == pytest.approx(ours.trace_covariance, rel=1e-6)


def test_skyrls_registries_have_a_row_for_every_name():
    rows = library_of("skyrl").settings()
    from llm_mdp.audit import skyrl

    utils = skyrl.modules().utils
    for option, registry in (
        ("advantage_estimator", utils.AdvantageEstimatorRegistry),
        ("policy_loss_type", utils.PolicyLossRegistry),
    ):
        for name in registry.list_available():
            assert any(f"{option}={name}" in each.name.split(",") for each in rows), (option, name)


def test_zeroing_skyrls_functions_changes_the_certificate(problem, monkeypatch):
    row = row_of("skyrl", "advantage_estimator=rloo,loss_reduction=seq_mean_token_sum_norm")
    from llm_mdp.audit import skyrl

    functions = skyrl.modules().utils.AdvantageEstimatorRegistry._functions
    assert certificate(advantages_of(row.advantages, problem), problem).scale == pytest.approx(1.0)
    zeros = lambda token_level_rewards, **_: (torch.zeros_like(token_level_rewards),) * 2  # noqa: E731
    monkeypatch.setitem(functions, "rloo", zeros)
    assert certificate(advantages_of(row.advantages, problem), problem).scale == 0.0


def test_zeroing_areals_functions_changes_the_certificate(problem, monkeypatch):
    row = row_of("areal", "reward_norm=group mean, leave one out")
    from llm_mdp.audit import areal

    normalization = areal.modules().actor.Normalization
    monkeypatch.setattr(normalization, "__call__", lambda self, x, *_, **__: torch.zeros_like(x))
    assert certificate(advantages_of(row.advantages, problem), problem).scale == 0.0


def test_zeroing_torchtunes_functions_changes_the_certificate(problem, monkeypatch):
    row = row_of("torchtune", "kl_coeff=0.0,lmbda=1.0")
    from llm_mdp.audit import torchtune

    assert certificate(advantages_of(row.advantages, problem), problem).scale > 0
    monkeypatch.setattr(torchtune.modules().rewards, "whiten", lambda x, **_: torch.zeros_like(x))
    assert certificate(advantages_of(row.advantages, problem), problem).scale == 0.0


def test_zeroing_ms_swifts_functions_changes_the_certificate(problem, monkeypatch):
    row = row_of("ms-swift", "advantage_estimator=rloo,scale_rewards=none,loss_type=dr_grpo,beta=0.0")
    from llm_mdp.audit import ms_swift

    module, kept = ms_swift.modules().trainer, ms_swift.modules().trainer.compute_advantages
    monkeypatch.setattr(module, "compute_advantages", lambda **k: [0.0 * each for each in kept(**k)])
    assert certificate(advantages_of(row.advantages, problem), problem).scale == 0.0


def test_zeroing_tinker_cookbooks_functions_changes_the_certificate(problem, monkeypatch):
    row = row_of("tinker", "defaults")
    from llm_mdp.audit import tinker

    module, kept = tinker.modules().processing, tinker.modules().processing.compute_advantages
    monkeypatch.setattr(module, "compute_advantages", lambda groups: [0.0 * each for each in kept(groups)])
    assert certificate(advantages_of(row.advantages, problem), problem).scale == 0.0


# --- single modules ---------------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A library whose module needs a cluster at its top."""
    root = tmp_path / "cluster_library"
    root.mkdir()
    (root / "__init__.py").write_text("")
    (root / "pure.py").write_text(
        "import nowhere\nfrom nowhere.deep import Base, Other, remote\n"
        "del Base.start\n"
        "if nowhere.is_running():\n    raise RuntimeError\n"
        "for each in Base:\n    raise RuntimeError\n"
        "@remote\nclass Actor(Base, Other):\n    pass\n"
        "@remote(num_gpus=1)\ndef double(x):\n    with nowhere.scope():\n        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return "cluster_library"


def test_a_module_is_imported_without_what_it_needs_at_its_top(package):
    (module,) = import_alone(package, [f"{package}.pure"], ["nowhere"])
    assert module.double(3) == 6


def test_nothing_is_left_behind(package):
    mine = SimpleNamespace()
    sys.modules["nowhere"] = mine
    try:
        import_alone(package, [f"{package}.pure"], ["nowhere"])
        assert sys.modules["nowhere"] is mine
    finally:
        del sys.modules["nowhere"]
    assert not [name for name in sys.modules if name.startswith((package, "nowhere"))]


def test_an_unknown_layout_is_a_sentence(package):
    with pytest.raises(UsageError, match="layout that this adapter does not know"):
        import_alone(package, [f"{package}.gone"], ["nowhere"])


def test_a_library_that_is_not_installed_is_a_sentence():
    with pytest.raises(UsageError, match="not installed"):
        import_alone("no_such_library", ["no_such_library.pure"], [])
