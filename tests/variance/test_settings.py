"""Settings: what is asked for comes out, the rewards are what they say, and what cannot be had is said before anything
is made."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import GRPO, PPO, REINFORCE, RLOO, TRePO
from llm_mdp.estimators.catalogue import CATALOGUE
from llm_mdp.estimators.practices import ZeroStdFiltered
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instance_files import write_instance
from llm_mdp.exact.instances import random_instance, stream
from llm_mdp.exact.ngram_gradient import expected_length
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.variance.benches import NgramBench, TreeBench, make_bench
from llm_mdp.variance.chains import chain_of
from llm_mdp.variance.entropy import mean_entropy, with_entropy
from llm_mdp.variance.measurement import exact_measurement
from llm_mdp.variance.setting import Setting
from llm_mdp.verify.moments import exact_moments
from llm_mdp_agents.lm.policy import tiny_transformer
from tests.exact.test_enumeration import Plain, plain_leaves
from tests.strategies import padded


@cache
def tree(**options) -> TreeBench:
    bench = make_bench(Setting(**options))
    assert isinstance(bench, TreeBench)
    return bench


@cache
def chain(**options) -> NgramBench:
    """At any horizon, where `make_bench` would enumerate the short ones."""
    return NgramBench(*chain_of(Setting(policy="ngram", **options)))


def responses(bench: TreeBench) -> list[tuple[float, list[Plain]]]:
    """Every response to every prompt, by loops in plain Python: the prompt's probability and its leaves."""
    mdp = bench.instance.mdp
    return [(asked.probability, plain_leaves(bench.instance, prompt)) for prompt, asked in enumerate(mdp.prompts)]


# --- facts ------------------------------------------------------------------------------------------------------------

SHAPES = {
    "table": {"horizon": 3, "gamma": 0.9, "prompts": 2},
    "outcome": {"horizon": 3, "rewards": "outcome", "gamma": 0.5, "prompts": 3, "vocab_size": 3},
    "sparse": {"horizon": 4, "vocab_size": 3, "rewards": "sparse", "seed": 3, "entropy": 0.6},
}


@pytest.mark.parametrize("name", SHAPES)
def test_facts_are_those_of_all_responses(name):
    bench = tree(**SHAPES[name])
    J = length = success = surprise = visits = 0.0
    outcomes = True
    for probability, leaves in responses(bench):
        assert sum(leaf.chance for leaf in leaves) == pytest.approx(1)
        for leaf in leaves:
            chance = probability * leaf.chance
            J += chance * leaf.reward
            length += chance * len(leaf.tokens)
            success += chance * (leaf.reward > 0.5)
            outcomes = outcomes and leaf.reward in (pytest.approx(0), pytest.approx(1))
            # E[-log π(W)] is the sum of the entropies on the way.
            surprise += chance * -math.log(leaf.chance)
            visits += chance * len(leaf.tokens)
    facts = bench.facts()
    assert facts["J"] == bench.given.expected_reward == pytest.approx(J)
    assert outcomes == (name == "outcome")
    assert (facts["expected_length"], facts["success"]) == (
        pytest.approx(length),
        pytest.approx(success) if outcomes else None,
    )
    assert facts["entropy"] == pytest.approx(surprise / visits)
    assert facts["grad_norm"] == pytest.approx(float(exact_moments(REINFORCE(), bench.enumeration).mean.norm()))
    json.dumps(facts, allow_nan=False)


def test_facts_of_a_chain_are_those_of_its_tree():
    bench = chain(vocab_size=3, horizon=4, gamma=0.9)
    e = Enumeration(bench.mdp, bench.policy)
    facts = bench.facts()
    assert facts["J"] == bench.given.expected_reward == pytest.approx(float(e.probability[0] @ e.response_reward[0]))
    assert facts["expected_length"] == pytest.approx(float(e.probability[0] @ e.length.double()))
    torch.testing.assert_close(bench.target, exact_moments(REINFORCE(), e).mean, rtol=1e-9, atol=1e-12)
    assert facts["grad_norm"] == pytest.approx(float(bench.target.norm()))
    json.dumps(facts, allow_nan=False)


