"""Who else writes: an environment that draws some tokens of a response, as users, tools and games do between turns."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.mdp.tree import PrefixTree


@dataclass(frozen=True, eq=False)
class Environment:
    """Stochastic transitions: after some numbers of tokens the next one is drawn by the environment, not by the policy.

        P(W | prompt) = Π over the policy's steps of π(wₜ | W₀,ₜ₋₁) · Π over the others of env(wₜ | W₀,ₜ₋₁)

    What the environment draws has no score, as env does not depend on the policy's parameters. It may be the end token,
    and it may carry a hidden reward. Masks (`Rollouts.mask`) are False there, as on replies in training.

    Args:
        logits: {number of tokens before: logits of the next one, (P, V, nˡ)}, prefixes as in `PrefixTree.prefix_index`.
            The first token of a response is always the policy's: what an environment says before it is a prompt.
    """

    logits: Mapping[int, Float[Tensor, "P V N"]]

    @property
    def at(self) -> tuple[int, ...]:
        """How many tokens stand before each of the environment's."""
        return tuple(sorted(self.logits))

    @staticmethod
    def random(
        tree: PrefixTree, n_prompts: int, at: tuple[int, ...], generator: torch.Generator, scale: float = 1.0
    ) -> "Environment":
        """Independent normal logits with standard deviation `scale`.

        Raises:
            ValueError: as `check_places`.
        """
        check_places(at, tree.horizon)
        shapes = {place: (n_prompts, tree.vocab_size, tree.level_sizes[place]) for place in at}
        return Environment(
            {
                place: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
                for place, shape in shapes.items()
            }
        )

    def next_logits(
        self, tree: PrefixTree, which: Int[Tensor, " N"], tokens: Int[Tensor, "N T"], place: int
    ) -> Float[Tensor, "N V"]:
        """Logits of the token after the first `place` ones.

        Args: which: the number of each row's prompt.
        """
        return self.logits[place][which, :, tree.prefix_index(tokens)[:, place]]


def policy_steps(horizon: int, environment: Environment | None) -> Bool[Tensor, " T"]:
    """True where the policy draws the token."""
    steps = torch.ones(horizon, dtype=torch.bool)
    if environment is not None:
        steps[list(environment.at)] = False
    return steps


def check_places(at: object, horizon: int) -> None:
    """Raise ValueError, in words, unless these are distinct places in a response, the first token's excepted."""
    if not isinstance(at, list | tuple):
        raise ValueError(
            f"environment_at is {at!r}; it must be a list of whole numbers 1 … {horizon - 1}, such as [1]."
        )
    for place in at:
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < horizon:
            raise ValueError(
                f"environment_at holds {place!r}; it must be a number of tokens that the environment's token follows, "
                f"1 … {horizon - 1}."
            )
        if place == 0:
            raise ValueError(
                "environment_at holds 0, the beginning of the response; what an environment says before the policy's "
                "first token is a prompt, so list it among the prompts with its probability."
            )
    if len(set(at)) < len(at):
        raise ValueError(f"environment_at is {list(at)!r}; name every place once.")


def check_environment(environment: Environment, tree: PrefixTree, n_prompts: int) -> None:
    """Raise ValueError, in words, unless the environment is over this tree and these prompts."""
    check_places(environment.at, tree.horizon)
    for place in environment.at:
        level, expected = environment.logits[place], (n_prompts, tree.vocab_size, tree.level_sizes[place])
        if tuple(level.shape) != expected:
            raise ValueError(
                f"environment.logits[{place}] has shape {tuple(level.shape)}; (prompts, tokens, prefixes) is "
                f"{expected} here."
            )
        if not bool(level.isfinite().all()):
            raise ValueError(f"environment.logits[{place}] holds a number that is not finite; every logit must be.")
