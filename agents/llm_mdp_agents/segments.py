"""Agents that cut responses into segments: where segments begin, and why so by default.

A boundary is always a stopping rule: whether token t begins a segment is decided by what comes before it (claim
`trepo-own-length` is why). Every boundary costs the M branches that TRePO and VinePPO draw from it, so by default a
response has at most `SEGMENTS` of them, however long it may be.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, TypeVar

import torch

from llm_mdp.estimators.boundaries import AfterTokens, AtSteps, Boundary, EveryNTokens
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.sampler import Sampler
from llm_mdp_agents.base import Agent, AgentConfig
from llm_mdp_envs.task import Task

SEGMENTS = 8
"""Most segments of a response, if nobody says how long a segment is."""
SENTENCE_ENDS = (".", "!", "?", "\n", "。", "！", "？")
"""What the last token of a sentence or a line ends with, quotation marks and brackets behind it aside."""
CLOSING = " \t\"'”’»)]}"


@dataclass(frozen=True)
class SegmentConfig(AgentConfig):
    """Options of agents that cut responses into segments, always by a stopping rule (claim trepo-own-length is why)."""

    shortest: ClassVar[int] = 1
    """Tokens of a segment where responses are short and `every` is None."""

    boundary: Literal["every", "sentences", "separators", "random"] = "every"
    """A segment begins: every n tokens (the default, for language models too: what it costs is known before a run),
    after the end of a sentence or a line (tasks with a tokenizer), after certain tokens, or at random steps drawn
    before the responses."""
    every: int | None = None
    """n of "every"; the fewest tokens of a segment of "sentences" and "separators". None: an eighth of the horizon, so
    that a response has at most 8 segments (up to horizon 8 a token each, in VinePPO and MA-RLHF two); "separators":
    1."""
    separators: tuple[int, ...] = ()
    """Token ids of "separators": the next segment begins after one of them."""
    positions: int = 4
    """|D| of "random": steps drawn anew for each batch, uniform over the horizon, the first step besides."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.boundary == "separators" and not self.separators:
            raise ValueError('boundary is "separators", but there are none; give token ids in `separators`.')
        if self.boundary != "separators" and self.separators:
            raise ValueError(
                f'separators are {self.separators}, but boundary is "{self.boundary}", which has none; make boundary '
                '"separators", or leave them out.'
            )
        if self.every is not None and self.every < 1:
            raise ValueError(f"every is {self.every}; a segment has at least 1 token.")
        if self.boundary == "random" and self.every is not None:
            raise ValueError(
                f'every is {self.every}, but boundary is "random", whose steps are drawn; say in `positions` how many, '
                "and leave every out."
            )
        if self.positions < 1:
            raise ValueError(f"positions is {self.positions}; draw at least 1.")

    def length(self, horizon: int) -> int:
        """Tokens of a segment of responses of at most `horizon` tokens: `every`, or ⌈horizon / 8⌉."""
        return self.every or max(self.shortest, -(-horizon // SEGMENTS))


@dataclass(frozen=True)
class BranchConfig(SegmentConfig):
    """Options of agents whose values are means of fresh responses."""

    samples: int = 2
    """M, branches from each boundary."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 1:
            raise ValueError(f"samples is {self.samples}; a value needs at least 1 branch.")


SegmentOptions = TypeVar("SegmentOptions", bound=SegmentConfig)


class WithSegments(Agent[SegmentOptions]):
    """Base of agents that cut responses into segments."""

    drawn: AtSteps | None = None

    def build(self) -> None:
        super().build()
        if self.config.boundary == "sentences":
            self.sentence_ends  # noqa: B018 - refused here, before anything is drawn
        length = self.config.length(self.task.horizon)
        if self.config.every is None and self.config.boundary == "every" and length > self.config.shortest:
            self.notes.append(
                f"segments of {length} tokens, for responses may have {self.task.horizon}: at most {SEGMENTS} a "
                f"response (option every)"
            )

    @cached_property
    def sentence_ends(self) -> tuple[int, ...]:
        return sentence_ends(self.task)

    @property
    def boundary(self) -> Boundary:
        config = self.config
        if config.boundary == "separators":
            return AfterTokens(config.separators, config.every or 1)
        if config.boundary == "sentences":
            return AfterTokens(self.sentence_ends, config.length(self.task.horizon))
        if config.boundary == "random":
            return self.drawn or AtSteps(())
        return EveryNTokens(config.length(self.task.horizon))

    def collect(self, sampler: Sampler) -> Evidence:
        if self.config.boundary == "random":
            steps = torch.randperm(self.task.horizon, generator=self.generator)[: self.config.positions]
            self.drawn = AtSteps(tuple(steps.tolist()))
            self.estimator = self.make_estimator()
        return super().collect(sampler)


def sentence_ends(task: Task) -> tuple[int, ...]:
    """The tokens of a task's tokenizer whose text ends a sentence or a line, by `SENTENCE_ENDS`.

    Raises:
        ValueError: if the task has no tokenizer, or no such token.
    """
    if task.tokenizer is None:
        raise ValueError(
            f'boundary is "sentences", but {type(task).__name__} has no tokenizer; take boundary "every", or name '
            'tokens with "separators".'
        )
    found = tuple(
        token
        for token in range(task.vocab_size)
        if task.decode([token]).rstrip(CLOSING).endswith(SENTENCE_ENDS) and token not in (*task.ends, *task.turn_ends)
    )
    if not found:
        raise ValueError(
            f'boundary is "sentences", but no token of {type(task).__name__} ends one; take boundary "every", or name '
            'tokens with "separators".'
        )
    return found
