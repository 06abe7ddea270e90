"""The geometry of the tree, logits as plain look-ups, and sampling: frequencies, log-probabilities, ends, prefixes,
seeds."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.mdp.tree import PAD, PrefixTree, pad_prompts, prompt_index
from llm_mdp.sampling.evidence import Finish
from llm_mdp.sampling.policies import (
    AtTemperature,
    NgramPolicy,
    Policy,
    TabularPolicy,
    TabularValue,
    finish_of,
    logp_of,
)
from tests.strategies import generators, padded, plain_responses, policies, token_mdps, trees

NO_PROMPT = torch.empty((1, 0), dtype=torch.int64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plain_prefixes(tree: PrefixTree, level: int) -> list[tuple[int, ...]]:
    """Prefixes of one length, counted like an odometer whose first token turns fastest."""
    continuing = [token for token in range(tree.vocab_size) if token != tree.eos]
    return [tuple(reversed(digits)) for digits in itertools.product(continuing, repeat=level)]


# --- geometry ---


@settings(deadline=None, max_examples=60)
@given(trees())
def test_leaves_are_all_responses_in_lexicographic_order(tree):
    responses = plain_responses(tree)
    assert responses == sorted(set(responses))
    assert tree.n_leaves == len(responses)
    assert tree.leaves.tolist() == padded(responses, tree.horizon).tolist()


@settings(deadline=None, max_examples=60)
@given(trees())
def test_level_prefixes_turn_the_first_token_fastest(tree):
    for level in range(tree.horizon):
        assert [tuple(prefix) for prefix in tree.level_prefixes(level).tolist()] == plain_prefixes(tree, level)
        assert tree.level_sizes[level] == len(plain_prefixes(tree, level))


@settings(deadline=None, max_examples=60)
@given(trees())
def test_prefix_and_node_indices_are_places_in_the_plain_enumeration(tree):
    levels = [plain_prefixes(tree, level) for level in range(tree.horizon)]
    nodes = [prefix for prefixes in levels for prefix in prefixes]
    index, node = tree.prefix_index(tree.leaves), tree.node_index(tree.leaves)
    assert tree.n_nodes == len(nodes)
    for row, response in enumerate(plain_responses(tree)):
        for t in range(len(response)):
            assert levels[t][index[row, t]] == response[:t]
            assert nodes[node[row, t]] == response[:t]
    for t, size in enumerate(tree.level_sizes):
        assert 0 <= int(index[:, t].min()) <= int(index[:, t].max()) < size, "in range after the end too"


@settings(deadline=None, max_examples=60)
@given(trees())
def test_children_by_one_token_are_one_block(tree):
    """Action-major: the children of a whole level by a token are a block of the next level, in the level's order."""
    for level in range(tree.horizon - 1):
        below, above = plain_prefixes(tree, level + 1), plain_prefixes(tree, level)
        for rank, token in enumerate(tree.continuing):
            assert below[rank * len(above) : (rank + 1) * len(above)] == [(*prefix, token) for prefix in above]
            assert tree.rank(torch.tensor(token)) == rank


@settings(deadline=None, max_examples=60)
@given(trees())
def test_first_leaf_begins_the_contiguous_leaves_below_a_prefix(tree):
    responses = plain_responses(tree)
    first = tree.first_leaf(tree.leaves)
    assert first.shape == (len(responses), tree.horizon + 1)
    for row, response in enumerate(responses):
        for t in range(tree.horizon + 1):
            below = [other for other, candidate in enumerate(responses) if candidate[:t] == response[:t]]
            assert below == list(range(below[0], below[0] + len(below))), "contiguous"
            assert first[row, t] == below[0]
            assert len(below) == (tree.subtree_leaves[t] if t < len(response) else 1)


def test_prompt_index_finds_prompts_of_any_length():
    prompts = pad_prompts([(1, 2), (2,), ()])
    assert prompts.tolist() == [[1, 2], [PAD, 2], [PAD, PAD]]
    assert prompt_index(prompts.flip(0)[:, None], prompts).tolist() == [[2], [1], [0]]
    with pytest.raises(ValueError, match="not among the prompts of this table; use the prompts of the same TokenMDP"):
        prompt_index(torch.tensor([[2, 1]]), prompts)


# --- logits ---


