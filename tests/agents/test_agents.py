"""Agents as objects: their options and errors, what they remember, and how they fare in conversations."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.boundaries import AfterTokens, EveryNTokens
from llm_mdp.exact.instances import random_instance
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.evidence import Evidence, Finish
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy
from llm_mdp.sampling.sampler import PolicySampler
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.base import Agent, AgentConfig, Plain
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_agents.zoo.grpo import GRPOAgent, GRPOConfig
from llm_mdp_envs.task import Task
from llm_mdp_envs.tasks.consultation import Consultation
from llm_mdp_envs.tasks.diagnostics import Credit, Needle
from llm_mdp_envs.tasks.guess_number import GuessNumber
from llm_mdp_envs.tasks.synthetic import Tabular, TokenMDPTask
from llm_mdp_envs.turns import mask_of

TASK = Tabular(3, 3, gamma=0.9, n_prompts=2, seed=3)


def table(seed: int = 0, task: TokenMDPTask = TASK) -> TabularPolicy:
    return TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator().manual_seed(seed))


def make(name: str, seed: int = 0, task: Task = TASK, policy=None, **options) -> Agent:
    return AGENTS[name](AGENTS[name].Config(**options), policy or table(seed), task, seed)


def sampler(agent: Agent, prompts: int = 4, seed: int = 0) -> PolicySampler:
    return PolicySampler(agent.behaviour, TASK.mdp, torch.Generator().manual_seed(seed), prompts)


# --- options ----------------------------------------------------------------------------------------------------------

BAD = [
    ("rloo", {"group_size": 1}, r"group_size is 1; this agent needs at least 2 responses to a prompt\."),
    ("trepo", {"group_size": 0}, r"group_size is 0; this agent needs at least 1 responses to a prompt\."),
    ("ppo", {"clip_low": -0.1}, r"clip_low is -0\.1; it must be above 0, or None for no clipping\."),
    ("rloo", {"kl": -1.0}, r"kl is -1\.0; the weight of the penalty is at least 0\."),
    (
        "rloo",
        {"kl_in": "loss", "kl": 0.1},
        r'kl_estimator "k1" in the loss has no gradient \(claim kl-k1-loss\); put it into the reward',
    ),
    ("rloo", {"kl_in": "rewards"}, r"kl_in is 'rewards'; choose 'reward', 'loss'\."),
    ("ppo", {"kl_estimator": "k4"}, r"kl_estimator is 'k4'; choose 'k1', 'k2', 'k3'\."),
    ("reinforce", {"decay": 1.0}, r"decay is 1\.0; it must be in \[0, 1\)\."),
    ("reinforce", {"baseline": "mean"}, r"baseline is 'mean'; choose 'running_mean', 'none'\."),
    ("grpo", {"variant": "gspo"}, r"variant is 'gspo'; choose 'grpo', 'dr-grpo', 'dapo'\."),
    ("grpo", {"reduction": "mean"}, r"reduction is 'mean'; choose 'sum', 'sequence_mean', 'token_mean', 'constant'\."),
    ("grpo", {"overlong": "drop"}, r"overlong is 'drop'; choose 'keep', 'mask', 'punish'\."),
    ("trepo", {"variant": "papr"}, r"variant is 'papr'; choose 'repaired', 'paper'\."),
    ("vineppo", {"boundary": "words"}, r"boundary is 'words'; choose 'every', 'sentences', 'separators', 'random'\."),
    (
        "vineppo",
        {"boundary": "separators"},
        r'boundary is "separators", but there are none; give token ids in `separators`\.',
    ),
    ("ma-rlhf", {"positions": 0}, r"positions is 0; draw at least 1\."),
    ("trepo", {"every": 0}, r"every is 0; a segment has at least 1 token\."),
    ("trepo", {"samples": 0}, r"samples is 0; a value needs at least 1 branch\."),
    ("ppo", {"lam": 1.5}, r"lam is 1\.5; it must be in \[0, 1\]\."),
    ("ma-rlhf", {"lam": -0.1}, r"lam is -0\.1; it must be in \[0, 1\]\."),
    (
        "ppo",
        {"critic": "/no/such/folder"},
        r"no reward model or critic could be loaded from '/no/such/folder'; name a model",
    ),
    ("dpo", {"group_size": 3}, r"group_size is 3; preferences come in pairs, so it must be even\."),
    ("dpo", {"beta": 0.0}, r"beta is 0\.0; it must be above 0\."),
    ("iterative-dpo", {"preference_temperature": -1.0}, r"preference_temperature is -1\.0; it must be above 0\."),
    ("iterative-dpo", {"refresh": 0}, r"refresh is 0; an iteration has at least 1 batch\."),
    ("dpo", {"kl": 0.1}, r"kl is 0\.1, but DPO is held to its reference by beta; leave kl at 0\."),
    (
        "dpo",
        {"clip_low": 0.2},
        r"clip_low or clip_high is given, but the loss of DPO has no ratio to clip; leave them out\.",
    ),
    ("rto", {"beta": -0.5}, r"beta is -0\.5; it must be above 0\."),
    ("prime", {"beta": 0.0}, r"beta is 0\.0; it must be above 0\."),
    ("abc", {"beta": 1.2}, r"beta is 1\.2; it must be in \[0, 1\]\."),
]


@pytest.mark.parametrize("name, options, message", BAD, ids=[f"{name} {options}" for name, options, _ in BAD])
def test_bad_options_are_refused_in_a_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


@pytest.mark.parametrize("name", ["rloo", "grpo", "prime"])
def test_a_group_of_one_has_no_group_baseline(name):
    with pytest.raises(ValueError, match="group_size is 1; this agent needs at least 2 responses to a prompt"):
        make(name, group_size=1)


@pytest.mark.parametrize("name", AGENTS)
def test_options_are_frozen_documented_and_their_defaults_work(name):
    config = AGENTS[name].Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.group_size = 3
    assert isinstance(config, AgentConfig) and config.kl == 0
    make(name)


FILLED = ("scale_by_std", "reduction", "clip_low", "clip_high", "dynamic_sampling", "overlong")


@pytest.mark.parametrize(
    "variant, expected",
    [
        ("grpo", (True, "sequence_mean", 0.2, 0.2, False, "keep")),
        ("dr-grpo", (False, "constant", 0.2, 0.2, False, "keep")),
        ("dapo", (True, "token_mean", 0.2, 0.28, True, "punish")),
    ],
)
def test_a_variant_fills_in_what_was_not_given_and_nothing_else(variant, expected):
    filled = make("grpo", variant=variant).config
    assert tuple(getattr(filled, name) for name in FILLED) == expected
    others = [f.name for f in dataclasses.fields(GRPOConfig) if f.name not in FILLED]
    assert all(getattr(filled, name) == getattr(GRPOConfig(variant=variant), name) for name in others)

    given = {"scale_by_std": not expected[0], "reduction": "sum", "clip_low": 0.1, "clip_high": 0.3, "overlong": "mask"}
    for name, value in given.items():
        one = GRPOAgent(GRPOConfig(variant=variant, group_size=3, **{name: value}), table(), TASK).config
        assert getattr(one, name) == value and one.group_size == 3
        rest = [(other, wanted) for other, wanted in zip(FILLED, expected) if other != name]
        assert all(getattr(one, other) == wanted for other, wanted in rest)


def test_variants_reach_the_estimator():
    estimator = make("grpo", variant="dr-grpo").estimator
    assert (estimator.reduction, estimator.reduction_constant, estimator.scale_by_std) == (
        "constant",
        TASK.horizon,
        False,
    )
    assert make("grpo", variant="dapo", overlong_tokens=2).estimator.overlong_tokens == 2
    assert make("grpo").estimator.reduction_constant is None


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("reinforce", {"clip_low": 0.1, "clip_high": 0.3}, {"clip_low": 0.1, "clip_high": 0.3, "group_size": 8}),
        ("ppo", {"lam": 0.9}, {"lam": 0.9, "gamma": 1.0, "clip_low": 0.2, "clip_high": None, "group_size": 1}),
        ("ma-rlhf", {"lam": 0.8}, {"lam": 0.8, "boundary": EveryNTokens(2)}),
        ("ma-rlhf", {"every": 3}, {"lam": 0.95, "boundary": EveryNTokens(3)}),
        ("vineppo", {}, {"temperatures": (1.0,) * 9, "boundary": EveryNTokens(2), "lam": 0.0}),
        ("vineppo", {"boundary": "separators", "separators": (1, 2)}, {"boundary": AfterTokens((1, 2))}),
        (
            "trepo",
            {},
            {"temperatures": (1.0,) * 2, "boundary": EveryNTokens(1), "pooled": False, "interpolated": False},
        ),
        ("trepo", {"lam": 0.5, "samples": 7}, {"temperatures": (1.0,) * 7, "lam": 0.5}),
        ("dpo", {"beta": 0.3, "preference_temperature": 2.0}, {"beta": 0.3, "preference_temperature": 2.0}),
        ("rto", {"beta": 0.3, "paper": True}, {"beta": 0.3, "paper": True, "group_baseline": True}),
        ("rto", {"group_size": 1}, {"paper": False, "group_baseline": False}),
        ("abc", {"beta": 0.3}, {"beta": 0.3, "to_go": False, "group_baseline": True}),
        (
            "prime",
            {"threshold": 0.1, "outcome_weight": 2.0, "beta": 0.3},
            {"threshold": 0.1, "outcome_weight": 2.0, "beta": 0.3},
        ),
    ],
)
def test_options_reach_the_estimator(name, options, expected):
    estimator = make(name, **options).estimator
    assert {key: getattr(estimator, key) for key in expected} == expected


def test_long_responses_are_punished_by_how_far_they_go():
    """Horizon 3 and punishment from 2 tokens before it: lengths 1, 2, 3 lose 0, 1/2, 1."""
    agent = make("grpo", group_size=2, overlong="punish", overlong_tokens=2)
    source = sampler(agent, 30)
    evidence = agent.collect(source)
    lost = source.response_reward(evidence.rollouts) - evidence.response_reward
    expected = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[evidence.rollouts.length - 1]
    torch.testing.assert_close(lost, expected)
    assert len(lost.unique()) == 3


def test_truncated_responses_are_masked_out_of_the_advantages_only():
    agent, plain = make("grpo", group_size=4, overlong="mask"), make("grpo", group_size=4)
    evidence = agent.collect(sampler(agent, 30))
    cut = evidence.rollouts.finish == Finish.HORIZON
    masked, kept = agent.advantages(evidence), plain.advantages(evidence)
    assert cut.any() and (masked[cut] == 0).all() and (kept[cut] != 0).any()
    assert torch.equal(masked[~cut], kept[~cut]), "their rewards count in the mean and the std"


# --- what agents remember ---------------------------------------------------------------------------------------------

REMEMBERING = {
    "vineppo": {"boundary": "random", "positions": 1},
    "trepo": {"boundary": "random", "positions": 1},
    "ma-rlhf": {"boundary": "random", "positions": 1, "kl": 0.1},
    "iterative-dpo": {"refresh": 3},
    "rto": {"dpo_batches": 3},
    "rloo": {"kl": 0.1},
    "ppo": {"critic_warm_up": 2},
    "abc": {"reward_model_warm_up": 2},
    "r3hf": {"reward_model_warm_up": 2},
}


def trainer(name: str, seed: int) -> Trainer:
    policy = table(seed)
    agent = make(name, seed, policy=policy, **REMEMBERING.get(name, {}))
    return Trainer(
        agent, TASK, policy, TrainConfig(prompts_per_step=4, seed=seed, schedule="linear", steps=12, signal_every=0)
    )


@pytest.mark.parametrize("name", AGENTS)
def test_training_goes_on_from_its_state_bit_by_bit(name):
    """Ten steps at once, and five, then five more in objects that were made with other seeds: all that counts is in the
    state."""
    whole = trainer(name, 0)
    whole.prepare()
    for _ in range(5):
        whole.step()
    tensors, state = whole.state()
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    other = trainer(name, 99)
    other.restore(tensors, state)
    for _ in range(5):
        one, two = whole.step(), other.step()
        timing = {"seconds", "tokens_per_second"}
        assert {k: v for k, v in one.items() if k not in timing} == {k: v for k, v in two.items() if k not in timing}
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), other.policy.parameters()))
    for model, module in whole.agent.models.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, other.agent.models[model].state_dict()[key]), (model, key)
    assert whole.agent.numbers == other.agent.numbers
    assert vars(whole.sampler.cost) == vars(other.sampler.cost) and whole.number == other.number == 10


def test_a_fresh_start_with_other_seeds_goes_elsewhere():
    one, other = trainer("rloo", 0), trainer("rloo", 99)
    one.step(), other.step()
    assert not torch.equal(one.policy.levels[0], other.policy.levels[0])


def test_the_running_mean_knows_earlier_batches_only():
    agent = make("reinforce", group_size=2, decay=0.8)
    source = sampler(agent, 5)
    agent.prepare(source)
    expected = None
    source = sampler(agent, 5)
    agent.numbers.clear()
    agent.estimator = agent.make_estimator()
    for number in range(4):
        evidence = agent.collect(source)
        subtracted = evidence.response_reward - agent.advantages(evidence)[:, 0]
        if number:
            torch.testing.assert_close(subtracted, torch.full_like(subtracted, expected), rtol=1e-12, atol=1e-12)
        else:
            assert (subtracted == 0).all(), "there is no earlier batch"
        mean = float(evidence.response_reward.mean())
        assert agent.fit(evidence)["baseline"] == pytest.approx(mean if expected is None else expected)
        expected = mean if expected is None else 0.8 * expected + 0.2 * mean
    assert agent.numbers["baseline"] == pytest.approx(expected)


def test_preparing_gives_the_running_mean_its_first_value():
    agent = make("reinforce", group_size=2)
    source = sampler(agent, 5)
    agent.prepare(source)
    mean = float(agent.collect(sampler(agent, 5)).response_reward.mean())
    assert agent.numbers["baseline"] == pytest.approx(mean) and agent.estimator.baseline == agent.numbers["baseline"]
    without = make("reinforce", baseline="none")
    without.prepare(sampler(without))
    assert without.numbers == {} and without.estimator.baseline == 0


@pytest.mark.parametrize("name", ["vineppo", "trepo", "ma-rlhf"])
def test_random_boundaries_are_drawn_before_the_responses_and_anew_for_each_batch(name):
    task = Tabular(2, 8, eos=None)
    policy = table(0, task)
    agent = make(name, task=task, policy=policy, boundary="random", positions=3)
    drawn = []

    class Watching(PolicySampler):
        def rollouts(self, group_size, temperature=1.0, behaviour=None):
            drawn.append(agent.drawn)
            assert agent.estimator.boundary is agent.drawn, "D is known before a response is"
            return super().rollouts(group_size, temperature, behaviour)

    source = Watching(policy, task.mdp, torch.Generator().manual_seed(0), 2)
    starts = []
    for _ in range(6):
        evidence = agent.collect(source)
        begins = agent.boundary(evidence.rollouts)
        assert (begins == begins[:1]).all() and begins[0, 0], "one D for the whole batch, the first step besides"
        assert set(begins[0].nonzero()[:, 0].tolist()) == {0, *drawn[-1].steps}
        starts.append(tuple(sorted(drawn[-1].steps)))
        assert len(drawn[-1].steps) == 3 and max(drawn[-1].steps) < task.horizon
    assert len(set(starts)) > 3
    again = make(name, task=task, policy=policy, boundary="random", positions=3)
    again.collect(PolicySampler(policy, task.mdp, torch.Generator().manual_seed(7), 2))
    assert again.drawn == drawn[0], "by the agent's own generator, whatever the responses are"


def test_iterative_dpo_refreshes_when_it_says():
    agent = make("iterative-dpo", refresh=2)
    for batch in range(1, 5):
        with torch.no_grad():
            agent.policy.levels[0].add_(batch)
        agent.fit(None)
        for name in ("drawing", "reference"):
            assert torch.equal(agent.models[name].levels[0], agent.policy.levels[0]) == (batch % 2 == 0)
    assert agent.numbers == {"batches": 4}


@pytest.mark.parametrize("name", ["dpo", "iterative-dpo"])
def test_dpo_draws_from_its_reference_not_from_the_policy(name):
    agent = make(name)
    run = Trainer(agent, TASK, agent.policy, TrainConfig(prompts_per_step=4))
    assert agent.behaviour is not agent.policy and run.sampler.policy is agent.behaviour
    assert make("rloo").behaviour is not None and isinstance(make("rloo").behaviour, TabularPolicy)


def test_a_reward_model_learns_the_rewards():
    agent = make("r3hf", group_size=8)
    source = sampler(agent, 8)
    losses = [agent.fit(agent.collect(source))["reward_model/loss"] for _ in range(120)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_a_critic_learns_the_expected_reward_of_every_prefix():
    agent = make("ppo", group_size=8, critic_learning_rate=5e-3)
    p = Problem(random_instance(3, 3, gamma=0.9, n_prompts=2, seed=3))
    assert torch.equal(p.instance.mdp.token_reward.table[0], TASK.mdp.token_reward.table[0])
    p = Problem(replace(p.instance, policy=agent.policy))
    evidence = agent.collect(sampler(agent, 50, seed=1))
    rollouts = evidence.rollouts
    exact = p.exact_u(rollouts.prompt, rollouts.tokens, rollouts.mask)

    @torch.no_grad()
    def distance() -> float:
        return float((agent.models["critic"](rollouts.prompt, rollouts.tokens, rollouts.mask) - exact).square().mean())

    before, source = distance(), sampler(agent, 8)
    for _ in range(60):
        agent.fit(agent.collect(source))
    assert distance() < 0.5 * before
    value = agent.models["critic"](rollouts.prompt, rollouts.tokens, rollouts.mask)
    assert value.shape[-1] == TASK.horizon + 1 and (value[:, -1] == 0).all()


def test_prime_fits_its_process_model_to_outcomes():
    agent = make("prime", threshold=0.0, process_learning_rate=0.05)
    source = sampler(agent, 16)
    losses = [agent.fit(agent.collect(source))["process_model/loss"] for _ in range(60)]
    assert losses[0] == pytest.approx(0.6931471805599453) and losses[-1] < 0.66


def test_rto_trains_its_dpo_model_and_leaves_policy_and_reference_alone():
    agent = make("rto", dpo_batches=20)
    before = agent.policy.levels[0].detach().clone()
    agent.prepare(sampler(agent))
    assert torch.equal(agent.policy.levels[0], before) and torch.equal(agent.models["reference"].levels[0], before)
    assert not torch.equal(agent.models["dpo"].levels[0], before)


@pytest.mark.parametrize("name", AGENTS)
def test_models_begin_alike_for_one_seed_and_leave_the_global_generator_alone(name):
    state = torch.get_rng_state()
    one, again = (
        make(name, policy=table(), **REMEMBERING.get(name, {})),
        make(name, policy=table(), **REMEMBERING.get(name, {})),
    )
    one.collect(sampler(one))
    assert torch.equal(torch.get_rng_state(), state)
    for model, module in one.models.items():
        theirs = again.models[model].state_dict()
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in module.state_dict().items())


def test_references_are_never_trained():
    for name, agent in ((name, make(name, **({} if "dpo" in name else {"kl": 0.1}))) for name in AGENTS):
        assert not any(parameter.requires_grad for parameter in agent.models["reference"].parameters()), name
        assert "reference" not in agent.optimizers


def test_an_estimator_of_one_s_own_is_an_agent():
    policy = table()
    agent = Plain(RLOO(group_size=3), policy, TASK)
    evidence = agent.collect(sampler(agent))
    assert agent.group_size == 3 and torch.equal(agent.advantages(evidence), RLOO(group_size=3).advantages(evidence))
    Trainer(agent, TASK, policy, TrainConfig(prompts_per_step=2)).step()


# --- conversations ----------------------------------------------------------------------------------------------------

CONVERSATIONS = {
    "guess the number": lambda: GuessNumber(highest=5, max_turns=3),
    "consultation": lambda: Consultation(max_turns=3),
}
BRIEF = {
    "rto": {"dpo_batches": 2},
    "ppo": {"critic_warm_up": 1},
    "ma-rlhf": {"critic_warm_up": 1},
    "prime": {"threshold": 0.1},
}


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", AGENTS)
def test_agents_train_in_conversations_on_their_own_tokens_only(name, kind):
    task = CONVERSATIONS[kind]()
    policy = NgramPolicy.random(task.vocab_size, 1, torch.Generator().manual_seed(0), scale=0.5)
    with torch.no_grad():
        policy.table[..., task.end_of_turn] += 2
    options = BRIEF.get(name, {}) | ({"kl": 0.1} if "dpo" not in name else {})
    agent = make(name, task=task, policy=policy, **options)
    run = Trainer(agent, task, policy, TrainConfig(prompts_per_step=6, signal_every=1))
    seen: list[Evidence] = []
    collect = agent.collect

    def watched(source):
        seen.append(collect(source))
        return seen[-1]

    agent.collect = watched
    run.prepare()
    before = policy.table.detach().clone()
    seen.clear()
    for _ in range(3):
        metrics = run.step()
        assert all(torch.isfinite(torch.tensor(float(value))) for value in metrics.values()), metrics
        evidence = seen[-1]
        rollouts, questions = evidence.rollouts, run.sampler.questions
        theirs = (rollouts.tokens != PAD) & ~rollouts.mask
        assert theirs.any()
        for row, question in enumerate(questions):
            tokens = [token for token in rollouts.tokens[row].tolist() if token != PAD]
            assert rollouts.mask[row, : len(tokens)].tolist() == mask_of(task, question, tokens).tolist()
        logp = rollouts.logp.clone().requires_grad_()
        (weights,) = torch.autograd.grad(agent.loss(logp, evidence), logp)
        # DPO sums log-ratios over whole rows; off the mask they are 0 and no policy parameter is behind them.
        assert torch.isfinite(weights).all() and ("dpo" in name or (weights[~rollouts.mask] == 0).all())
        for name_of in ("token_reward", "reference_logp"):
            part = getattr(evidence, name_of)
            assert part is None or (part[theirs] == 0).all()
        assert evidence.value is None or (evidence.value[:, :-1][theirs] == 0).all()
    assert not torch.equal(policy.table, before)


def test_evidence_of_another_order_gives_the_same_loss():
    """Whole groups may come in any order."""
    for name in ("rloo", "grpo", "trepo", "prime", "dpo"):
        agent = make(name, group_size=2)
        evidence = agent.collect(sampler(agent, 3))
        rows = torch.tensor([4, 5, 0, 1, 2, 3])
        names = [f.name for f in dataclasses.fields(evidence.rollouts)]
        rollouts = replace(evidence.rollouts, **{key: getattr(evidence.rollouts, key)[rows] for key in names})
        parts = {
            key: value[rows]
            for key in ("token_reward", "value", "reference_logp")
            if (value := getattr(evidence, key)) is not None
        }
        moved = replace(evidence, rollouts=rollouts, response_reward=evidence.response_reward[rows], **parts)
        if evidence.branches is not None:
            place = torch.argsort(rows)
            moved = replace(moved, branches=replace(evidence.branches, row=place[evidence.branches.row]))
        before = float(agent.loss(evidence.rollouts.logp, evidence))
        assert float(agent.loss(moved.rollouts.logp, moved)) == pytest.approx(before, abs=1e-12)


def test_a_reward_model_can_take_the_place_of_the_environments_reward(tmp_path):
    """Rewards of the run are the model's scores of whole responses."""
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from llm_mdp_agents import train
    from llm_mdp_agents.models import SequenceScorer
    from llm_mdp_agents.resolve import ModelConfig
    from llm_mdp_agents.sampler import TaskSampler

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModelForSequenceClassification.from_config(
        LlamaConfig(vocab_size=16, num_labels=1, pad_token_id=None, **shape)
    )
    model.save_pretrained(tmp_path)
    run = train(
        "rloo",
        "Arithmetic",
        ModelConfig(width=16, layers=1, scored_by=str(tmp_path)),
        steps=1,
        warm_start=0,
        progress=False,
    )
    source = TaskSampler(run.policy, run.task, torch.Generator().manual_seed(1), np.random.default_rng(1), 5)
    rollouts = source.rollouts(2)
    expected = SequenceScorer(model, None).final(rollouts.prompt, rollouts.tokens)
    torch.testing.assert_close(source.response_reward(rollouts), expected.detach(), rtol=1e-5, atol=1e-6)
    assert float(expected.detach().std()) > 1e-3


