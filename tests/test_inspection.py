"""Credit token by token: the same responses for every estimator, their weights by hand, and the truth by brute
force."""

import itertools
import json
import statistics
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_mdp.estimators.algorithms import (
    GRPO,
    REINFORCE,
    RLOO,
    TRePO,
)
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.practices import Tempered, ZeroStdFiltered
from llm_mdp.estimators.values import has_signal
from llm_mdp.exact.instances import random_instance
from llm_mdp.inspection import (
    SHOWN,
    Subject,
    Surroundings,
    exact_value,
    find_truth,
    inspect,
    named_subject,
    own_subject,
    token_texts,
    token_weights,
)
from llm_mdp.mdp.hidden_rewards import NgramReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import NgramPolicy
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.sampling.shared_draws import SameRollouts
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_envs.tasks.arithmetic import Arithmetic
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.text import byte_tokenizer

K = 4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def subject(name: str, estimator: Estimator) -> Subject:
    return Subject(name, name, "", estimator)


def words(tokens: list[int]) -> str:
    return " ".join(map(str, tokens))


def document_of(*estimators: Estimator, seed: int = 0, prompts: int = 3, **options) -> dict:
    """What these estimators, named 0, 1, …, make of responses on a random token MDP with γ < 1 and two prompts."""
    instance = random_instance(3, 4, gamma=0.8, n_prompts=2, seed=5)
    sampler = PolicySampler(instance.policy, instance.mdp, seeded(seed), prompts)
    subjects = [subject(str(number), estimator) for number, estimator in enumerate(estimators)]
    return inspect(sampler, subjects, K, words, eos=instance.mdp.eos, **options)


def weights_of(response: dict, name: int) -> list[float]:
    return [token["weights"][str(name)] for token in response["tokens"]]


# The weights


def test_weights_by_hand():
    horizon = 4
    dr_grpo = GRPO(scale_by_std=False, reduction="constant", reduction_constant=horizon)
    for group in document_of(RLOO(), GRPO(eps=0.0), REINFORCE(baseline=0.5), RLOO(reduction="sequence_mean"), dr_grpo)[
        "groups"
    ]:
        rewards = [response["reward"] for response in group["responses"]]
        mean, deviation = statistics.mean(rewards), statistics.stdev(rewards)
        for k, response in enumerate(group["responses"]):
            length = len(response["tokens"])
            less_others = rewards[k] - statistics.mean(rewards[:k] + rewards[k + 1 :])
            by_hand = [
                less_others,
                (rewards[k] - mean) / deviation,
                rewards[k] - 0.5,
                less_others / length,
                (rewards[k] - mean) / horizon,
            ]
            for name, weight in enumerate(by_hand):
                assert weights_of(response, name) == pytest.approx([weight] * length, abs=1e-12)


@dataclass(frozen=True)
class ByToken(Estimator):
    """The token itself, plus a hundred times its place: what cannot be seen but in the very same response."""

    def advantages(self, evidence):
        tokens = evidence.rollouts.tokens
        return tokens + 100.0 * torch.arange(tokens.shape[-1])


def test_every_estimator_sees_the_same_responses_and_the_document_shows_them():
    document = document_of(ByToken(), RLOO(), ByToken(clip_low=0.2), REINFORCE())
    for response in (response for group in document["groups"] for response in group["responses"]):
        seen = [token["id"] + 100.0 * place for place, token in enumerate(response["tokens"])]
        assert weights_of(response, 0) == pytest.approx(seen)
        assert weights_of(response, 2) == pytest.approx(seen)  # at the first update clipping does nothing
        assert weights_of(response, 3) == pytest.approx([response["reward"]] * len(seen))
    assert len(document["groups"]) == 3 and all(len(group["responses"]) == K for group in document["groups"])


def test_a_seed_is_one_document_and_another_seed_another():
    estimators = (RLOO(), TRePO(temperatures=(1.0,) * 3))
    assert document_of(*estimators) == document_of(*estimators) != document_of(*estimators, seed=1)
    assert json.loads(json.dumps(document_of(*estimators), allow_nan=False)) == document_of(*estimators)