# --- what was asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entropy", [0.05, 0.5, 1.0, 1.38])
@pytest.mark.parametrize("prompts", [1, 2])
def test_a_table_has_the_entropy_asked_for(entropy, prompts):
    bench = tree(entropy=entropy, prompts=prompts, gamma=0.9)
    assert bench.facts()["entropy"] == pytest.approx(entropy, rel=1e-9)
    same, plain = (
        tree(prompts=prompts, gamma=0.9, **options).instance.policy for options in ({"entropy": entropy}, {})
    )
    factors = torch.cat([(a / b).flatten() for a, b in zip(same.levels, plain.levels)])
    torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=1e-9, atol=0)


@pytest.mark.parametrize("horizon", [3, 5])
@pytest.mark.parametrize("entropy", [0.3, 0.7, 1.2])
def test_a_chain_has_the_entropy_asked_for(entropy, horizon):
    """Over the tokens that it draws, as on a table."""
    bench = chain(entropy=entropy, horizon=horizon)
    assert mean_entropy(Enumeration(bench.mdp, bench.policy)) == pytest.approx(entropy, rel=0.01)


@pytest.mark.parametrize(("horizon", "length"), [(4, 2.5), (40, 12.0), (300, 250.0)])
def test_a_chain_has_the_length_asked_for(horizon, length):
    bench = chain(vocab_size=3, horizon=horizon, length=length)
    assert bench.facts()["expected_length"] == pytest.approx(length, rel=1e-6)
    drawn = bench.policy.sample(
        bench.mdp.prompt_tokens, 4_000, eos=0, horizon=horizon, generator=torch.Generator().manual_seed(0)
    ).length
    assert float(drawn.double().mean()) == pytest.approx(length, abs=4.5 * float(drawn.double().std()) / 4_000**0.5)


def test_long_chains_fill_half_of_the_horizon():
    assert chain(horizon=64).facts()["expected_length"] == pytest.approx(32, rel=1e-6)
    asked = NgramPolicy.random(4, 1, stream(0, "chain"))
    assert torch.equal(chain(horizon=16).policy.table, asked.table), "as it comes"


def largest(bench: TreeBench) -> float:
    """Of the probabilities of single responses to a prompt."""
    return max(leaf.chance for _, leaves in responses(bench) for leaf in leaves)


