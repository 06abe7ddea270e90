"""What a run knows of its own gradient while it trains: where the agent's expected gradient points, beside RLOO's.

RLOO's expected gradient is ∇J. At the policy as it is, before the update of a step,

    cosine_to_rloo = <E g, ∇J> / (|E g| |∇J|)            g: this agent's estimate from one group, penalties included

- On token MDPs whose groups can be enumerated it is exact (`llm_mdp.verify.certificate.exact_certificate`).
- On token MDPs whose responses can be enumerated ∇J is exact, and E g is estimated from drawn groups.
- Elsewhere groups of responses to the questions of the evaluation are drawn, and the agent and RLOO see the same ones
  (`llm_mdp_agents.measuring`): products of different groups' gradients are free of their noise. A group that the agent
  leaves out has weights of 0 there.

95 % intervals are by the bootstrap over groups (`llm_mdp.variance.sampled`). Where these say nothing there is no
figure: *undecided*. It costs a share of the run and changes nothing in it: all draws are of a stream of their own.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.values import has_signal
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.groups import number_of_groups
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.report.rows import number
from llm_mdp.sampling.policies import NgramPolicy, Policy, TabularPolicy
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.sampling.shared_draws import SharedDraws
from llm_mdp.variance.measurement import Measurement
from llm_mdp.variance.sampled import Estimates, sampled_measurement, tree_estimates
from llm_mdp.verify.certificate import Certificate, exact_certificate
from llm_mdp.verify.weights import flatten_gradients
from llm_mdp_agents.base import Agent
from llm_mdp_agents.measuring import estimates_on, joined_estimates
from llm_mdp_agents.models import is_large
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.sketch import Sketch
from llm_mdp_agents.training.parallel import Parallel, Sharded
from llm_mdp_agents.training.questions import EvalQuestions

COSINE, TOKENS = "cosine_to_rloo", "tokens_to_signal"
SAID = f"How well the agent's expected gradient points where RLOO's does ({COSINE})"
GROUPS, WITH_SIGNAL = "groups_measured", "groups_measured_with_signal"
FEWEST, MOST = 64, 512
"""Groups of one measurement."""
SINGLES = 4
"""Responses to a question where the agent draws one: RLOO sees them as a group, the agent one by one."""
COST_OF_SMALL, COST_OF_LARGE = 12.0, 1.5
"""Of a measured group over one that trains: it goes through the model alone, and back for RLOO too. Of small models and
tables this is most of the work, of large ones drawing is."""
RESPONSES = 2_000
"""Responses to all prompts together up to which they are enumerated."""
FEWEST_ON_TREE, MOST_ON_TREE = 256, 1024
"""Groups that are drawn where the responses are enumerated, all at once; each costs what one that trains does."""
MOST_WORLDS, MOST_STATES = 3_000, 20_000
"""Groups, and weights by class and state, up to which a certificate is exact."""
COST_OF_EXACT, COST_OF_RESPONSE, COST_OF_CLASSES = 256, 2, 1024
"""Of an exact certificate at least, of it by response that is enumerated, and at least where it goes by classes."""
STREAM = 11
"""Of the draws, beside those of training and evaluation."""
AGENT, REFERENCE = "agent", "rloo"


class OwnGradient:
    """Measures the gradient of an agent from time to time.

    Args:
        agent: as the trainer runs it.
        asked: the questions of the evaluation.
        share: most of the run that may go into it, 0 to 1; 0: nothing is measured.
        every: steps between measurements at least; 0: nothing is measured.
        seed: of the draws.
        rows_at_once: most responses that go through the model at once; None: a group.
    """

    def __init__(
        self, agent: Agent, policy: Policy, asked: EvalQuestions, parallel: Parallel, *, share: float, every: int,
        seed: int, rows_at_once: int | None = None,
    ):  # fmt: skip
        assert isinstance(policy, nn.Module)
        self.agent, self.policy, self.asked, self.parallel = agent, policy, asked, parallel
        self.share, self.every, self.seed, self.rows_at_once = share, every, seed, rows_at_once
        self.spent = 0.0
        """Groups that would have trained in the time, so far."""
        self.needed = 0
        """Groups that the latest measurement should have had to say something."""
        self.refused = False
        """Whether an exact certificate was tried in vain."""
        mdp = asked.task.mdp
        tables = isinstance(policy, TabularPolicy | NgramPolicy)
        self.on_tree = tables and mdp is not None and mdp.tree.n_leaves * len(mdp.prompts) <= RESPONSES
        self.why_not = None if self.on_tree else why_not(agent, policy, parallel)
        """Why nothing is measured; None: it is."""

    @property
    def state(self) -> dict[str, float]:
        """What decides when the next measurement comes."""
        return {"spent": self.spent, "needed": self.needed, "refused": self.refused}

    def restore(self, state: Mapping[str, float]) -> None:
        self.spent, self.needed, self.refused = state["spent"], int(state["needed"]), bool(state["refused"])

    @cached_property
    def cost(self) -> float:
        """Of a drawn group, in groups that train."""
        return 1.0 if self.on_tree else COST_OF_LARGE if is_large(self.policy) else COST_OF_SMALL

    @cached_property
    def exact_cost(self) -> float | None:
        """Of an exact certificate; None: it would take too long."""
        mdp = self.asked.task.mdp
        return None if mdp is None or not self.on_tree else cost_of_exact(Enumeration(mdp, self.policy), self.agent)

    def notice(self, prompts: int, steps: int) -> str | None:
        """Why a run of so many steps will have no figures, for people; None: it will, or nobody wants them."""
        if not self.share or not self.every or steps < self.every or self.agent.name == REFERENCE:
            return None
        if self.why_not is not None:
            return f"{SAID} is not measured: {self.why_not}."
        affordable = self.share * prompts * (steps // self.every) * self.every
        least = (FEWEST_ON_TREE if self.on_tree else FEWEST) * self.cost if self.exact_cost is None else self.exact_cost
        if affordable >= least:
            return None
        share = f"{self.share:.0%} of this run (measure_share)"
        enough = f"; {least / affordable * self.share:.0%} would do" if 0 < least * self.share <= affordable else ""
        return f"{SAID} is not measured: it takes more than {share}{enough}."

    def figures(self, step: int, prompts: int) -> dict[str, float]:
        """The figures before the update of a step, where it is time for them; {}: it is not.

        - cosine_to_rloo, with cosine_to_rloo_low and …_high where groups are drawn; only the interval where that is
          wider than 1, and neither where too few groups have a gradient
        - tokens_to_signal, with _low and _high: tokens at which the noise of the agent's estimate equals its signal
        - groups_measured: how many groups were drawn; 0: all were enumerated
        - groups_measured_with_signal: the share of these whose weights are not all 0, of the enumerated ones exactly

        Args:
            prompts: groups of a batch, over all processes.
        """
        if self.why_not is not None or not self.share or not self.every or step % self.every:
            return {}
        left = self.share * step * prompts - self.spent
        fewest, most = (FEWEST_ON_TREE, MOST_ON_TREE) if self.on_tree else (FEWEST, MOST)
        groups, exact = min(int(left / self.cost), most), None if self.refused else self.exact_cost
        if left < exact if exact is not None else groups < min(max(fewest, self.needed), most):
            return {}
        self.spent += groups * self.cost if exact is None else exact
        try:
            with undisturbed(self.agent):
                return self._on_tree(step, groups) if self.on_tree else self._sampled(step, groups, prompts)
        except (TooLarge, ValueError) as error:
            self.why_not = str(error)
            warnings.warn(f"the gradient of {self.agent.name} is not measured: {error}", stacklevel=2)
            return {}

    def _on_tree(self, step: int, groups: int) -> dict[str, float]:
        mdp = self.asked.task.mdp
        assert mdp is not None
        enumeration, gradient = Enumeration(mdp, self.policy), exact_gradient(self.policy, mdp)[1]
        target = flatten_gradients(gradient, gradient)
        # An Agent has an estimator's three methods, which is all that verification asks for.
        agent: Estimator = self.agent  # pyright: ignore[reportAssignmentType]
        try:
            if not self.refused and self.exact_cost is not None:
                return _figures_of(exact_certificate(agent, enumeration, target))
        except TooLarge:
            self.refused = True
        except NothingKept:
            return {GROUPS: 0.0, WITH_SIGNAL: 0.0}
        seed = int(streams([self.seed, STREAM, step])[0].initial_seed())
        try:
            own = tree_estimates(agent, enumeration, groups, seed)
        except NothingKept:
            return {GROUPS: float(groups), WITH_SIGNAL: 0.0}
        told = len(own.square) / groups * float((own.square > 0).double().mean())
        return {GROUPS: float(groups), WITH_SIGNAL: told} | self._said(sampled_measurement(own, target))

    def _sampled(self, step: int, groups: int, prompts: int) -> dict[str, float]:
        size, task, questions = self.parallel.size, self.asked.task, self.asked.questions
        generator, which = streams([self.seed, STREAM, step, self.parallel.rank])
        largest = self.agent.group_size if self.agent.group_size > 1 else SINGLES
        # An Agent has an estimator's three methods, which is all that is asked for.
        agent: Estimator = self.agent  # pyright: ignore[reportAssignmentType]
        estimators = {AGENT: agent, REFERENCE: RLOO(group_size=largest)}
        sketch = Sketch([each for each in self.policy.parameters() if each.requires_grad], self.seed)  # pyright: ignore[reportAttributeAccessIssue]
        left, at_once = max(groups // size, 1), max(prompts // size, 1)
        parts: list[dict[str, Estimates]] = []
        signal: list[torch.Tensor] = []
        while left:
            here = min(left, at_once)
            sampler = TaskSampler(
                self.policy, task, generator, which, here, self.rows_at_once,
                ask=lambda random, n: [questions[place] for place in random.integers(len(questions), size=n)],
            )  # fmt: skip
            draws = SharedDraws(sampler, largest)
            parts.append(estimates_on(draws, estimators, self.policy, sketch, self.rows_at_once, choosy=True))
            signal.append(has_signal(draws.reward, largest))
            left -= here
        gathered = self.parallel.everyone((parts, signal))
        every = [part for several, _ in gathered for part in several]
        told = torch.cat([each for _, several in gathered for each in several])
        own, reference = (joined_estimates([part[name] for part in every]) for name in (AGENT, REFERENCE))
        found = sampled_measurement(own, reference=reference)
        return {GROUPS: float(len(told)), WITH_SIGNAL: float(told.double().mean())} | self._said(found)

    def _said(self, found: Measurement) -> dict[str, float]:
        """What the intervals bear."""
        if found.too_few is not None:
            self.needed = found.too_few.needed
            return {}
        (low, high), tokens = found.interval("cosine") or (-1.0, 1.0), found.interval(TOKENS) or (0.0, math.inf)
        figures = {f"{COSINE}_low": low, f"{COSINE}_high": high, TOKENS: found.spread.tokens_to_signal}
        figures |= {f"{TOKENS}_low": tokens[0], f"{TOKENS}_high": tokens[1]}
        if high - low <= 1:
            figures[COSINE] = min(max(found.spread.cosine, low), high)
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def cost_of_exact(enumeration: Enumeration, agent: Agent) -> float | None:
    """Of an exact certificate, in groups that train, about; None: it takes longer than one would wait for.

    It goes over all groups, where they are few, or over classes of responses and what a weight depends on: how often
    each reward occurs among the others of a group, and their tokens.
    """
    leaves, prompts, size = enumeration.tree.n_leaves, enumeration.n_prompts, agent.group_size
    least = COST_OF_RESPONSE * leaves * prompts
    if number_of_groups(enumeration, size) <= MOST_WORLDS:
        return max(COST_OF_EXACT, least)
    horizon, others, states = enumeration.tree.horizon, size - 1, 0
    for rewards in enumeration.response_reward:
        different = len(rewards.unique())
        states += different * horizon * math.comb(others + different - 1, different - 1) * (others * (horizon - 1) + 1)
    return max(COST_OF_CLASSES, least) if states <= MOST_STATES else None


def _figures_of(found: Certificate) -> dict[str, float]:
    known = {COSINE: found.cosine, TOKENS: found.tokens_to_signal, GROUPS: 0.0}
    if found.kept is not None and found.with_signal is not None:
        known[WITH_SIGNAL] = found.kept * found.with_signal
    return {name: value for name, value in known.items() if value is not None and math.isfinite(value)}


def why_not(agent: Agent, policy: Policy, parallel: Parallel) -> str | None:
    """Why an agent's gradient is not measured by draws; None: it can be."""
    if isinstance(parallel, Sharded):
        return "the policy is split over processes, and gradients of single groups need it whole"
    if agent.behaviour is not policy:
        return (
            f"{agent.name} learns from responses of another policy than the one that trains, so RLOO cannot look at "
            f"the same ones"
        )
    return None


