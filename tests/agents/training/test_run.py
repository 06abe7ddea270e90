"""Runs: what `train` gives back and leaves in its folder, and that a run killed at any moment goes on as if nothing had
happened."""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp_agents import Run, resume, train
from llm_mdp_agents.lm.policy import tiny_transformer
from llm_mdp_agents.resolve import ModelConfig, find_task
from llm_mdp_agents.training import checkpoint
from llm_mdp_agents.training.records import load_metrics, load_samples
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trained import load_policy_of_run
from llm_mdp_agents.training.trainer import NonFinite
from llm_mdp_agents.training.warm_start import batches_of
from llm_mdp_agents.zoo import grpo, ppo, rloo, trepo
from llm_mdp_envs.task import Question, Scores, Task
from llm_mdp_envs.tasks.synthetic import Tabular
from tests.patience import PATIENCE

TIMING = {"seconds", "tokens_per_second"}
SHORT = {"prompts_per_step": 4, "eval_prompts": 8, "eval_every": 2, "signal_every": 2, "progress": False}


def short(agent, env, policy="auto", **options) -> Run:
    return train(agent, env, policy, **SHORT | {"steps": 2} | options)


class Parity(Task):
    """A task of one's own: 1 for an even number of ones."""

    vocab_size, eos, horizon, prompt_length = 3, 0, 4, 1

    def question(self, generator):
        return Question((int(generator.integers(3)),))

    def score(self, questions, tokens, mask):
        return Scores((np.where(mask, tokens == 1, False).sum(-1) % 2 == 0).astype(float))


@dataclass(frozen=True)
class Plain(Estimator):
    """An estimator of one's own: the reward, nothing subtracted."""

    group_size: int = 2
    unknown: object = field(default_factory=object)

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


# What train takes and gives back


@pytest.mark.parametrize(
    "agent", ["rloo", rloo.RLOOConfig(group_size=3), RLOO(group_size=3), Plain()], ids=lambda each: str(each)[:8]
)
def test_agents_come_as_names_options_or_estimators(agent):
    done = short(agent, "Tabular")
    assert [line["step"] for line in done.metrics] == [0, 1, 2] and done.folder is None
    assert done.agent.group_size == getattr(agent, "group_size", 8)
    assert done["eval/exact_reward"] == done.metrics[-1]["eval/exact_reward"] != done.metrics[0]["eval/exact_reward"]
    assert done["loss"] == done.metrics[2]["loss"]
    with pytest.raises(KeyError, match="no metric 'rewards'; it has step, eval/reward"):
        done["rewards"]


def test_a_task_and_a_policy_of_ones_own_are_trained_in_place():
    policy = tiny_transformer(3, 5, 0)
    before = {name: each.clone() for name, each in policy.state_dict().items()}
    done = short("rloo", Parity(), policy)
    assert done.policy is policy and isinstance(done.task, Parity)
    assert any(not torch.equal(each, before[name]) for name, each in policy.state_dict().items())


def test_policies_come_by_name_and_options():
    assert isinstance(short("rloo", "Tabular").policy, TabularPolicy)
    assert isinstance(short("rloo", "Tabular", "ngram").policy, NgramPolicy)
    small = short("rloo", "Tabular", ModelConfig("small", width=16, layers=1, heads=2, temperature=0.5)).policy
    assert small.model.config.hidden_size == 16 and small.temperature == 0.5


def test_env_arguments_and_ids():
    assert short("rloo", "llm_mdp/Tabular-v0", env_arguments={"vocab_size": 3}).task.vocab_size == 3
    assert isinstance(find_task("Tabular"), Tabular) and isinstance(find_task("llm_mdp/Tabular-v0"), Tabular)


