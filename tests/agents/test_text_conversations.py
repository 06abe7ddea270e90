"""A language model holds conversations in words: what is sampled and what is scored are the same, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.warm_start import demonstrations
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
    turns, drifts = [], 0
    for row, question in enumerate(sampler.questions):
        tokens = [token for token in rollouts.tokens[row].tolist() if token >= 0]
        episode = follow(task, question, tokens)
        assert list(episode.tokens) == tokens
        assert rollouts.mask[row, : len(tokens)].tolist() == mask_of(task, question, tokens).tolist()
        turns.append(episode.turns)
        own = [token for token, mine in zip(tokens, episode.mask) if mine]
        drifts += task.tokenizer.encode(task.decode(own), add_special_tokens=False) != own
    # Scored by their ids, the tokens are as probable as when they were drawn: none was tokenised again in between.
    assert torch.allclose(sampler.logp(policy, rollouts), rollouts.logp.double(), atol=1e-9)
    assert replay(task, sampler.questions, rollouts.tokens.numpy()).reward.tolist() == pytest.approx(rewards.tolist())
    assert name != "guess" or max(turns) > 1
    assert drifts, "no row would have been changed by tokenising it again, so this test shows nothing"


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


def test_what_the_environment_says_is_nothing_to_learn():
    """Demonstrations of a conversation train the policy's own turns."""
    task = Calculator(tokenizer_with(QWEN))
    prompt, tokens, mask = demonstrations(task, task.questions(np.random.default_rng(0), 3))
    for row, question in enumerate(task.questions(np.random.default_rng(0), 3)):
        own, whole = task.decode(tokens[row][mask[row]].tolist()), task.decode(tokens[row].tolist())
        assert own.count("<tool_call>") == 1 and "<tool_response>" not in own and "<tool_response>" in whole
        assert tuple(prompt[row][prompt[row] >= 0].tolist()) == question.prompt
