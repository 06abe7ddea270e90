"""Critics, reward models and copies of the policy: what they read, what they share, and how fast they learn."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, LlamaConfig

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import TabularPolicy
from llm_mdp_agents import models
from llm_mdp_agents.lm.loading import LoRAOptions, load_policy
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.models import (
    ScoredTask,
    SequenceScorer,
    default_learning_rate,
    frozen,
    parameter_groups,
    scored,
    scorer,
    trainable_copy,
)
from llm_mdp_envs.tasks.synthetic import Tabular

TASK = Tabular(vocab_size=4, horizon=4, n_prompts=2, seed=1)
SHAPE: dict[str, Any] = {
    "vocab_size": 12, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 32, "initializer_range": 0.3, "pad_token_id": None, "eos_token_id": None,
}  # fmt: skip
PROMPT = torch.tensor([[PAD, PAD, 3], [5, 2, 7], [PAD, 1, 1], [PAD, PAD, 3]])
TOKENS = torch.tensor([[4, 2, 9, 1], [6, PAD, PAD, PAD], [2, 2, 3, PAD], [4, 2, 8, 11]])
MASK = (TOKENS != PAD) & torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
ROWS = range(len(PROMPT))


def policy(dtype: str = "float64", rank: int | None = None, seed: int = 0, **shape) -> LanguageModelPolicy:
    """A random Llama; adapters that are not zero if it has any."""
    lora = None if rank is None else LoRAOptions(rank)
    made = load_policy({"model_type": "llama", **SHAPE, **shape}, dtype=dtype, lora=lora, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def classifier(kernel: str = "sdpa", seed: int = 0, **shape) -> Any:
    torch.manual_seed(seed)
    options: dict[str, Any] = SHAPE | shape | {"num_labels": 1, "attn_implementation": kernel}
    config = LlamaConfig(**options)
    return AutoModelForSequenceClassification.from_config(config)


def alone(row: int) -> torch.Tensor:
    """Prompt and response of a row, without padding."""
    text = torch.cat([PROMPT[row], TOKENS[row]])
    return text[text != PAD][None]


# --- what they read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_scores_of_padded_prompts_are_those_of_each_text_alone(kernel, dtype):
    model = classifier(kernel).to(dtype)
    score, close = SequenceScorer(model, None).score(PROMPT, TOKENS), {"rtol": 0, "atol": 1e-5}
    for row in ROWS:
        hidden = model.model(input_ids=alone(row)).last_hidden_state
        begun = int((PROMPT[row] != PAD).sum())
        expected = model.score(hidden)[0, begun - 1 :, 0].double()
        assert_close(score[row, : len(expected)], expected, **close)
    value = SequenceScorer(model, None)(PROMPT, TOKENS, MASK)
    assert_close(value[:, :-1][MASK], score[:, :-1][MASK])
    assert (value[:, :-1][~MASK] == 0).all() and (value[:, -1] == 0).all()
    last = torch.stack([score[row, int((TOKENS[row] != PAD).sum())] for row in ROWS])
    assert_close(SequenceScorer(model, None).final(PROMPT, TOKENS), last)


def watched(model: SequenceScorer) -> list[tuple[int, ...]]:
    """The shapes of the texts that its body will have read."""
    shapes: list[tuple[int, ...]] = []
    model.body.register_forward_pre_hook(
        lambda body, inputs, options: shapes.append(tuple(options["input_ids"].shape)), with_kwargs=True
    )
    return shapes


@pytest.mark.parametrize("rank", [None, 2])
def test_responses_to_a_prompt_read_it_once_and_learn_as_if_each_was_read_alone(rank):
    made, generator = policy(rank=rank), torch.Generator().manual_seed(0)
    critic = scorer(made, TASK, 0)
    nn.init.normal_(next(critic.head.parameters()), generator=generator)
    prompt = torch.randint(0, 4, (2, 9), generator=generator)
    prompt[1, :2] = PAD
    prompt = prompt.repeat_interleave(5, 0)
    tokens = torch.randint(0, 4, (10, 4), generator=generator)
    tokens[::3, 2:] = PAD
    mask = (tokens != PAD) & (torch.rand(10, 4, generator=generator) < 0.8)
    weight = torch.randn(10, 5, generator=generator)
    trained = [each for each in critic.parameters() if each.requires_grad]

    def learned(packs: bool) -> tuple[list[tuple[int, ...]], list[torch.Tensor]]:
        critic.packs, shapes = packs, watched(critic)
        scores = [critic(prompt, tokens, mask), critic.score(prompt, tokens), critic.final(prompt, tokens)]
        loss = (scores[0] * weight).sum() + (scores[1] * weight).sum() + (scores[2] * weight[:, 0]).sum()
        return list(shapes), [*scores, *torch.autograd.grad(loss, trained)]

    assert critic.packs
    (together, ours), (alone, expected) = learned(True), learned(False)
    assert {rows for rows, _ in together} == {2} and {rows for rows, _ in alone} == {10}
    for one, other in zip(ours, expected, strict=True):
        # Llama's norms are of float32, whatever the weights are.
        assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert float(ours[0].detach().std()) > 0.01 and float(ours[-1].norm()) > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention_is_that_of_each_text_alone_and_the_kernel_stays(dtype):
    model = classifier().to(dtype)
    shown = SequenceScorer(model, None).attention(PROMPT, TOKENS, MASK)
    assert model.model.config._attn_implementation == "sdpa"
    model.model.set_attn_implementation("eager")
    for row in ROWS:
        text = alone(row)
        weights = model.model(input_ids=text, output_attentions=True).attentions[-1][0].mean(0)[-1]
        length = int((TOKENS[row] != PAD).sum())
        expected = torch.where(MASK[row, :length], weights[-length:].double(), 0.0)
        assert_close(shown[row, :length], expected, rtol=0, atol=1e-6)
        assert (shown[row, length:] == 0).all() and shown[row].sum() > 0


def test_a_token_that_begins_the_text_makes_room_for_empty_prompts():
    model = classifier().double()
    nothing = torch.full((2, 1), PAD)
    score = SequenceScorer(model, 11).score(nothing, TOKENS[:2])
    text = torch.cat([torch.tensor([[11]]), TOKENS[:1]], 1)
    assert_close(score[0], model.score(model.model(input_ids=text).last_hidden_state)[0, :, 0])
    with pytest.raises(ValueError, match="a prompt is empty, and the critic or reward model has no token that begins"):
        SequenceScorer(model, None).score(nothing, TOKENS[:2])


def test_a_critic_begins_with_the_policy_s_body_and_says_nothing_yet():
    for rank in (None, 2):
        made = policy(rank=rank)
        critic = scorer(made, TASK, 0)
        assert (critic(PROMPT, TOKENS, MASK) == 0).all()
        mine, theirs = critic.body.state_dict(), made.causal_lm.base_model.state_dict()
        assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items())
        assert critic.body.config._attn_implementation == made.causal_lm.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("make", [lambda: policy(rank=2), lambda: TabularPolicy.random(
    TASK.mdp.tree, TASK.mdp.prompt_tokens, torch.Generator())], ids=["transformer", "table"])  # fmt: skip
def test_new_models_leave_the_global_generator_alone(make):
    made, state = make(), torch.get_rng_state()
    one, two, other = scorer(made, TASK, 5), scorer(made, TASK, 5), scorer(made, TASK, 6)
    assert torch.equal(torch.get_rng_state(), state)
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters())]
    assert all(same)
    if isinstance(made, TabularPolicy):
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


# --- what they share --------------------------------------------------------------------------------------------------


def test_copies_share_what_is_frozen_and_have_adapters_of_their_own():
    made = policy(rank=2)
    logp = made.logp(PROMPT, TOKENS, MASK).detach()
    for copied in (frozen(made), trainable_copy(made)):
        for (name, mine), theirs in zip(copied.named_parameters(), made.parameters()):
            assert (mine is theirs) == ("lora_" not in name)
        assert_close(copied.logp(PROMPT, TOKENS, MASK).detach(), logp)
    reference = frozen(made)
    assert not any(each.requires_grad for each in reference.parameters())
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.mul_(3)
    assert not torch.allclose(made.logp(PROMPT, TOKENS, MASK), logp, atol=1e-3)
    assert_close(reference.logp(PROMPT, TOKENS, MASK), logp)


def test_a_policy_that_is_trained_wholly_is_copied_wholly():
    made = policy()
    there = {each.data_ptr() for each in made.parameters()}
    for copied in (frozen(made), trainable_copy(made), scorer(made, TASK, 0).body):
        assert not there & {each.data_ptr() for each in copied.parameters()}


def test_a_critic_of_an_adapted_policy_trains_adapters_and_head_alone():
    made = policy(rank=2)
    critic = scorer(made, TASK, 0)
    trained = {name for name, each in critic.named_parameters() if each.requires_grad}
    assert all("lora_" in name or name.startswith("head") for name in trained) and len(trained) > 2
    there = {id(each) for each in made.parameters() if not each.requires_grad}
    assert all(id(each) in there for each in critic.parameters() if not each.requires_grad)
    before = made.logp(PROMPT, TOKENS, MASK).detach()
    with torch.no_grad():
        for parameter in critic.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert_close(made.logp(PROMPT, TOKENS, MASK).detach(), before)


def test_reference_and_critic_of_an_adapted_policy_are_a_fraction_of_it():
    made = policy("float32", rank=1, hidden_size=64, vocab_size=2_000)
    gc.collect()
    whole = sum(each.numel() for each in made.parameters())
    for other in (frozen(made), scorer(made, TASK, 0)):
        own = sum(each.numel() for each in other.parameters() if all(each is not its for its in made.parameters()))
        assert own < whole / 20


# --- models that are named --------------------------------------------------------------------------------------------


def saved(model: Any, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def test_a_named_model_is_read_in_its_own_precision_unless_it_is_trained(tmp_path):
    path = saved(classifier().to(torch.bfloat16), tmp_path)
    made = policy()
    assert next(scorer(made, TASK, 0, path, trained=False).parameters()).dtype == torch.bfloat16
    assert next(scorer(made, TASK, 0, path).parameters()).dtype == torch.float64
    assert not scorer(made, TASK, 0, path).has_new_head
    task = scored(TASK, made, 0, path)
    assert isinstance(task, ScoredTask) and scored(TASK, made, 0, None) is TASK


def test_a_model_without_a_head_can_become_a_critic_but_no_judge(tmp_path):
    torch.manual_seed(0)
    path = saved(AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)), tmp_path / "lm")
    critic = scorer(policy(), TASK, 0, path)
    assert critic.has_new_head and (critic(PROMPT, TOKENS, MASK) == 0).all()
    two = saved(classifier_of_two(), tmp_path / "two")
    for name in (path, two):
        with pytest.raises(
            ValueError, match=r"^scored_by is '.*', which has no head with one label, so that its scores"
        ):
            scored(TASK, policy(), 0, name)
    assert (scorer(policy(), TASK, 0, two)(PROMPT, TOKENS, MASK) == 0).all()


def classifier_of_two() -> Any:
    options: dict[str, Any] = SHAPE | {"num_labels": 2}
    return AutoModelForSequenceClassification.from_config(LlamaConfig(**options))


def test_models_that_cannot_be_read_token_by_token_are_refused_in_a_sentence(tmp_path):
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_labels": 1}
    bert = AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=12, num_attention_heads=2, **shape))
    with pytest.raises(ValueError, match=r"^critic is '.*', a BertForSequenceClassification, which reads a text as a"):
        scorer(policy(), TASK, 0, saved(bert, tmp_path / "bert"))
    small = saved(classifier(vocab_size=3), tmp_path / "small")
    with pytest.raises(
        ValueError, match=r"^reward_model is '.*', which knows 3 tokens, but Tabular has 4; name a model"
    ):
        scorer(policy(), TASK, 0, small, trained=False, what="reward_model")
    (tmp_path / "empty").mkdir()
    (tmp_path / "small" / "model.safetensors").write_bytes(b"cut off")
    for name in ("empty", "small"):
        with pytest.raises(
            ValueError, match=rf"no reward model or critic could be loaded from '.*{name}'; name a model"
        ):
            scorer(policy(), TASK, 0, str(tmp_path / name))


def test_a_reward_model_reads_at_most_so_many_rows_at_once():
    made = policy()
    model = scorer(made, TASK, 0)
    model.packs = False
    nn.init.normal_(next(model.head.parameters()), generator=torch.Generator().manual_seed(0))
    task, generator = ScoredTask(TASK, model), np.random.default_rng(0)
    questions = task.questions(generator, 5)
    tokens = torch.randint(0, 4, (5, 4), generator=torch.Generator().manual_seed(0)).numpy()
    whole = task.score(questions, tokens, tokens >= 0).reward
    task.rows_at_once = 2
    sizes = watched(model)
    np.testing.assert_allclose(task.score(questions, tokens, tokens >= 0).reward, whole, rtol=0, atol=1e-12)
    assert [rows for rows, _ in sizes] == [2, 2, 1] and whole.std() > 1e-3


# --- how fast they learn ----------------------------------------------------------------------------------------------


def rates(model: nn.Module, rate: float | None = None) -> list[tuple[int, float]]:
    return [(len(parameters), value) for parameters, value in parameter_groups(model, rate)]


def test_learning_rates_go_by_kind_and_size(monkeypatch):
    table = TabularPolicy.random(TASK.mdp.tree, TASK.mdp.prompt_tokens, torch.Generator())
    whole, adapted = policy(), policy(rank=2)
    bodies = {rank: len([*made.causal_lm.base_model.parameters()]) for rank, made in ((None, whole), (2, adapted))}
    adapters = len([each for each in adapted.parameters() if each.requires_grad])
    assert [default_learning_rate(each) for each in (table, whole, adapted)] == [0.05, 2e-4, 2e-4]
    assert rates(scorer(table, TASK, 0))[0][1] == 1e-3 and len(rates(scorer(table, TASK, 0))) == 1
    assert rates(scorer(whole, TASK, 0)) == [(bodies[None] + 1, 1e-3)]
    monkeypatch.setattr(models, "LARGE", 1_000)
    assert [default_learning_rate(each) for each in (table, whole, adapted)] == [0.05, 1e-5, 1e-4]
    assert rates(trainable_copy(adapted)) == [(adapters, 1e-4)]
    assert rates(scorer(whole, TASK, 0)) == [(bodies[None], 1e-5), (1, pytest.approx(1e-4))]
    assert rates(scorer(adapted, TASK, 0)) == [(adapters + 1, 1e-4)], "adapters are as new as the head"
    assert rates(scorer(whole, TASK, 0), 1e-6) == [(bodies[None], 1e-6), (1, pytest.approx(1e-5))]
    trained = SequenceScorer(classifier(), None)
    assert rates(trained) == [(len([*trained.parameters()]), 1e-5)], "a head that was trained is no new one"
