"""Every architecture of Hugging Face is read as it reads one row alone, without padding, or refused in a sentence.

Tiny models with random weights. What is drawn, scored (plainly, packed, in chunks), branched and said turn by turn is
compared with `model(input_ids=row)` of each row by itself: nothing of the package is in what is expected.
"""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import branch_of

lm = pytest.importorskip("llm_mdp_agents.lm.policy")
generation = pytest.importorskip("llm_mdp_agents.lm.generation")
packing = pytest.importorskip("llm_mdp_agents.lm.packing")

V, HORIZON = 24, 12
SIZES = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "initializer_range": 0.3, "n_positions": 64,
    "n_embd": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "n_heads": 4, "n_layers": 2, "num_layers": 2, "n_inner": 48,
    "ffn_dim": 48, "attention_heads": 4, "dff": 48, "state_size": 8, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 3,
}  # fmt: skip
MIXED = ["linear_attention", "full_attention"]
LINEAR = {
    "layer_types": MIXED, "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2}
LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 4,
    "num_key_value_heads": 4,
}  # fmt: skip


def rope(kind: str, **options: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0, "factor": 4.0, **options}}


LONG = {"short_factor": [1.0] * 4, "long_factor": [9.0, 5.0, 3.0, 2.0]}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, linear rope": ("llama", rope("linear")),
    "llama, yarn": ("llama", rope("yarn", original_max_position_embeddings=8)),
    "llama, llama3 rope": (
        "llama",
        rope("llama3", original_max_position_embeddings=8, low_freq_factor=1.0, high_freq_factor=4.0),
    ),
    "llama, dynamic rope": ("llama", rope("dynamic")),
    "llama, longrope": ("llama", rope("longrope", original_max_position_embeddings=32, **LONG)),
    "llama, eager": ("llama", {"attn_implementation": "eager"}),
    "phi3": ("phi3", {"sliding_window": None}),
    "phi3, longrope": ("phi3", {"original_max_position_embeddings": 32, **rope("longrope", **LONG)}),
    "gpt2": ("gpt2", {}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 4, "num_heads": 4}),
    "gpt_neox": ("gpt_neox", {}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "opt": ("opt", {"word_embed_proj_dim": 32}),
    "bloom": ("bloom", {}),
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, rotary": ("falcon", {"alibi": False}),
    "mpt": ("mpt", {"max_seq_len": 64}),
    "mistral": ("mistral", {"sliding_window": 4}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 4}),
    "gemma3": ("gemma3_text", {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_next": ("qwen3_next", {**LINEAR, "shared_expert_intermediate_size": 24}),
    "qwen3_5": ("qwen3_5_text", LINEAR),
    "qwen2_moe": ("qwen2_moe", {"shared_expert_intermediate_size": 24}),
    "mixtral": ("mixtral", {"sliding_window": None}),
    "mixtral, noise": ("mixtral", {"sliding_window": None, "router_jitter_noise": 0.5, "output_router_logits": True}),
    "olmoe": ("olmoe", {}),
    "phi": ("phi", {}),
    "stablelm": ("stablelm", {}),
    "cohere": ("cohere", {}),
    "cohere2": ("cohere2", {"sliding_window": 4}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "starcoder2": ("starcoder2", {"sliding_window": 4}),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 1, "chunk_size": 4}),
    "falcon_mamba": ("falcon_mamba", {}),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8}),
    "bamba": ("bamba", {**MAMBA2, "attn_layer_indices": [1]}),
    "zamba2": (
        "zamba2",
        {"layers_block_type": ["mamba", "hybrid"], "mamba_d_state": 8, "n_mamba_heads": 4, "num_mem_blocks": 1,
         "mamba_ngroups": 1, "num_key_value_heads": 4, "adapter_rank": 4, "chunk_size": 4},
    ),
    "granitemoehybrid": ("granitemoehybrid", {**MAMBA2, "layer_types": ["mamba", "attention"]}),
    "falcon_h1": ("falcon_h1", {**MAMBA2, "mamba_d_ssm": 64}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32, "context_length": 64}),
    "recurrent_gemma": (
        "recurrent_gemma", {"num_hidden_layers": 3, "attention_window_size": 6, "lru_width": 32}
    ),
    "roberta": ("roberta", {"is_decoder": True}),
    "bert": ("bert", {"is_decoder": True}),
    "xglm": ("xglm", {}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "ctrl": ("ctrl", {}),
    "biogpt": ("biogpt", {}),
    "granite": ("granite", {"logits_scaling": 4.0}),
    "granitemoe": ("granitemoe", {}),
    "nemotron": ("nemotron", {}),
    "glm": ("glm", {}),
    "deepseek_v3": (
        "deepseek_v3",
        {**LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
         "first_k_dense_replace": 1},
    ),
    "gpt_oss": ("gpt_oss", {"sliding_window": 4}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "helium": ("helium", {}),
    "minimax": ("minimax", {"layer_types": MIXED, "block_size": 4}),
    "llama4": ("llama4_text", {"attention_chunk_size": 4, "layer_types": ["chunked_attention", "full_attention"],
                               "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]}),
    "modernbert-decoder": ("modernbert-decoder", {"local_attention": 6}),
    "bart": ("bart", {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "is_decoder": True}),
    "deepseek_v2": ("deepseek_v2", {**LATENT, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
                                    "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
    "exaone4": ("exaone4", {"sliding_window": 4}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "persimmon": ("persimmon", {}),
    "openai-gpt": ("openai-gpt", {}),
    "xlstm": ("xlstm", {"num_heads": 4}),
    "olmo_hybrid": ("olmo_hybrid", {"layer_types": MIXED}),
    "nemotron_h": (
        "nemotron_h",
        {"layers_block_type": ["mamba", "attention", "moe"], "num_hidden_layers": 3, "mamba_num_heads": 4,
         "mamba_head_dim": 16, "n_groups": 1, "ssm_state_size": 8, "chunk_size": 4, "n_routed_experts": 4,
         "moe_shared_expert_intermediate_size": 24},
    ),
}  # fmt: skip


def build(kind: str, **options: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    kernel = options.pop("attn_implementation", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config_class = type(AutoConfig.for_model(kind))
        fixed = {name for name, value in vars(config_class).items() if isinstance(value, property)}
        known = (set(dir(config_class())) | set(config_class().to_dict())) - fixed
        config = config_class(**{name: value for name, value in SIZES.items() if name in known} | options)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation=kernel).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    # Biases and scales, which begin at 0 or 1, show as well.
                    parameter += 0.05 * torch.randn_like(parameter) if parameter.dim() == 1 else 0.0
    return model


@torch.no_grad()
def alone(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """log-probabilities of all next tokens at every step of one response, read by itself."""
    prompt, tokens = prompt[prompt != PAD], tokens[tokens != PAD]
    logits = model(input_ids=torch.cat([prompt, tokens])[None], use_cache=False).logits[0, :, :V].double()
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def expected(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """log-probabilities of the tokens themselves, 0 on padding."""
    rows = []
    for one, response in zip(prompt, tokens):
        real = response[response != PAD]
        logp = alone(model, one, response).gather(-1, real[:, None])[:, 0]
        rows.append(pad(logp, (0, tokens.shape[1] - len(real))))
    return torch.stack(rows)


def prompts(width: int = 9) -> Tensor:
    """Four of different lengths; the last has one token."""
    prompt = torch.randint(V, (4, width), generator=torch.Generator().manual_seed(0))
    prompt[torch.arange(width) < torch.tensor([[4], [0], [1], [width - 1]])] = PAD
    return prompt


def same(one: Tensor, other: Tensor, mask: Any) -> None:
    torch.testing.assert_close(one.double()[mask], other.double()[mask], rtol=1e-5, atol=1e-4)


def check(model: Any, monkeypatch: Any) -> Any:
    """All ways to draw and to score, of prompts and responses of different lengths."""
    policy, generator = lm.LanguageModelPolicy(model, V, None), torch.Generator().manual_seed(1)
    options = {"eos": (0, 2, 4, 6, 8), "horizon": HORIZON, "generator": generator}
    drawn = policy.sample(prompts(), 3, **options)
    want = expected(model, drawn.prompt, drawn.tokens)
    assert len(set(drawn.length.tolist())) > 1
    same(drawn.logp, want, drawn.mask)
    with monkeypatch.context() as patch:
        # Rows on one copy of their prompt, where they can be; prompts and responses that attend apart.
        for module, name in ((generation, "FROM"), (packing, "PARTS_FROM")):
            patch.setattr(module, name, 1)
        patch.setattr(packing.Reading, "cost", lambda self, width: not self.in_parts)
        shared = policy.sample(prompts(), 3, **options)
        want_shared = expected(model, shared.prompt, shared.tokens)
        same(shared.logp, want_shared, shared.mask)
        same(policy.logp(shared.prompt, shared.tokens, shared.mask).detach(), want_shared, shared.mask)
    with monkeypatch.context() as patch:
        # Where several responses can share a row, once so and once not; the head in chunks, too.
        for packed in (True, False):
            patch.setattr(packing.Reading, "cost", lambda self, width, packed=packed: packed == (self.owner is None))
            patch.setattr(lm, "LOGIT_BYTES", 2**20 if packed else 7 * 4 * V)
            same(policy.logp(drawn.prompt, drawn.tokens, drawn.mask).detach(), want, drawn.mask)
    logits = policy.logits(drawn.prompt, drawn.tokens).detach()
    for row in range(len(drawn.tokens)):
        length = int(drawn.mask[row].sum())
        same(logits[row, :length].log_softmax(-1), alone(model, drawn.prompt[row], drawn.tokens[row]), ...)
    row = torch.tensor([0, 2, 5, 7, 7, 9])
    step = torch.tensor([2, 0, 3, 1, 5, 4]).minimum(drawn.length[row] - 1)
    branches = branch_of(policy, drawn.prompt, drawn.tokens, row, step, 2, **options)
    new = branches.mask & (torch.arange(HORIZON) >= step.repeat_interleave(2)[:, None])
    same(branches.logp, expected(model, branches.prompt, branches.tokens), new)
    if (talk := policy.conversation()) is not None:
        first = talk.sample(prompts(), 2, **options | {"horizon": 4, "eos": None, "stop": (5, 6, 7)})
        said = torch.cat([first.tokens, torch.full((8, HORIZON), PAD)], dim=1)
        place = first.length[:, None] + torch.arange(3)
        said.scatter_(1, place, torch.tensor([[8, 9, 10]]).expand(8, 3))
        rows = torch.tensor([0, 1, 3, 6, 7])
        more = talk.go_on(rows, first.prompt[rows], said[rows], **options | {"horizon": 16})
        new = more.tokens != said[rows][:, :16]
        same(more.logp, expected(model, more.prompt, more.tokens), new)
    return policy


COMMON = {
    "packs": ("llama", "llama, eager", "phi3", "gpt2", "gemma", "qwen2", "qwen3", "qwen3_moe", "mixtral", "smollm3"),
    "ragged": ("mistral", "gemma2", "gemma3", "gpt_oss", "llama4", "qwen3_next", "qwen3_5", "lfm2", "jamba", "bamba"),
    "even": ("mamba", "falcon_mamba"),
}
"""What some of them do, so that none becomes slow without a word."""
SHARE = ("llama", "llama, eager", "phi3", "gpt2", "gemma", "qwen3", "qwen3_moe", "mixtral, noise", "granite", "opt")
"""Some whose rows have one copy of their prompt."""
FAST = (
    "llama", "phi3, longrope", "gpt2", "falcon, alibi", "mistral", "mixtral, noise", "mamba", "lfm2", "roberta",
    "granite", "qwen3_5",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [each if each in FAST else pytest.param(each, marks=pytest.mark.slow) for each in MODELS]
)
def test_it_is_read_as_one_row_alone(name, monkeypatch):
    kind, options = MODELS[name]
    policy = check(build(kind, **options), monkeypatch)
    abilities = policy.abilities
    assert policy.shares_prompts or name not in SHARE
    for what, names in COMMON.items():
        if name in names:
            assert what == ("packs" if abilities.packs else abilities.keeps)


@pytest.mark.parametrize("name", ["llama", "mixtral", "mistral", "mamba", "roberta", "qwen3_5"])
def test_half_precision_finds_the_same_abilities(name):
    kind, options = MODELS[name]
    model = build(kind, **options)
    single = lm.LanguageModelPolicy(model, V, None).abilities
    half = lm.LanguageModelPolicy(model.bfloat16(), V, None).abilities
    assert (half.keeps, half.packs) == (single.keeps, single.packs)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_models_that_see_later_tokens_are_refused(kind):
    policy = lm.LanguageModelPolicy(build(kind), V, None)
    with pytest.raises(ValueError, match="see later ones, so that it gives no response a probability"):
        policy.sample(prompts(), 1, eos=0, horizon=3, generator=torch.Generator())


@pytest.mark.parametrize(
    ("name", "longest", "why"),
    [
        ("llama, dynamic rope", 64, r'its positions \("dynamic"\) depend on the length of the whole text'),
        ("phi3, longrope", 32, r'its positions \("longrope"\) depend on the length of the whole text'),
        ("gpt2", 64, "it has 64 positions"),
        ("gptj", 64, "it has 64 positions"),
        ("opt", 64, "it has 64 positions"),
        ("roberta", 60, "it has 60 positions"),
    ],
)
def test_texts_beyond_the_positions_of_a_model_are_refused(name, longest, why):
    """Just within is equal, one more is a sentence: drawn, branched or scored."""
    kind, options = MODELS[name]
    model = build(kind, **options)
    policy, horizon = lm.LanguageModelPolicy(model, V, None), 3
    prompt = torch.randint(V, (2, longest - horizon + 1), generator=torch.Generator().manual_seed(3))
    prompt[1, :-5] = PAD
    drawn = policy.sample(prompt, 1, eos=None, horizon=horizon, generator=torch.Generator().manual_seed(0))
    want = expected(model, drawn.prompt, drawn.tokens[:, :-1])
    same(drawn.logp[:, :-1], want, drawn.mask[:, :-1])
    same(policy.logp(drawn.prompt, drawn.tokens, drawn.mask).detach(), drawn.logp, drawn.mask)

    message = f"have up to {longest + 1} tokens and {type(model).__name__} reads {longest}: .*{why}"
    options = {"eos": None, "generator": torch.Generator()}
    with pytest.raises(ValueError, match=message):
        policy.sample(prompt, 1, horizon=horizon + 1, **options)
    one = torch.tensor([0])
    with pytest.raises(ValueError, match=message):
        policy.branch(drawn.prompt, drawn.tokens, one, one, 1, horizon=horizon + 1, **options)
    longer = pad(drawn.tokens, (0, 1), value=1)
    with pytest.raises(ValueError, match=message):
        policy.logp(drawn.prompt, longer, longer != PAD)


def test_rows_beyond_the_memory_of_the_cache_are_drawn_in_parts(monkeypatch):
    """The parts depend on the rows alone: the same seed gives the same tokens, and what is drawn is scored the same."""
    kind, options = MODELS["llama"]
    policy = lm.LanguageModelPolicy(build(kind, **options), V, None)
    rows: list[int] = []
    policy.model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))

    def draw():
        return policy.sample(prompts(), 3, eos=None, horizon=6, generator=torch.Generator().manual_seed(0))

    whole = draw()
    assert max(rows) == 12
    rows.clear()
    columns = 9 + 6
    monkeypatch.setattr("llm_mdp_agents.lm.generation.CACHE_BYTES", 5 * columns * policy.abilities.column_bytes)
    parts, again = draw(), draw()
    assert max(rows) == 4 and torch.equal(parts.tokens, again.tokens) and not torch.equal(parts.tokens, whole.tokens)
    assert torch.equal(parts.prompt, whole.prompt)
    same(parts.logp, policy.logp(parts.prompt, parts.tokens, parts.mask).detach(), parts.mask)
