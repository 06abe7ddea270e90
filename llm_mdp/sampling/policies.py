"""Policies π(wₜ | W₀,ₜ₋₁): the protocol that tables, n-gram tables and language models share, and the two kinds of
table."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_mdp.mdp.tree import PAD, PrefixTree, context, context_code, gather_levels, prompt_index
from llm_mdp.sampling.evidence import Finish, Rollouts
from llm_mdp.sampling.token_masks import TokenMask, both, check_some

PolicyKind = Literal["tabular", "ngram", "transformer"]
"""The kinds of policy that commands make."""

Ends = int | tuple[int, ...] | None
"""Which tokens end a response: one, several (models of chats often have two), or none."""


@runtime_checkable
class Policy(Protocol):
    """What everything here asks of a policy. It is also a `torch.nn.Module`: its parameters are what gradients are
    taken by."""

    vocab_size: int

    def logits(self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"]) -> Float[Tensor, "*batch T V"]:
        """Logits of every step: entry t scores the token at t from the prompt and tokens[:t] only. Anything after the
        end."""
        ...

    def sample(
        self,
        prompt: Int[Tensor, "P L"],
        n: int,
        *,
        eos: Ends,
        horizon: int,
        generator: torch.Generator,
        temperature: float = 1.0,
        prefix: Int[Tensor, "P t"] | None = None,
        greedy: bool = False,
        stop: tuple[int, ...] = (),
    ) -> Rollouts:
        """Draw n responses a prompt, rows of one prompt adjacent.

        Args:
            eos: what ends a response.
            prefix: how the responses begin, PAD on the right where one is shorter (logp 0 there: given, not drawn).
            greedy: take the most probable token (ties: the lowest id) instead of drawing; logp is still that of the
                policy.
            stop: tokens that end the drawing as `eos` does, but do not end a response that begins with them (ends of
                turns).
        """
        ...


def token_logp(
    logits: Float[Tensor, "*batch T V"],
    tokens: Int[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"],
    temperature: float = 1.0,
) -> Float[Tensor, "*batch T"]:
    """log-probabilities of given tokens, 0 where mask is False. The temperature divides the logits, as it does when
    sampling."""
    logp = (logits if temperature == 1 else logits / temperature).log_softmax(-1)
    return torch.where(mask, logp.gather(-1, tokens.clamp(min=0)[..., None])[..., 0], 0.0)


def logp_of(
    policy: Policy,
    prompt: Int[Tensor, "*batch L"],
    tokens: Int[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"],
    temperature: float = 1.0,
) -> Float[Tensor, "*batch T"]:
    """log π(wₜ | W₀,ₜ₋₁) of given tokens, by the policy's own `logp` if it has a faster way than its logits."""
    if (own := getattr(policy, "logp", None)) is not None:
        return own(prompt, tokens, mask, temperature)
    return token_logp(policy.logits(prompt, tokens), tokens, mask, temperature)


def branch_of(
    policy: Policy,
    prompt: Int[Tensor, "B L"],
    tokens: Int[Tensor, "B T"],
    row: Int[Tensor, " F"],
    step: Int[Tensor, " F"],
    samples: int,
    **options: Any,
) -> Rollouts:
    """`samples` fresh responses from the prefix tokens[row, :step] of every (row, step): F · samples rows, those of one
    prefix adjacent.

    Args: options: as for `Policy.sample`. The policy's own `branch` is asked if it has one (language models reuse their
        caches).
    """
    if (own := getattr(policy, "branch", None)) is not None:
        return own(prompt, tokens, row, step, samples, **options)
    return policy.sample(prompt[row], samples, prefix=prefixes_of(tokens, row, step), **options)


def prefixes_of(tokens: Int[Tensor, "B T"], row: Int[Tensor, " F"], step: Int[Tensor, " F"]) -> Int[Tensor, "F T"]:
    """tokens[row, :step], PAD from there on."""
    return torch.where(torch.arange(tokens.shape[-1]) < step[:, None], tokens[row], PAD)


def draw_tokens(logp: Float[Tensor, "N V"], generator: torch.Generator) -> Int[Tensor, " N"]:
    """One token a row by the inverse of its cumulative distribution, from one uniform number a row that is drawn on the
    CPU: the same seed gives the same tokens on every device."""
    uniform = torch.rand(len(logp), 1, generator=generator, dtype=torch.float64)
    return token_at(logp, uniform.to(logp.device, non_blocking=True))


def token_at(logp: Float[Tensor, "N V"], uniform: Float[Tensor, "N 1"]) -> Int[Tensor, " N"]:
    """The token of every row at which its cumulative distribution passes the uniform number."""
    cumulative = logp.double().exp().cumsum(-1)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)[:, 0].clamp(max=logp.shape[-1] - 1)


