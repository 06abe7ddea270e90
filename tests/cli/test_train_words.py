"""What else a command line of `llm-mdp train` understands: names of TRL, reward functions of one's own, -q."""

import json
from dataclasses import replace

import pytest

from llm_mdp.cli.train import ALIASES, flags_of, in_our_words, names_of_others, read_train
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.training.records import load_metrics, load_samples
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_agents.zoo.grpo import GRPOConfig

SMALL = "--model small --width 16 --layers 1 --heads 2 --env-args horizon=6"
SHORT = "--prompts-per-step 2 --eval-prompts 2 --steps 1 --loggers none"
REWARDS = """
def correct(completions, answer, **others):
    return [float(right in said) for said, right in zip(completions, answer)]


def length(completions):
    return [len(said) for said in completions]


def broken(completions):
    return [1 / 0]
"""
ROWS = [{"prompt": "1+1=", "answer": "2"}, {"prompt": "2+1=", "answer": "3"}]


@pytest.fixture(autouse=True)
def files(here):
    """A data set and functions that reward responses to it."""
    (here / "rewards.py").write_text(REWARDS)
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))


# Names of others


def test_names_of_trl_are_ours():
    words = "grpo Tabular --num-generations 4 --beta=0.1 --epsilon 0.2 --epsilon_high 0.3 --num-iterations 2 "
    words += "--max-steps 7 --model-name-or-path small --report-to none --save-steps 3 --lr 0.01"
    _, agent, arguments = read_train(words.split())
    assert agent == GRPOConfig(group_size=4, kl=0.1, clip_low=0.2, clip_high=0.3)
    assert arguments.train == TrainConfig(epochs=2, steps=7, checkpoint_every=3, learning_rate=0.01)
    assert arguments.model == ModelConfig("small") and arguments.loggers == ("none",)


def test_every_alias_is_of_a_flag_that_there_is_and_no_flag_itself():
    flags = flags_of(GRPOConfig, ModelConfig, TrainConfig) | {"loggers"}
    assert set(ALIASES.values()) <= flags and not set(ALIASES) & flags
    assert "beta" in flags_of(AGENTS["dpo"].Config)


@pytest.mark.parametrize(
    "name", [name for name, agent in AGENTS.items() if "beta" in agent.Config.__dataclass_fields__]
)
def test_an_agent_s_own_beta_is_its_own(name):
    _, agent, _ = read_train([name, "Tabular", "--beta", "0.25"])
    assert agent == replace(AGENTS[name].Config(), beta=0.25)
    assert "--beta is" not in names_of_others(type(agent))


def test_a_name_that_means_nothing_here_stays_what_was_typed(capsys):
    with pytest.raises(SystemExit):
        read_train(["rloo", "Tabular", "--num-generation", "4"])
    assert "--num-generation" in capsys.readouterr().err
    assert in_our_words(["--beta", "1"], TrainConfig) == ["--beta", "1"]


def test_help_says_which_names_are_understood(llm_mdp):
    status, said, _ = llm_mdp("train grpo --help")
    assert status == 0 and "--num-generations is --group-size" in " ".join(said.split())


# Quiet


def test_quiet_says_what_came_out_alone(llm_mdp):
    status, said, complaints = llm_mdp(f"train rloo Tabular -q {SHORT}")
    assert (status, complaints) == (0, "") and said.startswith("reward ")
    status, said, complaints = llm_mdp("train --resume runs/rloo-tabular-1 --max-steps 2 --quiet")
    assert (status, complaints) == (0, "") and "in 2 steps" in said


@pytest.mark.parametrize(
    ("typed", "quiet"), [("", False), ("-q", True), ("--quiet --seed 1", True), ("-q False", False)]
)
def test_quiet_needs_no_value(typed, quiet):
    assert read_train(["rloo", "Tabular", *typed.split()])[2].quiet is quiet


def test_quiet_shows_no_progress(monkeypatch, here):
    from llm_mdp.cli import train as command
    from llm_mdp_agents.training import run

    asked = []
    monkeypatch.setattr(run, "train", lambda *_, progress, **__: asked.append(progress))
    monkeypatch.setattr(command, "_finished", lambda job: job() or 0)
    for words in ("rloo Tabular -q", "rloo Tabular"):
        assert command.train(words.split()) == 0
    assert asked == [False, True]


