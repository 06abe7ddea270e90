"""The library of hidden token rewards: each by hand, all of them for causality and for agreement between tree and
responses."""

import itertools

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm_mdp.exact.ngram_gradient import ngram_gradient
from llm_mdp.exact.tree_gradient import node_logits, tree_gradient
from llm_mdp.mdp.hidden_rewards import (
    EndReward,
    HiddenReward,
    LastTokenReward,
    LengthCost,
    LexicalReward,
    MarkovReward,
    NgramReward,
    PositionReward,
    PotentialReward,
    ScaledReward,
    SparseReward,
    SumReward,
    TableReward,
    last_token,
)
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PAD, PrefixTree, context
from llm_mdp.sampling.policies import NgramPolicy, logp_of
from tests.strategies import ASKS_IF_LAST, GAMMAS, REWARDS, generators, normal, padded, plain_responses, token_mdps

MARKOV = tuple(name for name in REWARDS if name not in ("table", "sparse", "last token", "sum"))
NO_PROMPT = torch.empty(0, dtype=torch.int64)


def rewards_of(reward: HiddenReward, *tokens: int, prompt: tuple[int, ...] = ()) -> list[float]:
    response = torch.tensor(tokens)
    return reward(torch.tensor(prompt, dtype=torch.int64), response, response != PAD).tolist()


