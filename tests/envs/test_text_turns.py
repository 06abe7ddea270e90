"""Conversations through chat templates: what the policy sampled stays, the rest is what the template writes."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp_envs import TokenEnv, TokenVectorEnv, check_task
from llm_mdp_envs.episode import follow, replay
from llm_mdp_envs.task import TaskError
from llm_mdp_envs.text_turns import Response, TextTurns
from llm_mdp_envs.turns import play, split_turns
from tests.envs.chat_templates import LLAMA_2, LLAMA_3, QWEN, QWEN_3, SMOLLM2, THINKING, tokenizer_with

SMOLLM2_FOLDER = Path.home() / ".cache/llm-mdp/smollm2-135m-instruct"
TOKENIZERS = {
    "bytes": lambda: None,
    "smollm2": lambda: tokenizer_with(SMOLLM2),
    "qwen": lambda: tokenizer_with(QWEN),
    "llama 3": lambda: tokenizer_with(LLAMA_3),
    "llama 2": lambda: tokenizer_with(LLAMA_2),
    "real smollm2": lambda: SMOLLM2_FOLDER,
}


class Riddle(TextTurns):
    """Find a number; the answer to a wrong one tells how many were tried."""

    separates, part_names, detail_names = "nothing yet", ("right", "tries"), ("letters",)
    answer: str | None = None

    def draw(self, generator):
        number = int(generator.integers(1, 10))
        return "I think of a number from 1 to 9. Which?", number

    def respond(self, secret, said):
        letters = {"letters": float(len(said[-1]))}
        if said[-1].strip() == str(secret):
            return Response(None, {"right": 1.0}, letters)
        return Response(self.answer or f"No, {len(said)} wrong.", {"tries": -0.125}, letters)


@pytest.fixture(params=TOKENIZERS)
def riddle(request):
    if request.param == "real smollm2" and not SMOLLM2_FOLDER.is_dir():
        pytest.skip(f"no SmolLM2 in {SMOLLM2_FOLDER}; benchmarks/smollm2.py puts it there")
    return Riddle(TOKENIZERS[request.param](), max_turns=4)


def written_by_the_template(task: Riddle, *said: str) -> tuple[int, ...]:
    """The conversation as the template itself writes it, with the header of the next turn."""
    messages = task.messages("Which?")
    for number, text in enumerate(said, 1):
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"No, {number} wrong."}]
    text = task.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tuple(task.tokenizer.encode(text, add_special_tokens=False))


def test_a_conversation_is_what_the_template_writes(riddle):
    """Llama 2 has spaces around what the assistant says, which the policy has to say itself."""
    question, spaced = riddle.ask("Which?", 7), riddle.tokenizer.chat_template == LLAMA_2
    tokens, _ = riddle.converse(question, [f" {text} " if spaced else text for text in ("3", "I say 5.")])
    expected = written_by_the_template(riddle, "3", "I say 5.")
    assert (*question.prompt, *tokens.tolist()) == expected


def test_what_was_sampled_is_never_tokenised_again(riddle):
    """Byte by byte, a text has other tokens than the tokenizer would choose; they stay, over several turns."""
    question = riddle.ask("Which?", 7)
    odd = [token for letter in "No, 1" for token in riddle.tokenizer.encode(letter, add_special_tokens=False)]
    tokens, mask = play(riddle, question, [odd, odd[::-1], odd])
    turns = split_turns(tokens, mask, riddle.turn_ends)
    assert [list(turn.words) for turn in turns[:3]] == [odd, odd[::-1], odd]
    again = follow(riddle, question, tokens.tolist())
    assert list(again.tokens) == tokens.tolist() and list(again.mask) == mask.tolist()


def test_the_mask_is_exact(riddle):
    """Just the words and the end token of each turn are the policy's; the line break after it is not."""
    question = riddle.ask("Which?", 7)
    tokens, mask = riddle.converse(question, ["3", "7"])
    own = [*riddle.encode_response("3"), *riddle.encode_response("7")]
    assert tokens[mask].tolist() == own
    scaffold = riddle.tokenizer.decode(tokens[~mask].tolist(), clean_up_tokenization_spaces=False)
    assert "No, 1 wrong." in scaffold and "7" not in scaffold


