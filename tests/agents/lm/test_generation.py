"""Sampling with keys and values kept draws what sampling without them draws: same tokens, same log-probabilities."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import PolicyModule, logp_of, prefixes_of, token_at
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.task import Question, Scores, Task

lm = pytest.importorskip("llm_mdp_agents.lm.policy")
generation = pytest.importorskip("llm_mdp_agents.lm.generation")
shared_prompts = pytest.importorskip("llm_mdp_agents.lm.shared_prompts")
FixedWidth = pytest.importorskip("llm_mdp_agents.lm.fixed_width").FixedWidth
loading = pytest.importorskip("llm_mdp_agents.lm.loading")
token_by_blocks = pytest.importorskip("llm_mdp_agents.lm.drawing").token_by_blocks

V = 7
EXACT = {"rtol": 0, "atol": 1e-10}


def gpt2():
    return lm.tiny_transformer(V, 20, width=8, layers=2, seed=3)


def gpt2_long():
    return lm.tiny_transformer(V, 60, width=8, layers=2, seed=3)


def llama(**options):
    """In float64 throughout: Hugging Face's norm of Llama is always in float32. Two queries share a key."""
    config = {
        "model_type": "llama",
        "vocab_size": V + 1,
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
                setattr(module, name, nn.RMSNorm(len(child.weight), eps=child.variance_epsilon, dtype=torch.float64))
    return policy


def mistral():
    """A window of four tokens."""
    return llama(model_type="mistral", sliding_window=4)


def fixed(build):
    """Keys and values of a fixed width; the step is not compiled, which takes long and changes rounding alone."""

    def built():
        policy = build()
        policy.decode, policy._fixed_width = "static", FixedWidth(policy, compiled=False)
        return policy

    return built


def seed(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


PROMPTS = torch.tensor([[PAD, 1, 2], [PAD, PAD, PAD], [3, 4, 5], [PAD, 1, 2]])
OPTIONS = {"eos": 0, "horizon": 9}


def check_same(one, other):
    assert torch.equal(one.tokens, other.tokens)
    assert (
        torch.equal(one.prompt, other.prompt)
        and torch.equal(one.mask, other.mask)
        and torch.equal(one.finish, other.finish)
    )
    torch.testing.assert_close(one.logp, other.logp, **EXACT)


@pytest.mark.parametrize("build", [gpt2, llama, mistral, fixed(gpt2), fixed(llama)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"greedy": True},
        {"stop": (2, 3)},
        {"eos": None},
        {"prefix": torch.tensor([[4, 5, PAD], [PAD, PAD, PAD], [1, 0, PAD], [1, 2, 3]])},
        {"prefix": torch.tensor([[4, 5, 1], [2, 0, PAD], [1, PAD, PAD], [PAD] * 3]), "horizon": 3},
        {"prefix": torch.tensor([[0], [0], [0], [0]])},
    ],
    ids=["plain", "temperature", "greedy", "stop", "no eos", "prefix", "full prefix", "all ended"],
)
def test_samples_are_those_of_reading_everything_anew(build, options):
    policy, options = build(), OPTIONS | options
    check_same(
        policy.sample(PROMPTS, 3, generator=seed(), **options),
        PolicyModule.sample(policy, PROMPTS, 3, generator=seed(), **options),
    )


@pytest.mark.parametrize("build", [gpt2, llama, mistral, fixed(gpt2), fixed(llama)])
@pytest.mark.parametrize(
    "options", [{}, {"greedy": True}, {"temperature": 1.7, "stop": (6,)}], ids=["plain", "greedy", "temperature"]
)
def test_branches_are_those_of_reading_every_prefix_anew(build, options):
    policy, options = build(), OPTIONS | options
    rollouts = policy.sample(PROMPTS, 2, generator=seed(1), **OPTIONS)
    row = torch.tensor([0, 0, 0, 2, 3, 5, 5, 7, 4])
    step = torch.tensor([0, 1, 3, 0, 2, 1, 9, 4, 2]).minimum(rollouts.length[row])
    prefix = prefixes_of(rollouts.tokens, row, step)
    expected = PolicyModule.sample(policy, rollouts.prompt[row], 2, prefix=prefix, generator=seed(), **options)
    check_same(policy.branch(rollouts.prompt, rollouts.tokens, row, step, 2, generator=seed(), **options), expected)


def test_what_is_drawn_is_scored_the_same():
    policy = llama()
    policy.temperature = 0.7
    drawn = policy.sample(PROMPTS, 4, generator=seed(), temperature=1.3, **OPTIONS)
    torch.testing.assert_close(logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask, 1.3), drawn.logp, **EXACT)
    plain = llama().logits(drawn.prompt, drawn.tokens) / 0.7 / 1.3
    expected = plain.log_softmax(-1).gather(-1, drawn.tokens.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(drawn.logp[drawn.mask], expected[drawn.mask], **EXACT)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_work_is_not_done_twice(build):
    """Distinct prompts and responses are read once; every later call reads one token of a batch that shrinks as rows
    end."""
    policy, shapes = build(), []
    assert policy.linear_head and policy.full_attention
    embeddings = policy.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(inputs[0].shape)))
    scored = []
    hook = policy.causal_lm.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: scored.append(output.shape[1])
    )
    drawn = policy.sample(PROMPTS, 8, generator=seed(), **OPTIONS)
    hook.remove()
    assert set(scored) == {1}
    assert shapes[0] == (3, 4)
    assert all(columns == 1 for _, columns in shapes[1:]) and len(shapes) <= OPTIONS["horizon"]
    alive = [int((drawn.length > t).sum()) for t in range(1, len(shapes))]
    assert all(a <= rows <= max(2 * a, 1) for (rows, _), a in zip(shapes[1:], alive))
    assert shapes[-1][0] < 32

    shapes.clear()
    one, other = (drawn.length >= 3).nonzero()[:2, 0].tolist()
    row, step = torch.tensor([one, one, one, other]), torch.tensor([0, 1, 1, 1])
    policy.branch(drawn.prompt, drawn.tokens, row, step, 3, generator=seed(), **OPTIONS)
    assert shapes[0][0] == 2 and shapes[0][1] <= 5
    assert all(columns == 1 for _, columns in shapes[1:])