def tensor(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


# --- by hand ---


def test_table_reward_by_hand():
    """V = 3, eos = 0: level 1 is the prefixes (1), (2); level 2 is (1,1), (2,1), (1,2), (2,2)."""
    tree = PrefixTree(3, 0, 3)
    levels = [
        hundred + torch.arange(3.0 * size).reshape(1, 3, size) for hundred, size in ((100, 1), (200, 2), (300, 4))
    ]
    reward = TableReward(tree, NO_PROMPT[None], [level.to(torch.float64) for level in levels])
    assert rewards_of(reward, 2, 1, 0) == [102, 200 + 2 * 1 + 1, 300 + 4 * 0 + 1]
    assert rewards_of(reward, 1, 2, 2) == [101, 200 + 2 * 2 + 0, 300 + 4 * 2 + 2]
    assert rewards_of(reward, 0, PAD, PAD) == [100, 0, 0]


def test_table_reward_has_a_table_for_every_prompt():
    reward = TableReward(PrefixTree(2, None, 1), torch.tensor([[0], [1]]), [tensor([[1.0], [2.0]], [[3.0], [4.0]])])
    assert [rewards_of(reward, token, prompt=(p,)) for p in (0, 1) for token in (0, 1)] == [[1], [2], [3], [4]]
    with pytest.raises(ValueError, match="prompt is not among the prompts of this table"):
        reward(torch.tensor([2]), torch.tensor([0]), torch.tensor([True]))


def test_table_reward_of_another_tree_is_refused():
    reward = TableReward.random(PrefixTree(3, 0, 2), NO_PROMPT[None], torch.Generator().manual_seed(0))
    with pytest.raises(
        ValueError, match=r"This table was made for PrefixTree\(vocab_size=3.*not for PrefixTree\(vocab_size=4"
    ):
        reward.levels(PrefixTree(4, 0, 2), NO_PROMPT[None])
    with pytest.raises(ValueError, match="make a new one"):
        reward.levels(PrefixTree(3, 0, 2), torch.tensor([[1]]))


def test_ngram_reward_by_hand():
    """Order 1 over V = 2: row w is 'after token w', the last row is 'at the beginning'."""
    reward = NgramReward(tensor([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), order=1)
    assert rewards_of(reward, 1, 0, 0, 1, 1) == [6, 3, 1, 2, 4]
    assert rewards_of(reward, 1, 0, prompt=(0,)) == [2, 3]


def test_ngram_reward_of_order_two_reads_the_older_token_first():
    """Order 2 over V = 2: row = 3 × older + newer, 2 standing for 'nothing there'."""
    reward = NgramReward(torch.arange(18, dtype=torch.float64).reshape(9, 2), order=2)
    assert rewards_of(reward, 1, 0, 1) == [2 * 8 + 1, 2 * (3 * 2 + 1) + 0, 2 * (3 * 1 + 0) + 1]
    assert rewards_of(reward, 1, 0, prompt=(0, 1)) == [2 * (3 * 0 + 1) + 1, 2 * (3 * 1 + 1) + 0]


def test_lexical_position_and_length_rewards_by_hand():
    assert rewards_of(LexicalReward(tensor(0.5, -1.0, 2.0)), 2, 2, 1, 0, PAD) == [2, 2, -1, 0.5, 0]
    assert rewards_of(PositionReward(tensor([1.0, 2.0], [3.0, 4.0], [5.0, 6.0])), 1, 0, PAD) == [2, 3, 0]
    assert rewards_of(LengthCost(0.25), 1, 0, PAD) == [-0.25, -0.25, 0]


def test_potential_reward_by_hand():
    """Φ(0) = 10, Φ(1) = 4, Φ(nothing) = 1, γ = 1/2; Φ counts as 0 at the end of the response."""
    reward = PotentialReward(tensor(10.0, 4.0, 1.0), gamma=0.5)
    assert rewards_of(reward, 1, 1, 0, PAD) == [4 / 2 - 1, 4 / 2 - 4, 0 - 4, 0]
    assert rewards_of(reward, 1, 1, prompt=(0,)) == [4 / 2 - 10, 0 - 4]


def test_end_reward_by_hand():
    """Another reward's number for the last token: two tokens that earn 5 and 2 by the bigram table earn 2 between
    them."""
    bigram = NgramReward(tensor([1.0, 2.0], [3.0, 4.0], [5.0, 6.0]), order=1)
    assert rewards_of(bigram, 0, 1, PAD) == [5, 2, 0] and rewards_of(EndReward(bigram), 0, 1, PAD) == [0, 2, 0]
    assert rewards_of(EndReward(bigram), 1, prompt=(0,)) == [2]
    assert rewards_of(EndReward(PositionReward(tensor([1.0, 2.0], [3.0, 4.0]))), 1, 0) == [0, 3]
    assert EndReward(bigram).order == 1 and EndReward(LengthCost()).order == 0


@settings(deadline=None, max_examples=40)
@given(token_mdps(rewards=("end",)), st.integers(0, 2), generators())
def test_the_gradient_of_an_end_reward_is_that_of_all_responses(mdp, order, generator):
    """The n-gram engine and the tree's against Σ P(prompt) π(W) RM(W), differentiated."""
    policy = NgramPolicy.random(mdp.vocab_size, order, generator)
    tokens = padded(plain_responses(mdp.tree), mdp.horizon)
    expected_J = torch.zeros((), dtype=torch.float64)
    for prompt, row in zip(mdp.prompts, mdp.prompt_tokens):
        asked = row.expand(len(tokens), -1)
        chance = logp_of(policy, asked, tokens, tokens != PAD).sum(-1).exp()
        table = mdp.token_reward.part.table
        for response, of_it in zip(plain_responses(mdp.tree), chance):
            text = (*prompt.tokens, *response)
            before = text[-2] if len(text) > 1 else mdp.vocab_size
            expected_J = (
                expected_J + prompt.probability * of_it * mdp.gamma ** (len(response) - 1) * table[before, response[-1]]
            )
    (expected,) = torch.autograd.grad(expected_J, [policy.table])
    J, gradient = ngram_gradient(policy, mdp)
    assert pytest.approx(float(expected_J.detach()), rel=1e-10, abs=1e-13) == J
    torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)
    logits = node_logits(policy, mdp)
    tree_J, by_logits = tree_gradient(
        mdp, [level.detach() for level in logits], mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)
    )
    (by_table,) = torch.autograd.grad(logits, [policy.table], by_logits)
    assert tree_J == pytest.approx(J, rel=1e-10, abs=1e-13)
    torch.testing.assert_close(by_table, expected, rtol=1e-9, atol=1e-12)


def test_sparse_reward_by_hand():
    reward = SparseReward({(1, 2): 3.0, (1,): 0.5, (2, 1): 7.0, (1, 2, 0): -1.0})
    assert rewards_of(reward, 1, 2, 0) == [0.5, 3, -1]
    assert rewards_of(reward, 2, 2, 1) == [0, 0, 0]
    assert rewards_of(reward, 2, 1, 2) == [0, 7, 0]


def test_sparse_reward_of_an_impossible_beginning():
    with pytest.raises(ValueError, match="rewards the empty response"):
        SparseReward({(): 1.0})
    assert rewards_of(SparseReward({(1, 1, 1): 1.0}), 1, 0) == [0, 0], (
        "too long to be reached in a batch of shorter responses"
    )


def test_last_token_reward_by_hand():
    """γ = 1/2: the score 3 × length stands on the last token, grown by 2 for every token before it."""
    reward = LastTokenReward(lambda prompt, tokens, mask: 3 * mask.sum(-1), gamma=0.5)
    assert rewards_of(reward, 1, 1, 0, PAD) == [0, 0, 9 * 4, 0]
    assert rewards_of(reward, 0, PAD, PAD, PAD) == [3, 0, 0, 0]


