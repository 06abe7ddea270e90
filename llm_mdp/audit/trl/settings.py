"""The options of TRL's trainers as data, and what TRL says of each in our words."""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from llm_mdp.audit.library import Setting
from llm_mdp.audit.trl.trainers import GRPO, OWN, PER_TOKEN, REPLACED, RLOO, advantages, loss, remedy
from llm_mdp.own import UsageError

LOSSES = {
    "dapo": "divides by the tokens of the whole batch, so that there is no bias by length",
    "grpo": "divides every response by its length; not recommended, for its bias by length",
    "bnpo": "divides by the tokens of the local batch",
    "dr_grpo": "divides by a constant, so that there is no bias by length",
    "cispo": "clips the weights of importance sampling and keeps the gradient of every token",
    "sapo": "a smooth gate in place of clipping, which weakens what is off policy",
    "luspo": "scales a response's loss by its length: unbiased by length",
    "vespo": "weighs responses softly by their ratio to the policy that drew them",
}
"""The values of loss_type, the default first, and what TRL says of each in our words."""
RECIPE = {"loss_type": "dr_grpo", "scale_rewards": "none"}
"""Keeps the gradient's direction. Other options are tried on top of it, so that a bias is their own."""
SUMS = ("dr_grpo", "luspo")
NO_STD, NO_MEAN = 'set scale_rewards="none"', 'set loss_type="dr_grpo"'
CAPPED = (
    "epsilon_high, 0.2 unless it is set, is the largest ratio itself here: at ratio 1 a fifth of the gradient is left. "
    "TRL's documentation recommends 5.0."
)
OFF_POLICY = "It acts where the ratio leaves 1; at the first update it changes nothing."
STATEWISE = (
    "Its KL part is exact for the divergence at the visited prefixes, these held fixed, with beta K/(K-1) in place of "
    "beta beside the rewards; the KL that later tokens add is missing."
)


def settings() -> list[Setting]:
    """The options of both trainers that change what is estimated at the first update.

    Raises:
        UsageError: if the TRL that is installed is laid out in another way.
    """
    rows = [*_defaults(), *_unscaled(), *_others(), *_penalties(), *_rloo()]
    check_layout(rows)
    return rows


def _row(kind: str, claim: str, option: str, **rest: Any) -> Setting:
    options = tuple((name, rest.pop(name)) for name in list(rest) if name not in Setting.__dataclass_fields__)
    words = ([kind] if kind != GRPO or not options else []) + [f"{name}={value}" for name, value in options]
    file = "grpo" if kind == GRPO else "rloo"
    rest.setdefault("advantages", partial(advantages, kind, options))
    return Setting(
        name=",".join(words).replace(" ", ""),
        claim=claim,
        place=f"trl/trainer/{file}_config.py, {option}",
        loss=partial(loss, kind, options),
        since="1.16.0",
        **rest,
    )


def _defaults() -> list[Setting]:
    """Every loss with all else as it comes, the group's standard deviation among it."""
    return [
        _row(
            GRPO,
            f"loss_type={name}: {claim}; rewards over the group's standard deviation",
            "loss_type and scale_rewards",
            repair=NO_STD if name in SUMS else f"{NO_MEAN} and {NO_STD.removeprefix('set ')}",
            note=CAPPED if name == "cispo" else "",
            is_default=name == "dapo",
            **({} if name == "dapo" else {"loss_type": name}),
        )
        for name, claim in LOSSES.items()
    ]


def _unscaled() -> list[Setting]:
    """Every loss with rewards that are not scaled, and the other ways to scale and to take ratios."""
    rows = [
        _row(
            GRPO,
            claim,
            "loss_type",
            repair=None if name in SUMS else NO_MEAN,
            note=CAPPED if name == "cispo" else "",
            loss_type=name,
            scale_rewards="none",
        )
        for name, claim in LOSSES.items()
    ]
    by_sequence = "one ratio a response: the mean over its tokens of the log-ratio (GSPO)"
    return [
        *rows,
        _row(
            GRPO,
            LOSSES["cispo"],
            "epsilon_high",
            repair=NO_MEAN,
            loss_type="cispo",
            scale_rewards="none",
            epsilon_high=5.0,
        ),
        _row(
            GRPO,
            "rewards over the standard deviation of the whole batch",
            "scale_rewards",
            repair=NO_STD,
            loss_type="dr_grpo",
            scale_rewards="batch",
        ),
        *(
            _row(
                GRPO,
                f"{by_sequence}, with loss_type={name}",
                "importance_sampling_level",
                repair=None if name in SUMS else 'set loss_type="luspo"',
                loss_type=name,
                scale_rewards="none",
                importance_sampling_level="sequence",
            )
            for name in ("grpo", "dapo", "dr_grpo", "luspo")
        ),
    ]


