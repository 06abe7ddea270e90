"""Engines draw what the policy would: its distribution, its log-probabilities, its weights of that moment.

The second half needs vLLM, in an environment of its own (llm_mdp_agents/lm/engines.py), and is skipped without it.
"""

import importlib.util
import sys

import pytest
import torch

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Finish
from llm_mdp.sampling.policies import NgramPolicy, branch_of, prefixes_of

engines = pytest.importorskip("llm_mdp_agents.lm.engines")
lm = pytest.importorskip("llm_mdp_agents.lm.policy")
loading = pytest.importorskip("llm_mdp_agents.lm.loading")

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

V = 40
CLOSE = {"rtol": 0, "atol": 1e-4}
PROMPTS = torch.tensor([[PAD, 1, 2], [PAD, PAD, PAD], [3, 4, 5], [PAD, 1, 2]])
OPTIONS = {"eos": 0, "horizon": 9}


def llama(dtype="float32", lora=None, **options):
    config = {
        "model_type": "llama",
        "vocab_size": V + 1,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "max_position_embeddings": 64,
        "bos_token_id": V,
        "eos_token_id": 0,
        "pad_token_id": None,
        "llm_mdp": {"begin": V, "vocab_size": V},
        **options,
    }
    return loading.load_policy(config, dtype=dtype, lora=lora)


MODELS = {
    "llama": llama,
    "tied": lambda: llama(tie_word_embeddings=True),
    "adapters": lambda: llama(lora=loading.LoRAOptions(rank=4)),
    "gpt2": lambda: lm.tiny_transformer(V, 63, width=64, layers=2).float(),
}


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def check_same(one, other):
    for name in ("prompt", "tokens", "mask", "finish"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    torch.testing.assert_close(one.logp, other.logp, **CLOSE)


@pytest.mark.parametrize("build", [llama, lambda: NgramPolicy.random(V, 1, seed(1))], ids=["llama", "n-gram"])
def test_hf_is_the_policy_itself(build):
    policy = build()
    engine = engines.make_engine("hf", policy)
    drawn = engine.sample(policy, PROMPTS, 2, generator=seed(), **OPTIONS)
    check_same(drawn, policy.sample(PROMPTS, 2, generator=seed(), **OPTIONS))
    row, step = torch.tensor([0, 3, 3]), torch.tensor([1, 0, 2])
    branches = engine.branch(policy, drawn.prompt, drawn.tokens, row, step, 2, generator=seed(), **OPTIONS)
    check_same(branches, branch_of(policy, drawn.prompt, drawn.tokens, row, step, 2, generator=seed(), **OPTIONS))
    engine.update(policy)


def test_engines_that_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="no engine 'vlm'; choose one of hf, vllm"):
        engines.make_engine("vlm", llama())
    with pytest.raises(ValueError, match=r"this policy is of kind 'n-gram': use hf\."):
        engines.make_engine("vllm", NgramPolicy.random(V, 1, seed()))
    with pytest.raises(ValueError, match="dtype is 'float64'; vLLM has float32, bfloat16, float16"):
        engines.make_engine("vllm", llama(dtype="float64"))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="one of 2 processes"):
        engines.make_engine("vllm", llama())


def test_without_vllm_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(
        ImportError, match=r"^engine vllm needs vLLM, .*pip install -e .*vllm,train.*; pip uninstall -y .*\.$"
    ):
        engines.make_engine("vllm", llama())


@needs_vllm
def test_half_precision_is_scored_by_the_policy():
    """This engine is closed again before the others open."""
    with pytest.raises(ValueError, match="heads are 16 wide"):
        engines.make_engine("vllm", llama(hidden_size=64))
    policy = llama()
    engine = engines.make_engine("vllm", policy, dtype="bfloat16", max_length=20)
    try:
        drawn = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
        with torch.no_grad():
            assert torch.equal(drawn.logp.float(), policy.logp(drawn.prompt, drawn.tokens, drawn.mask))
        engine.rescore = False
        raw = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
        assert torch.equal(raw.tokens, drawn.tokens)
        assert 1e-3 < (raw.logp - drawn.logp).abs().max() < 1
        with pytest.raises(ValueError, match="already"):
            engines.make_engine("vllm", policy)
        full = engine.sample(policy, PROMPTS, 1, generator=seed(), eos=None, horizon=16)
        assert full.mask.all()
        with pytest.raises(ValueError, match="max_length is 20, and a prompt with all of its response has 33 tokens"):
            engine.sample(policy, PROMPTS, 1, generator=seed(), eos=0, horizon=30)
    finally:
        engine.close()


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request):
    policy = MODELS[request.param]()
    engine = engines.make_engine("vllm", policy)
    yield policy, engine
    engine.close()


