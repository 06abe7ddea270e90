"""On a real GPU:  pytest -m cuda

Drawing, branches, packed log-probabilities, 16 bits, adapters, checkpoints, certificates and deterministic kernels,
beside the CPU. Without CUDA all of it is skipped; what a GPU would refuse is found by test_pretend_device.py, and
gpu.py in benchmarks takes two steps of every agent.
"""

import pytest
import torch

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.mdp.tree import PAD
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.weights import flatten_gradients
from llm_mdp_agents.lm.loading import LoRAOptions
from llm_mdp_agents.lm.packing import packed_reading, plain_reading
from llm_mdp_agents.training.determinism import numerics
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular
from tests.agents.small_agents import make_policy, make_trainer, resumed, stepped, weights

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PROMPT = torch.tensor([[PAD, 1, 2], [3, 0, 1]])
KINDS = ["llama", "gpt2"]


@pytest.fixture(scope="module")
def task() -> Tabular:
    return Tabular(vocab_size=4, horizon=4, n_prompts=2, seed=1)


def drawn(policy, **options):
    chosen = {"eos": 3, "horizon": 6, "generator": torch.Generator().manual_seed(0)} | options
    return policy.sample(PROMPT, 3, **chosen), chosen


def off(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one - other| / |other|."""
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_responses_and_branches_are_the_cpu_s(task, kind, dtype):
    found = []
    for device in ("cpu", "cuda"):
        policy = make_policy(task, kind, device, dtype=dtype)
        rollouts, options = drawn(policy)
        row, step = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 0, 2])
        found.append((rollouts, policy.branch(rollouts.prompt, rollouts.tokens, row, step, 2, **options)))
    for here, there in zip(*found):
        assert torch.equal(here.tokens, there.tokens)
        torch.testing.assert_close(here.logp, there.logp, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_of_shared_prompts_and_their_gradient_are_the_cpu_s(task, kind):
    found = []
    for device in ("cpu", "cuda"):
        policy = make_policy(task, kind, device)
        rollouts, _ = drawn(policy)
        logp = policy.logp(rollouts.prompt, rollouts.tokens, rollouts.mask)
        gradient = torch.autograd.grad(logp.sum(), list(policy.parameters()))
        found.append((logp.detach(), torch.cat([each.cpu().flatten() for each in gradient])))
    for here, there in zip(*found):
        torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("read", [plain_reading, packed_reading])
def test_either_way_of_reading_gives_the_logits(task, read, monkeypatch):
    policy = make_policy(task, device="cuda")
    rollouts, _ = drawn(policy)
    with torch.no_grad():
        whole = policy.logits(rollouts.prompt, rollouts.tokens).log_softmax(-1)
        monkeypatch.setattr("llm_mdp_agents.lm.policy.plain_reading", read)
        monkeypatch.setattr("llm_mdp_agents.lm.packing.packed_reading", read)
        logp = policy.logp(rollouts.prompt, rollouts.tokens, rollouts.mask)
    expected = whole.gather(-1, rollouts.tokens.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(logp[rollouts.mask], expected[rollouts.mask], rtol=0, atol=1e-9)


def test_16_bits_draw_nearly_what_they_score(task):
    policy = make_policy(task, device="cuda", dtype="bfloat16")
    rollouts, _ = drawn(policy)
    with torch.no_grad():
        logp = policy.logp(rollouts.prompt, rollouts.tokens, rollouts.mask)
    assert float((logp - rollouts.logp)[rollouts.mask].abs().mean()) < 0.05


@pytest.mark.parametrize("name", AGENTS)
def test_two_steps_of_every_agent_are_the_cpu_s(task, name):
    here, there = (stepped(make_trainer(name, task, device)) for device in ("cpu", "cuda"))
    assert off(weights(there.policy), weights(here.policy)) < 1e-6
    assert {each.device.type for model in there.agent.models.values() for each in model.parameters()} <= {"cuda"}


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": LoRAOptions(rank=2)}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}],
    ids=["float64", "adapters", "recomputed", "bfloat16"],
)
@pytest.mark.parametrize("name", ["grpo", "ppo", "trepo"])
def test_a_checkpoint_goes_on_where_it_was_written(task, name, options, tmp_path):
    """Bit by bit, with deterministic kernels."""
    with numerics(deterministic=True):
        trainer = stepped(make_trainer(name, task, "cuda", **options))
        again: Trainer = resumed(trainer, make_trainer(name, task, "cuda", **options), tmp_path)
        trainer.step(), again.step()
    assert torch.equal(weights(trainer.policy), weights(again.policy))


def test_the_certificate_of_an_agent_is_the_cpu_s():
    task, found = Tabular(vocab_size=3, horizon=2, n_prompts=2, seed=1), []
    for device in ("cpu", "cuda"):
        policy = make_policy(task, "gpt2", device)
        agent = AGENTS["rloo"](AGENTS["rloo"].Config(group_size=2), policy, task, 0)
        enumeration = Enumeration(task.mdp, policy)
        target = flatten_gradients(exact_gradient(policy, task.mdp)[1], list(policy.parameters()))
        found.append(exact_certificate(agent, enumeration, target, 1.0))
    assert found[0].verdict == found[1].verdict == "unbiased"
    assert found[1].trace_covariance == pytest.approx(found[0].trace_covariance, rel=1e-6)


def test_no_draw_moves_the_gpu_s_own_generator(task):
    policy = make_policy(task, device="cuda")
    before = torch.cuda.get_rng_state()
    drawn(policy)
    assert torch.equal(before, torch.cuda.get_rng_state())
