"""Estimators of ours in TRL's GRPOTrainer: the gradient is our own trainer's, whatever the parts; what cannot be is
refused in words."""

import sys
from dataclasses import dataclass, replace

import pytest
import torch

pytest.importorskip("trl", reason="the bridge to TRL needs TRL")

from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback
from trl import GRPOConfig

from llm_mdp.estimators.algorithms import GRPO, RLOO, TRePO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.entry import Given, NeedsExactValues
from llm_mdp.estimators.objectives import Reduction
from llm_mdp.own import UsageError
from llm_mdp_agents.base import Plain
from llm_mdp_agents.bridges import trl as bridge
from llm_mdp_agents.bridges.trl_tasks import rollout_of
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_envs.tasks.guess_number import GuessNumber

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:You are using 'rollout_func'")

K, PROMPTS = 4, 4
ROWS = K * PROMPTS
TASK = GuessNumber(highest=3, max_turns=2)


def model_of(seed: int = 0):
    torch.manual_seed(seed)
    size = {"vocab_size": TASK.vocab_size, "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=None, eos_token_id=TASK.eos, initializer_range=0.3))
    return model.double()


def trainer_of(folder, estimator, parts: int = 1, measure_every: int = 0, **options):
    rollouts = rollout_of(TASK, questions=8)
    chosen = {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no",
        "num_generations": K, "per_device_train_batch_size": K * PROMPTS // parts, "logging_steps": 1,
        "gradient_accumulation_steps": parts, "max_completion_length": TASK.horizon, "disable_tqdm": True,
        "learning_rate": 1e-2, "max_grad_norm": 1e9, "gradient_checkpointing": False, "optim": "sgd",
        "lr_scheduler_type": "constant",
    } | options  # fmt: skip
    trainer = bridge.EstimatorTrainer(
        model_of(), reward_funcs=rollouts.reward, args=GRPOConfig(**chosen), train_dataset=rollouts.dataset(),
        processing_class=rollouts.tokenizer(), rollout_func=rollouts, estimator=estimator, measure_every=measure_every,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.current_gradient_accumulation_steps = parts
    return trainer


def drawn(trainer):
    """What TRL drew, in its micro-batches."""
    trainer.model.train()
    inputs = [{"prompt": str(number)} for number in range(PROMPTS) for _ in range(K)]
    trainer._prepare_inputs(inputs)
    return trainer._buffered_inputs


@dataclass(frozen=True)
class Clipped(RLOO):
    """RLOO with the clipped surrogate and the mean over the tokens of the batch: what couples rows and reads ratios."""

    clip_low: float | None = 0.05
    reduction: Reduction = "token_mean"


def gradient(model):
    return torch.cat([each.grad.flatten() for each in model.parameters()])


def theirs(trainer, parts):
    trainer.model.zero_grad()
    for part in parts:
        trainer._compute_loss(trainer.model, part).backward()
    return gradient(trainer.model)


def ours(trainer, estimator, drawn_now=True):
    """The same batch in our own trainer."""
    evidence = trainer._batch
    policy = LanguageModelPolicy(trainer.accelerator.unwrap_model(trainer.model), TASK.vocab_size, None)
    own = Trainer(Plain(estimator, policy, TASK), TASK, policy, TrainConfig(prompts_per_step=PROMPTS))
    weights, loss = own._weights(evidence, range(ROWS), drawn_now)
    policy.zero_grad()
    own._backward(evidence.rollouts, weights, torch.arange(ROWS), True)
    return gradient(policy), loss


ESTIMATORS = {"rloo": RLOO(group_size=K), "grpo": GRPO(group_size=K), "clipped": Clipped(group_size=K),
              "smaller groups": RLOO(group_size=2)}  # fmt: skip


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("parts", [1, 4])
def test_the_gradient_is_our_own_trainers_whatever_the_parts(name, parts, tmp_path):
    trainer = trainer_of(tmp_path, ESTIMATORS[name], parts)
    batch = drawn(trainer)
    found, shown = (
        theirs(trainer, batch),
        sum(float(trainer._compute_loss(trainer.model, each).detach()) for each in batch),
    )
    expected, loss = ours(trainer, ESTIMATORS[name])
    # TRL computes log-probabilities in float32.
    assert float((found - expected).norm()) < 1e-5 * float(expected.norm()) and expected.norm() > 1e-3
    assert shown == pytest.approx(loss, abs=1e-6)


def test_rows_of_the_environment_have_no_weight_and_groups_come_apart_unharmed(tmp_path):
    trainer = trainer_of(tmp_path, RLOO(group_size=K), 4)
    batch = drawn(trainer)
    rollouts = trainer._batch.rollouts
    written = (rollouts.tokens >= 0) & ~rollouts.mask
    assert written.any() and not rollouts.mask.all(-1).all()
    rows = torch.cat([part["row"] for part in batch])
    assert sorted(rows.tolist()) == list(range(ROWS)) and rows.tolist() != list(range(ROWS))
    derivative = torch.cat([part["derivative"] for part in batch])
    assert not derivative[written[rows]].any() and derivative[rollouts.mask[rows]].any()


def test_a_second_pass_over_a_batch_is_taken_at_the_policy_as_it_is(tmp_path):
    trainer = trainer_of(tmp_path, Clipped(group_size=K), 2, num_iterations=2)
    batch = drawn(trainer)
    theirs(trainer, batch)
    with torch.no_grad():
        for each in trainer.model.parameters():
            each -= 0.3 * each.grad
    trainer._step = 2
    found, (expected, _) = theirs(trainer, batch), ours(trainer, Clipped(group_size=K), drawn_now=False)
    first, _ = ours(trainer, Clipped(group_size=K))
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())
    assert float((first - expected).norm()) > 1e-2 * float(expected.norm())


def test_a_run_moves_the_policy_and_logs_what_the_gradient_is_worth(tmp_path, monkeypatch):
    monkeypatch.setattr(bridge, "FEWEST", 2 * PROMPTS)
    trainer = trainer_of(tmp_path, RLOO(group_size=K), 2, measure_every=1, max_steps=4)
    before = [each.clone() for each in trainer.model.parameters()]
    trainer.train()
    assert any(not torch.equal(was, each) for was, each in zip(before, trainer.model.parameters()))
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"groups_with_signal", "loss", "reward"} <= logged


