"""Tasks in words: the byte tokenizer, other tokenizers, chat templates, and what a grader gets to see."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from llm_mdp_envs import Scores, TokenEnv
from llm_mdp_envs.text import TextTask, byte_tokenizer, load_tokenizer

BYTES = byte_tokenizer()
CANARY = "canary-7f3a"


class Echo(TextTask):
    """Say the word. The reward is 1 for the word itself; `seen` keeps what the grader was given."""

    def __init__(self, words=("kiwi",), **options):
        super().__init__(**options)
        self.words, self.seen = words, []

    def draw(self, generator):
        word = self.words[generator.integers(len(self.words))]
        return f"Say {word}.", (word, CANARY)

    def grade(self, replies):
        self.seen += replies
        return Scores(np.array([float(reply.text == reply.secret[0]) for reply in replies]))


@pytest.fixture(scope="module")
def word_tokenizer():
    """A real tokenizer trained here: BPE, with a token at the beginning and one at the end of every text, as some
    models have."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator(["Say kiwi. Say plum. How many kiwis are plums?"] * 20, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@given(st.text())
def test_a_byte_is_a_token_and_comes_back(text):
    tokens = BYTES.encode("<|end|>".join(text.split("<|")))  # a special token in between, and none by accident
    expected = []
    for number, part in enumerate(text.split("<|")):
        expected += [256] * (number > 0) + list(part.encode())
    assert tokens == expected
    whole = text.replace("<|", "")
    assert Echo().response_text(BYTES.encode(whole)) == whole


def test_every_byte_sequence_is_a_text():
    for tokens in ([255, 65], [0xE6, 0x97], list(range(256))):
        assert isinstance(Echo().response_text(tokens), str)
    assert Echo().response_text([0xE6, 0x97, 0xA5, 256, 257]) == "日"


def test_the_byte_tokenizer_survives_a_folder(tmp_path):
    BYTES.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (
        again.encode("naïve 1 , 2") == BYTES.encode("naïve 1 , 2")
        and again.eos_token_id == 256
        and len(again) == len(BYTES) == 261
    )


def test_the_reward_of_an_episode():
    env = TokenEnv(Echo())
    observation, _ = env.reset(seed=0)
    assert bytes(observation[observation >= 0].tolist()) == b"Say kiwi."
    for token in env.task.encode_response("kiwi"):
        _, reward, terminated, _, info = env.step(token)
    assert (reward, terminated, info["finish"]) == (1.0, True, "eos")
    (reply,) = env.task.seen
    assert (reply.question, reply.text, reply.tokens) == ("Say kiwi.", "kiwi", (*b"kiwi", 256))


def test_the_secret_does_not_come_out():
    env = TokenEnv(Echo(), render_mode="ansi")
    said = [str(env.reset(seed=0)), env.render()]
    for token in env.task.encode_response("kiwi"):
        said += [str(env.step(token)), env.render()]
    assert not any(CANARY in text for text in said)


def test_spaces_are_graded_as_written(word_tokenizer):
    for tokenizer in (BYTES, word_tokenizer):
        task = Echo(tokenizer=tokenizer)
        tokens = task.tokenizer.encode("kiwi plum", add_special_tokens=False)
        assert task.response_text(tokens) == task.decode(tokens) == "kiwi plum"
    assert Echo().response_text(BYTES.encode("a , b . n't '")) == "a , b . n't '"


def test_a_prompt_stays_open(word_tokenizer):
    task = Echo(tokenizer=word_tokenizer)
    prompt = task.question(np.random.default_rng(0)).prompt
    assert prompt[0] == 1 and prompt[-1] != 2 and task.vocab_size == len(word_tokenizer) and task.eos == 2
    assert task.encode_response("kiwi")[0] != 1 and task.encode_response("kiwi")[-1] == 2


def test_chat():
    task = Echo(chat=True, system="Be brief.")
    assert task.decode(task.question(np.random.default_rng(0)).prompt) == (
        "<|system|>\nBe brief.<|end|>\n<|user|>\nSay kiwi.<|end|>\n<|assistant|>\n"
    )
    messages = [{"role": "system", "content": "Shout."}, {"role": "user", "content": "Hi"}]
    assert task.decode(task.ask(messages).prompt).count("<|system|>") == 1


def test_questions_that_are_too_long_are_not_asked():
    task = Echo(words=("kiwi", "k" * 50), prompt_length=20)
    generator = np.random.default_rng(0)
    assert {task.question(generator).secret.secret[0] for _ in range(20)} == {"kiwi"}
    with pytest.raises(ValueError, match="longer than prompt_length = 3 tokens"):
        Echo(prompt_length=3).question(generator)


def test_a_question_of_ones_own():
    env = TokenEnv(Echo())
    env.reset(options={"question": env.task.ask("Say fig.", ("fig", None))})
    for token in env.task.encode_response("fig"):
        reward = env.step(token)[1]
    assert reward == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"horizon": 0}, "horizon is 0"),
        ({"prompt_length": True}, "prompt_length is True"),
        ({"system": "Hi"}, "use chat=True"),
        ({"tokenizer": 3}, "tokenizer is 3"),
        ({"tokenizer": "/nowhere/at/all"}, "no tokenizer could be loaded from '/nowhere/at/all'"),
    ],
)
def test_bad_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        Echo(**options)


def test_a_tokenizer_without_template(word_tokenizer):
    with pytest.raises(ValueError, match="no chat template"):
        Echo(tokenizer=word_tokenizer, chat=True)
