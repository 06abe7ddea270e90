"""Figures are exact where groups or classes of responses allow it, and say why they are not elsewhere."""

import pytest

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.exact.instances import random_instance
from llm_mdp.report.variance_rows import _methods
from llm_mdp.variance.benches import TreeBench


@pytest.mark.parametrize(("vocab_size", "horizon", "method"), [(2, 4, "classes"), (2, 2, "groups"), (4, 3, None)])
def test_eight_responses_of_dense_rewards(vocab_size, horizon, method):
    bench = TreeBench(random_instance(vocab_size, horizon, seed=1))
    found = bench.measure(RLOO(8), 500, seed=0)
    assert found.method == method and (found.samples is None) == (method is not None)
    row = found.row(1000.0)
    if method is None:
        assert "which takes at least" in row["not_exact"] and "40 different rewards" in row["not_exact"]
        assert _methods([row]) == f"sampled: 1 ({row['not_exact']})"
    else:
        assert row["not_exact"] == "" and "sampled" not in _methods([row])