@settings(deadline=None, max_examples=60)
@given(token_mdps(), generators())
def test_tabular_logits_are_the_row_of_the_prefix(mdp, generator):
    policy = TabularPolicy.random(mdp.tree, mdp.prompt_tokens, generator)
    value = TabularValue.random(mdp.tree, mdp.prompt_tokens, generator)
    row_of = [{prefix: i for i, prefix in enumerate(plain_prefixes(mdp.tree, level))} for level in range(mdp.horizon)]
    responses = plain_responses(mdp.tree)
    tokens = padded(responses, mdp.horizon)
    for p, prompt in enumerate(mdp.prompt_tokens):
        logits = policy.logits(prompt.expand(len(tokens), -1), tokens)
        critic = value(prompt.expand(len(tokens), -1), tokens, tokens != PAD)
        assert logits.shape == (len(tokens), mdp.horizon, mdp.vocab_size)
        for row, response in enumerate(responses):
            numbers = [row_of[t][response[:t]] for t in range(len(response))]
            assert logits[row, : len(response)].tolist() == [
                policy.levels[t][p, :, i].tolist() for t, i in enumerate(numbers)
            ]
            values = [value.levels[t][p, i].item() for t, i in enumerate(numbers)]
            assert critic[row].tolist() == values + [0.0] * (mdp.horizon + 1 - len(values)), "0 from the end on"


@settings(deadline=None, max_examples=60)
@given(token_mdps(), st.integers(0, 3), st.booleans(), generators())
def test_ngram_logits_are_the_row_of_the_last_tokens(mdp, order, steps, generator):
    policy = NgramPolicy.random(mdp.vocab_size, order, generator, horizon=mdp.horizon if steps else None)
    # Row by row, as an odometer over contexts: digits 0 … V-1 are tokens, V is "nothing there"; the newest turns
    # fastest.
    contexts = itertools.product(range(mdp.vocab_size + 1), repeat=order)
    row_of = {context: row for row, context in enumerate(contexts)}
    responses = plain_responses(mdp.tree)
    tokens = padded(responses, mdp.horizon)
    for prompt, padded_prompt in zip(mdp.prompts, mdp.prompt_tokens):
        logits = policy.logits(padded_prompt.expand(len(tokens), -1), tokens)
        for row, response in enumerate(responses):
            for t in range(len(response)):
                text = (mdp.vocab_size,) * order + prompt.tokens + response[:t]
                context = text[len(text) - order :]
                assert logits[row, t].tolist() == policy.table[t if steps else 0, row_of[context]].tolist()


@settings(deadline=None, max_examples=60)
@given(token_mdps(), st.data())
def test_logits_never_look_at_present_or_later_tokens(mdp, data):
    policy = data.draw(policies(mdp))
    responses = [response for response in plain_responses(mdp.tree) if len(response) == mdp.horizon]
    first, second = (responses[data.draw(st.integers(0, len(responses) - 1))] for _ in range(2))
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))
    logits = policy.logits(mdp.prompt_tokens[:1].expand(2, -1), torch.tensor([first, second]))
    assert logits[0, : shared + 1].tolist() == logits[1, : shared + 1].tolist()


def test_an_ngram_policy_reads_the_prompt():
    prompts, nothing = torch.tensor([[0, 1], [2, 1], [1, 2]]), torch.full((3, 1), PAD)
    unigram, bigram, trigram = (NgramPolicy.random(3, order, seeded(0)) for order in (0, 1, 2))
    assert len({tuple(row) for row in unigram.logits(prompts, nothing)[:, 0].tolist()}) == 1
    first = bigram.logits(prompts, nothing)[:, 0].tolist()
    assert first[0] == first[1] != first[2]
    assert len({tuple(row) for row in trigram.logits(prompts, nothing)[:, 0].tolist()}) == 3


def test_an_ngram_table_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="table has 3 contexts; order 1 over 3 tokens has 4"):
        NgramPolicy(torch.zeros(1, 3, 3), order=1)


def test_policies_are_policies_in_double_precision():
    single = [torch.zeros(1, 3, 1), torch.zeros(1, 3, 2)]
    for policy in (TabularPolicy(PrefixTree(3, 0, 2), NO_PROMPT, single), NgramPolicy(torch.zeros(1, 4, 3), order=1)):
        assert isinstance(policy, Policy)
        assert {parameter.dtype for parameter in policy.parameters()} == {torch.float64}
    assert not isinstance(torch.nn.Linear(1, 1), Policy)


