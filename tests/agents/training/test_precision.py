"""What 16 bits and models that draw otherwise than they score do to training: it works, or it stops in words."""

from typing import Any

import pytest
import torch

from llm_mdp.sampling.policies import TabularPolicy, token_logp
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.training.first_ratio import FirstRatio
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.training.warm_start import warm_start
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.task import Task
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.synthetic import Tabular

SUMS = Arithmetic(digits=1)


def model(dtype: str, task: Task = SUMS, seed: int = 0):
    return small_transformer(
        task.vocab_size, task.prompt_length + task.horizon, width=16, layers=1, heads=2, seed=seed, dtype=dtype
    )


def trainer(policy: Any, name: str = "rloo", task: Task = SUMS, options: dict[str, Any] | None = None, **config):
    agent = AGENTS[name](AGENTS[name].Config(**(options or {})), policy, task, 0)
    chosen: dict[str, Any] = {"steps": 9, "prompts_per_step": 4, "seed": 1} | config
    return Trainer(agent, task, policy, TrainConfig(**chosen))


# --- 16 bits ----------------------------------------------------------------------------------------------------------


def test_bfloat16_moves_every_weight_at_small_rates():
    half, single = (trainer(model(dtype), learning_rate=1e-6, signal_every=0) for dtype in ("bfloat16", "float32"))
    moved = []
    for each in (half, single):
        start = [weight.detach().clone() for weight in each.optimizer.parameters]
        for _ in range(3):
            each.step()
        moved.append([float((now != then).float().mean()) for now, then in zip(each.optimizer.parameters, start)])
    # Not all: some rows of the embedding were never read.
    assert moved[0] == pytest.approx(moved[1], abs=0.1)
    assert sum(moved[0]) / len(moved[0]) > 0.9


def test_in_16_bits_responses_are_scored_as_they_are_trained():
    half = trainer(model("bfloat16"))
    seen = {}
    loss = half.agent.loss

    def spy(logp, evidence):
        seen["evidence"] = evidence
        return loss(logp, evidence)

    half.agent.loss = spy
    policy: Any = half.policy
    before = {name: each.detach().clone() for name, each in policy.named_parameters()}
    metrics = half.step()
    policy.load_state_dict(before)
    rollouts = seen["evidence"].rollouts
    with torch.no_grad():
        again = policy.logp(rollouts.prompt, rollouts.tokens, rollouts.mask).double()
    assert torch.equal(again, rollouts.logp)
    assert 0 <= metrics["rounding"] < 0.06


def test_every_part_of_a_batch_is_added_in_32_bits():
    half = trainer(model("bfloat16"), micro_batch=3, signal_every=0)
    take, parts = half.optimizer.take_gradients, []

    def spy():
        take()
        parts.append([each.grad is not None for each in half.optimizer.parameters])

    half.optimizer.take_gradients = spy
    weights, read = half.scorer, []
    half.scorer = lambda *response: read.append(len(response[0])) or weights(*response)
    half.step()
    assert len(parts) == len(read) > 1
    assert all(map(all, parts))


def test_in_32_bits_responses_are_not_scored_twice():
    assert "rounding" not in trainer(model("float32")).step()


def test_a_bfloat16_run_goes_on_bit_for_bit():
    first, second = (trainer(model("bfloat16"), "grpo", options={"kl": 0.1}, epochs=2) for _ in range(2))
    first.step()
    second.restore(*first.state())
    for each in (first, second):
        each.step()
    for mine, theirs in zip(first.optimizer.parameters, second.optimizer.parameters):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(first.policy.parameters(), second.policy.parameters()):
        assert torch.equal(mine, theirs)


def test_float16_is_refused():
    with pytest.raises(ValueError, match=r"float16 weights, .*train in bfloat16 \(--dtype bfloat16\) or float32\."):
        trainer(model("float16"))


def test_a_warm_start_in_bfloat16_goes_as_far_as_in_float32():
    """At a rate whose steps are below half the spacing of most weights: rounded one by one they would be lost."""
    moved = []
    for dtype in ("bfloat16", "float32"):
        policy = model(dtype)
        start = torch.cat([each.detach().float().flatten() for each in policy.parameters()])
        warm_start(policy, SUMS, 40, 0, learning_rate=1e-5)
        now = torch.cat([each.detach().float().flatten() for each in policy.parameters()])
        moved.append(float((now - start).abs().mean()))
    assert moved[0] == pytest.approx(moved[1], rel=0.3)


# --- the first ratio --------------------------------------------------------------------------------------------------

TASK = Tabular(3, 3, gamma=0.9, n_prompts=2, seed=3)


class Shifted(TabularPolicy):
    """Scores otherwise than it draws."""

    by: float = 0.0

    def logp(self, prompt, tokens, mask, temperature=1.0):
        return token_logp(self.logits(prompt, tokens), tokens, mask, temperature) + self.by


def shifted(by: float) -> Shifted:
    policy = Shifted.random(TASK.mdp.tree, TASK.mdp.prompt_tokens, torch.Generator().manual_seed(0))
    assert isinstance(policy, Shifted)
    policy.by = by
    return policy


def test_a_policy_that_draws_otherwise_than_it_scores_is_not_trained():
    policy = shifted(2e-4)
    before = [each.detach().clone() for each in policy.parameters()]
    with pytest.raises(FirstRatio, match=r"differ by 0\.0002 in the mean and 0\.0002 at most \(allowed: 0\.0001"):
        trainer(policy, task=TASK).step()
    assert all(torch.equal(now, then) for now, then in zip(policy.parameters(), before))


@pytest.mark.parametrize("by", [0.0, 5e-5])
def test_rounding_is_let_through(by):
    assert "gradient_norm" in trainer(shifted(by), task=TASK).step()


def test_in_16_bits_more_is_let_through_but_not_everything():
    half = trainer(shifted(0.05).to(torch.bfloat16), task=TASK)
    assert half.step()["rounding"] == pytest.approx(0.05, abs=0.01)
    with pytest.raises(FirstRatio, match=r"allowed: 0\.06 in the mean, in 16 bits"):
        trainer(shifted(0.1).to(torch.bfloat16), task=TASK).step()


def test_it_is_tried_at_the_start_only_and_again_after_resuming():
    policy = shifted(0.0)
    first = trainer(policy, task=TASK)
    first.step()
    policy.by = 1.0
    first.step()
    again = trainer(policy, task=TASK)
    again.restore(*first.state())
    with pytest.raises(FirstRatio):
        again.step()
