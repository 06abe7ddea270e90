"""The terminal as all commands write to it: what a model, a path or a task says is shown, and never obeyed."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.segment import Segment

from llm_mdp.own import visible


def terminal(*, stderr: bool = False) -> Console:
    """A console on which [brackets] are text and control characters are escapes; colours come from styles alone."""
    console = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    console.push_render_hook(_Visible())
    return console


class _Visible(RenderHook):
    def process_renderables(self, renderables: Sequence[Any]) -> list[Any]:
        return [_Shown(each) for each in renderables]


class _Shown:
    """Something to print, with its text made visible; what rich itself says to the terminal stays."""

    def __init__(self, content: ConsoleRenderable):
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self.content, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