def test_random_logits_have_the_standard_deviation_asked_for():
    tree = PrefixTree(4, None, 6)
    policy = TabularPolicy.random(tree, NO_PROMPT, seeded(3), scale=2.0)
    logits = torch.cat([level.detach().flatten() for level in policy.levels])
    assert (logits.std().item(), logits.mean().item()) == (pytest.approx(2, rel=0.05), pytest.approx(0, abs=0.1))
    uniform = TabularPolicy.random(tree, NO_PROMPT, seeded(3), scale=0.0)
    assert uniform.logits(NO_PROMPT, torch.tensor([[1, 2, 3, 0, 0, 0]])).abs().sum() == 0


# --- log-probabilities ---


def plain_logp(logits: list[float], temperature: float) -> list[float]:
    total = math.fsum(math.exp(logit / temperature) for logit in logits)
    return [logit / temperature - math.log(total) for logit in logits]


@settings(deadline=None, max_examples=40)
@given(token_mdps(max_vocab=3, max_horizon=3), st.data(), st.sampled_from([1.0, 0.5, 3.0]))
def test_logp_by_plain_softmax_and_probabilities_sum_to_one(mdp, data, temperature):
    policy = data.draw(policies(mdp))
    responses = plain_responses(mdp.tree)
    tokens = padded(responses, mdp.horizon)
    for prompt in mdp.prompt_tokens:
        prompt = prompt.expand(len(tokens), -1)
        logp, logits = (
            logp_of(policy, prompt, tokens, tokens != PAD, temperature),
            policy.logits(prompt, tokens).tolist(),
        )
        for row, response in enumerate(responses):
            expected = [plain_logp(logits[row][t], temperature)[token] for t, token in enumerate(response)]
            assert logp[row].tolist() == pytest.approx(expected + [0.0] * (mdp.horizon - len(response)), abs=1e-12)
        assert logp.sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_the_score_of_a_token_is_its_indicator_minus_the_probabilities():
    """∇ log π(w | p) by the logits at p is 1[w] - π(· | p), and zero at every prefix that the response does not
    visit."""
    tree = PrefixTree(3, 0, 3)
    policy = TabularPolicy.random(tree, NO_PROMPT, seeded(5))
    tokens = torch.tensor([[2, 1, 0]])
    logp_of(policy, NO_PROMPT, tokens, tokens != PAD).sum().backward()
    visited = {(0, 0): 2, (1, plain_prefixes(tree, 1).index((2,))): 1, (2, plain_prefixes(tree, 2).index((2, 1))): 0}
    for level, parameter in enumerate(policy.levels):
        for index in range(parameter.shape[-1]):
            expected = [0.0, 0.0, 0.0]
            if (level, index) in visited:
                expected = [-math.exp(logp) for logp in plain_logp(parameter[0, :, index].tolist(), 1.0)]
                expected[visited[level, index]] += 1
            assert parameter.grad[0, :, index].tolist() == pytest.approx(expected, abs=1e-12)


# --- sampling ---

SAMPLED = {
    "table": lambda tree, prompts: TabularPolicy.random(tree, prompts, seeded(1)),
    "n-gram": lambda tree, prompts: NgramPolicy.random(tree.vocab_size, 1, seeded(2)),
    "n-gram by step": lambda tree, prompts: NgramPolicy.random(tree.vocab_size, 2, seeded(3), horizon=tree.horizon),
}
PROMPTS = pad_prompts([(1,), (2, 0)])


def leaf_probabilities(policy, tree, prompt, temperature) -> list[float]:
    """Exact, in plain Python from the logits."""
    responses = plain_responses(tree)
    logits = policy.logits(prompt.expand(len(responses), -1), padded(responses, tree.horizon)).tolist()
    steps = [[plain_logp(logits[row][t], temperature)[w] for t, w in enumerate(r)] for row, r in enumerate(responses)]
    return [math.exp(math.fsum(logps)) for logps in steps]


def chi_square(observed: list[int], probability: list[float]) -> float:
    """Pearson's statistic in standard deviations above its mean."""
    total = sum(observed)
    statistic = sum((seen - total * p) ** 2 / (total * p) for seen, p in zip(observed, probability))
    freedom = len(observed) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def counts(tokens: torch.Tensor, responses: list[tuple[int, ...]]) -> list[int]:
    seen = [tuple(token for token in row if token != PAD) for row in tokens.tolist()]
    assert set(seen) <= set(responses)
    return [seen.count(response) for response in responses]


