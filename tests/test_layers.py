"""Arrows go down only: which folder may import which, inside all three packages. Nobody imports the command line."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOMES = {
    "llm_mdp": ROOT / "llm_mdp",
    "llm_mdp_envs": ROOT / "envs/llm_mdp_envs",
    "llm_mdp_agents": ROOT / "agents/llm_mdp_agents",
}

TOWER = (
    "llm_mdp.own",
    "llm_mdp.files",
    "llm_mdp.notebook",
    "llm_mdp.mdp",
    "llm_mdp.sampling",
    "llm_mdp.estimators",
    "llm_mdp.exact",
    "llm_mdp.verify",
    "llm_mdp.audit",
    "llm_mdp.testing",
    "llm_mdp.pytest_plugin",
    "llm_mdp.variance",
    "llm_mdp.inspection",
    "llm_mdp.report",
    "llm_mdp_envs.arguments",
    "llm_mdp_envs.task",
    "llm_mdp_envs.episode",
    "llm_mdp_envs.check",
    "llm_mdp_envs.array_task",
    "llm_mdp_envs.sandbox",
    "llm_mdp_envs.tokenizers",
    "llm_mdp_envs.encoding",
    "llm_mdp_envs.text",
    "llm_mdp_envs.token_env",
    "llm_mdp_envs.turns",
    "llm_mdp_envs.text_turns",
    "llm_mdp_envs.tool_calls",
    "llm_mdp_envs.tools",
    "llm_mdp_envs.tool_turns",
    "llm_mdp_envs.vector_env",
    "llm_mdp_envs.wrappers",
    "llm_mdp_envs.figures",
    "llm_mdp_envs.pictures",
    "llm_mdp_envs.registry",
    "llm_mdp_envs.tasks",
    "llm_mdp_envs.adapters",
    "llm_mdp_agents.action_masks",
    "llm_mdp_agents.devices",
    "llm_mdp_agents.optimizers",
    "llm_mdp_agents.lm",
    "llm_mdp_agents.sampler",
    "llm_mdp_agents.models",
    "llm_mdp_agents.sketch",
    "llm_mdp_agents.gradient_basis",
    "llm_mdp_agents.measuring",
    "llm_mdp_agents.pilot",
    "llm_mdp_agents.penalties",
    "llm_mdp_agents.base",
    "llm_mdp_agents.segments",
    "llm_mdp_agents.auxiliary",
    "llm_mdp_agents.certificates",
    "llm_mdp_agents.zoo",
    "llm_mdp_agents.resolve",
    "llm_mdp_agents.training",
    "llm_mdp_agents.bridges",
    "llm_mdp_agents.study",
    "llm_mdp_agents.check",
    "llm_mdp.cli",
    "llm_mdp.__main__",
)
"""Folders (and files that stand beside them), the lowest first: each may import what stands below it, and itself."""
FACES = ("llm_mdp", "llm_mdp_envs", "llm_mdp_agents")
"""The packages themselves: lazy, so that importing one brings in no floor."""


def imported(source: str) -> set[str]:
    """The dotted names that a module imports, anywhere in it, `from a import b` as a.b."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor(name: str) -> str | None:
    """The folder or file of TOWER that a dotted name is in; None: in none."""
    return ".".join(name.split(".")[:2]) if name.split(".")[0] in HOMES and "." in name else None


def upward(tower: tuple[str, ...], module: str, source: str) -> list[str]:
    """What a module imports from its own floor's ceiling upwards."""
    own, wrong = floor(module), []
    for name in sorted(imported(source)):
        other = floor(name)
        if other in tower and own in tower and tower.index(other) > tower.index(own):
            wrong.append(f"{module} imports {name}")
    return wrong


def modules() -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    return {
        ".".join([package, *path.relative_to(home).with_suffix("").parts]): path
        for package, home in HOMES.items()
        for path in sorted(home.rglob("*.py"))
        if path.parent != home or path.name != "__init__.py"
    }


def test_every_module_has_a_floor():
    assert {floor(name) for name in modules()} <= {*TOWER, "llm_mdp_envs.sandbox"}
    assert len(modules()) > 100


def test_no_module_is_over_400_lines():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert not {name: length for name, length in lengths.items() if length > 400}


@pytest.mark.parametrize("module", modules())
def test_imports_go_down_only(module):
    assert not upward(TOWER, module, modules()[module].read_text(encoding="utf-8"))


@pytest.mark.parametrize("face", FACES)
def test_a_face_imports_nothing_when_it_is_imported(face):
    tree = ast.parse((HOMES[face] / "__init__.py").read_text(encoding="utf-8"))
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name for node in top for name in imported(ast.unparse(node))}
    assert face == "llm_mdp_envs" or not {name for name in names if floor(name)}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llm_mdp.mdp.tree", "from llm_mdp.sampling.evidence import Rollouts"),
        ("llm_mdp.estimators.credit", "def f():\n    import llm_mdp.verify.claims as c"),
        ("llm_mdp.variance.study", "from llm_mdp.cli.options import env_arguments"),
        ("llm_mdp.exact.enumeration", "from llm_mdp import verify"),
        ("llm_mdp.report.pages", "from llm_mdp_agents.lm.policy import x"),
        ("llm_mdp_envs.tasks.code", "from llm_mdp_agents import base"),
        ("llm_mdp_agents.lm.generation", "from llm_mdp_agents.training.trainer import Trainer"),
        ("llm_mdp_agents.resolve", "from llm_mdp.cli.verify import verify"),
    ],
)
def test_an_upward_import_is_seen(module, source):
    assert upward(TOWER, module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("llm_mdp.cli.train", "from llm_mdp_agents.training.run import train"),
        ("llm_mdp.verify.ledger", "from llm_mdp.verify.claims import CLAIMS\nimport llm_mdp\nimport torch"),
    ],
)
def test_a_downward_import_is_allowed(module, source):
    assert not upward(TOWER, module, source)
