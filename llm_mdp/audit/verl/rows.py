"""verl's options as data: every name of its registries, found at run time, has a row.

So that a bias is a name's own, each is tried beside choices that have none: `rloo` advantages, the vanilla loss, sums.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_mdp.audit.batch import Batch
from llm_mdp.audit.library import Setting
from llm_mdp.audit.verl import told
from llm_mdp.audit.verl.told import SUM, Told
from llm_mdp.audit.verl.trainer import KNOWN, Update, modules
from llm_mdp.own import UsageError
from llm_mdp.verify.weights import EstimatorError

CORE = "verl/trainer/ppo/core_algos.py"
BETA = 0.3
PENALISED = f"reward - {BETA} kl"
SINCE = "0.9.1"


def settings() -> list[Setting]:
    """Everything that verl offers.

    Raises:
        UsageError: verl is not installed, or laid out in another way.
    """
    return [
        *_recipes(),
        *_advantages(),
        *_losses(),
        *_aggregations(),
        *_penalties_in_reward(),
        *_penalties_in_loss(),
        *_not_called(),
    ]


def accepted(function: Callable[..., Any], works: Callable[[str], Any]) -> list[tuple[str, ...]]:
    """The names that a function compares its argument with and takes, those in one comparison together: verl has no
    registry of them.

    Args: works: calls the function with a name.

    Raises:
        UsageError: there are none.
    """

    def takes(name: Any) -> bool:
        try:
            return isinstance(name, str) and " " not in name and works(name) is not None
        except (ValueError, NotImplementedError):
            return False

    constants = [each if isinstance(each, tuple) else (each,) for each in function.__code__.co_consts]
    found = [names for names in dict.fromkeys(constants) if names and all(map(takes, names))]
    if not found:
        raise UsageError(
            f"verl's {function.__name__} names no choices where this adapter looks for them; install verl {KNOWN}."
        )
    return found


@dataclass(frozen=True)
class Refused:
    """In place of a loss that cannot be called: the row says why."""

    reason: str

    def __call__(self, batch: Batch) -> Tensor:
        raise EstimatorError(f"not certified: {self.reason}")


def row(name: str, says: Told, place: str, update: Update, **rest: Any) -> Setting:
    """A setting whose whole update can be made."""
    words = {"repair": says.repair, "target": says.target, "note": says.note, "advantages": update.advantages} | rest
    return Setting(
        name=name,
        claim=says.claim,
        place=place,
        loss=update.loss,
        since=SINCE,
        **words,
    )


def uncalled(name: str, claim: str, place: str, reason: str) -> Setting:
    """A setting that cannot be certified, with the reason."""
    return Setting(name=name, claim=claim, place=place, loss=Refused(reason), since=SINCE)


# --- recipes ----------------------------------------------------------------------------------------------------------


def _recipes() -> list[Setting]:
    """What configurations hold together: the defaults, and what verl's documentation recommends."""
    grpo, dr_grpo = {"adv_estimator": "grpo"}, {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": False}
    norm = {"loss_agg_mode": f"{SUM}-norm"}
    return [
        row(
            "adv_estimator=gae,loss_agg_mode=token-mean",
            Told(
                "PPO, everything as verl sets it",
                repair=f"set adv_estimator=rloo (no whitening) and loss_agg_mode={SUM}",
                note=told.LATER,
            ),
            "verl/trainer/config/ppo_trainer.yaml, actor/actor.yaml",
            Update({"adv_estimator": "gae"}),
            is_default=True,
        ),
        row(
            "adv_estimator=grpo,loss_agg_mode=token-mean",
            Told(
                "GRPO, everything else as verl sets it",
                repair=f"{told.NO_STD} and loss_agg_mode={SUM}",
                note=told.LATER,
            ),
            "docs/algo/grpo.md",
            Update(grpo),
        ),
        row(
            "adv_estimator=grpo,norm_adv_by_std_in_grpo=False,loss_agg_mode=seq-mean-token-sum-norm",
            Told(
                "Dr. GRPO: neither the std nor the length of a response in the gradient",
                repair=told.AGGREGATIONS[f"{SUM}-norm"].repair,
                note=told.AGGREGATIONS[f"{SUM}-norm"].note,
            ),
            "docs/algo/grpo.md, DrGRPO",
            Update(dr_grpo, norm),
        ),
        row(
            "adv_estimator=grpo,norm_adv_by_std_in_grpo=False,loss_agg_mode=seq-mean-token-sum-norm,loss_scale_factor=3",
            Told("the same, divided by the largest response length (3 here)", note=told.LATER),
            "docs/algo/grpo.md, DrGRPO",
            Update(dr_grpo, norm | {"loss_scale_factor": 3}),
        ),
        row(
            "adv_estimator=rloo,loss_mode=gspo,loss_agg_mode=seq-mean-token-mean",
            Told("GSPO with the aggregation that it recommends", repair=told.SET_SUM, note=told.LATER),
            f"{CORE}, compute_policy_loss_gspo",
            Update({"adv_estimator": "rloo"}, {"loss_agg_mode": "seq-mean-token-mean"}, {"loss_mode": "gspo"}),
        ),
    ]


# --- advantages -------------------------------------------------------------------------------------------------------


def _advantages() -> list[Setting]:
    rows = []
    for name, function in modules().core.ADV_ESTIMATOR_REGISTRY.items():
        place = f"{CORE}, {function.__name__}"
        says = told.ADVANTAGES.get(name, told.UNKNOWN)
        if name in told.CANNOT:
            claim = "the optimal baseline of every token, by Σπ² and the group's returns"
            rows.append(uncalled(f"adv_estimator={name}", claim, place, told.CANNOT[name]))
            continue
        rows.append(_advantage(name, says, place))
        rows += [_advantage(name, says, place, **options) for options in VARIANTS.get(name, ())]
    return rows


VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "gae": ({"lam": 0.95},),
    "grpo": ({"norm_adv_by_std_in_grpo": False},),
    "grpo_vectorized": ({"norm_adv_by_std_in_grpo": False},),
    "gdpo": ({"norm_adv_by_std_in_grpo": False},),
    "grpo_passk": ({"norm_adv_by_std_in_grpo": False},),
    "reinforce_plus_plus": ({"gamma": 0.9},),
}
"""Other options that an advantage estimator has."""


