"""What every registered environment must do: Gymnasium's and Stable-Baselines3's checkers, seeds, restarts, equal
rewards, no leaks."""

import pickle
import re
import struct
import warnings
from functools import cache

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from llm_mdp.own import UsageError
from llm_mdp_envs import Question, Scores, Task, TokenEnv, TokenVectorEnv, check_task, registered
from llm_mdp_envs.episode import FINISH, follow, replay
from llm_mdp_envs.registry import ENTRIES, README, Entry, Registered, make_task, readme
from llm_mdp_envs.wrappers import OneHot

LISTED = {one.id: one for one in registered()}
LARGE = 5_000
"""Vocabularies beyond this (language models' own) are left out where one-hot vectors would be needed."""
STEPS = 200
"""Most steps that a test takes of an episode, some of which are long."""

every_id = pytest.mark.parametrize("id", LISTED)


@cache
def task_of(id: str) -> Task:
    """One for all tests of an id: tasks have no state, and some take seconds to make."""
    entry = next(entry for entry in ENTRIES if entry.id == id)
    return make_task(entry.task, **entry.kwargs)


@pytest.fixture(scope="module", autouse=True)
def closed_tasks():
    yield
    for id, one in LISTED.items():
        if not one.unavailable:
            task_of(id).close()


def skip_unless_available(id: str) -> None:
    if LISTED[id].unavailable:
        pytest.skip(f"{id} is not available here: {LISTED[id].unavailable}")


def make(id: str) -> TokenEnv:
    skip_unless_available(id)
    return TokenEnv(task_of(id))


def make_vec(id: str, num_envs: int = 4) -> TokenVectorEnv:
    skip_unless_available(id)
    return TokenVectorEnv(task_of(id), num_envs)


def policy_token(mask: np.ndarray, rng: np.random.Generator, task: Task, hurry: float = 0.1) -> int:
    """A token at random, among those allowed; in a hurry, one that ends the response or the turn."""
    closing = [token for token in (task.eos, task.end_of_turn) if token is not None and mask[token]]
    if closing and rng.random() < hurry:
        return int(rng.choice(closing))
    return int(rng.choice(np.flatnonzero(mask)))


def finish_episode(env: TokenEnv, info: dict, rng: np.random.Generator, hurry: float = 0.1) -> tuple[tuple, float]:
    """Random steps to the end, or until most of the horizon would be spent: then the end token. Last result, and the
    sum of rewards."""
    total = 0.0
    for number in range(env.task.horizon):
        token = policy_token(info["action_mask"], rng, env.task, 1.0 if number > STEPS else hurry)
        result = env.step(token)
        total += result[1]
        info = result[-1]
        if result[2]:
            return result, total
    raise AssertionError(f"{env} went on for {env.task.horizon} steps of its policy, its horizon, without an end.")


def response(env: TokenEnv) -> list[int]:
    return list(env.clone_state().episode.tokens)


# --- the list ---


def test_the_list_is_complete():
    assert list(LISTED) == [entry.id for entry in ENTRIES] and len(set(LISTED)) == len(LISTED)
    assert all(re.fullmatch(r"llm_mdp/\w+-v\d", id) for id in LISTED)
    assert {"Tabular", "Ngram", "Needle", "Credit", "Forked", "LengthBias", "RareSuccess", "Arithmetic"} <= {
        id.removeprefix("llm_mdp/").removesuffix("-v0") for id in LISTED
    }


@every_id
def test_a_listing_says_what_gymnasium_makes(id):
    skip_unless_available(id)
    env, vector, one = gym.make(id).unwrapped, gym.make_vec(id, num_envs=2), LISTED[id]
    assert type(env) is TokenEnv and type(vector) is TokenVectorEnv and type(vector.task) is one.task
    assert type(env.task) is one.task and env.action_space.n == one.vocab_size and env.task.max_turns == one.turns
    assert one.separates and "\n" not in one.separates and one.task.__doc__
    env.close()
    vector.close()


@every_id
def test_nothing_is_wrong_with_its_task(id):
    skip_unless_available(id)
    check_task(task_of(id))


@pytest.mark.parametrize(
    "path", ["llm_mdp_envs.arithmetic:Arithmetic", "llm_mdp_envs.synthetic:Tabular", "llm_mdp_envs.code:Code"]
)
def test_a_path_of_before_the_move_is_answered_with_the_new_one(path):
    module, _, name = path.removeprefix("llm_mdp_envs.").partition(":")
    with pytest.raises(ValueError, match=rf"write llm_mdp_envs\.tasks\.{module}:{name}"):
        make_task(path)


