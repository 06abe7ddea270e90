"""The sampler of training: questions of a task, the policy's responses to them, the environment's replies and rewards.

`llm_mdp.exact.worlds.ExactSampler` is the one of verification; an agent's `collect` cannot tell them apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from llm_mdp.mdp.tree import PAD, pad_prompts
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts, take_rows
from llm_mdp.sampling.policies import Critic, Policy, logp_of
from llm_mdp.sampling.sampler import BatchSampler, kept_rows
from llm_mdp_agents.action_masks import check_drawn, check_unchanging, mask_policy, task_mask
from llm_mdp_agents.lm.conversations import Conversation, conversation
from llm_mdp_agents.lm.engines import Engine, OwnEngine
from llm_mdp_envs.episode import FINISH, Episode, advance, check_scores, follow
from llm_mdp_envs.task import Question, Scores, Task


@dataclass
class Cost:
    """What sampling has cost so far."""

    tokens: int = 0
    """Tokens that the policy generated, those of branches included."""
    rewards: int = 0
    """Responses that were scored."""


class TaskSampler(BatchSampler):
    """Draws from a policy on a task (`llm_mdp.sampling.sampler.Sampler`), `prompts_per_batch` questions at a time.

    Every policy that it draws from or scores obeys the task's action mask from then on: forbidden tokens have the logit
    -inf.

    Args:
        generator: of the policy's tokens.
        questions: of the task's questions.
        rows_at_once: most rows that a model scores in one pass; None: all.
        engine: who draws for the policy; None: the policy itself.
        ask: the next n questions; None: draws of the task.

    Raises:
        ValueError: no prompts; an action mask that the policy or the engine cannot obey.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        generator: torch.Generator,
        questions: np.random.Generator,
        prompts_per_batch: int = 1,
        rows_at_once: int | None = None,
        engine: Engine | None = None,
        ask: Callable[[np.random.Generator, int], list[Question]] | None = None,
    ):
        if prompts_per_batch < 1:
            raise ValueError(f"prompts_per_batch is {prompts_per_batch}; a batch has at least 1 prompt.")
        self.policy, self.task, self.generator, self.question_generator = policy, task, generator, questions
        self.prompts_per_batch, self.rows_at_once = prompts_per_batch, rows_at_once
        self.engine = engine or OwnEngine()
        self.ask = ask or (lambda generator, n: [task.question(generator) for _ in range(n)])
        self.mask = task_mask(task)
        """The task's action mask; None: everything is allowed."""
        mask_policy(policy, self.mask)
        if self.mask is not None and not isinstance(self.engine, OwnEngine):
            check_unchanging(self.mask, "vllm")
        self.cost = Cost()
        self.questions: tuple[Question, ...] = ()
        """One a row of the latest rollouts."""
        self.scores: list[Scores] = []
        """Of rollouts that were scored, for whoever wants to know more than the reward and empties it."""

    def rollouts(self, group_size: int, temperature: float = 1.0, behaviour: Policy | None = None) -> Rollouts:
        drawn_by = self.policy if behaviour is None else behaviour
        mask_policy(drawn_by, self.mask)
        asked = self.ask(self.question_generator, self.prompts_per_batch)
        self.questions = tuple(question for question in asked for _ in range(group_size))
        prompt = pad_prompts([question.prompt for question in asked])
        talk = conversation(self.engine, drawn_by, self.task.max_turns)
        drawn = talk.sample(prompt, group_size, **self._options(temperature))
        drawn = self._converse(talk, self.questions, drawn, [Episode() for _ in self.questions], temperature)
        return self._checked(drawn_by, drawn, drawn.mask)

    def response_reward(self, rollouts: Rollouts) -> Float[Tensor, " B"]:
        self.scores.append(self._score(self.questions, rollouts))
        return torch.from_numpy(self.scores[-1].reward.astype(np.float64))

    def draw(self, rollouts, row, step, number, temperature):
        places = [(r, t) for r, t in zip(row.tolist(), step.tolist()) for _ in range(number)]
        questions = [self.questions[r] for r, _ in places]
        options = self._options(temperature or 1.0) | {"greedy": temperature == 0}
        mask_policy(self.policy, self.mask)
        talk = conversation(self.engine, self.policy, self.task.max_turns)
        drawn = talk.branch(rollouts.prompt, rollouts.tokens, row, step, number, **options)
        if self.task.end_of_turn is None:
            self.cost.tokens += int((drawn.mask.sum(-1) - step.repeat_interleave(number)).sum())
        else:
            starts = [follow(self.task, self.questions[r], rollouts.tokens[r, :t].tolist()) for r, t in places]
            drawn = self._converse(talk, questions, drawn, starts, temperature or 1.0, temperature == 0)
        after = torch.arange(drawn.tokens.shape[1]) >= step.repeat_interleave(number)[:, None]
        self._checked(self.policy, drawn, drawn.mask & after)
        reward = self._score(questions, drawn).reward if questions else np.zeros(0)
        # What the policy wrote before the cut is not drawn; what the environment wrote there is not in the mask.
        written = (rollouts.mask.cumsum(-1) - rollouts.mask.long())[row, step].repeat_interleave(number)
        return torch.from_numpy(reward.astype(np.float64)), drawn.mask.sum(-1) - written

    @torch.no_grad()
    def logp(self, policy: Policy, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        mask_policy(policy, self.mask)
        return self._in_parts(lambda *response: logp_of(policy, *response), rollouts)

    @torch.no_grad()
    def value(self, critic: Critic, rollouts: Rollouts) -> Float[Tensor, "B T1"]:
        return self._in_parts(critic, rollouts)

    def hidden_reward(self, rollouts: Rollouts) -> Float[Tensor, "B T"]:
        rewards = self.task.token_rewards(self.questions, rollouts.tokens.numpy(), rollouts.mask.numpy())
        if rewards is None:
            raise ValueError(
                f"{type(self.task).__name__} has no token rewards; only token MDPs and Arithmetic know theirs."
            )
        return torch.from_numpy(rewards)

    def keep(self, evidence: Evidence, groups: Bool[Tensor, " P"]) -> Evidence:
        rows = kept_rows(evidence, groups)
        self.questions = tuple(self.questions[row] for row in rows.tolist())
        return take_rows(evidence, rows)

    def _options(self, temperature: float) -> dict[str, Any]:
        task = self.task
        return {
            "eos": task.ends,
            "horizon": task.horizon,
            "generator": self.generator,
            "temperature": temperature,
            "stop": task.turn_ends,
        }

    def _checked(self, policy: Policy, rollouts: Rollouts, drawn: Bool[Tensor, "B T"]) -> Rollouts:
        if self.mask is not None:
            check_drawn(policy, self.mask, rollouts.prompt, rollouts.tokens, drawn)
        return rollouts

    def _score(self, questions: Sequence[Question], rollouts: Rollouts) -> Scores:
        self.cost.rewards += len(questions)
        scores = self.task.score(list(questions), rollouts.tokens.numpy(), rollouts.mask.numpy())
        return check_scores(self.task, scores, len(questions))

    def _in_parts(self, function, rollouts: Rollouts) -> Tensor:
        size = self.rows_at_once or len(rollouts.tokens)
        parts = (each.split(size) for each in (rollouts.prompt, rollouts.tokens, rollouts.mask))
        return torch.cat([function(*part).to(torch.float64) for part in zip(*parts)])

    def _converse(
        self,
        talk: Conversation,
        questions: Sequence[Question],
        drawn: Rollouts,
        episode: list[Episode],
        temperature: float,
        greedy: bool = False,
    ) -> Rollouts:
        """Let the environment reply and the policy go on, turn by turn, until every response has ended."""
        if self.task.end_of_turn is None:
            self.cost.tokens += int(drawn.mask.sum())
            return drawn
        tokens, logp = drawn.tokens.clone(), drawn.logp.clone()
        row = torch.arange(len(tokens))
        while len(row):
            for place, r in enumerate(row.tolist()):
                start = len(episode[r].tokens)
                for token in drawn.tokens[place, start:].tolist():
                    if token == PAD or episode[r].finish is not None:
                        break
                    episode[r] = advance(self.task, questions[r], episode[r], token)
                    self.cost.tokens += 1
                tokens[r, : len(episode[r].tokens)] = torch.tensor(episode[r].tokens, dtype=torch.int64)
                logp[r, start:] = drawn.logp[place, start:]
            row = torch.tensor([r for r in row.tolist() if episode[r].finish is None], dtype=torch.int64)
            if len(row):
                options: dict[str, Any] = self._options(temperature) | {"greedy": greedy}
                prompt = pad_prompts([questions[r].prompt for r in row.tolist()])
                drawn = talk.go_on(row, prompt, tokens[row], **options)
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        for r, each in enumerate(episode):
            mask[r, : len(each.mask)] = torch.tensor(each.mask)
        finish = torch.tensor([FINISH.index(each.finish or FINISH[Finish.HORIZON]) for each in episode])
        prompt = pad_prompts([question.prompt for question in questions])
        return replace(drawn, prompt=prompt, tokens=tokens, mask=mask, logp=torch.where(mask, logp, 0.0), finish=finish)


def streams(seed: list[int]) -> tuple[torch.Generator, np.random.Generator]:
    """Of responses and of questions."""
    tokens, questions = np.random.SeedSequence(seed).spawn(2)
    return torch.Generator().manual_seed(int(tokens.generate_state(1, np.uint64)[0] >> 1)), np.random.default_rng(
        questions
    )