def test_the_same_seed_gives_the_same_run():
    first, again, other = (short("rloo", "Tabular", seed=seed, config=TrainConfig(steps=9)) for seed in (1, 1, 2))
    assert timeless(first.metrics) == timeless(again.metrics) != timeless(other.metrics)
    assert len(first.metrics) == 3, "options must win over config"


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("rlo", "Tabular"), {}, "no agent 'rlo'; did you mean rloo"),
        (("rloo", "Tabula"), {}, "no environment 'Tabula'; did you mean Tabular"),
        (("rloo", "Tabular"), {"env_arguments": {"digits": 1}}, "no argument 'digits'; it takes vocab_size"),
        (("rloo", "Tabular"), {"stepz": 1}, "no option 'stepz'; it has steps"),
        (("rloo", "Tabular"), {"loggers": ("paper",)}, "'paper' is not a logger"),
        (("rloo", "Tabular"), {"warm_start": 5}, "Tabular has no answers to learn from"),
        (("rloo", "Arithmetic"), {"warm_start": -1}, "warm_start is -1"),
        (("rloo", "Arithmetic", "tabular"), {}, "Arithmetic is no token MDP"),
        (("rloo", "ReasoningGym"), {}, "ReasoningGym is in words; name a language model"),
        (
            ("rloo", "Tabular", ModelConfig(width=32)),
            {},
            "width is 32, which changes nothing about the model 'tabular'",
        ),
        (
            ("rloo", "Tabular", ModelConfig("small", lora_rank=4)),
            {},
            "lora_rank is 4, which changes nothing about the model 'small'",
        ),
        (("rloo", "Tabular", ModelConfig("small", device="abacus")), {}, "device is 'abacus', which is not here"),
        (("rloo", "Tabular", ModelConfig("small", width=10)), {}, "width is 10 with 4 heads"),
        ((ppo.PPOConfig(critic="./nowhere"), "Tabular"), {}, "nowhere"),
        ((RLOO, "Tabular"), {}, "give a name such as 'rloo'"),
        (("nowhere.py:Mine", "Tabular"), {}, "there is no file nowhere.py"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(tmp_path, arguments, options, words):
    with pytest.raises(ValueError, match=words):
        short(*arguments, folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"lora_rank": -1}, "lora_rank is -1"),
        ({"layers": 0}, "layers is 0"),
        ({"heads": 0}, "heads is 0"),
    ],
)
def test_impossible_models_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ModelConfig("small", **options)


# The folder


def test_what_a_run_leaves_in_its_folder(tmp_path):
    options = {"steps": 5, "checkpoint_every": 2, "env_arguments": {"horizon": 3}, "loggers": ("tensorboard",)}
    done = short(grpo.GRPOConfig(group_size=3), "Tabular", folder=tmp_path / "run", **options)
    folder = done.folder
    assert folder == tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        ".lock", "config.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "model", "report.html", "tensorboard",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config["agent"]["name"] == "grpo" and config["agent"]["group_size"] == 3
    assert config["env"] == {"id": "Tabular", "arguments": {"horizon": 3}}
    assert (
        config["train"]["steps"] == 5
        and config["model"]["model"] == "auto"
        and config["run"]["loggers"] == ["tensorboard"]
    )
    lines = load_metrics(folder)
    assert lines == done.metrics and [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "eval/reward" in line] == [0, 2, 4, 5]
    assert [sample["step"] for sample in load_samples(folder)] == [step for step in (0, 2, 4, 5) for _ in range(8)]
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000004", "step-000005"]
    assert "Tabular" in (folder / "report.html").read_text()
    policy, task = load_policy_of_run(folder, None, {}, ModelConfig(), 0)
    assert task.horizon == 3 and same_weights(policy, done.policy)


def test_a_small_transformer_comes_back_from_its_folder(tmp_path):
    model = ModelConfig("small", width=16, layers=1, heads=2, temperature=0.5)
    done = short("rloo", "Arithmetic", model, folder=tmp_path / "run", warm_start=1)
    policy, task = load_policy_of_run(done.folder, None, {}, ModelConfig(), 0)
    assert same_weights(policy, done.policy) and policy.temperature == 0.5 and policy.vocab_size == task.vocab_size


@pytest.mark.parametrize(
    ("model", "env", "arguments", "batches"),
    [
        ("auto", "Arithmetic", {}, 200),
        ("small", "Arithmetic", {}, 200),
        ("some/model", "Arithmetic", {}, 0),
        ("small", "Arithmetic", {"scratchpad": 4}, 0),
        ("auto", "Tabular", {}, 0),
        ("small", "Tabular", {}, 0),
    ],
)
def test_only_what_begins_from_nothing_is_warmed_up_unasked(model, env, arguments, batches):
    assert batches_of(None, find_task(env, arguments), model) == batches


