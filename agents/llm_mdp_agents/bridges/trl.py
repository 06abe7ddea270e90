"""TRL's GRPOTrainer with an estimator of ours, and tasks of ours in it.

    from llm_mdp_agents.bridges.trl import EstimatorTrainer
    EstimatorTrainer(model, reward_funcs=…, args=GRPOConfig(…), train_dataset=…, estimator=RLOO(group_size=8)).train()

TRL draws, scores, shuffles and steps. What it calls advantages and loss is the estimator's: as in our own trainer the
derivative of its loss by every token's log π is taken on the whole batch, before TRL splits it, so micro-batches never
change the gradient, whatever the reduction. Any task of ours trains there through `trl_tasks.rollout_of`.

TRL is imported when `EstimatorTrainer` is asked for.
"""

import math
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.algorithms import RLOO
from llm_mdp.estimators.base import Estimator
from llm_mdp.estimators.values import has_signal
from llm_mdp.mdp.tree import PAD
from llm_mdp.own import UsageError
from llm_mdp.sampling.evidence import Evidence, Finish, Rollouts
from llm_mdp.sampling.sampler import Sampler
from llm_mdp.sampling.shared_draws import SharedDraws
from llm_mdp.variance.sampled import Estimates, sampled_measurement
from llm_mdp.verify.check import check_interface, with_group_size
from llm_mdp_agents.bridges.one_batch import OneBatch
from llm_mdp_agents.bridges.trl_tasks import rollout_of as rollout_of
from llm_mdp_agents.lm.policy import LanguageModelPolicy
from llm_mdp_agents.measuring import estimates_on, joined_estimates
from llm_mdp_agents.sketch import Sketch
from llm_mdp_agents.training.own_gradient import COSINE, GROUPS, TOKENS

THE_ESTIMATORS = (
    "loss_type", "scale_rewards", "epsilon", "epsilon_high", "delta", "importance_sampling_level", "beta",
    "top_entropy_quantile", "entropy_coef", "use_adaptive_entropy", "off_policy_mask_threshold",
    "mask_truncated_completions", "multi_objective_aggregation", "use_vllm",
)  # fmt: skip
"""Options of GRPOConfig that would act on a loss which is not TRL's any more; they stay what they are by default."""
FEWEST, MOST = 64, 512
"""Groups behind figures, of successive batches; where the most of them say nothing either, counting begins anew."""


one_batch = partial(
    OneBatch,
    has="TRL's trainer has responses and their rewards alone; train it with `llm-mdp train`, or take an estimator that "
    "compares responses",
    size_option=("num_generations", "set num_generations={} in GRPOConfig"),
)
"""(evidence, group_size, name) -> what TRL has, as a sampler."""


def check_expressible(estimator: Estimator, group_size: int) -> None:
    """Raise UsageError, in one sentence, if TRL has not what an estimator collects.

    Args: group_size: responses to a prompt, TRL's num_generations.
    """
    check_interface(estimator)
    mask = torch.ones(group_size, 2, dtype=torch.bool)
    nothing = torch.zeros(group_size, 2, dtype=torch.float64)
    finish = torch.full((group_size,), int(Finish.HORIZON))
    rollouts = Rollouts(torch.zeros(group_size, 1).long(), torch.zeros(group_size, 2).long(), mask, nothing, finish)
    reward = torch.arange(group_size).double()
    sampler: Any = one_batch(Evidence(rollouts, reward), group_size, type(estimator).__name__)
    estimator.loss(nothing, estimator.collect(sampler))


def check_arguments(args: Any) -> None:
    """Raise UsageError, in one sentence, if a GRPOConfig asks for what an estimator replaces or is not done here."""
    fields = type(args).__dataclass_fields__
    for name in THE_ESTIMATORS:
        if name in fields and getattr(args, name) != fields[name].default:
            raise UsageError(
                f"{name} is {getattr(args, name)!r}, which would act on TRL's own loss; leave it out of GRPOConfig, "
                "and say it in the estimator."
            )
    if args.steps_per_generation != args.gradient_accumulation_steps:
        raise UsageError(
            f"steps_per_generation is {args.steps_per_generation} and gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps}; leave the first out, for every batch that is drawn is one update."
        )
    if args.num_generations_eval not in (None, args.num_generations):
        raise UsageError(
            f"num_generations_eval is {args.num_generations_eval}; leave it out: groups have {args.num_generations} "
            "responses in evaluations too."
        )
    if args.world_size > 1:
        raise UsageError(f"{args.world_size} processes share a batch; the bridge to TRL runs in one.")


