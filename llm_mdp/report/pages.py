"""What all pages share: one base template, one style, and what a document must be to be shown."""

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_mdp.report.rows import SYMBOLS, bias, number, ratio, tone

if TYPE_CHECKING:
    from jinja2 import Environment

HOME = "llm_mdp.report"
"""The package with `base.html`, which every page extends."""


@dataclass(frozen=True)
class Drawing:
    """A figure of a page, drawn in several shapes of which the page shows one."""

    title: str
    words: str
    shapes: list[tuple[str, str]]
    """(`broad`, `narrow` or nothing; the SVG element)."""
    wide: bool = False
    """Whether it takes the whole width of the page."""


def rendered(template: str, package: str = HOME, **values: object) -> str:
    """A page: a template in a package's folder `templates`, filled with values.

    Every value is escaped where it stands, except drawings, which the templates mark as safe. What no file can hold
    (half a character) becomes "?".
    """
    page = _environment(package).get_template(template).render(values)
    return page.encode("utf-8", "replace").decode("utf-8")


@functools.cache
def _environment(package: str) -> "Environment":
    # Imported where a page is made, as most commands make none.
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, HOME))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "bias": bias, "ratio": ratio, "tone": tone, "symbol": symbol}
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "allow_nan": False}
    return environment


def symbol(verdict: str) -> str:
    """What stands before a verdict, so that it can be read without colour."""
    return SYMBOLS.get(verdict, "–")


def check_finite(value: object, place: str = "the document") -> None:
    """Raise ValueError for the first number that JSON cannot hold."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place} is {value}, which JSON cannot hold; write null for a figure that is not defined.")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        check_finite(item, f"{place}[{key!r}]")