@pytest.mark.parametrize("path", ["llm_mdp_envs.tasks.arithmetic:Sums", "llm_mdp_envs.nothing:Sums", "nothing:Sums"])
def test_a_path_that_leads_nowhere_is_refused_in_words(path):
    with pytest.raises(UsageError, match=r"Sums|nothing"):
        make_task(path)


def test_the_page_is_what_the_registry_says():
    missing = [f"{one.id}: {one.unavailable}" for one in LISTED.values() if one.unavailable]
    if missing:
        pytest.skip(f"not everything is available here: {missing}")
    up_to_date = (
        README.read_text(encoding="utf-8") == readme()
    )  # not in the assert: pytest would compare the pages for minutes
    assert up_to_date, "run `python -m llm_mdp_envs.registry`"


def test_what_lacks_a_dependency_is_listed_with_the_remedy(monkeypatch):
    entry = Entry("llm_mdp/Absent-v0", "no_such_package.task:Absent", extra="text")
    monkeypatch.setattr("llm_mdp_envs.registry.ENTRIES", (*ENTRIES[:1], entry))
    first, absent = registered()
    assert not first.unavailable
    assert absent == Registered(
        "llm_mdp/Absent-v0", None, unavailable="No module named 'no_such_package'; pip install 'llm-mdp[text]'"
    )
    assert "not available here: No module named" in readme()


# --- Gymnasium's and Stable-Baselines3's own checks ---


@every_id
def test_gymnasiums_check(id):
    skip_unless_available(id)
    env = gym.make(id).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(env)
    env.close()


@every_id
def test_stable_baselines3s_check(id):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", reason="pip install stable-baselines3")
    if LISTED[id].vocab_size > LARGE:
        pytest.skip(f"one-hot observations over {LISTED[id].vocab_size} tokens are of no use to SB3")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        checker.check_env(OneHot(make(id)))