def test_caches_grow(monkeypatch):
    monkeypatch.setattr("llm_mdp_agents.lm.architecture.SPARE", 1)
    policy = llama()
    expected = PolicyModule.sample(policy, PROMPTS, 2, generator=seed(), **OPTIONS)
    check_same(policy.sample(PROMPTS, 2, generator=seed(), **OPTIONS), expected)


def test_rows_that_have_ended_stay_within_the_positions_of_the_model():
    policy = lm.tiny_transformer(V, 12)
    prefix = torch.full((4, 8), PAD)
    prefix[0] = 1
    options = {"eos": None, "horizon": 9, "prefix": prefix}
    expected = PolicyModule.sample(policy, PROMPTS, 1, generator=seed(), **options)
    check_same(policy.sample(PROMPTS, 1, generator=seed(), **options), expected)


@pytest.mark.parametrize("kinds", [["full_attention", "linear_attention"], ["sliding_attention"] * 2])
def test_other_layers_are_recognised(kinds):
    policy = llama()
    policy.causal_lm.config.layer_types = kinds
    assert not policy.full_attention


def test_gradient_checkpointing_leaves_the_cache_alone():
    policy, shapes = llama(), []
    expected = policy.sample(PROMPTS, 2, generator=seed(), **OPTIONS)
    # transformers has had two names for it.
    enable = (
        getattr(policy.model, "activation_checkpointing_enable", None) or policy.model.gradient_checkpointing_enable
    )
    enable()
    policy.train()
    policy.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: shapes.append(inputs[0].shape[1])
    )
    check_same(policy.sample(PROMPTS, 2, generator=seed(), **OPTIONS), expected)
    assert set(shapes[1:]) == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"prefix": torch.ones(4, 10, dtype=torch.int64)}, "a prefix has 10 tokens and the horizon is 9"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        llama().sample(PROMPTS, 1, generator=seed(), **OPTIONS, **arguments)


def test_an_empty_prompt_needs_a_beginning():
    policy = llama()
    policy.begin = None
    full = torch.tensor([[1, 2], [PAD, 3]])
    assert policy.sample(full, 1, generator=seed(), **OPTIONS).tokens.shape == (2, 9)
    for prompt in (PROMPTS, torch.empty(2, 0, dtype=torch.int64)):
        with pytest.raises(ValueError, match="a prompt is empty"):
            policy.sample(prompt, 1, generator=seed(), **OPTIONS)


