"""OpenRLHF's options, with what it calls them and what they promise."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from llm_mdp.audit.library import Setting
from llm_mdp.audit.openrlhf.trainer import advantages, loss, modules


def _row(
    options: Mapping[str, Any], claim: str, place: str, *, against: str = "", target: str = "reward", **more: Any
) -> Setting:
    """A setting; `against` names the target where the same options are judged by two."""
    name = ",".join(f"{key}={_as_written(value)}" for key, value in options.items())
    return Setting(
        name=f"{name} ({against})" if against else name,
        claim=claim,
        place=place,
        target=target,
        loss=partial(loss, options=options),
        advantages=partial(advantages, options=options),
        since="0.11.2",
        **more,
    )


def _as_written(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


CLI = "openrlhf/cli/train_ppo_ray.py"
README = "OpenRLHF's README, table of algorithms"
NO_KL = {"algo.kl.init_coef": 0.0}
BETA = {"algo.kl.init_coef": 0.3}
MEANS = "the first update, ratio 1; both aggregations divide by lengths, no constant divisor is offered"
LARGE = "use token-mean over large batches, where what is left dies with the batch; no option keeps sums"
ESTIMATORS: dict[str, tuple[str, str]] = {
    "gae": ("PPO with a critic; advantages are whitened over the batch", "set algo.advantage.no_std_norm"),
    "reinforce": ("REINFORCE++: PPO's tricks without a critic, whitened over the batch", "set no_std_norm"),
    "rloo": ("RLOO: each response against the mean of the others", LARGE),
    "reinforce_baseline": ("REINFORCE++-baseline: group mean, then whitened over the batch", "set no_std_norm"),
    "group_norm": ("GRPO: group mean and group standard deviation", "set algo.advantage.estimator=rloo"),
    "dr_grpo": ("Dr. GRPO: GRPO without the local standard deviation", LARGE),
    "flash_reinforce": ("reward less the mean of the whole rollout batch, no whitening", LARGE),
}
"""What each estimator is called, and how it is repaired."""


def settings() -> list[Setting]:
    """Every estimator with both aggregations; then normalisation, KL, losses, and penalties, one at a time."""
    modules()
    return [*_estimators(), *_normalisation(), *_kl(), *_losses(), *_penalties()]


def _estimators() -> list[Setting]:
    default = _row(
        {"algo.advantage.estimator": "gae"},
        "PPO with a critic, a k1 penalty in the reward (β = 0.01) and the mean over tokens: all defaults",
        f"{CLI}, defaults",
        target="reward - 0.01 kl",
        repair="set algo.advantage.no_std_norm; of the rest most dies with the batch",
        is_default=True,
        note=MEANS,
    )
    rows = [default]
    for name, (claim, repair) in ESTIMATORS.items():
        for mode in ("token-mean", "seq-mean-token-mean"):
            options = {"algo.advantage.estimator": name, "actor.loss_agg_mode": mode, **NO_KL}
            rows.append(_row(options, claim, README, repair=repair, note=MEANS))
    return rows


def _normalisation() -> list[Setting]:
    no_std = f"{CLI}, algo.advantage.no_std_norm"
    rows = [
        _row(
            {"algo.advantage.no_std_norm": True, "algo.advantage.estimator": name, **NO_KL},
            "advantages less their mean over the batch's tokens, not divided by their standard deviation",
            no_std,
            repair=LARGE,
            note=MEANS,
        )
        for name in ("gae", "reinforce", "reinforce_baseline")
    ]
    weighed = {"algo.advantage.no_std_norm": True, **NO_KL}
    rows.append(
        _row(
            {"algo.advantage.lambd": 0.95, "algo.advantage.estimator": "gae", **weighed},
            "generalized advantages, λ = 0.95; as good as the critic is",
            f"{CLI}, algo.advantage.lambd",
            repair="set algo.advantage.lambd=1, where a wrong critic is harmless",
            note="judged with a critic that is wrong",
        )
    )
    rows.append(
        _row(
            {"algo.advantage.gamma": 0.9, "algo.advantage.estimator": "reinforce", **weighed},
            "returns discounted by γ = 0.9",
            f"{CLI}, algo.advantage.gamma",
            repair="leave algo.advantage.gamma at 1",
            note="judged by the gradient of the reward that is not discounted",
        )
    )
    return rows


def _kl() -> list[Setting]:
    rows = []
    for kind in ("k1", "k2", "k3"):
        rows.append(
            _row(
                {"algo.kl.estimator": kind, "algo.advantage.estimator": "rloo", **BETA},
                "KL penalty in the reward, token by token" + ("" if kind == "k1" else "; k1 is recommended there"),
                f"{CLI}, algo.kl.estimator",
                target="reward - 0.3 kl",
                repair=LARGE if kind == "k1" else "set algo.kl.estimator=k1",
                note=MEANS,
            )
        )
    added = "the penalty is added after the group mean is taken off, which shrinks rewards alone by (K - 1)/K"
    for name in ("dr_grpo", "group_norm", "reinforce_baseline"):
        rows.append(
            _row(
                {"algo.kl.init_coef": 0.3, "algo.advantage.estimator": name},
                f"{ESTIMATORS[name][0]}; KL penalty in the reward",
                f"{README}; {CLI}, algo.kl.init_coef",
                target="reward - 0.3 kl",
                repair="set algo.advantage.estimator=rloo, or algo.kl.init_coef to (K - 1)/K of what is meant",
                note=added,
            )
        )
    rows.append(
        _row(
            {"algo.kl.init_coef": 0.3, "algo.advantage.estimator": "dr_grpo"},
            "Dr. GRPO with a KL penalty in the reward, judged by a β that is K/(K - 1) as large at K = 3",
            f"{README}; {CLI}, algo.kl.init_coef",
            against="β = 0.45",
            target="reward - 0.45 kl",
            repair="set algo.advantage.estimator=rloo, or algo.kl.init_coef to (K - 1)/K of what is meant",
            note=f"{added}; proportional at K = 3 only, the effective β depends on K",
        )
    )
    loss_terms = {"algo.kl.use_loss": True, "algo.advantage.estimator": "rloo", **BETA}
    said = {
        "k1": "KL as a loss by k1; k2 or k3 are recommended there",
        "k2": "KL as a loss by k2, nearly the same as k1 in the reward",
        "k3": "KL as a loss by k3, as in GRPO",
    }
    in_reward = "leave algo.kl.use_loss off: k1 in the reward carries later tokens' KL"
    for kind, claim in said.items():
        rows.append(
            _row(
                {**loss_terms, "algo.kl.estimator": kind},
                claim,
                f"{CLI}, algo.kl.estimator",
                target="reward - 0.3 kl",
                repair=in_reward,
                note="the KL loss is a mean over tokens whatever actor.loss_agg_mode says",
            )
        )
    corrected = {"algo.kl.unbiased_gradient": True, "algo.kl.estimator": "k3", **loss_terms}
    rows.append(
        _row(
            corrected,
            "backpropagates the true gradient of the reverse KL, the same for k1, k2, k3",
            f"{CLI}, algo.kl.unbiased_gradient; openrlhf/models/utils.py, compute_approx_kl",
            target="reward - 0.3 kl",
            repair=in_reward,
            note="each token carries its own log-ratio only; what later tokens' KL owes to it is missing",
        )
    )
    rows.append(
        _row(
            corrected,
            "the true gradient of the reverse KL, read as that of single tokens at prefixes held fixed",
            "openrlhf/models/utils.py, compute_approx_kl",
            against="KL at visited states",
            target="reward - 0.3 kl at visited states",
            repair=LARGE,
            note="fairly read: advantages are exact, the mean over tokens is not",
        )
    )
    mixed = {"actor.loss_agg_mode": "seq-mean-token-mean", "algo.kl.estimator": "k2", **loss_terms}
    rows.append(
        _row(
            mixed,
            "every sequence weighs the same in the policy loss",
            f"{CLI}, actor.loss_agg_mode",
            target="reward - 0.3 kl",
            repair="leave algo.kl.use_loss off",
            note="the KL loss does not get the mode: it stays a mean over tokens (trainer/ray/ppo_actor.py)",
        )
    )
    return rows


def _losses() -> list[Setting]:
    rloo = {"algo.advantage.estimator": "rloo", **NO_KL}
    level, mode, gating, threshold = (
        f"algo.advantage.is_correction_{each}" for each in ("level", "mode", "gating", "threshold")
    )
    same = "engine and trainer agree here, so that every correction is 1"
    corrections = [
        ({level: "token", mode: "clip"}, "TIS: the ratio of trainer to engine, clamped token by token"),
        (
            {level: "seq", gating: "binary_kl", threshold: [0.0, 0.05]},
            "FlashREINFORCE's trust region: sequences are dropped by their mean binary KL",
        ),
        ({level: "token", gating: "tv", threshold: [0.0, 0.2]}, "tokens are dropped by their total variation"),
    ]
    return [
        _row(
            {"actor.policy_loss_type": "gspo", **rloo},
            "GSPO: ratios of whole responses, the geometric mean over tokens",
            f"{CLI}, actor.policy_loss_type; openrlhf/models/loss.py, PolicyLoss",
            repair="set actor.policy_loss_type=ppo and token-mean over large batches",
            note="the mean over tokens inside the ratio divides by the response's own length",
        ),
        _row(
            {"actor.dual_clip": 3.0, **rloo},
            "PPO with a second clip for negative advantages",
            f"{CLI}, actor.dual_clip",
            repair=LARGE,
            note=MEANS,
        ),
        *(
            _row({**options, **rloo}, claim, f"{CLI}, {level}", repair=LARGE, note=f"{same}; {MEANS}")
            for options, claim in corrections
        ),
    ]


def _penalties() -> list[Setting]:
    return [
        _row(
            {"reward.overlong_buffer_len": 2.0, "algo.advantage.estimator": "rloo", **NO_KL},
            "DAPO's overlong penalty: linear over the last tokens before the limit",
            "openrlhf/trainer/ppo_utils/length_penalty.py, apply_overlong_penalty",
            target="reward - overlong",
            repair=LARGE,
            note=MEANS,
        )
    ]
