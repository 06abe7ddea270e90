"""What a program imports, for programs that must do without what they check."""

import ast
from pathlib import Path
from types import ModuleType


def imported_by(program: ModuleType) -> set[str | None]:
    """The modules that are named in its import statements, wherever they stand."""
    imported: set[str | None] = set()
    for node in ast.walk(ast.parse(Path(str(program.__file__)).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    return imported
