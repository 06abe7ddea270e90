"""Other projects' rewards as tasks, and our tasks as TRL reward functions."""

import asyncio
import math

import numpy as np
import pytest

from llm_mdp_envs import Question, Scores, Task, TokenEnv
from llm_mdp_envs.adapters import CallableReward, TRLReward, VerlReward, as_trl_reward, pad_responses, text_of, trl_rows
from llm_mdp_envs.tasks.math_problems import Math

TRL_ROWS = [{"prompt": f"Write {n} letters.", "n": n, "unused": None} for n in (1, 2, 3)]
VERL_PROMPT = [{"role": "user", "content": "2+2?"}]
VERL_ROWS = [
    {"prompt": VERL_PROMPT, "data_source": "sums", "reward_model": {"ground_truth": "4"}, "extra_info": {"i": 7}}
]


def length(prompts, completions, completion_ids, n, **columns):
    """A reward function in TRL's form; its checks are what TRL promises."""
    assert (
        prompts == [f"Write {k} letters." for k in n]
        and columns["trainer_state"] is None
        and columns["unused"] == [None] * len(n)
    )
    assert [bytes(ids[:-1]).decode() for ids in completion_ids] == completions and {
        ids[-1] for ids in completion_ids
    } == {256}
    columns["log_metric"]("mean", 1.0)
    return [float(len(text) == k) for text, k in zip(completions, n)]


def polite(completions, **columns):
    return [0.5 if "please" in text else None for text in completions]


async def slow(completions):
    return [1.0 for _ in completions]


def responses(task, questions, texts):
    tokens = pad_responses([task.encode_response(text) for text in texts], task.horizon)
    return task.score(questions, tokens, tokens >= 0)


def asked(task, n):
    generator = np.random.default_rng(0)
    return [task.question(generator) for _ in range(n)]


def test_trl_functions_are_called_as_trl_calls_them():
    task = TRLReward(length, TRL_ROWS)
    questions = asked(task, 8)
    scores = responses(task, questions, ["ab"] * 8)
    assert scores.reward.tolist() == [float(q.secret.secret["n"] == 2) for q in questions] and set(scores.reward) == {
        0.0,
        1.0,
    }
    assert list(scores.parts) == ["length"]


def test_several_trl_functions_are_weighted_and_none_adds_nothing():
    task = TRLReward([length, polite, slow], TRL_ROWS, weights=[2.0, 4.0, 0.25])
    scores = responses(task, [task.ask("Write 2 letters.", TRL_ROWS[1])] * 2, ["ab", "please"])
    assert scores.parts["polite"].tolist() == [0.0, 2.0] and scores.parts["slow"].tolist() == [0.25, 0.25]
    assert scores.reward.tolist() == [2.25, 2.25] == sum(scores.parts.values()).tolist()


def test_conversations_are_given_as_conversations():
    def echo(prompts, completions, **columns):
        assert prompts[0][-1]["content"] == "Hi"
        return [float(completion == [{"role": "assistant", "content": "Hi"}]) for completion in completions]

    task = TRLReward(echo, [{"prompt": [{"role": "user", "content": "Hi"}]}])
    (question,) = asked(task, 1)
    assert task.decode(question.prompt) == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    assert responses(task, [question] * 2, ["Hi", "Ho"]).reward.tolist() == [1.0, 0.0]


def test_no_function_applies():
    questions = [TRLReward(polite, TRL_ROWS).ask("?", TRL_ROWS[0])] * 2
    with pytest.raises(ValueError, match="polite returned None for response 1, so it has no reward; set no_reward"):
        responses(TRLReward(polite, TRL_ROWS), questions, ["please", "now"])
    scores = responses(TRLReward(polite, TRL_ROWS, no_reward=-1.0), questions, ["please", "now"])
    assert scores.reward.tolist() == [0.5, -1.0] == sum(scores.parts.values()).tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, "1", [1.0]])
def test_a_bad_reward_names_the_function(bad):
    def broken(completions, **columns):
        return [0.0, bad]

    task = TRLReward(broken, TRL_ROWS)
    with pytest.raises(ValueError, match=r"broken returned .* for response 1; a reward must be a finite number"):
        responses(task, asked(task, 2), ["a", "b"])


