"""Preference pairs for DPO and RTO, labelled by the Bradley-Terry model from response-level rewards."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llm_mdp.estimators.objectives import preference_probability
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PAD, pad_prompts
from llm_mdp.sampling.policies import Policy
from llm_mdp_envs.arguments import check_whole
from llm_mdp_envs.task import Question, Task


@dataclass(frozen=True)
class PreferencePairs:
    """Two responses to each of N prompts and which one was preferred. The rewards that decided are not in here.

    Both responses of a pair may be the same; such a pair has no gradient, but leaving it out would change the loss's
    mean.
    """

    prompt: Int[Tensor, "N L"]
    """PAD (-1) on the left."""
    chosen: Int[Tensor, "N T"]
    """Tokens of the preferred response, PAD after the end."""
    rejected: Int[Tensor, "N T"]
    chosen_mask: Bool[Tensor, "N T"]
    """True where the policy chose the token, its end token included."""
    rejected_mask: Bool[Tensor, "N T"]

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, rows: Int[Tensor, " M"]) -> "PreferencePairs":
        """The pairs with these numbers, for mini-batches."""
        return replace(self, **{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def label_pairs(
    prompt: Int[Tensor, "N L"],
    tokens: Int[Tensor, "N 2 T"],
    mask: Bool[Tensor, "N 2 T"],
    reward: Float[Tensor, "N 2"],
    generator: torch.Generator,
    temperature: float = 1.0,
) -> PreferencePairs:
    """Draw, for every pair of responses, which one is preferred (see `preference_probability`).

    Raises:
        ValueError: if the shapes do not fit each other, and what `preference_probability` raises.
    """
    n, steps = len(prompt), tokens.shape[-1]
    if tokens.shape != (n, 2, steps) or mask.shape != tokens.shape or reward.shape != (n, 2):
        raise ValueError(
            f"tokens {tuple(tokens.shape)}, mask {tuple(mask.shape)} and reward {tuple(reward.shape)} do not fit {n} "
            f"prompts;"
            " they must be (N, 2, T), (N, 2, T) and (N, 2)."
        )
    one, other = reward.double().unbind(-1)
    first_wins = torch.rand(n, generator=generator, dtype=torch.float64) < preference_probability(
        one, other, temperature
    )
    order = torch.where(first_wins[:, None], torch.tensor([0, 1]), torch.tensor([1, 0]))
    tokens, mask = (pair.gather(1, order[..., None].expand_as(pair)) for pair in (tokens, mask))
    return PreferencePairs(prompt, tokens[:, 0], tokens[:, 1], mask[:, 0], mask[:, 1])


def preferences_of_policy(
    mdp: TokenMDP,
    policy: Policy,
    n: int,
    generator: torch.Generator,
    *,
    temperature: float = 1.0,
    sampling_temperature: float = 1.0,
) -> PreferencePairs:
    """n pairs: a prompt by its probability, two independent responses of the policy, and a label from RM.

    Args:
        mdp: a token MDP; its RM(W) decides.
        policy: draws the responses.
        n: number of pairs, at least 1.
        generator: draws prompts, responses and labels.
        temperature: of the preferences.
        sampling_temperature: of the policy.
    """
    if check_whole("n", n) < 1:
        raise ValueError(f"n is {n!r}; draw at least 1 pair.")
    which = torch.multinomial(mdp.prompt_probability, n, replacement=True, generator=generator)
    prompt = mdp.prompt_tokens[which]
    drawn = policy.sample(
        prompt, 2, eos=mdp.eos, horizon=mdp.horizon, generator=generator, temperature=sampling_temperature
    )
    with torch.no_grad():
        reward = mdp.response_reward(drawn.prompt, drawn.tokens, drawn.mask)
    pair = drawn.tokens.reshape(n, 2, -1), drawn.mask.reshape(n, 2, -1)
    return label_pairs(prompt, *pair, reward.reshape(n, 2), generator, temperature)


def preferences_of_task(
    task: Task,
    questions: Sequence[Question],
    tokens: Int[Tensor, "N 2 T"],
    generator: torch.Generator,
    *,
    mask: Bool[Tensor, "N 2 T"] | None = None,
    temperature: float = 1.0,
) -> PreferencePairs:
    """Label two given responses to each question by the task's own score.

    Args:
        task: scores the responses.
        questions: N of the task's questions.
        tokens: the responses, PAD (-1) after the end.
        generator: draws the labels.
        mask: True where the policy chose the token; None: everywhere but on padding (right for one turn).
        temperature: of the preferences.
    """
    tokens = torch.as_tensor(tokens, dtype=torch.int64)
    if tokens.dim() != 3 or tokens.shape[:2] != (len(questions), 2):
        raise ValueError(
            f"tokens has shape {tuple(tokens.shape)} for {len(questions)} questions; it must be ({len(questions)}, 2, "
            f"T)."
        )
    mask = tokens != PAD if mask is None else mask
    twice = [question for question in questions for _ in range(2)]
    scores = task.score(twice, tokens.flatten(0, 1).numpy(), mask.flatten(0, 1).numpy())
    reward = torch.from_numpy(np.asarray(scores.reward, dtype=np.float64)).reshape(-1, 2)
    return label_pairs(
        pad_prompts([question.prompt for question in questions]), tokens, mask, reward, generator, temperature
    )
