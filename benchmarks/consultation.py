"""Does an agent learn to ask? The consultation, against what the best doctor earns.

    python benchmarks/consultation.py                # what is missing of three seeds a setting

Two policies, trained with RLOO from the first word on, without demonstrations, restricted to well-formed turns:

- chart: a small network of what a doctor would have on the chart, the complaint and the answers so far; the logits of
  all words are made of these alone;
- transformer: the "small" model of `llm-mdp train`, which reads the conversation. In its few updates it learns to ask
  (1.0, 2.3 and 2.4 useful questions), but not yet to use the answers: it is paid for the information, and right no more
  often than a silent doctor.

Two kinds of reward: the default of the task, and what it was before, when irrelevant and repeated questions and
malformed turns cost 0.1 each and only the diagnosis was paid (the turn limit is the default's in both). Every figure of
a policy is of 512 patients, the same ones every time, of 4,000 others at the end; intervals are 95 % (normal, over
patients). "right" is the share of right diagnoses, whatever the rewards. Beside them stands what the best doctor earns,
and the best who asks nothing, exactly. Finished runs are kept in benchmarks/results/consultation.json; a second call
does only what is missing.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import write_results
from torch import nn
from torch.nn.functional import one_hot, pad

from llm_mdp.sampling.policies import Policy, PolicyModule
from llm_mdp_agents.resolve import ModelConfig, build_agent, build_policy
from llm_mdp_agents.sampler import TaskSampler
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo.rloo import RLOOAgent
from llm_mdp_envs.task import PAD
from llm_mdp_envs.tasks.consultation import CONTROL_WORDS, NO, UNKNOWN, YES, Consultation
from llm_mdp_envs.tasks.consultation_optimum import best_doctor

RESULTS = Path(__file__).parent / "results" / "consultation.json"
SEEDS, GROUP_SIZE, PROMPTS, HIDDEN, PATIENTS, PATIENTS_AT_THE_END = 3, 8, 16, 64, 512, 4000
REWARDS: dict[str, dict[str, Any]] = {
    "default": {},
    "before": {
        "free_questions": 5,
        "excess_penalty": 0.05,
        "duplicate_penalty": 0.1,
        "irrelevant_penalty": 0.1,
        "malformed_penalty": 0.1,
        "information_weight": 0.0,
    },
}


@dataclass(frozen=True)
class Setting:
    """What is trained, on which rewards."""

    policy: str
    rewards: str
    updates: int
    learning_rate: float

    @property
    def task(self) -> Consultation:
        return Consultation(restricted=True, **REWARDS[self.rewards])


SETTINGS = (
    Setting("chart", "default", 300, 1e-2),
    Setting("chart", "before", 300, 1e-2),
    Setting("transformer", "default", 160, 2e-3),
)


class Chart(PolicyModule):
    """logits = W x + B tanh(A x + a) + b, x ∈ {0, 1}^4S: which symptom is the complaint, and which were answered yes,
    no, unknown."""

    kind = "chart"

    def __init__(self, task: Consultation, hidden: int, generator: torch.Generator):
        super().__init__()
        self.symptoms, self.vocab_size = len(task.knowledge_base.symptoms), task.vocab_size
        self.direct = nn.Parameter(torch.zeros(4 * self.symptoms, self.vocab_size))
        self.inwards = nn.Parameter(torch.randn(4 * self.symptoms, hidden, generator=generator) / 2)
        self.shift = nn.Parameter(torch.zeros(hidden))
        self.outwards = nn.Parameter(torch.zeros(hidden, self.vocab_size))
        self.bias = nn.Parameter(torch.zeros(self.vocab_size))

    def logits(self, prompt, tokens):
        S, first = self.symptoms, len(CONTROL_WORDS)
        complaint = one_hot((prompt[..., 1] - first).clamp(0, S - 1), S)[..., None, :].expand(*tokens.shape, S)
        answers = torch.tensor([YES, NO, UNKNOWN])
        # An answer stands two words after its symptom: "ask salt-tears . yes".
        about = pad(tokens, (2, 0), value=PAD)[..., :-2] - first
        is_answer = torch.isin(tokens, answers) & (about >= 0) & (about < S)
        said = one_hot((3 * about + (tokens[..., None] == answers).long().argmax(-1)).clamp(0, 3 * S - 1), 3 * S)
        said = said * is_answer[..., None]
        before = (said.cumsum(-2) - said).clamp(max=1)
        x = torch.cat([complaint, before], dim=-1).to(self.direct.dtype)
        return x @ self.direct + torch.tanh(x @ self.inwards + self.shift) @ self.outwards + self.bias


def policy_of(setting: Setting, seed: int) -> Policy:
    if setting.policy == "chart":
        return Chart(setting.task, HIDDEN, torch.Generator().manual_seed(seed))
    return build_policy(ModelConfig("small"), setting.task, seed)


def learn(setting: Setting, seed: int) -> dict[str, Any]:
    """One run: what the policy does after how many updates."""
    torch.set_num_threads(1)
    task, policy = setting.task, policy_of(setting, seed)
    options = TrainConfig(
        steps=setting.updates,
        prompts_per_step=PROMPTS,
        learning_rate=setting.learning_rate,
        warm_up_steps=10,
        seed=seed,
        signal_every=0,
    )
    trainer = Trainer(build_agent(RLOOAgent.Config(group_size=GROUP_SIZE), policy, task, seed), task, policy, options)
    trainer.prepare()
    curve, began = [], time.process_time()
    while trainer.number < setting.updates:
        if trainer.number % 20 == 0:
            curve.append({"update": trainer.number} | doctor_of(policy, task, PATIENTS, 1000))
        trainer.step()
    end = {"update": setting.updates} | doctor_of(policy, task, PATIENTS_AT_THE_END, 2000)
    return asdict(setting) | {"seed": seed, "cpu_seconds": time.process_time() - began, "end": end, "curve": curve}


def doctor_of(policy: Policy, task: Consultation, patients: int, seed: int) -> dict[str, Any]:
    """What a policy does with so many patients, means with their intervals: [mean, low, high]."""
    sampler = TaskSampler(policy, task, torch.Generator().manual_seed(seed), np.random.default_rng(seed), patients)
    rollouts = sampler.rollouts(1)
    tokens, mask = rollouts.tokens.numpy(), rollouts.mask.numpy()
    questions, useful, right = (np.zeros(patients) for _ in range(3))
    for row, question in enumerate(sampler.questions):
        for turn, worth in task.judged(question, tokens[row], mask[row]):
            if task.asked_symptom(turn.words) is not None:
                questions[row] += 1
                useful[row] += "duplicate" not in worth and "irrelevant" not in worth
            right[row] += task.diagnosed_disease(turn.words) == question.secret.disease
    reward = task.score(list(sampler.questions), tokens, mask).reward
    figures = {"reward": reward, "right": right, "questions": questions, "useful_questions": useful}
    entropy = -float(rollouts.logp.sum() / rollouts.mask.sum())
    return {name: interval(values) for name, values in figures.items()} | {"entropy": entropy}


def interval(values: np.ndarray) -> list[float]:
    """Mean, and its 95 % interval."""
    mean, half = values.mean(), 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return [float(mean), float(mean - half), float(mean + half)]


def optima() -> dict[str, dict[str, float]]:
    """By rewards: what the best doctor earns and asks, and what the best who asks nothing earns."""
    found = {name: best_doctor(Consultation(restricted=True, **options)) for name, options in REWARDS.items()}
    names = ("reward", "silent_reward", "questions", "useful_questions")
    return {name: {each: getattr(best, each) for each in names} for name, best in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    runs = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else []
    done = {(run["policy"], run["rewards"], run["seed"]) for run in runs}
    wanted = [(setting, seed) for seed in range(SEEDS) for setting in SETTINGS]
    missing = [(setting, seed) for setting, seed in wanted if (setting.policy, setting.rewards, seed) not in done]
    best = optima()
    common = {"group_size": GROUP_SIZE, "prompts_per_update": PROMPTS, "best_doctor": best}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for run in pool.map(learn, *zip(*missing)) if missing else ():
            runs.append(run)
            write_results(RESULTS, ("torch", "transformers"), {**common, "runs": runs})
            end, known = run["end"], best[run["rewards"]]
            print(
                f"{run['policy']:<12}{run['rewards']:<9}{run['seed']}  reward {end['reward'][0]:.3f} (best "
                f"{known['reward']:.3f}, silent {known['silent_reward']:.3f})  right {end['right'][0]:.3f}  questions "
                f"{end['questions'][0]:.2f}, useful {end['useful_questions'][0]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
