"""The pages of the API, docs/api: a line a public name, which mkdocstrings makes a section of."""

import ast
from pathlib import Path

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
AGENTS = {
    "Train": ("llm_mdp_agents", None),
    "An agent of your own": ("llm_mdp_agents.base", ("Agent", "AgentConfig")),
    "Checks": ("llm_mdp_agents.check", ("check_agent",)),
    "Certificates": ("llm_mdp_agents.certificates", ("own_certificate", "OwnCertificate")),
}
NOTE = "<!-- Written by `python benchmarks/api_pages.py`. -->"


def pages() -> dict[str, str]:
    """The text of each page by its name."""
    core = {
        title: [
            f"llm_mdp.{name}" for home, names in llm_mdp.HOMES.items() for name in names.split() if part(home) in of
        ]
        for title, of in HOMES.items()
    }
    core["In tests"] = ["llm_mdp.testing.assert_unbiased"]
    agents = {
        title: [f"{module}.{name}" for name in names or lazy_names(Path(str(llm_mdp_agents.__file__)))]
        for title, (module, names) in AGENTS.items()
    }
    envs = {"Names": [f"llm_mdp_envs.{name}" for name in llm_mdp_envs.__all__]}
    envs["Tasks in words, and turns"] = ["llm_mdp_envs.text.TextTask", "llm_mdp_envs.turns.TurnTask"]
    return {
        "llm_mdp.md": page("llm_mdp", "Every public name of the core; `from llm_mdp import NAME`.", core),
        "llm_mdp_envs.md": page("llm_mdp_envs", "Importing it registers the environments with Gymnasium.", envs),
        "llm_mdp_agents.md": page("llm_mdp_agents", "Training, and what an agent is.", agents),
    }


def part(home: str) -> str:
    return home.split(".")[0]


def lazy_names(init: Path) -> list[str]:
    """The names that a package imports for type checkers, and at run time when they are asked for."""
    body = ast.parse(init.read_text(encoding="utf-8")).body
    (block,) = (node for node in body if isinstance(node, ast.If))
    return sorted(
        name.asname or name.name for node in block.body if isinstance(node, ast.ImportFrom) for name in node.names
    )


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
