"""`llm-mdp train`, `eval`, `agents` as a person types them: what they print and write, and what they say when they
cannot."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest

from llm_mdp.cli.train import read_train
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.training.progress_line import SHOWN, figures_within
from llm_mdp_agents.training.records import load_metrics
from llm_mdp_agents.training.run_config import RunConfig, read_run_config
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.text import byte_tokenizer
from tests.terminals import lines_in_a_terminal

ROOT = Path(__file__).parents[2]
TIMING = {"seconds", "tokens_per_second"}
SHORT = "--prompts-per-step 4 --eval-prompts 8 --eval-every 2 --loggers none"


def config_of(folder) -> dict:
    return json.loads((Path(folder) / "config.json").read_text())


def timeless(folder) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMING} for line in load_metrics(Path(folder))]


# Train


def test_a_run_from_the_first_word_to_the_last_line(llm_mdp, here):
    status, said, complaints = llm_mdp(f"train rloo Tabular --steps 5 {SHORT}")
    assert (status, complaints) == (0, "")
    folder = here / "runs" / "rloo-tabular-1"
    assert [line["step"] for line in load_metrics(folder)] == [0, 1, 2, 3, 4, 5]
    first, last = load_metrics(folder)[0], load_metrics(folder)[-1]
    tokens = sum(line.get("tokens", 0) for line in load_metrics(folder))
    assert said.splitlines() == [
        f"reward {first['eval/reward']:.3f} → {last['eval/reward']:.3f}, greedy {first['eval/greedy_reward']:.3f} → "
        f"{last['eval/greedy_reward']:.3f}, in 5 steps and {tokens:,} tokens",
        'options other than those of certify("rloo"): group_size 8',
        "report: runs/rloo-tabular-1/report.html",
        "go on:  llm-mdp train --resume runs/rloo-tabular-1 --steps 10",
    ]
    assert (folder / "report.html").exists() and not (folder / "tensorboard").exists()
    assert config_of(folder)["command"] == f"llm-mdp train rloo Tabular --steps 5 {SHORT}"
    assert llm_mdp(f"train rloo llm_mdp/Tabular-v0 --steps 1 {SHORT} --runs {here}/runs")[0] == 0
    assert (here / "runs" / "rloo-tabular-2").is_dir()
    assert llm_mdp("train rloo Tabular --steps 1 --name mine --prompts-per-step 2 --eval-prompts 2")[0] == 0
    assert list((here / "runs" / "mine" / "tensorboard").iterdir()), "tensorboard is the default logger"


def test_the_last_line_goes_on_with_the_run(llm_mdp, here):
    said = llm_mdp(f"train rloo Tabular --steps 3 {SHORT}")[1]
    status, said, _ = llm_mdp(said.splitlines()[-1].split("llm-mdp ")[1])
    assert status == 0 and "in 6 steps" in said
    assert [line["step"] for line in load_metrics(here / "runs" / "rloo-tabular-1")] == list(range(7))


def test_a_config_gives_the_same_run_again(llm_mdp, here):
    options = "--steps 3 --group-size 3 --env-args horizon=3 eos=None --model ngram --schedule cosine --seed 5"
    assert llm_mdp(f"train grpo Tabular {options} {SHORT}")[0] == 0
    assert llm_mdp("train --config runs/grpo-tabular-1/config.json")[0] == 0
    first, again = (here / "runs" / f"grpo-tabular-{n}" for n in (1, 2))
    assert {**config_of(first), "command": 0, "begun": 0} == {**config_of(again), "command": 0, "begun": 0}
    assert timeless(first) == timeless(again)
    assert config_of(first)["env"]["arguments"] == {"horizon": 3, "eos": None}
    assert llm_mdp("train --config runs/grpo-tabular-1/config.json --seed 6 --steps 2")[0] == 0
    other = config_of(here / "runs" / "grpo-tabular-3")
    assert (
        other["train"] == {**config_of(first)["train"], "seed": 6, "steps": 2}
        and other["agent"] == config_of(first)["agent"]
    )
    assert timeless(here / "runs" / "grpo-tabular-3")[1] != timeless(first)[1]


def another(hint, default):
    """A value that differs from the default, and how it is typed."""
    kinds = [hint, *get_args(hint)]
    literal = next((kind for kind in kinds if get_origin(kind) is Literal), None)
    if literal is not None:
        value = [choice for choice in get_args(literal) if choice != default][-1]
        return value, [str(value)]
    if bool in kinds:
        return not default, [str(not default)]
    if get_origin(hint) is tuple:
        return (1, 2), ["1", "2"]
    text = {"AdamW": "SGD", "eval/reward": "eval/greedy_reward"}.get(default, "somewhere")
    value = text if str in kinds else (default or 0.5) / 2 if float in kinds else (default or 2) + 1
    return value, [str(value)]


def options_of(kind) -> list[tuple]:
    hints = get_type_hints(kind)
    return [(each.name, *another(hints[each.name], getattr(kind(), each.name))) for each in fields(kind)]


def refused(agent, options: dict) -> bool:
    try:
        replace(agent, **options)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("name", AGENTS)
def test_every_option_of_every_agent_is_a_flag_and_stands_in_the_config(name, capsys):
    default = AGENTS[name].Config()
    together: list[tuple[dict, list[str]]] = [({}, [])]
    # Options that go with one another are read at once: a parser of so many takes a third of a second to make.
    for option, value, typed in options_of(AGENTS[name].Config):
        words, wanted = ["--" + option.replace("_", "-"), *typed], {option: value}
        if option == "boundary":
            words, wanted = [*words, "--separators", "1"], {**wanted, "separators": (1,)}
        if refused(default, wanted):
            with pytest.raises(SystemExit):
                read_train([name, "Tabular", *words])
        elif option in together[0][0]:
            continue
        elif refused(default, together[0][0] | wanted):
            together.append((wanted, words))
        else:
            together[0] = (together[0][0] | wanted, [*together[0][1], *words])
    for wanted, words in together:
        _, agent, arguments = read_train([name, "Tabular", *words])
        assert agent == replace(default, **wanted)
        assert all(getattr(agent, option) != getattr(default, option) for option in wanted)
        document = json.loads(
            json.dumps(RunConfig(agent, arguments.env, {}, arguments.model, arguments.train).document())
        )
        assert document["agent"]["name"] == name and document["agent"].keys() == {
            "name",
            *(each.name for each in fields(agent)),
        }
        for option, value in wanted.items():
            assert document["agent"][option] == (list(value) if isinstance(value, tuple) else value)
        assert read_run_config(document).agent == agent
    capsys.readouterr()


@pytest.mark.parametrize(
    ("part", "kind", "alone"),
    [("model", ModelConfig, ""), ("train", TrainConfig, "eval_split"), ("train", TrainConfig, "eval_problems")],
)
def test_every_option_of_models_and_training_is_a_flag_and_stands_in_the_config(part, kind, alone):
    # One of these two may be chosen.
    options = [each for each in options_of(kind) if each[0] not in ("eval_split", "eval_problems") or each[0] == alone]
    words = [word for option, _, typed in options for word in ("--" + option.replace("_", "-"), *typed)]
    _, agent, arguments = read_train(["rloo", "Tabular", *words])
    assert getattr(arguments, part) == kind(**{option: value for option, value, _ in options})
    document = json.loads(json.dumps(RunConfig(agent, arguments.env, {}, arguments.model, arguments.train).document()))
    assert document[part] == asdict(kind()) | {option: value for option, value, _ in options}
    assert getattr(read_run_config(document), part) == getattr(arguments, part)


@pytest.mark.parametrize("name", AGENTS)
def test_every_agent_trains_by_its_name(name, llm_mdp, here):
    status, _, complaints = llm_mdp(
        f"train {name} Tabular --steps 1 {SHORT} --warm-start 0 --env-args horizon=2 --name run"
    )
    assert (status, complaints) == (0, "")
    config = config_of(here / "runs" / "run")
    assert read_run_config(config).agent == AGENTS[name].Config() and config["run"] == {
        "warm_start": 0,
        "loggers": ["none"],
        "shard": False,
    }


OWN = '''
from llm_mdp.estimators.algorithms import RLOO


class Mine(RLOO):
    """RLOO by another name."""
'''


def test_an_estimator_of_ones_own(llm_mdp, here):
    (here / "own.py").write_text(OWN)
    status, said, _ = llm_mdp(f"train own.py:Mine Tabular --steps 2 {SHORT}")
    assert status == 0
    assert config_of("runs/mine-tabular-1")["agent"] == {"name": f"{here}/own.py:Mine"}
    assert llm_mdp(said.splitlines()[-1].split("llm-mdp ")[1])[0] == 0
    assert llm_mdp("train --config runs/mine-tabular-1/config.json --name again")[0] == 0
    assert timeless("runs/again") == timeless("runs/mine-tabular-1")
    assert llm_mdp(f"train rloo Tabular --group-size 4 --steps 4 {SHORT} --name zoo")[0] == 0
    assert timeless("runs/zoo") == timeless("runs/again")
    status, _, complaints = llm_mdp(f"train own.py:Yours Tabular {SHORT}")
    assert (status, complaints) == (2, "llm-mdp: own.py has no 'Yours'; it defines Mine.\n")
    status, _, complaints = llm_mdp("train own.py:Mine Tabular --group-size 3")
    assert status == 2 and "Unrecognized options: --group-size" in complaints


# What cannot be done


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("rlo Tabular", "there is no agent 'rlo'; did you mean rloo?"),
        ("xyz Tabular", "there is no agent 'xyz'; choose one of reinforce, rloo,"),
        ("rloo Tabula", "there is no environment 'Tabula'; did you mean Tabular?"),
        ("rloo xyz", "there is no environment 'xyz'; `llm-mdp envs` lists them."),
        (
            "rloo Tabular --env-args digits=1",
            "llm_mdp/Tabular-v0: Tabular has no argument 'digits'; it takes vocab_size",
        ),
        ("rloo Tabular --env-args digits", "--env-args has 'digits'; write NAME=VALUE, such as digits=1."),
        ("rloo Tabular --env-args vocab_size=1", "vocab_size is 1; it must be a whole number of at least 2."),
        ("rloo Tabular --loggers paper", "'paper' is not a logger; choose from tensorboard, wandb, trackio and none."),
        ("rloo Tabular --loggers none tensorboard", "loggers are none, tensorboard; none stands alone."),
        ("rloo Tabular --warm-start 5", "Tabular has no answers to learn from;"),
        ("rloo Tabular --model ./nowhere", "there is no nowhere;"),
        (
            "rloo Tabular --lora-rank 4",
            "lora_rank is 4, which changes nothing about the model 'tabular'; leave it out.",
        ),
        (
            "rloo Tabular --model small --device abacus",
            "device is 'abacus', which is not here; give cpu, cuda, cuda:1 … or auto.",
        ),
        ("rloo Arithmetic --model tabular", "Arithmetic is no token MDP, so it has no table;"),
        ("rloo ReasoningGym", "ReasoningGym is in words; name a language model (--model FOLDER), or --model small"),
        ("nowhere.py:Mine Tabular", "there is no file nowhere.py."),
        ("nowhere:Mine Tabular", "module 'nowhere' cannot be imported"),
        ("--config", "--config needs a file: the config.json of a run."),
        ("--config nowhere.json", "there is no file nowhere.json; give the config.json of a run."),
        ("--config=nowhere.json", "there is no file nowhere.json; give the config.json of a run."),
        ("--config .", ". is a folder; give the config.json of a run."),
        ("--seed 1 --config other.json", "--config stands first: llm-mdp train --config runs/NAME/config.json"),
        ("-q", "the agent is missing before -q: llm-mdp train AGENT ENV [options]; `llm-mdp train --help` lists"),
        ("--steps 3 rloo Tabular", "the agent is missing before --steps:"),
        ("--config torn.json", "torn.json is not JSON (Expecting"),
        ("--config other.json", "the config does not fit this version ('agent');"),
        ("--config list.json", "the config does not fit this version (list indices"),
        ("--resume nowhere", "nowhere holds no run; start one with `llm-mdp train`."),
    ],
)
def test_complaints_are_one_line_and_leave_no_folder(llm_mdp, here, words, complaint):
    (here / "torn.json").write_text('{"agent": ')
    (here / "other.json").write_text("{}")
    (here / "list.json").write_text("[]")
    status, said, complaints = llm_mdp(f"train {words}")
    assert (status, said) == (2, "")
    assert complaints.startswith(f"llm-mdp: {complaint}") and complaints.count("\n") == 1, complaints
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("rloo Tabular --stepz 3", "Unrecognized options: --stepz"),
        ("rloo Tabular --samples 3", "Unrecognized options: --samples"),
        ("rloo Tabular --steps three", "Error parsing --steps:"),
        ("rloo Tabular --steps 0", "steps is 0; it must be at least 1."),
        ("trepo Tabular --samples 0", "samples is 0; a value needs at least 1 branch."),
        ("rloo Tabular --dtype int8", "invalid choice 'int8'"),
        ("rloo Tabular --temperature 0", "temperature is 0.0; it must be above 0."),
        ("rloo", "Id of the environment"),
        ("--resume", "Missing value for argument '--resume'"),
        ("--resume x --stepz 3", "Unrecognized options: --stepz"),
    ],
)
def test_options_that_do_not_exist_are_named(llm_mdp, here, words, complaint):
    status, said, complaints = llm_mdp(f"train {words}")
    assert (status, said) == (2, "") and complaint in re.sub(r"[│\s]+", " ", complaints)
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        ("--resume x --learning-rate 1", "--learning-rate"),
        ("--resume x --steps 3 --lr 1", "--lr"),
        ("--resume=x --group_size=4", "--group_size=4"),
        ("--resume x -q --env-args digits=1", "--env-args"),
        ("--resume x --quiet False Tabular", "Tabular"),
        ("rloo Tabular --resume x", "rloo"),
    ],
)
def test_a_run_that_goes_on_keeps_its_choices(llm_mdp, words, refused):
    status, said, complaints = llm_mdp(f"train {words}")
    assert (status, said, complaints.count("\n")) == (2, "", 1)
    assert complaints.startswith(
        f"llm-mdp: {refused} cannot be given with --resume: a run that goes on keeps its choices, all but --steps and "
        f"--quiet; with other choices it is another run: llm-mdp train --config runs/NAME/config.json"
    )


def test_what_a_run_that_goes_on_may_be_given_is_not_refused(llm_mdp):
    nothing = (2, "", "llm-mdp: x holds no run; start one with `llm-mdp train`.\n")
    for words in ("--resume x --steps 3 -q", "--resume=x --quiet True --max-steps=3", "--steps 3 --resume x --quiet"):
        assert llm_mdp(f"train {words}") == nothing


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("eval runs/x", "there is no environment 'runs/x'; did you mean --run runs/x?"),
        ("inspect runs/x", "there is no environment 'runs/x'; did you mean --run runs/x?"),
        ("inspect --estimators rloo runs/x", "there is no estimator 'runs/x'; did you mean --run runs/x?"),
        ("variance --env runs/x", "there is no environment 'runs/x'; did you mean --run runs/x?"),
        ("variance runs/x", "there is no estimator 'runs/x'; did you mean --run runs/x?"),
        ("train runs/x", "there is no agent 'runs/x'; did you mean --resume runs/x?"),
        ("train rloo runs/x", "there is no environment 'runs/x'; did you mean --resume runs/x?"),
        # The folder of a model has a config.json, too.
        ("eval weights", "there is no environment 'weights'; `llm-mdp envs` lists them."),
    ],
)
def test_a_run_in_another_place_is_sent_to_its_own(llm_mdp, here, words, sentence):
    for folder in ("runs/x", "weights"):
        (here / folder).mkdir(parents=True)
        (here / folder / "config.json").write_text("{}")
    (here / "runs/x/metrics.jsonl").touch()
    assert llm_mdp(words) == (2, "", f"llm-mdp: {sentence}\n")


def test_train_without_anything_says_how(llm_mdp, here):
    status, said, complaints = llm_mdp("train")
    assert (status, said) == (2, "") and complaints.startswith("usage: llm-mdp train AGENT ENV [options]")
    assert all(name in complaints for name in AGENTS)
    assert llm_mdp("train --help") == (0, complaints, "")
    status, said, _ = llm_mdp("train trepo --help")
    assert status == 0 and {"--samples", "--lora-rank", "--eval-every", "--env-args"} <= set(said.split())


def test_a_run_that_meets_a_nan_ends_with_status_1(llm_mdp, here):
    # 16 responses are a batch of the run; what checks estimators has others.
    method = "    def loss(self, logp, evidence):\n        loss = super().loss(logp, evidence)\n"
    (here / "own.py").write_text(
        OWN + method + "        return loss / 0 if evidence.response_reward.shape == (16,) else loss\n"
    )
    status, _, complaints = llm_mdp(f"train own.py:Mine Tabular --steps 3 {SHORT}")
    assert status == 1 and complaints.startswith(
        "llm-mdp: step 1: the loss is not finite, and nothing was updated. The batch is in runs/"
    )
    assert (here / "runs" / "mine-tabular-1" / "failed").is_dir()


# Words, turns, language models


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A Hugging Face folder: a tiny Llama and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("model"), byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 3, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


WORDS = "--steps 2 --group-size 2 --prompts-per-step 2 --eval-prompts 2 --signal-every 0 --loggers none "
WORDS += "--checkpoint-every 1"


@pytest.mark.parametrize("env", ["ReasoningGym", "Math"])
def test_words_with_a_small_transformer(env, llm_mdp, here):
    small = "--model small --width 16 --layers 1 --heads 2 --env-args horizon=5"
    status, _, complaints = llm_mdp(f"train rloo llm_mdp/{env}-v0 {small} {WORDS} --name run")
    assert (status, complaints) == (0, "")
    status, said, _ = llm_mdp("eval --run runs/run --prompts 2 --samples 1")
    assert status == 0 and "→" in said


@pytest.mark.slow
@pytest.mark.parametrize("adapters", ["", "--lora-rank 4 --lora-alpha 8"])
def test_words_with_a_language_model(adapters, llm_mdp, here, language_model):
    status, _, complaints = llm_mdp(
        f"train rloo ReasoningGym --model {language_model} {adapters} {WORDS} --env-args horizon=5 --name run"
    )
    assert (status, complaints) == (0, "")
    whole = timeless("runs/run")
    assert llm_mdp("train --resume runs/run/checkpoints/step-000001")[0] == 0
    assert timeless("runs/run") == whole
    status, said, _ = llm_mdp("eval --run runs/run --prompts 2 --samples 0")
    assert status == 0 and said.startswith(f"reward {whole[-1]['eval/reward']:.3f}")


def test_turns(llm_mdp, here):
    small = "--model small --width 16 --layers 1 --heads 2 --env-args highest=8 max_turns=2"
    status, _, complaints = llm_mdp(f"train grpo GuessNumber {small} {WORDS} --name run")
    assert (status, complaints) == (0, "")
    status, said, _ = llm_mdp("eval --run runs/run --prompts 4 --samples 1")
    assert status == 0 and said.startswith("reward ")


# Eval and agents


def test_eval(llm_mdp, here):
    assert llm_mdp(f"train rloo Tabular --steps 3 {SHORT} --env-args seed=4 --name run")[0] == 0
    status, said, _ = llm_mdp("eval --run runs/run --prompts 8 --samples 2 --json figures.json")
    figures, last = json.loads(Path("figures.json").read_text()), load_metrics(here / "runs" / "run")[-1]
    assert status == 0 and len(figures.pop("samples")) == 2 and figures == {name: last[name] for name in figures}
    assert f"expected reward {last['eval/exact_reward']:.6f}, exactly" in said and said.count("→") == 2
    status, said, _ = llm_mdp("eval Arithmetic --model small --width 16 --heads 2 --prompts 4 --samples 0")
    figure = r"\d.\d{3} \(95 %: \d.\d{3} … \d.\d{3}, 4 prompts\)\n"
    assert status == 0 and re.fullmatch(f"reward {figure}greedy {figure}", said)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("", "name an environment, or a run with --run runs/NAME."),
        ("--run nowhere", "nowhere holds no run;"),
        ("Tabula", "there is no environment 'Tabula';"),
        ("Tabular --prompts 0", "prompts is 0;"),
        ("Tabular --samples -1", "--samples is -1;"),
        ("Tabular --seed -1", "--seed is -1;"),
        ("Tabular --json nowhere/x.json", "there is no folder"),
        ("--run runs/x --model small", "--run brings its own model;"),
        ("Tabular --model ./nowhere", "there is no nowhere;"),
    ],
)
def test_eval_complains_in_one_line(llm_mdp, words, complaint):
    status, said, complaints = llm_mdp(f"eval {words}")
    assert (status, said) == (2, "") and complaints.startswith(f"llm-mdp: {complaint}") and complaints.count("\n") == 1


def test_eval_of_a_run_that_has_not_finished(llm_mdp, here):
    assert llm_mdp(f"train rloo Tabular --steps 1 {SHORT} --name run")[0] == 0
    (here / "runs" / "run" / "model" / "table.safetensors").unlink()
    (here / "runs" / "run" / "model").rmdir()
    status, _, complaints = llm_mdp("eval --run runs/run")
    assert status == 2 and "the run has not finished; `llm-mdp train --resume runs/run` goes on with it." in complaints


@pytest.mark.slow
def test_agents(llm_mdp, here):
    status, said, _ = llm_mdp("agents --json agents.json")
    listed = json.loads(Path("agents.json").read_text())
    assert status == 0 and [each["name"] for each in listed] == list(AGENTS) and all(name in said for name in AGENTS)
    for each in listed:
        agent = AGENTS[each["name"]]
        assert (
            each["paper"] == agent.paper and tuple(each["claims"]) == agent.claims and (ROOT / each["file"]).is_file()
        )
        assert each["options"] == [option.name for option in fields(agent.Config)]
        assert set(each["claims"].values()) == {None}, "not computed"
    assert llm_mdp("agents rloo trepo --certify --json certified.json")[0] == 0
    listed = json.loads(Path("certified.json").read_text())
    verdicts = {claim: verdict for each in listed for claim, verdict in each["claims"].items()}
    assert (verdicts["rloo"], verdicts["rloo-eq36"], verdicts["trepo-eq31"]) == ("unbiased", "proportional", "biased")


# The terminal


FIGURES = {"loss": 1.0, "reward": 0.123456, "eval/reward": 0.5, "gradient_norm": 2.0, "seconds": 3.0}


@pytest.mark.parametrize(
    ("room", "said"),
    [
        (200, "reward 0.123  eval 0.5  gradient 2  loss 1"),
        (33, "reward 0.123  eval 0.5"),
        (34, "reward 0.123  eval 0.5  gradient 2"),
        (12, "reward 0.123"),
        (11, ""),
        (-5, ""),
    ],
)
def test_figures_are_dropped_from_the_right(room, said):
    assert figures_within(room, FIGURES) == said and "seconds" not in SHOWN


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 180])
def test_the_progress_line_fits_the_terminal(columns, here):
    words = f"train rloo Arithmetic --steps 4 {SHORT} --warm-start 60 --width 16 --heads 2 --layers 1"
    shown = lines_in_a_terminal(["-m", "llm_mdp.cli", *words.split()], columns)
    lines = [line for line in shown if line.strip()]
    bars = [line for line in lines if "━" in line]
    assert all(len(line) <= columns and "…" not in line for line in bars)
    assert any(re.match(r"warm start ━.* \d+/60 +\S+ (left|so far) +loss \d", line) for line in bars)
    assert any(re.match(r"training ━.* 4/4 +\S+ (left|so far) +reward \d\S*  eval \d", line) for line in bars)
    assert not any(re.match(r"preparing .*\d/60", line) for line in bars), (
        "one stage's count stands under another's name"
    )
    assert [line.split(" ")[0] for line in lines[-4:]] == ["reward", "options", "report:", "go"]


# Imports


def loaded_by(code: str) -> set[str]:
    program = f"{code}\nimport sys\nprint(sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(
        ast.literal_eval(
            subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
        )
    )


HEAVY = {"torch", "transformers", "peft", "gymnasium", "matplotlib", "tensorboard", "accelerate", "numpy", "rich"}


@pytest.mark.parametrize("code", ["import llm_mdp.cli.__main__", "import llm_mdp_agents"])
def test_the_command_line_starts_without_what_training_needs(code):
    assert not loaded_by(code) & HEAVY


@pytest.mark.slow
def test_the_zoo_is_loaded_when_it_is_asked_for():
    assert "torch" in loaded_by("import llm_mdp_agents\nllm_mdp_agents.train")
    assert not loaded_by("import llm_mdp_agents.zoo") & {"transformers", "peft", "matplotlib", "tensorboard"}
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        __import__("llm_mdp_agents").trian  # noqa: B018


def test_help_loads_no_torch(here):
    code = "import sys\nsys.argv = ['llm-mdp', '--help']\nimport llm_mdp.cli.__main__, contextlib, io\n"
    code += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
    code += "    llm_mdp.cli.__main__.main()"
    assert not loaded_by(code) & (HEAVY - {"rich"})


# A budget of tokens


BUDGET = "--steps 6 --checkpoint-every 3 --env-args horizon=6 --pilot-prompts 32 --pilot-share 20 --eval-prompts 8 "
BUDGET += "--eval-every 3 --loggers none"


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model" / "table.safetensors")


@pytest.mark.slow
def test_a_run_with_a_budget_goes_on_from_a_checkpoint_as_if_nothing_had_happened(llm_mdp, here):
    """What the pilot chose is kept: no second pilot, the same batches, the same weights to the last bit. (Of half as
    many steps the pilot may cost twice the share.)"""
    assert llm_mdp(f"train trepo Credit --budget 400 --name whole {BUDGET}")[0] == 0
    assert llm_mdp(f"train trepo Credit --budget 400 --name part {BUDGET} --steps 3 --pilot-share 40")[0] == 0
    assert llm_mdp("train --resume runs/part --steps 6")[0] == 0
    whole, part = here / "runs" / "whole", here / "runs" / "part"
    assert timeless(whole) == timeless(part) and config_of(whole)["agent"]["budget"] == 400
    one, two = weights(whole), weights(part)
    assert one.keys() == two.keys() and all((one[name] == two[name]).all() for name in one)
    spent = [line["tokens"] for line in load_metrics(whole)[1:]]
    assert len(spent) == 6 and spent[0] == 0 and all(200 < tokens <= 400 for tokens in spent[1:])


def test_a_budget_that_is_too_small_is_one_line_and_no_step(llm_mdp, here):
    status, said, complaints = llm_mdp(f"train trepo Credit --budget 11 --name none {BUDGET}")
    assert (status, said) == (2, "")
    assert (
        complaints
        == "llm-mdp: a budget of 11 tokens is too small: the cheapest group costs 12.0 tokens on average; raise it.\n"
    )
    assert not load_metrics(here / "runs" / "none")


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_written_where_it_is_installed(installed, monkeypatch):
    """The first command that a newcomer types works with what `make verify` has installed."""
    monkeypatch.setattr("llm_mdp_agents.training.loggers.find_spec", lambda name: installed or None)
    assert read_train(["rloo", "Tabular"])[2].loggers == (("tensorboard",) if installed else ())
