"""Optima in closed form and by minimisation: the KL-regularised optimum, the DPO minimiser, PRIME's process model."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from llm_mdp.estimators.objectives import dpo_loss
from llm_mdp.exact.enumeration import Enumeration, TooLarge
from llm_mdp.exact.tree_gradient import node_logits
from llm_mdp.mdp.token_mdp import TokenMDP
from llm_mdp.sampling.policies import Policy, TabularPolicy


class NotConverged(ValueError):
    """A minimum could not be found in double precision."""


class NotAPolicy(NotConverged):
    """The optimum among distributions of whole responses cannot be followed: an environment draws some tokens."""


STEPS, ROUNDING = 100, 1e-14
"""Most steps of Newton's method, and what is nothing any more."""
LEAST = 1e5
"""Nats below which PRIME's λ is not looked for: responses have logarithms nowhere near as low."""
MAX_RESPONSES = 500
"""Responses to a prompt up to which a loss over all pairs of them is minimised."""


@torch.no_grad()
def regularised_optimum(mdp: TokenMDP, reference: Policy, beta: float) -> TabularPolicy:
    """π* ∝ ref(W) exp(RM(W)/β), the maximiser of E RM - β KL(π ‖ ref), token by token.

        log π*(w|p) = log ref(w|p) + γˡ r(p,w)/β + log Z(pw) - log Z(p),   Z(p) = E_ref[exp(RM to come / β) | p],  l =
        |p|

    Where the environment draws w after p, it is not tilted: log Z(p) = E_env[γˡ r(p,w)/β + log Z(pw) | p].

    Args: beta: above 0.
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta!r}; it must be above 0.")
    tree, rewards = mdp.tree, mdp.token_reward.levels(mdp.tree, mdp.prompt_tokens)
    levels: list[Tensor] = []
    log_z = None
    for level in reversed(range(tree.horizon)):
        logp, to_come = node_logits(reference, mdp)[level].log_softmax(1), mdp.gamma**level * rewards[level] / beta
        if log_z is not None:
            to_come[:, tree.continuing] += log_z.unflatten(1, (tree.branching, -1))
        if mdp.policy_steps[level]:
            log_z = (logp + to_come).logsumexp(1)
            levels.append(logp + to_come - log_z[:, None])
        else:
            log_z = (logp.exp() * to_come).sum(1)
            levels.append(logp)
    return TabularPolicy(tree, mdp.prompt_tokens, levels[::-1])


def dpo_minimiser(reference: Enumeration, beta: float) -> Float[Tensor, "P N"]:
    """log π(W) of the minimiser of the population DPO loss, by Newton's method on h(W) = log π(W)/ref(W).

    Pairs are drawn from the reference and labelled by Bradley-Terry, P(W ≻ W') = σ(RM(W) - RM(W')). Nothing of the
    closed form (`regularised_optimum`) is used, so comparing the two is a test of it. Claim: `dpo-optimum`.

    Raises:
        TooLarge: more than MAX_RESPONSES responses to a prompt.
        NotConverged: rewards so far apart that preferences are certain.
    """
    _check_pairs(reference)
    rows = []
    for logp, reward in zip(reference.leaf_logp().sum(-1), reference.response_reward):
        pair = logp.exp()[:, None] * logp.exp() * torch.sigmoid(reward[:, None] - reward)
        once = (logp + (h := _newton(pair, beta, torch.zeros_like(logp)))).log_softmax(-1)
        again = (logp + _newton(pair, beta, 1.01 * h)).log_softmax(-1)
        if float((once - again).abs().max()) > 1e-6:
            raise NotConverged(
                "two searches for the minimum end apart: rewards this far apart make preferences certain; scale them "
                "down."
            )
        rows.append(once)
    return torch.stack(rows)


def process_model(
    enumeration: Enumeration, reference: Policy, beta: float, threshold: float, label_noise: float = 0.05
) -> TabularPolicy:
    """PRIME's implicit process reward model φ at the optimum of its cross-entropy, for responses drawn from the policy.

    The outcome 1[RM > threshold] is seen with `label_noise`: without it the optimum gives every failed response
    probability 0 and token rewards of minus infinity.

    Raises:
        TooLarge: more than MAX_RESPONSES responses to a prompt.
        NotConverged: see `_implicit_rewards`.
    """
    _check_pairs(enumeration)
    reference_logp = Enumeration(enumeration.mdp, reference).leaf_logp().sum(-1)
    success = (enumeration.response_reward > threshold).to(torch.float64)
    outcome = label_noise + (1 - 2 * label_noise) * success
    chance = enumeration.leaf_logp().sum(-1)
    ratios = [_implicit_rewards(*of_prompt, beta) for of_prompt in zip(chance, reference_logp, outcome)]
    return policy_of_responses(enumeration, reference_logp + torch.stack(ratios))


def _implicit_rewards(
    logp: Float[Tensor, " N"], reference_logp: Float[Tensor, " N"], outcome: Float[Tensor, " N"], beta: float
) -> Float[Tensor, " N"]:
    """r = log φ/ref that minimises Σ P(W) CE(y, σ(β r)) subject to Σ ref exp(r) = 1.

    Stationary where P β (y - σ(βr)) = λ ref exp(r). For λ > 0 the left side falls in r and the right side rises: one
    root for each response. Their Σ ref exp(r) falls in λ: one λ, found by Newton's method on log λ, from βΣPy above it.
    λ > 0 if the outcomes' own r = logit(y)/β have Σ ref exp(r) > 1; otherwise φ cannot reach them from below, and there
    may be several minima.

    Raises:
        NotConverged: if not.
    """
    if float((reference_logp + outcome.logit() / beta).logsumexp(0)) <= 0:
        raise NotConverged(
            "so few of the reference's responses succeed that PRIME's model cannot give them their implicit reward; "
            "raise beta, or take an instance with more successes."
        )
    pull, scale = reference_logp - logp - math.log(beta), (logp.exp() @ outcome).item() * beta
    multiplier, low, high = math.log(scale), math.log(scale) - LEAST, math.inf
    for _ in range(STEPS):
        ratio, slope = _roots(pull + multiplier, outcome, beta)
        total = float((reference_logp + ratio).logsumexp(0))
        low, high = (multiplier, high) if total > 0 else (low, multiplier)
        newton = multiplier + total / float((reference_logp + ratio).softmax(0) @ (1 / slope))
        between = [each for each in (newton, (low + high) / 2) if low < each < high]
        # Of extreme policies the sum is known to fewer digits: then the multiplier is, where no number is in between.
        if abs(total) <= ROUNDING or (math.isfinite(newton) and not between):
            return ratio
        if not between:
            break
        multiplier = between[0]
    raise NotConverged("Newton's method did not find PRIME's model; take rewards and a policy that are less extreme.")


def _roots(
    pull: Float[Tensor, " N"], outcome: Float[Tensor, " N"], beta: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """r with g(r) = pull + r - log(y - σ(βr)) = 0, and g'(r). g rises and is convex, so that Newton's method falls
    towards the root from wherever g is not negative."""
    free = outcome.logit() / beta
    ratio = free - 1 / (1 + beta / 4 * (-pull - free).exp())  # σ is nowhere steeper than 1/4
    ratio = torch.minimum(outcome.log() - pull, ratio)
    slope = torch.ones_like(ratio)
    for _ in range(STEPS):
        chance, other = torch.sigmoid(beta * ratio), torch.sigmoid(-beta * ratio)
        left = torch.where(outcome < 0.5, outcome - chance, other - (1 - outcome)).clamp(min=1e-300)
        slope = 1 + beta * chance * other / left
        step = (pull + ratio - left.log()) / slope
        ratio = ratio - step
        if float((step.abs() - ROUNDING * ratio.abs().clamp(min=1.0)).max()) <= 0:
            break
    return ratio, slope


def policy_of_responses(enumeration: Enumeration, logp: Float[Tensor, "P N"]) -> TabularPolicy:
    """The token-by-token policy with these probabilities of whole responses: π(w|p) ∝ Σ over the responses that begin
    with pw."""
    tree = enumeration.tree
    levels = [torch.full(level.shape, -torch.inf, dtype=torch.float64) for level in enumeration.logits]
    index = tree.prefix_index(enumeration.tokens)
    for number in range(len(logp)):
        for step, level in enumerate(levels):
            alive = enumeration.mask[:, step]
            token, prefix = enumeration.tokens[alive, step], index[alive, step]
            place = token * level.shape[-1] + prefix
            level[number] = _logsumexp_by(logp[number, alive], place, level[number].numel()).reshape(level.shape[1:])
    return TabularPolicy(tree, enumeration.prompt, levels)


def _logsumexp_by(values: Float[Tensor, " N"], place: Tensor, size: int) -> Float[Tensor, " size"]:
    """log Σ exp of the values that share a place."""
    top = torch.full((size,), -torch.inf, dtype=values.dtype).scatter_reduce(0, place, values, "amax")
    total = torch.zeros(size, dtype=values.dtype).index_add(0, place, (values - top[place]).exp())
    return top + total.log()


def _newton(pair: Float[Tensor, "N N"], beta: float, start: Float[Tensor, " N"], steps: int = 100) -> Tensor:
    """The h that minimises Σ pair(W, W') dpo_loss(h(W), h(W')), convex; a constant added to h changes nothing."""
    h = start
    for _ in range(steps):
        loss, gradient, hessian = _curvature(pair, beta, h)
        # Scaled to a unit diagonal: rare responses have tiny rows. The direction of the constant is made harmless, not
        # solved for.
        scale = hessian.diagonal().clamp(min=1e-300).sqrt()
        null = scale / scale.norm()
        step, singular = torch.linalg.solve_ex(
            hessian / scale[:, None] / scale + torch.outer(null, null), -gradient / scale
        )
        step = step / scale
        if singular or not torch.isfinite(step).all():
            break
        size = 1.0
        while _over_pairs(pair, beta, h + size * step) > loss + 1e-14 * abs(loss) and size > 1e-8:
            size /= 2
        h = h + size * step
        if float((size * step).abs().max()) < 1e-11:
            return h
    raise NotConverged(
        "Newton's method did not converge: rewards this far apart make preferences certain; scale them down."
    )


def _over_pairs(pair: Float[Tensor, "N N"], beta: float, h: Float[Tensor, " N"]) -> float:
    return float((pair * dpo_loss(h[:, None], h, beta)).sum())


def _curvature(pair: Float[Tensor, "N N"], beta: float, h: Float[Tensor, " N"]) -> tuple[float, Tensor, Tensor]:
    """Σ pair dpo_loss, its gradient and Hessian: every pair has its own two arguments, differentiated all at once."""
    chosen, rejected = (each.expand(len(h), -1).clone() for each in (h[:, None], h))
    both = (chosen.requires_grad_(), rejected.requires_grad_())
    loss = (pair * dpo_loss(*both, beta)).sum()
    one, other = torch.autograd.grad(loss, both, create_graph=True)
    one_one, mixed = torch.autograd.grad(one.sum(), both, retain_graph=True)
    (other_other,) = torch.autograd.grad(other.sum(), rejected)
    gradient = (one.sum(1) + other.sum(0)).detach()
    return loss.item(), gradient, torch.diag(one_one.sum(1) + other_other.sum(0)) + mixed + mixed.T


def _check_pairs(enumeration: Enumeration) -> None:
    if enumeration.mdp.environment is not None:
        raise NotAPolicy(
            "the minimum over whole responses would change what the environment says, which no policy can; take an "
            "instance without an environment."
        )
    if enumeration.tree.n_leaves > MAX_RESPONSES:
        raise TooLarge(
            f"{enumeration.tree.n_leaves:,} responses to a prompt are too many to fit a model to all of them or their "
            f"pairs (at most "
            f"{MAX_RESPONSES}); take a smaller instance."
        )