@every_id
def test_vector_environment(id):
    """Spaces, shapes, types, and Gymnasium's own vector wrappers on top."""
    env = make_vec(id)
    assert isinstance(env, TokenVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert (
        env.single_observation_space == make(id).observation_space and env.single_action_space == make(id).action_space
    )
    wrapped = DictInfoToList(RecordEpisodeStatistics(env))
    observation, info = wrapped.reset(seed=0)
    rng, ended = np.random.default_rng(0), np.zeros(4, dtype=bool)
    for _ in range(30):
        assert observation in env.observation_space and len(info) == 4
        action = np.array([policy_token(mask, rng, env.task, 0.3) for mask in env.action_masks()])
        observation, reward, terminated, truncated, info = wrapped.step(action)
        assert reward.shape == terminated.shape == truncated.shape == (4,)
        assert reward.dtype == np.float64 and terminated.dtype == truncated.dtype == bool and not truncated.any()
        for row in range(4):
            assert ("finish" in info[row]) == ("episode" in info[row]) == terminated[row]
            if ended[row]:
                assert (
                    reward[row] == 0
                    and not terminated[row]
                    and (observation[row, env.task.prompt_length :] == -1).all()
                )
        ended = terminated


# --- seeds ---


@every_id
def test_seeds_decide_everything(id):
    def run(seed):
        env, rng = make(id), np.random.default_rng(7)
        out = []
        for number in range(3):
            observation, info = env.reset(seed=seed if number == 0 else None)
            out.append((observation, *finish_episode(env, info, rng, 0.4)))
        return out

    np.testing.assert_equal(run(11), run(11))


@every_id
def test_seeds_decide_everything_in_vectors(id):
    def run(seed):
        env, rng = make_vec(id), np.random.default_rng(7)
        out = [env.reset(seed=seed)]
        for _ in range(15):
            out.append(env.step(np.array([policy_token(mask, rng, env.task, 0.4) for mask in env.action_masks()])))
        return out

    np.testing.assert_equal(run(11), run(11))


# --- rewards ---


@every_id
def test_stepped_vectorised_and_replayed_rewards_are_equal(id):
    """Of the same questions and random actions; the conversation's replies, ends and parts as well."""
    n, single, vector = 6, make(id), make_vec(id, num_envs=6)
    generator, rng = np.random.default_rng(3), np.random.default_rng(4)
    questions = [single.task.question(generator) for _ in range(n)]
    rows, totals, results, actions = [], [], [], []
    for question in questions:
        _, info = single.reset(options={"question": question})
        result, total = finish_episode(single, info, rng)
        rows.append(result[0][single.task.prompt_length :])
        actions.append(result[0][single.task.prompt_length :][single.mask].tolist())
        results.append(result)
        totals.append(total)
    vector.reset(seed=0, options={"questions": questions})
    vectorised, going, step = np.zeros(n), np.ones(n, dtype=bool), 0
    while going.any():
        action = np.array([own[step] if step < len(own) else 0 for own in actions])
        action = np.where(going, action, [int(np.flatnonzero(mask)[0]) for mask in vector.action_masks()])
        observation, reward, terminated, _, info = vector.step(action)
        vectorised += reward * going
        for row in np.flatnonzero(terminated & going):
            np.testing.assert_array_equal(observation[row], results[row][0])
            assert info["finish"][row] == results[row][-1]["finish"]
            assert {name: part[row] for name, part in info.get("parts", {}).items() if name[0] != "_"} == results[row][
                -1
            ].get("parts", {})
        going, step = going & ~terminated, step + 1
    scores = replay(single.task, questions, np.array(rows))
    np.testing.assert_allclose(vectorised, totals, rtol=0, atol=1e-12)
    np.testing.assert_allclose(scores.reward, totals, rtol=0, atol=1e-12)
    for name, part in scores.parts.items():
        np.testing.assert_allclose(part, [result[-1]["parts"][name] for result in results], rtol=0, atol=1e-12)
    if scores.parts:
        np.testing.assert_allclose(sum(scores.parts.values()), totals, rtol=0, atol=1e-9)


# --- restarts ---


@every_id
def test_restarting_from_a_prefix_equals_continuing(id):
    env, rng = make(id), np.random.default_rng(5)
    for seed in range(4):
        _, info = env.reset(seed=seed)
        question = env.clone_state().question
        result, _ = finish_episode(env, info, rng, 0.05)
        whole, mask = response(env), env.mask
        cuts = [cut for cut in range(len(whole)) if follow(env.task, question, whole[:cut]).finish is None]
        cut = int(rng.choice(cuts))
        again, info = env.reset(options={"question": question, "prefix": whole[:cut]})
        own = [token for token, mine in zip(whole, mask) if mine][int(env.mask.sum()) :]
        for token in own:
            again, *outcome, info = env.step(token)
        np.testing.assert_array_equal(again, result[0])
        np.testing.assert_array_equal(env.mask, mask)
        if own:
            np.testing.assert_equal([*outcome, info], list(result[1:]))


@every_id
def test_clones_go_on_alike(id):
    env, rng = make(id), np.random.default_rng(6)
    _, info = env.reset(seed=2)
    result = env.step(policy_token(info["action_mask"], rng, env.task, 0.0))
    if result[2]:
        _, info = env.reset()
    state = env.clone_state()
    outcomes = []
    for _ in range(2):
        _, info = env.restore_state(state)
        outcomes.append((*finish_episode(env, info, np.random.default_rng(8)), env.reset()))
    np.testing.assert_equal(*outcomes)


# --- what users get wrong ---


@every_id
def test_bad_arguments_get_one_sentence(id):
    env = make(id)
    with pytest.raises(ResetNeeded, match="call reset first"):
        env.step(0)
    env.reset(seed=0)
    last = env.task.vocab_size - 1
    for action, error, message in [
        (env.task.vocab_size, ValueError, f"outside the vocabulary 0 … {last}"),
        (-1, ValueError, f"outside the vocabulary 0 … {last}"),
        (0.5, TypeError, "a token is a whole number"),
        ("a", TypeError, "a token is a whole number"),
    ]:
        with pytest.raises(error, match=re.escape(message)) as caught:
            env.step(action)
        assert "\n" not in str(caught.value)
    for options in ({"promt": [0]}, {"prefix": [last + 1]}, {"question": 0}, {"prompt": [last + 1]}):
        with pytest.raises((ValueError, TypeError), match="options"):
            env.reset(options=options)
    if env.task.eos is not None and env.task.eos != env.task.end_of_turn:
        with pytest.raises(ValueError, match="is a complete response"):
            env.reset(options={"prefix": [env.task.eos]})
    name = type(env.task).__name__
    for making in (gym.make, gym.make_vec):
        with pytest.raises(TypeError, match=f"{name} has no argument 'no_such_argument'; it takes .*") as caught:
            making(id, no_such_argument=1)
        assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="render_mode is 'rgb_array'; tokens have 'ansi', 'human' or None"):
        assert gym.make(id, render_mode="rgb_array").render_mode is None


