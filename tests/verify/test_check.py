"""Broken estimators and policies, each with the exact message that its author gets."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from llm_mdp.estimators.algorithms import REINFORCE, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import policy_gradient
from llm_mdp.estimators.values import groups
from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Evidence, Rollouts
from llm_mdp.sampling.policies import NgramPolicy, PolicyModule
from llm_mdp.verify.check import PolicyError, check_estimator, check_policy, load_estimator
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError


@dataclass(frozen=True)
class Sound(Estimator):
    """RM on every token; the broken ones below differ from it in one thing."""

    group_size: int = 2

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


class SoundWithoutFields(Estimator):
    """No field of its own, so that no decorator is needed."""

    def advantages(self, evidence):
        return evidence.response_reward[..., None]


# --- estimators that are fine -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", [claim for claim in CLAIMS if claim.entry], ids=lambda claim: claim.id)
def test_every_claim_has_a_sound_estimator(claim):
    p = Problem(random_instance(3, 3, gamma=0.9, n_prompts=2))
    check_estimator(claim.build(p), p.enumeration)


@pytest.mark.parametrize(
    "estimator", [Sound(), SoundWithoutFields(), REINFORCE(clip_low=0.2), RLOO(group_size=3)], ids=repr
)
def test_sound_estimators_pass_on_the_default_instance(estimator):
    check_estimator(estimator)


# --- estimators that are not ------------------------------------------------------------------------------------------


class NoAdvantages(Estimator):
    pass


class NothingAtAll:
    pass


@dataclass(frozen=True)
class ListOfAdvantages(Sound):
    def advantages(self, evidence):
        return [1.0, 2.0]


@dataclass(frozen=True)
class WrongShape(Sound):
    def advantages(self, evidence):
        return torch.zeros(7, dtype=torch.float64)


@dataclass(frozen=True)
class OneWeightAResponse(Sound):
    def advantages(self, evidence):
        return evidence.response_reward


class StillInGroups(Sound):
    def advantages(self, evidence):
        return groups(evidence.response_reward, self.group_size)


@dataclass(frozen=True)
class OneWeightAResponseOfThree(Sound):
    """The treacherous case: as many responses as steps, so the shape (worlds, B) would broadcast as if it were (B,
    T)."""

    group_size: int = 3

    def advantages(self, evidence):
        return evidence.response_reward


@dataclass(frozen=True)
class Integers(Sound):
    def advantages(self, evidence):
        return evidence.rollouts.tokens


@dataclass(frozen=True)
class NotANumber(Sound):
    def advantages(self, evidence):
        return (evidence.response_reward / 0 * 0)[..., None]


@dataclass(frozen=True)
class DividesByZeroStd(Sound):
    def advantages(self, evidence):
        return (evidence.response_reward / evidence.response_reward.std(-1, keepdim=True))[..., None]


@dataclass(frozen=True)
class CarriesGradient(Sound):
    def advantages(self, evidence):
        return evidence.response_reward[..., None].clone().requires_grad_()


@dataclass(frozen=True)
class MixesWorlds(Sound):
    def advantages(self, evidence):
        return (evidence.response_reward - evidence.response_reward.mean())[..., None]


@dataclass(frozen=True)
class Random(Sound):
    def advantages(self, evidence):
        return evidence.response_reward[..., None] * torch.rand(())


@dataclass(frozen=True)
class RandomCollect(Sound):
    def collect(self, sampler):
        evidence = super().collect(sampler)
        return replace(evidence, response_reward=evidence.response_reward + torch.randn(evidence.response_reward.shape))


@dataclass(frozen=True)
class CountsPadding(Sound):
    def advantages(self, evidence):
        return evidence.response_reward[..., None] / evidence.rollouts.tokens.shape[-1]


@dataclass(frozen=True)
class AveragesOverWidth(Sound):
    def loss(self, logp, evidence):
        return -(evidence.response_reward[..., None] * logp).mean((-2, -1))


@dataclass(frozen=True)
class OwnRollouts(Sound):
    def collect(self, sampler):
        r = sampler.rollouts(self.group_size)
        mine = Rollouts(r.prompt, r.tokens, r.mask, r.logp, r.finish)
        return Evidence(mine, sampler.response_reward(r))


@dataclass(frozen=True)
class NoEvidence(Sound):
    def collect(self, sampler):
        return sampler.rollouts(self.group_size)


@dataclass(frozen=True)
class LossWithoutLogp(Sound):
    def loss(self, logp, evidence):
        return evidence.response_reward.sum(-1)


@dataclass(frozen=True)
class LossOverAllWorlds(Sound):
    def loss(self, logp, evidence):
        return policy_gradient(logp, self.advantages(evidence), evidence.rollouts.mask).mean()


@dataclass(frozen=True)
class LossAToken(Sound):
    def loss(self, logp, evidence):
        return -(evidence.response_reward[..., None] * logp)


@dataclass(frozen=True)
class InfiniteLoss(Sound):
    def loss(self, logp, evidence):
        return (logp - logp).sqrt().sum((-2, -1))


@dataclass(frozen=True)
class GroupOfNone(Sound):
    group_size: int = 0


BROKEN = {
    "class": (Sound, "Sound is a class; give an object: Sound()."),
    "no methods": (
        NothingAtAll(),
        "NothingAtAll has no method `collect`; subclass llm_mdp.Estimator, which brings it.",
    ),
    "group of none": (GroupOfNone(), "GroupOfNone.group_size is 0; it must be a whole number of at least 1."),
    "group of a half": (Sound(group_size=1.5), "Sound.group_size is 1.5; it must be a whole number of at least 1."),
    "no evidence": (
        NoEvidence(),
        "NoEvidence.collect returned TreeRollouts; return an llm_mdp.sampling.evidence.Evidence.",
    ),
    "own rollouts": (
        OwnRollouts(),
        "OwnRollouts.collect made its own rollouts; pass on what sampler.rollouts(group_size) returned.",
    ),
    "list": (ListOfAdvantages(), "ListOfAdvantages.advantages returned list; return a tensor of shape (..., B, T)."),
    "integers": (Integers(), "Integers.advantages returned dtype torch.int64; return floating-point numbers."),
    "wrong shape": (
        WrongShape(),
        "WrongShape.advantages has shape (7,), but tokens have shape (worlds, B, T) = (225, 2, 3); one weight a "
        "response must end in a "
        "dimension of 1: add [..., None].",
    ),
    "missing dimension": (
        OneWeightAResponse(),
        "OneWeightAResponse.advantages has shape (225, 2), but tokens have shape (worlds, B, T) = (225, 2, 3); one "
        "weight a response must "
        "end in a dimension of 1: add [..., None].",
    ),
    "missing dimension that broadcasts": (
        OneWeightAResponseOfThree(),
        "OneWeightAResponseOfThree.advantages has shape (300, 3), but tokens have shape (worlds, B, T) = (300, 3, 3); "
        "one weight a "
        "response must end in a dimension of 1: add [..., None].",
    ),
    "in groups": (
        StillInGroups(),
        "StillInGroups.advantages has shape (225, 1, 2), but tokens have shape (worlds, B, T) = (225, 2, 3); one "
        "weight a response must end in a dimension of 1: add .flatten(-2)[..., None].",
    ),
    "not a number": (NotANumber(), "NotANumber.advantages holds nan; look for a division by a zero std or length."),
    "zero std": (
        DividesByZeroStd(),
        "DividesByZeroStd.advantages holds inf; look for a division by a zero std or length.",
    ),
    "gradient": (
        CarriesGradient(),
        "CarriesGradient.advantages carries a gradient; advantages are constants, use .detach().",
    ),
    "loss without logp": (
        LossWithoutLogp(),
        "LossWithoutLogp.loss: loss does not depend on logp; multiply advantages by logp (see "
        "objectives.policy_gradient).",
    ),
    "one loss for all worlds": (
        LossOverAllWorlds(),
        "LossOverAllWorlds.loss: loss has shape (), but there are worlds (225,): return one number a world, reducing "
        "over the last two "
        "dimensions only (dim=(-2, -1)).",
    ),
    "a loss for every token": (
        LossAToken(),
        "LossAToken.loss: loss has shape (225, 2, 3), but there are worlds (225,): return one number a world, reducing "
        "over the last two "
        "dimensions only (dim=(-2, -1)).",
    ),
    "infinite derivative": (
        InfiniteLoss(),
        "InfiniteLoss.loss: the loss has a derivative that is not finite; look for a division by a group's zero std or "
        "length.",
    ),
    "random": (
        Random(),
        "Random gave two answers to the same samples; draw all randomness from the sampler inside `collect`.",
    ),
    "random collect": (
        RandomCollect(),
        "RandomCollect gave two answers to the same samples; draw all randomness from the sampler inside `collect`.",
    ),
    "mixes worlds": (
        MixesWorlds(),
        "MixesWorlds mixes worlds: evidence may have leading dimensions that must not meet, so reduce over the last "
        "ones only, e.g. "
        "response_reward.mean(-1, keepdim=True) instead of response_reward.mean().",
    ),
    "counts padding": (
        CountsPadding(),
        "CountsPadding depends on padding: its weights change when the batch is padded to a longer width; count policy "
        "tokens with "
        "rollouts.mask, not with the width of a tensor.",
    ),
    "averages over the width": (
        AveragesOverWidth(),
        "AveragesOverWidth depends on padding: its weights change when the batch is padded to a longer width; count "
        "policy tokens with "
        "rollouts.mask, not with the width of a tensor.",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_estimator_is_told_what_is_wrong(name):
    estimator, message = BROKEN[name]
    with pytest.raises(EstimatorError) as error:
        check_estimator(estimator)
    assert str(error.value) == message


def test_an_estimator_without_advantages_is_told_what_to_write():
    message = r"NoAdvantages has no `advantages`; return one weight for every token, shape \(\.\.\., B, T\)\."
    with pytest.raises((EstimatorError, NotImplementedError), match=message):
        check_estimator(NoAdvantages())


def test_a_field_that_dataclasses_overlook_is_an_error():
    class Overlooked(Estimator):
        group_size = 4

        def advantages(self, evidence):
            return evidence.response_reward[..., None]

    with pytest.raises(TypeError) as error:
        Overlooked()
    assert str(error.value) == (
        "Overlooked sets group_size in a way that dataclasses overlook; put @dataclass(frozen=True) above the class "
        "and write "
        "`group_size: int = 4`."
    )


def test_annotating_a_field_without_the_decorator_is_an_error_too():
    class Overlooked(RLOO):
        paper: bool = True

    with pytest.raises(TypeError, match=r"Overlooked sets paper in a way that dataclasses overlook"):
        Overlooked()


def test_estimators_are_checked_on_the_instance_given():
    """An estimator that divides by RM(W) is sound until some RM is 0."""

    @dataclass(frozen=True)
    class Divides(Sound):
        def advantages(self, evidence):
            return (1 / evidence.response_reward)[..., None]

    check_estimator(Divides())
    instance = random_instance(3, 3)
    zero = [0 * level for level in instance.mdp.token_reward.table]
    mdp = replace(instance.mdp, token_reward=replace(instance.mdp.token_reward, table=zero))
    with pytest.raises(EstimatorError, match=r"Divides\.advantages holds inf"):
        check_estimator(Divides(), Enumeration(mdp, instance.policy))


# --- policies ---------------------------------------------------------------------------------------------------------


def token_mdp(eos: int | None = 0) -> TokenMDP:
    return random_instance(3, 4, eos=eos, n_prompts=2).mdp


class Bigram(PolicyModule):
    """A sound policy with logits of the last token and the present step; the broken ones below differ from it in one
    thing."""

    vocab_size = 3

    def __init__(self):
        super().__init__()
        self.inner = NgramPolicy.random(3, 1, torch.Generator().manual_seed(0))

    def logits(self, prompt, tokens):
        return self.inner.logits(prompt, tokens)


class LooksAhead(Bigram):
    def logits(self, prompt, tokens):
        return self.inner.logits(prompt, tokens) + 0.1 * torch.nn.functional.one_hot(tokens.clamp(min=0), 3)


class LooksFarAhead(Bigram):
    """Sees only that something follows, two steps on."""

    def logits(self, prompt, tokens):
        later = torch.nn.functional.pad((tokens[..., 2:] == 2).double(), (0, 2))[..., : tokens.shape[-1]]
        return self.inner.logits(prompt, tokens) * (1 + later[..., None])


class FewLogits(Bigram):
    def logits(self, prompt, tokens):
        return super().logits(prompt, tokens)[..., :2]


class NoParameters(PolicyModule):
    vocab_size = 3

    def logits(self, prompt, tokens):
        return torch.zeros(*tokens.shape, 3)


class NotAModule:
    vocab_size = 3


class OnlyLogits(torch.nn.Module):
    vocab_size = 3

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(3))

    def logits(self, prompt, tokens):
        return self.weight.expand(*tokens.shape, 3)


class Detached(Bigram):
    def logits(self, prompt, tokens):
        return super().logits(prompt, tokens).detach()


class NotANumberPolicy(Bigram):
    def logits(self, prompt, tokens):
        logits = super().logits(prompt, tokens)
        return logits if not self.scored else logits * torch.nan

    scored = False

    def sample(self, *args, **kwargs):
        self.scored = False
        drawn = super().sample(*args, **kwargs)
        self.scored = True
        return drawn


class WrongLogp(Bigram):
    """Scores what it drew at another temperature."""

    def sample(self, *args, **kwargs):
        drawn = super().sample(*args, **kwargs)
        return replace(drawn, logp=drawn.logp / 0.6)


class IgnoresGenerator(Bigram):
    def sample(self, *args, **kwargs):
        kwargs["generator"] = torch.Generator()
        kwargs["generator"].seed()
        return super().sample(*args, **kwargs)


class MaskWithoutEnd(Bigram):
    def sample(self, *args, **kwargs):
        drawn = super().sample(*args, **kwargs)
        return replace(
            drawn, mask=drawn.mask & (drawn.tokens != kwargs["eos"]), logp=drawn.logp * (drawn.tokens != kwargs["eos"])
        )


class MaskOnPadding(Bigram):
    def sample(self, *args, **kwargs):
        drawn = super().sample(*args, **kwargs)
        everywhere = torch.ones_like(drawn.mask)
        scored = self.logits(drawn.prompt, drawn.tokens).log_softmax(-1)
        logp = scored.gather(-1, drawn.tokens.clamp(min=0)[..., None])[..., 0].detach()
        return replace(drawn, mask=everywhere, logp=logp)


NO_GRADIENT = "is not a torch.nn.Module with parameters; there is nothing to take a gradient by."

BROKEN_POLICIES = {
    "not a module": (NotAModule, f"NotAModule {NO_GRADIENT}"),
    "no parameters": (NoParameters, f"NoParameters {NO_GRADIENT}"),
    "no sample": (
        OnlyLogits,
        "OnlyLogits has no method `sample`; subclass llm_mdp.sampling.policies.PolicyModule, which brings `sample`.",
    ),
    "wrong shape": (
        FewLogits,
        "FewLogits.logits has shape (16, 4, 2); for tokens of shape (16, 4) it must be (16, 4, 3).",
    ),
    "not finite": (
        NotANumberPolicy,
        "NotANumberPolicy.logits holds numbers that are not finite; every state needs at least one possible token.",
    ),
    "detached": (
        Detached,
        "Detached.logits has no gradient; do not detach, and do not compute it under torch.no_grad().",
    ),
    "looks ahead": (
        LooksAhead,
        "LooksAhead.logits looks ahead: entry t must depend on the prompt and tokens[:t] only, but step 0 sees later "
        "tokens.",
    ),
    "looks far ahead": (
        LooksFarAhead,
        "LooksFarAhead.logits looks ahead: entry t must depend on the prompt and tokens[:t] only, but step 0 sees "
        "later tokens.",
    ),
    "wrong logp": (
        WrongLogp,
        "WrongLogp.sample reports log-probabilities that differ from those of its logits; score what was sampled.",
    ),
    "own randomness": (
        IgnoresGenerator,
        "IgnoresGenerator.sample gives other responses for the same seed; use the generator it is given and no other.",
    ),
    "end token masked out": (
        MaskWithoutEnd,
        "MaskWithoutEnd.sample has a wrong mask at step 0: True up to the end token, it included, and False after it.",
    ),
    "padding not masked": (
        MaskOnPadding,
        "MaskOnPadding.sample has a wrong mask at step 1: True up to the end token, it included, and False after it.",
    ),
}


@pytest.mark.parametrize("eos", [0, None])
def test_sound_policies_pass(eos):
    instance = random_instance(3, 4, eos=eos, n_prompts=2)
    check_policy(instance.policy, instance.mdp)
    check_policy(Bigram(), instance.mdp)
    check_policy(NgramPolicy.random(3, 2, torch.Generator().manual_seed(0), horizon=4), instance.mdp)


@pytest.mark.parametrize("name", BROKEN_POLICIES)
def test_a_broken_policy_is_told_what_is_wrong(name):
    policy, message = BROKEN_POLICIES[name]
    with pytest.raises(PolicyError) as error:
        check_policy(policy(), token_mdp())
    assert str(error.value) == message


# --- several prompts in a batch ---


@dataclass(frozen=True)
class BestOfBatch(Estimator):
    """Unbiased or not where a batch has one prompt, another thing where it has two."""

    group_size: int = 2

    def advantages(self, evidence):
        reward = evidence.response_reward
        return (reward - reward.amax(-1, keepdim=True))[..., None]


@dataclass(frozen=True)
class FixedBatch(Estimator):
    """Works for one prompt only."""

    group_size: int = 2

    def advantages(self, evidence):
        return (evidence.response_reward * torch.tensor([1.0, -1.0]))[..., None]


@dataclass(frozen=True)
class MeantForBatch(BestOfBatch):
    whole_batch: ClassVar[bool] = True


@dataclass(frozen=True)
class BestOfPrompt(BestOfBatch):
    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)
        return (reward - reward.amax(-1, keepdim=True)).flatten(-2)[..., None]


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (
            BestOfBatch(),
            "BestOfBatch mixes prompts: the advantages of a prompt's responses change when another is in the batch; "
            "group re",
        ),
        (FixedBatch(), "FixedBatch.advantages fails on a batch of two prompts"),
    ],
)
def test_prompts_of_a_batch_must_not_meet(estimator, message):
    with pytest.raises(EstimatorError, match=message):
        check_estimator(estimator)


@pytest.mark.parametrize("estimator", [MeantForBatch(), BestOfPrompt()])
def test_batches_that_are_meant_or_grouped_are_fine(estimator):
    check_estimator(estimator)


@pytest.mark.parametrize("group_size", [None, 3])
def test_a_function_in_the_place_of_an_estimator_is_sent_to_the_audit(group_size, tmp_path):
    (tmp_path / "mine.py").write_text("def centred(rewards):\n    return rewards - rewards.mean(-1, keepdim=True)\n")
    with pytest.raises(UsageError, match=r"centred is no estimator, .*`llm-mdp audit .*mine\.py:centred` certifies"):
        load_estimator(f"{tmp_path}/mine.py:centred", group_size)