def check_drawn(policy, drawn, given=None, temperature=1.0, eos=0, stop=(), horizon=9):
    """Every row ends where it should and no earlier, holds allowed tokens, and has the policy's log-probabilities."""
    begun = torch.zeros(drawn.mask.shape, dtype=torch.bool)
    if given is not None:
        begun[:, : given.shape[1]] = given != PAD
        assert torch.equal(drawn.tokens[begun], given[given != PAD])
    assert drawn.tokens.shape[1] == horizon and drawn.tokens.max() < policy.vocab_size
    assert torch.equal(drawn.mask, torch.arange(horizon) < drawn.mask.sum(-1, keepdim=True))
    for tokens, first, finish in zip(drawn.tokens.tolist(), begun.sum(-1).tolist(), drawn.finish.tolist()):
        row = [token for token in tokens if token != PAD]
        new, ends = row[first:], [eos, *stop]
        assert not any(token in ends for token in new[:-1])
        assert len(row) == horizon or eos in row[:first] or new[-1] in ends
        assert finish == (Finish.EOS if eos in row else Finish.HORIZON)
    with torch.no_grad():
        expected = policy.logp(drawn.prompt, drawn.tokens, drawn.mask, temperature).double()
    torch.testing.assert_close(drawn.logp, torch.where(begun, 0.0, expected), **CLOSE)


CASES = {
    "plain": {},
    "temperature": {"temperature": 0.6},
    "stop": {"stop": (2, 3, 7, 11)},
    "no eos": {"eos": None},
    "prefix": {"prefix": torch.tensor([[4, 5, PAD], [PAD, PAD, PAD], [1, 0, PAD], [1, 2, 3]])},
    "stop in prefix": {"prefix": torch.tensor([[7], [2], [0], [1]]), "stop": (2, 7)},
    "full prefix": {"prefix": torch.tensor([[4, 5, 1], [2, 0, PAD], [1, PAD, PAD], [PAD] * 3]), "horizon": 3},
}


@needs_vllm
@pytest.mark.parametrize("case", CASES)
def test_logp_of_what_is_drawn_is_the_policys(pair, case):
    policy, engine = pair
    options = OPTIONS | CASES[case]
    drawn = engine.sample(policy, PROMPTS, 3, generator=seed(), **options)
    assert torch.equal(drawn.prompt, PROMPTS.repeat_interleave(3, dim=0))
    given = options.pop("prefix", None)
    check_drawn(policy, drawn, None if given is None else given.repeat_interleave(3, dim=0), **options)
    assert len({tuple(row) for row in drawn.tokens.tolist()}) > 4


@needs_vllm
@pytest.mark.parametrize("case", CASES)
def test_greedy_is_hf_greedy(pair, case):
    policy, engine = pair
    options = OPTIONS | CASES[case] | {"greedy": True}
    check_same(
        engine.sample(policy, PROMPTS, 2, generator=seed(), **options),
        policy.sample(PROMPTS, 2, generator=seed(), **options),
    )


@needs_vllm
def test_every_prefix_may_have_ended(pair):
    policy, engine = pair
    engine.rescore = True
    ended = engine.sample(policy, PROMPTS, 2, prefix=torch.zeros(4, 1, dtype=torch.int64), generator=seed(), **OPTIONS)
    engine.rescore = False
    assert ended.tokens[:, 1:].eq(PAD).all() and ended.logp.eq(0).all() and ended.finish.eq(Finish.EOS).all()
    none = torch.zeros(0, dtype=torch.int64)
    assert engine.branch(
        policy, ended.prompt, ended.tokens, none, none, 2, generator=seed(), **OPTIONS
    ).tokens.shape == (0, 9)


@needs_vllm
def test_branches_are_responses_from_prefixes(pair):
    policy, engine = pair
    drawn = policy.sample(PROMPTS, 2, generator=seed(1), **OPTIONS)
    row = torch.tensor([0, 0, 0, 2, 3, 5, 5, 7, 4])
    step = torch.tensor([0, 1, 3, 0, 2, 1, 9, 4, 2]).minimum(drawn.length[row])
    branches = engine.branch(policy, drawn.prompt, drawn.tokens, row, step, 2, generator=seed(), **OPTIONS)
    assert torch.equal(branches.prompt, drawn.prompt[row].repeat_interleave(2, dim=0))
    check_drawn(policy, branches, prefixes_of(drawn.tokens, row, step).repeat_interleave(2, dim=0))
    greedy = [who.branch(*args, drawn.prompt, drawn.tokens, row, step, 1, generator=seed(), greedy=True, **OPTIONS)
              for who, args in ((engine, (policy,)), (policy, ()))]  # fmt: skip
    check_same(*greedy)


