"""Worlds: the samplers that live on an enumeration. A *world* is one joint outcome of everything random in an update.

`ExactSampler` returns every outcome as a world with its probability; `TreeSampler` draws worlds, fast. An agent's
`collect` cannot tell them from the sampler it trains with.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.groups import MAX_WORLDS, Groups
from llm_mdp.sampling.evidence import Branches, Evidence, Rollouts
from llm_mdp.sampling.policies import Critic, Policy, draw_tokens
from llm_mdp.sampling.sampler import check_temperatures

GUIDE = 16
"""Entries of a guide table for every response."""
LARGEST_GUIDE = 16
"""Binary logarithm of the most entries: half a megabyte, which stays in a processor's cache."""
UNSURE = -1
"""The entry of an interval in which a response begins."""


@dataclass(frozen=True)
class TreeRollouts(Rollouts):
    """Rollouts that remember which leaf of the enumeration each row is."""

    leaf: Int[Tensor, "W B"]
    which_prompt: Int[Tensor, "W B"]

    @classmethod
    def of(
        cls,
        enumeration: Enumeration,
        leaf_logp: Float[Tensor, "P N T"],
        which_prompt: Int[Tensor, "W B"],
        leaf: Int[Tensor, "W B"],
    ) -> "TreeRollouts":
        """These responses to these prompts, whose tokens have those log-probabilities. What most estimators do not read
        is looked up when it is asked for."""
        e, rollouts = enumeration, object.__new__(cls)
        later = {
            "prompt": lambda: e.prompt[which_prompt],
            "tokens": lambda: _take(e.tokens, leaf),
            "mask": lambda: _take(e.mask, leaf),
            "logp": lambda: _take(leaf_logp.flatten(0, 1), which_prompt * e.tree.n_leaves + leaf),
            "finish": lambda: e.finish[leaf],
        }
        rollouts.__dict__.update(leaf=leaf, which_prompt=which_prompt, _later=later, _length=e.length)
        return rollouts

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("_") or name not in self.__dict__.get("_later", {}):
            raise AttributeError(f"{type(self).__name__} has no {name!r}.")
        self.__dict__[name] = self.__dict__["_later"].pop(name)()
        return self.__dict__[name]

    @property
    def as_drawn(self) -> bool:
        """Is it what a sampler gave, and not a copy in which something was replaced?"""
        return "_length" in self.__dict__

    @property
    def length(self) -> Int[Tensor, "W B"]:
        lengths = self.__dict__.get("_length")
        return super().length if lengths is None else lengths[self.leaf]


@dataclass(frozen=True)
class TreeBranches(Branches):
    """Branches of which only the conditional mean is in `reward`; `variance` is Var(RM | prefix) of each."""

    variance: Float[Tensor, "W F"] | None = None


def of_rows(table: Shaped[Tensor, "P N ..."], rollouts: Rollouts) -> Shaped[Tensor, "W B ..."]:
    """What a table over prompts and leaves says of every row."""
    assert isinstance(rollouts, TreeRollouts)
    return _take(table.flatten(0, 1), rollouts.which_prompt * table.shape[1] + rollouts.leaf)


def _take(table: Shaped[Tensor, "N ..."], index: Int[Tensor, "*shape"]) -> Tensor:
    """table[index], by the kernel that copies whole rows (several times faster here)."""
    return table.index_select(0, index.flatten()).unflatten(0, index.shape)