# --- a budget of tokens -----------------------------------------------------------------------------------------------


def budgeted(budget: float = 600.0, seed: int = 0, task: TokenMDPTask | None = None, **options) -> Trainer:
    """TRePO on six tokens of which the first one counts: branches pay."""
    task = Credit(2, 6) if task is None else task
    policy = table(seed, task)
    agent = make("trepo", seed, task, policy, budget=budget, pilot_prompts=32, **options)
    return Trainer(agent, task, policy, TrainConfig(seed=seed, steps=20_000, signal_every=0))


def test_a_budget_is_split_before_training_and_spent_batch_by_batch():
    whole = budgeted()
    assert whole.agent.prompts is None and whole.agent.group_size == 1
    whole.prepare()
    agent, estimator = whole.agent, whole.agent.estimator
    pilot = whole.sampler.cost.tokens
    assert agent.prompts and agent.group_size > 1 and estimator.boundary(sampler(agent).rollouts(1)).any()
    assert estimator.clip_low == 0.2 and pilot > 600
    spent = [whole.step()["tokens"] for _ in range(4)]
    assert spent[0] < 300, "the first batch is the pilot's, as far as it goes"
    assert all(300 < tokens <= 600 for tokens in spent[1:]), "every response has six tokens: costs are those expected"
    assert whole.sampler.cost.tokens == pilot + sum(spent)
    assert len(whole._collect().response_reward) == agent.prompts * agent.group_size
    twice = budgeted(1200.0)
    twice.prepare()
    assert twice.agent.group_size == agent.group_size, "the budget decides how many are asked"
    assert twice.agent.prompts in (2 * agent.prompts, 2 * agent.prompts + 1)


