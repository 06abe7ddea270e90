"""TRL's GRPOTrainer and RLOOTrainer."""

from llm_mdp.audit.library import Library
from llm_mdp.audit.trl.settings import settings
from llm_mdp.audit.trl.trainers import KNOWN

LIBRARY = Library(
    name="trl",
    distribution="trl",
    versions=KNOWN,
    install="--no-deps trl==1.16.0 accelerate datasets",
    settings=settings,
)