class WorldSampler:
    """Looks everything up in an enumeration. After `collect`: `weight` is the probability of each world, and `kept`
    says which worlds lost none of their groups; None: all."""

    weight: Float[Tensor, "*worlds"]

    def __init__(self, enumeration: Enumeration):
        self.enumeration = enumeration
        self.kept: Bool[Tensor, " W"] | None = None
        self.asked = False
        self.drawn: Branches | None = None

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> TreeRollouts:
        if self.asked:
            raise ValueError(
                "collect asked for rollouts twice; ask once, for a group that is large enough for every use."
            )
        self.asked = True
        e = self.enumeration
        leaf_logp = e.leaf_logp(temperature) if behaviour is None else e.leaf_logp_of(behaviour, temperature)
        return TreeRollouts.of(e, leaf_logp, *self._worlds(group_size, leaf_logp))

    def _worlds(
        self, group_size: int, leaf_logp: Float[Tensor, "P N T"]
    ) -> tuple[Int[Tensor, "W B"], Int[Tensor, "W B"]]:
        """The prompt and the response of every row of each world, where `leaf_logp` is that of who draws; sets
        `weight`."""
        raise NotImplementedError

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, "W B"]:
        return of_rows(self.enumeration.response_reward, rollouts)

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "W B T"]:
        return of_rows(self.enumeration.hidden_reward, rollouts)

    def logp(self, policy: Policy, rollouts: Rollouts) -> Float[Tensor, "W B T"]:
        return of_rows(self.enumeration.leaf_logp_of(policy), rollouts)

    def value(self, critic: Critic, rollouts: Rollouts) -> Float[Tensor, "W B T1"]:
        return of_rows(self.enumeration._per_leaf(critic), rollouts)

    def branches(
        self, rollouts: Rollouts, boundary: Bool[Tensor, "W B T"], temperatures: Sequence[float] = (1.0,)
    ) -> Branches:
        assert isinstance(rollouts, TreeRollouts)
        counts = check_temperatures(temperatures)
        # The environment is at random even where the policy is not.
        random = self.enumeration.mdp.environment is not None or set(counts) != {0.0}
        if self.drawn is not None and random:
            raise ValueError("collect asked for branches twice; ask once, for as many as every use needs.")
        begins = boundary & rollouts.mask
        parts = []
        for temperature, number in counts.items():
            row, step = (each.repeat_interleave(number) for each in begins.any(0).nonzero(as_tuple=True))
            here = begins[..., row, step]
            if temperature == 0 and self.enumeration.mdp.environment is None:
                reached = of_rows(self.enumeration.greedy_leaf, rollouts)[..., row, step]
                reward = self.enumeration.response_reward[rollouts.which_prompt[:, row], reached]
                drawn = self._drawn_tokens(reached, step, here)
                parts.append(Branches(row, step, torch.where(here, reward, 0.0), drawn))
            else:
                parts.append(self._branches(rollouts, row, step, here, temperature))
        branches = parts[0] if len(parts) == 1 else self._joined(parts)
        if random:
            self.drawn = branches
        return branches

    def _joined(self, parts: list[Branches]) -> Branches:
        """One list of the branches that were drawn at several temperatures."""
        row, step, reward, tokens = (
            torch.cat([getattr(part, name) for part in parts], -1) for name in ("row", "step", "reward", "tokens")
        )
        return Branches(row, step, reward, tokens=tokens)

    def _drawn_tokens(
        self, leaf: Int[Tensor, "*worlds F"], step: Int[Tensor, " F"], drawn: Bool[Tensor, "*worlds F"]
    ) -> Tensor:
        """How many tokens the policy draws of each response from `step` on; 0 where nothing was drawn."""
        own = self.enumeration.mdp.policy_steps
        return torch.where(drawn, self.enumeration.length[leaf] - (own.cumsum(0) - own.long())[step], 0).double()

    def _branches(
        self, rollouts: TreeRollouts, row: Tensor, step: Tensor, drawn: Tensor, temperature: float
    ) -> Branches:
        raise NotImplementedError

    def keep(self, evidence: Evidence, groups: Bool[Tensor, "W P"]) -> Evidence:
        self.kept = groups.all(-1)
        return evidence


