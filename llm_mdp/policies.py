"""Policies π(wₜ | W₀,ₜ₋₁): the protocol that tables, n-gram tables and language models share, and the two kinds of table."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_mdp.evidence import Finish, Rollouts
from llm_mdp.tree import PAD, PrefixTree, context, context_code, gather_levels, prompt_index


@runtime_checkable
class Policy(Protocol):
    """What everything here asks of a policy. It is also a `torch.nn.Module`: its parameters are what gradients are taken by."""

    vocab_size: int

    def logits(self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"]) -> Float[Tensor, "*batch T V"]:
        """Logits of every step: entry t scores the token at t from the prompt and tokens[:t] only. Anything after the end."""
        ...

    def sample(
        self,
        prompt: Int[Tensor, "P L"],
        n: int,
        *,
        eos: int | None,
        horizon: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        prefix: Int[Tensor, "P t"] | None = None,
    ) -> Rollouts:
        """Draw n responses a prompt, rows of one prompt adjacent; with `prefix`, responses that begin with it (logp 0 there: those
        tokens were given, not drawn)."""
        ...


def logp_of(
    policy: Policy,
    prompt: Int[Tensor, "*batch L"],
    tokens: Int[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"],
    temperature: float = 1.0,
) -> Float[Tensor, "*batch T"]:
    """log π(wₜ | W₀,ₜ₋₁) of given tokens, 0 where mask is False. The temperature divides the logits, as it does when sampling."""
    logp = (policy.logits(prompt, tokens) / temperature).log_softmax(-1)
    return torch.where(mask, logp.gather(-1, tokens.clamp(min=0)[..., None])[..., 0], 0.0)


class PolicyModule(nn.Module):
    """Base of the policies in this package: token-by-token sampling from `logits`. Override `sample` where there is a faster way."""

    vocab_size: int
    kind: str = "own"
    """For reports."""

    def logits(self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"]) -> Float[Tensor, "*batch T V"]:
        raise NotImplementedError(f"{type(self).__name__} has no `logits`.")

    @torch.no_grad()
    def sample(self, prompt, n, *, eos, horizon, generator, temperature=1.0, prefix=None):
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; it must be above 0 (branches take greedy=True instead of 0).")
        prompt = prompt.repeat_interleave(n, dim=0)
        tokens = torch.full((len(prompt), horizon), PAD)
        start = 0 if prefix is None else prefix.shape[-1]
        if prefix is not None:
            tokens[:, :start] = prefix.repeat_interleave(n, dim=0)
        logp = torch.zeros(tokens.shape, dtype=torch.float64)
        alive = ((tokens[:, :start] != PAD) & (tokens[:, :start] != (PAD if eos is None else eos))).all(-1)
        for step in range(start, horizon):
            step_logp = (self.logits(prompt, tokens[:, : step + 1])[:, step] / temperature).log_softmax(-1)
            token = torch.multinomial(step_logp.exp(), 1, generator=generator)
            tokens[:, step] = torch.where(alive, token[:, 0], PAD)
            logp[:, step] = torch.where(alive, step_logp.gather(-1, token)[:, 0].to(torch.float64), 0.0)
            alive = alive & (token[:, 0] != (PAD if eos is None else eos))
            if not alive.any():
                break
        return Rollouts(prompt, tokens, tokens != PAD, logp, finish_of(tokens, eos))


def finish_of(tokens: Int[Tensor, "*batch T"], eos: int | None) -> Int[Tensor, "*batch"]:
    """EOS where the response holds the end token, HORIZON otherwise."""
    ended = (tokens == eos).any(-1) if eos is not None else torch.zeros(tokens.shape[:-1], dtype=torch.bool)
    return torch.where(ended, int(Finish.EOS), int(Finish.HORIZON))


class TabularPolicy(PolicyModule):
    """One row of logits for every prefix: the richest policy there is, with an independent gradient at every state.

    Parameters `levels[l]`: (P, V, nˡ), float64; prefixes on the last axis in the order of `PrefixTree.prefix_index`.
    """

    kind = "tabular"

    def __init__(self, tree: PrefixTree, prompts: Int[Tensor, "P L"], levels: list[Float[Tensor, "P V N"]]):
        super().__init__()
        self.tree, self.prompts, self.vocab_size = tree, prompts, tree.vocab_size
        self.levels = nn.ParameterList([nn.Parameter(level.to(torch.float64)) for level in levels])

    @classmethod
    def random(cls, tree: PrefixTree, prompts: Int[Tensor, "P L"], generator: torch.Generator, scale: float = 1.0) -> "TabularPolicy":
        """Independent normal logits with standard deviation `scale` (0: the uniform policy)."""
        shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
        return cls(tree, prompts, [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes])

    def logits(self, prompt, tokens):
        which, index = prompt_index(prompt, self.prompts), self.tree.prefix_index(tokens)
        return torch.stack(gather_levels(list(self.levels), which, index), dim=-2)


class NgramPolicy(PolicyModule):
    """Shared parameters: logits depend on the last `order` tokens (prompt included) and, optionally, on the step.

    Parameter `table`: (S, (V+1)^order, V), float64, S = horizon if `steps` else 1; rows as in `tree.context_code`.
    """

    kind = "n-gram"

    def __init__(self, table: Float[Tensor, "S C V"], order: int):
        super().__init__()
        self.order, self.vocab_size = order, table.shape[-1]
        if table.shape[1] != (self.vocab_size + 1) ** order:
            raise ValueError(
                f"table has {table.shape[1]} contexts; order {order} over {self.vocab_size} tokens has {(self.vocab_size + 1) ** order}."
            )
        self.table = nn.Parameter(table.to(torch.float64))

    @classmethod
    def random(
        cls, vocab_size: int, order: int, generator: torch.Generator, *, horizon: int | None = None, scale: float = 1.0
    ) -> "NgramPolicy":
        """Independent normal logits; `horizon` gives every step its own."""
        shape = (horizon or 1, (vocab_size + 1) ** order, vocab_size)
        return cls(scale * torch.randn(shape, generator=generator, dtype=torch.float64), order)

    def logits(self, prompt, tokens):
        code = context_code(context(prompt, tokens, self.order), self.vocab_size)
        step = torch.arange(tokens.shape[-1]).clamp(max=self.table.shape[0] - 1)
        return self.table[step.expand(code.shape), code]


class TabularValue:
    """A number for every prefix, as a critic: value[…, t] belongs to the prefix before step t, 0 from the end on. levels[l]: (P, nˡ)."""

    def __init__(self, tree: PrefixTree, prompts: Int[Tensor, "P L"], levels: list[Float[Tensor, "P N"]]):
        self.tree, self.prompts, self.levels = tree, prompts, levels

    @classmethod
    def random(cls, tree: PrefixTree, prompts: Int[Tensor, "P L"], generator: torch.Generator, scale: float = 1.0) -> "TabularValue":
        return cls(
            tree,
            prompts,
            [scale * torch.randn((len(prompts), size), generator=generator, dtype=torch.float64) for size in tree.level_sizes],
        )

    def __call__(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T1"]:
        which, index = prompt_index(prompt, self.prompts), self.tree.prefix_index(tokens)
        value = torch.stack(gather_levels(self.levels, which, index), dim=-1)
        return torch.cat([torch.where(mask, value, 0.0), torch.zeros_like(value[..., :1])], dim=-1)


class Critic(Protocol):
    """A value of prefixes: exact, wrong on purpose, or learned."""

    def __call__(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T1"]: ...