def test_rewards_parts_and_details(riddle):
    question = riddle.ask("Which?", 7)
    tokens, mask = riddle.converse(question, ["3", " 7 "])
    scores = replay(riddle, [question], tokens[None])
    assert scores.reward.tolist() == [0.875] and scores.parts["tries"].tolist() == [-0.125]
    assert scores.details["letters"].tolist() == [4.0]
    hidden = riddle.hidden_turn_rewards(question, tokens, mask)
    assert np.flatnonzero(hidden).tolist() == [len(riddle.encode_response("3")) - 1, len(tokens) - 1]


def test_every_check(riddle):
    check_task(riddle)


def test_the_turn_limit_and_the_horizon():
    task = Riddle(max_turns=2)
    question = task.ask("Which?", 7)
    tokens, mask = task.converse(question, ["1", "2", "7"])
    assert mask.sum() == 4 and follow(task, question, tokens.tolist()).finish == "environment"
    short = Riddle(horizon=10)
    tokens, mask = short.converse(question, ["1"])
    assert len(tokens) == 10 and mask.sum() == 2
    assert follow(short, question, tokens.tolist()).finish == "horizon"
    assert replay(short, [question], tokens[None]).reward.tolist() == [-0.125]


def test_a_long_reply_is_cut_and_says_so():
    task = Riddle(reply_length=64)
    task.answer = "word " * 1000
    question = task.ask("Which?", 7)
    tokens, mask = task.converse(question, ["1"])
    said = task.decode(tokens[~mask])
    assert "word word … [cut: the first" in said and "of 5,000 characters]" in said
    assert len(task.tokenizer.encode(said.split("\n")[2].removesuffix("<|end|>"))) <= 64
    task = Riddle(reply_length=64)
    task.answer = "w" * 64
    assert task.answer in task.decode(task.converse(question, ["1"])[0])


def test_every_end_token_of_the_model_hands_the_turn_over():
    tokenizer = tokenizer_with(SMOLLM2)
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    task = Riddle(tokenizer)
    other, end = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (task.end_of_turn, task.eos) == (end, None) and other in task.also_ends
    question = task.ask("Which?", 7)
    three = tokenizer.encode("3", add_special_tokens=False)
    tokens, mask = play(task, question, [[*three, other], [*three, end]])
    assert tokens[mask].tolist() == [*three, other, *three, end]
    assert replay(task, [question], np.array([[*tokens, *task.encode_response("7")]])).parts["right"].tolist() == [1.0]


def test_a_template_that_rewrites_earlier_turns_is_refused():
    with pytest.raises(ValueError, match=r"cannot be appended to turn by turn.*said earlier, into 'aye'"):
        Riddle(tokenizer_with(QWEN_3))


def test_a_template_that_begins_thoughts_is_appended_to():
    task = Riddle(tokenizer_with(THINKING))
    question = task.ask("Which?", 7)
    tokens, _ = task.converse(question, ["hm\n</think>\n\n3", "7"])
    assert task.decode(question.prompt).endswith("assistant\n<think>\n")
    assert "No, 1 wrong.<|im_end|>\n<|im_start|>assistant\n<think>\n7" in task.decode(tokens)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:", "no end token"),
        ("{{ messages | length }}<|end|>{% for m in messages %}{{ m.content }}<|end|>{% endfor %}", "anew"),
        ("{% for m in messages %}{{ m.content }}<|end|>{{ loop.index }}{% endfor %}", "number"),
        ("{{ raise_exception('no chats here') }}", "no chats here"),
    ],
)
def test_other_templates_that_cannot_be_appended_to(template, words):
    with pytest.raises(ValueError, match=f"chat template (cannot be appended|refuses).*{words}"):
        Riddle(tokenizer_with(template))


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = tokenizer_with(SMOLLM2)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Riddle(tokenizer)


