"""What all contenders share: model, prompts, reward, the optimiser's numbers, the way of measuring. Runs in both
environments."""

import json
import platform
import resource
import time
from dataclasses import dataclass
from importlib.metadata import version

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCAB_SIZE = 64
EOS = VOCAB_SIZE
"""End and padding token; the model has no such token, so that every response runs to its full length and nothing is
ever padded."""

PROMPTS = 64
GROUP_SIZE = 8
NEW_TOKENS = 8
LEARNING_RATE = 1e-3
BETAS = (0.9, 0.999)
MAX_GRAD_NORM = 1.0
SEED = 0


@dataclass(frozen=True)
class Setting:
    name: str
    prompt_length: int
    steps: int
    """That are timed; one more, the first, is not."""
    rounds: int
    """Processes of every contender."""


SETTINGS = {
    setting.name: setting
    for setting in (Setting("short", 8, steps=5, rounds=3), Setting("long", 256, steps=1, rounds=2))
}


def build_model() -> LlamaForCausalLM:
    """A Llama of 1.07 M parameters in float32, the same weights in every process."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        dtype="float32",
    )
    torch.manual_seed(SEED)
    return LlamaForCausalLM(config)


def build_prompts(length: int) -> torch.Tensor:
    """(PROMPTS, length) token ids."""
    return torch.randint(VOCAB_SIZE, (PROMPTS, length), generator=torch.Generator().manual_seed(SEED))


def response_reward(response: list[int]) -> float:
    """Share of tokens from the lower half of the vocabulary: costs next to nothing, and every group has mixed
    rewards."""
    return sum(token < VOCAB_SIZE // 2 for token in response) / len(response)


class Meter:
    """CPU time and memory of a run. Call `start` before the first step, `responses` on every batch, `step` after every
    optimiser step."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.initial_weights = self.weights()
        self.cpu, self.system, self.wall, self.tokens, self.rewards = [], [], [], [], []

    def weights(self) -> float:
        """Σ |θ|: equal in two processes only if they began with the same weights."""
        return sum(parameter.detach().double().abs().sum().item() for parameter in self.model.parameters())

    def start(self) -> None:
        self.memory_before = psutil.Process().memory_info().rss

    def responses(self, responses: list[list[int]]) -> list[float]:
        """Their rewards; counts their tokens."""
        rewards = [response_reward(response) for response in responses]
        self.tokens.append(sum(map(len, responses)))
        self.rewards.append(sum(rewards) / len(rewards))
        return rewards

    def step(self) -> None:
        self.cpu.append(time.process_time())
        self.system.append(resource.getrusage(resource.RUSAGE_SELF).ru_stime)
        self.wall.append(time.perf_counter())

    def report(self, *packages: str) -> str:
        """One line of JSON. Memory in bytes; steps are those after the first.

        Raises: RuntimeError if a batch or a step is missing, a response has another length, or the weights have not
            moved.
        """
        expected = PROMPTS * GROUP_SIZE * NEW_TOKENS
        if self.tokens != [expected] * len(self.cpu):
            raise RuntimeError(
                f"{len(self.cpu)} steps generated {self.tokens} tokens; each must be one batch of {expected}."
            )
        if self.weights() == self.initial_weights:
            raise RuntimeError(
                f"After {len(self.cpu)} steps the weights are the initial ones; the optimiser has done nothing."
            )
        timed = len(self.cpu) - 1
        unit = 1 if platform.system() == "Darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        cpu = (self.cpu[-1] - self.cpu[0]) / timed
        return json.dumps(
            {
                "cpu_seconds": cpu,
                "cpu_seconds_of_each": [after - before for before, after in zip(self.cpu, self.cpu[1:])],
                "system_seconds": (self.system[-1] - self.system[0]) / timed,
                "wall_seconds": (self.wall[-1] - self.wall[0]) / timed,
                "tokens_per_cpu_second": expected / cpu,
                "peak_memory": peak,
                "added_memory": peak - self.memory_before,
                "tokens_a_step": expected,
                "mean_reward": self.rewards,
                "parameters": self.parameters,
                "initial_weights": self.initial_weights,
                "threads": torch.get_num_threads(),
                "versions": {"python": platform.python_version()}
                | {name: version(name) for name in ("torch", "transformers", *packages)},
            }
        )