def _within_masks(logits: Callable[[Any, Tensor, Tensor], Tensor]) -> Any:
    """`PolicyModule.logits` with -inf where a token is forbidden. Where a mask forbids everything, as it may while the
    environment writes, so does this."""

    @wraps(logits)
    def constrained(self: "PolicyModule", prompt: Tensor, tokens: Tensor) -> Tensor:
        found = logits(self, prompt, tokens)
        if not self.is_masked:
            return found
        flat = tokens.reshape(-1, tokens.shape[-1])
        row, step = torch.ones_like(flat).nonzero().unbind(1)
        prompt = prompt.expand(*tokens.shape[:-1], prompt.shape[-1]).reshape(len(flat), prompt.shape[-1])
        if (allowed := self.allowed(prompt, flat, row, step)) is None:
            return found
        return found.masked_fill(~allowed.reshape(found.shape).to(found.device), -torch.inf)

    return constrained


class PolicyModule(nn.Module):
    """Base of the policies in this package: token-by-token sampling from `logits`. Override `next_logits`, `sample` or
    a `logp` where there is a faster way.

    Forbidden tokens have the logit -inf, in sampling and in scoring: so a response that is drawn is scored with the
    probabilities that it was drawn with, which sum to 1 over the allowed tokens. What a subclass's `logits` gives, and
    what `sample` asks of its `next_logits`, goes through the masks by itself; a `sample` or `logp` of its own calls
    `constrained`.
    """

    vocab_size: int
    kind: str = "own"
    """For reports."""
    token_subset: TokenMask | None = None
    """The tokens that this policy ever draws; None: all."""
    action_mask: TokenMask | None = None
    """What the task at hand allows; whoever asks the policy about a task sets it. None: everything."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "logits" in vars(cls):
            cls.logits = _within_masks(cls.logits)

    @property
    def is_masked(self) -> bool:
        """Is anything forbidden anywhere?"""
        return self.token_subset is not None or self.action_mask is not None

    def allowed(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], row: Int[Tensor, " N"], step: Int[Tensor, " N"]
    ) -> Bool[Tensor, "N V"] | None:
        """Which tokens may come at every (row, step), by `token_subset` and `action_mask` together; None: every
        one."""
        masks = [mask for mask in (self.token_subset, self.action_mask) if mask is not None]
        if not masks:
            return None
        places = prompt[row], prefixes_of(tokens, row, step)
        first, *rest = (mask(*places) for mask in masks)
        return both(first, rest[0] if rest else None, self.vocab_size)

    def constrained(
        self,
        logits: Float[Tensor, "N V"],
        prompt: Int[Tensor, "B L"],
        tokens: Int[Tensor, "B T"],
        row: Int[Tensor, " N"],
        step: Int[Tensor, " N"],
    ) -> Float[Tensor, "N V"]:
        """Logits of the token at every (row, step), -inf where it is forbidden; their gradient is exactly 0 there.

        Raises:
            ValueError: if no token is allowed somewhere.
        """
        if (allowed := self.allowed(prompt, tokens, row, step)) is None:
            return logits
        check_some(allowed, tokens, row, step)
        return logits.masked_fill(~allowed.to(logits.device), -torch.inf)

    def logits(self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"]) -> Float[Tensor, "*batch T V"]:
        raise NotImplementedError(f"{type(self).__name__} has no `logits`.")

    def forward(
        self,
        prompt: Int[Tensor, "*batch L"],
        tokens: Int[Tensor, "*batch T"],
        mask: Bool[Tensor, "*batch T"],
        temperature: float = 1.0,
    ) -> Float[Tensor, "*batch T"]:
        """`logp_of`: what training differentiates, as a module's forward, so that wrappers (DDP, FSDP) see it."""
        return logp_of(self, prompt, tokens, mask, temperature)

    def next_logits(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], row: Int[Tensor, " N"], step: Int[Tensor, " N"]
    ) -> Float[Tensor, "N V"]:
        """Logits of the token at every (row, step), before the masks: what `sample` asks of one step of the rows that
        go on. Here the whole prefix is read anew, which makes long responses quadratic."""
        return self.logits(prompt[row], tokens[row, : int(step.max()) + 1])[torch.arange(len(row)), step]

    @torch.no_grad()
    def sample(self, prompt, n, *, eos, horizon, generator, temperature=1.0, prefix=None, greedy=False, stop=()):
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature!r}; it must be above 0 (greedy=True instead of 0).")
        prompt = prompt.repeat_interleave(n, dim=0)
        tokens = torch.full((len(prompt), horizon), PAD)
        if prefix is not None:
            tokens[:, : prefix.shape[-1]] = prefix.repeat_interleave(n, dim=0)
        logp = torch.zeros(tokens.shape, dtype=torch.float64)
        length = (tokens != PAD).sum(-1)
        ends = as_tensor(eos, stop)
        alive = (length < horizon) & ~is_end(tokens, eos).any(-1)
        while alive.any():
            row = alive.nonzero()[:, 0]
            step = length[row]
            logits = self.constrained(self.next_logits(prompt, tokens, row, step), prompt, tokens, row, step)
            step_logp = (logits / temperature).log_softmax(-1)
            token = step_logp.argmax(-1) if greedy else draw_tokens(step_logp, generator)
            tokens[row, step] = token
            logp[row, step] = step_logp.gather(-1, token[:, None])[:, 0].to(torch.float64)
            length[row] += 1
            alive[row] = ~torch.isin(token, ends) & (length[row] < horizon)
        return Rollouts(prompt, tokens, tokens != PAD, logp, finish_of(tokens, eos))


