"""The models that agents train beside the policy: critics, reward models and copies of the policy.

What is frozen in the policy (the weights under LoRA adapters) is not copied: a reference, a DPO model, a critic's body
hold the same tensors, and adapters of their own. Under several processes every one of them trains these models on the
whole batch by itself: they stay equal as long as equal numbers give equal sums, which is certain on CPUs of one kind;
where kernels add up in any order (CUDA), the trainer sends those of the first process to all.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from llm_mdp.mdp.tree import PAD, pad_prompts
from llm_mdp.sampling.policies import Policy
from llm_mdp_agents.optimizers import HALF
from llm_mdp_envs.task import Question, Scores, Task

LARGE = 20_000_000
"""Parameters from which a model is large."""
NEW_HEAD = 10.0
"""How many times faster a new head learns than the trained body under it."""


class SequenceScorer(nn.Module):
    """A number for every prefix of a response, from one pass of a causal model whose head is read at every token.

    As a critic it is the value of the prefix, as a reward model the score of a partial response (R3HF), and its last
    layer's attention says which tokens the score of the whole response looked at (ABC).

    Args:
        model: `AutoModelForSequenceClassification` with num_labels 1 over a causal body; with `head`, the body alone.
        begin: token put before the prompt, so that even an empty prompt has a first state; None: prompts are never
            empty.
        head: a new one on a body that is trained already.
        packs: may responses to one prompt share a row (`lm.policy.LanguageModelPolicy.full_attention`)?
    """

    body: Any
    head: nn.Module

    def __init__(self, model: Any, begin: int | None, head: nn.Module | None = None, packs: bool = False):
        super().__init__()
        self.body = (model if head is not None else getattr(model, model.base_model_prefix)).eval()
        self.head = model.score if head is None else head
        self.begin, self.has_new_head, self.packs = begin, head is not None, packs

    def forward(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T1"]:
        """The score of the prefix before step t, t = 0 … T, as a critic gives it: 0 where mask is False and from the
        end on."""
        return self._scores(prompt, tokens, pad(mask, (0, 1), value=False))

    def score(self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T1"]:
        """The score of the prefix before step t, the environment's tokens included; 0 after the end.

        Raises:
            ValueError: if a prompt is empty and there is no `begin`.
        """
        return self._scores(prompt, tokens, pad(tokens != PAD, (1, 0), value=True))

    def final(self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"]) -> Float[Tensor, " B"]:
        """The score of the whole response."""
        length = (tokens != PAD).sum(-1, keepdim=True)
        wanted = torch.arange(tokens.shape[1] + 1) == length
        return self._scores(prompt, tokens, wanted).gather(1, length)[:, 0]

    def _scores(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], wanted: Bool[Tensor, "B T1"]
    ) -> Float[Tensor, "B T1"]:
        """The scores before these steps, and 0 before all others."""
        from llm_mdp_agents.lm import packing
        from llm_mdp_agents.lm.policy import recomputing

        texts = self._lead(prompt), pad(tokens, (0, 1), value=PAD), wanted
        reading = packing.plain_reading(*texts)
        if self.packs:
            reading = packing.cheapest_reading(reading, *texts, self.body)
        with recomputing(self.body):
            hidden = packing.read(self.body, self.body, reading)
        score = self.head(hidden.to(next(self.head.parameters()).dtype))[:, 0].to("cpu", torch.float64)
        return score.new_zeros(wanted.shape).masked_scatter(wanted, score)

    @torch.no_grad()
    def attention(
        self, prompt: Int[Tensor, "B L"], tokens: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T1"]:
        """How much the score of the whole response attends to each of its tokens: last layer, mean over heads (ABC, Eq.
        42)."""
        from llm_mdp_agents.lm.packing import plain_reading

        lead, length = self._lead(prompt), (tokens != PAD).sum(-1)
        step = torch.arange(tokens.shape[1] + 1)
        text = plain_reading(lead, pad(tokens, (0, 1), value=PAD), step == length[:, None]).text.clamp(min=0)
        with _showing_attention(self.body):
            output = self.body(
                input_ids=text.to(next(self.body.parameters()).device), use_cache=False, output_attentions=True
            )
        weights = output.attentions[-1].mean(1).to("cpu", torch.float64)
        before = (lead != PAD).sum(-1) - 1
        column = (before[:, None] + step[1:]).clamp(max=text.shape[1] - 1)
        row = weights[torch.arange(len(text)), before + length].gather(1, column)
        return torch.cat([torch.where(mask, row, 0.0), torch.zeros_like(row[:, :1])], dim=-1)

    def _lead(self, prompt: Int[Tensor, "B L"]) -> Int[Tensor, "B L1"]:
        """What is read before the responses."""
        from llm_mdp_agents.lm import packing

        if self.begin is None and not (prompt != PAD).any(1).all():
            raise ValueError(
                "a prompt is empty, and the critic or reward model has no token that begins a text; give the task "
                "prompts of at least one token."
            )
        return packing.lead_of(prompt, self.begin)


@contextmanager
def _showing_attention(body: Any) -> Iterator[None]:
    """Only the eager kernel has its weights to show."""
    before = body.config._attn_implementation
    body.set_attn_implementation("eager")
    try:
        yield
    finally:
        body.set_attn_implementation(before)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """New weights by this seed, made on the CPU; no global generator is moved, those of other devices neither."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def scorer(
    policy: Policy, task: Task, seed: int, path: str | None = None, *, trained: bool = True, what: str = "critic"
) -> SequenceScorer:
    """A critic or reward model for a policy's tokens, on its device.

    Args:
        path: an `AutoModelForSequenceClassification` with one label; None: the policy's own body, as it is now, with a
            new head that says 0 if the policy is a language model, else a small transformer from scratch.
        seed: of what is new; the global generators are left as they were.
        trained: whether it will be trained: it then has the policy's precision, and may come without a head; otherwise
            its own precision.
        what: the option that named it, for errors.

    Raises:
        ValueError: if there is no such model, or it cannot be read token by token.
    """
    assert isinstance(policy, nn.Module)
    like = next(policy.parameters())
    if path is not None:
        model = _named(path, task, seed, trained, what)
        return model.to(like.device, like.dtype if trained else None)
    causal_lm = getattr(policy, "causal_lm", None)
    if causal_lm is None:
        # In the policy's precision: rounding must not tell responses with the same prefix apart.
        return _small_scorer(task, seed).to(like)
    if causal_lm.base_model is causal_lm:
        raise ValueError(
            f"{type(causal_lm).__name__} has no body apart from its head, so no {what} can be made of it; name one "
            f"({what}=FOLDER)."
        )
    width = causal_lm.get_output_embeddings().weight.shape[-1]
    body = copy.deepcopy(causal_lm.base_model, _shared(policy))
    packs = getattr(policy, "full_attention", False)
    return SequenceScorer(body, getattr(policy, "begin", None), _new_head(width, like), packs)


