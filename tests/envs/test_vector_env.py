"""The vectorised token environment against Gymnasium's own vectorisation of the single one, and replay against both."""

import pickle
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs import Question, TokenEnv, TokenVectorEnv
from llm_mdp_envs.episode import replay
from llm_mdp_envs.task import Task
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.synthetic import Tabular
from tests.envs.test_token_env import Parrot, Revealing, Rising, play

N = 7


class OneQuestion(Parrot):
    def question(self, generator):
        return Question((3,))


class OneSum(Arithmetic):
    """The same question always, so that two ways of seeding cannot matter."""

    def draw(self, generator, n):
        return np.tile(np.array([[0, 4, 9]]), (n, 1))


class Generous(Revealing):
    """Its token rewards pay padding, too; nobody may get that."""

    def token_rewards(self, questions, tokens, mask):
        return tokens + 10.0


def one_question(task: type[Task]) -> Task:
    return type("One", (task,), {"question": lambda self, generator: Question((1,))})()


TASKS = {
    "tabular": lambda: Tabular(vocab_size=3, horizon=3),
    "no end token": lambda: Tabular(vocab_size=3, horizon=2, eos=None),
    "turns": OneQuestion,
    "token rewards": lambda: OneSum(digits=1, reward="token"),
    "token rewards of objects": lambda: one_question(Generous),
    "action masks": lambda: OneSum(digits=1, restricted=True),
    "action masks of objects": lambda: one_question(Rising),
}