def evidence_of(
    out: dict[str, Tensor],
    reward: Float[Tensor, " B"],
    logp: Float[Tensor, "B T"],
    eos: Sequence[int],
    finish: Any = None,
) -> Evidence:
    """What TRL drew, as an estimator sees it; on the CPU.

    Args:
        out: what `_generate_and_score_completions` returned, groups adjacent.
        logp: of the tokens that were drawn.
        eos: ids that end a response.
        finish: a `Finish` for every row; None: EOS where it ends with one of these, else HORIZON.
    """
    ids, real = out["completion_ids"].cpu(), out["completion_mask"].cpu().bool()
    mask = real & out.get("tool_mask", torch.ones_like(out["completion_mask"])).cpu().bool()
    last = ids.gather(1, (real.sum(-1, keepdim=True) - 1).clamp(min=0))[:, 0]
    ended = torch.isin(last, torch.tensor(list(eos)))
    how = torch.where(ended, int(Finish.EOS), int(Finish.HORIZON)) if finish is None else torch.tensor(list(finish))
    prompt = torch.where(out["prompt_mask"].cpu().bool(), out["prompt_ids"].cpu(), PAD)
    own = torch.where(mask, logp.detach().cpu().double(), 0.0)
    return Evidence(Rollouts(prompt, torch.where(real, ids, PAD), mask, own, how), reward.detach().cpu().double())