def gradient_words(metrics: Sequence[Mapping[str, Any]]) -> str:
    """What the latest measurement says, in one sentence; nothing where there is none."""
    found = next((each for each in reversed(metrics) if each.get(GROUPS) is not None), None)
    if found is None:
        return ""
    groups = int(found[GROUPS])
    if not groups:
        known = found.get(COSINE)
        said = "is exactly zero" if known is None else f"has cosine {number(known)} to RLOO's, exactly"
        return f"At step {found['step']} the agent's expected gradient {said}."
    of = f"{groups:,} groups were drawn, {found[WITH_SIGNAL]:.0%} of them with a signal"
    low, high = found.get(f"{COSINE}_low"), found.get(f"{COSINE}_high")
    if low is None or high is None:
        said = f"is undecided, for its noise hides it: {of}"
    elif found.get(COSINE) is None:
        said = f"is undecided: {number(low)} to {number(high)} with 95 % confidence ({of})"
    else:
        said = f"is {number(found[COSINE])}, {number(low)} to {number(high)} with 95 % confidence ({of})"
    return f"At step {found['step']} the cosine of the agent's expected gradient to RLOO's {said}."


@contextmanager
def undisturbed(agent: Agent) -> Iterator[None]:
    """The agent draws and tells for somebody else, and is then as before."""
    state, told, numbers = agent.generator.get_state(), agent.told, dict(agent.numbers)
    waiting, agent.waiting = agent.waiting, {}
    try:
        yield
    finally:
        agent.generator.set_state(state)
        agent.told, agent.numbers, agent.waiting = told, numbers, waiting