def test_last_token_is_the_last_one_that_the_policy_wrote():
    """In a multi-turn response the environment's words (False) may come between and after."""
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool)
    assert last_token(mask).int().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_scaled_and_summed_rewards_by_hand():
    lexical, cost = LexicalReward(tensor(1.0, 2.0)), LengthCost(0.5)
    assert rewards_of(ScaledReward(-3.0, lexical), 1, 0, PAD) == [-6, -3, 0]
    assert rewards_of(SumReward((lexical, cost, lexical)), 1, 0, PAD) == [3.5, 1.5, 0]


def test_random_tables_have_the_standard_deviation_asked_for():
    generator = torch.Generator().manual_seed(1)
    table = TableReward.random(PrefixTree(4, None, 6), NO_PROMPT[None], generator, scale=2.5).table
    assert torch.cat([level.flatten() for level in table]).std().item() == pytest.approx(2.5, rel=0.05)
    assert NgramReward.random(9, 2, generator, scale=0.1).table.std().item() == pytest.approx(0.1, rel=0.1)


# --- all of them ---


@settings(deadline=None, max_examples=150)
@given(token_mdps(rewards=tuple(REWARDS)))
def test_levels_agree_with_whole_responses_along_every_leaf(mdp):
    responses = plain_responses(mdp.tree)
    tokens = padded(responses, mdp.horizon)
    levels = mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)
    prefixes = [mdp.tree.level_prefixes(level).tolist() for level in range(mdp.horizon)]
    number = [{tuple(prefix): index for index, prefix in enumerate(level)} for level in prefixes]
    for p, prompt in enumerate(mdp.prompt_tokens):
        whole = mdp.hidden_reward(prompt.expand(len(tokens), -1), tokens, tokens != PAD)
        edges = torch.zeros_like(whole)
        for row, response in enumerate(responses):
            for t, token in enumerate(response):
                edges[row, t] = levels[t][p, token, number[t][response[:t]]]
        torch.testing.assert_close(whole, edges, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(token_mdps(rewards=tuple(REWARDS)), st.data())
def test_later_tokens_never_change_earlier_rewards(mdp, data):
    responses = plain_responses(mdp.tree)
    first, second = (responses[data.draw(st.integers(0, len(responses) - 1))] for _ in range(2))
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second)))
    assume(shared > 0)
    tokens = padded([first, second], mdp.horizon)
    rewards = mdp.hidden_reward(mdp.prompt_tokens[:1].expand(2, -1), tokens, tokens != PAD)
    assert rewards[0, :shared].tolist() == rewards[1, :shared].tolist()


@settings(deadline=None, max_examples=100)
@given(token_mdps(rewards=tuple(name for name in REWARDS if name not in ASKS_IF_LAST)), st.data())
def test_a_cut_off_response_keeps_its_rewards(mdp, data):
    """Only rewards that ask whether a token is the last one may change when the rest of the response is cut off."""
    responses = plain_responses(mdp.tree)
    response = responses[data.draw(st.integers(0, len(responses) - 1))]
    kept = data.draw(st.integers(1, len(response)))
    tokens = padded([response, response[:kept]], mdp.horizon)
    rewards = mdp.hidden_reward(mdp.prompt_tokens[-1:].expand(2, -1), tokens, tokens != PAD)
    assert rewards[0, :kept].tolist() == rewards[1, :kept].tolist()
    assert rewards[1, kept:].tolist() == [0.0] * (mdp.horizon - kept)


@settings(deadline=None, max_examples=100)
@given(token_mdps(rewards=MARKOV), st.data())
def test_a_markov_reward_sees_no_further_back_than_its_order(mdp, data):
    order = mdp.token_reward.order
    assert order is not None
    responses = [response for response in plain_responses(mdp.tree) if len(response) == mdp.horizon]
    first, second = (responses[data.draw(st.integers(0, len(responses) - 1))] for _ in range(2))
    tokens = padded([first, second], mdp.horizon)
    rewards = mdp.hidden_reward(mdp.prompt_tokens[:1].expand(2, -1), tokens, tokens != PAD)
    for t in range(order, mdp.horizon):
        if first[t - order : t + 1] == second[t - order : t + 1]:
            assert rewards[0, t] == rewards[1, t]


