"""An estimator of a user's own, as the text of a file: biased where lengths differ."""

OWN = '''
from dataclasses import dataclass
from llm_mdp import Estimator


@dataclass(frozen=True)
class PerToken(Estimator):
    """The reward, divided by the length."""

    def advantages(self, evidence):
        length = evidence.rollouts.mask.sum(-1, keepdim=True)
        return (evidence.response_reward[..., None] / length).expand(evidence.rollouts.mask.shape)
'''