@dataclass(frozen=True)
class FilteredTRePO(TRePO):
    """Greedy branches, only for groups whose rewards differ: keeps first and draws then."""

    temperatures: tuple[float, ...] = (0.0,)
    group_size: int = K

    def collect(self, sampler):
        rollouts = sampler.rollouts(self.group_size)
        reward = sampler.response_reward(rollouts)
        kept = sampler.keep(Evidence(rollouts, reward), has_signal(reward, self.group_size))
        branches = sampler.branches(kept.rollouts, kept.rollouts.mask, self.temperatures)
        return replace(kept, response_reward=sampler.response_reward(kept.rollouts), branches=branches)


def arithmetic_batch(prompts: int = 12) -> tuple[TaskSampler, SameRollouts]:
    """Responses of an untrained policy to sums of one digit: most groups earn nothing, some differ."""
    task = Arithmetic(digits=1)
    policy = small_transformer(task.vocab_size, task.prompt_length + task.horizon, width=16, layers=1, heads=2, seed=1)
    sampler = TaskSampler(policy, task, seeded(3), np.random.default_rng(3), prompts)
    rollouts = sampler.rollouts(K)
    return sampler, SameRollouts(sampler, rollouts, sampler.response_reward(rollouts), K)


def test_groups_that_an_estimator_leaves_out_have_no_weight_and_the_others_their_own():
    sampler, same = arithmetic_batch()
    signal = has_signal(same.reward, K).repeat_interleave(K)
    assert 0 < signal.sum() < len(signal)

    def fresh() -> SameRollouts:
        return SameRollouts(sampler, same.recorded, same.reward, K)

    for filtered, plain in (
        (ZeroStdFiltered(group_size=K), RLOO(group_size=K)),
        (FilteredTRePO(), TRePO(group_size=K, temperatures=(0.0,))),
    ):
        found, whole = token_weights(filtered, fresh()), token_weights(plain, fresh())
        assert not found[~signal].any()
        torch.testing.assert_close(found[signal], whole[signal])  # greedy branches are the same every time
        assert found[signal].any()


def test_an_estimator_that_leaves_out_everything_has_no_weights():
    sampler, same = arithmetic_batch()
    equal = SameRollouts(sampler, same.recorded, torch.ones_like(same.reward), K)
    assert not token_weights(ZeroStdFiltered(group_size=K), equal).any()


def test_tokens_of_the_environment_have_no_figures():
    task = GuessNumber(highest=9)
    policy = small_transformer(task.vocab_size, task.prompt_length + task.horizon, width=16, layers=1, heads=2, seed=0)
    sampler = TaskSampler(policy, task, seeded(), np.random.default_rng(0), 3)
    document = inspect(
        sampler, [subject("trepo", TRePO(temperatures=(1.0,) * 2))], K, task.decode, eos=task.eos, draws=2
    )
    tokens = [token for group in document["groups"] for response in group["responses"] for token in response["tokens"]]
    assert {token["policy"] for token in tokens} == {True, False}
    for token in tokens:
        figures = (token["logp"], token["advantage"], token["error"], token["weights"]["trepo"])
        assert all((figure is not None) == token["policy"] for figure in figures) and token["hidden_reward"] is None
    assert "unclear" in "".join(token["text"] for token in tokens if not token["policy"])


# The truth


def expected_reward(mdp: TokenMDP, policy, prompt: list[int], prefix: list[int]) -> float:
    """E[RM(W) | W starts with prefix], every response one by one."""
    if len(prefix) == mdp.horizon or (prefix and prefix[-1] == mdp.eos):
        tokens = torch.tensor([prefix + [-1] * (mdp.horizon - len(prefix))])
        return float(mdp.response_reward(torch.tensor([prompt]), tokens, tokens >= 0))
    tokens = torch.tensor([prefix + [mdp.vocab_size - 1] + [-1] * (mdp.horizon - len(prefix) - 1)])
    chances = policy.logits(torch.tensor([prompt]), tokens)[0, len(prefix)].softmax(-1).tolist()
    return sum(chance * expected_reward(mdp, policy, prompt, [*prefix, token]) for token, chance in enumerate(chances))


def ngram_problem(seed: int, n_prompts: int) -> tuple[TokenMDP, NgramPolicy]:
    prompts = tuple(Prompt((token,), 1 / n_prompts) for token in range(n_prompts))
    mdp = TokenMDP(3, 1, 4, NgramReward.random(3, 2, seeded(seed)), 0.8, prompts)
    return mdp, NgramPolicy.random(3, 1, seeded(seed + 1), horizon=4)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), n_prompts=st.integers(1, 3), kind=st.sampled_from(["tree", "chain"]))