def _advantage(name: str, says: Told, place: str, **options: Any) -> Setting:
    if options.get("norm_adv_by_std_in_grpo") is False:
        says = told.WITHOUT_STD.get(name, says)
    words = [f"adv_estimator={name}", *(f"{option}={value}" for option, value in options.items())]
    update = Update({"adv_estimator": name, **options}, {"loss_agg_mode": SUM})
    return row(",".join(words), says, place, update)


# --- losses and aggregations ------------------------------------------------------------------------------------------


def _losses() -> list[Setting]:
    rows = []
    for name, function in modules().core.POLICY_LOSS_REGISTRY.items():
        says = told.LOSSES.get(name, told.UNKNOWN)
        place = f"{CORE}, {function.__name__}"
        beta = {} if says.beta is None else {"dro_beta": says.beta}
        rows.append(_loss(says, place, {"loss_mode": name, **beta}))
        if name == "vanilla":
            rows.append(_loss(says, place, {"loss_mode": name}, clip_ratio_low=0.01, clip_ratio_high=0.01))
        if name == "bypass_mode":
            rows += [_loss(says, place, {"loss_mode": name, "rollout_correction": each}) for each in CORRECTIONS]
    return rows


CORRECTIONS: tuple[dict[str, Any], ...] = (
    {"loss_type": "reinforce", "rollout_is": "token"},
    {"loss_type": "reinforce", "rollout_is": "sequence"},
)
"""Of bypass_mode beside its default, ppo_clip."""


def _loss(says: Told, place: str, policy_loss: dict[str, Any], **actor: Any) -> Setting:
    words = {**policy_loss, **policy_loss.get("rollout_correction", {}), **actor}
    name = ",".join(f"{option}={value}" for option, value in words.items() if option != "rollout_correction")
    update = Update({"adv_estimator": "rloo"}, {"loss_agg_mode": SUM, **actor}, policy_loss)
    return row(name, says, place, update)


