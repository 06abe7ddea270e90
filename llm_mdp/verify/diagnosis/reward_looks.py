"""Interventions on the rewards: the tokens are fixed, and the rewards are scaled, mirrored and moved one by one."""

from collections.abc import Iterator

import torch

from llm_mdp.verify.diagnosis import repairs
from llm_mdp.verify.diagnosis.black_box import TOLERANCE, same
from llm_mdp.verify.diagnosis.subject import LARGE, Found, Subject


def sign(x: Subject) -> Iterator[Found]:
    """With every reward mirrored, and with the own one raised: does the sign of the weights follow?"""
    reward = x.shown.reward
    level, mirrored = x.level(reward), x.level(-reward)
    if float(level.abs().max()) <= TOLERANCE * x.largest:
        return
    if same(level, mirrored):
        words = "the weights are the same when the sign of every reward is changed"
        yield Found("sign-lost", words, "keep the sign of the advantage", repairs.signed)
        return
    slopes = torch.cat([x.slope(k) for k in range(reward.shape[1])])
    if float(slopes.mean()) < 0 and float(slopes.max()) <= TOLERANCE * float(slopes.abs().max()):
        words = "a response's weight falls when its own reward rises"
        yield Found("sign-reversed", words, "the other sign: the loss is minus the sum of A log π", repairs.times(-1.0))


def rewards(x: Subject) -> Iterator[Found]:
    """With rewards raised one by one: does a weight rise by 1 when its own reward does, whatever the others are?"""
    group = x.group_size
    if float(x.level(x.shown.reward).abs().max()) <= TOLERANCE * x.largest:
        return
    if x.scaling != "proportional":
        yield from _statistic(x, group)
        if x.scaling != "proportional":
            return
    if group == 1 and x.scaling == "proportional":
        yield from _constant_factor(x, group)
        return
    slopes = [torch.cat([x.slope(k, step=step) for k in range(group)]) for step in (1.0, 10.0)]
    least, most = (float(f(torch.cat(slopes))) for f in (torch.min, torch.max))
    if most - least > TOLERANCE * max(abs(most), abs(least)):
        words = f"for 1 more of its own reward a weight rises by {least:.3g} to {most:.3g}, instead of always 1"
        remedy = "a baseline from the other responses only"
        yield Found("own-response", words, remedy, repairs.leave_one_out, last=True)
        return
    yield from _constant_factor(x, group)


def _constant_factor(x: Subject, group: int) -> Iterator[Found]:
    slope = float(x.slope(0).mean())
    if abs(slope - 1) <= TOLERANCE:
        return
    others = [float(x.slope(0, other).mean()) for other in range(1, group)]
    if others and all(abs(other - (slope - 1)) <= TOLERANCE for other in others):
        near = _fraction(slope, group)
        words = (
            f"for 1 more of its own reward a weight rises by {slope:.3g}{near} instead of 1: the baseline holds the "
            "response's own reward, with the same share as the others'"
        )
        shift = slope + sum(others)
        remedy = "a baseline from the other responses only" + (
            f", or times {1 / slope:.4g} = K/(K - 1)" if abs(shift) < TOLERANCE and slope else ""
        )
        if abs(slope) > TOLERANCE:
            yield Found("own-response", words, remedy, repairs.times(1 / slope))
        else:
            yield Found("own-response", words, remedy, repairs.leave_one_out, last=True)
    elif abs(slope) > TOLERANCE:
        words = f"for 1 more of its own reward every weight rises by {slope:.4g} instead of 1"
        yield Found("constant-factor", words, f"times {1 / slope:.4g}, or a learning rate", repairs.times(1 / slope))


def _statistic(x: Subject, group: int) -> Iterator[Found]:
    """Weights that are not proportional to rewards: divided by a statistic of the group, or made of something else."""
    if group > 1 and _affine_in_group(x):
        words, share = "the weights of a group are multiplied by a factor that depends on its rewards", 1.0
        if x.scaling == "the same":
            words, share = _which_statistic(x)
        repair = repairs.unscaled(x.e, share)
        yield Found("group-statistic", words, "do not divide by it, or divide by a constant", repair)
        x.scaling = "proportional"
        return
    if group > 1 and _affine_in_own(x):
        words = "the weight is multiplied by a factor that depends on the rewards of the other responses"
        yield Found(
            "others-statistic", words, "do not divide by it, or divide by a constant", repairs.unit_slope, last=True
        )
        x.scaling = "proportional"
        return
    level = x.level(x.shown.reward)
    values = len((level / level.abs().max() * 1e4).round().unique())
    words = "the weights are not proportional to the rewards"
    words += (
        f": they take {values} different values only" if values <= 2 * group + 1 else " (clipped, ranked, squared, …)"
    )
    yield Found("transformed-reward", words, "use the reward itself", None)


def _affine_in_group(x: Subject) -> bool:
    """Do the weights of a group differ as its rewards do, up to one factor for the group?"""
    reward = x.shown.reward
    level = x.level(reward)
    if reward.shape[1] < 3:
        return x.scaling == "the same"
    rise = (level[:, 1:] - level[:, :1]) / (reward[:, 1:] - reward[:, :1])
    return bool((rise.amax(-1) - rise.amin(-1) <= 1e-4 * rise.abs().amax(-1)).all())


def _affine_in_own(x: Subject) -> bool:
    return all(same(x.slope(k, step=1.0), x.slope(k, step=7.0)) for k in range(x.shown.reward.shape[1]))


def _which_statistic(x: Subject) -> tuple[str, float]:
    """Which statistic of the rewards divides them, in words; and the share of the rewards' spread that is left when
    it is taken back: 1 of the reward less the group's mean, (K - 1)/K of the reward less the mean of the others."""
    reward = x.shown.reward * LARGE
    group, spread = reward.shape[1], repairs.spread_of(reward)
    divisor = spread / repairs.spread_of(x.level(reward))
    candidates = {
        "their standard deviation": reward.std(-1, correction=1),
        "their standard deviation (divided by K)": reward.std(-1, correction=0),
        "their range": spread,
        "their largest size": reward.abs().amax(-1),
        "their mean size": reward.abs().mean(-1),
        "the mean distance from their mean": (reward - reward.mean(-1, keepdim=True)).abs().mean(-1),
    }
    start = "the weights stay the same when all rewards of a group are doubled: they are divided by "
    shares = {name: divisor / statistic for name, statistic in candidates.items()}
    fits = {name: float(share.mean()) for name, share in shares.items() if same(share, share.mean().expand_as(share))}
    for name, share in fits.items():
        if any(abs(share - usual) < 1e-3 for usual in (1.0, (group - 1) / group)):
            return start + name, share
    return start + next(iter(fits), "a statistic of the group"), next(iter(fits.values()), 1.0)


def _fraction(slope: float, group: int) -> str:
    for name, value in (("(K - 1)/K", (group - 1) / group), ("(K - 2)/(K - 1)", (group - 2) / max(group - 1, 1))):
        if abs(slope - value) <= TOLERANCE:
            return f" = {name}"
    return ""
