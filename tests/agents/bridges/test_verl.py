"""The bridge to verl: through verl's own entry points, an update is that of our estimator on the same batch."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from llm_mdp import GRPO, RLOO, Estimator
from llm_mdp.estimators.catalogue import CATALOGUE, find_entry
from llm_mdp.estimators.values import groups
from llm_mdp.own import UsageError
from llm_mdp_agents.bridges import verl as bridge

P, K, T = 4, 3, 5
EXPRESSED = ("reinforce", "rloo", "grpo", "grpo-mean", "opo", "pass-at-k", "token-mean", "length-normalised")
needs_verl = pytest.mark.skipif(bridge.find_spec("verl") is None, reason="needs verl")


@dataclass(frozen=True)
class Yours(Estimator):
    group_size: int = 2

    def advantages(self, evidence):
        reward = groups(evidence.response_reward, self.group_size)
        return (reward - reward.median(-1, keepdim=True).values).flatten(-2)[..., None]


@pytest.fixture
def rows():
    """Rewards, masks and uids of P groups whose rows are not adjacent, and the order in which they are."""
    generator = torch.Generator().manual_seed(1)
    length = torch.randint(1, T + 1, (P * K,), generator=generator)
    mask = torch.arange(T) < length[:, None]
    reward = torch.randn(P * K, generator=generator, dtype=torch.float64)
    shuffled = torch.randperm(P * K, generator=generator)
    uid = np.array([f"prompt-{int(i) // K}" for i in shuffled], dtype=object)
    last = mask & ~torch.cat([mask[:, 1:], torch.zeros(P * K, 1, dtype=torch.bool)], 1)
    return {
        "reward": reward[shuffled], "mask": mask[shuffled], "uid": uid,
        "token_reward": (last * reward[:, None])[shuffled], "adjacent": shuffled.argsort(),
    }  # fmt: skip


def own_gradient(estimator, rows, logp):
    """∂loss/∂log π of our estimator on the whole batch, groups adjacent, in the order of the rows."""
    order = rows["adjacent"]
    evidence = bridge.handed(rows["reward"][order], rows["mask"][order])
    logp = logp.detach().clone().requires_grad_()
    old = torch.where(rows["mask"], logp, 0.0).detach()
    (gradient,) = torch.autograd.grad(estimator.loss((logp - old)[order], evidence), logp)
    return gradient * rows["mask"]


def advantages(make, rows, **changed):
    given = {"token_level_rewards": rows["token_reward"], "response_mask": rows["mask"].long(), "index": rows["uid"]}
    return bridge.advantage_of(make, "llm_mdp_x")(**given | changed, config=None)[0]


# --- without verl -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPRESSED)
def test_weights_are_the_derivatives_of_the_estimators_own_loss_whatever_the_order_of_rows(name, rows):
    entry = find_entry(name)
    estimator = bridge.of_entry(entry)(K)
    found = advantages(bridge.of_entry(entry), rows)
    expected = -P * K * own_gradient(estimator, rows, torch.zeros(P * K, T, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_padding_and_rewards_beside_the_mask_change_nothing(rows):
    wider = {
        "token_level_rewards": torch.cat([rows["token_reward"], torch.full((P * K, 2), 7.0)], 1),
        "response_mask": torch.cat([rows["mask"], torch.zeros(P * K, 2, dtype=torch.bool)], 1),
    }
    found, padded = (advantages(lambda k: RLOO(group_size=k), rows, **more) for more in ({}, wider))
    torch.testing.assert_close(padded[:, :T], found, rtol=1e-13, atol=0)
    assert not padded[:, T:].any()


@pytest.mark.parametrize(
    "name, words",
    [
        ("vineppo", "draws branches"), ("trepo", "draws branches"), ("remax", "draws branches"),
        ("tempo", "reads tokens"), ("masked-truncated", "reads tokens, log-probabilities or how responses ended"),
        ("zero-std-filtered", "leaves groups out"), ("temperature-mismatch", "draws from another distribution"),
        ("dr-grpo", "reads the horizon"), ("gspo", "has a loss of its own for policies that have moved"),
        ("dpo", "compares 2 responses to a prompt, and rollout.n is 3"), ("kl-k1-reward", "cannot be trained in verl"),
        ("prime", "cannot be trained in verl"),
    ],
)  # fmt: skip
def test_what_verl_cannot_express_is_refused_in_words(name, words, rows):
    with pytest.raises(UsageError, match=words):
        advantages(bridge.of_entry(find_entry(name)), rows)


def test_every_name_of_the_catalogue_is_trained_or_refused_in_a_sentence(rows):
    expressed = 0
    for entry in CATALOGUE.values():
        try:
            assert torch.isfinite(advantages(bridge.of_entry(entry), rows)).all()
            expressed += 1
        except UsageError as why:
            assert "\n" not in str(why) and str(why).endswith((".", "here."))
    assert expressed >= 20


def test_groups_of_different_sizes_are_refused(rows):
    uid = rows["uid"].copy()
    uid[list(uid).index("prompt-0")] = "prompt-1"
    with pytest.raises(UsageError, match="as many responses to every prompt, and verl's groups have 2 to 4"):
        advantages(lambda k: RLOO(group_size=k), rows, index=uid)
    with pytest.raises(UsageError, match="verl handed over no uid"):
        advantages(lambda k: RLOO(group_size=k), rows, index=None)


def test_an_estimator_of_yours_takes_the_size_of_verls_groups(rows):
    found = advantages(bridge.of_own(Yours(), "Yours"), rows)
    torch.testing.assert_close(found, -P * K * own_gradient(Yours(group_size=K), rows, torch.zeros(P * K, T).double()))


# --- through verl -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verl():
    """verl's registries and losses, and `compute_advantage` of its trainer."""
    pytest.importorskip("verl", reason="needs verl")
    import verl.trainer.ppo.core_algos as core
    from verl.workers.config import ActorConfig

    from llm_mdp.audit.verl.trainer import Update, modules

    return {"core": core, "trainer": modules(), "Update": Update, "ActorConfig": ActorConfig}


