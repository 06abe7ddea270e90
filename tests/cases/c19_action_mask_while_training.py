"""The action mask in `step` and in training. Sources: hill-a/stable-baselines#453, thu-ml/tianshou#887. Right: what env.step refuses is not drawn in training
(or training on a task with a mask is refused / warned of)."""
import warnings

from _case import Case

from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.sampler import TaskSampler, streams
from llm_mdp_envs.tasks.arithmetic import Arithmetic

case = Case()


def forbidden():
    task = Arithmetic(digits=1, restricted=True, reward="outcome")
    policy = small_transformer(task.vocab_size, task.prompt_length + task.horizon, width=16, layers=1, heads=2)
    generator, questions = streams([0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = TaskSampler(policy, task, generator, questions, prompts_per_batch=200)
        drawn = sampler.rollouts(1)
    rows = [[token for token in row if token >= 0] for row in drawn.tokens.tolist()]
    return sum(any(not task.action_mask(q, row[:k])[token] for k, token in enumerate(row)) for q, row in zip(sampler.questions, rows))


def none_or_said(got):
    """0 responses, or an error or warning in words"""
    return got == 0 or isinstance(got, str)


case.check("responses of 200 with a forbidden token", none_or_said, forbidden)
case.end()
