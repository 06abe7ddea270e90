"""A plain function as an `Estimator`: of a batch (a loss, or advantages), or of the rewards alone.

Functions know no worlds. All worlds at once, every group with a number of its own, give what each gives alone only if
nothing but the group couples rows: this is tried, on worlds drawn in several ways, and otherwise worlds are asked for
one by one.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.audit.batch import PARTS, Batch, Needs, batch_of
from llm_mdp.audit.double import in_double
from llm_mdp.estimators.algorithms import first_token
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.objectives import policy_gradient
from llm_mdp.exact.groups import Groups
from llm_mdp.exact.worlds import ExactSampler
from llm_mdp.own import place_in_own_code, visible
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import Critic, Policy
from llm_mdp.sampling.sampler import Sampler
from llm_mdp.verify.problem import Problem
from llm_mdp.verify.weights import EstimatorError, NotFinite, loss_weights

Gives = Literal["loss", "advantages"]
FIRST = 6
"""Worlds that are tried before the rest."""
ROWS = 4_096
"""Rows of one call, where worlds can be together; the time of some functions grows with their square."""
TRIED = 24
"""Worlds on which it is tried whether all of them can be in one call."""


@dataclass(frozen=True, kw_only=True)
class FunctionEstimator(Estimator):
    """What a function gives, as an estimator; made by `loss_of`, `advantages_of` and `rewards_of`."""

    whole_batch = True

    function: Callable[[Batch], Any] = lambda batch: batch.response_reward
    gives: Gives = "advantages"
    """"loss": one number that a trainer minimises; "advantages": one weight a response or token, taken under the sum
    over tokens and the mean over responses."""
    name: str = "function"
    needs: tuple[str, ...] = ()
    """Optional parts of the batch that it reads."""
    reference: Policy | None = None
    critic: Critic | None = None
    together: bool = False
    """Are all worlds in one call? Otherwise one by one."""

    def collect(self, sampler: Sampler) -> Evidence:
        rollouts = sampler.rollouts(self.group_size)
        parts: dict[str, Any] = {}
        if "reference_logp" in self.needs and self.reference is not None:
            parts["reference_logp"] = sampler.logp(self.reference, rollouts)
        if "value" in self.needs and self.critic is not None:
            parts["value"] = sampler.value(self.critic, rollouts)
        if "greedy_reward" in self.needs:
            parts["branches"] = sampler.branches(rollouts, first_token(rollouts.mask), (0.0,))
        return Evidence(rollouts, sampler.response_reward(rollouts), **parts)

    def advantages(self, evidence: Evidence) -> Float[Tensor, "*worlds B T"]:
        """What the function gives, one weight a token.

        Raises:
            EstimatorError: it gives a loss, or nothing that is one weight a response or token.
        """
        if self.gives == "loss":
            raise EstimatorError(f"{self.name} gives a loss, which has no advantages; ask for its gradient.")
        logp, size = evidence.rollouts.logp.detach(), evidence.rollouts.mask.shape
        every = [self._advantages(batch) for batch in self.batches(evidence, logp)]
        return torch.cat(every).view(size)

    def loss(self, logp: Float[Tensor, "*worlds B T"], evidence: Evidence) -> Float[Tensor, "*worlds"]:
        """One number a world. Worlds in one call all get their mean: the derivatives of the sum are those of the
        worlds."""
        worlds, rows = logp.shape[:-2], logp.shape[-2]
        losses = []
        for batch in self.batches(evidence, logp):
            number = len(batch.logp) // rows
            losses.append(self.scalar(batch).expand(number))
        # A world without signal may have a loss that does not depend on logp.
        return torch.cat(losses).reshape(worlds) + 0.0 * logp.sum()

    def batches(self, evidence: Evidence, logp: Tensor) -> Iterator[Batch]:
        """What the function is called with: some thousand rows at once, or each world."""
        whole, rows = batch_of(evidence, logp, self.group_size), logp.shape[-2]
        return whole.worlds(rows * max(1, ROWS // rows) if self.together else rows)

    def scalar(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of one call, what it gives or what its advantages make."""
        if self.gives == "advantages":
            logp, mask = batch.logp, batch.mask.clone()
            return policy_gradient(logp, self._advantages(replace(batch, logp=logp.detach().clone())), mask)
        answer = call(self.function, batch, self.name)
        if not isinstance(answer, Tensor) or answer.dim() != 0:
            raise EstimatorError(
                f"{self.name} returned {described(answer)}; a loss is a tensor of one number, shape ()."
            )
        return answer.double()

    def _advantages(self, batch: Batch) -> Float[Tensor, "B T"]:
        # The function may change its batch in place.
        mask, reward = batch.mask.clone(), batch.response_reward.clone()
        weights = per_token(call(self.function, batch, self.name), mask.shape, self.group_size, self.name)
        bad = ~torch.isfinite(weights) & mask
        if bad.any():
            row = int(bad.any(-1).nonzero()[0])
            group = reward.view(-1, self.group_size)[row // self.group_size]
            raise EstimatorError(
                f"{self.name} gives {weights[bad][0].item()} for the rewards {rounded(group)} of a group; look for a "
                "division by a zero std or length."
            )
        return weights


@dataclass(frozen=True)
class OfRewards:
    """A function of rewards (P, K) as one of a batch."""

    function: Callable[[Float[Tensor, "P K"]], Any]
    name: str

    def __call__(self, batch: Batch) -> Tensor:
        rewards = batch.response_reward.view(-1, batch.group_size)
        shape = tuple(rewards.shape)
        answer = call(self.function, rewards.clone(), self.name)
        given = tensor_of(answer)
        if given is None or tuple(given.shape) != shape:
            raise EstimatorError(
                f"{self.name} returned {described(answer)} for rewards of shape (P, K) = {shape}; return one advantage "
                "for each, of the same shape."
            )
        return given.flatten()


def call(function: Callable[[Any], Any], argument: Any, name: str) -> Any:
    """function(argument) in double precision.

    Raises:
        EstimatorError: what it raised, in one sentence, with the place in the user's file.
        Needs: it reads what was not collected.
    """
    try:
        with in_double():
            return function(argument)
    except (Needs, EstimatorError):
        raise
    except Exception as error:
        place = place_in_own_code(error)
        where = f" ({place})" if place else ""
        said = visible(str(error)).split("\n")[0]
        raise EstimatorError(f"{name} raised {type(error).__name__}{where}: {said}") from error


def tensor_of(answer: Any) -> Tensor | None:
    """Numbers in a tensor of floating point, without gradient; None: there are none."""
    if isinstance(answer, np.ndarray) and answer.dtype.kind in "fiub":
        answer = torch.from_numpy(np.ascontiguousarray(answer))
    if not isinstance(answer, Tensor) or answer.is_complex():
        return None
    return answer.detach().to("cpu", answer.dtype if answer.is_floating_point() else torch.float64, copy=True)


def per_token(answer: Any, shape: Sequence[int], group_size: int, name: str) -> Float[Tensor, "B T"]:
    """Advantages of any shape that has one meaning: (B, T), (B, 1), (B,) or (P, K).

    Raises:
        EstimatorError: they have another shape, or are no numbers.
    """
    rows, width = shape
    given = tensor_of(answer)
    if given is not None:
        if tuple(given.shape) in ((rows, width), (rows, 1)):
            return given.expand(rows, width).double()
        if tuple(given.shape) in ((rows,), (rows // group_size, group_size)):
            return given.reshape(rows, 1).expand(rows, width).double()
    raise EstimatorError(
        f"{name} returned {described(answer)} for B = {rows} responses of at most T = {width} tokens; return "
        "advantages of shape (B, T) or (B,), or a loss of shape ()."
    )


def described(answer: Any) -> str:
    """An answer in a few words."""
    if isinstance(answer, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(answer, Tensor) else "an array"
        return f"{kind} of shape {tuple(answer.shape)} and dtype {str(answer.dtype).removeprefix('torch.')}"
    if isinstance(answer, bool | int | float | type(None)):
        return repr(answer)
    return f"a {type(answer).__name__}"


def rounded(rewards: Tensor) -> list[float]:
    """Rewards as they are shown in a sentence."""
    return [float(f"{reward:.4g}") for reward in rewards.tolist()]


# --- made from functions ----------------------------------------------------------------------------------------------


def loss_of(
    function: Callable[[Batch], Tensor], problem: Problem, *, name: str | None = None, group_size: int | None = None
) -> FunctionEstimator:
    """function(batch) -> a scalar loss that a trainer minimises, as an estimator.

    Args: problem: where it is tried, with the reference policy, the (wrong) critic and the K that it gets.

    Raises:
        EstimatorError: it raises, gives no scalar, gives two answers to the same batch, or ignores log π.
    """
    return _settled(function, problem, "loss", name, group_size)


def advantages_of(
    function: Callable[[Batch], Any], problem: Problem, *, name: str | None = None, group_size: int | None = None
) -> FunctionEstimator:
    """function(batch) -> advantages (B, T), (B,), (B, 1) or (P, K), taken under the sum over tokens and the mean over
    responses: g = (1/B) Σ_b Σₜ A_bt ∇log π(w_bt | …).

    Raises:
        EstimatorError: as for `loss_of`.
    """
    return _settled(function, problem, "advantages", name, group_size)


def rewards_of(
    function: Callable[[Float[Tensor, "P K"]], Any],
    problem: Problem,
    *,
    name: str | None = None,
    group_size: int | None = None,
) -> FunctionEstimator:
    """function(rewards (P, K)) -> advantages of that shape, taken under the sum.

    Raises:
        EstimatorError: as for `loss_of`.
    """
    name = name_of(function) if name is None else name
    return _settled(OfRewards(function, name), problem, "advantages", name, group_size)


def name_of(function: Any) -> str:
    """What a function is called, where it has a name."""
    inner = getattr(function, "func", function)
    return visible(getattr(inner, "__name__", type(inner).__name__))


def sample_batch(problem: Problem, group_size: int | None = None) -> Batch:
    """The batch of some group, with every optional part."""
    estimator = _raw(OfRewards(lambda rewards: rewards, ""), problem, "advantages", "", group_size)
    evidence = some_worlds(replace(estimator, needs=PARTS), problem, 1)
    return batch_of(evidence, evidence.rollouts.logp.clone().requires_grad_(), estimator.group_size)


def _raw(
    function: Callable[[Batch], Any], problem: Problem, gives: Gives, name: str | None, group_size: int | None
) -> FunctionEstimator:
    return FunctionEstimator(
        group_size=problem.group_size if group_size is None else group_size,
        function=function,
        gives=gives,
        name=name_of(function) if name is None else name,
        reference=problem.instance.reference,
        critic=problem.instance.value,
    )


def _settled(
    function: Callable[[Batch], Any], problem: Problem, gives: Gives, name: str | None, group_size: int | None
) -> FunctionEstimator:
    """Tried: what it reads, that it gives one answer, and whether worlds can be together."""
    estimator = _raw(function, problem, gives, name, group_size)
    while True:
        try:
            _weights(estimator, problem, FIRST, 1)
            alone = _weights(estimator, problem, TRIED, 1)
            break
        except Needs as part:
            if str(part) in estimator.needs:
                raise EstimatorError(f"{estimator.name} reads {part}, which this instance does not have.") from part
            estimator = replace(estimator, needs=(*estimator.needs, str(part)))
    if not _depends_on_logp(estimator, problem):
        raise EstimatorError(
            f"{estimator.name} returns a loss that does not depend on batch.logp; compute it from batch.logp, or "
            "return advantages of shape (B, T) or (B,)."
        )
    with _other_random_numbers():
        again = _weights(estimator, problem, TRIED, 1)
    if not torch.allclose(alone, again, rtol=1e-12, atol=0.0):
        raise EstimatorError(
            f"{estimator.name} gave two answers to the same batch; it draws random numbers of its own or remembers "
            "earlier calls, so it has no exact expectation."
        )
    candidate = replace(estimator, together=True)
    try:
        if not _agree(alone, _weights(candidate, problem, TRIED, 1)):
            return estimator
        two_prompts = (_weights(each, problem, FIRST, 2) for each in (estimator, candidate))
        return candidate if _agree(*two_prompts) else estimator
    except EstimatorError:
        return estimator


def _agree(alone: Tensor, together: Tensor) -> bool:
    return torch.allclose(alone, together, rtol=1e-10, atol=1e-13 * float(alone.abs().max()))


def _weights(estimator: FunctionEstimator, problem: Problem, worlds: int, prompts: int) -> Tensor:
    """What all tokens of some worlds weigh."""
    evidence = some_worlds(estimator, problem, worlds, prompts)
    try:
        return loss_weights(estimator, evidence, evidence.rollouts.logp)
    except NotFinite as error:
        raise EstimatorError(f"{estimator.name}: {error}") from error


def _depends_on_logp(estimator: FunctionEstimator, problem: Problem) -> bool:
    """Does the loss of some world have a derivative by log π, be it zero?"""
    evidence = some_worlds(estimator, problem, FIRST, 1)
    logp = evidence.rollouts.logp.clone().requires_grad_()
    return any(estimator.scalar(batch).requires_grad for batch in estimator.batches(evidence, logp))


def some_worlds(estimator: FunctionEstimator, problem: Problem, worlds: int, prompts: int = 1) -> Evidence:
    """Evidence of so many worlds, of six kinds in turn: drawn evenly; by the policy; all responses equal; none of the
    longest; of the worse half; of the better half. The last three show what a maximum over the batch does."""
    e, generator = problem.enumeration, torch.Generator().manual_seed(worlds + prompts)
    rows = prompts * estimator.group_size
    prompt = torch.randint(e.n_prompts, (worlds, prompts), generator=generator)
    which = prompt.repeat_interleave(estimator.group_size, -1)
    leaf = torch.randint(e.tree.n_leaves, (worlds, rows), generator=generator)
    drawn = torch.multinomial(e.probability[which.flatten()], 1, replacement=True, generator=generator)
    by_length, by_reward = e.length.argsort(stable=True), e.response_reward.argsort(dim=-1, stable=True)[which]
    shorter, half = int((e.length < e.length.max()).sum()), e.tree.n_leaves // 2
    kinds = (
        drawn.view(worlds, rows),
        leaf[:, :1].expand(-1, rows),
        by_length[leaf % max(shorter, 1)],
        by_reward.gather(-1, (leaf % max(half, 1))[..., None])[..., 0],
        by_reward.gather(-1, (half + leaf % (e.tree.n_leaves - half))[..., None])[..., 0],
    )
    for number, these in enumerate(kinds, 1):
        leaf = torch.where(torch.arange(worlds)[:, None] % 6 == number, these, leaf)
    sampler = ExactSampler(e, Groups(prompt, leaf, torch.ones(worlds, dtype=torch.float64)))
    return estimator.collect(sampler)


@contextmanager
def _other_random_numbers() -> Iterator[None]:
    """Another state of every global generator, and afterwards the one before."""
    # NumPy's old global generator is the one that a library would draw from unseen.
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    torch.manual_seed(2001)
    np.random.seed(2001)  # noqa: NPY002
    random.seed(2001)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])
