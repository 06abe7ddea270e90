"""`llm-mdp verify --model`: a tiny model with a tokenizer, as a person runs it, and what is refused in a sentence."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from llm_mdp.cli import verify as command
from llm_mdp.cli.__main__ import guarded
from llm_mdp_agents.lm.loading import load_policy, save_model
from llm_mdp_envs.tokenizers import byte_tokenizer

FIGURES = ("relative_bias", "scale", "cosine", "one_minus_cosine", "trace_covariance", "tokens_to_signal")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A random Llama whose tokens are bytes."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    config = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    save_model(load_policy(config, tokenizer=tokenizer), folder, tokenizer=tokenizer)
    return str(folder)


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = guarded(lambda: command.verify(list(words)))
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.slow
def test_an_environment_certified_on_a_model(model, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    file = Path("m.json")
    status, out, err = run(
        capsys, "rloo", "grpo", "token-mean-loo", "--model", model, "--tokens", "digits", "--env", "Arithmetic",
        "--env-args", "digits=1", "--questions", "2", "--horizon", "2", "--group-size", "3", "8", "--dtype", "float64",
        "--json", str(file), "--seed", "3",
    )  # fmt: skip
    assert (status, err) == (0, "")
    document = json.loads(file.read_text())
    rows = document["claims"]
    assert list(rows) == ["rloo", "grpo", "token-mean-loo"]
    assert rows["rloo"]["verdict"] == "unbiased" and rows["rloo"]["relative_bias"] < 1e-9
    assert rows["token-mean-loo"]["by_group_size"]["8"]["scale"] != rows["token-mean-loo"]["scale"]
    for row in rows.values():
        assert list(row["by_group_size"]) == ["3", "8"]
        assert all(isinstance(row["by_group_size"][size][name], float) for size in ("3", "8") for name in FIGURES)
        low, high = row["trace_covariance_interval"]
        assert low <= row["trace_covariance"] <= high
    assert [each["text"] for each in document["tokens"]] == [*"0123456789", "<|end|>"]
    assert len(document["covered"]) == 2 and all(0 < share < 1 for share in document["covered"])
    assert document["responses"] == 2 * 111 and 0 < document["J"] < 1 and document["resolution"] < 1e-12
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "unbiased" in out and "What is" in out


def test_a_prompt_and_an_answer_of_ones_own_or_a_reward(model, capsys, tmp_path):
    """The same question with the answer as text and with a function gives the same figures."""
    reward = tmp_path / "reward.py"
    reward.write_text(
        "def right(completions, answer, **others):\n"
        "    return [float(text.endswith(right)) for text, right in zip(completions, answer)]\n"
    )
    found = []
    for number, extra in enumerate(([], ["--reward", f"{reward}:right"])):
        file = tmp_path / f"{number}.json"
        status, _, err = run(
            capsys, "grpo", "--model", model, "--tokens", "1,2,eos", "--prompt", "6 + 6", "--begin", "6 + 6 = ",
            "--answer", "12", "--chat", "False", "--horizon", "2", "--probes", "0", "--json", str(file), *extra,
        )  # fmt: skip
        assert (status, err) == (0, "")
        found.append(json.loads(file.read_text()))
    assert found[0]["questions"] == ["6 + 6 → '6 + 6 = '"]
    assert found[0]["J"] == pytest.approx(found[1]["J"], rel=1e-12)
    assert found[0]["claims"]["grpo"]["scale"] == pytest.approx(found[1]["claims"]["grpo"]["scale"], rel=1e-9)
    assert found[0]["claims"]["grpo"]["group_size"] == 8
    assert found[0]["claims"]["grpo"]["trace_covariance"] is None


def test_an_own_estimator_has_its_own_group_size(model, capsys, tmp_path):
    own, file = tmp_path / "own.py", tmp_path / "m.json"
    own.write_text(
        "from dataclasses import dataclass\nfrom llm_mdp import RLOO\n\n\n@dataclass(frozen=True)\n"
        "class Twice(RLOO):\n    group_size: int = 4\n\n    def advantages(self, evidence):\n"
        "        return 2 * super().advantages(evidence)\n"
    )
    words = ("--model", model, "--tokens", "1,2,eos", "--prompt", "6 + 6 = ", "--answer", "2", "--horizon", "2")
    status, out, err = run(capsys, f"{own}:Twice", *words, "--probes", "0", "--json", str(file))
    assert err == ""
    row = json.loads(file.read_text())["claims"]["Twice"]
    assert row["group_size"] == 4 and row["verdict"] == "proportional" and row["scale"] == pytest.approx(2)
    assert status == 1 and "expected unbiased" in out


WORDS = ("--tokens", "1,2,eos", "--prompt", "6 + 6 = ", "--answer", "12")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "1,12,eos", *WORDS[2:]], "--tokens has '12', which is not one token of this tokenizer"),
        (["--tokens", "1,id:900", *WORDS[2:]], "a number of a token is id:0"),
        (["--tokens", "1,1", *WORDS[2:]], "names the token 49 twice"),
        ([*WORDS, "--env", "Arithmetic"], "give either an environment"),
        (["--env", "Arithmetic", "--answer", "1"], "--answer, --reward, --begin and --chat belong to --prompt"),
        (WORDS[:4], "nothing says what a response is worth"),
        ([*WORDS, "--answer", "13"], "there are 1 prompts and 2 of --answer"),
        ([*WORDS, "--group-size", "1"], "--group-size has 1"),
        ([*WORDS, "--probes", "3"], "--probes is 3"),
        ([*WORDS[:5], "77"], "every response to a prompt is worth the same (0)"),
        ([*WORDS, "--horizon", "0"], "--horizon is 0"),
        (["--tokens", "digits", *WORDS[2:], "--horizon", "7"], "are too many to enumerate"),
        (["--tokens", "1,2", "--env", "GuessNumber"], "GuessNumberText is a conversation of several turns"),
        (["dpo-optimum", *WORDS], "dpo-optimum is a statement and no estimator"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(model, capsys, words, message):
    status, out, err = run(capsys, *words, "--model", model)
    assert (status, out) == (2, "")
    assert message in err and err.startswith("llm-mdp: ") and err.count("\n") == 1


def test_a_model_without_full_attention_is_refused(capsys, tmp_path):
    tokenizer = byte_tokenizer()
    config = {
        "model_type": "mistral", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 8,
    }  # fmt: skip
    save_model(load_policy(config, tokenizer=tokenizer), tmp_path, tokenizer=tokenizer)
    status, _, err = run(capsys, *WORDS, "--model", str(tmp_path))
    assert status == 2 and "does not attend to all that a mask lets through" in err


@pytest.mark.slow
def test_on_a_device_the_figures_are_those_of_the_cpu(model, capsys, tmp_path):
    from tests.agents.pretend_device import Pretending

    found = []
    for device in ("cpu", "pretend"):
        file = tmp_path / f"{device}.json"
        words = (*WORDS, "--model", model, "--horizon", "2", "--dtype", "float64", "--device", device)
        with Pretending():
            status = guarded(lambda: command.verify(["token-mean-loo", *words, "--json", str(file)]))  # noqa: B023
        assert status == 0, capsys.readouterr().err
        found.append(json.loads(file.read_text())["claims"]["token-mean-loo"])
    for name in FIGURES:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-9)


@pytest.mark.slow
def test_a_seed_gives_the_same_figures_again(model, capsys, tmp_path):
    said = []
    for number in range(2):
        file = tmp_path / f"{number}.json"
        torch.manual_seed(number)
        run(capsys, "grpo", *WORDS, "--model", model, "--horizon", "2", "--seed", "5", "--json", str(file))
        said.append(json.loads(file.read_text())["claims"])
    assert said[0] == said[1]