def _named(path: str, task: Task, seed: int, trained: bool, what: str) -> SequenceScorer:
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with _seeded(seed):
            model, found = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=1, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"no reward model or critic could be loaded from {path!r}; name a model or its folder."
        ) from error
    if not hasattr(model, "score"):
        raise ValueError(
            f"{what} is {path!r}, a {type(model).__name__}, which reads a text as a whole; name a sequence classifier "
            f"over a causal language model, whose head can be read at every token."
        )
    headless = any(name.startswith("score") for name in found["missing_keys"]) or found["mismatched_keys"]
    if headless and not trained:
        raise ValueError(
            f"{what} is {path!r}, which has no head with one label, so that its scores would be random numbers; name a "
            f"trained reward model."
        )
    body = getattr(model, model.base_model_prefix)
    if (rows := body.get_input_embeddings().weight.shape[0]) < task.vocab_size:
        raise ValueError(
            f"{what} is {path!r}, which knows {rows:,} tokens, but {type(task).__name__} has {task.vocab_size:,}; name "
            f"a model with the policy's tokenizer."
        )
    if not headless:
        return SequenceScorer(model, None)
    return SequenceScorer(body, None, _new_head(model.score.weight.shape[-1], next(body.parameters())))


def _small_scorer(task: Task, seed: int) -> SequenceScorer:
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    options: dict[str, Any] = {"num_labels": 1}
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
    with _seeded(seed):
        return SequenceScorer(AutoModelForSequenceClassification.from_config(config), task.vocab_size)


def _new_head(width: int, like: Tensor) -> nn.Linear:
    """It says 0 of everything: a value that nobody has learned yet should not move the policy."""
    dtype = torch.float32 if like.dtype in HALF else like.dtype
    head: Any = nn.utils.skip_init(nn.Linear, width, 1, bias=False, device=like.device, dtype=dtype)
    nn.init.zeros_(head.weight)
    return head