@needs_verl
def test_one_import_registers_every_name_and_both_losses(verl):
    advantage = verl["core"].ADV_ESTIMATOR_REGISTRY
    assert all(f"llm_mdp_{bridge.plain_name(name)}" in advantage for name in CATALOGUE)
    assert all(verl["core"].get_policy_loss_fn(name) is loss for name, loss in bridge.LOSSES.items())


@needs_verl
def test_an_external_module_is_enough_and_yours_is_named_by_the_environment(tmp_path):
    own = tmp_path / "mine.py"
    own.write_text("from llm_mdp import RLOO\n\n\nclass Mine(RLOO):\n    pass\n")
    code = (
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn as a, get_policy_loss_fn as l\n"
        "print(a('llm_mdp_rloo').__module__, a('llm_mdp_Mine').__module__, l('llm_mdp_sum').__module__)"
    )
    more = {"VERL_USE_EXTERNAL_MODULES": "llm_mdp_agents.bridges.verl", "LLM_MDP_VERL": f"{own}:Mine"}
    said = subprocess.run(
        [sys.executable, "-c", code], env={**bridge.os.environ, **more}, capture_output=True, text=True
    )
    assert said.stdout.split()[-3:] == ["llm_mdp_agents.bridges.verl"] * 3, said.stderr


@needs_verl
@pytest.mark.parametrize("name", EXPRESSED)
@pytest.mark.parametrize("loss_mode", bridge.LOSSES)
@pytest.mark.parametrize("parts", [1, 3])
def test_gradients_are_ours_through_verls_own_entry_points(name, loss_mode, parts, rows, verl, monkeypatch):
    trainer, core = verl["trainer"].trainer, verl["core"]
    called = f"llm_mdp_{bridge.plain_name(name)}"
    monkeypatch.setitem(trainer.core_algos.ADV_ESTIMATOR_REGISTRY, called, core.get_adv_estimator_fn(called))
    data = verl["trainer"].protocol.DataProto.from_dict(
        tensors={"token_level_rewards": rows["token_reward"], "response_mask": rows["mask"].long()},
        non_tensors={"uid": rows["uid"]},
    )
    config = verl["trainer"].algorithm.AlgoConfig(adv_estimator=called)
    found = trainer.compute_advantage(data, adv_estimator=called, config=config).batch["advantages"]

    logp = -torch.rand(P * K, T, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logp = logp.requires_grad_()
    actor = verl["ActorConfig"](strategy="fsdp", rollout_n=K, ppo_micro_batch_size_per_gpu=1)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=int(rows["mask"].sum()), global_batch_size=P * K)
    function = core.get_policy_loss_fn(loss_mode)
    for part in torch.arange(P * K).chunk(parts):
        loss, _ = function(
            old_log_prob=logp.detach()[part], log_prob=logp[part], advantages=found[part],
            response_mask=rows["mask"][part], loss_agg_mode="token-mean", config=actor, rollout_is_weights=None,
        )  # fmt: skip
        loss.backward()
    ours = own_gradient(bridge.of_entry(find_entry(name))(K), rows, logp)
    torch.testing.assert_close(logp.grad * rows["mask"], ours, rtol=1e-12, atol=1e-15)


@needs_verl
def test_rloo_and_its_like_are_verls_own(rows, verl):
    for ours, theirs, options in (
        ("llm_mdp_rloo", "rloo", {}),
        ("llm_mdp_grpo_mean", "grpo", {"norm_adv_by_std_in_grpo": False}),
    ):
        given = {"token_level_rewards": rows["token_reward"], "response_mask": rows["mask"].long()}
        found, expected = (
            verl["core"].get_adv_estimator_fn(name)(**given, index=rows["uid"], **more)[0]
            for name, more in ((ours, {}), (theirs, options))
        )
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@needs_verl
def test_the_clipped_loss_is_verls_vanilla_within_its_dual_clip(rows, verl):
    generator = torch.Generator().manual_seed(3)
    old = -torch.rand(P * K, T, generator=generator, dtype=torch.float64)
    new = old + 0.3 * torch.randn(old.shape, generator=generator, dtype=torch.float64)
    found = advantages(lambda k: GRPO(group_size=k), rows)
    actor = verl["ActorConfig"](strategy="fsdp", rollout_n=K, ppo_micro_batch_size_per_gpu=1)
    losses = [
        verl["core"].get_policy_loss_fn(name)(
            old_log_prob=old, log_prob=new, advantages=found, response_mask=rows["mask"],
            loss_agg_mode="seq-mean-token-sum", config=actor,
        )[0]
        for name in ("llm_mdp_clipped", "vanilla")
    ]  # fmt: skip
    torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-14)