@settings(deadline=None, max_examples=100)
@given(token_mdps(rewards=MARKOV), generators())
def test_local_rewards_are_the_rewards_of_whole_responses(mdp, generator):
    """What the n-gram engine uses; for sums of different orders every part must get its own window."""
    trigram = NgramReward.random(mdp.vocab_size, 2, generator)
    for reward in (mdp.token_reward, SumReward((mdp.token_reward, trigram, LengthCost()))):
        tokens = padded(plain_responses(mdp.tree), mdp.horizon)
        mask, prompt = tokens != PAD, mdp.prompt_tokens[:1].expand(len(tokens), -1)
        local = reward.local(
            context(prompt, tokens, reward.order),
            tokens.clamp(min=0),
            torch.arange(mdp.horizon).expand(tokens.shape),
            last_token(mask),
        )
        torch.testing.assert_close(torch.where(mask, local, 0.0), reward(prompt, tokens, mask), rtol=1e-13, atol=1e-13)


def test_order_of_composed_rewards():
    generator = torch.Generator().manual_seed(0)
    bigram, trigram = NgramReward.random(3, 1, generator), NgramReward.random(3, 2, generator)
    whole = TableReward.random(PrefixTree(3, 0, 2), NO_PROMPT[None], generator)
    assert SumReward((bigram, trigram, LengthCost())).order == 2
    assert SumReward((LengthCost(), LexicalReward(tensor(1.0, 2.0, 3.0)))).order == 0
    assert SumReward((bigram, whole)).order is None
    assert (ScaledReward(2.0, trigram).order, ScaledReward(2.0, whole).order) == (2, None)
    assert isinstance(bigram, MarkovReward) and not isinstance(whole, MarkovReward)


def test_a_reward_of_the_whole_prefix_has_no_local_form():
    whole = TableReward.random(PrefixTree(3, 0, 2), NO_PROMPT[None], torch.Generator().manual_seed(0))
    window, token, last = torch.tensor([[PAD]]), torch.tensor([1]), torch.tensor([False])
    for composed in (SumReward((LengthCost(), whole)), ScaledReward(2.0, whole)):
        with pytest.raises(ValueError, match=r"TableReward depends on the whole prefix; .* finite order"):
            composed.local(window, token, torch.tensor([0]), last)


# --- what the paper says about them ---


@settings(deadline=None, max_examples=60)
@given(token_mdps(), generators())
def test_potential_based_shaping_telescopes_to_a_constant_of_the_prompt(mdp, generator):
    """Ng, Harada, Russell 1999: RM changes by -Φ(w₀) for every response, so no gradient changes."""
    potential = normal(generator, mdp.vocab_size + 1)
    tokens = padded(plain_responses(mdp.tree), mdp.horizon)
    mask = tokens != PAD
    shaped = TokenMDP(
        mdp.vocab_size, mdp.eos, mdp.horizon, PotentialReward(potential, mdp.gamma), mdp.gamma, mdp.prompts
    )
    for prompt, row in zip(mdp.prompts, mdp.prompt_tokens):
        constant = -potential[prompt.tokens[-1] if prompt.tokens else mdp.vocab_size].item()
        for reward in shaped.response_reward(row.expand(len(tokens), -1), tokens, mask).tolist():
            assert reward == pytest.approx(constant, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(token_mdps(rewards=("table", "bigram", "position", "sparse")), generators(), st.sampled_from(GAMMAS))
def test_merged_rewards_add_up_in_the_response_level_reward(mdp, generator, gamma):
    """Remark 5, Eq. 30: token-level models and a response-level one, merged into a single RM."""
    tokens = padded(plain_responses(mdp.tree), mdp.horizon)
    mask, prompt = tokens != PAD, mdp.prompt_tokens[:1].expand(len(tokens), -1)
    scores = normal(generator, mdp.vocab_size)

    def score(prompt, tokens, mask):
        return torch.where(mask, scores[tokens.clamp(min=0)], -torch.inf).amax(-1)

    def response_reward(reward):
        merged = TokenMDP(mdp.vocab_size, mdp.eos, mdp.horizon, reward, gamma, (Prompt(),))
        return merged.response_reward(prompt, tokens, mask)

    weights = scores.tolist()
    best = [max(weights[token] for token in response) for response in plain_responses(mdp.tree)]
    token_level = response_reward(mdp.token_reward).tolist()
    merged = SumReward((ScaledReward(0.3, mdp.token_reward), LastTokenReward(score, gamma), LengthCost(0.0)))
    for observed, part, whole in zip(response_reward(merged).tolist(), token_level, best):
        assert observed == pytest.approx(0.3 * part + whole, rel=1e-12, abs=1e-12)