def _shared(policy: nn.Module) -> dict[int, Any]:
    """What `copy.deepcopy` is to take for copied already: the parameters that are frozen."""
    return {id(each): each for each in policy.parameters() if not each.requires_grad}


def trainable_copy(policy: Policy) -> Any:
    """A copy of the policy as it is now, to be trained apart from it. What is frozen in the policy is shared."""
    assert isinstance(policy, nn.Module)
    return copy.deepcopy(policy, _shared(policy))


def frozen(policy: Policy) -> Any:
    """A copy of the policy as it is now, never trained: a reference. What is frozen in the policy is shared."""
    return trainable_copy(policy).requires_grad_(False)


class ScoredTask(Task):
    """A task whose responses a reward model scores; questions, replies and words are the task's own.

    It is no token MDP and has no token rewards: what is known of the task's own reward says nothing about the model's.
    """

    def __init__(self, task: Task, model: SequenceScorer):
        self._task, self._model = task, model
        self.rows_at_once: int | None = None
        """Most responses that the model scores in one pass; None: all."""
        self.vocab_size, self.horizon, self.prompt_length = task.vocab_size, task.horizon, task.prompt_length
        self.eos, self.end_of_turn, self.max_turns = task.eos, task.end_of_turn, task.max_turns
        self.also_ends = task.also_ends
        self.tokenizer = task.tokenizer
        self.listed_by = task.listed_by

    def question(self, generator: np.random.Generator) -> Question:
        return self._task.question(generator)

    def questions(self, generator: np.random.Generator, n: int) -> list[Question]:
        return self._task.questions(generator, n)

    def listed(self) -> int:
        return self._task.listed()

    def question_at(self, number: int) -> Question:
        return self._task.question_at(number)

    def scoring(self, task: Task) -> "ScoredTask":
        """Another task, scored by the same model."""
        return ScoredTask(task, self._model)

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
        prompt, response = pad_prompts([question.prompt for question in questions]), torch.from_numpy(tokens)
        size = self.rows_at_once or max(len(response), 1)
        parts = [self._model.final(*part) for part in zip(prompt.split(size), response.split(size))]
        return Scores(torch.cat(parts).numpy())


def scored(task: Task, policy: Policy, seed: int, name: str | None) -> Task:
    """The task with the scores of the reward model of this name as rewards; as it is if no name is given."""
    if name is None:
        return task
    return ScoredTask(task, scorer(policy, task, seed, name, trained=False, what="scored_by"))


def is_large(model: Policy | nn.Module) -> bool:
    """20 million parameters or more."""
    assert isinstance(model, nn.Module)
    return sum(parameter.numel() for parameter in model.parameters()) >= LARGE


def default_learning_rate(model: Policy | nn.Module) -> float:
    """Of AdamW, by kind and size: of tables 0.05; of small language models 2e-4, of small critics and reward models
    1e-3; of LoRA 1e-4; of other large models 1e-5.

    AdamW's steps are as long for noise as for signal: on Arithmetic with TRePO's defaults, one response a prompt, 1e-3
    unlearns what the warm start taught, 5e-4 in one of three seeds, 2e-4 in none.
    """
    assert isinstance(model, nn.Module)
    critic = isinstance(model, SequenceScorer)
    if not critic and not hasattr(model, "model"):
        return 0.05
    if not is_large(model):
        return 1e-3 if critic else 2e-4
    return 1e-4 if _has_adapters(model) else 1e-5


def parameter_groups(model: nn.Module, learning_rate: float | None) -> list[tuple[list[nn.Parameter], float]]:
    """What is trained of a model, and how fast: a new head `NEW_HEAD` times as fast as a large body that was trained
    before. (Adapters are as new as it is, and small models forget fast.)

    Args: learning_rate: of AdamW; None: `default_learning_rate`.
    """
    rate = default_learning_rate(model) if learning_rate is None else learning_rate
    if isinstance(model, SequenceScorer) and model.has_new_head and is_large(model) and not _has_adapters(model):
        body = [each for each in model.body.parameters() if each.requires_grad]
        return [(body, rate), (list(model.head.parameters()), NEW_HEAD * rate)]
    return [([each for each in model.parameters() if each.requires_grad], rate)]


def _has_adapters(model: nn.Module) -> bool:
    return any("lora_" in name for name, _ in model.named_parameters())