@pytest.mark.parametrize("success", [0.05, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(6))
def test_a_table_succeeds_about_as_often_as_asked(success, seed):
    """No set of responses comes closer than half of what the most probable one leaves uncovered."""
    bench = tree(rewards="outcome", success=success, seed=seed)
    gap = max(2 * largest(bench) - 1, 0) / 2
    assert bench.facts()["success"] == pytest.approx(success, abs=gap + 0.03)


@pytest.mark.parametrize("success", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("prompts", [2, 5])
def test_over_all_prompts_it_succeeds_about_as_often_as_asked(success, prompts):
    bench = tree(rewards="outcome", success=success, prompts=prompts, seed=2)
    assert bench.facts()["success"] == pytest.approx(success, abs=0.1)


def test_half_of_the_outcomes_if_nobody_says():
    assert (
        tree(rewards="outcome", seed=3).facts()["success"]
        == tree(rewards="outcome", success=0.5, seed=3).facts()["success"]
    )
    assert tree(rewards="outcome", seed=3).facts()["success"] == pytest.approx(0.5, abs=0.05)


def test_the_success_of_another_policy_is_its_own():
    """Outcomes are chosen for the policy at hand, one of low entropy or a transformer."""
    assert tree(rewards="outcome", success=0.3, entropy=1.2, seed=1).facts()["success"] == pytest.approx(0.3, abs=0.03)
    bench = make_bench(
        Setting(policy="transformer", rewards="outcome", success=0.3),
        lambda mdp, seed: tiny_transformer(4, 5, seed=seed),
    )
    assert bench.facts()["success"] == pytest.approx(0.3, abs=0.03)


# --- kinds of rewards -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("prompts", [1, 3])
def test_outcomes_are_right_or_wrong_at_any_discount(gamma, prompts):
    found = [
        leaf.reward
        for _, leaves in responses(tree(rewards="outcome", gamma=gamma, prompts=prompts, seed=1))
        for leaf in leaves
    ]
    assert {round(reward, 12) for reward in found} == {0, 1}


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_outcomes_of_a_chain_are_right_or_wrong_at_any_discount(gamma):
    bench = chain(rewards="outcome", vocab_size=3, gamma=gamma)
    e = Enumeration(bench.mdp, bench.policy)
    assert {round(reward, 12) for reward in e.response_reward.flatten().tolist()} == {0, 1}
    hidden = e.hidden_reward[0]
    assert (hidden.count_nonzero(-1) <= 1).all() and (
        hidden[torch.arange(len(hidden)), e.length - 1] == hidden.sum(-1)
    ).all()


@pytest.mark.parametrize("kind", ["table", "chain"])
def test_sparse_rewards_are_for_one_token_in_ten(kind):
    shares = []
    for seed in range(30):
        if kind == "table":
            numbers = torch.cat(
                [level.flatten() for level in tree(rewards="sparse", seed=seed).instance.mdp.token_reward.table]
            )
        else:
            numbers = chain(rewards="sparse", seed=seed, vocab_size=12, horizon=4).mdp.token_reward.table.flatten()
        assert numbers.numel() > 150
        shares.append(float((numbers != 0).double().mean()))
    total = 30 * numbers.numel()
    assert sum(shares) / 30 == pytest.approx(0.1, abs=4 * (0.09 / total) ** 0.5)


@pytest.mark.parametrize("rewards", ["dense", "sparse", "early"])
@pytest.mark.parametrize("horizon", [2, 4])
def test_rewards_have_nothing_to_do_with_the_policy(rewards, horizon):
    """Independent of its logits: no correlation over 40 seeds, beyond what chance allows."""
    logits, numbers = [], []
    for seed in range(40):
        instance = tree(rewards=rewards, seed=seed, horizon=horizon).instance
        mdp = instance.mdp
        reward = torch.cat([level.flatten() for level in mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)])
        rewarded = reward != 0
        logits.append(torch.cat([level.detach().flatten() for level in instance.policy.levels])[rewarded])
        numbers.append(reward[rewarded])
    pair = torch.stack([torch.cat(logits), torch.cat(numbers)])
    assert pair.shape[1] > 50 and not (pair[0] == pair[1]).any()
    # Rewards of one position are shared by many prefixes, so the different ones count.
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 4 / len(pair[1].unique()) ** 0.5


@pytest.mark.parametrize("horizon", [1, 3, 4, 5, 9])
def test_early_rewards_are_in_the_first_quarter_only(horizon):
    for bench in (
        tree(rewards="early", horizon=horizon, vocab_size=2),
        chain(rewards="early", horizon=horizon, vocab_size=2),
    ):
        mdp = bench.instance.mdp if isinstance(bench, TreeBench) else bench.mdp
        tokens = padded([(1,) * horizon], horizon)
        rewards = mdp.hidden_reward(mdp.prompt_tokens, tokens, tokens >= 0)[0]
        early = math.ceil(horizon / 4)
        assert (rewards[:early] != 0).all() and (rewards[early:] == 0).all()


def test_dense_rewards_are_for_every_token():
    assert all((level != 0).all() for level in tree(prompts=2).instance.mdp.token_reward.table)
    assert (chain().mdp.token_reward.table != 0).all()


# --- critics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["table", "chain"])
def test_a_critic_is_off_by_standard_deviations_of_the_reward(kind):
    """0 is exact; σ is as many standard deviations of RM, prefix by prefix (on a chain: step and context by step and
    context)."""
    if kind == "table":
        bench, horizon = tree(vocab_size=4, horizon=5, rewards="outcome", success=0.2), 5
        mdp, policy = bench.instance.mdp, bench.instance.policy
    else:
        bench, horizon = chain(vocab_size=4, horizon=60, gamma=0.9, length=50.0), 60
        mdp, policy = bench.mdp, bench.policy
    drawn = policy.sample(mdp.prompt_tokens, 4_000, eos=0, horizon=horizon, generator=torch.Generator().manual_seed(0))
    response = (drawn.prompt, drawn.tokens, drawn.mask)
    reward = mdp.response_reward(*response)
    exact, wrong = (bench.given.critic(error)(*response) for error in (0.0, 0.5))
    error = (wrong - exact)[:, :-1][drawn.mask]
    different = (error * 1e9).round().unique() / 1e9
    assert (
        float(different.std()) == pytest.approx(0.5 * float(reward.std()), rel=5 / (2 * len(different)) ** 0.5)
        and len(different) > 80
    )
    # The exact one predicts: what is left of RM has mean 0, step by step and whatever the first token was.
    for step, first in ((0, None), (1, 1), (2, 2), (3, 3)):
        here = drawn.mask[:, step] & (
            torch.ones_like(drawn.mask[:, 0]) if first is None else drawn.tokens[:, 0] == first
        )
        surprise = (reward - exact[:, step])[here]
        assert int(here.sum()) > 40
        assert abs(float(surprise.mean())) < 4.5 * float(surprise.std()) / len(surprise) ** 0.5


# --- measures ---------------------------------------------------------------------------------------------------------


def test_small_trees_are_measured_exactly_and_large_ones_are_sampled(monkeypatch):
    bench = tree(vocab_size=3, horizon=3)
    assert bench.measure(RLOO(group_size=2), 50, 0).samples is None
    monkeypatch.setattr("llm_mdp.variance.benches.EXACT_GROUPS", 100)
    monkeypatch.setattr("llm_mdp.variance.benches.CLASS_WEIGHTS", 100)
    sampled = bench.measure(RLOO(group_size=2), 50, 0, known="unbiased")
    assert sampled.samples == 50 and sampled.verdict == "unbiased"
    assert bench.measure(TRePO(temperatures=(1.0,) * 2), 50, 0).samples is None, (
        "branches are summed up, whatever their number"
    )


def test_right_or_wrong_rows_are_exact_by_classes_where_groups_are_many():
    bench = tree(vocab_size=2, horizon=2, rewards="outcome", success=0.4)
    for estimator in (GRPO(group_size=4), RLOO(group_size=4), ZeroStdFiltered(group_size=4)):
        by_group, by_class = (
            exact_measurement(estimator, bench.enumeration, bench.target, classes=most) for most in (None, 10**7)
        )
        assert (by_group.method, by_class.method, by_group.verdict) == ("groups", "classes", by_class.verdict)
        for name in ("tokens", "rewards", "trace", "signal", "dot"):
            assert getattr(by_class.spread, name) == pytest.approx(getattr(by_group.spread, name), rel=1e-10), name
    large = bench.measure(RLOO(group_size=64), 50, 0)
    assert (large.samples, large.method, large.verdict) == (None, "classes", "unbiased")


def test_what_reads_more_than_classes_say_is_sampled_where_groups_are_many(monkeypatch):
    bench = tree(vocab_size=3, horizon=3, rewards="outcome", success=0.4)
    prime = CATALOGUE["prime"].make(bench.given, group_size=2)
    assert bench.measure(prime, 50, 0).method == "groups"
    monkeypatch.setattr("llm_mdp.variance.benches.EXACT_GROUPS", 10)
    sampled = bench.measure(prime, 50, 0)
    assert (sampled.samples, sampled.method) == (50, None)


@pytest.mark.parametrize("shape", [(3, 12, 1), (30, 4, 1), (2, 1_000, 7), (4, 10_000, 1)])
def test_a_tree_too_large_to_enumerate_is_refused_at_once(shape):
    """Where it is asked for, not where it is made or measured; and a chain needs no tree."""
    options = dict(zip(("vocab_size", "horizon", "prompts"), shape))
    with pytest.raises(
        ValueError,
        match=r"make more than 6,000 \(prefix, token\) pairs, too many to enumerate; make one of them smaller",
    ):
        Setting(**options)
    Setting(**(options | {"prompts": 1}), policy="ngram")


def test_the_largest_tree_that_is_not_refused_can_be_measured():
    bench = tree(vocab_size=3, horizon=10, rewards="outcome", seed=1)
    assert bench.measure(RLOO(group_size=4), 30, 0).verdict == "unbiased"


# --- in words and in JSON ---------------------------------------------------------------------------------------------

documents = st.fixed_dictionaries(
    {},
    optional={
        "vocab_size": st.integers(2, 4),
        "horizon": st.integers(1, 5),
        "rewards": st.sampled_from(["dense", "sparse", "early", "outcome"]),
        "entropy": st.floats(0.01, 0.69),
        "prompts": st.integers(1, 4),
        "gamma": st.floats(0.01, 1.0),
        "seed": st.integers(0, 10**6),
        "name": st.text(max_size=8),
    },
)


@settings(deadline=None)
@given(documents)
def test_a_setting_is_its_document(options):
    setting = Setting(**options)
    document = json.loads(json.dumps(setting.document(), allow_nan=False))
    again = Setting(**document)
    assert again == replace(setting, name="") and again.document() == document


def test_names_are_for_people():
    assert Setting(name="mine").document() == Setting().document() != Setting(seed=1).document()
    assert Setting(instance="a.json", seed=3, name="x").document() == {"instance": "a.json"}
    assert Setting(instance="a.json").words == "the instance a.json"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "a random reward for every token, 4 tokens, horizon 4, table"),
        (
            {"rewards": "outcome", "success": 0.25, "prompts": 3},
            "1 or 0 for a whole response, success about 0.25, 4 tokens, horizon 4, table, 3 prompts",
        ),
        (
            {"policy": "ngram", "rewards": "early", "gamma": 0.5},
            "rewards in the first quarter only, 4 tokens, horizon 4, n-gram policy, γ = 0.5",
        ),
        (
            {"rewards": "sparse", "entropy": 0.5},
            "a reward for one token in ten, 4 tokens, horizon 4, table, entropy 0.5",
        ),
        ({"policy": "transformer"}, "a random reward for every token, 4 tokens, horizon 4, tiny transformer"),
    ],
)
def test_settings_in_words(options, words):
    assert Setting(**options).words == words


