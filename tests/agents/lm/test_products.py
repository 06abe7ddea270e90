"""Products by oneDNN are those of torch, and are left where they are missing, wrong or not faster."""

import copy
import json

import pytest
import torch

from llm_mdp.mdp.tree import PAD

products = pytest.importorskip("llm_mdp_agents.lm.products")
loading = pytest.importorskip("llm_mdp_agents.lm.loading")

V = 40
PROMPTS = torch.tensor([[PAD, 1, 2], [3, 4, 5], [PAD, PAD, 6]])


def has_operators() -> bool:
    try:
        weight = torch.ones(4, 4)
        return bool((products.by_onednn(weight, products.packed(weight)) == 4).all())
    except Exception:
        return False


needs_operators = pytest.mark.skipif(not has_operators(), reason="this torch has no such operators")


@pytest.fixture(autouse=True)
def small_layers_too(monkeypatch):
    """And the processor is one where oneDNN is faster, whatever it is."""
    monkeypatch.setattr(products, "SMALLEST", 1)
    monkeypatch.setattr(products, "is_faster_here", lambda: True)


def llama(choice="off", dtype="float32", **options):
    config = {
        "model_type": "llama", "vocab_size": V + 1, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": True,
        "attention_bias": True, "bos_token_id": V, "eos_token_id": None, "pad_token_id": None,
        "llm_mdp": {"begin": V, "vocab_size": V},
    }  # fmt: skip
    return loading.load_policy(config, dtype=dtype, fast_matmul=choice, **options)


def drawn(policy, greedy=False):
    generator = torch.Generator().manual_seed(0)
    return policy.sample(PROMPTS, 4, eos=0, horizon=12, generator=generator, greedy=greedy)


def gradient(policy, rollouts):
    parameters = [each for each in policy.parameters() if each.requires_grad]
    loss = (policy.logp(rollouts.prompt, rollouts.tokens, rollouts.mask) * rollouts.logp.float()).sum()
    return torch.cat([each.flatten() for each in torch.autograd.grad(loss, parameters)])


