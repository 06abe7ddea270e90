"""Where segments begin if nobody says: a bounded number of them however long responses are, and the ends of sentences
by the words of a tokenizer."""

import numpy as np
import pytest
import torch

from llm_mdp.estimators.boundaries import AfterTokens, EveryNTokens
from llm_mdp.exact.instances import random_instance
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.base import Agent
from llm_mdp_agents.segments import SEGMENTS, sentence_ends
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.task import Scores, Task
from llm_mdp_envs.tasks.synthetic import Ngram, Tabular, TokenMDPTask
from llm_mdp_envs.text import TextTask

NAMES = ("trepo", "vineppo", "ma-rlhf")


def of_horizon(horizon: int) -> Task:
    return Ngram(vocab_size=3, horizon=horizon, eos=None)


def make(name: str, task: Task, **options) -> Agent:
    policy = NgramPolicy.random(task.vocab_size, 1, torch.Generator().manual_seed(0))
    return AGENTS[name](AGENTS[name].Config(**options), policy, task)


@pytest.mark.parametrize("horizon, length", [(1, 1), (4, 1), (8, 1), (9, 2), (64, 8), (100, 13), (256, 32)])
def test_by_default_a_response_has_at_most_eight_segments(horizon, length):
    agent = make("trepo", of_horizon(horizon))
    assert agent.boundary == EveryNTokens(length) and -(-horizon // length) <= SEGMENTS
    assert make("trepo", of_horizon(horizon), every=1).boundary == EveryNTokens(1), "what is said holds"
    for name in ("vineppo", "ma-rlhf"):
        assert make(name, of_horizon(horizon)).boundary == EveryNTokens(max(2, length))


def test_it_is_said_how_long_segments_are_where_that_was_chosen():
    (note,) = make("trepo", of_horizon(64)).notes
    assert note == "segments of 8 tokens, for responses may have 64: at most 8 a response (option every)"
    assert make("trepo", of_horizon(64), every=8).notes == [] == make("trepo", of_horizon(4)).notes


@pytest.mark.parametrize("name, samples", [("trepo", 2), ("vineppo", 9)])
def test_the_branches_of_a_step_are_counted_and_bounded(name, samples):
    task = of_horizon(64)
    agent = make(name, task)
    trainer = Trainer(agent, task, agent.policy, TrainConfig(prompts_per_step=3, signal_every=0))
    before = trainer.sampler.cost.rewards
    branches = trainer.step()["branches"]
    assert branches == 3 * SEGMENTS * samples == trainer.sampler.cost.rewards - before - 3


class Words(TextTask):
    """In bytes."""

    def draw(self, generator):
        return "q", None

    def grade(self, replies):
        return Scores(np.array([float(len(reply.text)) for reply in replies]))


def test_sentences_end_by_the_words_of_the_tokenizer():
    """The byte tokenizer: the characters themselves, and no special token."""
    task = Words(horizon=16)
    assert sorted(sentence_ends(task)) == sorted([ord(each) for each in ".!?\n"])
    boundary = make("trepo", task, boundary="sentences").boundary
    assert boundary == AfterTokens(sentence_ends(task), 2), "an eighth of the horizon apart"
    assert make("trepo", task, boundary="sentences", every=1).boundary == AfterTokens(sentence_ends(task))


def test_words_that_end_a_sentence_may_be_closed_by_marks():
    """A tokenizer of whole words."""

    class Vocabulary(Tabular):
        words = ("no", "end.", 'said."', "really?)", "line\n", "x.y", "1.5", "...", '"', "  ", "好。", " so! ")

        def __init__(self):
            super().__init__(len(self.words), 2, eos=0)
            self.tokenizer = self

        def decode(self, tokens):
            return "".join(self.words[token] for token in tokens)

    assert sentence_ends(Vocabulary()) == (1, 2, 3, 4, 7, 10, 11)


def test_a_task_without_words_has_no_sentences():
    with pytest.raises(
        ValueError, match=r'boundary is "sentences", but Tabular has no tokenizer; take boundary "every"'
    ):
        make("vineppo", Tabular(), boundary="sentences")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"separators": (1,)}, r'separators are \(1,\), but boundary is "every", which has none'),
        ({"boundary": "random", "every": 3}, r'every is 3, but boundary is "random", whose steps are drawn'),
        ({"every": -2}, r"every is -2; a segment has at least 1 token"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_options_without_effect_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, Tabular(), **options)


@pytest.mark.parametrize("name", ["trepo", "vineppo"])
def test_separators_some_tokens_apart_leave_no_bias(name):
    instance = random_instance(3, 4, gamma=0.9, n_prompts=2, seed=3)
    p, config = Problem(instance), AGENTS[name].Config(boundary="separators", separators=(1, 2), every=2)
    agent = AGENTS[name](config, instance.policy, TokenMDPTask(instance.mdp))
    assert exact_certificate(agent, p.enumeration, p.target("reward")).verdict == "unbiased"
