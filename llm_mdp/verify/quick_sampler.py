"""A sampler of worlds for millions of draws."""

import torch
from torch import Tensor

from llm_mdp.exact.worlds import Inverse, TreeRollouts, TreeSampler
from llm_mdp.sampling.evidence import Branches


class QuickSampler(TreeSampler):
    """The draws of `TreeSampler`, from the same random numbers, to the last bit: what responses and branches have in
    common is looked up once, and nothing is looked up where a response ended before a branch could begin."""

    def _worlds(self, group_size, leaf_logp):
        if self.enumeration.n_prompts > 1:
            return super()._worlds(group_size, leaf_logp)
        shape = (len(self.weight), self.prompts * group_size)
        inverse, prompt = Inverse.of(leaf_logp, self.enumeration), torch.zeros(1, dtype=torch.int64).expand(shape)
        place = torch.rand(shape, generator=self.generator, dtype=torch.float64).mul_(inverse.cumulative[0, -1])
        return prompt, inverse(prompt, place).clamp_(0, self.enumeration.tree.n_leaves - 1)

    def _branches(self, rollouts: TreeRollouts, row: Tensor, step: Tensor, drawn: Tensor, temperature: float):
        if not temperature or not len(row):
            return super()._branches(rollouts, row, step, drawn, temperature)
        e, worlds = self.enumeration, len(drawn)
        # Draws from one place stand side by side, as many from each.
        number = int(((row == row[0]) & (step == step[0])).sum())
        rows, steps = row[::number], step[::number]
        place = torch.rand((worlds * len(rows), number), generator=self.generator, dtype=torch.float64)
        which = drawn[:, ::number].flatten().nonzero()[:, 0]
        of_row = (torch.arange(worlds)[:, None] * rollouts.leaf.shape[1] + rows).flatten().index_select(0, which)
        here = steps.expand(worlds, -1).flatten().index_select(0, which)
        leaf, prompt = (of.flatten().index_select(0, of_row) for of in (rollouts.leaf, rollouts.which_prompt))
        first = e.first_leaf.flatten().index_select(0, leaf * e.first_leaf.shape[1] + here)
        end = first + torch.tensor(e.tree.subtree_leaves).index_select(0, here)
        inverse = Inverse.of(e.leaf_logp(temperature), e)
        begin = prompt * inverse.cumulative.shape[1]
        low, high = (inverse.cumulative.flatten().index_select(0, begin + each)[:, None] for each in (first, end))
        place = place.index_select(0, which).mul_(high - low).add_(low)
        prompt = prompt[:, None].expand(place.shape)
        leaf = torch.minimum(torch.maximum(inverse(prompt, place), first[:, None]), end[:, None] - 1)
        reward = e.response_reward.flatten().index_select(0, (prompt * e.tree.n_leaves + leaf).flatten())
        own = e.mdp.policy_steps
        before = (own.cumsum(0) - own.long()).index_select(0, here)[:, None]
        tokens = e.length.index_select(0, leaf.flatten()).view_as(leaf) - before

        def spread(values: Tensor) -> Tensor:
            """0 where nothing was drawn."""
            everywhere = torch.zeros(worlds * len(rows), number, dtype=torch.float64)
            return everywhere.index_copy_(0, which, values.view(-1, number)).view(worlds, -1)

        return Branches(row, step, spread(reward), tokens=spread(tokens.double()))