@pytest.mark.parametrize("kind", SAMPLED)
@pytest.mark.parametrize("eos", [0, 2, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_responses_come_as_often_as_they_should(kind, eos, temperature):
    tree, n = PrefixTree(3, eos, 3), 10_000
    policy = SAMPLED[kind](tree, PROMPTS)
    drawn = policy.sample(PROMPTS, n, eos=eos, horizon=3, generator=seeded(11), temperature=temperature)
    responses = plain_responses(tree)
    for p, prompt in enumerate(PROMPTS):
        rows = slice(p * n, (p + 1) * n)
        assert drawn.prompt[rows].unique(dim=0).tolist() == [prompt.tolist()], "rows of one prompt are adjacent"
        probability = leaf_probabilities(policy, tree, prompt, temperature)
        assert abs(chi_square(counts(drawn.tokens[rows], responses), probability)) < 4


def test_the_frequency_test_can_fail():
    """The same figures at another temperature are far outside the band."""
    tree, n = PrefixTree(3, 0, 3), 10_000
    policy = SAMPLED["table"](tree, PROMPTS)
    drawn = policy.sample(PROMPTS[:1], n, eos=0, horizon=3, generator=seeded(11), temperature=1.0)
    probability = leaf_probabilities(policy, tree, PROMPTS[0], 1.3)
    assert chi_square(counts(drawn.tokens, plain_responses(tree)), probability) > 8


@settings(deadline=None, max_examples=60)
@given(token_mdps(), st.data(), st.sampled_from([1.0, 0.3, 2.0]), generators())
def test_what_a_sample_says_about_itself(mdp, data, temperature, generator):
    """logp is under the distribution sampled, the end token is the policy's own, then comes padding, finish is
    explicit."""
    policy = data.draw(policies(mdp))
    shape = {"eos": mdp.eos, "horizon": mdp.horizon}
    drawn = policy.sample(mdp.prompt_tokens, 8, **shape, generator=generator, temperature=temperature)
    assert drawn.tokens.shape == drawn.mask.shape == drawn.logp.shape == (8 * len(mdp.prompts), mdp.horizon)
    assert torch.equal(drawn.prompt, mdp.prompt_tokens.repeat_interleave(8, dim=0))
    assert torch.equal(drawn.mask, drawn.tokens != PAD)
    assert not drawn.logp.requires_grad
    again = logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask, temperature)
    torch.testing.assert_close(drawn.logp, again.detach(), rtol=1e-12, atol=1e-12)
    responses = set(plain_responses(mdp.tree))
    for row, tokens in enumerate(drawn.tokens.tolist()):
        length = int(drawn.length[row])
        assert tuple(tokens[:length]) in responses
        assert tokens[length:] == [PAD] * (mdp.horizon - length)
        assert drawn.mask[row].tolist() == [True] * length + [False] * (mdp.horizon - length)
        assert drawn.logp[row, length:].abs().sum() == 0
        ended = mdp.eos is not None and tokens[length - 1] == mdp.eos
        assert drawn.finish[row] == (Finish.EOS if ended else Finish.HORIZON)


@st.composite
def ngram_draws(draw: st.DrawFn) -> tuple[NgramPolicy, dict]:
    """An n-gram policy on a horizon of up to 12 tokens, and everything that can be asked of `sample`."""
    vocab_size, horizon, generator = draw(st.integers(2, 5)), draw(st.integers(1, 12)), draw(generators())
    table_steps = draw(st.sampled_from([None, 2, horizon]))
    policy = NgramPolicy.random(vocab_size, draw(st.integers(0, 3)), generator, horizon=table_steps)
    words = st.integers(0, vocab_size - 1)
    prompts = pad_prompts(draw(st.lists(st.lists(words, max_size=4).map(tuple), min_size=1, max_size=4)))
    beginnings = st.lists(words, max_size=horizon)
    rows = draw(st.none() | st.lists(beginnings, min_size=len(prompts), max_size=len(prompts)))
    width = max(map(len, rows)) if rows else 0
    return policy, {
        "prompt": prompts,
        "n": draw(st.integers(1, 3)),
        "eos": draw(st.none() | words),
        "horizon": horizon,
        "temperature": draw(st.sampled_from([1.0, 0.6, 2.0])),
        "prefix": None if rows is None else padded(rows, width).reshape(len(rows), width),
        "greedy": draw(st.booleans()),
        "stop": draw(st.lists(words, max_size=2).map(tuple)),
    }


@settings(deadline=None, max_examples=150)
@given(ngram_draws(), st.integers(0, 2**32 - 1))
def test_an_ngram_policy_draws_what_reading_every_prefix_anew_draws(drawn, seed):
    policy, options = drawn
    one, other = (p.sample(**options, generator=seeded(seed)) for p in (policy, AtTemperature(policy, 1.0)))
    assert torch.equal(one.tokens, other.tokens) and torch.equal(one.logp, other.logp)
    assert torch.equal(one.mask, other.mask) and torch.equal(one.finish, other.finish)


def test_an_ngram_policy_reads_no_prefix_twice(monkeypatch):
    """10⁶ tokens; with prefixes read anew for every token it would be 10⁹."""
    policy = NgramPolicy.random(3, 2, seeded(1))
    monkeypatch.setattr(NgramPolicy, "logits", lambda *arguments: pytest.fail("the whole prefix was read"))
    drawn = policy.sample(NO_PROMPT, 500, eos=None, horizon=2000, generator=seeded(2))
    monkeypatch.undo()
    again = logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask)
    torch.testing.assert_close(drawn.logp, again.detach(), rtol=1e-12, atol=1e-12)