def how_often(monkeypatch) -> list[int]:
    """Rows of every product that oneDNN makes from now on."""
    seen, multiply = [], products.by_onednn
    monkeypatch.setattr(
        products, "by_onednn", lambda x, *rest: (seen.append(x.numel() // x.shape[-1]), multiply(x, *rest))[1]
    )
    return seen


@needs_operators
@pytest.mark.parametrize("greedy", [False, True])
def test_the_same_tokens_are_drawn(greedy, monkeypatch):
    """After updates, too, of which torch tells and does not tell; weights are packed once a draw, and not kept."""
    plain, fast, seen = llama(), llama("on"), how_often(monkeypatch)
    packs, pack = [], products.packed
    monkeypatch.setattr(products, "packed", lambda weight: packs.append(1) or pack(weight))
    linear = sum(isinstance(each, products.FastLinear) for each in fast.modules())
    for told in (True, False, True):
        packs.clear()
        one, other = drawn(plain, greedy), drawn(fast, greedy)
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.logp, other.logp, rtol=0, atol=1e-4)
        assert seen
        assert len(packs) == linear
        assert all(each._packed is None for each in fast.modules() if isinstance(each, products.FastLinear))
        for policy in (plain, fast):
            with torch.no_grad():
                for number, each in enumerate(policy.parameters()):
                    change = torch.randn(each.shape, generator=torch.Generator().manual_seed(number))
                    (each if told else each.data).add_(0.2 * change)
    assert not torch.equal(one.tokens, drawn(fast, greedy).tokens)


@needs_operators
@pytest.mark.parametrize("tallest", [products.TALLEST, (8, 16)], ids=["all by oneDNN", "weights' by torch"])
@pytest.mark.parametrize("adapters", [False, True])
def test_gradients_are_the_same(tallest, adapters, monkeypatch):
    monkeypatch.setattr(products, "TALLEST", tallest)
    options = {"lora": loading.LoRAOptions(rank=2)} if adapters else {}
    plain, fast = llama(**options), llama("on", **options)
    for policy in (plain, fast):
        with torch.no_grad():
            for number, each in enumerate(policy.parameters()):
                each.add_(0.05 * torch.randn(each.shape, generator=torch.Generator().manual_seed(number)))
    rollouts, seen = drawn(plain), how_often(monkeypatch)
    one, other = gradient(plain, rollouts), gradient(fast, rollouts)
    assert seen
    assert float((one - other).norm() / one.norm()) < 1e-5


@needs_operators
def test_gradients_of_gradients_are_those_of_torch():
    x, weight, bias = (torch.randn(*shape, requires_grad=True) for shape in ((2, 3, 5), (4, 5), (4,)))

    def second(multiply):
        (dx,) = torch.autograd.grad(multiply(x, weight, bias).pow(3).sum(), x, create_graph=True)
        return torch.cat([each.flatten() for each in torch.autograd.grad(dx.pow(2).sum(), (x, weight, bias))])

    torch.testing.assert_close(
        second(products._Product.apply), second(torch.nn.functional.linear), rtol=1e-4, atol=1e-3
    )


@needs_operators
def test_what_is_chosen_is_what_is_done(monkeypatch):
    policy, seen = llama("auto"), how_often(monkeypatch)
    assert policy.fast_matmul == "on"
    rollouts = drawn(policy)
    assert seen
    seen.clear()
    gradient(policy, rollouts)
    assert seen
    policy.fast_matmul = "off"
    seen.clear()
    drawn(policy), gradient(policy, rollouts)
    assert not seen and policy.fast_matmul == "off"


@needs_operators
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_precisions_are_left_alone(dtype, monkeypatch):
    policy, seen = llama("on", dtype), how_often(monkeypatch)
    gradient(policy, drawn(policy))
    assert not seen and policy.fast_matmul == "off"
    policy = llama("on")
    assert policy.abilities, "tried in float32"
    seen.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gradient(policy, drawn(policy))
    assert not seen
    # One that became float64 afterwards.
    policy = llama("on").double()
    gradient(policy, drawn(policy))
    assert not seen


@needs_operators
def test_a_copy_and_a_saved_model_are_as_the_first(tmp_path):
    policy = llama("on")
    before = drawn(policy)
    copied = copy.deepcopy(policy)
    assert copied.fast_matmul == "on" and torch.equal(drawn(copied).tokens, before.tokens)
    with torch.no_grad():
        for each in copied.parameters():
            each.mul_(1.5)
    assert torch.equal(drawn(policy).tokens, before.tokens), "it has packed its own"
    loading.save_model(policy, tmp_path)
    assert torch.equal(drawn(loading.load_policy(tmp_path, fast_matmul="off")).tokens, before.tokens)


@pytest.mark.parametrize("wrong", ["missing", "another product", "another product when packed"])
def test_torch_multiplies_where_onednn_is_missing_or_wrong(wrong, monkeypatch):
    multiply = torch.nn.functional.linear

    def operator(x, weight, bias=None):
        if wrong == "missing":
            raise AttributeError("_linear_pointwise")
        return multiply(x, weight, bias) * (1.001 if wrong == "another product" else 1)

    monkeypatch.setattr(products, "by_onednn", operator)
    monkeypatch.setattr(products, "packed", lambda weight: weight * (1.001 if wrong.endswith("packed") else 1))
    products.is_right_here.cache_clear()
    try:
        for choice in ("auto", "on"):
            policy = llama(choice)
            assert policy.fast_matmul == "off"
            assert not any(isinstance(each, products.FastLinear) for each in policy.modules())
    finally:
        products.is_right_here.cache_clear()


@needs_operators
@pytest.mark.parametrize("capability, vendor, choice", [
    ("AVX512", "AuthenticAMD", "on"), ("AVX512", "GenuineIntel", "off"), ("AVX2", "AuthenticAMD", "off"),
    ("DEFAULT", "AuthenticAMD", "off"),
])  # fmt: skip
def test_the_processor_decides(capability, vendor, choice, monkeypatch, tmp_path):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    (tmp_path / "cpuinfo").write_text(f"vendor_id : {vendor}")
    monkeypatch.setattr(products, "PROCESSOR", tmp_path / "cpuinfo")
    products.is_faster_here.cache_clear()
    try:
        assert products.is_faster_here() == (choice == "on")
        assert llama("auto").fast_matmul == "off", "its layers are small"
        monkeypatch.setattr(products, "SMALLEST", 1)
        assert llama("auto").fast_matmul == choice
    finally:
        products.is_faster_here.cache_clear()


@needs_operators
def test_a_run_that_goes_on_does_what_it_did_before(monkeypatch, tmp_path):
    from llm_mdp_agents.training.run import resume, train

    options = {"policy": "small", "warm_start": 0, "progress": False, "eval_every": 1, "loggers": ()}
    whole = train("rloo", "llm_mdp/Arithmetic-v0", folder=tmp_path / "whole", steps=2, **options)
    train("rloo", "llm_mdp/Arithmetic-v0", folder=tmp_path / "run", steps=1, **options)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["fast_matmul"] == "on"
    monkeypatch.setattr(products, "is_faster_here", lambda: False)
    run = resume(tmp_path / "run", steps=2, progress=False)
    assert run.policy.fast_matmul == "on"
    for one, other in zip(run.policy.parameters(), whole.policy.parameters()):
        assert torch.equal(one, other)
