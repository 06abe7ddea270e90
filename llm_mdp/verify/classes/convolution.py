"""The law of a summary over m independent responses, by convolution, and responses that have a given summary."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.exact.groups import in_words

MAX_CANDIDATES = 20_000_000
"""States of m responses times what one more may add, beyond which no law is made."""
MAX_STATES = 20_000_000
"""States of m = 0 … K responses, all together: half a gigabyte."""
MAX_CODE = 2**62
"""Sums of codes stay below."""
DENSE = 5_000_000
"""Codes up to which a law is first written with a place for every code, which is quicker than sorting."""
RANKED = 100
"""Features whose rank is found: that of thousands takes a minute, and says no more."""
CHUNK = 4_000_000
"""Entries that are worked on at once."""


class Laws:
    """P_m(σ), σ = Σ φ(cⱼ) over m independent responses, m = 0 … K, of one prompt.

    Classes with the same φ are one *feature*. φ is written as one whole number, its *code*, in which sums are sums:
    mixed radix where 62 bits hold it, else by random multipliers, with a second set of them to see that no two states
    share a code. All probabilities are sums of products of positive numbers, so each has a relative error of about m
    units of the last place, however small it is. States whose probability is below the smallest float64 are left out.

    Args:
        vectors: φ of every class, whole numbers of at least 0.
        probability: q_c of every class.
        group_size: K ≥ 1.
        most: states of K responses that are wanted, at most.

    Raises:
        TooLarge: more than `most`, more than MAX_CANDIDATES states times features, or MAX_STATES states; the message is
            a number of values, in words.
    """

    feature: Int[Tensor, " C"]
    """Which feature every class has."""
    code: Int[Tensor, " F"]
    """Of every feature."""
    chance: Float[Tensor, " F"]
    """Probability of every feature."""
    codes: list[Int[Tensor, " S"]]
    """Codes of all states of m responses, ascending, m = 0 … K."""
    chances: list[Float[Tensor, " S"]]
    """Their probabilities."""

    def __init__(
        self,
        vectors: Int[Tensor, "C D"],
        probability: Float[Tensor, " C"],
        group_size: int,
        most: float = MAX_CANDIDATES,
    ):
        features, self.feature = _distinct(vectors)
        self.chance = torch.zeros(len(features), dtype=torch.float64).index_add_(0, self.feature, probability)
        self.code, self._check, self._codes = _codes(features - features.amin(0, keepdim=True), group_size)
        least, of_group = (least_states(features, size) for size in (group_size - 1, group_size))
        if least * len(features) > MAX_CANDIDATES or of_group > most:
            raise TooLarge(f"at least {in_words(least)} values")
        nothing = torch.zeros(1, dtype=torch.int64)
        self.codes, self.chances = [nothing], [torch.ones(1, dtype=torch.float64)]
        self._checks, self._last, self._most = nothing, [nothing], most
        for _ in range(group_size):
            self._one_more()

    def _one_more(self) -> None:
        """Add the law of one more response, which has at least as many states."""
        features = len(self.code)
        if len(self.codes[-1]) > self._most:
            raise TooLarge(f"more than {int(self._most):,} values")
        if len(self.codes[-1]) * features > MAX_CANDIDATES:
            raise TooLarge(f"more than {len(self.codes[-1]):,} values")
        if sum(map(len, self.codes)) > MAX_STATES:
            raise TooLarge(f"more than {MAX_STATES:,} values for groups of up to that size, all together")
        together = (self.codes[-1][:, None] + self.code).flatten()
        if self._codes <= DENSE:
            states, place = torch.arange(int(together.max()) + 1), together
        else:
            states, place = together.unique(return_inverse=True)
        added = (self.chances[-1][:, None] * self.chance).flatten()
        chance = torch.zeros(len(states), dtype=torch.float64).index_add_(0, place, added)
        last = torch.arange(features).expand(len(self.codes[-1]), -1).flatten()
        last = torch.zeros(len(states), dtype=torch.int64).scatter_reduce_(0, place, last, "amax")
        possible = chance > 0
        self.codes.append(states[possible])
        self.chances.append(chance[possible])
        self._last.append(last[possible])
        if self._check is not None:
            second = (self._checks[:, None] + self._check).flatten()
            checks = torch.zeros_like(states).index_copy_(0, place, second)
            if not torch.equal(checks[place], second):
                raise AssertionError("two states of a summary share a code, which happens once in 10^7 summaries")
            self._checks = checks[possible]

    @property
    def numbers(self) -> int:
        """How many numbers are kept of all states."""
        return 3 * sum(map(len, self.codes))

    def find(self, number: int, codes: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
        """Which state of `number` responses each code is; -1: none."""
        states = self.codes[number]
        place = torch.searchsorted(states, codes).clamp(max=len(states) - 1)
        return torch.where(states[place] == codes, place, -1)

    def some(self, number: int, state: Int[Tensor, " R"]) -> Int[Tensor, "R number"]:
        """Features of `number` responses that add up to each state: any, always the same."""
        features = torch.zeros(len(state), number, dtype=torch.int64)
        for more in reversed(range(number)):
            features[:, more] = self._last[more + 1][state]
            state = self.find(more, self.codes[more + 1][state] - self.code[features[:, more]])
        return features

    def draw(
        self, number: int, state: Int[Tensor, " R"], generator: torch.Generator, evenly: bool = False
    ) -> Int[Tensor, "R number"]:
        """Features of `number` responses that add up to each state, by the conditional law given their sum; or, with
        `evenly`, every step any that is possible."""
        if len(self.code) == 1:
            return torch.zeros(len(state), number, dtype=torch.int64)
        parts = [self._draw(number, part, generator, evenly) for part in state.split(max(1, CHUNK // len(self.code)))]
        return torch.cat(parts) if parts else torch.zeros(0, number, dtype=torch.int64)

    def _draw(self, number: int, state: Tensor, generator: torch.Generator, evenly: bool) -> Int[Tensor, "R number"]:
        drawn = torch.empty(len(state), number, dtype=torch.int64)
        left = self.codes[number][state]
        for more in reversed(range(number)):
            before = self.find(more, left[:, None] - self.code)
            possible = before >= 0
            share = possible.double() if evenly else torch.where(possible, self.chances[more][before] * self.chance, 0)
            # Where all products are below the smallest float64, any possible one will do.
            share = torch.where(share.sum(-1, keepdim=True) > 0, share, possible.double())
            chosen = choose(share, generator)
            drawn[:, more] = chosen
            left = left - self.code[chosen]
        return drawn


def least_states(features: Int[Tensor, "F D"], number: int) -> int:
    """How many sums of so many of the features there are at least, before any work: as many features as span all of
    them give sums that are all different."""
    some = (features - features[:1])[:RANKED].double()
    spanned = int(torch.linalg.matrix_rank(some)) if features.shape[1] else 0
    return math.comb(number + spanned, spanned)


def choose(share: Float[Tensor, "R F"], generator: torch.Generator) -> Int[Tensor, " R"]:
    """One of the columns of every row, with probability proportional to its entry."""
    cumulative = (share / share.amax(-1, keepdim=True)).cumsum(-1)
    total = cumulative[:, -1]
    place = torch.rand(len(share), generator=generator, dtype=torch.float64) * total
    place = torch.minimum(place, torch.nextafter(total, torch.zeros_like(total)))
    return (cumulative <= place[:, None]).sum(-1)


def _distinct(vectors: Int[Tensor, "C D"]) -> tuple[Int[Tensor, "F D"], Int[Tensor, " C"]]:
    """The distinct rows, and which of them each row is."""
    if vectors.shape[1] == 0:
        return vectors[:1], torch.zeros(len(vectors), dtype=torch.int64)
    return vectors.unique(dim=0, return_inverse=True)


def _codes(features: Int[Tensor, "F D"], group_size: int) -> tuple[Int[Tensor, " F"], Int[Tensor, " F"] | None, int]:
    """A code of every feature, such that those of up to K of them can be added; a second one, if the first is by random
    multipliers; and what all sums are below."""
    place, places = 1, []
    for largest in features.amax(0).tolist():
        places.append(place)
        place *= group_size * largest + 1
    if place <= MAX_CODE:
        return (features * torch.tensor(places, dtype=torch.int64)).sum(-1), None, place
    generator = torch.Generator().manual_seed(0)
    room = MAX_CODE // (group_size * int(features.sum(-1).max()))
    one, two = torch.randint(room, (2, features.shape[1]), generator=generator)
    return (features * one).sum(-1), (features * two).sum(-1), MAX_CODE
