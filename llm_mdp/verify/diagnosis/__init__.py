"""Why an estimator is not unbiased: found by intervention, never by name."""

from llm_mdp.verify.diagnosis.diagnose import Diagnosis as Diagnosis
from llm_mdp.verify.diagnosis.diagnose import diagnose as diagnose