def test_finish_is_eos_on_the_very_last_step_too():
    tokens = torch.tensor([[1, 0], [1, 2], [0, PAD]])
    assert finish_of(tokens, 0).tolist() == [Finish.EOS, Finish.HORIZON, Finish.EOS]
    assert finish_of(tokens[:2], None).tolist() == [Finish.HORIZON, Finish.HORIZON]


@pytest.mark.parametrize("kind", SAMPLED)
def test_responses_that_begin_with_a_prefix(kind):
    """Each prompt has its own prefix, and the rest is distributed as among the responses that begin so."""
    tree, n = PrefixTree(3, 0, 3), 10_000
    policy, prefix = SAMPLED[kind](tree, PROMPTS), torch.tensor([[2], [1]])
    drawn = policy.sample(PROMPTS, n, eos=0, horizon=3, generator=seeded(12), prefix=prefix)
    assert torch.equal(drawn.tokens[:, :1], prefix.repeat_interleave(n, dim=0))
    again = logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask).detach()
    torch.testing.assert_close(drawn.logp[:, 1:], again[:, 1:], rtol=1e-12, atol=1e-12)
    for p, prompt in enumerate(PROMPTS):
        every = zip(plain_responses(tree), leaf_probabilities(policy, tree, prompt, 1.0))
        below = [(response, chance) for response, chance in every if response[0] == prefix[p]]
        total = sum(probability for _, probability in below)
        observed = counts(drawn.tokens[p * n : (p + 1) * n], [response for response, _ in below])
        assert abs(chi_square(observed, [probability / total for _, probability in below])) < 4


def test_a_prefix_of_full_length_leaves_nothing_to_draw():
    tree = PrefixTree(3, 0, 2)
    policy = TabularPolicy.random(tree, NO_PROMPT, seeded(0))
    drawn = policy.sample(NO_PROMPT, 2, eos=0, horizon=2, generator=seeded(0), prefix=torch.tensor([[1, 2]]))
    assert drawn.tokens.tolist() == [[1, 2], [1, 2]]


@settings(deadline=None, max_examples=30)
@given(token_mdps(), st.data(), st.integers(0, 2**32 - 1))
def test_the_same_seed_gives_the_same_sample(mdp, data, seed):
    policy = data.draw(policies(mdp))
    draws = [
        policy.sample(mdp.prompt_tokens, 4, eos=mdp.eos, horizon=mdp.horizon, generator=seeded(seed)) for _ in range(2)
    ]
    assert torch.equal(draws[0].tokens, draws[1].tokens) and torch.equal(draws[0].logp, draws[1].logp)


def test_another_seed_gives_another_sample_and_the_global_generator_is_left_alone():
    policy, state = NgramPolicy.random(4, 1, seeded(0)), torch.get_rng_state()
    one, other = (policy.sample(NO_PROMPT, 20, eos=None, horizon=5, generator=seeded(seed)).tokens for seed in (0, 1))
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_zero_is_refused(temperature):
    policy = NgramPolicy.random(3, 1, seeded(0))
    with pytest.raises(ValueError, match=rf"temperature is {temperature}; it must be above 0"):
        policy.sample(NO_PROMPT, 1, eos=0, horizon=2, generator=seeded(0), temperature=temperature)