@pytest.mark.parametrize("bad", [None, [1.0], 1.0, "ab", {0: 1.0, 1: 1.0}])
def test_a_wrong_number_of_rewards_names_the_function(bad):
    task = TRLReward(lambda completions, **columns: bad, TRL_ROWS)
    with pytest.raises(ValueError, match=r"<lambda> returned .*; it must return a list of 2 rewards"):
        responses(task, asked(task, 2), ["a", "b"])


def test_verl():
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        seen.append((data_source, extra_info))
        return {"score": float(solution_str == ground_truth), "acc": 3.0}

    task = VerlReward(compute_score, VERL_ROWS)
    scores = responses(task, asked(task, 2), ["4", "5"])
    assert scores.reward.tolist() == [1.0, 0.0] and scores.parts == {} and seen == [("sums", {"i": 7})] * 2
    assert responses(VerlReward(lambda **given: 0.5, VERL_ROWS), asked(task, 1), ["4"]).reward.tolist() == [0.5]


def rows_through_pandas(tmp_path):
    """verl's file, and what pandas makes of it: arrays of messages, arrays in mappings."""
    pandas = pytest.importorskip("pandas")
    row = VERL_ROWS[0] | {"extra_info": {"options": ["3", "4"], "scale": 0.5, "tools": [{"name": "add", "uses": [1]}]}}
    longer = row | {"prompt": [{"role": "system", "content": "Add.", "name": "host"}, *VERL_PROMPT]}
    pandas.DataFrame([longer]).to_parquet(tmp_path / "train.parquet")
    return longer, pandas.read_parquet(tmp_path / "train.parquet")


@pytest.mark.parametrize("form", ["file", "frame", "records", "array"])
def test_verl_rows_through_pandas_are_plain(tmp_path, form):
    row, frame = rows_through_pandas(tmp_path)
    assert isinstance(frame.iloc[0]["prompt"], np.ndarray)  # what makes the trouble
    seen = []

    def compute_score(data_source, solution_str, ground_truth, extra_info):
        seen.append(extra_info)
        return np.float32(solution_str == ground_truth)

    records = frame.to_dict("records")
    rows = {"file": str(tmp_path / "train.parquet"), "frame": frame, "records": records, "array": np.array(records)}[
        form
    ]
    task = VerlReward(compute_score, rows)
    (question,) = asked(task, 1)
    assert task.decode(question.prompt) == "<|system|>\nAdd.<|end|>\n<|user|>\n2+2?<|end|>\n<|assistant|>\n"
    assert task.rows[0]["prompt"] == row["prompt"], "a key that only the first message has is no key of the second"
    assert responses(task, [question], ["4"]).reward.tolist() == [1.0]
    assert seen == [row["extra_info"]] and type(seen[0]["tools"]) is list and type(seen[0]["scale"]) is float


def test_trl_rows_through_pandas_are_plain():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([{"prompt": "a", "gold": np.array([1, 2]), "weight": np.nan, "n": 3}])

    def check(completions, gold, weight, n):
        return [float(gold == [[1, 2]] and weight == [None] and type(n[0]) is int)]

    task = TRLReward(check, frame)
    assert responses(task, asked(task, 1), ["x"]).reward.tolist() == [1.0]


class Meeting:
    """Coroutines that wait for one another: awaited one by one, the first would wait for ever."""

    def __init__(self, expected):
        self.expected, self.arrived = expected, 0

    async def wait(self):
        self.arrived += 1
        while self.arrived < self.expected:
            await asyncio.sleep(0)


def test_coroutine_functions_are_awaited_together():
    meeting = Meeting(3)

    async def judge(data_source, solution_str, ground_truth, **more):
        await asyncio.wait_for(meeting.wait(), 60)
        return {"score": float(solution_str == ground_truth)}

    task = VerlReward(judge, VERL_ROWS)
    assert responses(task, asked(task, 3), ["4", "5", "4"]).reward.tolist() == [1.0, 0.0, 1.0]
    both = Meeting(2)

    async def one(completions):
        await asyncio.wait_for(both.wait(), 60)
        return [1.0 for _ in completions]

    async def other(completions):
        await asyncio.wait_for(both.wait(), 60)
        return [2.0 for _ in completions]

    task = TRLReward([one, polite, other], TRL_ROWS)
    assert responses(task, asked(task, 2), ["a", "please"]).reward.tolist() == [3.0, 3.5]


