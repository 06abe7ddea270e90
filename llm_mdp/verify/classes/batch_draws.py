"""The law of a whole batch through its sums, and batches that have a given own response, company and Ω."""

from copy import copy
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.sampling.sampler import NothingKept
from llm_mdp.verify.classes.calls import Refused, Subject
from llm_mdp.verify.classes.convolution import CHUNK, Laws, choose, least_states
from llm_mdp.verify.classes.partition import Partition
from llm_mdp.verify.classes.pools import PIECES, Own, Pool, Sums, everything, levels
from llm_mdp.verify.classes.representatives import HOWS, How, Representatives
from llm_mdp.verify.classes.sufficiency import MAX_ENTRIES

MAX_KEYS = 10_000_000
"""Own classes with what they may see of a batch."""
MAX_BEFORE = 50_000_000
"""Values of Ω times kinds of groups."""
MAX_PRODUCTS = 1e11
"""Values of Ω times squared number of kinds of groups times directions of scores."""
MAX_SUMS = 20_000_000
"""Numbers in all sums of one prompt's groups."""


class BatchDraws:
    """Batches of n groups that are all kept, each to a prompt of its own.

    A response is of a *who*: its prompt, its class (or the response itself, `by_leaf`), and what the others of its
    group add up to in the pieces of `own`. Groups of one *type* have the same prompt and the same sum s, in the pieces
    of `own` and `pool` and of what decides which groups are left out; θ is a function of the type.

    Args:
        subject: the estimator.
        partitions: the responses, prompt by prompt.
        own, pool: what is read of the own group, and of all groups.
        number: n ≥ 1.
        deciding: pieces that decide which groups are left out; None: none are.
        by_leaf: is a who about a response, or about its class?
        generator: of all draws.
        like: the same with another `own`, which has the law of Ω already.

    Raises:
        TooLarge: more sums than can be listed.
        Refused: these rewards do not allow the pool, or pieces do not say which groups are left out.
        NothingKept: every group is left out.
    """

    def __init__(
        self,
        subject: Subject,
        partitions: list[Partition],
        own: Own,
        pool: Pool,
        number: int,
        *,
        deciding: tuple[str, ...] | None,
        by_leaf: bool,
        generator: torch.Generator,
        like: "BatchDraws | None" = None,
    ):
        self.subject, self.partitions, self.number, self.generator = subject, partitions, number, generator
        self.by_leaf, size = by_leaf, subject.group_size
        self.rho = subject.enumeration.mdp.prompt_probability
        whole, which = everything(partitions)
        names = [name for name in PIECES if name in (*own.pieces, *pool.pieces, *(deciding or ()))]
        tables = [PIECES[name](whole) for name in names]
        vectors = torch.cat(tables, dim=1)
        self._least = 0
        if pool.added and deciding is None:
            parts = torch.cat([PIECES[name](whole) for name in pool.pieces], dim=1)
            self._least = max(least_states(parts[here], number * size) for here in which)
        self.draws: list[Representatives] = []
        sums, rests = [], []
        for classes, here in zip(partitions, which):
            laws = Laws(vectors[here], classes.probability, size)
            self.draws.append(Representatives(classes, laws, by_leaf, generator))
            first = torch.zeros_like(laws.code).scatter_(0, laws.feature, torch.arange(classes.size))
            of_feature = vectors[here][first]
            sums.append(_vectors(laws, size, of_feature))
            rests.append(_vectors(laws, size - 1, of_feature))
        self._like: BatchDraws | None = like
        self._types(pool, names, [each.shape[1] for each in tables], sums, levels(whole.reward), deciding is not None)
        self._whos(own, names, [each.shape[1] for each in tables], rests)

    def _types(self, pool: Pool, names, widths, sums, level, choosy: bool) -> None:
        size = self.subject.group_size
        stacked = torch.cat(sums)
        pieces = dict(zip(names, stacked.split(widths, dim=1)))
        theta = pool.of_group(Sums(pieces, level, size))
        if theta is None:
            raise Refused("its rewards are no multiples of one number")
        prompt = torch.arange(len(sums)).repeat_interleave(torch.tensor([len(each) for each in sums]))
        chance = torch.cat([rho * draw.laws.chances[size] for rho, draw in zip(self.rho, self.draws)])
        state = torch.cat([torch.arange(len(each)) for each in sums])
        kept = self._kept(prompt, state) if choosy else torch.ones(len(state), dtype=torch.bool)
        self.kept = float(chance[kept].sum())
        """Chance that a group is kept."""
        if self.kept == 0:
            raise NothingKept("the estimator leaves out every outcome of this instance, so it has no expectation.")
        place = torch.where(kept, kept.long().cumsum(0) - 1, -1)
        self.type_of = list(place.split([len(each) for each in sums]))
        """Type of every sum of a group, prompt by prompt; -1: left out."""
        self.prompt, self.state, self.chance = prompt[kept], state[kept], chance[kept] / self.kept
        self._follow(pool, theta[kept])
        kinds = len(self.laws.code)
        order = self.laws.feature.argsort(stable=True)
        count = torch.bincount(self.laws.feature, minlength=kinds)
        first = count.cumsum(0) - count
        rank = torch.arange(len(order)) - first[self.laws.feature[order]]
        self._members = torch.zeros(kinds, int(count.max()), dtype=torch.int64)
        self._members[self.laws.feature[order], rank] = order
        self._there = torch.arange(int(count.max())) < count[:, None]

    def _follow(self, pool: Pool, theta: Int[Tensor, "type D"]) -> None:
        """The law of Ω."""
        self.thetas, feature = theta.unique(dim=0, return_inverse=True)
        if self._like is not None and torch.equal(self._like.thetas, self.thetas):
            self.laws = copy(self._like.laws)
            self.laws.feature = feature
        else:
            kinds = len(self.thetas)
            most = self._most_omegas(kinds)
            if self._least > most:
                raise TooLarge(f"{pool.words} take at least {self._least:,} values, for {kinds:,} kinds of groups")
            try:
                self.laws = Laws(theta, self.chance, self.number, most)
            except TooLarge as error:
                raise TooLarge(f"{pool.words} take {error}, for {kinds:,} kinds of groups") from error
            if (omegas := len(self.laws.codes[self.number])) > most:
                raise TooLarge(f"{pool.words} take {omegas:,} values, for {kinds:,} kinds of groups")
            self._like = None
        self.omegas = len(self.laws.codes[self.number])

    @cached_property
    def before(self) -> Int[Tensor, "omega kind"]:
        """Ω without a group of every kind; -1: there is none in it."""
        if self._like is not None:
            return self._like.before
        # Kind by kind, for codes are found quickly in ascending order.
        codes = self.laws.codes[self.number]
        return torch.stack([self.laws.find(self.number - 1, codes - code) for code in self.laws.code], dim=1)

    def _most_omegas(self, kinds: int) -> float:
        """How many values of Ω can be gone through, so many kinds of groups each."""
        e, units = self.subject.enumeration, sum(draw.units for draw in self.draws)
        parameters = sum(parameter.numel() for parameter in e.policy.parameters())  # pyright: ignore[reportAttributeAccessIssue]
        rank = min(units * e.tree.horizon, parameters)
        weights = self.number * self.subject.group_size * e.tree.horizon
        return min(MAX_BEFORE / kinds, MAX_KEYS / units, MAX_PRODUCTS / (kinds**2 * rank), MAX_ENTRIES / weights)

    def _kept(self, prompt: Int[Tensor, " S"], state: Int[Tensor, " S"]) -> Bool[Tensor, " S"]:
        """Are groups of these sums kept? Asked of three of each, and of some that are drawn as they come."""
        asked = []
        for how in HOWS:
            position = self.positions(prompt, state, how)
            asked.append(self.subject(prompt, self.leaves(prompt[:, None], position[:, None]))[:, 0, -1] > 0)
        for number, draw in enumerate(self.draws):
            for evenly in (False, True):
                group = draw.independent(500, evenly)
                found = draw.laws.find(self.subject.group_size, draw.code[group].sum(-1))
                answers = self.subject(torch.full((500,), number), self.partitions[number].leaf[group])[:, 0, -1] > 0
                first = int((prompt < number).sum())
                if not torch.equal(answers[found >= 0], asked[0][first + found[found >= 0]]):
                    raise Refused("which groups it leaves out depends on more than rewards, lengths and finishes")
        if not (torch.equal(asked[0], asked[1]) and torch.equal(asked[0], asked[2])):
            raise Refused("which groups it leaves out depends on more than rewards, lengths and finishes")
        return asked[0]

    def _whos(self, own: Own, names, widths, rests) -> None:
        ends = dict(zip(names, torch.tensor(widths).cumsum(0).tolist()))
        columns = [c for name in own.pieces for c in range(ends[name] - widths[names.index(name)], ends[name])]
        self.seen, self.seens, self.kind_of_rest = [], [], []
        for number, (draw, rest) in enumerate(zip(self.draws, rests)):
            values, seen = rest[:, columns].unique(dim=0, return_inverse=True) if columns else (rest[:1], None)
            self.seen.append(torch.zeros(len(rest), dtype=torch.int64) if seen is None else seen)
            self.seens.append(len(values))
            laws, size = draw.laws, self.subject.group_size
            total = laws.find(size, laws.codes[size - 1] + laws.code[:, None])
            kind = self.type_of[number][total.clamp(min=0)]
            theta = torch.where((total >= 0) & (kind >= 0), self.laws.feature[kind.clamp(min=0)], -1)
            self.kind_of_rest.append(theta)
        self.first_who = [0]
        for draw, seens in zip(self.draws, self.seens):
            self.first_who.append(self.first_who[-1] + draw.units * seens)
        if self.whos * self.omegas > MAX_KEYS:
            raise TooLarge(f"{self.whos:,} kinds of an own response in {self.omegas:,} kinds of batches")

    @property
    def whos(self) -> int:
        return self.first_who[-1]

    @property
    def entries(self) -> int:
        """About how many token weights all of them are."""
        rows = self.number * self.subject.group_size * self.subject.enumeration.tree.horizon
        return max(self.whos * self.omegas // 4, self.omegas) * rows

    def possible(self) -> Bool[Tensor, "who omega"]:
        """Which whos occur in which batches."""
        rows = []
        for number, draw in enumerate(self.draws):
            feature = self.feature_of_unit(number)
            there = torch.zeros(len(draw.laws.code), self.seens[number], self.omegas, dtype=torch.bool)
            for f, kinds in enumerate(self.kind_of_rest[number]):
                pairs = torch.stack([self.seen[number], kinds])[:, kinds >= 0].unique(dim=1)
                there[f].index_put_((pairs[0],), (self.before[:, pairs[1]] >= 0).T, accumulate=True)
            rows.append(there[feature].flatten(0, 1))
        return torch.cat(rows)

    def feature_of_unit(self, number: int) -> Int[Tensor, " U"]:
        draw = self.draws[number]
        of_class = draw.laws.feature
        return of_class[draw.classes.kind] if self.by_leaf else of_class

    # --- batches ------------------------------------------------------------------------------------------------------

    def leaves(self, prompt: Int[Tensor, "R n"], position: Int[Tensor, "R n K"]) -> Int[Tensor, "R B"]:
        """Numbers of responses in the enumeration, of their places in the partitions."""
        leaf = torch.zeros_like(position)
        for number, classes in enumerate(self.partitions):
            here = prompt == number
            leaf[here] = classes.leaf[position[here]]
        return leaf.flatten(1)

    def ask(self, prompt: Int[Tensor, "R n"], position: Int[Tensor, "R n K"]) -> Float[Tensor, "R n K T"]:
        """The weights of all tokens of these batches.

        Raises:
            Refused: if a group is left out that is kept alone.
        """
        answers = self.subject(prompt, self.leaves(prompt, position))
        if not (answers[..., -1] > 0).all():
            raise Refused("which groups it leaves out depends on the other groups")
        return answers[..., :-3].unflatten(1, position.shape[1:])

    def positions(self, prompt: Int[Tensor, " R"], state: Int[Tensor, " R"], how: How) -> Int[Tensor, "R K"]:
        """Responses of whole groups that add up to these."""
        position = torch.zeros(len(prompt), self.subject.group_size, dtype=torch.int64)
        for number, draw in enumerate(self.draws):
            here = prompt == number
            position[here] = draw.adding_up(state[here], how)
        return position

    def of_types(self, types: Int[Tensor, "R m"], how: How) -> tuple[Int[Tensor, "R m"], Int[Tensor, "R m K"]]:
        """Prompts and responses of groups of these types."""
        prompt = self.prompt[types]
        position = self.positions(prompt.flatten(), self.state[types].flatten(), how)
        return prompt, position.unflatten(0, types.shape)

    def independent(self, count: int, evenly: bool) -> tuple[Int[Tensor, "R n"], Int[Tensor, "R n K"]]:
        """Batches of independent groups, each type as likely as it is, or all equally likely."""
        share = torch.ones_like(self.chance) if evenly else self.chance
        types = torch.multinomial(share, count * self.number, replacement=True, generator=self.generator)
        return self.of_types(types.view(count, -1), "odd" if evenly else "typical")

    def others(self, rest: Int[Tensor, " R"], how: How) -> Int[Tensor, "R n1"]:
        """Types of n - 1 groups whose θ add up to these."""
        if how == "quick":
            kinds = self.laws.some(self.number - 1, rest)
        else:
            kinds = self.laws.draw(self.number - 1, rest, self.generator, evenly=how != "typical")
        share = self._there.double()
        if how in ("typical", "quick"):
            share = share * self.chance[self._members]
        size = max(1, CHUNK // share.shape[1])
        chosen = [choose(share[part], self.generator) for part in kinds.flatten().split(size)]
        member = torch.cat(chosen) if chosen else kinds.flatten()
        return self._members[kinds.flatten(), member].view(kinds.shape)

    def draw(
        self, who: Int[Tensor, " R"], omega: Int[Tensor, " R"], how: How
    ) -> tuple[Int[Tensor, "R n"], Int[Tensor, "R n K"], Int[Tensor, " R"], Int[Tensor, " R"]]:
        """A batch for every who and Ω, and where in it the own response stands: its group, and its place in that."""
        size, rows = self.subject.group_size, torch.arange(len(who))
        own = torch.zeros(len(who), size, dtype=torch.int64)
        at, rest, own_type = (torch.zeros_like(who) for _ in range(3))
        prompt = torch.bucketize(who, torch.tensor(self.first_who[1:]), right=True)
        for number, draw in enumerate(self.draws):
            here = (prompt == number).nonzero()[:, 0]
            local, seens = who[here] - self.first_who[number], self.seens[number]
            unit, seen = local // seens, local % seens
            kind = self.kind_of_rest[number][self.feature_of_unit(number)[unit]]
            before = self.before[omega[here]].gather(1, kind.clamp(min=0))
            share = ((kind >= 0) & (before >= 0) & (self.seen[number] == seen[:, None])).double()
            if how in ("typical", "quick"):
                weighted = share * draw.laws.chances[size - 1] * self.laws.chances[self.number - 1][before.clamp(min=0)]
                share = torch.where(weighted.sum(-1, keepdim=True) > 0, weighted, share)
            state = choose(share, self.generator)
            own[here], at[here] = draw.groups(unit, state, how)
            rest[here] = before.gather(1, state[:, None])[:, 0]
            total = draw.laws.find(size, draw.code[own[here]].sum(-1))
            own_type[here] = self.type_of[number][total]
        types = self.others(rest, how)
        other_prompts, others = self.of_types(types, how)
        if how == "coinciding":
            others = torch.where((types == own_type[:, None])[..., None], own[:, None], others)
        # The other groups in their order, the own one at its place.
        group = torch.randint(self.number, (len(who),), generator=self.generator)
        place = torch.arange(self.number).expand(len(who), -1)
        source = torch.where(place == group[:, None], 0, place + (place < group[:, None]).long())
        prompts, positions = torch.cat([prompt[:, None], other_prompts], 1), torch.cat([own[:, None], others], 1)
        return prompts.gather(1, source), positions[rows[:, None], source], group, at

    def codes(
        self, prompt: Int[Tensor, "R n"], position: Int[Tensor, "R n K"]
    ) -> tuple[Int[Tensor, "R n"], Int[Tensor, "R n"]]:
        """θ of every group, as a code, and its type; -1: left out, or too improbable for float64."""
        code, types = torch.zeros_like(prompt), torch.full_like(prompt, -1)
        for number, draw in enumerate(self.draws):
            here = prompt == number
            total = draw.laws.find(self.subject.group_size, draw.code[position[here]].sum(-1))
            kind = torch.where(total >= 0, self.type_of[number][total.clamp(min=0)], -1)
            types[here] = kind
            code[here] = self.laws.code[self.laws.feature[kind.clamp(min=0)]]
        return code, types

    def find(
        self, prompt: Int[Tensor, "R n"], position: Int[Tensor, "R n K"]
    ) -> tuple[Int[Tensor, "R n K"], Int[Tensor, " R"]]:
        """The who of every response and the Ω of every batch; -1: too improbable for float64."""
        who = torch.full_like(position, -1)
        for number, draw in enumerate(self.draws):
            here = prompt == number
            group = position[here]
            state = draw.state_of_others(group)
            seen = self.seen[number][state.clamp(min=0)]
            own = self.first_who[number] + draw.unit[group] * self.seens[number] + seen
            who[here] = torch.where(state >= 0, own, -1)
        code, types = self.codes(prompt, position)
        return who, torch.where((types >= 0).all(-1), self.laws.find(self.number, code.sum(-1)), -1)


def _vectors(laws: Laws, number: int, of_feature: Int[Tensor, "F D"]) -> Int[Tensor, "S D"]:
    """What the states of `number` responses are, as sums."""
    states = len(laws.codes[number])
    if states * of_feature.shape[1] > MAX_SUMS:
        raise TooLarge(f"{states:,} kinds of groups, each with {of_feature.shape[1]:,} numbers")
    total = torch.zeros(states, of_feature.shape[1], dtype=torch.int64)
    for feature in laws.some(number, torch.arange(states)).unbind(1):
        total += of_feature[feature]
    return total
