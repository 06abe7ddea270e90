"""The smallest example of a biased row: what its tables say is so, computed again."""

import pytest
import torch

from llm_mdp.audit.adapter import advantages_of, loss_of
from llm_mdp.audit.example import minimal_example
from llm_mdp.exact.instance_files import instance_from_dict
from llm_mdp.exact.instances import flatten, random_instance
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.verify.problem import Problem

SMALL = Problem(random_instance(2, 2, seed=1), group_size=2)


def per_response(batch):
    """The reward over the length of the response, no baseline: g = E RM/len ∇log π."""
    return batch.response_reward / batch.mask.sum(-1)


def no_penalty(batch):
    """A loss of the reward alone."""
    return -(batch.logp.sum(-1) * batch.response_reward).mean()


def by_hand(instance, weight):
    """E weight(W) ∇log π(W) by the logits of a table, node after node, by differentiating log π of every response."""
    levels = [level.detach().clone().requires_grad_() for level in instance.policy.levels]
    tree, total = instance.mdp.tree, torch.zeros(())
    e = Problem(instance).enumeration
    for leaf, tokens in enumerate(e.tokens.tolist()):
        written = [token for token in tokens if token >= 0]
        logp = torch.zeros(())
        for place, token in enumerate(written):
            prefix = int(tree.prefix_index(e.tokens)[leaf, place])
            logp = logp + levels[place][0, :, prefix].log_softmax(0)[token]
        total = total + logp.exp().detach() * weight(float(e.response_reward[0, leaf]), len(written)) * logp
    return flatten(instance, torch.autograd.grad(total, levels))


def test_what_comes_out_and_what_is_promised_are_the_two_gradients():
    found = minimal_example(advantages_of(per_response, SMALL))
    assert found is not None and found["words"].startswith("V = 2, T = 2, K = 2: biased: relative bias ")
    instance = instance_from_dict(found["instance"], "")
    out, promised = (
        by_hand(instance, lambda r, n: r / n),
        flatten(instance, exact_gradient(instance.policy, instance.mdp)[1]),
    )
    rows = [(f"{a:.4g}", f"{b:.4g}") for a, b in zip(out.tolist(), promised.tolist())]
    shown = [tuple(line[1:]) for line in found["gradients"]["lines"]]
    assert shown == [pair for pair in rows if pair != ("0", "0")] and len(shown) > 1
    assert {line[0] for line in found["gradients"]["lines"]} <= {"end first", "a first", "end after a", "a after a"}
    e = Problem(instance).enumeration
    assert [line[0] for line in found["responses"]["lines"]] == ["end", "a end", "a a"]
    assert [line[1] for line in found["responses"]["lines"]] == [f"{r:.4g}" for r in e.response_reward[0].tolist()]


def test_a_penalty_shows_the_reference():
    found = minimal_example(loss_of(no_penalty, SMALL), "reward - 0.5 kl")
    assert found is not None and found["responses"]["head"] == ["response", "reward", "log π", "log reference"]
    assert found["gradients"]["head"][-1] == "what the name promises, ∇(reward - 0.5 kl)"


@pytest.mark.slow
def test_of_what_is_right_there_is_none():
    assert minimal_example(advantages_of(lambda batch: batch.response_reward, SMALL)) is None
