"""Gradients as sums of a few, against one backward pass for each."""

import pytest
import torch
from torch.testing import assert_close

from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp.sampling.shared_draws import SharedDraws
from llm_mdp.variance.allocation import Split
from llm_mdp_agents import measuring
from llm_mdp_agents.gradient_basis import classes, is_quicker
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.measuring import estimates_on
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.sketch import Sketch
from llm_mdp_envs.tasks.synthetic import Tabular

TASK = Tabular(vocab_size=3, horizon=3)
SPLITS = [Split(size, steps, lam) for size in (2, 4) for steps in ((), (1,), (1, 2)) for lam in (0.0, 0.5)]


def policies():
    tree, prompts = TASK.mdp.tree, TASK.mdp.prompt_tokens
    yield "float64", TabularPolicy.random(tree, prompts, torch.Generator().manual_seed(0)), 1e-12
    yield "float32", small_transformer(3, 3, width=16, layers=1), 1e-4


@pytest.mark.parametrize("name, policy, tolerance", list(policies()), ids=["float64", "float32"])
def test_figures_are_those_of_one_backward_pass_for_each(name, policy, tolerance, monkeypatch):
    estimators = {str(number): split.estimator(2) for number, split in enumerate(SPLITS)}
    sketch = Sketch(list(policy.parameters()))

    def estimates():
        replay = SharedDraws(TaskSampler(policy, TASK, *streams([0, 7]), 5), 4)
        return estimates_on(replay, estimators, policy, sketch)

    passes, plain = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or plain(*a, **k))
    quick, few = estimates(), len(passes)
    monkeypatch.setattr(measuring, "is_quicker", lambda *_: False)
    slow, many = estimates(), len(passes) - few
    assert few < 0.7 * many
    for key, one in quick.items():
        assert_close(one.gradient, slow[key].gradient, rtol=tolerance, atol=tolerance)
        assert_close(one.square, slow[key].square, rtol=10 * tolerance, atol=10 * tolerance)
        assert torch.equal(one.tokens, slow[key].tokens) and (one.seconds or 0) > 0


def test_tokens_whose_weights_are_the_same_go_together():
    weights = torch.tensor([[1.0, 1.0, 0.0, 2.0, 0.0], [3.0, 3.0, 0.0, 2.0, 0.0], [0.0, 0.0, 0.0, 4.0, 0.0]]).double()
    coefficients, which = classes(weights)
    assert coefficients.shape == (3, 2) and which.tolist()[2] == which.tolist()[4] == -1
    assert which[0] == which[1] != which[3]
    assert torch.equal(coefficients[:, which[[0, 1, 3]]], weights[:, [0, 1, 3]])


def one_each(classes: int, responses: int) -> torch.Tensor:
    """Responses of as many tokens as there are classes, none of which is in two of them."""
    return torch.arange(classes * responses).view(responses, classes)


def test_a_pass_for_each_class_is_worth_it_where_estimators_have_many_more():
    few = [torch.nn.Parameter(torch.zeros(5))]
    sketch = Sketch(few)
    assert is_quicker(one_each(2, 4), [4] * 10, few, sketch)
    assert not is_quicker(one_each(2, 4), [4] * 3, few, sketch)
    assert not is_quicker(torch.full((4, 2), -1).index_fill(1, torch.tensor(0), 0), [1] * 5, few, sketch)


def test_gradients_of_large_models_are_not_kept_but_their_sketches_are():
    parameter = torch.nn.Parameter(torch.zeros(1).expand(2**27))
    which = one_each(2, 4)
    sketch = Sketch([torch.nn.Parameter(torch.zeros(10**4))])
    assert not is_quicker(which, [4] * 10, [parameter], sketch)
    sketch.keeps = False
    assert is_quicker(which, [4] * 10, [parameter], sketch)


def test_squares_of_sketches_scatter_around_those_of_gradients():
    policy = small_transformer(3, 3, width=32, layers=1)
    estimators = {str(number): split.estimator(2) for number, split in enumerate(SPLITS)}
    squares = []
    for exact in (True, False):
        sketch = Sketch(list(policy.parameters()), exact_squares=exact)
        replay = SharedDraws(TaskSampler(policy, TASK, *streams([0, 7]), 5), 4)
        squares.append(torch.stack([each.square for each in estimates_on(replay, estimators, policy, sketch).values()]))
    exact, sketched = squares
    assert not torch.equal(exact, sketched)
    assert_close(sketched, exact, rtol=0.15, atol=0)