class ExactSampler(WorldSampler):
    """Every outcome once: a chunk of `all_groups`. Branches come as conditional means with their variances (exact for
    estimators that are affine in branch rewards) or, with `enumerate_branches`, as worlds of their own along a new
    leading axis."""

    def __init__(self, enumeration: Enumeration, groups: Groups, enumerate_branches: bool = False):
        super().__init__(enumeration)
        self.groups, self.enumerate_branches = groups, enumerate_branches

    def _worlds(self, group_size, leaf_logp):
        leaf = self.groups.leaf
        prompt = self.groups.which_prompt.reshape(len(leaf), -1)
        size = leaf.shape[-1] // prompt.shape[-1]
        if group_size != size:
            raise ValueError(f"collect asked for groups of {group_size}, but the estimator's group_size is {size}.")
        prompt = prompt.repeat_interleave(size, dim=-1)
        probability = (leaf_logp.sum(-1) + self.enumeration.reply_logp).exp()
        self.weight = self.groups.weight * probability[prompt, leaf].prod(-1)
        return prompt, leaf

    def _joined(self, parts):
        if self.enumerate_branches:
            raise ValueError(
                "branches of several temperatures cannot be enumerated outcome by outcome; give them one, or use "
                "--sampled N."
            )
        # Greedy branches have no variance.
        variances = [
            torch.zeros_like(part.reward) if (v := getattr(part, "variance", None)) is None else v for part in parts
        ]
        joined = super()._joined(parts)
        return TreeBranches(
            joined.row, joined.step, joined.reward, tokens=joined.tokens, variance=torch.cat(variances, dim=-1)
        )

    def _branches(self, rollouts, row, step, drawn, temperature):
        e = self.enumeration.at_temperature(temperature)
        if not self.enumerate_branches:
            mean = torch.where(drawn, self._at_prefix(e.values.U, rollouts)[..., row, step], 0.0)
            variance = torch.where(drawn, self._at_prefix(e.values.variance, rollouts)[..., row, step], 0.0)
            tokens = torch.where(drawn, self._at_prefix(e.remaining, rollouts)[..., row, step], 0.0)
            return TreeBranches(row, step, mean, tokens=tokens, variance=variance)
        # A branch has as many outcomes as there are leaves below its prefix: the same number for all prefixes of one
        # length.
        sizes = [e.tree.subtree_leaves[t] for t in step.tolist()]
        total = math.prod(sizes) * len(self.groups.leaf)
        if total > MAX_WORLDS:
            raise TooLarge(
                f"{total:,} joint outcomes of {len(sizes)} branches are too many (at most {MAX_WORLDS:,}); take a "
                f"smaller instance, "
                "fewer branches, or --sampled N."
            )
        choice = torch.cartesian_prod(*[torch.arange(size) for size in sizes]).reshape(-1, 1, len(sizes))
        outcome = torch.where(drawn, e.first_leaf[rollouts.leaf][:, row, step] + choice, 0)
        prompt = rollouts.which_prompt[:, row]
        logp = e.written_logp()
        prefix_logp = of_rows(logp.cumsum(-1) - logp, rollouts)[:, row, step]
        chance = (logp.sum(-1)[prompt, outcome] - prefix_logp).exp()
        # A response that ended before `step` has no such branch: one outcome, whatever its reward.
        self.weight = self.weight * torch.where(drawn, chance, choice == 0).prod(-1)
        reward = torch.where(drawn, e.response_reward[prompt, outcome], 0.0)
        return Branches(row, step, reward, tokens=self._drawn_tokens(outcome, step, drawn))

    def _at_prefix(self, levels: list[Float[Tensor, "P N"]], rollouts: Rollouts) -> Float[Tensor, "W B T"]:
        return of_rows(torch.cat(levels, dim=1)[:, self.enumeration.node], rollouts)