def test_what_a_budget_chose_goes_on_bit_by_bit():
    """A trainer of another seed, which has made no pilot, takes the choice out of the state."""
    whole = budgeted(kl=0.1, clip_high=0.3)
    whole.prepare()
    whole.step()
    tensors, state = whole.state()
    other = budgeted(seed=9, kl=0.1, clip_high=0.3)
    other.restore({key: tensor.clone() for key, tensor in tensors.items()}, state)
    assert other.agent.estimator == whole.agent.estimator and other.agent.prompts == whole.agent.prompts
    for _ in range(4):
        assert whole.step()["reward"] == other.step()["reward"]
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), other.policy.parameters()))


@pytest.mark.parametrize("budget", [8.0, 2000.0])
def test_what_a_budget_chose_is_unbiased(budget):
    """As certified: every outcome of the estimator that trains, branches included."""
    task = Tabular(2, 3, gamma=0.9, n_prompts=2, seed=3)
    whole = budgeted(budget, task=task)
    whole.prepare()
    problem = Problem(replace(random_instance(2, 3, gamma=0.9, n_prompts=2, seed=3), policy=whole.policy))
    found = exact_certificate(whole.agent, problem.enumeration, problem.target("reward"), problem.magnitude("reward"))
    assert found.verdict == "unbiased" and found.trace_covariance > 0


