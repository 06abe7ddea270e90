"""Names of the field's habits."""

from llm_mdp.estimators.algorithms import REINFORCE, RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.entry import GIVEN, Entry, Given, K, unbiased
from llm_mdp.estimators.group_credit import OPO, TEMPO, PassAtK, REINFORCEPlusPlus
from llm_mdp.estimators.objectives import KL
from llm_mdp.estimators.practices import (
    EntropyLoss,
    EntropyReward,
    KLEstimator,
    KLLoss,
    KLReward,
    LengthPenalty,
    MaskedTruncated,
    OverlongShaping,
    SecondEpoch,
    Tempered,
    ZeroStdFiltered,
)


def _kl(penalty: type[KLEstimator], given: Given, kind: KL) -> Estimator:
    return penalty(reference=given.reference, kind=kind)


PRACTICES: tuple[Entry, ...] = (
    Entry("kl-k1-reward", "A KL penalty, k1 in the reward.", lambda g: _kl(KLReward, g, "k1"), **GIVEN),
    Entry("kl-k1-loss", "A KL penalty, k1 in the loss.", lambda g: _kl(KLLoss, g, "k1"), **GIVEN),
    Entry("kl-k2-loss", "A KL penalty, k2 in the loss.", lambda g: _kl(KLLoss, g, "k2"), **GIVEN),
    Entry("kl-k3-loss", "A KL penalty, k3 in the loss.", lambda g: _kl(KLLoss, g, "k3"), **GIVEN),
    Entry("kl-k3-reward", "A KL penalty, k3 in the reward.", lambda g: _kl(KLReward, g, "k3"), **GIVEN),
    Entry(
        "kl-whole-reward", "A KL penalty, k1 of the whole response on each of its tokens.",
        lambda g: KLReward(reference=g.reference, whole=True), **GIVEN,
    ),
    Entry(
        "kl-rho-k3-loss", "A KL penalty, k3 times the ratio ρ to the policy that drew, in the loss.",
        lambda g: KLLoss(reference=g.reference, kind="k3", weighted=True),
        claims=("kl-rho-k3-loss", "kl-rho-k3-loss-visited"), **GIVEN,
    ),
    Entry("entropy-reward", "An entropy bonus, -log π in the reward.", lambda g: EntropyReward()),
    Entry("entropy-token-loss", "An entropy bonus, that of every token in the loss.", lambda g: EntropyLoss()),
    Entry(
        "length-normalised-loo", "RLOO, divided by the response's length.",
        lambda g, group_size: RLOO(group_size, reduction="sequence_mean"), K,
    ),
    Entry(
        "token-mean-loo", "RLOO, summed over the group and divided by its tokens.",
        lambda g, group_size: RLOO(group_size, reduction="token_mean"), K,
    ),
    Entry(
        "temperature-mismatch-centred", "Drawn at temperature 0.6, less its mean there, scored at 1.",
        lambda g: Tempered(temperature=0.6, critic=g.drawn_value(0.6)), **GIVEN,
    ),
    Entry(
        "reinforce++", "The reward less the mean of its group, normalised over all tokens of the batch.",
        lambda g, group_size: REINFORCEPlusPlus(group_size), K, label="REINFORCE++",
    ),
    Entry(
        "opo", "The reward less the mean of the group by length.", lambda g, group_size: OPO(group_size), K,
        label="OPO", claims=("opo", "opo-left-out"),
    ),
    Entry(
        "opo-left-out", "The reward less the mean of the other responses by length.",
        lambda g, group_size: OPO(group_size, own=False), K, label="OPO, left out", proved=unbiased,
    ),
    Entry(
        "pass-at-k", "For the best response of the group, by how much it is the best.",
        lambda g, group_size: PassAtK(group_size), K, label="pass@k",
    ),
    Entry(
        "tempo", "The reward less the mean of the group, and the change of the prefix's mean in the group.",
        lambda g, group_size: TEMPO(group_size), K, label="TEMPO", claims=("tempo", "tempo-td"),
    ),
    Entry(
        "tempo-td", "The change of the prefix's mean in the group alone.",
        lambda g, group_size: TEMPO(group_size, td_only=True), K,
    ),
    Entry(
        "overlong-shaping", "The reward less a penalty close to the length cap.",
        lambda g: OverlongShaping(horizon=g.horizon), claims=("overlong-shaping", "overlong-shaping-shaped"),
    ),
    Entry(
        "length-penalty", "The reward less 0.1 a token.", lambda g: LengthPenalty(),
        claims=("length-penalty", "length-penalty-shaped"),
    ),
    Entry(
        "length-normalised", "The reward, divided by the response's length.",
        lambda g: REINFORCE(reduction="sequence_mean"),
    ),
    Entry(
        "token-mean", "The reward, summed over the group and divided by its tokens.",
        lambda g, group_size: REINFORCE(group_size, reduction="token_mean"), K,
    ),
    Entry(
        "masked-truncated", "The reward, but nothing for responses that hit the length cap.",
        lambda g: MaskedTruncated(),
    ),
    Entry(
        "zero-std-filtered", "RLOO, groups of equal rewards left out of the average.",
        lambda g, group_size: ZeroStdFiltered(group_size), K,
    ),
    Entry(
        "temperature-mismatch", "Drawn at temperature 0.6, scored at 1.", lambda g: Tempered(temperature=0.6),
    ),
    Entry(
        "ppo-second-epoch", "The second update on the same responses, clipped.", lambda g: SecondEpoch(),
    ),
)  # fmt: skip
