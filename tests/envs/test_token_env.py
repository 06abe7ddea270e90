"""The token environment: who writes what, when it ends, restarts, what users get wrong, and that hidden rewards stay
hidden."""

import pickle
import struct

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_mdp.mdp.hidden_rewards import PositionReward
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.evidence import Finish
from llm_mdp_envs import Question, Scores, Task, TokenEnv, TokenVectorEnv
from llm_mdp_envs.episode import FINISH, follow
from llm_mdp_envs.tasks.synthetic import Tabular, TokenMDPTask


class Parrot(Task):
    """Three turns. After each (token 1) the environment repeats the turn's last word twice and says 5; to the word 4 it
    has no answer.

    The reward is 1 for every token of the policy and 10 for every 5, reported apart.
    """

    vocab_size, eos, end_of_turn, horizon, prompt_length, max_turns = 6, 0, 1, 10, 2, 3

    def question(self, generator):
        return Question((int(generator.integers(2, 6)),), "secret")

    def reply(self, question, tokens):
        word = tokens[-2] if len(tokens) > 1 else 3
        return None if word == 4 else (word, word, 5)

    def score(self, questions, tokens, mask):
        words, fives = mask.sum(1).astype(float), 10.0 * ((tokens == 5) & ~mask).sum(1)
        return Scores(words + fives, {"words": words, "fives": fives})


class Rising(Task):
    """Every token must be larger than the one before; the reward is the sum. Token 0 is always allowed and ends."""

    vocab_size, eos, horizon, prompt_length = 5, 0, 3, 1

    def question(self, generator):
        return Question((int(generator.integers(1, 3)),))

    def action_mask(self, question, tokens):
        mask = (np.arange(5) > (tokens[-1] if tokens else question.prompt[-1])).astype(np.int8)
        mask[0] = 1
        return mask

    def score(self, questions, tokens, mask):
        return Scores(np.where(mask, tokens, 0).sum(1).astype(float))


class Revealing(Rising):
    """The same, every token paid at once."""

    reveals_token_rewards = True

    def token_rewards(self, questions, tokens, mask):
        return np.where(mask, tokens, 0).astype(float)


def play(env, tokens):
    """Steps until the end; returns the last step's result and all rewards."""
    rewards = []
    for token in tokens:
        result = env.step(token)
        rewards.append(result[1])
        if result[2]:
            break
    return result, rewards


def started(task, **options):
    env = TokenEnv(task)
    env.reset(seed=0, options=options)
    return env


# --- an episode ---


def test_finish_names_are_those_of_the_core():
    assert tuple(finish.name.lower() for finish in Finish) == FINISH


def test_one_turn_by_hand():
    env = TokenEnv(Rising())
    observation, info = env.reset(options={"question": Question((2,))})
    assert observation.tolist() == [2, -1, -1, -1] and observation.dtype == np.int64
    assert info["action_mask"].tolist() == [1, 0, 0, 1, 1] == env.action_masks().tolist()
    observation, reward, terminated, truncated, info = env.step(3)
    assert (observation.tolist(), reward, terminated, truncated) == ([2, 3, -1, -1], 0.0, False, False)
    assert "finish" not in info and "parts" not in info
    observation, reward, terminated, truncated, info = env.step(np.int64(0))
    assert (observation.tolist(), reward, terminated, truncated) == ([2, 3, 0, -1], 3.0, True, False)
    assert info["finish"] == "eos" and "parts" not in info and "mask" not in info
    assert env.mask.tolist() == [True, True, False]


def test_the_horizon_terminates():
    env = TokenEnv(Tabular(vocab_size=3, horizon=2, eos=None))
    env.reset(seed=0)
    (_, _, terminated, truncated, info), _ = play(env, [1, 2])
    assert terminated and not truncated and info["finish"] == "horizon"


def test_turns_by_hand():
    env = started(Parrot(), question=Question((3,)))
    env.step(2)
    observation, reward, terminated, _, info = env.step(1)
    assert observation.tolist() == [-1, 3, 2, 1, 2, 2, 5, -1, -1, -1, -1, -1] and not terminated and reward == 0
    assert info["mask"].tolist() == [True, True, False, False, False] + [False] * 5
    assert env.mask.tolist() == info["mask"].tolist()
    (observation, reward, terminated, _, info), _ = play(env, [4, 1])
    assert terminated and info["finish"] == "environment"
    assert observation.tolist() == [-1, 3, 2, 1, 2, 2, 5, 4, 1, -1, -1, -1]
    assert reward == 14.0 and info["parts"] == {"words": 4.0, "fives": 10.0}