def _others() -> list[Setting]:
    masked = "leaves responses that were cut off out of the loss, so that they are not penalised wrongly"
    return [
        _row(
            GRPO,
            masked,
            "mask_truncated_completions",
            repair="set mask_truncated_completions=False",
            note="Cut-off responses still count in the group's mean, and what is left is chosen by its length.",
            **RECIPE,
            mask_truncated_completions=True,
        ),
        _row(GRPO, "a bound above on the ratio, for stability", "delta", note=OFF_POLICY, **RECIPE, delta=1.5),
        _row(GRPO, "several updates a batch", "num_iterations", note=OFF_POLICY, **RECIPE, num_iterations=2),
        _row(
            GRPO,
            "leaves out responses with a negative advantage that have moved far off policy",
            "off_policy_mask_threshold",
            note=OFF_POLICY,
            **RECIPE,
            off_policy_mask_threshold=0.5,
        ),
        _row(
            GRPO,
            "keeps the tokens with the highest entropies only, in the policy's part of the loss",
            "top_entropy_quantile",
            **RECIPE,
            top_entropy_quantile=0.2,
        ),
        _row(GRPO, "a bonus for the mean entropy of a token", "entropy_coef", **RECIPE, entropy_coef=0.01),
        _row(
            GRPO,
            "sums the rewards of several functions, then scales as scale_rewards says",
            "multi_objective_aggregation",
            target=f"reward - {PER_TOKEN} length",
            note=f"Two functions: the reward, and -{PER_TOKEN} a token.",
            **RECIPE,
            multi_objective_aggregation="sum_then_normalize",
        ),
        _row(
            GRPO,
            "scales each function's rewards in its group, then sums and scales over the batch (GDPO)",
            "multi_objective_aggregation",
            target=f"reward - {PER_TOKEN} length",
            repair='set multi_objective_aggregation="sum_then_normalize"',
            note=f"Two functions: the reward, and -{PER_TOKEN} a token. scale_rewards is not read here.",
            **RECIPE,
            multi_objective_aggregation="normalize_then_sum",
        ),
    ]


def _penalties() -> list[Setting]:
    """Penalties in the loss, which the advantages know nothing of."""
    corrected = "the KL term times the ratio, so that its gradient becomes that of the reverse KL, without bias"
    where = "RLOOTrainer subtracts beta KL from the rewards instead, whose gradient is that of the whole KL"
    return [
        _row(
            GRPO,
            f"a penalty beta KL; {corrected}",
            "beta and use_bias_correction_kl (True unless set)",
            target="reward - 0.1 kl",
            advantages=None,
            repair=where,
            note=STATEWISE,
            **RECIPE,
            beta=0.1,
        ),
        _row(
            GRPO,
            "a penalty beta KL by Schulman's estimate",
            "beta",
            target="reward - 0.1 kl",
            advantages=None,
            repair=where,
            note="In a loss that estimate has the gradient of the other divergence, KL(ref to pi), token by token.",
            **RECIPE,
            beta=0.1,
            use_bias_correction_kl=False,
        ),
        _row(
            GRPO,
            "the KL term times one ratio a response; said not to be without bias at this level",
            "use_bias_correction_kl",
            target="reward - 0.1 kl",
            advantages=None,
            repair=where,
            **RECIPE,
            importance_sampling_level="sequence",
            beta=0.1,
        ),
        _row(
            GRPO,
            f"a penalty beta KL with all else as it comes; {corrected}",
            "beta and use_bias_correction_kl (True unless set)",
            target="reward - 0.1 kl",
            advantages=None,
            repair=f"{NO_MEAN} and {NO_STD.removeprefix('set ')}; {where}",
            beta=0.1,
        ),
    ]


def _rloo() -> list[Setting]:
    return [
        _row(
            RLOO,
            "REINFORCE with the others' mean reward as baseline; beta times the log-ratio subtracted from rewards",
            "beta (0.05 unless set)",
            target="reward - 0.05 kl",
            is_default=True,
        ),
        _row(RLOO, "REINFORCE with the others' mean reward as baseline", "beta", beta=0.0),
        _row(
            RLOO,
            "advantages scaled to mean 0 and standard deviation 1 over the batch",
            "normalize_advantages",
            repair="set normalize_advantages=False",
            beta=0.0,
            normalize_advantages=True,
        ),
        _row(
            RLOO,
            "rewards clipped to a range",
            "reward_clip_range",
            repair="a range that holds all rewards",
            note="It is the gradient of the expected clipped reward.",
            beta=0.0,
            reward_clip_range=(-0.5, 0.5),
        ),
        _row(
            RLOO,
            "leaves responses that were cut off out of the loss, so that they are not penalised wrongly",
            "mask_truncated_completions",
            repair="set mask_truncated_completions=False",
            note="Cut-off responses still count in the others' baselines, and what is left is chosen by its length.",
            beta=0.0,
            mask_truncated_completions=True,
        ),
        _row(RLOO, "several updates a batch", "num_iterations", note=OFF_POLICY, beta=0.0, num_iterations=2),
    ]


def check_layout(rows: Sequence[Setting]) -> None:
    """Raise UsageError if the TRL that is installed lacks a method or an option that is entered here."""
    import trl

    for kind in (GRPO, RLOO):
        trainer, config = getattr(trl, kind, None), getattr(trl, kind.replace("Trainer", "Config"), None)
        missing = [f"{kind}.{name}" for name in (*REPLACED, *OWN) if not hasattr(trainer, name)]
        known = getattr(config, "__dataclass_fields__", {})
        entered = [row.loss.args for row in rows if isinstance(row.loss, partial)]
        options = {name for each, chosen in entered if each == kind for name, _ in chosen}
        missing += [f"{kind.replace('Trainer', 'Config')}({name}=…)" for name in sorted(options - set(known))]
        if missing:
            raise UsageError(f"TRL {version('trl')} has no {missing[0]}; {remedy()}")
