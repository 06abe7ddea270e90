"""What a GPU would refuse, found without one: every agent, branches, checkpoints and certificates on a pretended device
(`pretend_device.py`), whose figures are the CPU's."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.tree_gradient import exact_gradient, node_logits
from llm_mdp.mdp.tree import PAD
from llm_mdp.sampling.policies import PolicyModule
from llm_mdp.verify.certificate import exact_certificate
from llm_mdp.verify.check import PolicyError, check_policy
from llm_mdp.verify.sampled import policy_certificate, sampled_certificate
from llm_mdp.verify.weights import flatten_gradients
from llm_mdp_agents.lm.loading import LoRAOptions, load_policy
from llm_mdp_agents.resolve import ModelConfig
from llm_mdp_agents.training.evaluation import evaluate
from llm_mdp_agents.training.run import resume, train
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular
from tests.agents.pretend_device import Pretending
from tests.agents.small_agents import CONFIG, make_policy, make_trainer, resumed, stepped, weights


@pytest.fixture(scope="module")
def task() -> Tabular:
    return Tabular(vocab_size=4, horizon=4, n_prompts=2, seed=1)


# The device itself.


def test_what_cuda_refuses_is_refused():
    with Pretending():
        a, b, i = torch.arange(6.0, device="pretend").view(2, 3), torch.ones(2, 3), torch.tensor([0])
        for wrong in (
            lambda: a + b,
            lambda: torch.cat([a, b]),
            lambda: b[i.to("pretend")],
            lambda: b.index_put_((i,), a[:1]),
            lambda: torch.where(a > 0, a, b),
            lambda: a + a.to("pretend:1"),
            lambda: a.gather(1, i[None]),
            lambda: torch.rand(2, device="pretend", generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            a.numpy()
        # One number, and indices, may be on the CPU.
        assert (a * torch.tensor(2.0))[i].sum().item() == 6


def test_waits_are_counted():
    with Pretending() as watch:
        a = torch.arange(6.0, device="pretend")
        assert watch.total("host to device", "sync") == 0, "made there"
        assert a.sum().item() == 15 and bool((a > 9).any()) is False and a[a > 3].shape == (2,)
        assert watch.total("sync") == 3
        torch.ones(2).to("pretend").cpu()
        assert (watch.total("host to device"), watch.total("device to host")) == (1, 1)


def test_modules_move_with_their_ties_and_train_there():
    with Pretending():
        model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False))
        model[2].weight = model[0].weight
        model.to("pretend")
        assert model[2].weight is model[0].weight and model[0].weight.device.type == "pretend"
        optimizer, before = torch.optim.AdamW(model.parameters(), 0.1), weights(model)
        model(torch.tensor([0], device="pretend")).log_softmax(-1)[:, 0].cpu().sum().backward()
        optimizer.step()
        assert not torch.equal(before, weights(model))


def test_outside_nothing_is_pretended():
    assert not torch.accelerator.is_available()
    with Pretending():
        assert torch.accelerator.is_available()
    assert not torch.accelerator.is_available()


# What draws and scores.


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tokens_log_probabilities_and_gradients_are_the_cpu_s(task, kind):
    prompt = torch.tensor([[PAD, 1, 2], [3, 0, 1]])
    found = []
    with Pretending():
        for device in ("cpu", "pretend:1"):
            policy = make_policy(task, kind, device)
            generator = torch.Generator().manual_seed(0)
            options = {"eos": 3, "horizon": 6, "generator": generator}
            drawn = policy.sample(prompt, 3, **options)
            assert drawn.tokens.device.type == drawn.logp.device.type == "cpu"
            row, step = torch.tensor([0, 2, 2, 5]), torch.tensor([0, 1, 0, 2])
            branches = policy.branch(drawn.prompt, drawn.tokens, row, step, 2, **options)
            greedy = policy.sample(prompt, 1, greedy=True, **options)
            logp = policy.logp(drawn.prompt, drawn.tokens, drawn.mask)
            (gradient,) = torch.autograd.grad(logp.sum(), policy.causal_lm.get_input_embeddings().weight)
            found.append(
                (drawn.tokens, branches.tokens, greedy.tokens, logp.detach(), drawn.logp, gradient.cpu().double())
            )
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs)


# Training.


QUICK = ("ppo", "trepo")
AGENT_CASES = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in AGENTS]


@pytest.mark.parametrize("name", AGENT_CASES)
def test_every_agent_trains_and_resumes_there_as_on_the_cpu(task, name, tmp_path):
    """Two steps with a KL penalty, two epochs, parts of three responses; then one more, and the same from a
    checkpoint."""
    here = stepped(make_trainer(name, task, "cpu"))
    with Pretending():
        there = stepped(make_trainer(name, task, "pretend"))
        torch.testing.assert_close(weights(here.policy), weights(there.policy), rtol=0, atol=1e-9)
        for key, model in there.agent.models.items():
            torch.testing.assert_close(weights(here.agent.models[key]), weights(model), rtol=0, atol=1e-6)
            assert {each.device.type for each in model.parameters()} == {"pretend"}, key
        again = resumed(there, make_trainer(name, task, "pretend"), tmp_path)
        there.step(), again.step()
        assert torch.equal(weights(there.policy), weights(again.policy))
        assert evaluate(there.policy, task, 4, 0) == evaluate(again.policy, task, 4, 0)


@pytest.mark.parametrize("name", ["grpo", "ppo", "prime", "rto"])
@pytest.mark.parametrize(
    "options",
    [{"lora": LoRAOptions(rank=2)}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}, {"dtype": "float32"}],
    ids=["adapters", "recomputed", "bfloat16", "float32"],
)
@pytest.mark.slow
def test_kinds_of_policies_train_and_resume_there(task, name, options, tmp_path):
    with Pretending():
        there = stepped(make_trainer(name, task, "pretend", **options))
        again = resumed(there, make_trainer(name, task, "pretend", **options), tmp_path)
        there.step(), again.step()
        assert torch.equal(weights(there.policy), weights(again.policy))


A_COLUMN, A_STEP = 1, 45
WAITS = ("host to device", "device to host", "sync")
"""On CUDA each of them waits for the device, unless a copy to it says that it need not."""


def test_drawing_and_training_wait_no_oftener_than_this(task):
    """Upper bounds, of columns without an end and of a step in small parts; lower them when there are fewer."""
    with Pretending() as watch:
        policy = make_policy(task, device="pretend")
        counted = []
        for horizon in (1, 2, 12):
            watch.counts.clear()
            policy.sample(torch.tensor([[0, 1]]), 4, eos=None, horizon=horizon, generator=torch.Generator())
            counted.append(watch.total(*WAITS))
        # The first call tries the model out.
        assert (counted[2] - counted[1]) / 10 <= A_COLUMN, watch.report()
        trainer = make_trainer("grpo", task, "pretend", replace(CONFIG, epochs=1, signal_every=0))
        trainer.step()
        watch.counts.clear()
        trainer.step()
        assert watch.total(*WAITS) <= A_STEP, watch.report()


# Certificates.


def test_certificates_of_an_agent_on_the_device_are_the_cpu_s():
    """With a GPT-2, for Llamas compute their norms in float32 whatever they are told."""
    task, found = Tabular(vocab_size=3, horizon=2, n_prompts=2, seed=1), []
    with Pretending():
        for device in ("cpu", "pretend"):
            policy = make_policy(task, "gpt2", device)
            enumeration = Enumeration(task.mdp, policy)
            agent = AGENTS["rloo"](AGENTS["rloo"].Config(group_size=2), policy, task, 0)
            target = flatten_gradients(exact_gradient(policy, task.mdp)[1], list(policy.parameters()))
            exact = exact_certificate(agent, enumeration, target, 1.0)
            sampled = sampled_certificate(agent, enumeration, target, 400)
            by_policy = policy_certificate(agent, policy, task.mdp, target, 400, batches=4)
            found.append((exact, sampled, by_policy))
    assert found[1][0].verdict == "unbiased"
    for mine, theirs in zip(*found):
        assert mine.verdict == theirs.verdict
        assert mine.relative_bias == pytest.approx(theirs.relative_bias, rel=1e-6, abs=1e-12)
        assert mine.trace_covariance == pytest.approx(theirs.trace_covariance, rel=1e-6)


def test_a_table_on_the_device_is_refused_in_words(task):
    from llm_mdp.sampling.policies import TabularPolicy

    table = TabularPolicy.random(task.mdp.tree, task.mdp.prompt_tokens, torch.Generator())
    with Pretending():
        table.to("pretend")
        with pytest.raises(ValueError, match=r"on pretend:0.*policy\.cpu\(\)"):
            node_logits(table, task.mdp)


def test_a_policy_that_answers_on_the_device_is_refused_in_words(task):
    class Own(PolicyModule):
        def __init__(self):
            super().__init__()
            self.vocab_size, self.table = task.vocab_size, nn.Parameter(torch.zeros(task.vocab_size))

        def logits(self, prompt, tokens):
            return self.table.expand(*tokens.shape, -1)

    with Pretending(), pytest.raises(PolicyError, match=r"answers on pretend:0.*logits\.cpu\(\)"):
        check_policy(Own().to("pretend"), task.mdp)


# Whole runs.


@pytest.mark.slow
def test_a_run_trains_resumes_evaluates_and_saves_there(tmp_path):
    """By names, as the command line does; the folder is read back on the CPU."""
    config = make_policy(Tabular(vocab_size=4, horizon=4, n_prompts=2, seed=1)).model.config.to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ModelConfig(str(tmp_path / "config.json"), device="pretend", dtype="float64")
    options = {"prompts_per_step": 2, "eval_prompts": 4, "eval_every": 2, "signal_every": 1, "progress": False}
    with Pretending():
        run = train(
            "rloo", "Tabular", model, folder=tmp_path / "run", env_arguments={"n_prompts": 2}, steps=2, **options
        )
        assert {each.device.type for each in run.policy.parameters()} == {"pretend"}
        again = resume(tmp_path / "run", steps=3, progress=False)
        trained = weights(again.policy)
    there = load_policy(tmp_path / "run" / "model", dtype="float64")
    torch.testing.assert_close(weights(there), trained)