def test_figures_are_those_of_single_groups(tmp_path):
    """Rewards that every group tells apart: RLOO is in RLOO's direction, and smaller groups of it are noisier."""
    trainer = trainer_of(tmp_path, RLOO(group_size=K), per_device_train_batch_size=K * 80)
    rollouts = rollout_of(TASK, questions=80)
    trainer.rollout_func = rollouts
    trainer._prepare_inputs([{"prompt": str(number)} for number in range(80) for _ in range(K)])
    evidence = replace(trainer._batch, response_reward=trainer._batch.rollouts.tokens[:, 0].double())
    policy = LanguageModelPolicy(trainer.accelerator.unwrap_model(trainer.model), TASK.vocab_size, None)
    found = bridge.figures(bridge.estimates(evidence, RLOO(group_size=K), policy, K), PROMPTS)
    assert found["cosine_to_rloo"] == pytest.approx(1)
    tokens = PROMPTS * K * float(evidence.rollouts.length.double().mean())
    assert found["signal_to_noise"] == pytest.approx(tokens / found["tokens_to_signal"], rel=1e-6)
    assert found["tokens_to_signal_low"] < found["tokens_to_signal"] < found["tokens_to_signal_high"]
    assert 1 < found["tokens_to_signal_K=2"] / found["tokens_to_signal"] < 4


# --- refused in words -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WithReference(Estimator):
    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        sampler.logp(None, rollouts)
        raise AssertionError("not reached")


@dataclass(frozen=True)
class FromElsewhere(Estimator):
    def collect(self, sampler):
        return sampler.rollouts(self.group_size, temperature=0.5)


def test_what_an_estimator_collects_and_trl_has_not_is_refused():
    for estimator, words in (
        (TRePO(), "TRePO draws branches"),
        (WithReference(), "WithReference reads another policy's log-probabilities"),
        (FromElsewhere(), "draws from another distribution"),
        (RLOO(group_size=3), "compares 3 responses to a prompt, and num_generations is 4; set num_generations=3"),
    ):
        with pytest.raises(UsageError, match=words):
            bridge.check_expressible(estimator, K)


def test_every_estimator_of_the_catalogue_is_taken_or_refused_in_words():
    taken, refused = set(), set()
    for name, entry in CATALOGUE.items():
        try:
            estimator = entry.make(Given(TASK.horizon), **({"group_size": K} if entry.compares else {}))
        except NeedsExactValues:
            continue
        try:
            bridge.check_expressible(estimator, K)
            taken.add(name)
        except UsageError as error:
            assert "TRL's trainer has responses and their rewards alone" in str(error)
            refused.add(name)
    assert {"rloo", "grpo", "dr-grpo", "token-mean"} <= taken and {"trepo", "vineppo"} <= refused


@pytest.mark.parametrize(
    "option, words",
    [
        ({"beta": 0.1}, "beta is 0.1, which would act on TRL's own loss"),
        ({"loss_type": "dr_grpo"}, "loss_type is 'dr_grpo'"),
        ({"scale_rewards": False}, "scale_rewards is 'none'"),
        ({"steps_per_generation": 4}, "steps_per_generation is 4"),
        ({"num_generations_eval": 2}, "num_generations_eval is 2"),
    ],
)
def test_options_that_the_estimator_replaces_are_refused(option, words, tmp_path):
    chosen = {"use_cpu": True, "bf16": False, "num_generations": K, "per_device_train_batch_size": K}
    with pytest.raises(UsageError, match=words):
        bridge.check_arguments(GRPOConfig(str(tmp_path), **chosen, **option))


def test_a_model_with_other_tokens_and_an_empty_prompt_are_refused(tmp_path):
    trainer = trainer_of(tmp_path, RLOO(group_size=K))
    trainer.model.resize_token_embeddings(TASK.vocab_size + 1)
    with pytest.raises(
        UsageError, match=f"the model has {TASK.vocab_size + 1} tokens and GuessNumber {TASK.vocab_size}"
    ):
        drawn(trainer)


def test_without_trl_the_module_imports_and_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.trainer.grpo_trainer", None)
    bridge._estimator_trainer.cache_clear()
    with pytest.raises(UsageError, match="EstimatorTrainer needs TRL"):
        _ = bridge.EstimatorTrainer
    bridge._estimator_trainer.cache_clear()
