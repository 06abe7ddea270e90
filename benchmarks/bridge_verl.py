"""Estimators of ours in verl's own entry points: how far gradients are from ours, and a short run of both.

    python benchmarks/bridge_verl.py            # writes results/bridge_verl.json; needs verl

Every update goes through verl's registry of advantages (rows shuffled, float64), its registry of losses and its
`agg_loss`, in three micro-batches. verl's trainer, its engines and its samplers are not run.
"""

import copy
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from machine import write_results

from llm_mdp.estimators.catalogue import ENTRIES, find_entry
from llm_mdp.exact.instances import random_instance
from llm_mdp.exact.tree_gradient import exact_gradient
from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Evidence
from llm_mdp.sampling.policies import logp_of
from llm_mdp.verify.problem import Problem
from llm_mdp_agents.bridges.verl import core_algos, handed, of_entry, one_batch, plain_name, register_all

P, K, MICRO_BATCHES = 8, 4, 3
UPDATES, RATE = 30, 0.5
RUN = ("rloo", "grpo", "opo", "token-mean")


def verls_loss(name: str, logp: torch.Tensor, evidence: Evidence, seed: int) -> torch.Tensor:
    """What verl minimises for `llm_mdp_NAME`, the rows in another order."""
    core, actor_config = core_algos(), import_module("verl.workers.config").ActorConfig
    rows = len(logp)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    mask, reward = evidence.rollouts.mask[order], evidence.response_reward[order]
    last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    uid = np.array([f"prompt-{int(row) // K}" for row in order], dtype=object)
    advantage, _ = core.get_adv_estimator_fn(f"llm_mdp_{plain_name(name)}")(
        token_level_rewards=last * reward[:, None], response_mask=mask.long(), index=uid, config=None
    )
    actor = actor_config(strategy="fsdp", rollout_n=K, ppo_micro_batch_size_per_gpu=1)
    actor.global_batch_info.update(dp_size=1, batch_num_tokens=int(mask.sum()), global_batch_size=rows)
    losses = [
        core.get_policy_loss_fn("llm_mdp_sum")(
            old_log_prob=logp[order][part].detach(), log_prob=logp[order][part], advantages=advantage[part],
            response_mask=mask[part], loss_agg_mode="token-mean", config=actor,
        )[0]
        for part in torch.arange(rows).chunk(MICRO_BATCHES)
    ]  # fmt: skip
    return torch.stack(losses).sum()


def drawn(problem: Problem, policy: Any, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Evidence]:
    """P groups of K responses of a policy: prompts, tokens, mask, and rewards as evidence."""
    e, generator = problem.enumeration, torch.Generator().manual_seed(seed)
    mdp = e.mdp
    prompt = mdp.prompt_tokens[torch.randint(e.n_prompts, (P,), generator=generator)]
    sample = policy.sample(prompt, K, eos=mdp.eos, horizon=mdp.horizon, generator=generator)
    rows = prompt.repeat_interleave(K, dim=0)
    table = {
        (tuple(mdp.prompt_tokens[p].tolist()), tuple(e.tree.leaves[leaf].tolist())): e.response_reward[p, leaf]
        for p in range(e.n_prompts)
        for leaf in range(e.tree.n_leaves)
    }
    keys = zip(rows.tolist(), sample.tokens.tolist(), strict=True)
    reward = torch.stack([table[tuple(each), tuple(tokens)] for each, tokens in keys])
    return rows, sample.tokens, sample.mask, handed(reward, sample.mask)


def update(problem: Problem, policy: Any, name: str, seed: int, ours: bool) -> list[torch.Tensor]:
    """The gradient by the policy's parameters of one batch."""
    rows, tokens, mask, evidence = drawn(problem, policy, seed)
    logp = torch.where(mask, logp_of(policy, rows, tokens, mask), 0.0)
    if ours:
        estimator, sampler = of_entry(find_entry(name))(K), cast(Any, one_batch(evidence, K, name))
        loss = estimator.loss(logp - logp.detach(), estimator.collect(sampler))
    else:
        loss = verls_loss(name, logp, evidence, seed)
    return list(torch.autograd.grad(loss, list(policy.parameters())))


def run(problem: Problem, name: str) -> dict[str, float]:
    """UPDATES steps of both from the same policy; J before and after, and how far the parameters are apart."""
    policies: list[Any] = [copy.deepcopy(problem.instance.policy) for _ in range(2)]
    before = exact_gradient(policies[0], problem.instance.mdp)[0]
    for step in range(UPDATES):
        for policy, ours in zip(policies, (True, False), strict=True):
            gradients = update(problem, policy, name, step, ours)
            with torch.no_grad():
                for parameter, gradient in zip(policy.parameters(), gradients, strict=True):
                    parameter -= RATE * gradient
    apart = max(float((a - b).abs().max()) for a, b in zip(*(p.parameters() for p in policies), strict=True))
    after = [exact_gradient(policy, problem.instance.mdp)[0] for policy in policies]
    return {"before": before, "after_ours": after[0], "after_verl": after[1], "parameters_apart": apart}


def main() -> None:
    register_all()
    problem = Problem(random_instance(3, 4, n_prompts=3, seed=7), group_size=K)
    gradients: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for entry in ENTRIES:
        try:
            found, expected = (
                torch.cat([each.flatten() for each in update(problem, problem.instance.policy, entry.name, 0, ours)])
                for ours in (False, True)
            )
        except UsageError as why:
            refused[entry.name] = str(why)
            continue
        gradients[entry.name] = float((found - expected).norm() / expected.norm())
    runs = {name: run(problem, name) for name in RUN}
    results = {
        "relative_difference_of_gradients": gradients,
        "refused": refused,
        "runs": runs,
        "prompts": P,
        "group_size": K,
        "micro_batches": MICRO_BATCHES,
        "updates": UPDATES,
        "not_run": "verl's trainer, engines and samplers",
    }
    write_results(Path(__file__).parent / "results" / "bridge_verl.json", ("torch", "verl"), results)
    print(
        f"{len(gradients)} estimators, gradients apart by at most {max(gradients.values()):.1e}; {len(refused)} refused"
    )
    for name, each in runs.items():
        words = f"J {each['before']:.4f} -> {each['after_ours']:.4f} (ours), {each['after_verl']:.4f} (verl)"
        print(f"{name:12} {words}, parameters apart by {each['parameters_apart']:.1e}")


if __name__ == "__main__":
    main()