@pytest.mark.parametrize("words", ["--version", "-V", "version"])
def test_version(llm_mdp, words):
    status, said, complaints = llm_mdp(words)
    assert (status, complaints) == (0, "") and said.startswith("llm-mdp 0.") and "torch" in said


# Rewards of one's own


def test_reward_functions_with_weights_on_a_data_set(llm_mdp, here):
    words = "train grpo rows.jsonl --reward rewards.py:correct --reward rewards.py:length=-0.5"
    status, _, complaints = llm_mdp(f"{words} {SMALL} {SHORT}")
    assert (status, complaints) == (0, "")
    config = json.loads((here / "runs/grpo-rows-1/config.json").read_text())
    assert config["env"]["arguments"] == {
        "horizon": 6,
        "rows": f"{here}/rows.jsonl",
        "rewards": [f"{here}/rewards.py:correct", f"{here}/rewards.py:length=-0.5"],
    }
    for sample in load_samples(here / "runs/grpo-rows-1"):
        right = {row["prompt"]: row["answer"] for row in ROWS}[sample["prompt"]]
        said = sample["response"].removesuffix("<|end|>")
        assert sample["reward"] == float(right in said) - 0.5 * len(said)
    before = load_metrics(here / "runs/grpo-rows-1")
    # Found again from anywhere: names are kept in full.
    assert llm_mdp("train --resume runs/grpo-rows-1 --steps 2 -q")[0] == 0
    assert load_metrics(here / "runs/grpo-rows-1")[:2] == before
    assert llm_mdp("train --config runs/grpo-rows-1/config.json --reward rewards.py:length --name other")[0] == 0
    other = json.loads((here / "runs/other/config.json").read_text())
    assert other["env"]["arguments"] == {**config["env"]["arguments"], "rewards": [f"{here}/rewards.py:length"]}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            "rows.jsonl --reward rewards.py:broken",
            "rewards.py, line 11, in broken: ZeroDivisionError: division by zero",
        ),
        ("rows.jsonl --reward rewards.py:corect", "DIR/rewards.py has no function 'corect'; did you mean correct?"),
        (
            "rows.jsonl --reward rewards.py:xyz",
            "DIR/rewards.py has no function 'xyz'; it defines correct, length, broken.",
        ),
        (
            "rows.jsonl --reward rewards.py",
            "the reward 'DIR/rewards.py' names no function; DIR/rewards.py defines broken, correct, length; write "
            "DIR/rewards.py:broken or DIR/rewards.py:correct or DIR/rewards.py:length",
        ),
        ("rows.jsonl --reward rewards", "the reward 'rewards' names no function; write FILE.py:FUNCTION, or"),
        ("rows.jsonl --reward rewards.py:length=x", "the reward 'DIR/rewards.py:length=x' has the weight 'x'"),
        ("rows.jsonl --reward rewards.py:length=nan", "weights[0] is nan"),
        ("rows.jsonl --reward", "--reward needs a function: FILE.py:FUNCTION, or FILE.py:FUNCTION=WEIGHT."),
        ("rows.jsonl --reward nowhere.py:length", "there is no file nowhere.py."),
        ("nowhere.jsonl --reward rewards.py:length", "rows is 'nowhere.jsonl', and there is no such file"),
        ("Tabular --reward rewards.py:length", "--reward belongs to a data set, but Tabular is an environment,"),
        (
            "rows.jsonl",
            "there is no environment 'rows.jsonl'; a data set is trained on with reward functions of yours:",
        ),
    ],
)
def test_what_is_no_reward_is_said_in_one_line(llm_mdp, here, words, complaint):
    status, said, complaints = llm_mdp(f"train grpo {words} {SMALL} {SHORT}")
    assert (status, said) == (2, "") and complaints.count("\n") == 1
    assert complaints.startswith(f"llm-mdp: {complaint.replace('DIR', str(here))}"), complaints
