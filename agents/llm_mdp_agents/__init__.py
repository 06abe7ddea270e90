"""The agent zoo of LLM-MDP: every algorithm of the paper, trained with the code that was verified.

from llm_mdp_agents import train

run = train("rloo", "llm_mdp/Tabular-v0", steps=100)
print(run["eval/reward"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_mdp_agents.training.recorded import RecordedRun as RecordedRun
    from llm_mdp_agents.training.recorded import read_run as read_run
    from llm_mdp_agents.training.run import Run as Run
    from llm_mdp_agents.training.run import resume as resume
    from llm_mdp_agents.training.run import train as train


def __getattr__(name: str) -> Any:
    # Imported when asked for: training needs more than the command line's other subcommands.
    if name in ("train", "resume", "Run"):
        from llm_mdp_agents.training import run

        return getattr(run, name)
    if name in ("read_run", "RecordedRun"):
        from llm_mdp_agents.training import recorded

        return getattr(recorded, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