def _aggregations() -> list[Setting]:
    core = modules().core
    one = torch.ones(1, 1)
    names = accepted(core.agg_loss, lambda name: core.agg_loss(one, one, name))
    place = f"{CORE}, agg_loss"
    flat = dict.fromkeys(name for together in names for name in together)
    rows = [_aggregation(name, told.AGGREGATIONS.get(name, told.UNKNOWN), place) for name in flat]
    return [*rows, _aggregation(f"{SUM}-norm", told.SCALED, place, loss_scale_factor=3)]


def _aggregation(name: str, says: Told, place: str, **actor: Any) -> Setting:
    words = [f"loss_agg_mode={name}", *(f"{option}={value}" for option, value in actor.items())]
    return row(",".join(words), says, place, Update({"adv_estimator": "rloo"}, {"loss_agg_mode": name, **actor}))


# --- penalties --------------------------------------------------------------------------------------------------------


def _kinds() -> list[tuple[str, ...]]:
    core, one = modules().core, torch.ones(1, 1)
    return accepted(core.kl_penalty_forward, lambda name: core.kl_penalty_forward(one, one, name))


def _penalties_in_reward() -> list[Setting]:
    place = f"{CORE}, kl_penalty; ray_trainer.py, apply_kl_penalty"
    rows = [
        row(_named("kl_penalty", names), told.in_reward(names), place, _penalised(names[0]), target=PENALISED)
        for names in _kinds()
    ]
    plus = [
        row(f"kl_penalty={name}+", told.in_reward((f"{name}+",)), place, _penalised(f"{name}+"), target=PENALISED)
        for name in PLUS
    ]
    return [*rows, *plus, uncalled("kl_penalty=full", told.FULL, place, "verl raises NotImplementedError")]


PLUS = ("k1", "k3")
"""Kinds that verl's configuration names with a plus; any kind may have one, and all then have the same gradient."""


def _penalised(kind: str) -> Update:
    return Update(
        {"adv_estimator": "rloo", "use_kl_in_reward": True, "kl_penalty": kind, "kl_ctrl": {"kl_coef": BETA}},
        {"loss_agg_mode": SUM},
    )


def _penalties_in_loss() -> list[Setting]:
    place = f"{CORE}, kl_penalty; workers/utils/losses.py, ppo_loss"

    def rows(names: tuple[str, ...]) -> Iterator[Setting]:
        update = Update(
            {"adv_estimator": "rloo"},
            {"loss_agg_mode": SUM, "use_kl_loss": True, "kl_loss_type": names[0], "kl_loss_coef": BETA},
        )
        says = told.in_loss(names)
        yield row(_named("kl_loss_type", names), says, place, update, target=PENALISED, advantages=None)
        if says.note == told.VISITED:
            yield row(
                f"{_named('kl_loss_type', names)},at visited states",
                Told("the same, beside the divergence at the visited prefixes, these held fixed"),
                place,
                update,
                target=f"{PENALISED} at visited states",
                advantages=None,
            )

    every = [*_kinds(), *((f"{name}+",) for name in PLUS)]
    known = [each for names in every for each in rows(names)]
    return [*known, uncalled("kl_loss_type=full", told.FULL, place, "verl raises NotImplementedError")]


def _named(option: str, names: Sequence[str]) -> str:
    """kl_penalty=kl (k1)."""
    aliases = f" ({', '.join(names[1:])})" if len(names) > 1 else ""
    return f"{option}={names[0]}{aliases}"


# --- what has no certificate ------------------------------------------------------------------------------------------


def _not_called() -> list[Setting]:
    distilled = ", ".join(modules().distillation.DISTILLATION_LOSS_REGISTRY)
    return [
        uncalled(name, claim, place, reason)
        for name, claim, place, reason in [*told.NOT_CALLED, told.distillation(distilled)]
    ]