def test_no_global_generator_is_touched():
    policy, state = llama(), torch.get_rng_state()
    policy.sample(PROMPTS, 2, generator=seed(), **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("first", "size"), [(0, 5000), (300, 5000), (0, 5120)])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one(first, size):
    """A millionth of all to either side of where one token's share ends is that token and the next, as by sums in
    float64 over all; forbidden tokens, whole blocks and a tail of them, are never drawn."""
    logits = 2 * torch.randn(size, generator=seed())
    for forbidden in (slice(0, first), slice(400, None, 3), slice(600, 1300), slice(-300, None)):
        logits[forbidden] = -torch.inf
    logp = logits.log_softmax(-1)
    ends = logp.double().exp().cumsum(-1)
    ends = ends[logp > -8] / ends[-1]
    edges = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    uniform = torch.cat([ends - 1e-6, ends[:-1] + 1e-6, edges])[:, None]
    many = logp.expand(len(uniform), size)
    drawn = token_by_blocks(many, uniform)
    assert torch.equal(drawn, token_at(many, uniform))
    assert bool((logp[drawn] > -torch.inf).all()) and len(drawn.unique()) > 600
    assert drawn[-2] == first, "what is forbidden comes before"
    # Rows that have ended may be forbidden everything.
    many = torch.stack([logp, torch.full_like(logp, torch.nan), logp])
    assert torch.equal(token_by_blocks(many, uniform[:3]), token_at(many, uniform[:3]))


# --- conversations ----------------------------------------------------------------------------------------------------


class Talk(Task):
    """Replies of 0 to 6 tokens, which depend on what was said; prompts of different lengths. Nobody ends at once;
    now and then it is hand over or say 2."""

    vocab_size, eos, end_of_turn, horizon, prompt_length = V, 0, 1, 32, 4
    max_turns = 5

    def question(self, generator):
        return Question(tuple(generator.integers(2, V, size=int(generator.integers(0, 5))).tolist()))

    def reply(self, question, tokens):
        said = sum(tokens) + len(question.prompt)
        return tuple(2 + (said + place) % (V - 2) for place in range(said % 7)) if said % 11 else None

    def action_mask(self, question, tokens):
        often = [self.end_of_turn, 2] if len(tokens) % 4 == 3 else range(V)
        return np.isin(np.arange(V), often) & ((np.arange(V) != self.eos) | (len(tokens) > 14))

    def score(self, questions, tokens, mask):
        return Scores((mask & (tokens == 3)).sum(1).astype(np.float64))


def talk(policy, task, *, anew: bool, monkeypatch, temperature=1.0):
    """Responses and greedy branches of conversations, with and without keys and values kept."""
    with monkeypatch.context() as patch:
        if anew:
            patch.setattr(lm.LanguageModelPolicy, "conversation", lambda self: None)
        source = TaskSampler(policy, task, seed(4), np.random.default_rng(5), prompts_per_batch=5)
        drawn = source.rollouts(4, temperature)
        boundary = drawn.mask & (torch.arange(task.horizon) % 9 == 0)
        return drawn, [source.branches(drawn, boundary, each) for each in ((1.0, 1.0), (0.0,))], source


@pytest.mark.parametrize(
    ("build", "temperature", "spare"), [(gpt2_long, 1.0, 64), (llama, 0.8, 1), (fixed(llama), 1.0, 64)]
)
def test_turns_with_keys_and_values_kept_are_those_of_reading_everything_anew(build, temperature, spare, monkeypatch):
    monkeypatch.setattr("llm_mdp_agents.lm.architecture.SPARE", spare)
    policy, task = build(), Talk()
    kept, anew = (
        talk(policy, task, anew=each, monkeypatch=monkeypatch, temperature=temperature) for each in (False, True)
    )
    check_same(kept[0], anew[0])
    for one, other in zip(kept[1], anew[1]):
        assert torch.equal(one.reward, other.reward) and torch.equal(one.step, other.step)
    turns = (kept[0].mask & (kept[0].tokens == task.end_of_turn)).sum(-1)
    ends = kept[0].finish.unique().tolist()
    assert int(turns.max()) >= 3 and int(turns.min()) <= 1 and len(ends) >= 2, "long and short ones, of several ends"
    assert vars(kept[2].cost) == vars(anew[2].cost)
    scored = logp_of(policy, kept[0].prompt, kept[0].tokens, kept[0].mask, temperature)
    torch.testing.assert_close(scored.detach(), kept[0].logp, **EXACT)


def test_a_turn_reads_what_is_new():
    """Of every turn the last token of the one before and the reply: no prompt is read twice."""
    policy, task, read = llama(), Talk(), []
    assert policy.full_attention
    policy.model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: read.append(inputs[0].shape[1])
    )
    drawn = TaskSampler(policy, task, seed(4), np.random.default_rng(5), prompts_per_batch=6).rollouts(4)
    assert read[0] <= task.prompt_length + 1 and int((~drawn.mask & (drawn.tokens != PAD)).sum()) > 100
    assert 3 < max(read[1:]) <= 7


def test_models_with_windows_read_every_turn_anew(monkeypatch):
    policy, task = mistral(), Talk()
    assert policy.conversation() is None and llama().conversation() is not None
    kept, anew = (talk(policy, task, anew=each, monkeypatch=monkeypatch)[0] for each in (False, True))
    check_same(kept, anew)


