"""A language model holds conversations in words: what is sampled and what is scored are the same, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.episode import follow, replay
from llm_mdp_envs.tasks.calculator import Calculator
from llm_mdp_envs.tasks.guess_number_text import GuessNumberText
from llm_mdp_envs.text_turns import TextTurns
from llm_mdp_envs.turns import mask_of
from tests.envs.chat_templates import QWEN, SMOLLM2, tokenizer_with

SMOLLM2_FOLDER = Path.home() / ".cache/llm-mdp/smollm2-135m-instruct"


def tiny_model(task: TextTurns) -> LanguageModelPolicy:
    """A random Llama, which ends its turns often enough for several in a response."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=task.vocab_size, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).double()
    head = torch.nn.Linear(16, task.vocab_size, bias=True, dtype=torch.float64)
    with torch.no_grad():
        head.weight.mul_(3)
        head.bias.zero_()
        head.bias[task.end_of_turn] = 4.0
    model.lm_head = head
    return LanguageModelPolicy(model, task.vocab_size, begin=None)


TASKS = {
    "guess": lambda: GuessNumberText(tokenizer_with(SMOLLM2), max_turns=4, horizon=400),
    "calculator": lambda: Calculator(tokenizer_with(QWEN), max_turns=3, horizon=400),
}


@pytest.mark.parametrize("name", TASKS)
def test_sampling_and_scoring_agree_over_several_turns(name):
    task = TASKS[name]()
    policy = tiny_model(task)
    sampler = TaskSampler(policy, task, torch.Generator().manual_seed(1), np.random.default_rng(1), 2)
    rollouts = sampler.rollouts(3)
    rewards = sampler.response_reward(rollouts)
    turns = []
    for row, question in enumerate(sampler.questions):
        tokens = [token for token in rollouts.tokens[row].tolist() if token >= 0]
        episode = follow(task, question, tokens)
        assert list(episode.tokens) == tokens
        assert rollouts.mask[row, : len(tokens)].tolist() == mask_of(task, question, tokens).tolist()
        turns.append(episode.turns)
    assert torch.allclose(sampler.logp(policy, rollouts), rollouts.logp.double(), atol=1e-9)
    assert replay(task, sampler.questions, rollouts.tokens.numpy()).reward.tolist() == pytest.approx(rewards.tolist())
    assert name != "guess" or max(turns) > 1


def test_what_is_sampled_survives_between_turns():
    """The rows hold, after the prompt, exactly the tokens that were drawn where the mask is True."""
    task = TASKS["guess"]()
    policy, drawn = tiny_model(task), []
    original = policy.sample

    def recording(prompt, n, **options):
        rollouts = original(prompt, n, **options)
        drawn.append((options.get("prefix"), rollouts.tokens.clone()))
        return rollouts

    policy.sample = recording
    sampler = TaskSampler(policy, task, torch.Generator().manual_seed(2), np.random.default_rng(2), 1)
    rollouts = sampler.rollouts(1)
    assert rollouts.mask[0].any() and drawn
    for prefix, tokens in drawn:
        start = 0 if prefix is None else int((prefix[0] >= 0).sum())
        own = [token for token in tokens[0, start:].tolist() if token >= 0]
        assert rollouts.tokens[0, start : start + len(own)].tolist() == own
        assert bool(rollouts.mask[0, start : start + len(own)].all())


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2_FOLDER.is_dir(), reason=f"no SmolLM2 in {SMOLLM2_FOLDER}")
def test_smollm2_guesses_a_number():
    from llm_mdp_agents.lm.loading import load_policy, tokenizer_of

    task = GuessNumberText(tokenizer_of(SMOLLM2_FOLDER), highest=10, max_turns=3, horizon=160)
    policy = load_policy(SMOLLM2_FOLDER, tokenizer=task.tokenizer)
    sampler = TaskSampler(policy, task, torch.Generator().manual_seed(0), np.random.default_rng(0), 1)
    rollouts = sampler.rollouts(4)
    assert torch.allclose(sampler.logp(policy, rollouts), rollouts.logp.double(), atol=1e-3)
    assert (rollouts.mask.sum(-1) < (rollouts.tokens >= 0).sum(-1)).any()
