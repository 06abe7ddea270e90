"""Drawing responses that a policy and the environment of a token MDP write in turn."""

from itertools import groupby

import torch
from jaxtyping import Int
from torch import Tensor

from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.mdp.tree import PAD, prompt_index
from llm_mdp.sampling.evidence import Rollouts
from llm_mdp.sampling.policies import Policy, draw_tokens, ended_by, finish_of


@torch.no_grad()
def converse(
    policy: Policy,
    mdp: TokenMDP,
    prompt: Int[Tensor, "N L"],
    prefix: Int[Tensor, "N T"],
    *,
    generator: torch.Generator,
    temperature: float = 1.0,
    greedy: bool = False,
) -> Rollouts:
    """Go on from every prefix to the end of the response.

    Args:
        prefix: how the responses begin, PAD on the right.
        temperature, greedy: of the policy, as in `Policy.sample`; the environment has none.

    Returns:
        Rollouts whose mask is False where the environment drew the token; logp is 0 there and on the prefix.
    """
    tokens, logp = prefix.clone(), torch.zeros(prefix.shape, dtype=torch.float64)
    which = prompt_index(prompt, mdp.prompt_tokens)
    shape = {"eos": mdp.eos, "generator": generator, "temperature": temperature, "greedy": greedy}
    for own, steps in groupby(range(mdp.horizon), key=mdp.policy_steps.tolist().__getitem__):
        steps = list(steps)
        for start in steps[:1] if own else steps:
            stop = steps[-1] + 1 if own else start + 1
            length = (tokens != PAD).sum(-1)
            ended = (tokens == mdp.eos).any(-1) if mdp.eos is not None else torch.zeros(len(tokens), dtype=torch.bool)
            row = ((length >= start) & (length < stop) & ~ended).nonzero()[:, 0]
            if own and len(row):
                drawn = policy.sample(prompt[row], 1, horizon=stop, prefix=tokens[row, :stop], **shape)
                tokens[row, :stop] = drawn.tokens
                logp[row, :stop] += drawn.logp
            elif mdp.environment is not None and len(row):
                logits = mdp.environment.next_logits(mdp.tree, which[row], tokens[row], start)
                tokens[row, start] = draw_tokens(logits.log_softmax(-1), generator)
    mask = (tokens != PAD) & mdp.policy_steps
    finish = ended_by(finish_of(tokens, mdp.eos), tokens, mdp.policy_steps)
    return Rollouts(prompt, tokens, mask, logp, finish)