# --- a fixed width ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_step_draws_the_same_tokens():
    """Up to rounding: angles of positions are in float32. More rows than a power of two, then fewer."""
    policy, plain = llama(), llama()
    policy.decode = "static"
    for prompts in (PROMPTS[:3], PROMPTS[:2]):
        one, other = (each.sample(prompts, 2, generator=seed(), **OPTIONS) for each in (policy, plain))
        assert torch.equal(one.tokens, other.tokens) and torch.equal(one.finish, other.finish)
        torch.testing.assert_close(one.logp, other.logp, rtol=0, atol=1e-5)
    assert policy.fixed_width is policy.fixed_width, "compiled once"
    assert copy.deepcopy(policy)._fixed_width is None


def test_a_fixed_width_is_refused_where_it_cannot_be(monkeypatch):
    with pytest.raises(ValueError, match="MistralForCausalLM does not attend to all columns alike"):
        FixedWidth(mistral())
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ValueError, match="none of the compilers"):
        FixedWidth(llama())


# --- prompts that rows share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [gpt2, llama])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"greedy": True},
        {"temperature": 1.7, "stop": (6,)},
        {"prefix": torch.tensor([[4, 5], [1, PAD], [2, 1], [3, 3]])},
    ],
    ids=["plain", "greedy", "stop", "prefix"],
)
def test_rows_that_share_a_prompt_draw_as_rows_with_copies_of_it(build, options, monkeypatch):
    """Rows leave as they end, and not equally many of every prompt."""
    monkeypatch.setattr("llm_mdp_agents.lm.generation.FROM", 1)
    policy, options = build(), OPTIONS | options
    assert policy.shares_prompts
    rows, take = [], shared_prompts.SharedPrompts.take

    def watched(self, which):
        take(self, which)
        rows.append(len(which))
        assert len(self.layers[0][0]) == len(self.group.unique()), "of those that go on alone"

    monkeypatch.setattr(shared_prompts.SharedPrompts, "take", watched)
    drawn = policy.sample(PROMPTS, 5, generator=seed(), **options)
    check_same(drawn, PolicyModule.sample(policy, PROMPTS, 5, generator=seed(), **options))
    assert rows or "greedy" in options, "some have left"
    assert policy.causal_lm.config._attn_implementation in ("eager", "sdpa"), "as it was"


def test_prompts_are_not_copied_and_short_ones_are_not_shared(monkeypatch):
    policy, memories, read = gpt2_long(), [], []
    run = generation.Drawing.run

    def watched(self, batch, most, memory, *rest):
        memories.append(memory)
        read.extend(len(keys) for keys, _ in getattr(memory, "layers", [])[:1])
        run(self, batch, most, memory, *rest)

    monkeypatch.setattr(generation.Drawing, "run", watched)
    prompts = torch.arange(2 * 12).reshape(2, 12) % V
    monkeypatch.setattr(generation, "FROM", 13)
    policy.sample(prompts, 4, generator=seed(), **OPTIONS)
    assert read == [2], "prompts, not rows"
    policy.sample(prompts, 1, generator=seed(), **OPTIONS)
    policy.sample(prompts[:, 1:], 4, generator=seed(), **OPTIONS)
    # Prompts of five rows and one have room for ten; of seven and one each, for twenty-eight.
    monkeypatch.setattr(generation, "FROM", 1)
    policy.sample(prompts[torch.tensor([0, 0, 0, 0, 0, 1])], 1, generator=seed(), **OPTIONS)
    assert not isinstance(memories.pop(), generation.Growing)
    many = torch.cat([prompts[:1].expand(7, -1), prompts[1:], prompts.flip(1)])
    policy.sample(many, 1, generator=seed(), **OPTIONS)
    assert all(isinstance(each, generation.Growing) for each in memories[1:])


def test_attention_that_is_more_than_a_softmax_is_left_alone(monkeypatch):
    assert not mistral().shares_prompts
    attention = "transformers.models.llama.modeling_llama.LlamaAttention.forward"
    whole = llama().causal_lm.model.layers[0].self_attn.__class__.forward
    monkeypatch.setattr(attention, lambda self, *rest, **options: whole(self, *rest, **options, s_aux=torch.zeros(4)))
    assert not llama().shares_prompts
    monkeypatch.setattr(attention, lambda self, *rest, **options: whole(self, *rest, **options))
    monkeypatch.setattr(shared_prompts, "attend", lambda query, own, *rest: query.transpose(1, 2))
    assert not llama().shares_prompts, "tried, and it is another distribution"