def as_tensor(*ends: Ends) -> Int[Tensor, " E"]:
    """All these tokens, those that are None left out."""
    several = [(each,) if isinstance(each, int) else each or () for each in ends]
    return torch.tensor([token for each in several for token in each], dtype=torch.int64)


def is_end(tokens: Int[Tensor, "*batch T"], eos: Ends) -> Bool[Tensor, "*batch T"]:
    """Where an end token stands."""
    return torch.isin(tokens, as_tensor(eos))


def finish_of(tokens: Int[Tensor, "*batch T"], eos: Ends) -> Int[Tensor, "*batch"]:
    """EOS where the response holds an end token, HORIZON otherwise."""
    return torch.where(is_end(tokens, eos).any(-1), int(Finish.EOS), int(Finish.HORIZON))


def ended_by(
    finish: Int[Tensor, "*batch"], tokens: Int[Tensor, "*batch T"], policy_steps: Bool[Tensor, " T"]
) -> Int[Tensor, "*batch"]:
    """`finish_of`, but ENVIRONMENT where the end token was the environment's."""
    last = ((tokens >= 0).sum(-1) - 1).clamp(min=0)
    return torch.where((finish == Finish.EOS) & ~policy_steps[last], int(Finish.ENVIRONMENT), finish)


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
    def random(
        cls, tree: PrefixTree, prompts: Int[Tensor, "P L"], generator: torch.Generator, scale: float = 1.0
    ) -> "TabularPolicy":
        """Independent normal logits with standard deviation `scale` (0: the uniform policy)."""
        shapes = [(len(prompts), tree.vocab_size, size) for size in tree.level_sizes]
        return cls(
            tree, prompts, [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        )

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
                f"table has {table.shape[1]} contexts; order {order} over {self.vocab_size} tokens has "
                f"{(self.vocab_size + 1) ** order}."
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

    def next_logits(self, prompt, tokens, row, step):
        return self.table[self.table_row(prompt, tokens, row, step)]

    def table_row(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], row: Int[Tensor, " N"], step: Int[Tensor, " N"]
    ) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
        """Where in `table` the logits of the token at every (row, step) are, from the last `order` tokens alone."""
        place = step[:, None] + torch.arange(-self.order, 0)
        # Places before the response count from its beginning backwards, as indices from the end of the prompt do.
        before = pad(prompt, (self.order, 0), value=PAD)[row[:, None], place.clamp(max=-1)]
        window = torch.where(place < 0, before, tokens[row[:, None], place.clamp(min=0)])
        return step.clamp(max=self.table.shape[0] - 1), context_code(window, self.vocab_size)


class AtTemperature(PolicyModule):
    """Another policy with its logits divided by a temperature."""

    def __init__(self, policy: Policy, temperature: float):
        super().__init__()
        self.policy, self.temperature, self.vocab_size = policy, temperature, policy.vocab_size

    def logits(self, prompt, tokens):
        return self.policy.logits(prompt, tokens) / self.temperature


class Greedy(PolicyModule):
    """Another policy's most probable token at every step (ties: the lowest token id), all others with probability 0."""

    IMPOSSIBLE = -1e4
    """A logit whose exponential is 0 and which can be added up and subtracted again."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, self.vocab_size = policy, policy.vocab_size

    def logits(self, prompt, tokens):
        logits = self.policy.logits(prompt, tokens)
        return torch.full_like(logits, self.IMPOSSIBLE).scatter(-1, logits.argmax(-1, keepdim=True), 0.0)


class TabularValue:
    """A number for every prefix, as a critic: value[…, t] belongs to the prefix before step t, 0 from the end on.
    levels[l]: (P, nˡ)."""

    def __init__(self, tree: PrefixTree, prompts: Int[Tensor, "P L"], levels: list[Float[Tensor, "P N"]]):
        self.tree, self.prompts, self.levels = tree, prompts, levels

    @classmethod
    def random(
        cls, tree: PrefixTree, prompts: Int[Tensor, "P L"], generator: torch.Generator, scale: float = 1.0
    ) -> "TabularValue":
        shapes = [(len(prompts), size) for size in tree.level_sizes]
        levels = [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        return cls(tree, prompts, levels)

    def __call__(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T1"]:
        which, index = prompt_index(prompt, self.prompts), self.tree.prefix_index(tokens)
        value = torch.stack(gather_levels(self.levels, which, index), dim=-1)
        return torch.cat([torch.where(tokens >= 0, value, 0.0), torch.zeros_like(value[..., :1])], dim=-1)


class Critic(Protocol):
    """A value of prefixes: exact, wrong on purpose, or learned."""

    def __call__(
        self, prompt: Int[Tensor, "*batch L"], tokens: Int[Tensor, "*batch T"], mask: Bool[Tensor, "*batch T"]
    ) -> Float[Tensor, "*batch T1"]: ...