def test_the_environments_tokens_count_against_the_horizon_and_are_cut_there():
    env = started(Parrot(), question=Question((3,)))
    (observation, reward, _, _, info), _ = play(env, [2, 1, 2, 2, 1])
    assert observation[2:].tolist() == [2, 1, 2, 2, 5, 2, 2, 1, 2, 2]
    assert (
        info["finish"] == "horizon"
        and reward == 15.0
        and info["mask"].tolist() == [True] * 2 + [False] * 3 + [True] * 3 + [False] * 2
    )


def test_the_last_turn_needs_no_reply():
    class Short(Parrot):
        max_turns = 1

    (_, reward, terminated, _, info), _ = play(started(Short()), [2, 1])
    assert terminated and info["finish"] == "environment" and reward == 2.0


def test_a_turn_may_end_with_the_end_token():
    """As in chat templates, where one token closes every message: it ends the response only when no turns remain."""

    class Chat(Parrot):
        eos, max_turns = 1, 2

    env = started(Chat())
    assert not env.step(1)[2]
    (_, _, terminated, _, info), _ = play(env, [2, 1])
    assert terminated and info["finish"] == "eos"


def test_revealed_token_rewards_arrive_at_their_steps():
    question = Question((1,))
    assert play(started(Revealing(), question=question), [2, 4, 0])[1] == [2.0, 4.0, 0.0]
    assert play(started(Rising(), question=question), [2, 4, 0])[1] == [0.0, 0.0, 6.0]


def test_a_method_alone_reveals_nothing():
    class Modest(Revealing):
        reveals_token_rewards = False

    assert play(started(Modest(), question=Question((1,))), [2, 4, 0])[1] == [0.0, 0.0, 6.0]


# --- restarts ---


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=10), st.data())
def test_restarting_from_a_prefix_equals_continuing(tokens, data):
    """Wherever the response is cut, even within what the environment wrote."""
    question = Question((3,))
    one = started(Parrot(), question=question)
    result, _ = play(one, tokens)
    response = [token for token in result[0][2:].tolist() if token >= 0]
    cut = data.draw(st.integers(0, len(response) - 1))
    assume(follow(one.task, question, response[:cut]).finish is None)  # a reply that is due may fill the horizon
    two = TokenEnv(Parrot())
    observation, info = two.reset(options={"question": question, "prefix": response[:cut]})
    own = [token for token, mine in zip(response, one.mask) if mine]
    rest = own[int(two.mask.sum()) :]
    if rest:
        (observation, *outcome, info), _ = play(two, rest)
        assert outcome == list(result[1:4])
    np.testing.assert_array_equal(observation, result[0])
    np.testing.assert_array_equal(two.mask, one.mask)
    np.testing.assert_equal(info, result[-1])


def test_a_reply_that_is_due_is_written():
    env = TokenEnv(Parrot())
    for prefix in ([2, 1], [2, 1, 2], [2, 1, 2, 2, 5]):
        observation, info = env.reset(options={"question": Question((3,)), "prefix": prefix})
        assert observation[2:7].tolist() == [2, 1, 2, 2, 5] and info["mask"].sum() == 2


BAD_PREFIXES = [
    (Parrot, [2, 1, 3], r"prefix'\] has the token 3 at place 2, where the environment writes 2"),
    (Parrot, [2, 0], r"prefix'\] is a complete response \(it ended by eos\)"),
    (Parrot, [4, 1], r"complete response \(it ended by environment\)"),
    (Parrot, [2, 0, 2], r"goes on at place 2, after its end \(by eos\)"),
    (Parrot, [2, 6], r"prefix'\]\[1\] is 6, outside the vocabulary 0 … 5"),
    (Parrot, [-1], r"prefix'\]\[0\] is -1, outside"),
    (Rising, [2, 3, 4], r"complete response \(it ended by horizon\)"),
]


@pytest.mark.parametrize(("task", "prefix", "message"), BAD_PREFIXES)
def test_bad_prefixes(task, prefix, message):
    with pytest.raises(ValueError, match=message):
        started(task(), question=Question((3,)), prefix=prefix)


def test_a_failed_reset_leaves_the_episode_alone():
    env = started(Rising(), question=Question((2,)), prefix=[3])
    with pytest.raises(ValueError):
        env.reset(options={"prefix": [0]})
    assert env.step(4)[0].tolist() == [2, 3, 4, -1]


