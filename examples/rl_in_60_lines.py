"""Reinforcement learning on tokens, from top to bottom: `python examples/rl_in_60_lines.py`, a few seconds.

A task asks, a policy answers, an estimator says how much every token is worth, an optimizer takes a step. These are the
parts that `llm-mdp train rloo Tabular --steps 100` is made of, and the rewards are the same ones; what it has more of
is micro-batches, several processes, checkpoints and curves.
"""

import torch

from llm_mdp import RLOO, TabularPolicy
from llm_mdp.sampling.policies import logp_of
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_agents.training.evaluation import expected_reward
from llm_mdp_envs.tasks.synthetic import Tabular, optimum

# 4 tokens, at most 4 a response. Every token has a reward that stays hidden; the task tells their sum, at the end.
task = Tabular()

# A table of logits, one row for every beginning of a response: all tokens are equally likely at first. Any
# torch.nn.Module with `logits` and `sample` would do; `llm_mdp_agents.lm.loading.load_policy` makes one of a language
# model.
policy = TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator(), scale=0.0)

# The object that `llm-mdp verify` proves unbiased: each response's reward, less the mean of the 7 others to its prompt.
estimator = RLOO(group_size=8)
optimizer = torch.optim.AdamW(policy.parameters(), lr=0.05, weight_decay=0.0)

# All that is random here: which prompts are asked, and which tokens are drawn.
generator, questions = streams([0, 0])
sampler = TaskSampler(policy, task, generator, questions, prompts_per_batch=128)

print(f"at first   expected reward {expected_reward(policy, task.mdp):6.3f}, the best response's {optimum(task):.3f}")
for step in range(1, 101):
    # Ask 128 prompts, draw 8 responses to each, hear one reward for each response. No gradient here.
    evidence = estimator.collect(sampler)

    # log π of every token that was drawn; now with a gradient.
    drawn = evidence.rollouts
    logp = logp_of(policy, drawn.prompt, drawn.tokens, drawn.mask)

    # -(sum of weight × log π over a response's tokens), averaged over responses. No sampling, no model here.
    loss = estimator.loss(logp, evidence)

    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()

    if step == 1 or step % 10 == 0:
        print(f"step {step:3}   mean reward {evidence.response_reward.mean():6.3f}, loss {loss.detach():6.3f}")
print(f"at last    expected reward {expected_reward(policy, task.mdp):6.3f}")
