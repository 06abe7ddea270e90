"""What an estimator may read of a whole batch: sums over groups of something that their responses' classes say.

An update holds the groups of P prompts. A response's weight may depend on its own class, on what the others of its
group add up to (`summaries`), and on Ω = Σ θ(s) over all groups of the batch, s what the classes of a group add up to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import one_hot

from llm_mdp.exact.enumeration import TooLarge
from llm_mdp.verify.classes.partition import Partition

MAX_KINDS = 20_000_000
"""Groups times kinds of groups."""
LATTICE = 1_000
"""Rewards are whole multiples of their smallest gap, up to this many, or their squares are not added up."""


def _by_reward(classes: Partition) -> Int[Tensor, "C R"]:
    return one_hot(classes.reward.unique(return_inverse=True)[1])


PIECES: dict[str, Callable[[Partition], Int[Tensor, "C D"]]] = {
    "rewards": _by_reward,
    "tokens": lambda classes: classes.length[:, None],
    "tokens by reward": lambda classes: _by_reward(classes) * classes.length[:, None],
    "classes": lambda classes: torch.eye(classes.size, dtype=torch.int64),
}
"""What the classes of a group may be added up in."""


@dataclass(frozen=True, eq=False)
class Sums:
    """The sums of groups, S of them, in pieces."""

    pieces: dict[str, Int[Tensor, "S D"]]
    """By names of PIECES."""
    level: Int[Tensor, " R"] | None
    """Rewards in units of their smallest gap, from the lowest; None: they are no such multiples."""
    group_size: int


@dataclass(frozen=True)
class Own:
    """What is read of the others of the own group."""

    words: str
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """Ω = Σ θ(s) over all groups."""

    words: str
    pieces: tuple[str, ...]
    """What s is made of."""
    of_group: Callable[[Sums], Int[Tensor, "S D"] | None]
    """θ of every group, whole numbers; None: not with these rewards."""
    added: bool = True
    """Is θ the pieces themselves, side by side? Else it is one for each kind of them, or something else."""
    kinds: bool = False
    """Does it say how many groups have which pieces?"""

    def refines(self, coarser: "Pool") -> bool:
        """Is the other's Ω known wherever this one's is, so that this one takes at least as many values?"""
        more = _contains(self.pieces, coarser.pieces)
        return more and (self.kinds or (self.added and coarser.added))


def _contains(pieces: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Are the others known wherever these are?"""
    known = set(pieces)
    if "classes" in known:
        return True
    known |= {"tokens"} if "tokens by reward" in known else set()
    return set(others) <= known


def levels(reward: Tensor) -> Int[Tensor, " R"] | None:
    """The distinct rewards in units of their smallest gap, from the lowest."""
    values = reward.unique()
    if len(values) == 1:
        return torch.zeros(1, dtype=torch.int64)
    level = (values - values[0]) / values.diff().min()
    near = level.round()
    if float(near[-1]) > LATTICE or float((level - near).abs().max()) > 1e-9:
        return None
    return near.long()


def _joined(*names: str) -> Callable[[Sums], Int[Tensor, "S D"]]:
    return lambda sums: torch.cat([sums.pieces[name] for name in names], dim=1)


def _kinds(*names: str) -> Callable[[Sums], Int[Tensor, "S D"]]:
    """One for the kind of group that it is."""

    def of_group(sums: Sums) -> Int[Tensor, "S D"]:
        kind = _joined(*names)(sums).unique(dim=0, return_inverse=True)[1]
        if len(kind) * (kinds := int(kind.max()) + 1) > MAX_KINDS:
            raise TooLarge(f"groups are of {kinds:,} kinds")
        return one_hot(kind)

    return of_group


def _spread(sums: Sums) -> Int[Tensor, "S 1"] | None:
    """K Σ r² - (Σ r)², K² times the variance of a group's rewards."""
    if sums.level is None:
        return None
    counts = sums.pieces["rewards"]
    return (sums.group_size * (counts @ sums.level.square()) - (counts @ sums.level).square())[:, None]


def _centred_over_tokens(sums: Sums) -> Int[Tensor, "S 3"] | None:
    """Tokens of a group, and sums over its tokens of K (r - mean r) and of its square."""
    if sums.level is None:
        return None
    total = (sums.pieces["rewards"] @ sums.level)[:, None]
    centred, length = sums.group_size * sums.level - total, sums.pieces["tokens by reward"]
    return torch.stack([length.sum(1), (length * centred).sum(1), (length * centred.square()).sum(1)], dim=1)


OWN = (
    Own("nothing", ()),
    Own("the number with each reward", ("rewards",)),
    Own("the tokens", ("tokens",)),
    Own("the number with each reward, and the tokens", ("rewards", "tokens")),
    Own("the number with each reward, and its tokens", ("rewards", "tokens by reward")),
    Own("the number of each reward, length and finish", ("classes",)),
)
"""The cheapest first."""
POOLS = (
    Pool("the tokens", ("tokens",), _joined("tokens")),
    Pool("the variances of the groups' rewards", ("rewards",), _spread, added=False),
    Pool("the number with each reward", ("rewards",), _joined("rewards")),
    Pool("the number with each reward, and the tokens", ("rewards", "tokens"), _joined("rewards", "tokens")),
    Pool("the tokens with each reward", ("tokens by reward",), _joined("tokens by reward")),
    Pool("how many groups have which rewards", ("rewards",), _kinds("rewards"), added=False, kinds=True),
    Pool(
        "the number with each reward, and its tokens",
        ("rewards", "tokens by reward"),
        _joined("rewards", "tokens by reward"),
    ),
    Pool(
        "over tokens, the mean and variance of rewards less their group's mean",
        ("rewards", "tokens by reward"),
        _centred_over_tokens,
        added=False,
    ),
    Pool("the number of each reward, length and finish", ("classes",), _joined("classes")),
    Pool(
        "how many groups have which rewards, and which tokens with each",
        ("rewards", "tokens by reward"),
        _kinds("rewards", "tokens by reward"),
        added=False,
        kinds=True,
    ),
    Pool(
        "how many groups are of which rewards, lengths and finishes",
        ("classes",),
        _kinds("classes"),
        added=False,
        kinds=True,
    ),
)
"""The cheapest first, as a rule."""


def everything(partitions: list[Partition]) -> tuple[Partition, list[Int[Tensor, " C"]]]:
    """The classes of all prompts as one partition without responses, and which of them the classes of each prompt
    are."""
    reward = torch.cat([each.reward for each in partitions])
    values, rank = reward.unique(return_inverse=True)
    key = torch.stack([rank, *(torch.cat([getattr(each, n) for each in partitions]) for n in ("length", "finish"))], 1)
    classes, which = key.unique(dim=0, return_inverse=True)
    none, no_chance = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    whole = Partition(-1, none, none, no_chance, values[classes[:, 0]], classes[:, 1], classes[:, 2])
    return whole, list(which.split([each.size for each in partitions]))