@needs_vllm
def test_same_seed_same_responses_whatever_the_global_generator(pair):
    policy, engine = pair
    before = torch.random.get_rng_state()
    first = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        check_same(engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS), first)
    generator = seed()
    engine.sample(policy, PROMPTS, 4, generator=generator, **OPTIONS)
    assert not torch.equal(engine.sample(policy, PROMPTS, 4, generator=generator, **OPTIONS).tokens, first.tokens)


@needs_vllm
def test_tokens_come_as_often_as_the_policy_says(pair):
    """χ² of the first token, over a policy of five tokens that leaves out most of what its model would say, at a
    temperature."""
    model, engine = pair
    policy, n = lm.LanguageModelPolicy(model.model, 5, model.begin, temperature=1.25), 1000
    drawn = engine.sample(policy, PROMPTS[:1], n, generator=seed(), eos=None, horizon=1, temperature=1.6)
    check_drawn(policy, drawn, temperature=1.6, eos=None, horizon=1)
    with torch.no_grad():
        expected = n * (policy.logits(PROMPTS[:1], drawn.tokens[:1])[0, 0] / 1.6).softmax(-1)
    counts = torch.bincount(drawn.tokens[:, 0], minlength=5)
    assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 0.1 % at four degrees of freedom


LONG = torch.randint(1, V, (2, 45), generator=seed(2))
"""Longer than a block of vLLM's cache, so that its keys and values are kept for the next call."""


def learn(policy):
    drawn = policy.sample(LONG, 2, generator=seed(), **OPTIONS)
    optimizer = torch.optim.AdamW([parameter for parameter in policy.parameters() if parameter.requires_grad], 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        policy.logp(drawn.prompt, drawn.tokens, drawn.mask).sum().backward()
        optimizer.step()
    return drawn


@needs_vllm
def test_new_weights_are_drawn_from(pair):
    policy, engine = pair
    before = engine.sample(policy, LONG, 2, generator=seed(), **OPTIONS)
    learn(policy)
    with torch.no_grad():
        moved = policy.logp(before.prompt, before.tokens, before.mask).double() - before.logp
    assert moved.abs().max() > 0.1
    check_drawn(policy, engine.sample(policy, LONG, 2, generator=seed(), **OPTIONS))


@needs_vllm
def test_another_policy_is_drawn_from_with_its_weights(pair):
    policy, engine = pair
    state = {name: value.clone() for name, value in policy.state_dict().items()}
    learn(policy)
    trained = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
    policy.load_state_dict(state)
    loaded = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
    check_drawn(policy, loaded)
    assert (trained.logp - loaded.logp).abs().max() > 0.1


@needs_vllm
def test_weights_that_do_not_arrive_are_noticed(pair, monkeypatch):
    policy, engine = pair
    engine.update(policy)
    learn(policy)
    with monkeypatch.context() as patch:
        patch.setattr(engines, "_load", lambda worker, weights, tied: None)
        with pytest.raises(RuntimeError, match="differ from the policy's"):
            engine.sample(policy, LONG, 2, generator=seed(), **OPTIONS)
    check_drawn(policy, engine.sample(policy, LONG, 2, generator=seed(), **OPTIONS))


@needs_vllm
def test_changes_that_pytorch_does_not_see_are_pushed_by_update(pair):
    policy, engine = pair
    before = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
    for parameter in policy.parameters():
        parameter.data += 0.02
    engine.update(policy)
    after = engine.sample(policy, PROMPTS, 4, generator=seed(), **OPTIONS)
    check_drawn(policy, after)
    assert (before.logp - after.logp).abs().max() > 1e-3


@needs_vllm
def test_impossible_requests(pair):
    policy, engine = pair
    with pytest.raises(ValueError, match=r"temperature is 0; .*greedy=True"):
        engine.sample(policy, PROMPTS, 1, generator=seed(), temperature=0, **OPTIONS)
    for temperature in (2.1, 0.009):
        with pytest.raises(ValueError, match=f"temperature times the call's is {temperature}, and vLLM has 0.01 … 2"):
            engine.sample(policy, PROMPTS, 1, generator=seed(), temperature=temperature, **OPTIONS)
    with pytest.raises(ValueError, match="a prefix has 2 tokens and the horizon is 1"):
        engine.sample(
            policy, PROMPTS, 1, generator=seed(), prefix=torch.ones(4, 2, dtype=torch.int64), eos=0, horizon=1
        )
