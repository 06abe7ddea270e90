"""The models that agents train beside the policy: critics and reward models, both `AutoModelForSequenceClassification`
with one label."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from llm_mdp.mdp.tree import PAD, pad_prompts
from llm_mdp.sampling.policies import Policy
from llm_mdp_envs.task import Question, Scores, Task


class SequenceScorer(nn.Module):
    """A number for every prefix of a response, from one pass of a causal sequence classifier whose head is read at
    every token.

    As a critic it is the value of the prefix, as a reward model the score of a partial response (R3HF), and its last
    layer's attention says which tokens the score of the whole response looked at (ABC).

    Args:
        model: `AutoModelForSequenceClassification` with num_labels 1 over a causal body.
        begin: token put before the prompt, so that even an empty prompt has a first state; None: prompts are never
            empty.
    """

    model: Any

    def __init__(self, model: Any, begin: int | None):
        super().__init__()
        self.model, self.begin = model.eval(), begin

    def forward(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T1"]:
        """The score of the prefix before step t, t = 0 … T, as a critic gives it: 0 where mask is False and from the
        end on."""
        score = self.score(prompt, tokens)
        return torch.cat([torch.where(mask, score[:, :-1], 0.0), torch.zeros_like(score[:, :1])], dim=-1)

    def score(self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T1"]:
        """The score of the prefix before step t, the environment's tokens included; anything after the end."""
        hidden = self._body(prompt, tokens).last_hidden_state[:, -tokens.shape[1] - 1 :]
        return self.model.score(hidden)[..., 0].to("cpu", torch.float64)

    def final(self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """The score of the whole response."""
        length = (tokens != PAD).sum(-1, keepdim=True)
        return self.score(prompt, tokens).gather(1, length)[:, 0]

    @torch.no_grad()
    def attention(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T1"]:
        """How much the score of the whole response attends to each of its tokens: last layer, mean over heads (ABC, Eq.
        42)."""
        weights = self._body(prompt, tokens, output_attentions=True).attentions[-1].mean(1)
        last = weights.shape[-1] - tokens.shape[1] - 1 + (tokens != PAD).sum(-1)
        row = weights[torch.arange(len(tokens)), last.to(weights.device)][:, -tokens.shape[1] :].to(
            "cpu", torch.float64
        )
        return torch.cat([torch.where(mask, row, 0.0), torch.zeros_like(row[:, :1])], dim=-1)

    def _body(self, prompt: Tensor, tokens: Tensor, **options: Any) -> Any:
        lead = prompt
        if self.begin is not None:
            lead = nn.functional.pad(prompt, (1, 0), value=PAD)
            begins = (lead == PAD) & (nn.functional.pad(lead[:, 1:], (0, 1)) != PAD)
            lead = torch.where(begins, self.begin, lead)
        device = next(self.parameters()).device
        text = torch.cat([lead, tokens], dim=1).to(device)
        attention = text != PAD
        position = (attention.cumsum(-1) - 1).clamp(min=0)
        body = getattr(self.model, self.model.base_model_prefix)
        return body(
            input_ids=text.clamp(min=0),
            attention_mask=attention.long(),
            position_ids=position,
            use_cache=False,
            **options,
        )


def scorer(policy: Policy, task: Task, seed: int, path: str | None = None) -> SequenceScorer:
    """A critic or reward model for a policy's tokens.

    Args:
        path: an `AutoModelForSequenceClassification` with one label; None: the policy's own body with a new head if the
            policy is a language model, else a small transformer from scratch.
        seed: of what is new; the global generator is left as it was.

    Raises:
        ValueError: if there is no such model.
    """
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    options = {"num_labels": 1, "attn_implementation": "eager"}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if path is not None:
            try:
                return SequenceScorer(AutoModelForSequenceClassification.from_pretrained(path, **options), None)
            except OSError as error:
                raise ValueError(
                    f"no reward model or critic could be loaded from {path!r}; name a model or its folder."
                ) from error
        source = getattr(policy, "model", None)
        if source is None:
            config = LlamaConfig(
                vocab_size=task.vocab_size + 1,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=task.prompt_length + task.horizon + 1,
                pad_token_id=None,
                **options,
            )
            assert isinstance(policy, nn.Module)
            # In the policy's precision: rounding must not tell responses with the same prefix apart.
            model = AutoModelForSequenceClassification.from_config(config).to(next(policy.parameters()))
            return SequenceScorer(model, task.vocab_size)
        config = copy.deepcopy(source.config)
        config.num_labels, config.pad_token_id, config._attn_implementation = 1, None, "eager"
        model = AutoModelForSequenceClassification.from_config(config)
        # LoRA or not, a critic starts from the body as the policy found it.
        body = source.get_base_model() if hasattr(source, "get_base_model") else source
        body = getattr(body, body.base_model_prefix)
        state = {
            name.replace(".base_layer", ""): tensor for name, tensor in body.state_dict().items() if "lora_" not in name
        }
        getattr(model, model.base_model_prefix).load_state_dict(state)
        return SequenceScorer(model.to(next(source.parameters())), getattr(policy, "begin", None))


def frozen(policy: Policy) -> Any:
    """A copy of the policy as it is now, never trained: a reference."""
    other = copy.deepcopy(policy)
    assert isinstance(other, nn.Module)
    return other.requires_grad_(False)


class ScoredTask(Task):
    """A task whose responses a reward model scores; questions, replies and words are the task's own.

    It is no token MDP and has no token rewards: what is known of the task's own reward says nothing about the model's.
    """

    def __init__(self, task: Task, model: SequenceScorer):
        self._task, self._model = task, model
        self.vocab_size, self.horizon, self.prompt_length = task.vocab_size, task.horizon, task.prompt_length
        self.eos, self.end_of_turn, self.max_turns = task.eos, task.end_of_turn, task.max_turns
        self.also_ends = task.also_ends
        self.tokenizer = task.tokenizer

    def question(self, generator: np.random.Generator) -> Question:
        return self._task.question(generator)

    def questions(self, generator: np.random.Generator, n: int) -> list[Question]:
        return self._task.questions(generator, n)

    def from_prompt(self, tokens: tuple[int, ...]) -> Question | None:
        return self._task.from_prompt(tokens)

    def reply(self, question: Question, tokens: Sequence[int]) -> tuple[int, ...] | None:
        return self._task.reply(question, tokens)

    def action_masks(self, prompts: np.ndarray, tokens: np.ndarray) -> np.ndarray | None:
        return self._task.action_masks(prompts, tokens)

    def answers(self, questions: Sequence[Question]) -> np.ndarray | None:
        return self._task.answers(questions)

    def decode(self, tokens: Sequence[int]) -> str:
        return self._task.decode(tokens)

    def close(self) -> None:
        self._task.close()

    @torch.no_grad()
    def score(self, questions: Sequence[Question], tokens: np.ndarray, mask: np.ndarray) -> Scores:
        prompt = pad_prompts([question.prompt for question in questions])
        return Scores(self._model.final(prompt, torch.from_numpy(tokens)).numpy())


def scored(task: Task, policy: Policy, seed: int, name: str | None) -> Task:
    """The task with the scores of the reward model of this name as rewards; as it is if no name is given."""
    return task if name is None else ScoredTask(task, scorer(policy, task, seed, name))


def is_large(policy: Policy) -> bool:
    """20 million parameters or more."""
    assert isinstance(policy, nn.Module)
    return sum(parameter.numel() for parameter in policy.parameters()) >= 20_000_000
