"""Where segments begin: hand examples, and who decides from the prefix alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, Boundary, EveryNTokens, EveryTurn, FractionsOfLength
from llm_mdp.mdp.tree import PAD, PrefixTree
from llm_mdp.sampling.evidence import Rollouts

RULES: list[Boundary] = [
    EveryNTokens(),
    EveryNTokens(2),
    EveryNTokens(3),
    AfterTokens((1,)),
    AfterTokens((0, 2)),
    AfterTokens((0, 2), 2),
    AfterTokens((1,), 3),
    AfterTokens(()),
    AtSteps((2,)),
    AtSteps(()),
    AtSteps((1, 3, 99)),
    FractionsOfLength(2),
    FractionsOfLength(3),
]


def rollouts(tokens: list[list[int]] | Tensor, mask: list[list[int]] | None = None) -> Rollouts:
    tokens = torch.as_tensor(tokens)
    chosen = tokens != PAD if mask is None else torch.tensor(mask, dtype=torch.bool)
    nothing = torch.zeros(tokens.shape, dtype=torch.float64)
    return Rollouts(tokens[..., :0], tokens, chosen, nothing, torch.zeros(tokens.shape[:-1], dtype=torch.int64))


def begins(rule: Boundary, tokens: list[int], mask: list[int] | None = None) -> list[int]:
    """The steps at which a segment begins."""
    return rule(rollouts([tokens], mask and [mask]))[0].nonzero()[:, 0].tolist()


def decided_by_prefix(rule: Boundary, tree: PrefixTree) -> bool:
    """Do all responses that begin with the same t tokens and have a token t agree on whether a segment begins there?"""
    boundary = rule(rollouts(tree.leaves))
    said: dict[tuple[int, ...], set[bool]] = {}
    for tokens, row in zip(tree.leaves.tolist(), boundary.tolist()):
        for t in range(tree.horizon):
            if tokens[t] != PAD:
                said.setdefault(tuple(tokens[:t]), set()).add(row[t])
    return all(len(answers) == 1 for answers in said.values())


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_a_stopping_rule_is_one_that_the_prefix_decides(rule):
    """Exhaustively, over all responses of up to 5 tokens; the counter-example `FractionsOfLength` must be found out."""
    assert decided_by_prefix(rule, PrefixTree(3, 0, 5)) == rule.stopping_rule


def test_fractions_of_length_look_ahead():
    """The second token begins a segment if the response ends with it, and none if two more follow."""
    assert begins(FractionsOfLength(2), [1, 0, PAD, PAD]) == [0, 1]
    assert begins(FractionsOfLength(2), [1, 1, 1, 0]) == [0, 2]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([rule for rule in RULES if rule.stopping_rule]), st.data())
def test_stopping_rules_never_look_at_present_or_later_tokens_in_several_turns(rule, data):
    """Tokens that an environment wrote may stand anywhere; from token t on everything may change, masks too."""
    width = data.draw(st.integers(1, 7))
    row = st.lists(st.integers(0, 2), min_size=width, max_size=width)
    flags = st.lists(st.integers(0, 1), min_size=width, max_size=width)
    one, other, mask, later = data.draw(row), data.draw(row), data.draw(flags), data.draw(flags)
    t = data.draw(st.integers(0, width - 1))
    mask[t] = 1
    other, later = one[:t] + other[t:], [*mask[: t + 1], *later[t + 1 :]]
    first, second = rule(rollouts([one], [mask]))[0], rule(rollouts([other], [later]))[0]
    assert first[: t + 1].tolist() == second[: t + 1].tolist()


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(RULES), st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=7))
def test_the_first_policy_token_begins_a_segment_and_nobody_elses_token_does(rule, text):
    tokens, mask = [token for token, _ in text], [int(chosen) for _, chosen in text]
    starts = begins(rule, tokens, mask)
    chosen = [t for t, flag in enumerate(mask) if flag]
    assert starts[:1] == chosen[:1]
    assert set(starts) <= set(chosen)


def test_every_n_tokens_counts_policy_tokens():
    assert begins(EveryNTokens(1), [5, 6, 7, PAD]) == [0, 1, 2]
    assert begins(EveryNTokens(2), [5, 6, 7, 8, 9]) == [0, 2, 4]
    assert begins(EveryNTokens(2), [5, 6, 7, 8, 9, 5], [1, 0, 0, 1, 1, 1]) == [0, 4], (
        "what an environment wrote is not counted"
    )


def test_after_tokens():
    assert begins(AfterTokens((7, 9)), [5, 7, 7, 5, 9, 5]) == [0, 2, 3, 5]
    assert begins(AfterTokens((7,)), [7, PAD, PAD]) == [0], "no segment begins after the end"
    assert begins(AfterTokens((7,)), [5, 7, 5, 5], [1, 0, 1, 1]) == [0, 2], (
        "a separator that an environment wrote counts too"
    )


def test_at_steps():
    assert begins(AtSteps((3, 1)), [5, 5, 5, 5, 5]) == [0, 1, 3]
    assert begins(AtSteps((3,)), [5, 5, PAD, PAD]) == [0]
    assert begins(AtSteps((1,)), [5, 5, 5, 5], [0, 1, 0, 1]) == [1, 3]


def test_fractions_of_length():
    assert begins(FractionsOfLength(3), [5] * 7) == [0, 2, 4]
    assert begins(FractionsOfLength(3), [5, PAD, PAD, PAD]) == [0], (
        "parts of a response that is shorter than their number coincide"
    )


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_worlds_and_rows_do_not_meet(rule):
    leaves = PrefixTree(3, 0, 3).leaves
    alone = torch.stack([rule(rollouts([row]))[0] for row in leaves.tolist()])
    assert torch.equal(rule(rollouts(leaves.reshape(3, 5, 3))), alone.reshape(3, 5, 3))


@pytest.mark.parametrize("n", [0, -2])
def test_segments_have_at_least_one_token(n):
    with pytest.raises(ValueError, match=rf"n is {n}; a segment has at least 1 token"):
        EveryNTokens(n)


def test_separators_count_only_once_a_segment_is_long_enough():
    """Every second token is a separator; somebody else's tokens end segments too but do not make them longer."""
    text = [1, 1, 1, 1, 1, 2, 1, 1]
    assert begins(AfterTokens((1,)), text) == [0, 1, 2, 3, 4, 5, 7]
    assert begins(AfterTokens((1,), 2), text) == [0, 2, 4, 7]
    assert begins(AfterTokens((1,), 3), text) == [0, 3, 7]
    assert begins(AfterTokens((1,), 99), text) == [0]
    assert begins(AfterTokens((1,), 2), text, [1, 0, 0, 1, 1, 1, 1, 1]) == [0, 4, 7]


def test_a_segment_of_separators_has_a_token():
    with pytest.raises(ValueError, match=r"least is 0; a segment has at least 1 token\."):
        AfterTokens((1,), 0)


@pytest.mark.parametrize(
    "rule, words",
    [
        (EveryNTokens(), "every token"),
        (EveryNTokens(8), "every 8 tokens"),
        (AfterTokens((7,)), "after token 7"),
        (AfterTokens(tuple(range(1203)), 32), "after any of 1,203 tokens, 32 tokens apart or more"),
        (AtSteps((5, 2)), "before token 1, 3, 6"),
        (FractionsOfLength(2), "2 parts of the response's own length"),
        (EveryTurn(), "every turn"),
    ],
)
def test_boundaries_say_where_segments_begin(rule, words):
    assert rule.words == words
