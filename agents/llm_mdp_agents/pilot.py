"""The pilot of a budget: how large it may be, what it tries, and what becomes of its draws.

A pilot draws some prompts before training, tries the ways to split a budget on them (`measuring.pilot_allocation`), and
takes the best. It may cost a share of the run: that share of the tokens that the run will draw, in tokens that are
drawn for the pilot and half of those that are read backward for a gradient. (Of the work that the run has with a token,
about one pass to draw it, one to score it and two to go back, that is half.) Where this is not enough to try everything
it tries less, and where it is not enough for `LEAST_PROMPTS` prompts there is no pilot and the budget is spent on RLOO.

Its draws can be the first batch, if the choice is a part of what was drawn. That batch decided on the choice, so its
gradient alone is not exactly unbiased given the choice; every later one is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts, join, take_rows
from llm_mdp.sampling.policies import Policy
from llm_mdp.sampling.sampler import BatchSampler, Sampler, SamplerAround
from llm_mdp.sampling.shared_draws import SharedDraws
from llm_mdp.variance.allocation import Split, even_cuts, few_cuts
from llm_mdp_agents.measuring import PILOT_BRANCHES, NoSignal, pilot_allocation

LEAST_PROMPTS = 8
"""Fewest prompts of a pilot."""
BACKWARD = 0.5
"""What a token counts that is read backward, beside one that is drawn."""
LOOKED_AT = 2
"""Prompts whose responses say how long responses are, where that decides what is tried."""


@dataclass(frozen=True)
class Menu:
    """The splits that a pilot tries."""

    group_sizes: tuple[int, ...]
    lams: tuple[float, ...]
    cuts: Callable[[int], list[tuple[int, ...]]]
    """Of a horizon."""

    def cost(self, length: Int[Tensor, " N"], prompt_length: float, horizon: int) -> float:
        """Tokens of a prompt, drawn and read backward, where responses have these lengths: a pass goes back from every
        segment between two cuts of a response (`llm_mdp_agents.gradient_basis`)."""
        places, largest = sorted({step for steps in self.cuts(horizon) for step in steps}), max(self.group_sizes)
        left = (length[:, None] - torch.tensor(places, dtype=torch.int64)).clamp(min=0)
        response, segments = float(length.double().mean()), 1 + float((left > 0).sum(-1).double().mean())
        backward = segments * (response + prompt_length)
        return largest * (response + PILOT_BRANCHES * float(left.sum(-1).double().mean()) + BACKWARD * backward)


MENUS = (
    Menu((2, 4, 8), (0.0, 0.5), few_cuts),
    Menu((2, 8), (0.0,), lambda horizon: list(dict.fromkeys(even_cuts(horizon, parts) for parts in (1, 2, 4)))),
)
"""What is tried, the most first. All draw groups of the same size."""
DRAWN = 8
"""Responses to a prompt of a pilot."""


@dataclass(frozen=True)
class Pilot:
    """What came of it."""

    split: Split
    samples: int
    prompts: int
    words: str
    """What was chosen, and why, a sentence."""
    tokens: float = 0.0
    """Its cost."""
    tried: int = 0
    """Prompts of the pilot."""
    waiting: dict[str, Tensor] = field(default_factory=dict)
    """The first batch, see `packed`; {}: it has to be drawn."""


def run_pilot(
    budget: float,
    policy: Policy,
    sampler: BatchSampler,
    horizon: int,
    *,
    most_prompts: int,
    most_tokens: float = math.inf,
    prompts_at_once: int | None = None,
    seed: int = 0,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Pilot:
    """Choose how a budget is split.

    Args:
        most_prompts: the pilot has no more.
        most_tokens: nor does it cost more, but for the last `prompts_at_once`.
        report: told how many prompts are done, and of how many.

    Raises:
        ValueError: if the budget does not afford one group.
    """
    menu, prompts, spent, length = planned(sampler, horizon, most_prompts, most_tokens)
    if menu is None:
        why = (
            f"without a pilot, for {LEAST_PROMPTS} prompts of one cost more than the {most_tokens:,.0f} tokens that it "
            "may (option pilot_share)"
        )
        return _unpiloted(budget, length, why, spent)
    pilot_cost, draws = [spent], []

    def batches() -> Iterator[SharedDraws]:
        done, each = 0, prompts_at_once or prompts
        while done < prompts:
            sampler.prompts_per_batch = min(each, prompts - done)
            draws.append(SharedDraws(sampler, DRAWN))
            yield draws[-1]
            done += sampler.prompts_per_batch
            here = draws[-1].batch
            read = menu.cost(here.length, float((here.prompt >= 0).sum(-1).double().mean()), horizon)
            pilot_cost.append(sampler.prompts_per_batch * read)
            report(done, prompts)
            average = sum(pilot_cost) / done
            if sum(pilot_cost) + each * average > most_tokens:
                return

    try:
        found = pilot_allocation(
            budget, policy, sampler, horizon, group_sizes=menu.group_sizes, cuts=menu.cuts(horizon), lams=menu.lams,
            seed=seed, batches=batches(),
        )  # fmt: skip
    except NoSignal:
        length = torch.cat([each.batch.length for each in draws])
        tried = len(length) // DRAWN
        why = f"for no two of the {DRAWN} responses to any of {tried} prompts of a pilot differ in reward"
        return _unpiloted(budget, float(length.double().mean()), why, sum(pilot_cost), tried)
    tried = sum(len(each.reward) for each in draws) // DRAWN
    chosen = Pilot(found.split, found.samples, found.prompts, found.words, sum(pilot_cost), tried)
    return _with_first_batch(chosen, draws)


def planned(
    sampler: BatchSampler, horizon: int, most_prompts: int, most_tokens: float
) -> tuple[Menu | None, int, float, float]:
    """What to try and on how many prompts; what it took to know that, and the mean length of a response.

    Responses are taken to be as long as they may be; only where not everything can be tried then are some drawn.
    """
    length, prompt_length, spent = torch.tensor([horizon]), 0.0, 0.0
    if MENUS[0].cost(length, float(horizon), horizon) * most_prompts <= most_tokens:
        return MENUS[0], most_prompts, spent, float(horizon)
    if LOOKED_AT * DRAWN * horizon <= most_tokens:
        sampler.prompts_per_batch = LOOKED_AT
        seen = sampler.rollouts(DRAWN)
        length, prompt_length = seen.length, float((seen.prompt >= 0).sum(-1).double().mean())
        spent = float(length.sum())
    mean = float(length.double().mean())
    affordable = [
        (menu, min(most_prompts, int((most_tokens - spent) // menu.cost(length, prompt_length, horizon))))
        for menu in MENUS
    ]
    # The one that affords about as many prompts as there may be, else the one that affords most of them.
    menu, prompts = next(
        (pair for pair in affordable if 2 * pair[1] >= most_prompts), max(affordable, key=lambda pair: pair[1])
    )
    return (menu if prompts >= min(LEAST_PROMPTS, most_prompts) else None), prompts, spent, mean


def _unpiloted(budget: float, length: float, why: str, tokens: float, tried: int = 0) -> Pilot:
    """RLOO, with groups as large as leave at least two of them."""
    if 2 * length > budget:
        raise ValueError(
            f"a budget of {budget:g} tokens is too small: the cheapest group costs {2 * length:.1f} tokens on average; "
            "raise it."
        )
    size = next((size for size in (8, 4) if 2 * size * length <= budget), 2)
    prompts = int(budget // (size * length))
    split = Split(size, (), 0.0)
    return Pilot(split, 1, prompts, f"{split.words(prompts, 1)}, {why}", tokens, tried)


def _with_first_batch(pilot: Pilot, draws: Sequence[SharedDraws]) -> Pilot:
    """The pilot with its first batch: the groups that it drew, those to different prompts first."""
    size, branches = pilot.split.group_size, pilot.samples
    if pilot.split.steps and branches > PILOT_BRANCHES:
        why = f"its draws are not used again, for they have {PILOT_BRANCHES} branches from a cut and not {branches}"
        return replace(pilot, words=f"{pilot.words}; {why}")
    estimator, parts = pilot.split.estimator(branches), []
    for part in range(DRAWN // size):
        for replay in draws:
            replay.part = part
            parts.append(estimator.collect(replay))
    whole = join(parts)
    groups = min(len(whole.response_reward) // size, pilot.prompts)
    words = f"{pilot.words}; {groups} groups of the first batch are the pilot's own"
    return replace(pilot, words=words, waiting=packed(take_rows(whole, torch.arange(groups * size))))


# --- a batch that waits -----------------------------------------------------------------------------------------------

ROLLOUTS = ("prompt", "tokens", "mask", "logp", "finish")
BRANCHES = ("row", "step", "reward", "tokens")


def packed(evidence: Evidence) -> dict[str, Tensor]:
    """Responses, rewards and branches as tensors by name, for a checkpoint."""
    tensors = {name: getattr(evidence.rollouts, name) for name in ROLLOUTS}
    tensors["response_reward"] = evidence.response_reward
    if evidence.branches is not None:
        tensors |= {f"branches.{name}": getattr(evidence.branches, name) for name in BRANCHES}
    return tensors


def unpacked(tensors: dict[str, Tensor]) -> Evidence:
    """What was packed."""
    rollouts = Rollouts(**{name: tensors[name] for name in ROLLOUTS})
    branches = None
    if "branches.row" in tensors:
        branches = Branches(**{name: tensors[f"branches.{name}"] for name in BRANCHES})
    return Evidence(rollouts, tensors["response_reward"], branches=branches)


class Waiting(SamplerAround):
    """Another sampler whose next batch is drawn already, by an estimator that asks for the same again."""

    def __init__(self, sampler: Sampler, evidence: Evidence):
        super().__init__(sampler)
        self.evidence = evidence

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        return self.evidence.rollouts

    def response_reward(self, rollouts: Rollouts) -> Tensor:
        return self.evidence.response_reward

    def branches(self, rollouts, boundary, temperatures=(1.0,)) -> Branches:
        assert self.evidence.branches is not None
        return self.evidence.branches
