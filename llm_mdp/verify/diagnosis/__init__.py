"""Why an estimator is not unbiased: found by intervention, never by name."""

from llm_mdp.verify.diagnosis.findings import Diagnosis as Diagnosis
from llm_mdp.verify.diagnosis.findings import diagnose as diagnose