class _Bridge:
    """What `EstimatorTrainer` has in place of GRPOTrainer's methods; `super()` is GRPOTrainer.

    Args:
        estimator: responses and rewards are all that it collects; its group_size divides num_generations, or is 1.
        measure_every: every so many batches, their groups are read once more, one by one, for the figures of the
            gradient; 0: never.

    Raises:
        UsageError: TRL has not what the estimator collects, or the configuration asks for what the estimator replaces.
    """

    def __init__(self: Any, *args: Any, estimator: Estimator, measure_every: int = 0, **rest: Any):
        super().__init__(*args, **rest)  # pyright: ignore[reportCallIssue]
        check_arguments(self.args)
        check_expressible(estimator, self.num_generations)
        self.estimator, self.measure_every = estimator, measure_every
        self._batch, self._rewards, self._later, self._batches = None, None, (0, None), 0
        self._measured: dict[str, list[Estimates]] = {}

    def _calculate_rewards(self: Any, *args: Any) -> Tensor:
        found = super()._calculate_rewards(*args)  # pyright: ignore[reportAttributeAccessIssue]
        if bool(found.isnan().all(1).any()):
            raise UsageError(
                "every reward function gave None for a response; return a number, 0.0 where nothing is earned."
            )
        self._rewards = (found * self.reward_weights.to(found)).nansum(1)
        return found

    def _generate_and_score_completions(self: Any, inputs: Any) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)  # pyright: ignore[reportAttributeAccessIssue]
        with torch.no_grad():
            logp = self._logp(self.model, out)
        finish = [row["finish"] for row in inputs] if all("finish" in row for row in inputs) else None
        evidence = evidence_of(out, self._rewards, logp, self.eos_token_ids, finish)
        weights, loss = self._derivative(evidence.rollouts.logp, evidence)
        out["derivative"], out["row"] = weights.to(logp), torch.arange(len(weights), device=logp.device)
        out["whole_loss"] = torch.full((len(weights),), loss, device=logp.device)
        if self.model.training:
            self._batch, self._later, self._batches = evidence, (0, None), self._batches + 1
            self._log_figures(evidence)
        return out

    def _logp(self: Any, model: Any, x: dict[str, Any]) -> Float[Tensor, "B T"]:
        ids, seen = (torch.cat([x[f"prompt_{name}"], x[f"completion_{name}"]], 1) for name in ("ids", "mask"))
        return self._get_per_token_logps_and_entropies(model, ids, seen, x["completion_ids"].size(1))[0]

    def _derivative(self: Any, logp: Float[Tensor, "B T"], evidence: Evidence) -> tuple[Float[Tensor, "B T"], float]:
        """∂loss/∂log π of every token of the whole batch, and the loss."""
        sampler: Any = one_batch(evidence, self.num_generations, type(self.estimator).__name__)
        logp = logp.clone().requires_grad_()
        loss = self.estimator.loss(logp, self.estimator.collect(sampler))
        (derivative,) = torch.autograd.grad(loss, logp)
        return torch.where(evidence.rollouts.mask, derivative, 0.0), float(loss.detach())

    def _derivative_here(self: Any, x: dict[str, Any]) -> Float[Tensor, "b T"]:
        """Of these rows, at the policy as it is: in later passes over a batch it is taken anew, on the whole batch."""
        steps = self.args.steps_per_generation
        turn = self._step % (steps * self.num_iterations) // steps if self.model.training else 0
        if turn == 0:
            return x["derivative"]
        if self._later[0] != turn:
            rows = torch.cat([part["row"] for part in self._buffered_inputs])
            with torch.no_grad():
                scored = torch.cat([self._logp(self.model, part) for part in self._buffered_inputs])
            logp = torch.empty_like(scored).index_copy(0, rows, scored).cpu().double()
            logp = torch.where(self._batch.rollouts.mask, logp, 0.0)
            self._later = (turn, self._derivative(logp, self._batch)[0].to(scored))
        return self._later[1][x["row"]]

    def _compute_loss(self: Any, model: Any, x: dict[str, Any]) -> Tensor:
        derivative, logp = self._derivative_here(x), self._logp(model, x)
        mask = (x["completion_mask"] * x.get("tool_mask", 1)).bool()
        along = torch.where(mask, derivative * logp, 0.0).sum()
        # The parts of a batch add up to its gradient; the loss itself is shown, its share of it in every part.
        share = x["whole_loss"][0] * len(logp) / (self._rows if self.model.training else len(logp))
        return along - along.detach() + share

    @property
    def _rows(self: Any) -> int:
        return self.args.per_device_train_batch_size * self.args.steps_per_generation

    def _log_figures(self: Any, evidence: Evidence) -> None:
        """Into TRL's log: groups_with_signal of every batch, and the figures of `measured` when there are."""
        log = self._metrics["train"]
        log["groups_with_signal"].append(
            float(has_signal(evidence.response_reward, self.num_generations).double().mean())
        )
        if self.measure_every and self._batches % self.measure_every == 0:
            for name, value in self._measure(evidence).items():
                log[name].append(value)

    def _measure(self: Any, evidence: Evidence) -> dict[str, float]:
        """From this batch's groups and those of the batches measured before, until they are enough."""
        model = self.accelerator.unwrap_model(self.model)
        was, ids = model.training, model.get_input_embeddings().weight.shape[0]
        policy = LanguageModelPolicy(model, ids, None, temperature=self.temperature)
        try:
            found = estimates(evidence, self.estimator, policy, self.num_generations)
        finally:
            model.train(was)
        for name, each in found.items():
            self._measured.setdefault(name, []).append(each)
        whole = {name: joined_estimates(parts) for name, parts in self._measured.items()}
        if (groups := len(whole[REFERENCE].square)) < FEWEST:
            return {}
        said = figures(whole, len(evidence.response_reward) // self.num_generations)
        if said or groups >= MOST:
            self._measured = {}
        return said | {GROUPS: float(groups)}


REFERENCE, AGENT = "rloo", "agent"


def estimates(
    evidence: Evidence, estimator: Estimator, policy: LanguageModelPolicy, group_size: int
) -> dict[str, Estimates]:
    """Single groups' gradients by the estimator, by RLOO, and by the estimator in smaller groups ("K=4"), all on these
    responses."""
    sampler: Sampler = one_batch(evidence, group_size, type(estimator).__name__)  # pyright: ignore[reportAssignmentType]
    smaller = {f"K={k}": with_group_size(estimator, k) for k in range(2, group_size) if group_size % k == 0}
    wanted = {AGENT: estimator, REFERENCE: RLOO(group_size=group_size)}
    wanted |= {name: each for name, each in smaller.items() if each is not None and estimator.group_size > 1}
    trained = [each for each in policy.parameters() if each.requires_grad]
    return estimates_on(SharedDraws(sampler, group_size), wanted, policy, Sketch(trained))


def figures(found: dict[str, Estimates], prompts: int) -> dict[str, float]:
    """What single groups' gradients say, where their intervals say something:

    - signal_to_noise of a batch of so many prompts, |E g|² P / tr Cov g
    - cosine_to_rloo and tokens_to_signal, each with _low and _high, as our own trainer logs them
    - tokens_to_signal_K=k: of smaller groups. Where it is lower, smaller groups pay.
    """
    reference, said = found[REFERENCE], {}
    for name, each in found.items():
        if name == REFERENCE:
            continue
        measurement = sampled_measurement(each, reference=reference)
        if measurement.too_few is not None:
            continue
        spread = measurement.spread
        if name != AGENT:
            said[f"{TOKENS}_{name}"] = spread.tokens_to_signal
            continue
        said |= {"signal_to_noise": spread.signal_to_noise(prompts * spread.tokens), TOKENS: spread.tokens_to_signal}
        for figure, key in (("cosine", COSINE), (TOKENS, TOKENS)):
            low, high = measurement.interval(figure) or (math.nan, math.nan)
            said |= {f"{key}_low": low, f"{key}_high": high}
        if said[f"{COSINE}_high"] - said[f"{COSINE}_low"] <= 1:
            said[COSINE] = spread.cosine
    return {name: value for name, value in said.items() if math.isfinite(value)}


@cache
def _estimator_trainer() -> type:
    try:
        from trl.trainer.grpo_trainer import GRPOTrainer
    except ImportError as error:
        raise UsageError(f"EstimatorTrainer needs TRL ({error}); pip install trl==1.16.0") from error
    return type("EstimatorTrainer", (_Bridge, GRPOTrainer), {"__doc__": _Bridge.__doc__})


def __getattr__(name: str) -> Any:
    if name == "EstimatorTrainer":
        return _estimator_trainer()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
