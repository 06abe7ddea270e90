"""Exact moments of updates that hold the groups of P prompts, each drawn independently.

Most estimators weigh the responses to a prompt in the same way whatever else is in the batch, and their loss is a mean
over prompts. Then E g is that of one group, and tr Cov is divided by P: this is tried first. Of the others, those with
a mean, a std or a number of tokens over the batch, the outcomes of whole batches are summed up: one by one, or by
classes of responses (`classes.batches`).

Where groups are left out, an update is about the N groups that are kept, N binomial, and made again if there is none:
all expectations are over N given N ≥ 1.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.groups import MAX_BATCHES, Groups, number_of_batches
from llm_mdp.exact.worlds import ExactSampler, TreeBranches
from llm_mdp.sampling.evidence import Branches, occurrence
from llm_mdp.sampling.shared_draws import Meter
from llm_mdp.verify.classes.batches import batch_class_moments
from llm_mdp.verify.classes.calls import Refused
from llm_mdp.verify.moments import Moments, exact_moments, updates_first
from llm_mdp.verify.weights import Precision, token_weights

MAX_PROMPTS = 10_000
"""Prompts of one update."""
MAX_TOGETHER = 500
"""The same, where the weights depend on the whole batch."""
FEW = 5_000
"""Batches, without order, that are taken one by one without asking for anything else."""
TRIED = 3_000
"""Groups on which it is tried whether an estimator weighs the responses to a prompt by themselves."""
ENTRIES = 4_000_000
"""Token weights that are asked for at once in these tries."""
KEPT = 1e-9
"""What the chances that groups are kept may differ by, alone and in batches."""
UNITS = 4096
"""Units in the last place of what the estimator computes in that two sums of the same terms may differ by."""


def batch_moments(
    estimator: Estimator, enumeration: Enumeration, prompts: int, method: str, single: Callable[[], Moments]
) -> Moments:
    """Mean and trace of the covariance of one update of `prompts` groups.

    Args:
        method: "auto", "groups" or "classes", see `certificate.exact_certificate`.
        single: the moments of one group alone.

    Raises:
        TooLarge: if there are too many outcomes, with what remains.
    """
    if prompts > MAX_PROMPTS:
        raise TooLarge(f"prompts is {prompts:,}; it must be at most {MAX_PROMPTS:,}.")
    if not updates_first(estimator) and _apart(estimator, enumeration, prompts):
        return _mean_of_groups(single(), prompts)
    if prompts > MAX_TOGETHER:
        raise TooLarge(
            f"{type(estimator).__name__} has weights that depend on the whole batch; then there are at most "
            f"{MAX_TOGETHER:,} prompts, not {prompts:,}."
        )
    alone = single()
    chances = _numbers(_kept(alone), prompts)
    by_number = {n: alone if n == 1 else _of_batches(estimator, enumeration, n, method) for n in chances}
    for n, each in by_number.items():
        if each.kept is not None and abs(each.kept - _kept(alone) ** n) > KEPT:
            raise _by_others(estimator)
    return _mixture(by_number, chances, alone, prompts)


def _of_batches(estimator: Estimator, enumeration: Enumeration, prompts: int, method: str) -> Moments:
    """Of updates that lose none of their groups."""
    count = number_of_batches(enumeration, estimator.group_size, prompts)
    if method == "groups" or updates_first(estimator) or (method == "auto" and count <= FEW):
        return exact_moments(estimator, enumeration, prompts)
    try:
        return batch_class_moments(estimator, enumeration, prompts)
    except (Refused, TooLarge) as why:
        if method == "auto" and count <= MAX_BATCHES:
            return one_by_one(estimator, enumeration, why, prompts)
        name, size = type(estimator).__name__, f"{prompts} prompts and {estimator.group_size} responses to each"
        raise TooLarge(
            f"{name} has weights that depend on the whole batch, and batches of {size} cannot be certified by classes "
            f"of responses, because {why}; take fewer prompts, smaller groups or a smaller instance."
        ) from why


def one_by_one(estimator: Estimator, enumeration: Enumeration, why: Exception, prompts: int = 1) -> Moments:
    """The moments of all outcomes one by one, with the reason why they are not by classes."""
    found = exact_moments(estimator, enumeration, prompts)
    assert found.method is not None
    return replace(found, method=replace(found.method, instead=str(why)))


def _by_others(estimator: Estimator) -> TooLarge:
    return TooLarge(
        f"{type(estimator).__name__} leaves out groups by what the other groups of the batch are, so batches of all "
        "numbers of groups would have to be told apart; take --prompts 1, or decide on every group by itself."
    )


# --- each prompt by itself --------------------------------------------------------------------------------------------


class _Probe(ExactSampler):
    """Branches have rewards that do occur, the same ones in every batch that holds the group."""

    def _branches(self, rollouts, row, step, drawn, temperature):
        place = Branches(row, step, torch.zeros(row.shape, dtype=torch.float64))
        member = row % (rollouts.leaf.shape[-1] // self.groups.which_prompt.shape[-1])
        number = rollouts.leaf[:, row] * 7919 + step * 31 + member * 101 + occurrence(place)
        leaf = number % self.enumeration.tree.n_leaves
        reward = self.enumeration.response_reward[rollouts.which_prompt[:, row], leaf]
        spent = torch.zeros(drawn.shape, dtype=torch.float64)
        return TreeBranches(row, step, torch.where(drawn, reward, 0.0), tokens=spent)


def _apart(estimator: Estimator, enumeration: Enumeration, prompts: int) -> bool:
    """Are the weights of every group in a batch those that it has alone, divided by the number of groups, and are the
    same groups kept? Tried on thousands, drawn as they are and evenly from all, and on batches of equal ones."""
    generator, size = torch.Generator().manual_seed(0), estimator.group_size
    most = max(4, ENTRIES // (prompts * size * enumeration.tree.horizon))
    worlds = min(-(-TRIED // prompts), most)
    prompt, leaf = _some_groups(enumeration, worlds * prompts, size, generator)
    alone, kept, unit = _answers(estimator, enumeration, prompt[:, None], leaf)
    tolerance = UNITS * unit
    _, together, _ = _answers(estimator, enumeration, prompt.view(worlds, -1), leaf.view(worlds, -1))
    if not torch.equal(together.flatten(), kept.flatten()):
        raise _by_others(estimator)
    staying = kept[:, 0].nonzero()[:, 0]
    if not len(staying):
        return True
    for number in (
        {prompts} if len(staying) == len(leaf) else {2, 3, (prompts + 2) // 2, prompts} & set(range(prompts + 1))
    ):
        chosen = staying[torch.randint(len(staying), (worlds, number), generator=generator)]
        if len(staying) == len(leaf):
            chosen = torch.arange(len(leaf)).view(worlds, -1)
        chosen = torch.cat([chosen, chosen[: max(1, worlds // 8), :1].expand(-1, number)])
        weights, still, _ = _answers(estimator, enumeration, prompt[chosen], leaf[chosen].flatten(1))
        expected = alone[chosen].flatten(1, 2) / number
        if not still.all() or float((weights - expected).abs().max()) > tolerance * float(expected.abs().max()):
            return False
    return True


def _some_groups(
    enumeration: Enumeration, number: int, size: int, generator: torch.Generator
) -> tuple[Int[Tensor, " G"], Int[Tensor, "G K"]]:
    """Half of them drawn by the policy, half evenly, and in a quarter of them all responses are the same."""
    prompt = torch.randint(enumeration.n_prompts, (number,), generator=generator)
    leaf = torch.randint(enumeration.tree.n_leaves, (number, size), generator=generator)
    typical = torch.multinomial(enumeration.probability, number * size, replacement=True, generator=generator)
    drawn = typical.view(enumeration.n_prompts, number, size)[prompt, torch.arange(number)]
    kind = torch.randint(4, (number, 1), generator=generator)
    leaf = torch.where(kind < 2, drawn, leaf)
    return prompt, torch.where(kind == 3, leaf[:, :1], leaf)


def _answers(
    estimator: Estimator, enumeration: Enumeration, prompt: Int[Tensor, "W P"], leaf: Int[Tensor, "W B"]
) -> tuple[Float[Tensor, "W B T"], Bool[Tensor, "W P"], float]:
    """The weights of all tokens, which groups are kept, and the unit in the last place of what was computed in."""
    parts = max(1, ENTRIES // (leaf.shape[-1] * enumeration.tree.horizon))
    weights, kept, precision = [], [], Precision()
    for some, rows in zip(prompt.split(parts), leaf.split(parts)):
        probe = _Probe(enumeration, Groups(some, rows, torch.ones(len(rows), dtype=torch.float64)))
        sampler = Meter(probe)
        with precision:
            evidence = estimator.collect(sampler)
            weights.append(token_weights(estimator, evidence, enumeration, tuple(probe.weight.shape)))
        every = torch.ones(some.shape, dtype=torch.bool)
        kept.append(every if sampler.groups is None else sampler.groups.expand(some.shape))
    return torch.cat(weights), torch.cat(kept), torch.finfo(getattr(torch, precision.coarsest)).eps


def _mean_of_groups(single: Moments, prompts: int) -> Moments:
    """Of the mean of independent groups: E g as it is, tr Cov times E 1/N."""
    share = _mean_inverse(_kept(single), prompts)
    trace = single.trace_covariance * share
    method = single.method and replace(single.method, prompts=prompts, apart=True)
    return _spent(
        replace(
            single,
            trace_covariance=trace,
            root_mean_square=math.sqrt(trace + float(single.mean @ single.mean)),
            branch_noise=None if single.branch_noise is None else single.branch_noise * share,
            method=method,
        ),
        single,
        prompts,
    )


# --- groups that are left out -----------------------------------------------------------------------------------------


def _mixture(by_number: dict[int, Moments], chances: dict[int, float], single: Moments, prompts: int) -> Moments:
    """Over N, the number of groups that are kept, from the moments given each."""
    given = [(chances[n], n, by_number[n]) for n in sorted(by_number)]
    mean = torch.stack([chance * each.mean for chance, _, each in given]).sum(0)
    second = sum(chance * each.root_mean_square**2 for chance, _, each in given)
    noises, loud = [each.branch_noise for _, _, each in given], [each.with_signal for _, _, each in given]
    groups = sum(chance * n for chance, n, _ in given)
    methods = [each.method for _, n, each in given if each.method is not None and (n > 1 or len(given) == 1)]
    method = methods[-1] if methods else None
    if method is not None:
        states, tries = sum(each.states for each in methods), sum(each.tries for each in methods)
        method = replace(method, states=states, tries=tries, prompts=prompts)
    largest = given[-1][2]
    trace = max(second - float(mean @ mean), 0.0)
    return _spent(
        replace(
            largest,
            mean=mean,
            trace_covariance=largest.trace_covariance if len(given) == 1 else trace,
            root_mean_square=math.sqrt(second),
            branch_noise=_average([(c, x) for (c, _, _), x in zip(given, noises)]),
            weights=sum(chance * each.weights for chance, _, each in given),
            kept=single.kept,
            with_signal=_average([(c * n / groups, x) for (c, n, _), x in zip(given, loud)]),
            method=method,
        ),
        single,
        prompts,
    )


def _average(parts: list[tuple[float, float | None]]) -> float | None:
    known = [(chance, value) for chance, value in parts if value is not None]
    return sum(chance * value for chance, value in known) if len(known) == len(parts) else None


def _spent(moments: Moments, single: Moments, prompts: int) -> Moments:
    """With what a batch costs, drawn again as often as nothing of it is kept."""
    kept = _kept(single)
    batches = prompts * kept / _some_kept(kept, prompts)
    return replace(moments, tokens=single.tokens * batches, rewards=single.rewards * batches)


def _kept(single: Moments) -> float:
    return 1.0 if single.kept is None else min(single.kept, 1.0)


def _some_kept(kept: float, prompts: int) -> float:
    """P(N ≥ 1)."""
    return 1.0 if kept == 1 else -math.expm1(prompts * math.log1p(-kept))


def _numbers(kept: float, prompts: int) -> dict[int, float]:
    """P(N = n | N ≥ 1), where it is more than nothing."""
    if kept == 1:
        return {prompts: 1.0}
    some = _some_kept(kept, prompts)
    law = {n: math.comb(prompts, n) * kept**n * (1 - kept) ** (prompts - n) / some for n in range(1, prompts + 1)}
    return {n: chance for n, chance in law.items() if chance > 0}


def _mean_inverse(kept: float, prompts: int) -> float:
    """E[1/N | N ≥ 1] = Σₖ (q^(P-k) - q^P) / k / P(N ≥ 1), k = 1 … P, q the chance that a group is left out."""
    if kept == 1:
        return 1 / prompts
    log = math.log1p(-kept)
    terms = (math.exp((prompts - k) * log) * -math.expm1(k * log) / k for k in range(1, prompts + 1))
    return math.fsum(terms) / _some_kept(kept, prompts)
