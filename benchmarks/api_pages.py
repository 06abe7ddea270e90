"""The pages of the API, docs/api: a line a public name, which mkdocstrings makes a section of."""

from pathlib import Path
from typing import Any

import llm_mdp
import llm_mdp_agents
import llm_mdp_envs

FOLDER = Path(__file__).parent.parent / "docs" / "api"
HOMES = {
    "Certify": ("audit", "verify"),
    "Estimators": ("estimators",),
    "Token MDPs, instances, the true gradient": ("mdp", "exact"),
    "What was sampled, and by whom": ("sampling",),
    "Noise": ("variance",),
}
"""The sections of the page on `llm_mdp`, and the folders whose names stand there."""
AGENTS = {"Train": ("training", "resolve"), "An agent of your own": ("base", "check")}
TASKS = ("ArrayTask", "Question", "Scores", "Task", "TaskError", "check_task")
"""What stands under "Tasks" on the page on `llm_mdp_envs`; its other names are of environments."""
WORDS = ("text.TextTask", "text.Reply", "text_turns.TextTurns", "text_turns.Response", "turns.TurnTask")
NOTE = "<!-- Written by `python benchmarks/api_pages.py`. -->"


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    core = sections(llm_mdp, HOMES)
    core["In tests"] = ["llm_mdp.testing.assert_unbiased"]
    agents = sections(llm_mdp_agents, AGENTS)
    agents["Certificates"] = [f"llm_mdp_agents.certificates.{name}" for name in ("own_certificate", "OwnCertificate")]
    envs: dict[str, list[str]] = {"Tasks": [], "Environments": []}
    for name in llm_mdp_envs.__all__:
        envs["Tasks" if name in TASKS else "Environments"].append(f"llm_mdp_envs.{name}")
    envs["Tasks in words, and turns"] = [f"llm_mdp_envs.{name}" for name in WORDS]
    return {
        "llm_mdp.md": page("llm_mdp", "Every public name of the core; `from llm_mdp import NAME`.", core),
        "llm_mdp_envs.md": page("llm_mdp_envs", "Importing it registers the environments with Gymnasium.", envs),
        "llm_mdp_agents.md": page("llm_mdp_agents", "Training, and what an agent is.", agents),
    }


def sections(package: Any, homes: dict[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """The public names of a package by the sections that their homes belong to."""
    return {
        title: [
            f"{package.__name__}.{name}"
            for home, names in package.HOMES.items()
            for name in names.split()
            if home.split(".")[0] in of
        ]
        for title, of in homes.items()
    }


def page(title: str, words: str, sections: dict[str, list[str]]) -> str:
    parts = [f"# {title}", NOTE, words]
    for heading, names in sections.items():
        parts += [f"## {heading}", *(f"::: {name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"Written to {FOLDER}")


if __name__ == "__main__":
    main()
