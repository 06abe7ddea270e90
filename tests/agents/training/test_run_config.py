"""The config.json of a run, written by this version or by 0.1: read back, or refused in words."""

import json

import pytest

from llm_mdp.own import UsageError
from llm_mdp_agents import resume, train
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.training.records import load_metrics
from llm_mdp_agents.training.run_config import RunConfig, read_run_config
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trained import load_policy_of_run
from llm_mdp_agents.zoo.trepo import TRePOConfig

OF_0_1 = """{
 "agent": {"name": "trepo", "group_size": 2, "clip_low": 0.2, "clip_high": null, "kl": 0.0, "kl_in": "reward",
  "kl_estimator": "k1", "boundary": "separators", "every": 1, "separators": [1, 2], "positions": 4, "samples": 2,
  "lam": 0.0, "group_baseline": false, "variant": "repaired", "pilot_prompts": null, "budget": null},
 "env": {"id": "llm_mdp/Tabular-v0", "arguments": {"horizon": 3}},
 "model": {"model": "auto", "width": 64, "layers": 2, "heads": 4, "dtype": "float32", "device": "auto",
  "scored_by": null, "engine": "hf", "lora_rank": 0, "lora_alpha": 32.0, "gradient_checkpointing": false,
  "temperature": 1.0},
 "train": {"steps": 2, "prompts_per_step": 4, "epochs": 1, "micro_batch": null, "learning_rate": null,
  "schedule": "constant", "warm_up_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "eval_every": 2,
  "eval_prompts": 8, "signal_every": 0, "checkpoint_every": 50, "keep": 2, "seed": 0},
 "run": {"warm_start": null, "loggers": ["none"], "shard": false},
 "command": "llm-mdp train trepo llm_mdp/Tabular-v0",
 "begun": 1790000000.0
}"""
"""As version 0.1 wrote it."""
SAME_TODAY = RunConfig(
    TRePOConfig(group_size=2, boundary="separators", every=1, separators=(1, 2)),
    "llm_mdp/Tabular-v0",
    {"horizon": 3},
    train=TrainConfig(steps=2, prompts_per_step=4, eval_every=2, eval_prompts=8, signal_every=0),
    loggers=("none",),
)


def changed(part: str, **values) -> dict:
    document = json.loads(OF_0_1)
    return {**document, part: {**document[part], **values}}


def test_a_config_of_0_1_says_the_same_today():
    assert read_run_config(json.loads(OF_0_1)) == SAME_TODAY
    written = json.loads(json.dumps(SAME_TODAY.document()))
    for part, defaults in (("agent", TRePOConfig()), ("model", ModelConfig()), ("train", TrainConfig())):
        for name in written[part].keys() - json.loads(OF_0_1)[part].keys():  # what 0.1 had no word for
            assert written[part].pop(name) == getattr(defaults, name)
    assert json.loads(OF_0_1) | written == json.loads(OF_0_1)


def test_a_folder_with_a_config_of_0_1_is_evaluated_and_resumed(tmp_path):
    chosen = {"env_arguments": SAME_TODAY.env_arguments, "config": SAME_TODAY.train, "progress": False}
    done = train(SAME_TODAY.agent, SAME_TODAY.env, folder=tmp_path / "run", loggers=("none",), **chosen)
    (tmp_path / "run" / "config.json").write_text(OF_0_1, encoding="utf-8")
    policy, task = load_policy_of_run(tmp_path / "run", None, {}, ModelConfig(), 0)
    assert task.horizon == 3 and policy.state_dict().keys() == done.policy.state_dict().keys()
    resume(tmp_path / "run", steps=4, progress=False)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [line["step"] for line in load_metrics(tmp_path / "run")] == [0, 1, 2, 3, 4]
    assert config["train"]["steps"] == 4 and config["begun"] == 1790000000.0, "begun and command stay the first ones"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (changed("agent", name="trpo"), r"there is no agent 'trpo'; did you mean trepo\?"),
        (changed("agent", momentum=1), r"the config does not fit this version \(.*'momentum'\); write it anew with"),
        (changed("train", batches=1), r"the config does not fit this version \(.*'batches'\)"),
        (
            changed("env", id="Tabular (given)"),
            r"the env of the run is Tabular \(given\), an object of a Python program",
        ),
    ],
)
def test_what_this_version_does_not_know_is_said(document, words):
    with pytest.raises(ValueError, match=words):
        read_run_config(document)


def test_an_estimator_of_a_module_that_has_moved_is_refused_in_words(tmp_path):
    folder = tmp_path / "run"
    train("rloo", "Tabular", folder=folder, steps=1, prompts_per_step=2, eval_prompts=2, progress=False)
    document = changed("agent") | {"agent": {"name": "llm_mdp.algorithms:RLOO"}}
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    assert read_run_config(document).agent == "llm_mdp.algorithms:RLOO"
    with pytest.raises(UsageError, match=r"^llm_mdp\.algorithms: .*; modules have moved since 0\.1"):
        resume(folder, steps=2, progress=False)