def test_the_exact_advantage_is_the_change_of_the_expected_reward(seed, n_prompts, kind):
    mdp, policy = ngram_problem(seed, n_prompts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm_mdp.inspection.LARGEST_TREE", 0 if kind == "chain" else 10**9)
        critic = exact_value(policy, mdp)
    sampler = PolicySampler(policy, mdp, seeded(seed), 1)
    document = inspect(sampler, [subject("0", RLOO())], 2, words, eos=mdp.eos, hidden=True, critic=critic)
    assert [each["label"] for each in document["truth"]] == ["hidden token reward", "exact advantage"]
    for group in document["groups"]:
        prompt = [int(token) for token in group["prompt"].split()]
        for response in group["responses"]:
            ids = [token["id"] for token in response["tokens"]]
            values = [expected_reward(mdp, policy, prompt, ids[:length]) for length in range(len(ids) + 1)]
            changes = [after - before for before, after in itertools.pairwise(values)]
            assert [token["advantage"] for token in response["tokens"]] == pytest.approx(changes, abs=1e-12)
            discounted = sum(
                mdp.gamma**place * token["hidden_reward"] for place, token in enumerate(response["tokens"])
            )
            assert discounted == pytest.approx(response["reward"]) == pytest.approx(values[-1])


def test_where_neither_tree_nor_chain_is_small_the_exact_value_is_unknown(monkeypatch):
    monkeypatch.setattr("llm_mdp.inspection.LARGEST_TREE", 0)
    instance = random_instance(3, 3)
    assert exact_value(instance.policy, instance.mdp) is None
    policy = NgramPolicy.random(3, 1, seeded())
    assert exact_value(policy, instance.mdp) is None  # its table of rewards looks back at the whole prefix


def test_drawn_advantages_are_off_by_their_standard_error():
    instance, size = random_instance(3, 3, gamma=0.9, seed=2), 400
    sampler = PolicySampler(instance.policy, instance.mdp, seeded(), 1)
    rollouts = sampler.rollouts(size)
    same = SameRollouts(sampler, rollouts, sampler.response_reward(rollouts), size)
    exact = find_truth(same, hidden=False, critic=exact_value(instance.policy, instance.mdp), draws=0)
    drawn = find_truth(same, hidden=False, critic=None, draws=64)
    assert exact.error is None and drawn.columns() == [{"name": "advantage", "label": "advantage by 64 draws"}]
    off = ((drawn.advantage - exact.advantage) / drawn.error)[rollouts.mask]
    assert (
        abs(float(off.mean())) < 0.15 and 0.85 < float(off.square().mean()) < 1.15
    )  # 1000 tokens and more, of one response each


def test_agreement_is_the_correlation_over_all_tokens():
    instance = random_instance(3, 4, gamma=0.8, n_prompts=2, seed=5)
    estimators = (ByToken(), RLOO(), REINFORCE(baseline=3.0))
    document = document_of(*estimators, critic=exact_value(instance.policy, instance.mdp))
    tokens = [token for group in document["groups"] for response in group["responses"] for token in response["tokens"]]
    for number, described in enumerate(document["estimators"]):
        pair = [[token["weights"][str(number)] for token in tokens], [token["advantage"] for token in tokens]]
        assert described["agreement"] == pytest.approx(np.corrcoef(pair)[0, 1])
    assert [each["agreement"] for each in document_of(*estimators)["estimators"]] == [None] * 3


@dataclass(frozen=True)
class Constant(Estimator):
    """A tenth for every token; 0.1 is no binary fraction, so its mean is off by rounding."""

    def advantages(self, evidence):
        return torch.full_like(evidence.rollouts.logp, 0.1)


def test_a_constant_agrees_with_nothing():
    instance = random_instance(3, 4, gamma=0.8, n_prompts=2, seed=5)
    assert (
        document_of(Constant(), critic=exact_value(instance.policy, instance.mdp))["estimators"][0]["agreement"] is None
    )


# The estimators that have a name


@pytest.mark.slow
def test_verdicts_of_the_named_estimators():
    instance = random_instance(3, 3)
    critic = exact_value(instance.policy, instance.mdp)
    verdicts = {name: named_subject(name, Surroundings(3, critic, branches=5, every=8)).verdict for name in SHOWN}
    assert verdicts == {
        "reinforce": "unbiased", "rloo": "unbiased", "remax": "unbiased", "grpo": "biased", "dr-grpo": "proportional",
        "trepo": "unbiased", "trepo-paper": "biased", "vineppo": "unbiased", "ppo": "unbiased",
    }  # fmt: skip


def test_options_reach_the_estimators():
    made = named_subject("trepo-paper", Surroundings(horizon=7, branches=5, every=3)).estimator
    assert (len(made.temperatures), made.boundary.n, made.pooled, made.interpolated) == (5, 6, True, True)
    assert named_subject("dr-grpo", Surroundings(horizon=7)).estimator.reduction_constant == 7


@dataclass(frozen=True)
class Undescribed(RLOO):
    baseline: float = 0.0


@dataclass(frozen=True)
class Squared(TRePO):
    """Not affine in its branches, of which there are too many outcomes to enumerate."""

    def advantages(self, evidence):
        return super().advantages(evidence) ** 2


def test_an_estimator_of_ones_own_is_certified_and_described_by_its_docstring():
    mine = own_subject("mine.py:ByToken", ByToken())
    assert (mine.label, mine.verdict) == ("ByToken", "biased") and mine.words.startswith("The token itself, plus")
    assert own_subject("mine.py:Undescribed", Undescribed()).words == ""
    assert own_subject("mine.py:Squared", Squared()).verdict is None


# Texts


@settings(deadline=None)
@given(st.text(max_size=20))
def test_texts_of_tokens_join_to_the_text(text):
    tokenizer = byte_tokenizer()
    tokens = tokenizer.encode(text)
    texts = token_texts(lambda part: tokenizer.decode(part, clean_up_tokenization_spaces=False), tokens)
    assert "".join(texts) == text and len(texts) == len(tokens)


@settings(deadline=None)
@given(st.lists(st.integers(0, 256), max_size=12))
def test_texts_of_any_bytes_join_to_what_the_decoder_says(tokens):
    tokenizer = byte_tokenizer()
    texts = token_texts(tokenizer.decode, tokens)
    assert "".join(texts) == tokenizer.decode(tokens) and len(texts) == len(tokens)


def test_a_character_of_several_tokens_belongs_to_the_last_and_words_keep_their_spaces():
    tokenizer = byte_tokenizer()
    assert token_texts(tokenizer.decode, tokenizer.encode("aé🙂")) == ["a", "", "é", "", "", "", "🙂"]
    assert token_texts(words, [3, 10, 0]) == ["3", " 10", " 0"]


def test_a_decoder_that_rewrites_what_it_said_gives_each_token_alone():
    assert token_texts(lambda tokens: "".join(map(str, reversed(tokens))), [1, 2, 3]) == ["1", "2", "3"]


# What cannot be done


@dataclass(frozen=True)
class Infinite(Estimator):
    """Divides by zero."""

    def advantages(self, evidence):
        return (evidence.response_reward / 0)[..., None]


class Bare:
    """No dataclass."""


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda: named_subject("trpo", Surroundings(4)), "there is no estimator 'trpo'; did you mean trepo?"),
        (lambda: named_subject("xyz", Surroundings(4)), "there is no estimator 'xyz'; choose among reinforce, rloo,"),
        (lambda: named_subject("ppo", Surroundings(4)), "the exact value U(W₀,ₜ) is known on small token MDPs only"),
        (lambda: document_of(), "there is no estimator to look at; name at least one of reinforce,"),
        (lambda: document_of(RLOO(), draws=1), "draws is 1; give at least 2"),
        (
            lambda: document_of(Tempered()),
            "asks for 4 responses to a prompt at temperature 0.6; all estimators look at the same 4",
        ),
        (lambda: document_of(Infinite()), "derivative that is not finite"),
        (lambda: document_of(Bare()), "Bare has no option group_size"),
        (lambda: inspect(None, [subject("a", RLOO())] * 2, K, words, eos=0), "the estimator 'a' is named twice"),  # pyright: ignore
        (lambda: inspect(None, [subject("a", RLOO())], 0, words, eos=0), "group_size is 0; at least 1 response"),  # pyright: ignore
    ],
)
def test_what_cannot_be_done_is_said_in_words(act, complaint):
    with pytest.raises(ValueError) as raised:
        act()
    assert complaint in str(raised.value)
