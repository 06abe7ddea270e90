"""The draws of one column after another, on the policy's device: who goes on is asked every few columns, because an
accelerator has to finish all that it was given before it can answer."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from llm_mdp.sampling.policies import token_at
from llm_mdp_agents.lm.reader import Memory, Reader

LOOK = 8
"""Columns between two looks at who goes on, where to look is to wait for an accelerator."""
BLOCK, LARGE = 256, 4096
"""Tokens that are summed up at once, and the vocabulary from which on they are."""


def token_by_blocks(logp: Float[Tensor, "N V"], uniform: Float[Tensor, "N 1"]) -> Int[Tensor, " N"]:
    """`token_at` of log-probabilities in float32 over a large vocabulary, for a tenth: first a block of tokens, by sums
    in float32 that are added up in float64, then a token within it. Probabilities are those of `logp` up to its own
    rounding, about 1e-7 of each, and a token that is forbidden is never drawn. As there, a row that is not of numbers,
    as one that has ended may be, gives some token."""
    vocab_size = logp.shape[1]
    if logp.dtype != torch.float32 or vocab_size < LARGE:
        return token_at(logp, uniform)
    probability = logp.exp()
    if rest := -vocab_size % BLOCK:
        probability = pad(probability, (0, rest))
    probability = probability.unflatten(1, (-1, BLOCK))
    upto = probability.sum(-1).double().cumsum(-1)
    target = uniform * upto[:, -1:]
    block = torch.searchsorted(upto, target, right=True).clamp(max=upto.shape[1] - 1)
    end = upto.gather(1, block)
    start = torch.where(block == 0, 0.0, upto.gather(1, (block - 1).clamp(min=0)))
    within = probability.take_along_dim(block[:, :, None], dim=1)[:, 0].double().cumsum(-1)
    # Less than all of the block, whatever was rounded, so that what is drawn has a probability.
    total = within[:, -1:]
    target = torch.minimum((target - start) / (end - start) * total, total.nextafter(torch.zeros_like(total)))
    return (block * BLOCK + torch.searchsorted(within, target, right=True))[:, 0].clamp(max=vocab_size - 1)


class Uniform:
    """Uniform numbers of a generator on the CPU for rows of which nobody has looked yet how many go on. They are drawn
    ahead; then the generator is put where it is when only those are drawn that were taken."""

    numbers: Float[Tensor, " M"]
    used: Int[Tensor, ""]

    def __init__(self, generator: torch.Generator, device: torch.device):
        self.generator, self.device = generator, device

    def ahead(self, most: int) -> None:
        """Have so many at hand."""
        self.before, self.used = self.generator.get_state(), torch.zeros((), dtype=torch.int64, device=self.device)
        numbers = torch.rand(most, generator=self.generator, dtype=torch.float64)
        self.numbers = numbers.to(self.device, non_blocking=True)

    def take(self, going: Bool[Tensor, " N"]) -> Float[Tensor, "N 1"]:
        """The next ones for the rows that go on, in their order; any for the others."""
        place = (self.used + going.cumsum(0) - 1).clamp(min=0)
        self.used = self.used + going.sum()
        return self.numbers[place][:, None]

    def settle(self, used: int) -> None:
        """The rest was not drawn."""
        if used < len(self.numbers):
            self.generator.set_state(self.before)
            torch.rand(used, generator=self.generator, dtype=torch.float64)


@dataclass
class Drawing:
    """Responses while they are drawn; all but the prompts is on the policy's device."""

    policy: Reader
    prompt: Int[Tensor, "R L"]
    tokens: Int[Tensor, "R T"]
    length: Int[Tensor, " R"]
    alive: Bool[Tensor, " R"]
    ends: Int[Tensor, " E"]
    """Tokens after which a row draws no more."""
    generator: torch.Generator
    temperature: float
    greedy: bool
    logp: Float[Tensor, "R T"] = field(init=False)

    def __post_init__(self) -> None:
        self.logp = torch.zeros(self.tokens.shape, dtype=torch.float64, device=self.tokens.device)

    def run(
        self,
        batch: Int[Tensor, " N"],
        most: int,
        memory: Memory,
        logits: Float[Tensor, "N V"],
        leave: Callable[[Int[Tensor, " n"], Int[Tensor, " n"], Memory], None],
    ) -> None:
        """Draw until these rows, which all go on, have ended: at most `most` tokens each.

        Args:
            memory: what was read of them.
            logits: the scores of the next token of each.
            leave: is told which rows leave, and where what is kept of them still is.
        """
        policy, device = self.policy, self.policy.device
        # What a policy may draw is known on the CPU only, from all tokens so far.
        every = 1 if device.type == "cpu" or policy.is_masked else LOOK
        uniform = Uniform(self.generator, device)
        rows, asked = batch.to(device, non_blocking=True), torch.arange(len(batch))
        for column in range(most):
            if column % every == 0:
                uniform.ahead(0 if self.greedy else min(every, most - column) * len(asked))
            some = len(asked) < len(batch)
            place = asked.to(device, non_blocking=True) if some else asked
            self._draw(rows[place] if some else rows, logits[place] if some else logits, uniform)
            if column + 1 == most or (column + 1) % every == 0:
                *alive, used = torch.cat([self.alive[rows], uniform.used[None]]).tolist()
                uniform.settle(used)
                asked = torch.tensor(alive, dtype=torch.bool).nonzero()[:, 0]
                if len(asked) == 0:
                    break
                if memory.shrinks and 2 * len(asked) < len(batch):
                    ended = torch.isin(torch.arange(len(batch)), asked, invert=True).nonzero()[:, 0]
                    leave(batch[ended], ended.to(device), memory)
                    kept = asked.to(device, non_blocking=True)
                    batch, rows, asked = batch[asked], rows[kept], torch.arange(len(asked))
                    memory.take(kept)
            newest = self.tokens[rows, self.length[rows] - 1][:, None]
            # A row that has ended reads its last token again and again until it leaves the batch; nobody looks at what
            # comes out.
            logits = memory.read(newest, self.alive[rows])
        leave(batch, torch.arange(len(batch), device=device), memory)

    def _draw(self, rows: Int[Tensor, " n"], logits: Float[Tensor, "n V"], uniform: Uniform) -> None:
        """The next token of those among these rows that go on."""
        going, length = self.alive[rows], self.length[rows]
        if self.policy.is_masked:
            places = self.prompt, self.tokens.cpu(), rows.cpu(), length.cpu()
            logits = self.policy.constrained(logits, *places)
        logp = (logits if self.temperature == 1 else logits / self.temperature).log_softmax(-1)
        token = logp.argmax(-1) if self.greedy else token_by_blocks(logp, uniform.take(going))
        place = rows, length.clamp(max=self.tokens.shape[1] - 1)
        chosen = logp.gather(-1, token[:, None])[:, 0].double()
        self.tokens[place] = torch.where(going, token, self.tokens[place])
        self.logp[place] = torch.where(going, chosen, self.logp[place])
        length = length + going
        self.length[rows] = length
        ended = (token[:, None] == self.ends).any(-1) | (length >= self.tokens.shape[1])
        self.alive[rows] = going & ~ended