def test_clones_go_on_alike_and_so_does_the_generator():
    env = TokenEnv(Parrot())
    env.reset(seed=3)
    env.step(2)
    state = env.clone_state()
    first = [env.step(1)[0], env.step(0)[0], *[env.reset()[0] for _ in range(5)]]
    observation, info = env.restore_state(state)
    assert observation[2:].tolist() == [2] + [-1] * 9 and info["mask"].sum() == 1
    again = [env.step(1)[0], env.step(0)[0], *[env.reset()[0] for _ in range(5)]]
    np.testing.assert_array_equal(first, again)
    other = TokenEnv(Parrot())
    other.restore_state(state)
    np.testing.assert_array_equal(other.step(1)[0], first[0])
    assert "secret" not in repr(state)


def test_prompts_instead_of_questions():
    task = Tabular(n_prompts=3, vocab_size=3)
    env = started(task, prompt=[2])
    env.step(1)
    other = started(task, question=Question((2,), (2,)), prefix=[1])
    assert play(env, [0])[0][1] == play(other, [0])[0][1] != 0


# --- what users get wrong ---

BAD_ACTIONS = [
    (1.0, TypeError, r"the action is 1\.0; a token is a whole number, 0 … 5"),
    ("1", TypeError, r"the action is '1'"),
    (None, TypeError, r"the action is None"),
    (True, TypeError, r"the action is True"),
    (np.array([1, 2]), TypeError, r"the action is array"),
    (6, ValueError, r"the action is 6, outside the vocabulary 0 … 5"),
    (-1, ValueError, r"the action is -1, outside"),
]


@pytest.mark.parametrize(("action", "error", "message"), BAD_ACTIONS)
def test_bad_actions(action, error, message):
    env = started(Parrot())
    with pytest.raises(error, match=message):
        env.step(action)
    env.step(2)


def test_forbidden_tokens():
    env = started(Rising(), question=Question((2,)))
    with pytest.raises(
        ValueError,
        match=r"the action is 1, which the action mask forbids here; info\['action_mask'\] is 1 for 0, 3, 4\.",
    ):
        env.step(1)
    assert env.step(3)[0].tolist() == [2, 3, -1, -1]


def test_steps_outside_an_episode():
    env = TokenEnv(Rising())
    for call in (lambda: env.step(0), env.action_masks, env.clone_state):
        with pytest.raises(ResetNeeded, match="before reset; call reset first"):
            call()
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(ResetNeeded, match=r"the episode has ended \(by eos\); call reset"):
        env.step(0)


