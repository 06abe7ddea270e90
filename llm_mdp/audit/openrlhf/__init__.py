"""OpenRLHF: the advantages of its experience maker, and the loss of its actor's trainer."""

from llm_mdp.audit.library import Library
from llm_mdp.audit.openrlhf.rows import settings

LIBRARY = Library(
    name="openrlhf",
    distribution="openrlhf",
    versions=">=0.11.2,<0.12",
    install="--no-deps openrlhf==0.11.2",
    settings=settings,
)