# --- no leaks ---

CANARY = -6.0221408123456789e23


class Guarded(Task):
    """The same task, with a canary in every secret."""

    def __init__(self, task: Task):
        self.inner = task
        for name in ("vocab_size", "eos", "horizon", "prompt_length", "end_of_turn", "max_turns"):
            setattr(self, name, getattr(task, name))

    def question(self, generator):
        inner = self.inner.question(generator)
        return Question(inner.prompt, (CANARY, inner))

    def score(self, questions, tokens, mask) -> Scores:
        return self.inner.score([question.secret[1] for question in questions], tokens, mask)

    def reply(self, question, tokens):
        return self.inner.reply(question.secret[1], tokens)

    def action_mask(self, question, tokens):
        return self.inner.action_mask(question.secret[1], tokens)

    def decode(self, tokens):
        return self.inner.decode(tokens)


def has_canary(*things) -> bool:
    everything = b"".join(pickle.dumps(thing) + repr(thing).encode() + str(thing).encode() for thing in things)
    return any(needle in everything for needle in (struct.pack("<d", CANARY), struct.pack(">d", CANARY), b"6.02214081"))


@every_id
def test_no_secret_comes_out(id):
    """Of observations, rewards, infos, renders, or the environment's own text; single and in vectors."""
    task = Guarded(make(id).task)
    env, rng = TokenEnv(task, "ansi"), np.random.default_rng(9)
    observation, info = env.reset(seed=0)
    assert has_canary(env.clone_state().question.secret)
    assert not has_canary(repr(env), str(env), observation, info, env.render(), repr(env.clone_state().episode))
    result, _ = finish_episode(env, info, rng)
    assert not has_canary(result, env.render())
    vector = TokenVectorEnv(task, 3, "ansi")
    out = [repr(vector), vector.reset(seed=0)]
    for _ in range(10):
        out += [
            vector.step(np.array([policy_token(mask, rng, task, 0.4) for mask in vector.action_masks()])),
            vector.render(),
        ]
    assert not has_canary(*out)


def test_make_task_names_what_is_wrong():
    with pytest.raises(
        TypeError,
        match=r"Arithmetic has no argument 'digit'; it takes operators, digits, scratchpad, reward, restricted",
    ):
        make_task("llm_mdp_envs.tasks.arithmetic:Arithmetic", digit=2)


def test_finishes_are_named():
    assert FINISH == ("eos", "horizon", "environment")


@pytest.mark.parametrize(
    ("id", "argument", "words"),
    [
        ("Tabular", "vocabsize", "did you mean vocab_size?"),
        ("Ngram", "orders", "did you mean order?"),
        ("Arithmetic", "vocab_size", "Arithmetic has no argument 'vocab_size'; it takes operators, digits"),
        # Parameters of what makes a task are arguments like any other.
        ("Consultation", "path", "Consultation has no argument 'path'; it takes knowledge_base"),
        ("GuessNumber", "digits", "GuessNumber has no argument 'digits'; it takes"),
    ],
)
def test_unknown_and_foreign_arguments(id, argument, words):
    with pytest.raises(TypeError, match=re.escape(words)):
        gym.make(f"llm_mdp/{id}-v0", **{argument: 3})


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (5, "task is 5; it must be module:class"),
        (None, "task is None; it must be module:class"),
        ("Tabular", "task is 'Tabular'; it must be module:class"),
        ("nowhere:Tabular", "module 'nowhere' cannot be imported"),
        ("llm_mdp_envs.tasks.synthetic:Nothing", "llm_mdp_envs.tasks.synthetic has no 'Nothing'; it defines"),
    ],
)
def test_the_place_of_a_task_is_no_argument_to_play_with(task, words):
    """`gym.make` hands on whatever it is given, the entry's own `task` too."""
    with pytest.raises(ValueError, match=words):
        gym.make("llm_mdp/Tabular-v0", task=task)