BAD_OPTIONS = [
    ({"prefx": []}, ValueError, r"options has the key 'prefx'; reset knows question, prompt, prefix"),
    ([], TypeError, r"options is \[\]; it must be a dict"),
    ({"question": (1,)}, TypeError, r"options\['question'\] is a tuple; it must be a Question of Rising"),
    ({"question": Question((9,))}, ValueError, r"options\['question'\]\.prompt\[0\] is 9, outside"),
    ({"question": Question((1, 1))}, ValueError, r"a prompt has 2 tokens; this task's prompt_length allows 1"),
    ({"prompt": [1], "question": Question((1,))}, ValueError, r"both 'question' and 'prompt'"),
    ({"prompt": [1]}, ValueError, r"Rising cannot tell from a prompt alone .* give options=\{'question'"),
    ({"prefix": "12"}, TypeError, r"options\['prefix'\] is '12'; it must be a sequence of tokens"),
    ({"prefix": [1.5]}, TypeError, r"options\['prefix'\]\[0\] is 1\.5; a token is a whole number"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        TokenEnv(Rising()).reset(options=options)


def test_bad_prompt_of_a_known_task():
    with pytest.raises(ValueError, match=r"the prompt \[1, 1\] is not among the 1 of this task"):
        started(Tabular(), prompt=[1, 1])


def test_bad_render_mode_and_state():
    with pytest.warns(UserWarning, match=r"render_mode is 'rgb_array'; tokens have 'ansi', 'human' or None"):
        env = TokenEnv(Rising(), "rgb_array")
    assert env.render_mode is None
    for junk in (3, ["ansi"], float("nan"), np.array(["ansi", "human"])):
        with pytest.raises(ValueError, match=r"render_mode is .*; choose 'ansi', 'human' or None"):
            TokenEnv(Rising(), junk)
    with pytest.raises(TypeError, match="restore_state got dict; give it what clone_state returned"):
        TokenEnv(Rising()).restore_state({})


@pytest.mark.parametrize(
    ("reward", "message"),
    [([np.nan], r"Bad\.score gave response 0 the reward nan"), ([1.0, 2.0], r"of shape \(2,\) for 1 responses")],
)
def test_bad_scores_stop_the_episode(reward, message):
    class Bad(Rising):
        def score(self, questions, tokens, mask):
            return Scores(np.array(reward))

    with pytest.raises(ValueError, match=message):
        started(Bad()).step(0)


def test_bad_replies_are_named():
    class Bad(Parrot):
        def reply(self, question, tokens):
            return (7,)

    with pytest.raises(ValueError, match=r"a token of Bad's reply is 7, outside the vocabulary 0 … 5"):
        started(Bad()).step(1)


# --- what people see ---


def test_render(capsys):
    env = TokenEnv(Rising(), "ansi")
    env.reset(options={"question": Question((1,))})
    env.step(3)
    assert env.render() == "1 ▸ 3" and capsys.readouterr().out == ""
    env = TokenEnv(Rising(), "human")
    env.reset(options={"question": Question((1,))})
    env.step(3)
    assert capsys.readouterr().out == "1 ▸\n1 ▸ 3\n"
    assert env.render() is None
    with pytest.warns(UserWarning, match="render needs a render mode"):
        assert TokenEnv(Rising()).render() is None


# --- hidden rewards stay hidden ---

CANARY = 1234.56789012345


def canary_task():
    """Hidden rewards are ± the canary, their sums are not."""
    weights = torch.zeros(4, 3, dtype=torch.float64)
    weights[0] += CANARY
    weights[1] -= CANARY - 0.5
    return TokenMDPTask(TokenMDP(3, None, 4, PositionReward(weights)))


def has_canary(*things) -> bool:
    """Does the canary appear in any byte of these, as a float64, a float32 or text?"""
    everything = b"".join(pickle.dumps(thing) + repr(thing).encode() + str(thing).encode() for thing in things)
    numbers = [struct.pack(code, sign * CANARY) for code in ("<d", ">d", "<f", ">f") for sign in (1, -1)]
    return any(needle in everything for needle in (*numbers, b"1234.5", b"1233.5"))


def everything_that_comes_out(env):
    """Of two episodes: observations, rewards, infos, renders, and the environment's own text."""
    out = [repr(env), str(env), env.reset(seed=1)]
    for _ in range(2):
        for _ in range(4):
            out += [env.step(env.action_space.sample()), env.render()]
        if isinstance(env.unwrapped, TokenEnv):
            out.append(env.reset())
        else:
            out.append(env.step(env.action_space.sample()))
    return out


@pytest.mark.parametrize("make", [lambda task: TokenEnv(task, "ansi"), lambda task: TokenVectorEnv(task, 3, "ansi")])
def test_no_byte_of_a_hidden_reward_comes_out(make):
    task = canary_task()
    assert CANARY in task.mdp.token_reward.weights
    out = everything_that_comes_out(make(task))
    assert 0.5 in np.concatenate([np.atleast_1d(one[1]) for one in out if isinstance(one, tuple) and len(one) == 5])
    assert not has_canary(*out)


class LeakyInfo(TokenEnv):
    def step(self, action):
        *result, info = super().step(action)
        tokens, mask = (torch.from_numpy(array) for array in self._arrays())
        return *result, info | {
            "debug": self.task.mdp.hidden_reward(torch.zeros(1, 0, dtype=torch.int64), tokens, mask).numpy()
        }


class LeakyReward(TokenEnv):
    def step(self, action):
        observation, _, *rest = super().step(action)
        tokens, mask = (torch.from_numpy(array) for array in self._arrays())
        reward = self.task.mdp.response_reward(torch.zeros(1, 0, dtype=torch.int64), tokens, mask)
        return observation, float(reward[0]), *rest


class LeakyRepr(TokenEnv):
    def __repr__(self):
        return f"LeakyRepr({self.task.mdp.token_reward.weights.tolist()})"


@pytest.mark.parametrize("leaky", [LeakyInfo, LeakyReward, LeakyRepr])
def test_the_search_finds_planted_leaks(leaky):
    assert has_canary(*everything_that_comes_out(leaky(canary_task(), "ansi")))


@pytest.mark.parametrize("make", [TokenEnv, TokenVectorEnv])
def test_closing_ends_what_the_task_holds(make):
    class Holding(Rising):
        closed = 0

        def close(self):
            self.closed += 1

    env = make(Holding())
    env.close()
    assert env.task.closed == 1
    make(Rising()).close()


def test_it_is_a_gymnasium_environment():
    assert isinstance(TokenEnv(Rising()), gymnasium.Env)
