"""A model may end its turn with any of several tokens: each ends a response in every place that steps, draws or
replays."""

import numpy as np
import pytest
import torch

from llm_mdp.sampling.evidence import Finish
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_envs.check import check_task
from llm_mdp_envs.episode import replay
from llm_mdp_envs.task import Question, Scores, Task, TaskError
from llm_mdp_envs.token_env import TokenEnv
from llm_mdp_envs.turns import play
from llm_mdp_envs.vector_env import TokenVectorEnv


class TwoEnds(Task):
    """Tokens 0 … 5; 4 and 5 both end a response."""

    vocab_size, eos, also_ends, horizon, prompt_length = 6, 4, (5,), 6, 1

    def question(self, generator):
        return Question((int(generator.integers(4)),))

    def score(self, questions, tokens, mask):
        return Scores((tokens >= 0).sum(1).astype(np.float64))


class TwoTurnEnds(TwoEnds):
    """The same with turns: 4 ends the response, 3 and 5 the turn."""

    end_of_turn, max_turns = 3, 3

    def reply(self, question, tokens):
        return (0, 3)


def steps(env, tokens):
    env.reset(seed=0)
    for number, token in enumerate(tokens, 1):
        _, reward, over, _, info = env.step(token)
        if over:
            return number, reward, info["finish"]
    return None


@pytest.mark.parametrize("end", [4, 5])
def test_either_token_ends_an_episode(end):
    check_task(TwoEnds())
    assert steps(TokenEnv(TwoEnds()), [0, 1, end, 2]) == (3, 3.0, "eos")
    scores = replay(TwoEnds(), [Question((0,))], np.array([[0, 1, end, -1, -1, -1]]))
    assert scores.reward.tolist() == [3.0]
    with pytest.raises(ValueError, match="after its end"):
        replay(TwoEnds(), [Question((0,))], np.array([[0, end, 1, 4, -1, -1]]))


@pytest.mark.parametrize("end", [4, 5])
def test_either_token_ends_an_episode_of_many(end):
    env = TokenVectorEnv(TwoEnds(), num_envs=2)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    _, reward, over, _, _ = env.step(np.array([end, 1]))
    assert over.tolist() == [True, False] and reward.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("end", [3, 5])
def test_either_token_hands_the_turn_over(end):
    task = TwoTurnEnds()
    check_task(task)
    tokens, mask = play(task, Question((0,)), [(1, end)])
    assert tokens.tolist() == [1, end, 0, 3] and mask.tolist() == [True, True, False, False]
    assert task.ends == (4,) and task.turn_ends == (3, 5)


@pytest.mark.parametrize("kind", ["table", "transformer"])
def test_drawing_stops_at_either(kind):
    generator = torch.Generator().manual_seed(0)
    policy = NgramPolicy.random(6, 1, generator) if kind == "table" else small_transformer(6, 8, width=16, layers=1)
    drawn = TaskSampler(policy, TwoEnds(), *streams([0]), prompts_per_batch=64).rollouts(1)
    last = drawn.tokens.gather(1, (drawn.mask.sum(1) - 1)[:, None])[:, 0]
    ended = drawn.finish == int(Finish.EOS)
    assert set(last[ended].tolist()) == {4, 5}
    assert bool((drawn.mask.sum(1)[~ended] == 6).all())
    inner = torch.isin(drawn.tokens, torch.tensor([4, 5])).sum(1)
    assert inner.tolist() == ended.long().tolist()


@pytest.mark.parametrize("wrong", [(6,), [5], ("5",)])
def test_other_ends_must_be_tokens(wrong):
    task = TwoEnds()
    task.also_ends = wrong
    with pytest.raises(TaskError, match="also_ends"):
        check_task(task)