def test_an_instance_file_in_place_of_all_this(tmp_path):
    instance, path = random_instance(2, 2, seed=4), tmp_path / "mine.json"
    write_instance(instance, path)
    bench = make_bench(Setting(instance=str(path)))
    assert isinstance(bench, TreeBench)
    expected = exact_moments(REINFORCE(), Enumeration(instance.mdp, instance.policy))
    torch.testing.assert_close(bench.target, expected.mean, rtol=1e-9, atol=1e-12)


SEEDED = ({}, {"rewards": "outcome"}, {"rewards": "sparse", "entropy": 0.5}, {"policy": "ngram", "rewards": "early"})


@pytest.mark.parametrize("options", SEEDED)
def test_same_seed_same_bench_and_unlike_seeds_differ(options):
    one, again, other = (make_bench(Setting(seed=seed, **options)) for seed in (5, 5, 6))
    assert torch.equal(one.target, again.target) and one.facts() == again.facts()
    assert not torch.equal(one.target, other.target)
    estimates = [bench.measure(REINFORCE(), 40, 0) for bench in (one, again)]
    assert estimates[0] == estimates[1]


def test_a_transformer_is_made_by_whoever_can():
    setting = Setting(policy="transformer", seed=7)
    asked = []

    def make(mdp, seed):
        asked.append((mdp.vocab_size, mdp.horizon, seed))
        return tiny_transformer(4, 5, seed=seed)

    bench = make_bench(setting, make)
    assert isinstance(bench, TreeBench) and asked == [(4, 4, 7)]
    assert bench.instance.policy.kind != TabularPolicy.kind
    assert len(bench.target) == sum(parameter.numel() for parameter in bench.instance.policy.parameters())
    with pytest.raises(
        ValueError, match="a transformer comes from llm_mdp_agents; give make_bench a function that makes it"
    ):
        make_bench(setting)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 1}, "vocab_size is 1; it must be a whole number of at least 2"),
        ({"horizon": 0}, "horizon is 0; it must be a whole number of at least 1"),
        ({"gamma": 0.0}, r"gamma is 0\.0; the discount must be a number in \(0, 1\]"),
        ({"rewards": "rich"}, "rewards is 'rich'; choose dense, sparse, early, outcome"),
        ({"success": 0.5}, r"success is 0\.5 with dense rewards; it is for outcome rewards, and must be in \(0, 1\)"),
        ({"rewards": "outcome", "success": 1.0}, r"success is 1\.0 with outcome rewards; .* must be in \(0, 1\)"),
        (
            {"policy": "ngram", "rewards": "outcome", "success": 0.5},
            "success cannot be chosen for n-gram policies; leave it out, or take",
        ),
        ({"entropy": 1.4}, r"entropy is 1\.4; over 4 tokens it must be between 0 and 1\.386"),
        ({"entropy": 0.0}, r"entropy is 0\.0; over 4 tokens it must be between 0 and 1\.386"),
        ({"entropy": float("nan")}, "entropy is nan; over 4 tokens it must be between"),
        ({"length": 3.0}, r"length is 3\.0; it can be chosen for n-gram policies only"),
        ({"policy": "ngram", "prompts": 2}, "prompts is 2; n-gram settings have one"),
        ({"policy": "transformer", "entropy": 0.5}, r"entropy is 0\.5; it can be chosen for tables and n-grams only"),
        ({"policy": "bigram"}, "policy is 'bigram'; choose tabular, ngram, transformer"),
        ({"prompts": 0}, "prompts is 0"),
        ({"policy": "ngram", "length": 4.0}, r"length is 4\.0"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_made(options, message):
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_an_entropy_that_a_policy_does_not_reach():
    """Two equal largest logits stay equal however large they grow."""
    instance = random_instance(3, 1)
    tied = TabularPolicy(instance.mdp.tree, instance.mdp.prompt_tokens, [torch.tensor([[[1.0], [1.0], [0.0]]])])
    with pytest.raises(
        ValueError, match=r"entropy is 0\.5, which this policy does not reach however large its logits; choose a larger"
    ):
        with_entropy(replace(instance, policy=tied), 0.5)
    assert mean_entropy(Enumeration(instance.mdp, with_entropy(replace(instance, policy=tied), 0.9))) == pytest.approx(
        0.9
    )


def test_a_length_beyond_the_horizon():
    with pytest.raises(ValueError, match="length is 40"):
        make_bench(Setting(policy="ngram", horizon=20, length=40))


@pytest.mark.slow
def test_the_length_of_a_chain_is_asked_of_the_policy_it_got():
    """Not of the one before its end token was made rarer."""
    bench = chain(horizon=20, length=15.0, entropy=0.8)
    assert expected_length(bench.policy, bench.mdp) == pytest.approx(15.0, rel=1e-6)


def test_short_chains_are_enumerated_and_long_ones_are_not():
    short = make_bench(Setting(policy="ngram", vocab_size=3, horizon=4, gamma=0.9, seed=1))
    same = chain(vocab_size=3, horizon=4, gamma=0.9, seed=1)
    assert isinstance(short, TreeBench) and isinstance(
        make_bench(Setting(policy="ngram", vocab_size=8, horizon=12)), NgramBench
    )
    torch.testing.assert_close(short.target, same.target, rtol=1e-10, atol=1e-12)
    for name in ("J", "grad_norm", "expected_length", "entropy"):
        assert short.facts()[name] == pytest.approx(same.facts()[name], rel=1e-9), name
    exact, drawn = (bench.measure(RLOO(group_size=2), 3000, 0, "unbiased") for bench in (short, same))
    assert exact.samples is None and drawn.samples == 3000
    low, high = drawn.interval("trace")
    assert low < exact.spread.trace < high
    # Critics that are off are off by as much.
    one, other = (
        bench.measure(PPO(critic=bench.given.critic(0.5), lam=1.0), 3000, 0).spread.trace for bench in (short, same)
    )
    assert one == pytest.approx(other, rel=0.5)
