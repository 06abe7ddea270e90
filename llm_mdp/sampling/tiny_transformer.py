"""A transformer small enough for exact verification: GPT-2's block once, eight numbers wide, two heads, in float64."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, pad

from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import PolicyModule

WIDTH, HEADS, INNER = 8, 2, 32
SPREAD = 0.5
"""Standard deviation of its weights at random; of those that end on the residual stream over √2."""


class TinyTransformer(PolicyModule):
    """π(wₜ | W₀,ₜ₋₁) from GPT-2's architecture (Radford et al. 2019), without `transformers`, whose import takes longer
    than what is verified with it. With the same seed it is `llm_mdp_agents.lm.policy.tiny_transformer`.

    Args:
        vocab_size: V. Token V is put before every prompt.
        length: longest prompt plus response.
        seed: of the weights; the global generator is left as it was.
    """

    kind = "transformer"

    def __init__(self, vocab_size: int, length: int, seed: int = 0):
        super().__init__()
        self.vocab_size = vocab_size
        shapes = {
            "token": (vocab_size + 1, WIDTH),
            "position": (length + 1, WIDTH),
            "attend": (WIDTH, 3 * WIDTH),
            "attended": (WIDTH, WIDTH),
            "think": (WIDTH, INNER),
            "thought": (INNER, WIDTH),
        }
        drawn = _drawn(shapes, seed)
        self.token, self.position = drawn["token"], drawn["position"]
        self.before_attention = _Norm()
        self.attend, self.attended = _Linear(drawn["attend"]), _Linear(drawn["attended"])
        self.before_thought = _Norm()
        self.think, self.thought = _Linear(drawn["think"]), _Linear(drawn["thought"])
        self.last = _Norm()

    def logits(self, prompt, tokens):
        shape = tokens.shape
        prompt = prompt.expand(*shape[:-1], prompt.shape[-1]).flatten(0, -2)
        tokens = tokens.reshape(-1, shape[-1])
        lead = self._lead(prompt)
        text = torch.cat([lead, tokens[:, :-1]], dim=1)
        there = torch.cat([lead != PAD, torch.ones_like(tokens[:, :-1], dtype=torch.bool)], dim=1)
        state = self._states(text.clamp(min=0), there)[:, lead.shape[1] - 1 :]
        return (state @ self.token[: self.vocab_size].T).view(*shape, self.vocab_size)

    def next_logits(self, prompt, tokens, row, step):
        return self.logits(prompt[row], tokens[row])[torch.arange(len(row)), step]

    def _lead(self, prompt: Int[Tensor, "B L"]) -> Int[Tensor, "B L1"]:
        """The prompt, with the first token of all texts right before it."""
        lead = pad(prompt, (1, 0), value=PAD)
        begins = (lead == PAD) & (pad(lead[:, 1:], (0, 1)) != PAD)
        begins[:, -1] |= (prompt == PAD).all(-1)
        return torch.where(begins, self.vocab_size, lead)

    def _states(self, text: Int[Tensor, "B S"], there: Bool[Tensor, "B S"]) -> Float[Tensor, "B S width"]:
        """After the last norm, of every place; what is not there is not attended to."""
        place = (there.cumsum(-1) - 1).clamp(min=0)
        state = self.token[text] + self.position[place]
        seen = there[:, None, :] & torch.ones(text.shape[1], text.shape[1], dtype=torch.bool).tril()
        state = state + self.attended(self._heads(self.attend(self.before_attention(state)), seen))
        state = state + self.thought(gelu(self.think(self.before_thought(state)), approximate="tanh"))
        return self.last(state)

    @staticmethod
    def _heads(mixed: Float[Tensor, "B S width3"], seen: Bool[Tensor, "B S S"]) -> Float[Tensor, "B S width"]:
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in mixed.split(WIDTH, dim=-1))
        score = query @ key.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        # A place that nothing is before of, left of a text, attends to all alike, and nobody to it.
        score = score.masked_fill(~seen[:, None], torch.finfo(score.dtype).min)
        return (score.softmax(-1) @ value).transpose(1, 2).flatten(-2)


class _Linear(nn.Module):
    """x W + b."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight, self.bias = weight, nn.Parameter(torch.zeros(weight.shape[1], dtype=torch.float64))

    def forward(self, x: Float[Tensor, "... n"]) -> Float[Tensor, "... m"]:
        return x @ self.weight + self.bias


class _Norm(nn.Module):
    """Layer norm."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return layer_norm(x, (WIDTH,), self.weight, self.bias)


def _drawn(shapes: dict[str, tuple[int, int]], seed: int) -> dict[str, nn.Parameter]:
    """Normal weights, in the order in which `transformers` draws those of a GPT-2: once as PyTorch does, then as
    GPT-2's authors do, those of the residual stream twice."""
    generator = torch.Generator().manual_seed(seed)

    def normal(name: str, spread: float) -> Tensor:
        return torch.empty(shapes[name]).normal_(0.0, spread, generator=generator)

    for name in shapes:
        normal(name, SPREAD)
    found = {}
    for name in shapes:
        found[name] = normal(name, SPREAD)
        if name in ("attended", "thought"):
            found[name] = normal(name, SPREAD / math.sqrt(2))
    return {name: nn.Parameter(weight.double()) for name, weight in found.items()}