def test_coroutine_functions_where_a_loop_already_runs():
    """As in notebooks. A callable object and a coroutine function of two texts, too."""

    class Judge:
        async def __call__(self, solution_str, ground_truth):
            return float(solution_str == ground_truth)

    async def length_of(prompt, response):
        return len(response)

    async def notebook():
        verl, own = VerlReward(Judge(), VERL_ROWS), CallableReward(length_of, ["?"])
        scores = responses(verl, asked(verl, 2), ["4", "5"]), responses(own, asked(own, 2), ["a", "abc"])
        return [score.reward.tolist() for score in scores]

    assert asyncio.run(notebook()) == [[1.0, 0.0], [1.0, 3.0]]


def test_an_error_in_a_coroutine_function_is_the_users_own():
    async def broken(solution_str):
        raise KeyError("mine")

    task = VerlReward(broken, VERL_ROWS)
    with pytest.raises(KeyError, match="mine"):
        responses(task, asked(task, 2), ["4", "5"])


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"acc": 1}, 'dict without "score"'),
        (None, "returned None"),
        (math.nan, "returned nan"),
        (10**400, "returned 1000"),
        ("1", "returned '1'"),
        ({"score": [1]}, "returned"),
    ],
)
def test_a_bad_verl_score_names_the_function(result, words):
    def compute_score(**given):
        return result

    task = VerlReward(compute_score, VERL_ROWS)
    with pytest.raises(ValueError, match=f"compute_score .*{words}|compute_score {words}"):
        responses(task, asked(task, 1), ["4"])