def test_the_reference_is_the_policy_after_the_warm_start():
    options = {"warm_start": 3, "learning_rate": 1e-3}
    done = short(rloo.RLOOConfig(kl=0.1), "Arithmetic", ModelConfig("small", width=16, layers=1, heads=2), **options)
    assert abs(done.metrics[1]["kl"]) < 1e-6 < abs(done.metrics[2]["kl"])


def test_another_environment_needs_the_same_tokens(tmp_path):
    done = short("rloo", "Tabular", folder=tmp_path / "run", env_arguments={"seed": 3})
    task = load_policy_of_run(done.folder, None, {"horizon": 4}, ModelConfig(), 0)[1]
    assert task.horizon == 4
    with pytest.raises(ValueError, match="does not fit Needle; evaluate it on Tabular"):
        load_policy_of_run(done.folder, "Needle", {}, ModelConfig(), 0)


def test_a_folder_holds_one_run(tmp_path):
    short("rloo", "Tabular", folder=tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match="holds a run already"):
        short("rloo", "Tabular", folder=tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((Plain(), "Tabular"), r"the agent of the run is Plain \(given\)"),
        (("rloo", Parity()), r"the env of the run is Parity \(given\)"),
        (("rloo", Tabular(seed=5)), r"the env of the run is Tabular \(given\)"),
        (("rloo", "Tabular", tiny_transformer(4, 6, 0)), r"the model of the run is LanguageModelPolicy \(given\)"),
    ],
)
def test_objects_of_a_program_are_named_and_not_guessed_at(tmp_path, arguments, words):
    short(*arguments, folder=tmp_path)
    with pytest.raises(ValueError, match=words):
        resume(tmp_path, steps=4)


# Resume


def timeless(metrics: list[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMING} for line in metrics]


def same_weights(one, other) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def model_bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "model").glob("*.safetensors"))}


def lines(folder) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(folder) -> bool:
    return any((folder / "checkpoints").glob(".step-*"))


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["llm_mdp_agents.training.run", "transformers.models.llama.modeling_llama", "peft"])


def alone(function, *args, kill_when=None, **options) -> None:
    """Call it in a process of its own; kill that process in the moment that `kill_when` names."""
    process = PROCESSES.Process(target=function, args=args, kwargs=options)
    process.start()
    deadline = time.monotonic() + PATIENCE
    while kill_when is not None and not kill_when() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.0005)
    if kill_when is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join(PATIENCE)
    assert process.exitcode == (0 if kill_when is None else -signal.SIGKILL), (
        "the process ended before the kill, or failed"
    )


