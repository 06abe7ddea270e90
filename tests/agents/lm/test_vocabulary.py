"""Tasks and language models whose tokens do not belong together are refused before any work; those that do are given
each other's tokenizer and end tokens."""

import json
import socket

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llm_mdp_agents.lm import loading
from llm_mdp_agents.lm.loading import load_policy, save_model, small_transformer
from llm_mdp_agents.resolve import ModelConfig, build_policy, find_task
from llm_mdp_agents.training.run import train
from llm_mdp_envs.text import byte_tokenizer
from tests.envs.kinds_of_tokenizers import gemma

OWN_TASKS = """
import numpy as np
from llm_mdp_envs import Question, Scores, Task
from llm_mdp_envs.text import TextTask, byte_tokenizer


class Base(TextTask):
    def draw(self, generator):
        return "Say kiwi.", None

    def grade(self, replies):
        return Scores(np.zeros(len(replies)))


class Keywords(Base):
    def __init__(self, word="kiwi", **text_options):
        super().__init__(**text_options)


class Positional(Base):
    def __init__(self, words=None):
        super().__init__(words, chat=True)


class Nothing(Base):
    def __init__(self):
        super().__init__()
        self.line = self.tokenizer.encode("x")


class Bytes(Base):
    def __init__(self):
        super().__init__(byte_tokenizer())


def made(horizon=3):
    return Base(horizon=horizon)
"""


def llama(rows, folder, **config):
    config = LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, **config,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny Llama with rows to spare and Gemma's kind of tokenizer; its generation config names another end token."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), gemma()
    llama(len(tokenizer) + 5, folder, bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    tokenizer.save_pretrained(folder)
    start = tokenizer.convert_tokens_to_ids("<start_of_turn>")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, start]}))
    return str(folder)


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_tasks_in_words.py").write_text(OWN_TASKS)
    return lambda name: f"{tmp_path}/own_tasks_in_words.py:{name}"


def built(env, model, **arguments):
    task = find_task(env, arguments, config := ModelConfig(model))
    return task, build_policy(config, task, 0)


@pytest.mark.parametrize("name", ["Base", "Keywords", "Positional", "Nothing", "made"])
def test_a_task_in_words_gets_the_models_tokenizer(name, own, model):
    task, policy = built(own(name), model)
    assert task.tokenizer.get_vocab() == gemma().get_vocab() and policy.vocab_size == task.vocab_size == len(gemma())
    ends = task.tokenizer.convert_ids_to_tokens(list(task.ends))
    assert {*ends} == {"</s>", "<start_of_turn>", "<end_of_turn>"}
    assert ends[0] == ("<end_of_turn>" if name == "Positional" else "</s>")


@pytest.mark.parametrize("env", ["Arithmetic", "GuessNumber", "Tabular"])
def test_tokens_that_are_no_words(env, model):
    with pytest.raises(
        ValueError, match=f"{env} has .* tokens of its own, .* do not belong together; use --model small"
    ):
        built(env, model)


def test_words_of_another_tokenizer(own, model):
    with pytest.raises(ValueError, match=r"the tokenizer of Bytes is not that of the model .* is token \d+ of one"):
        built(own("Bytes"), model)
    task = find_task("ReasoningGym")
    with pytest.raises(ValueError, match="the tokenizer of ReasoningGym is not that of the model"):
        build_policy(ModelConfig(model), task, 0)


def test_new_tokens_in_spare_rows(own, model):
    tokenizer = gemma()
    tokenizer.add_tokens(["<answer>", "</answer>"])
    task, policy = built(own("Base"), model, tokenizer=tokenizer)
    ends = tokenizer.convert_ids_to_tokens(list(task.ends))
    assert "<start_of_turn>" in ends, "named by the model alone: this tokenizer comes from no folder"
    assert policy.vocab_size == len(tokenizer) == len(gemma()) + 2
    tokenizer.add_tokens([f"<{number}>" for number in range(9)])
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ tokens and the model .*; use the model's own"):
        built(own("Base"), model, tokenizer=tokenizer)


def test_models_made_here_fit_their_own_alphabet_only(own, tmp_path):
    folder = str(tmp_path / "made")
    arithmetic = find_task("Arithmetic")
    save_model(small_transformer(arithmetic.vocab_size, 40, width=16, layers=1, heads=2), folder)
    assert built("Arithmetic", folder)[1].vocab_size == arithmetic.vocab_size
    with pytest.raises(ValueError, match="has 16 tokens and Tabular 4, so they do not belong together"):
        built("Tabular", folder)
    with pytest.raises(ValueError, match=r"the tokenizer has 261 tokens and the model .* 17"):
        built(own("Base"), folder)
    words = str(tmp_path / "words")
    save_model(small_transformer(261, 40, width=16, layers=1, heads=2), words)
    task, policy = built(own("Base"), words)
    assert policy.vocab_size == task.vocab_size == len(byte_tokenizer()) and task.ends == (256,)


def test_a_policy_of_ones_own(tmp_path):
    with pytest.raises(ValueError, match="the policy has 17 tokens and Arithmetic 16, so they do not belong together"):
        train("rloo", "Arithmetic", policy=small_transformer(17, 40, width=16, layers=1, heads=2), folder=None, steps=1)


def test_a_model_without_a_tokenizer(own, model, tmp_path):
    folder = str(llama(len(gemma()) + 5, tmp_path / "bare", bos_token_id=None, eos_token_id=2, pad_token_id=None))
    with pytest.raises(ValueError, match="has no tokenizer beside it; name one with --env-args tokenizer=FOLDER"):
        built(own("Base"), folder)


def test_a_random_model_has_rows_to_spare(tmp_path):
    config = {"model_type": "llama", "vocab_size": 300, "hidden_size": 16, "intermediate_size": 16}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    (path := tmp_path / "tiny.json").write_text(json.dumps(config))
    assert built("Arithmetic", str(path))[1].vocab_size == find_task("Arithmetic").vocab_size


@pytest.mark.parametrize("options", [{}, {"temperature": 0.6, "top_p": 0.9}])
def test_a_saved_model_keeps_its_end_tokens(options, model, tmp_path):
    policy = load_policy(model, tokenizer=gemma())
    policy.causal_lm.generation_config.update(**options)
    wanted = policy.causal_lm.generation_config.eos_token_id
    save_model(policy, tmp_path / "again")
    assert len(wanted) == 2
    assert load_policy(tmp_path / "again").causal_lm.generation_config.eos_token_id == wanted


@pytest.mark.parametrize("read", [loading.tokenizer_of, load_policy])
def test_a_name_is_asked_of_the_hub_where_it_can_be_reached(read, model, monkeypatch):
    """Elsewhere among cached models alone: its client would ask for half a minute."""
    alone = []

    def found(name, local_files_only, **options):
        alone.append(local_files_only)
        raise OSError("no such model")

    def no_address(*_):
        raise socket.gaierror("Name or service not known")

    for each in (AutoTokenizer, AutoModelForCausalLM):
        monkeypatch.setattr(each, "from_pretrained", found)
    for address, proxies, name in (
        (no_address, {}, "nofolder"), (lambda *_: [], {}, "nofolder"),
        (no_address, {"https": "http://proxy"}, "nofolder"), (no_address, {}, model),
    ):  # fmt: skip
        monkeypatch.setattr(socket, "getaddrinfo", address)
        monkeypatch.setattr(loading, "getproxies", lambda proxies=proxies: proxies)
        with pytest.raises(OSError, match="no such model"):
            read(name)
    assert alone == [True, False, False, False]
