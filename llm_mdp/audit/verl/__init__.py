"""verl: its registries of advantage estimators and policy losses, its aggregations and its penalties."""

from llm_mdp.audit.library import Library
from llm_mdp.audit.verl.rows import settings
from llm_mdp.audit.verl.trainer import KNOWN

LIBRARY = Library(
    name="verl",
    distribution="verl",
    versions=KNOWN,
    install=(
        "--no-deps verl==0.9.1 omegaconf antlr4-python3-runtime==4.9.3 tensordict==0.10.0 codetiming hydra-core pyvers "
        "orjson ray click"
    ),
    settings=settings,
)
