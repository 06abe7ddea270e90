"""LLM-MDP: token MDPs as Gymnasium environments, agents that learn in them, and a harness that proves their gradients.

    from llm_mdp import RLOO, certify

    print(certify(RLOO(group_size=3)))

This is the face: every public name of the core, imported when it is asked for. Environments are in `llm_mdp_envs`,
agents in `llm_mdp_agents`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_mdp.audit.batch import Batch as Batch
    from llm_mdp.audit.certify import certify as certify
    from llm_mdp.audit.certify import diagnose as diagnose
    from llm_mdp.estimators.algorithms import GRPO as GRPO
    from llm_mdp.estimators.algorithms import MARLHF as MARLHF
    from llm_mdp.estimators.algorithms import PPO as PPO
    from llm_mdp.estimators.algorithms import REINFORCE as REINFORCE
    from llm_mdp.estimators.algorithms import RLOO as RLOO
    from llm_mdp.estimators.algorithms import ReMax as ReMax
    from llm_mdp.estimators.algorithms import TRePO as TRePO
    from llm_mdp.estimators.algorithms import VinePPO as VinePPO
    from llm_mdp.estimators.base import Estimator as Estimator
    from llm_mdp.estimators.boundaries import AfterTokens as AfterTokens
    from llm_mdp.estimators.boundaries import AtSteps as AtSteps
    from llm_mdp.estimators.boundaries import EveryNTokens as EveryNTokens
    from llm_mdp.estimators.catalogue import CATALOGUE as CATALOGUE
    from llm_mdp.estimators.learned_credit import ABC as ABC
    from llm_mdp.estimators.learned_credit import DPO as DPO
    from llm_mdp.estimators.learned_credit import PRIME as PRIME
    from llm_mdp.estimators.learned_credit import R3HF as R3HF
    from llm_mdp.estimators.learned_credit import RTO as RTO
    from llm_mdp.estimators.values import groups as groups
    from llm_mdp.exact.enumeration import TooLarge as TooLarge
    from llm_mdp.exact.instance_files import read_instance as read_instance
    from llm_mdp.exact.instance_files import write_instance as write_instance
    from llm_mdp.exact.instances import Instance as Instance
    from llm_mdp.exact.instances import random_instance as random_instance
    from llm_mdp.exact.tree_gradient import exact_gradient as exact_gradient
    from llm_mdp.mdp.hidden_rewards import HiddenReward as HiddenReward
    from llm_mdp.mdp.hidden_rewards import LastTokenReward as LastTokenReward
    from llm_mdp.mdp.hidden_rewards import NgramReward as NgramReward
    from llm_mdp.mdp.hidden_rewards import TableReward as TableReward
    from llm_mdp.mdp.token_mdp import Prompt as Prompt
    from llm_mdp.mdp.token_mdp import TokenMDP as TokenMDP
    from llm_mdp.sampling.evidence import Evidence as Evidence
    from llm_mdp.sampling.evidence import Rollouts as Rollouts
    from llm_mdp.sampling.policies import NgramPolicy as NgramPolicy
    from llm_mdp.sampling.policies import TabularPolicy as TabularPolicy
    from llm_mdp.sampling.sampler import PolicySampler as PolicySampler
    from llm_mdp.sampling.sampler import Sampler as Sampler
    from llm_mdp.variance.allocation import allocate as allocate
    from llm_mdp.verify.certificate import Certificate as Certificate
    from llm_mdp.verify.check import check_estimator as check_estimator
    from llm_mdp.verify.diagnosis import Diagnosis as Diagnosis
    from llm_mdp.verify.ledger import run_ledger as run_ledger
    from llm_mdp.verify.problem import Problem as Problem
    from llm_mdp.verify.shown import Ledger as Ledger
    from llm_mdp.verify.weights import EstimatorError as EstimatorError

__version__ = "0.2.0"

HOMES = {
    "audit.batch": "Batch",
    "audit.certify": "certify diagnose",
    "estimators.algorithms": "GRPO MARLHF PPO REINFORCE RLOO ReMax TRePO VinePPO",
    "estimators.base": "Estimator",
    "estimators.boundaries": "AfterTokens AtSteps EveryNTokens",
    "estimators.catalogue": "CATALOGUE",
    "estimators.learned_credit": "ABC DPO PRIME R3HF RTO",
    "estimators.values": "groups",
    "exact.enumeration": "TooLarge",
    "exact.instance_files": "read_instance write_instance",
    "exact.instances": "Instance random_instance",
    "exact.tree_gradient": "exact_gradient",
    "mdp.hidden_rewards": "HiddenReward LastTokenReward NgramReward TableReward",
    "mdp.token_mdp": "Prompt TokenMDP",
    "sampling.evidence": "Evidence Rollouts",
    "sampling.policies": "NgramPolicy TabularPolicy",
    "sampling.sampler": "PolicySampler Sampler",
    "variance.allocation": "allocate",
    "verify.certificate": "Certificate",
    "verify.check": "check_estimator",
    "verify.diagnosis": "Diagnosis",
    "verify.ledger": "run_ledger",
    "verify.problem": "Problem",
    "verify.shown": "Ledger",
    "verify.weights": "EstimatorError",
}
"""Which module each public name is in."""
_HOME_OF = {name: home for home, names in HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