def allowed(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One token a row among those allowed."""
    return (rng.random(mask.shape) * (mask > 0)).argmax(-1)


@pytest.mark.parametrize("name", TASKS)
def test_equal_to_gymnasiums_own_vectorisation(name):
    """Observations, rewards, ends and infos, over several episodes with autoreset."""
    ours = TokenVectorEnv(TASKS[name](), N)
    theirs = SyncVectorEnv([lambda: TokenEnv(TASKS[name]())] * N, autoreset_mode=AutoresetMode.NEXT_STEP)
    assert ours.observation_space == theirs.observation_space and ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    mine, its, finishes = ours.reset(seed=0), theirs.reset(seed=0), set()
    for _ in range(40):
        np.testing.assert_equal(mine[0], its[0])
        for info in (mine[-1], its[-1]):
            info.setdefault("finish", np.full(N, None))
            info.setdefault("_finish", np.zeros(N, dtype=bool))
        np.testing.assert_equal(mine[-1], its[-1])
        np.testing.assert_equal(ours.mask, theirs.get_attr("mask"))
        action = allowed(mine[-1]["action_mask"], rng)
        mine, its = ours.step(action), theirs.step(action)
        for a, b in zip(mine[1:4], its[1:4]):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        finishes |= set(mine[-1].get("finish", ()))
    assert {"eos", "horizon"} & finishes and (name != "turns" or "environment" in finishes)


def test_autoreset_is_next_step():
    env = TokenVectorEnv(Rising(), 2)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    env.reset(options={"questions": [Question((1,)), Question((2,))]})
    _, reward, terminated, truncated, info = env.step(np.array([0, 3]))
    assert reward.tolist() == [0, 0] and terminated.tolist() == [True, False] and not truncated.any()
    assert info["finish"].tolist() == ["eos", None] and info["_finish"].tolist() == [True, False]
    observation, reward, terminated, _, info = env.step(np.array([4, 4]))  # the 4 of the first is ignored
    assert observation[0, 1:].tolist() == [-1, -1, -1] and observation[1].tolist() == [2, 3, 4, -1]
    assert reward.tolist() == [0, 0] and terminated.tolist() == [False, False] and "finish" not in info
    _, reward, terminated, _, _ = env.step(np.array([0, 0]))
    assert reward.tolist() == [0, 7] and terminated.all()


def test_make_vec_uses_it():
    env = gym.make_vec("llm_mdp/Tabular-v0", num_envs=3, vocab_size=5)
    assert isinstance(env, TokenVectorEnv) and env.num_envs == 3 and env.single_action_space.n == 5
    with pytest.raises(TypeError, match="Tabular has no argument 'vocabulary'; it takes vocab_size, horizon"):
        gym.make_vec("llm_mdp/Tabular-v0", vocabulary=5)


def test_no_python_loop_over_environments(monkeypatch):
    """An ArrayTask is asked and scored a batch at a time."""
    calls = []
    env = TokenVectorEnv(Arithmetic(), 500)
    for name in ("draw", "prompts", "score_rows"):
        method = getattr(env.task, name)
        monkeypatch.setattr(env.task, name, lambda *args, method=method: (calls.append(1), method(*args))[1])
    env.reset(seed=0)
    steps = 20
    for action in np.random.default_rng(0).integers(16, size=(steps, 500)):
        env.step(action)
    assert 0 < len(calls) <= 2 + 3 * steps


def test_data_is_not_reused():
    env = TokenVectorEnv(OneSum(restricted=True), N)
    results = [env.reset(seed=0)]
    for _ in range(3):
        results.append(env.step(np.full(N, 2)))
    arrays = [[one[0], *one[1:-1], *one[-1].values()] for one in results]
    for i, first in enumerate(arrays):
        for second in arrays[:i]:
            for a in first:
                assert not any(np.shares_memory(a, b) for b in second)


@pytest.mark.parametrize("copy", [deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
def test_copies_go_on_alike_and_apart(copy):
    env = TokenVectorEnv(Parrot(), N)
    env.reset(seed=0)
    twin = copy(env)
    for action in np.random.default_rng(1).integers(6, size=(12, N)):
        np.testing.assert_equal(env.step(action), twin.step(action))


def test_seeds_decide_everything():
    def run(seed):
        env = TokenVectorEnv(Arithmetic(), N)
        out = [env.reset(seed=seed)[0]]
        for action in np.random.default_rng(1).integers(16, size=(10, N)):
            out.append(env.step(action)[0])
        return np.stack(out)

    np.testing.assert_array_equal(run(5), run(5))
    assert (run(5) != run(6)).any()


# --- restarts ---


@pytest.mark.parametrize("task", [OneQuestion, lambda: one_question(Rising), lambda: OneSum(digits=2)])
def test_prefixes_of_every_length(task):
    """As the single environment would begin."""
    single, prefixes = TokenEnv(task()), [[], [2], [2, 3], [3, 4], [], [2, 4], [4]]
    env = TokenVectorEnv(task(), N)
    question = task().question(np.random.default_rng(0))
    padded = [[*prefix, -1, -1] for prefix in prefixes]
    observation, info = env.reset(options={"questions": [question] * N, "prefixes": padded})
    action = allowed(info["action_mask"], np.random.default_rng(0))
    after = env.step(action)
    for row, prefix in enumerate(prefixes):
        first, single_info = single.reset(options={"question": question, "prefix": prefix})
        np.testing.assert_array_equal(observation[row], first)
        np.testing.assert_array_equal(info["action_mask"][row], single_info["action_mask"])
        result = single.step(action[row])
        np.testing.assert_array_equal(after[0][row], result[0])
        assert (after[1][row], after[2][row]) == result[1:3]


def test_bad_resets():
    env = TokenVectorEnv(Rising(), 2)
    with pytest.raises(ValueError, match=r"options\['prefixes'\] has 1 entries; there are 2 environments"):
        env.reset(options={"prefixes": [[]]})
    with pytest.raises(ValueError, match=r"options\['prefixes'\]\[1\] is a complete response"):
        env.reset(options={"prefixes": [[], [0]]})
    with pytest.raises(ValueError, match=r"options has the key 'prefix'; reset knows questions, prefixes"):
        env.reset(options={"prefix": []})
    with pytest.raises(TypeError, match=r"options\['questions'\]\[1\] is a int"):
        env.reset(options={"questions": [Question((1,)), 3]})
    with pytest.raises(ResetNeeded):  # what a failed reset left behind is no episode
        env.step(np.array([0, 0]))


# --- what users get wrong ---


def test_bad_actions():
    env = TokenVectorEnv(Rising(), 2)
    for call in (lambda: env.step(np.array([0, 0])), env.action_masks):
        with pytest.raises(ResetNeeded, match="before reset; call reset first"):
            call()
    env.reset(options={"questions": [Question((2,))] * 2})
    for action, error, message in [
        ([0, 5], ValueError, r"the action of environment 1 is 5, outside the vocabulary 0 … 4"),
        ([-1, 0], ValueError, r"the action of environment 0 is -1"),
        ([0, 1], ValueError, r"the action of environment 1 is 1, which the action mask forbids here"),
        ([0.0, 3.0], TypeError, r"actions are float64; tokens are whole numbers, 0 … 4"),
        ([True, False], TypeError, r"actions are bool"),
        ([3], ValueError, r"actions have shape \(1,\); 2 environments take \(2,\)"),
        (3, ValueError, r"actions have shape \(\)"),
    ]:
        with pytest.raises(error, match=message):
            env.step(np.array(action))
    assert env.step([3, 0])[0].tolist() == [[2, 3, -1, -1], [2, 0, -1, -1]]
    assert env.step(np.array([4, -1]))[0].tolist()[0] == [2, 3, 4, -1]  # what is ignored may be anything


@pytest.mark.parametrize("num_envs", [0, -1, 2.0, True, "3"])
def test_bad_numbers_of_environments(num_envs):
    with pytest.raises(ValueError, match=r"num_envs is .*; it must be a whole number of at least 1"):
        TokenVectorEnv(Rising(), num_envs)


def test_render():
    env = TokenVectorEnv(Rising(), 2, "ansi")
    env.reset(options={"questions": [Question((2,)), Question((1,))]})
    env.step(np.array([3, 2]))
    assert env.render() == ("2 ▸ 3", "1 ▸ 2")
    with pytest.warns(UserWarning, match="render_mode is 'human'; tokens have 'ansi' or None"):
        assert TokenVectorEnv(Rising(), 2, "human").render_mode is None
    with pytest.raises(ValueError, match="render_mode is 1; choose 'ansi' or None"):
        TokenVectorEnv(Rising(), 2, 1)
    with pytest.warns(UserWarning, match="render needs a render mode"):
        assert TokenVectorEnv(Rising(), 2).render() is None


# --- replay ---


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=10, max_size=10), min_size=1, max_size=4))
def test_replayed_conversations_are_worth_what_they_were(responses):
    rows, rewards = [], []
    for tokens in responses:
        env = TokenEnv(Parrot())
        env.reset(options={"question": Question((3,))})
        (observation, reward, *_), _ = play(env, tokens)
        rows.append(observation[2:])
        rewards.append(reward)
    scores = replay(Parrot(), [Question((3,))] * len(rows), np.array(rows))
    np.testing.assert_array_equal(scores.reward, rewards)
    np.testing.assert_array_equal(scores.parts["words"] + scores.parts["fives"], rewards)


def test_replay_takes_rows_shorter_than_the_horizon_and_leaves_episodes_alone():
    env = TokenVectorEnv(Rising(), 2)
    env.reset(options={"questions": [Question((2,))] * 2})
    assert env.replay([Question((1,))] * 3, np.array([[2, 0], [0, -1], [3, 0]])).reward.tolist() == [2, 0, 3]
    assert env.step(np.array([3, 4]))[0].tolist() == [[2, 3, -1, -1], [2, 4, -1, -1]]


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([[2, 0, 3]], ValueError, r"token_rows\[0\] goes on at place 2, after its end \(by eos\)"),
        ([[2, 3, -1]], ValueError, r"token_rows\[0\] has not ended after 2 tokens; only whole responses have a reward"),
        ([[2, -1, 0]], ValueError, r"token_rows\[0\]\[1\] is -1, outside the vocabulary"),
        ([[7, 0, -1]], ValueError, r"token_rows\[0\]\[0\] is 7, outside the vocabulary 0 … 4"),
        ([[-2, 0, -1]], ValueError, r"token_rows\[0\]\[0\] is -2"),
        ([[2, 0], [2, 0]], ValueError, r"token_rows have shape \(2, 2\); for 1 questions it is \(1, at most 3\)"),
        ([[1, 2, 3, 4]], ValueError, r"shape \(1, 4\)"),
        ([2, 0], ValueError, r"shape \(2,\)"),
        ([[2.0, 0.0]], TypeError, r"token_rows are float64"),
    ],
)
def test_bad_replays(rows, error, message):
    with pytest.raises(error, match=message):
        replay(Rising(), [Question((1,))], np.array(rows))


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([3], r"questions\[0\] is 3; it must be a Question of Tabular"),
        (None, "questions is None; it must be a sequence"),
    ],
)
def test_bad_questions_to_replay(questions, message):
    with pytest.raises(TypeError, match=message):
        replay(Tabular(), questions, np.array([[0]]))


def test_bad_replayed_conversations():
    for row, message in [
        ([2, 1, 3], "where the environment writes 2"),
        ([2, 1, 2, 2, 5], r"token_rows\[0\] has not ended after 5 tokens"),
    ]:
        with pytest.raises(ValueError, match=message):
            replay(Parrot(), [Question((3,))], np.array([row]))


def test_a_task_that_forbids_nothing_has_no_mask_to_make():
    """One number behind all of them: no N · V work, however many environments and tokens."""
    env = TokenVectorEnv(Tabular(vocab_size=3, horizon=3), N)
    _, info = env.reset(seed=0)
    for mask in (info["action_mask"], env.step(np.ones(N, dtype=np.int64))[-1]["action_mask"], env.action_masks()):
        assert mask.shape == (N, 3) and mask.dtype == np.int8 and mask.all()
        assert mask.strides == (0, 0) and not mask.flags.writeable
    assert env.single_action_space.sample(mask[0]) in range(3)