def test_a_callable():
    env = TokenEnv(CallableReward(lambda prompt, response: len(prompt) + len(response) / 10, ["four"], horizon=3))
    env.reset(seed=0)
    assert [env.step(token)[1] for token in b"abc"] == [0.0, 0.0, 4.3]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TRLReward(length, []), "rows has no rows"),
        (lambda: TRLReward(length, [{"question": "?"}]), "rows\\[0\\] has no 'prompt', only 'question'"),
        (lambda: TRLReward(length, ["?"]), "rows\\[0\\] is '\\?'; each row must be an object"),
        (lambda: TRLReward(length, [{"prompt": 3}]), "must be a text or a list of messages"),
        (
            lambda: TRLReward(length, [{"prompt": "a", "n": 1}, {"prompt": "b"}]),
            "rows\\[1\\] has no 'n', which rows\\[0\\] has",
        ),
        (lambda: TRLReward([length, length], TRL_ROWS), "two reward functions have the same name"),
        (lambda: TRLReward([length], TRL_ROWS, weights=[1, 2]), "1 reward functions and 2 weights"),
        (lambda: VerlReward(len, [{**VERL_ROWS[0], "reward_model": {}}]), 'must hold a "ground_truth"'),
        (lambda: VerlReward("score", VERL_ROWS), "compute_score is 'score'; it must be a function"),
        (lambda: VerlReward(len, VERL_ROWS, split="train"), "split is 'train', but rows has no splits"),
        (lambda: TRLReward([], TRL_ROWS), "0 reward functions and 0 weights"),
        (lambda: TRLReward(None, TRL_ROWS), "functions is None; it must be a reward function or a list"),
        (lambda: TRLReward([length, 3], TRL_ROWS), "functions\\[1\\] is 3; it must be a function"),
        (lambda: TRLReward([length], TRL_ROWS, weights=[math.nan]), "weights\\[0\\] is nan"),
        (lambda: TRLReward([length], TRL_ROWS, weights=1.0), "weights is 1.0; it must be a list of numbers"),
        (lambda: TRLReward([length], TRL_ROWS, no_reward=math.inf), "no_reward is inf; it must be a finite number"),
        (lambda: CallableReward(None, ["a"]), "function is None; it must be a function"),
        (lambda: CallableReward(len, 3), "prompts is 3; it must be a list of texts"),
        (lambda: CallableReward(len, "Hello"), "prompts is 'Hello'; it must be a list of texts"),
    ],
)
def test_bad_arguments(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# --- our tasks elsewhere ---


class CountOnes(Task):
    """Any task will do, not only texts."""

    vocab_size, eos, horizon, prompt_length = 3, 2, 4, 1

    def question(self, generator):
        return Question((int(generator.integers(2)),), "secret")

    def score(self, questions, tokens, mask):
        return Scores(((tokens == 1) & mask).sum(-1) + 10.0 * np.array([one.prompt[0] for one in questions]))


def test_a_text_task_as_a_trl_reward():
    pytest.importorskip("math_verify", reason='needs math-verify: pip install "llm-mdp[math]"')
    task = Math()
    rows = trl_rows(task, 6, seed=1)
    reward = as_trl_reward(task)
    columns = {"question_seed": [row["question_seed"] for row in rows], "trainer_state": None}
    questions = [task.question(np.random.default_rng(row["question_seed"])) for row in rows]
    golds = [question.secret.secret for question in questions]
    assert [row["prompt"] for row in rows] == [question.secret.text for question in questions] and len({*golds}) > 2
    assert not any(f"#### {gold}" in str(row) for gold, row in zip(golds, rows))
    right = reward(
        prompts=[row["prompt"] for row in rows],
        completions=[f"#### {gold}" for gold in golds],
        completion_ids=None,
        **columns,
    )
    assert right == pytest.approx([1.1] * 6) and reward.__name__ == "Math_reward"
    wrong = reward([row["prompt"] for row in rows], [[{"role": "assistant", "content": "#### 123456"}]] * 6, **columns)
    assert wrong == pytest.approx([0.1] * 6)


def test_a_chat_task_gives_conversational_prompts():
    task = CallableReward(lambda prompt, response: float(response == prompt), ["Hi"], chat=True, system="Repeat.")
    (row,) = trl_rows(task, 1)
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    completion = [{"role": "assistant", "content": "Hi"}]
    assert as_trl_reward(task)([row["prompt"]], [completion], question_seed=[row["question_seed"]]) == [1.0]


def test_a_token_task_as_a_trl_reward():
    task, rows = CountOnes(), trl_rows(CountOnes(), 20)
    ids = [[1, 1, 2], [1], [1, 1, 1, 1, 1, 1], [0, 2]] * 5
    expected = [count + 10.0 * int(row["prompt"]) for count, row in zip([2, 1, 4, 0] * 5, rows)]
    columns = {"question_seed": [row["question_seed"] for row in rows]}
    assert (
        as_trl_reward(task)(["?"] * 20, [""] * 20, ids, **columns) == expected
        and len({row["prompt"] for row in rows}) == 2
    )
    with pytest.raises(ValueError, match="call it with completion_ids"):
        as_trl_reward(task)(["?"], [""], question_seed=[1])
    with pytest.raises(ValueError, match='CountOnes_reward needs the column "question_seed"'):
        as_trl_reward(task)(["?"], [""], [[1]])


def test_one_turn_only():
    task = CountOnes()
    task.max_turns = 3
    with pytest.raises(ValueError, match="CountOnes has 3 turns"):
        as_trl_reward(task)


def test_a_task_taken_to_trl_and_back():
    """as_trl_reward and TRLReward undo each other."""
    inner = CallableReward(lambda prompt, response: float(len(prompt) - len(response)), ["a", "bcd"])
    outer = TRLReward(as_trl_reward(inner), trl_rows(inner, 5))
    questions = asked(outer, 5)
    scores = responses(outer, questions, ["xx"] * 5)
    assert scores.reward.tolist() == [len(question.secret.text) - 2.0 for question in questions]


def test_padding_and_text():
    assert pad_responses([[1, 2, 3], [], [4]], 2).tolist() == [[1, 2], [-1, -1], [4, -1]] and pad_responses(
        [], 2
    ).shape == (0, 2)
    assert text_of([{"role": "assistant", "content": None}, {"role": "assistant", "content": "a"}]) == "a"


# --- the peers themselves, where they are installed ---


def test_trls_own_reward_functions():
    rewards = pytest.importorskip("trl.rewards", reason="needs trl (pip install trl)")
    row = {"prompt": [{"role": "user", "content": "1+1?"}], "solution": "$2$"}
    task = TRLReward([rewards.accuracy_reward, rewards.think_format_reward], [row], weights=[1.0, 0.5])
    scores = responses(task, asked(task, 2), ["<think>easy</think>\n\\boxed{2}", "\\boxed{3}"])
    assert scores.reward.tolist() == [1.5, 0.0]