RESUMED = {
    "eval_prompts": 8,
    "eval_every": 4,
    "signal_every": 3,
    "checkpoint_every": 5,
    "schedule": "cosine",
    "warm_up_steps": 8,
}
RESUMED |= {"prompts_per_step": 4, "progress": False}
TINY = ModelConfig("small", width=16, layers=1, heads=2)
RUNS = {
    "table": (("rloo", "Tabular"), {"steps": 60, "seed": 1}),
    "running mean": (("reinforce", "Tabular"), {"steps": 60}),
    "critic": ((ppo.PPOConfig(critic_warm_up=1, group_size=2), "Tabular"), {"steps": 20}),
    "transformer": (
        (trepo.TRePOConfig(boundary="random", positions=2, samples=2, kl=0.1), "Arithmetic", TINY),
        {"steps": 20, "warm_start": 2},
    ),
}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Folders of runs that nobody killed, each made when it is first asked for."""
    made = {}

    def folder_of(kind: str):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("unbroken") / "run"
            arguments, options = RUNS[kind]
            alone(train, *arguments, folder=made[kind], **RESUMED | options)
        return made[kind]

    return folder_of


def check_same_run(folder, whole) -> None:
    assert timeless(load_metrics(folder)) == timeless(load_metrics(whole))
    assert load_samples(folder) == load_samples(whole)
    assert model_bytes(folder) == model_bytes(whole) and model_bytes(whole)
    here, there = checkpoint.load(folder / "checkpoints"), checkpoint.load(whole / "checkpoints")
    assert here.step == there.step and here.tensors.keys() == there.tensors.keys()
    assert all(torch.equal(here.tensors[name], there.tensors[name]) for name in here.tensors)


KILLED = [kind if kind == "table" else pytest.param(kind, marks=pytest.mark.slow) for kind in RUNS]


@pytest.mark.parametrize("kind", KILLED)
def test_a_killed_run_goes_on_bit_for_bit(kind, tmp_path, unbroken):
    (arguments, options), folder = RUNS[kind], tmp_path / "run"
    alone(train, *arguments, folder=folder, kill_when=lambda: lines(folder) > 12, **RESUMED | options)
    config = json.loads((folder / "config.json").read_text())
    newest, done = checkpoint.load(folder / "checkpoints").step, load_metrics(folder)[-1]["step"]
    assert done - 5 <= newest <= done < options["steps"] and not (folder / "report.html").exists()
    alone(resume, folder, progress=False)
    check_same_run(folder, unbroken(kind))
    assert json.loads((folder / "config.json").read_text()) == config and (folder / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_a_run_can_be_killed_again_and_again(number, tmp_path, unbroken):
    draws, folder = random.Random(number), tmp_path / "run"
    arguments, options = RUNS["table"]
    at = sorted(draws.sample(range(6, 45), 3))
    alone(train, *arguments, folder=folder, kill_when=lambda: lines(folder) > at[0], **RESUMED | options)
    for moment in at[1:]:
        done = load_metrics(folder)[-1]["step"]
        assert checkpoint.load(folder / "checkpoints").step >= done - 5
        alone(
            resume,
            folder,
            progress=False,
            kill_when=lambda m=moment: lines(folder) > m and (draws.random() < 0.2 or saving(folder)),
        )
    alone(resume, folder, progress=False)
    check_same_run(folder, unbroken("table"))


@pytest.mark.slow
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, unbroken):
    arguments, options = RUNS["table"]
    folder, options = tmp_path / "run", RESUMED | options | {"checkpoint_every": 1}
    alone(train, *arguments, folder=folder, kill_when=lambda: lines(folder) > 10 and saving(folder), **options)
    done = load_metrics(folder)[-1]["step"]
    assert done - 1 <= checkpoint.load(folder / "checkpoints").step <= done
    alone(resume, folder, progress=False)
    check_same_run(folder, unbroken("table"))
    assert not saving(folder), "an unfinished checkpoint stays behind"


def test_a_run_killed_before_its_first_checkpoint_is_to_be_started_anew(tmp_path):
    folder = tmp_path / "run"
    kill = {"kill_when": lambda: (folder / "config.json").exists(), "folder": folder, "warm_start": 10_000}
    alone(train, "rloo", "Arithmetic", TINY, **RESUMED, **kill)
    with pytest.raises(
        ValueError, match=r"has no checkpoint, .* start it anew: llm-mdp train --config .*run/config.json"
    ):
        resume(folder)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    short("rloo", "Tabular", folder=folder, steps=6, checkpoint_every=2, keep=3)
    return folder


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def tear(path):
    (path / "tensors.safetensors").write_bytes((path / "tensors.safetensors").read_bytes()[:-100])


def replace_by_foreign(path):
    (path / "state.json").write_text('{"model": "of another program"}')


@pytest.mark.parametrize(
    ("damage", "words"), [(tear, "is torn"), (replace_by_foreign, "is not of a checkpoint of LLM-MDP")]
)
def test_a_torn_or_foreign_checkpoint_is_refused_and_the_one_before_is_offered(copy, finished, damage, words):
    damage(copy / "checkpoints" / "step-000006")
    before = (copy / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=words) as refused:
        resume(copy)
    assert f"--resume {copy / 'checkpoints' / 'step-000004'}" in str(refused.value)
    assert (copy / "metrics.jsonl").read_bytes() == before
    resume(copy / "checkpoints" / "step-000004", progress=False)
    check_same_run(copy, finished)


def test_a_checkpoint_that_is_named_is_where_the_run_goes_on(copy, finished):
    done = resume(copy / "checkpoints" / "step-000002", progress=False, steps=4)
    assert [line["step"] for line in load_metrics(copy)] == [0, 1, 2, 3, 4] and done["step"] == 4
    assert timeless(done.metrics) == timeless(load_metrics(finished))[:5]


def test_more_steps_and_what_a_longer_run_would_have_been(copy, tmp_path):
    done = resume(copy, progress=False, steps=10)
    longer = short("rloo", "Tabular", folder=tmp_path / "longer", steps=10, checkpoint_every=2, keep=3)
    assert same_weights(done.policy, longer.policy) and timeless(done.metrics) == timeless(longer.metrics)
    check_same_run(copy, tmp_path / "longer")
    assert json.loads((copy / "config.json").read_text())["train"]["steps"] == 10, "the next resume must know"


def test_fewer_steps_than_were_done_are_refused(copy):
    with pytest.raises(
        ValueError, match=r"steps is 3, but .*step-000006 is of step 6; give more steps, or an earlier checkpoint"
    ):
        resume(copy, steps=3)


def test_a_finished_run_stays_as_it_is(copy, finished):
    done = resume(copy, progress=False)
    check_same_run(copy, finished)
    assert (
        timeless(done.metrics) == timeless(load_metrics(finished))
        and done["eval/reward"] == load_metrics(finished)[-1]["eval/reward"]
    )


def test_a_folder_that_is_no_run(copy, tmp_path):
    with pytest.raises(ValueError, match=r"holds no run; start one with `llm-mdp train`"):
        resume(tmp_path / "run" / "model")
    with pytest.raises(ValueError, match=r"typo holds no run; .* has run\."):
        resume(tmp_path / "typo")
    with pytest.raises(ValueError, match="step-000099 is not a folder"):
        resume(copy / "checkpoints" / "step-000099")
    config = json.loads((copy / "config.json").read_text())
    del config["train"]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="does not fit this version"):
        resume(copy)


# Numbers that are not finite


class Spoiled(Parity):
    """Gives one response of batch 3 a reward that is no number. (The first score is the evaluation's.)"""

    def __init__(self, value: float):
        self.value, self.batches = value, 0

    def score(self, questions, tokens, mask):
        scores = super().score(questions, tokens, mask)
        self.batches += len(questions) == 4 * 8
        if self.batches == 3:
            scores.reward[5] = self.value
        return scores


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_stops_the_run(value, tmp_path):
    policy = tiny_transformer(3, 5, 0)
    with pytest.raises((ValueError, NonFinite), match=f"Spoiled.score gave response 5 the reward {value}"):
        short("rloo", Spoiled(value), policy, folder=tmp_path, steps=6, checkpoint_every=1)
    assert [line["step"] for line in load_metrics(tmp_path)] == [0, 1, 2]
    newest = checkpoint.load(tmp_path / "checkpoints")
    assert newest.step == 2
    weights = {name: newest.tensors[f"trainer/policy/{name}"] for name in policy.state_dict()}
    assert all(torch.equal(each, weights[name]) for name, each in policy.state_dict().items()), (
        "the bad batch changed the policy"
    )


@dataclass(frozen=True)
class Dividing(RLOO):
    """Its loss is no number where a group has equal rewards."""

    def loss(self, logp, evidence):
        reward = evidence.response_reward
        return super().loss(logp, evidence) / torch.where(reward.std(-1) == 0, torch.nan, 1.0)


class Flat(Parity):
    def score(self, questions, tokens, mask):
        return Scores(np.ones(len(questions)))


def test_a_loss_that_is_not_finite_leaves_its_batch_in_the_folder(tmp_path):
    with pytest.raises(
        NonFinite, match=r"step 1: the loss is not finite, and nothing was updated. The batch is in .*step-000001"
    ) as stop:
        short(Dividing(), Flat(), tiny_transformer(3, 5, 0), folder=tmp_path)
    failed = checkpoint.load(tmp_path / "failed")
    assert failed.step == 1 and str(failed.path) in str(stop.value)
    assert (
        failed.tensors["batch/tokens"].shape == (16, 4)
        and failed.tensors["batch/response_reward"].tolist() == [1.0] * 16
    )
    assert checkpoint.load(tmp_path / "checkpoints").step == 0


def test_a_run_is_shown_in_one_line():
    run = train("rloo", "Tabular", steps=2, prompts_per_step=2, eval_prompts=2, progress=False)
    figures = r"reward -?\d\.\d{3} → -?\d\.\d{3}, .*, 2 steps, .* tokens, seed 0"
    assert re.fullmatch(f"rloo on Tabular: {figures}", repr(run))