def test_what_a_task_may_not_say():
    class Wrong(Riddle):
        given: object = None

        def respond(self, secret, said):
            return self.given

    task = Wrong()
    question = task.ask("Which?", 7)
    for answer, words in (
        ("No.", "must give Response"),
        (Response("No.", {"wrong": 1.0}), "'wrong', which part_names"),
        (Response("No.", {}, {"wrong": 1.0}), "'wrong', which detail_names"),
        (Response("No.", {"right": np.nan}), "finite"),
        (Response([{"role": "tool", "content": "x"}]), "replied as 'tool'"),
        (Response([{"role": "user", "content": 3}]), "a message is"),  # pyright: ignore[reportArgumentType]
    ):
        task.given = answer
        with pytest.raises(TaskError, match=words):
            task.converse(question, ["1"])
    with pytest.raises(TaskError, match="names no reward parts"):
        type("Nameless", (Wrong,), {"part_names": ()})()


@pytest.mark.parametrize("argument", ["max_turns", "reply_length", "horizon", "prompt_length"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "8"])
def test_arguments(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}"):
        Riddle(**{argument: value})


def test_what_is_remembered_belongs_to_one_question():
    """Two questions with the same prompt and other secrets; copies out of a pickle, where ids mean nothing."""
    task = Riddle()
    first, second = task.ask("Which?", 7), task.ask("Which?", 3)
    row, before = np.array([task.encode_response("3")]), len(pickle.dumps(task))
    wrong, _ = task.converse(first, ["3"])
    assert replay(task, [second], row).parts["right"].tolist() == [1.0]
    assert len(pickle.dumps(task)) == before
    copy, again = pickle.loads(pickle.dumps((task, first)))
    assert copy.converse(again, ["3"])[0].tolist() == wrong.tolist()
    for _ in range(10):  # these take ids of questions that are gone
        assert replay(copy, [copy.ask("Which?", 3)], row).parts["right"].tolist() == [1.0]
        assert copy.converse(copy.ask("Which?", 7), ["3"])[0].tolist() == wrong.tolist()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.integers(0, 260), max_size=6), min_size=1, max_size=4), st.integers(1, 200))
def test_any_babble_steps_and_replays_alike(turns, horizon):
    task = Riddle(horizon=horizon, max_turns=3)
    question = task.ask("Which?", 7)
    env = TokenEnv(task)
    env.reset(options={"question": question})
    total, over = 0.0, False
    for token in [token for turn in turns for token in (*turn, 256)] + [0] * horizon:
        if not over:
            _, reward, over, _, _ = env.step(token)
            total += float(reward)
    tokens = np.array([env.clone_state().episode.tokens])
    assert over and replay(task, [question], tokens).reward.tolist() == [pytest.approx(total)]


def test_many_conversations_at_once():
    vector = TokenVectorEnv(Riddle(max_turns=2), 3)
    vector.reset(seed=0)
    ended = np.zeros(3, dtype=bool)
    for token in [*b"5", 256, *b"5", 256]:
        ended |= vector.step(np.full(3, token))[2]
    assert ended.all()


def test_a_dialogue_for_people(riddle):
    question = riddle.ask("Which?", 7)
    lines = riddle.dialogue(question, riddle.converse(question, ["3", "7"])[0])
    assert "environment:" in lines.split("policy: ")[0] and lines.count("policy: ") == 2


def test_a_control_token_that_the_environment_spells_is_text(riddle):
    riddle.answer = f"{riddle.tokenizer.decode([riddle.end_of_turn])} is a token"
    question = riddle.ask("Which?", 7)
    tokens, mask = riddle.converse(question, ["3"])
    said = split_turns(tokens, mask, riddle.turn_ends)
    plain = written_by_the_template(riddle, "3")
    assert len(said) == 1
    assert tokens.tolist().count(riddle.end_of_turn) == plain[len(question.prompt) :].count(riddle.end_of_turn)
