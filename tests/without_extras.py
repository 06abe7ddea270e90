"""`python tests/without_extras.py < COMMANDS`: runs them where nothing but what `pip install llm-mdp` brings can be
imported, whatever is installed.

COMMANDS is a JSON list of lists of words. Out comes a JSON list of [exit status, what was printed, errors].
"""

import contextlib
import io
import json
import re
import sys
from importlib import metadata

from packaging.requirements import Requirement

FOREIGN = {"gem", "gguf", "textarena", "trackio", "tensorboard", "verifiers", "verl", "vllm", "wandb"}
"""Not here everywhere the tests run, and never to be found."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought() -> set[str]:
    """Distributions that `llm-mdp` without extras needs, and what these need in turn."""
    found, wanted = set(), ["llm-mdp"]
    while wanted:
        name = canonical(wanted.pop())
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # of another system
            needs = map(Requirement, metadata.requires(name) or ())
            wanted += [each.name for each in needs if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


def hidden() -> set[str]:
    """Modules of all other distributions that are installed here."""
    kept = brought()
    homes = metadata.packages_distributions()
    return FOREIGN | {module for module, home in homes.items() if not kept & set(map(canonical, home))}


class Without:
    """A finder that knows some modules no more."""

    def __init__(self, finder, modules: set[str]):
        self._finder, self._modules = finder, modules

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self._modules else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)


def main() -> None:
    commands, modules = json.load(sys.stdin), hidden()
    sys.meta_path[:] = [Without(finder, modules) for finder in sys.meta_path]
    from llm_mdp.cli.__main__ import guarded, run

    said = []
    for name, *words in commands:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = guarded(lambda name=name, words=words: run(name, words))
        said.append((status, out.getvalue(), err.getvalue()))
    taken = sorted(modules & {name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"said": said, "taken": taken}))


if __name__ == "__main__":
    main()
