"""What small instances have in common (`Shape`), what they differ in (`Numbers`), and the way to an `Instance` and
back."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from llm_mdp.exact.enumeration import Enumeration
from llm_mdp.exact.instances import Instance
from llm_mdp.mdp.environment import Environment
from llm_mdp.mdp.hidden_rewards import TableReward
from llm_mdp.mdp.token_mdp import Prompt, TokenMDP
from llm_mdp.mdp.tree import PrefixTree, pad_prompts
from llm_mdp.sampling.policies import NgramPolicy, TabularPolicy, TabularValue
from llm_mdp.verify.following import flat, places_of


@dataclass(frozen=True)
class Shape:
    """What all the instances have in common.

    The policy is a table over the last `order` tokens, prompt included, shared by all places where these are the same;
    None: a row of logits for every prefix.
    """

    vocab_size: int = 2
    horizon: int = 2
    eos: int | None = 0
    gamma: float = 1.0
    prompts: tuple[tuple[int, ...], ...] = ((0,), (1,))
    order: int | None = 1
    environment_at: tuple[int, ...] = ()

    @cached_property
    def tree(self) -> PrefixTree:
        return PrefixTree(self.vocab_size, self.eos, self.horizon)

    @property
    def nodes(self) -> int:
        """Of all prompts together."""
        return len(self.prompts) * self.tree.n_nodes

    @cached_property
    def parameters(self) -> int:
        """How many logits the policy has."""
        return (
            self.nodes * self.vocab_size
            if self.order is None
            else (self.vocab_size + 1) ** self.order * self.vocab_size
        )

    @cached_property
    def enumeration(self) -> Enumeration:
        """Of an instance of this shape with nothing but zeros in it."""
        instance = instance_of(self, Numbers.zeros(self), 0)
        return Enumeration(instance.mdp, instance.policy)

    @cached_property
    def places(self) -> Int[Tensor, " edges"]:
        """Which parameter the logit of every edge is; the number of parameters where the environment draws."""
        return places_of(self.enumeration.policy, self.enumeration).flatten()


@dataclass(frozen=True)
class Numbers:
    """What B instances of one shape differ in. Nodes are prompt by prompt, level by level."""

    reward: Float[Tensor, "B nodes V"]
    """Hidden token rewards."""
    start: Float[Tensor, "B S"]
    """The policy's logits, in the order of its parameters."""
    chance: Float[Tensor, "B P"]
    """Of each prompt."""
    value: Float[Tensor, "B nodes"]
    """Of the wrong critic."""
    environment: Float[Tensor, "B nodes V"]
    """Logits of the environment; used at its nodes alone."""

    def __len__(self) -> int:
        return len(self.reward)

    def __getitem__(self, index: Any) -> "Numbers":
        return Numbers(*(part[index] for part in self.parts))

    @property
    def parts(self) -> tuple[Tensor, ...]:
        return self.reward, self.start, self.chance, self.value, self.environment

    @staticmethod
    def join(several: list["Numbers"]) -> "Numbers":
        return Numbers(*map(torch.cat, zip(*(each.parts for each in several))))

    @staticmethod
    def zeros(shape: Shape) -> "Numbers":
        n, V, P = shape.nodes, shape.vocab_size, len(shape.prompts)
        edges = torch.zeros(1, n, V, dtype=torch.float64)
        chance = torch.full((1, P), 1 / P, dtype=torch.float64)
        return Numbers(edges, edges.new_zeros(1, shape.parameters), chance, edges.new_zeros(1, n), edges)


def levels(shape: Shape, by_node: Float[Tensor, "P n V"]) -> list[Float[Tensor, "P V N"]]:
    """One row a node as one tensor a level."""
    return [part.transpose(1, 2).contiguous() for part in by_node.split(shape.tree.level_sizes, dim=1)]


def instance_of(shape: Shape, numbers: Numbers, index: int, name: str = "") -> Instance:
    """One of them as an instance; its reference is the policy that it starts with."""
    one = numbers[[index]]
    policy = _policy(shape, one.start[0])
    prompts = tuple(map(Prompt, shape.prompts, one.chance[0].tolist()))
    found = side_by_side(shape, one, one.environment, prompts, name)
    reference = Enumeration(found.mdp, policy).logits
    return replace(found, policy=policy, reference=TabularPolicy(shape.tree, found.mdp.prompt_tokens, reference))


def side_by_side(
    shape: Shape, numbers: Numbers, logits: Float[Tensor, "B nodes V"], prompts: tuple[Prompt, ...], name: str = ""
) -> Instance:
    """All of them as one instance with as many times the prompts, its policy and reference tables of these logits."""
    tokens, many = pad_prompts([prompt.tokens for prompt in prompts]), len(prompts)

    def table(by_node: Tensor) -> list[Tensor]:
        return levels(shape, by_node.reshape(many, shape.tree.n_nodes, -1))

    reward = TableReward(shape.tree, tokens, table(numbers.reward))
    value = TabularValue(shape.tree, tokens, [level[:, 0] for level in table(numbers.value)])
    replies = table(numbers.environment)
    environment = Environment({place: replies[place] for place in shape.environment_at})
    mdp = TokenMDP(
        shape.vocab_size,
        shape.eos,
        shape.horizon,
        reward,
        shape.gamma,
        prompts,
        environment if shape.environment_at else None,
    )
    policy = TabularPolicy(shape.tree, tokens, table(logits))
    return Instance(mdp, policy, policy, value, name)


def shape_of(instance: Instance) -> Shape:
    """The shape of an instance.

    Raises:
        ValueError: for a policy that is neither a table nor an n-gram table that is the same at every step.
    """
    mdp, policy = instance.mdp, instance.policy
    shared = isinstance(policy, NgramPolicy) and len(policy.table) == 1
    if not shared and not isinstance(policy, TabularPolicy):
        kind = getattr(policy, "kind", type(policy).__name__)
        raise ValueError(f"the policy is {kind}; tables, and n-gram tables of one step, can be followed.")
    return Shape(
        mdp.vocab_size,
        mdp.horizon,
        mdp.eos,
        mdp.gamma,
        tuple(prompt.tokens for prompt in mdp.prompts),
        policy.order if isinstance(policy, NgramPolicy) else None,
        mdp.environment.at if mdp.environment is not None else (),
    )


def numbers_of(instance: Instance) -> Numbers:
    """The numbers of an instance."""
    e = Enumeration(instance.mdp, instance.policy)
    n = e.n_prompts * e.tree.n_nodes

    def rows(table: list[Tensor]) -> Tensor:
        return torch.cat([level.transpose(1, 2) for level in table], dim=1).reshape(1, n, -1).detach().clone()

    return Numbers(
        rows(instance.mdp.token_reward.levels(e.tree, e.prompt)),
        flat(instance.policy)[None],
        instance.mdp.prompt_probability[None],
        torch.cat(instance.value.levels, dim=1).reshape(1, n).clone(),
        rows(e.logits),
    )


def _policy(shape: Shape, parameters: Float[Tensor, " S"]) -> NgramPolicy | TabularPolicy:
    if shape.order is None:
        tokens = pad_prompts(list(shape.prompts))
        policy = TabularPolicy.random(shape.tree, tokens, torch.Generator(), 0.0)
    else:
        policy = NgramPolicy(torch.zeros(1, (shape.vocab_size + 1) ** shape.order, shape.vocab_size), shape.order)
    nn.utils.vector_to_parameters(parameters, policy.parameters())
    return policy
