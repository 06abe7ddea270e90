"""What the pilot of TRePO's `budget` takes beside what it cannot do without: its drawing, and 8 T gradients of a token
for every prompt, by which all its estimators could be written.

    python benchmarks/pilot_cost.py                  # Llamas of 1.1 and 4.3 million parameters, horizons of 6 and 16

Prints a line for each and writes benchmarks/results/pilot_cost.json. A pilot of 4 prompts, 8 responses to each, tries
everything (`llm_mdp_agents.pilot.MENUS`). Its drawing is measured inside of it: what it asks the sampler for. The
gradients are of log-probabilities of single tokens of a response, which is scored once. CPU time of one thread, the
median of the rounds, after one that warms up; both sides take turns.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import statistics
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from machine import processor, write_results
from prompts import Prompts

from llm_mdp.sampling.sampler import SamplerAround
from llm_mdp_agents.lm.loading import small_transformer
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.pilot import DRAWN, run_pilot
from llm_mdp_agents.sampler import TaskSampler

RESULTS = Path(__file__).parent / "results" / "pilot_cost.json"
VOCAB_SIZE, PROMPT, PROMPTS, BUDGET = 64, 16, 4, 3000.0
SIZES, HORIZONS = ((128, 4), (256, 4)), (6, 16)
"""Width and layers; tokens of a response."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for width, layers in SIZES:
        for horizon in HORIZONS:
            rows.append(measured(width, layers, horizon, arguments.rounds))
            print(
                "{parameters:,} parameters, T = {horizon}: {pilot:.1f} CPU-s, of which {drawing:.1f} are drawing; "
                "{gradients:,} gradients take {gradient_seconds:.1f}: {ratio:.2f} x".format(**rows[-1]),
                flush=True,
            )
    document = {"processor": processor(), "prompts": PROMPTS, "budget": BUDGET, "rows": rows}
    write_results(arguments.output, ("torch", "transformers"), document)


class Timed(SamplerAround):
    """Another sampler, and the CPU time of what it draws."""

    seconds = 0.0

    def _timed(self, draw, *arguments):
        begun = process_time()
        drawn = draw(*arguments)
        self.seconds += process_time() - begun
        return drawn

    def rollouts(self, *arguments):
        return self._timed(super().rollouts, *arguments)

    def response_reward(self, rollouts):
        return self._timed(super().response_reward, rollouts)

    def branches(self, *arguments):
        return self._timed(super().branches, *arguments)


def measured(width: int, layers: int, horizon: int, rounds: int) -> dict[str, Any]:
    """One model, one horizon."""
    policy = small_transformer(VOCAB_SIZE, PROMPT + horizon, width=width, layers=layers)
    task = Prompts(VOCAB_SIZE, PROMPT, horizon)
    taken: list[dict[str, float]] = []
    for seed in range(rounds + 1):
        generator = torch.Generator().manual_seed(seed)
        sampler = Timed(TaskSampler(policy, task, generator, np.random.default_rng(seed), PROMPTS))
        begun = process_time()
        found = run_pilot(BUDGET, policy, sampler, horizon, most_prompts=PROMPTS, seed=seed)
        pilot = process_time() - begun
        assert found.tried == PROMPTS
        gradients = seconds_of_gradients(policy, sampler.rollouts(DRAWN), horizon)
        taken.append({"pilot": pilot, "drawing": sampler.seconds, "gradient_seconds": gradients})
    figures = {name: statistics.median(each[name] for each in taken[1:]) for name in taken[0]}
    ratios = [each["pilot"] / (each["drawing"] + each["gradient_seconds"]) for each in taken[1:]]
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    size = {"width": width, "layers": layers, "horizon": horizon, "parameters": parameters}
    return {**size, **figures, "gradients": PROMPTS * DRAWN * horizon, "ratio": statistics.median(ratios)}


def seconds_of_gradients(policy: LanguageModelPolicy, rollouts: Any, horizon: int) -> float:
    """CPU time of the gradient of every token of the responses, one by one."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    begun = process_time()
    for row in range(len(rollouts.tokens)):
        logp = policy.logp(*(each[row : row + 1] for each in (rollouts.prompt, rollouts.tokens, rollouts.mask)))
        for step in range(horizon):
            torch.autograd.grad(logp[0, step], parameters, retain_graph=step + 1 < horizon)
    return process_time() - begun


if __name__ == "__main__":
    main()