def test_without_a_reward_for_branches_a_budget_is_spent_on_responses():
    """A needle at the end: values before it tell nothing that the response does not."""
    whole = budgeted(500.0, task=Needle(4, 4))
    whole.prepare()
    assert whole.agent.estimator == RLOO(whole.agent.group_size, clip_low=0.2)
    assert whole.agent.prompts == 500 // (4 * whole.agent.group_size)


def test_a_budget_that_cannot_be_is_refused_before_any_step():
    sentences = {
        "sign": r"^budget is -5\.0; a batch has a positive number of tokens\.$",
        "paper": r"^budget chooses among unbiased ways to draw; leave variant at 'repaired', or leave budget out\.$",
        "small": r"^a budget of 11 tokens is too small: the cheapest group costs 12\.0 tokens on average; raise it\.$",
    }
    with pytest.raises(ValueError, match=sentences["sign"]):
        make("trepo", budget=-5.0)
    with pytest.raises(ValueError, match=sentences["paper"]):
        make("trepo", budget=100.0, variant="paper")
    with pytest.raises(
        ValueError,
        match=r"^prompts_per_step is 8, but the agent's budget decides how many prompts are asked; leave one",
    ):
        Trainer(make("trepo", budget=100.0), Credit(2, 6), table(0, Credit(2, 6)), TrainConfig(prompts_per_step=8))
    whole = budgeted(11.0)
    before = [parameter.clone() for parameter in whole.policy.parameters()]
    with pytest.raises(ValueError, match=sentences["small"]):
        whole.prepare()
    assert whole.number == 0 and all(torch.equal(a, b) for a, b in zip(before, whole.policy.parameters()))
