"""The ledger: who says what about which estimator.

A claim of "unbiased" or "proportional" is for all instances. A claim of "biased" is that a counter-example is easy to
find; on instances where theory says that the bias cannot show (short horizons, gamma = 1, no end token) the expectation
says so.
"""

from llm_mdp.verify.claims.algorithms import ALGORITHMS
from llm_mdp.verify.claims.claim import Claim as Claim
from llm_mdp.verify.claims.claim import always as always
from llm_mdp.verify.claims.off_policy import OFF_POLICY
from llm_mdp.verify.claims.practices import PRACTICES
from llm_mdp.verify.claims.theorems import THEOREMS
from llm_mdp.verify.claims.turns import TURNS

CLAIMS: tuple[Claim, ...] = (*THEOREMS, *ALGORITHMS, *PRACTICES, *OFF_POLICY, *TURNS)