class Inverse:
    """Responses by the cumulative probabilities of all of them: the last one that begins at or below a place in [0, 1].

    A guide table (Chen and Asau 1974) of `GUIDE` or more entries a response says it at once for all places of an
    interval in which no response begins; binary search is left for the rest, at most one place in `GUIDE`.
    """

    def __init__(self, leaf_logp: Float[Tensor, "P N T"], enumeration: Enumeration):
        self.leaf_logp = leaf_logp
        chance = (leaf_logp.sum(-1) + enumeration.reply_logp).exp()
        self.cumulative = pad(chance.cumsum(-1), (1, 0))
        # A power of two: bounds, and the numbers of intervals, are exact.
        self.size = 2 ** min(math.ceil(math.log2(GUIDE * chance.shape[1])), LARGEST_GUIDE)
        bounds = (torch.arange(self.size + 1, dtype=torch.float64) / self.size).expand(len(chance), -1).contiguous()
        begins = torch.searchsorted(self.cumulative, bounds[:, :-1].contiguous(), right=True) - 1
        ends = torch.searchsorted(self.cumulative, bounds[:, 1:].contiguous()) - 1
        self.guide = torch.where(begins == ends, begins, UNSURE)
        self.guide[:, -1] = UNSURE  # probabilities that sum to 1 but for rounding may end here, or beyond
        self.guide = self.guide.flatten()

    @classmethod
    def of(cls, leaf_logp: Float[Tensor, "P N T"], enumeration: Enumeration) -> "Inverse":
        """Made once for each table of log-probabilities that the enumeration keeps."""
        made = enumeration.shared.setdefault(cls, [])
        for inverse in made:
            if inverse.leaf_logp is leaf_logp:
                return inverse
        made[:] = [cls(leaf_logp, enumeration), *made[:1]]
        return made[0]

    def __call__(self, prompt: Int[Tensor, "*shape"], place: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        interval = (place * self.size).long().clamp_(max=self.size - 1)
        leaf = _take(self.guide, interval if len(self.cumulative) == 1 else interval + prompt * self.size)
        unsure = (leaf == UNSURE).nonzero(as_tuple=True)
        which, where = prompt[unsure], place[unsure]
        for number, row in enumerate(self.cumulative):
            here = which == number
            leaf[tuple(each[here] for each in unsure)] = torch.searchsorted(row, where[here], right=True) - 1
        return leaf


class TreeSampler(WorldSampler):
    """Independent worlds of `prompts` groups each, drawn from the enumeration by inverse cumulative probabilities."""

    def __init__(self, enumeration: Enumeration, worlds: int, generator: torch.Generator, prompts: int = 1):
        super().__init__(enumeration)
        self.generator, self.prompts = generator, prompts
        self.weight = torch.full((worlds,), 1 / worlds, dtype=torch.float64)

    def _worlds(self, group_size, leaf_logp):
        mdp, shape = self.enumeration.mdp, (len(self.weight), self.prompts * group_size)
        inverse = Inverse.of(leaf_logp, self.enumeration)
        if len(mdp.prompts) == 1:
            prompt, end = torch.zeros(1, dtype=torch.int64).expand(shape), inverse.cumulative[0, -1]
        else:
            number, chance = shape[0] * self.prompts, mdp.prompt_probability
            prompt = torch.multinomial(chance, number, replacement=True, generator=self.generator)
            prompt = prompt.view(-1, self.prompts).repeat_interleave(group_size, dim=-1)
            end = inverse.cumulative[prompt, -1]
        place = torch.rand(shape, generator=self.generator, dtype=torch.float64).mul_(end)
        return prompt, inverse(prompt, place).clamp_(0, self.enumeration.tree.n_leaves - 1)

    def _branches(self, rollouts, row, step, drawn, temperature):
        """Many responses end before a branch could begin; for those nothing is looked up."""
        e, worlds = self.enumeration, len(drawn)
        if not len(row):
            return Branches(row, step, drawn.double(), tokens=drawn.double())
        if not temperature:
            prompt = rollouts.which_prompt[:, row]
            first = torch.where(drawn, e.first_leaf[rollouts.leaf][:, row, step], 0)
            leaf = self._descend(prompt, first, step)
            reward = torch.where(drawn, e.response_reward[prompt, leaf], 0.0)
            return Branches(row, step, reward, tokens=self._drawn_tokens(leaf, step, drawn))
        # Draws from one place stand side by side, as many from each.
        number = int(((row == row[0]) & (step == step[0])).sum())
        rows, steps = row[::number], step[::number]
        place = torch.rand((worlds * len(rows), number), generator=self.generator, dtype=torch.float64)
        which = drawn[:, ::number].flatten().nonzero()[:, 0]
        of_row = (torch.arange(worlds)[:, None] * rollouts.leaf.shape[1] + rows).flatten().index_select(0, which)
        here = steps.expand(worlds, -1).flatten().index_select(0, which)
        leaf, prompt = (of.flatten().index_select(0, of_row) for of in (rollouts.leaf, rollouts.which_prompt))
        first = e.first_leaf.flatten().index_select(0, leaf * e.first_leaf.shape[1] + here)
        end = first + torch.tensor(e.tree.subtree_leaves).index_select(0, here)
        inverse = Inverse.of(e.leaf_logp(temperature), e)
        begin = prompt * inverse.cumulative.shape[1]
        low, high = (inverse.cumulative.flatten().index_select(0, begin + each)[:, None] for each in (first, end))
        place = place.index_select(0, which).mul_(high - low).add_(low)
        prompt = prompt[:, None].expand(place.shape)
        leaf = torch.minimum(torch.maximum(inverse(prompt, place), first[:, None]), end[:, None] - 1)
        reward = e.response_reward.flatten().index_select(0, (prompt * e.tree.n_leaves + leaf).flatten())
        own = e.mdp.policy_steps
        before = (own.cumsum(0) - own.long()).index_select(0, here)[:, None]
        tokens = e.length.index_select(0, leaf.flatten()).view_as(leaf) - before

        def spread(values: Tensor) -> Tensor:
            """0 where nothing was drawn."""
            everywhere = torch.zeros(worlds * len(rows), number, dtype=torch.float64)
            return everywhere.index_copy_(0, which, values.view(-1, number)).view(worlds, -1)

        return Branches(row, step, spread(reward), tokens=spread(tokens.double()))

    def _descend(self, prompt: Tensor, leaf: Tensor, start: Tensor) -> Int[Tensor, "*shape"]:
        """One leaf below the prefix of length `start` whose first leaf is `leaf`: of the policy the most probable
        tokens, of the environment random ones. Step by step, as most prefixes have no probability then."""
        e = self.enumeration.at_temperature(0.0)
        logp = e.edge_logp().view(e.n_prompts, e.tree.n_nodes, e.tree.vocab_size)
        for step in range(e.tree.horizon):
            token = draw_tokens(logp[prompt, e.node[leaf, step]].flatten(0, -2), self.generator).view_as(leaf)
            alive = (start <= step) & (e.tokens[leaf, step] >= 0)
            leaf = torch.where(alive, leaf + e.tree.first_leaf_by_token[step, token], leaf)
        return leaf
