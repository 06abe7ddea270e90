"""What a checkpoint of adapters holds: all that is trained, nothing of the weights below them."""

import pytest
import torch

from llm_mdp_agents.lm.loading import LoRAOptions, load_policy
from llm_mdp_agents.training.state import fingerprint, frozen_names
from llm_mdp_agents.training.train_config import TrainConfig
from llm_mdp_agents.training.trainer import Trainer
from llm_mdp_agents.zoo import AGENTS
from llm_mdp_envs.tasks.synthetic import Tabular

TASK = Tabular(vocab_size=4, horizon=5, n_prompts=3, seed=1)
CONFIG = {
    "model_type": "llama", "vocab_size": 5, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 16, "bos_token_id": 4, "eos_token_id": None,
    "tie_word_embeddings": False, "llm_mdp": {"begin": 4, "vocab_size": 4},
}  # fmt: skip


def trainer(name="rloo", seed=0, lora=True, dtype="float32", base=0, **options) -> Trainer:
    """With adapters on the same weights whatever the seed; `seed` decides all that a checkpoint brings."""
    policy = load_policy(CONFIG, lora=LoRAOptions(rank=2) if lora else None, dtype=dtype, seed=base)
    agent = AGENTS[name](AGENTS[name].Config(**options), policy, TASK, seed)
    config = TrainConfig(prompts_per_step=2, steps=9, seed=seed, signal_every=0, learning_rate=0.01)
    return Trainer(agent, TASK, policy, config)


def trained(one: Trainer) -> dict[str, torch.Tensor]:
    return {name: each for name, each in one.policy.named_parameters() if each.requires_grad}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rloo", {"lora": True, "kl": 0.1}),
        ("rloo", {"lora": True, "dtype": "bfloat16"}),
        ("rloo", {"lora": False, "dtype": "bfloat16"}),
        ("ppo", {"lora": True, "critic_warm_up": 1}),
        ("iterative-dpo", {"lora": True}),
    ],
)
def test_training_goes_on_from_its_state_bit_by_bit(name, options):
    whole = trainer(name, **options)
    whole.prepare()
    whole.step(), whole.step()
    tensors, state = whole.state()
    tensors = {key: each.clone() for key, each in tensors.items()}
    other = trainer(name, seed=7, **options)
    other.restore(tensors, state)
    for _ in range(2):
        one, two = whole.step(), other.step()
        for figure in one.keys() - {"seconds", "tokens_per_second"}:
            assert one[figure] == two[figure], figure
    mine, theirs = whole.policy.state_dict(), other.policy.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert any(not torch.equal(each, trained(trainer(name, **options))[key]) for key, each in trained(whole).items())


def test_the_weights_below_adapters_are_in_no_checkpoint():
    whole = trainer(kl=0.1)
    whole.step()
    tensors, _ = whole.state()
    policies = [name for name in tensors if "base_layer" in name or "embed_tokens" in name]
    assert not policies
    kept = {name.removeprefix("trainer/policy/") for name in tensors if name.startswith("trainer/policy/")}
    assert kept == set(trained(whole))
    below = sum(each.numel() for each in whole.policy.parameters() if not each.requires_grad)
    assert sum(each.numel() for name, each in tensors.items() if "/generator" not in name) < below


def test_a_model_beside_the_policy_is_kept_without_what_they_share():
    whole = trainer()
    body = whole.policy.causal_lm.model
    shared = torch.nn.ModuleDict({"norm": body.norm, "head": torch.nn.Linear(16, 1)})
    whole.agent.models["beside"] = shared
    tensors, state = whole.state()
    assert {name for name in tensors if "/beside/" in name} == {
        f"trainer/agent/models/beside/head.{kind}" for kind in ("weight", "bias")
    }
    other = trainer(seed=3)
    other.agent.models["beside"] = torch.nn.ModuleDict(
        {"norm": other.policy.causal_lm.model.norm, "head": torch.nn.Linear(16, 1)}
    )
    other.restore(tensors, state)
    mine, theirs = shared.state_dict(), other.agent.models["beside"].state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_another_base_is_refused_in_a_sentence():
    whole = trainer()
    tensors, state = whole.state()
    other = trainer(base=1)
    before = {name: each.clone() for name, each in other.policy.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"the frozen weights of the policy are not those .* sha256 is [0-9a-f]{12} in"
    ):
        other.restore(tensors, state)
    assert all(torch.equal(each, before[name]) for name, each in other.policy.state_dict().items())
    with pytest.raises(ValueError, match="the frozen weights of the policy are not those"):
        trainer(lora=False).restore(tensors, state)


def test_another_agent_s_checkpoint_is_refused_in_a_sentence():
    tensors, state = trainer("rloo", lora=False).state()
    with pytest.raises(ValueError, match=r"the checkpoint is of another model: .* of the critic is not in it"):
        trainer("ppo", lora=False).restore(tensors, state)


def test_the_fingerprint_is_of_names_types_shapes_and_bytes():
    def of(name="w", dtype=torch.float32, shape=(2, 3), **values):
        return fingerprint({name: values.get("tensor", torch.arange(6, dtype=dtype).reshape(shape))})

    odd = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    odd[1, 2] = torch.nextafter(odd[1, 2], torch.tensor(9.0))
    prints = [of(), of("v"), of(dtype=torch.float64), of(shape=(3, 2)), of(tensor=odd)]
    assert len(set(prints)) == 5 and of() == prints[0] and fingerprint({}) is None
    across = torch.arange(6, dtype=torch.float32).reshape(3, 2).T.contiguous().T
    assert fingerprint({"w": across}) == of(shape=(3, 2)), "memory order is no difference"


def test_nothing_is_frozen_in_a_policy_that_trains_all_its_weights():
    assert not frozen_names(trainer(lora=False).policy) and trainer(lora=False).base is None
