"""A copy of an estimator under other names is certified as the estimator is: nothing is known by its name."""

import ast
import inspect
import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from llm_mdp import certify
from llm_mdp.estimators.base import Estimator
from llm_mdp.exact.instance_files import write_instance
from llm_mdp.verify.certificate import Certificate
from llm_mdp.verify.check import load_estimator
from llm_mdp.verify.claims import CLAIMS
from llm_mdp.verify.problem import Problem
from tests.verify.classes.cases import INSTANCES

GROUP_ROWS = {
    claim.id: claim
    for claim in CLAIMS
    if claim.entry is not None and claim.entry.compares and claim.id != "prime"  # which is given models
}
OF_ESTIMATOR = [f.name for f in fields(Estimator)]


class _Renaming(ast.NodeTransformer):
    """Classes and fields get other names; docstrings go."""

    def __init__(self, classes: dict[str, str], named: dict[str, str]):
        self.classes, self.named = classes, named

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.name = self.classes[node.name]
        node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.body = [each for each in node.body if not _is_text(each)] or [ast.Pass()]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name):
            node.target.id = self.named.get(node.target.id, node.target.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.Attribute:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            node.attr = self.named.get(node.attr, node.attr)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.classes.get(node.id, node.id)
        return node


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def renamed(estimator: Estimator, name: str) -> str:
    """A module whose class of this name is this estimator: the source of its classes under other names, its options as
    their defaults."""
    kinds = [kind for kind in type(estimator).__mro__ if issubclass(kind, Estimator) and kind is not Estimator][::-1]
    classes = {kind.__name__: name if kind is kinds[-1] else f"Horse{n}" for n, kind in enumerate(kinds)}
    own = [f.name for f in fields(estimator) if f.name not in OF_ESTIMATOR]
    named = {field: f"stripe_{n}" for n, field in enumerate(own)}
    imports, bodies = {}, []
    for kind in kinds:
        tree = ast.parse(inspect.getsource(kind))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - set(classes)
        imports |= {name: kind.__module__ for name in sorted(names) if hasattr(sys.modules[kind.__module__], name)}
        bodies.append(ast.unparse(_Renaming(classes, named).visit(tree)))
    options = [
        f"    {named.get(f.name, f.name)}: object = {getattr(estimator, f.name)!r}"
        for f in fields(estimator)
        if getattr(estimator, f.name) != f.default
    ]
    head = [f"from {module} import {name}" for name, module in imports.items()]
    return "\n".join([*head, *bodies, *options, ""])


def at(problem: Problem, row: str, folder: Path) -> str:
    """FILE.py:CLASS, the copy of a row's estimator."""
    name = f"Zebra{list(GROUP_ROWS).index(row)}"
    file = folder / f"copy_of_{row.replace('+', 'p').replace('-', '_')}.py"
    file.write_text(renamed(GROUP_ROWS[row].build(problem), name), encoding="utf-8")
    return f"{file}:{name}"


def test_a_copy_has_other_names(tmp_path):
    source = Path(at(Problem(INSTANCES["two prompts"]()), "grpo", tmp_path).split(":")[0]).read_text(encoding="utf-8")
    assert "GRPO" not in source and "scale_by_std" not in source and "eps" not in source
    assert "class Zebra" in source and "stripe_0" in source


def certificates(row: str, name: str, group_size: int, folder: Path) -> tuple[Certificate, Certificate]:
    instance, target = INSTANCES[name](), GROUP_ROWS[row].target
    named = GROUP_ROWS[row].build(Problem(instance, group_size=group_size))
    copy = load_estimator(at(Problem(instance), row, folder), group_size)
    assert type(copy).__name__.startswith("Zebra") and type(copy).__module__ != type(named).__module__
    return certify(named, instance, target), certify(copy, instance, target)


@pytest.mark.parametrize("group_size", [3, 8])
@pytest.mark.parametrize("name", ["two prompts", "it replies, right or wrong"])
@pytest.mark.parametrize("row", GROUP_ROWS)
@pytest.mark.slow
def test_a_copy_is_certified_alike(row, name, group_size, tmp_path):
    named, copy = certificates(row, name, group_size, tmp_path)
    assert replace(copy, method=named.method) == named
    assert copy.method == named.method


@pytest.mark.parametrize("row", ["grpo", "opo-left-out", "zero-std-filtered", "turn-credit-reached"])
def test_some_copies_are_certified_alike(row, tmp_path):
    named, copy = certificates(row, "two prompts", 3, tmp_path)
    assert copy == named


@pytest.mark.slow
def test_the_command_certifies_copies_alike(tmp_path):
    """llm-mdp verify FILE.py:CLASS --group-size 8, beside the names."""
    instance, file, answer = INSTANCES["right or wrong"](), tmp_path / "instance.json", tmp_path / "ledger.json"
    write_instance(instance, file)
    rows = ["rloo", "grpo", "dr-grpo", "token-mean-loo", "zero-std-filtered", "opo", "reinforce++", "tempo"]
    copies = [at(Problem(instance), row, tmp_path) for row in rows]
    options = ["--instance", file, "--group-size", "8", "--json", answer]
    command = [sys.executable, "-m", "llm_mdp.cli", "verify", *rows, *copies, *map(str, options)]
    subprocess.run(command, check=False, capture_output=True)  # 1: of one's own, unbiased is expected
    claims = json.loads(answer.read_text(encoding="utf-8"))["claims"]
    assert len(claims) == 2 * len(rows)
    for row, copy in zip(rows, list(claims)[len(rows) :]):
        for figure in ("verdict", "relative_bias", "scale", "cosine", "trace_covariance", "tokens_to_signal"):
            assert claims[copy][figure] == claims[row][figure], (row, figure)
