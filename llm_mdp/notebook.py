"""What a notebook shows of a result. Certificates, ledgers, measurements and runs have the same four, from here: a
`repr` of one line that says the finding, the same with a table as HTML, `.plot()` and `.to_dataframe()`.

    certify("grpo")                  # GRPO: biased, relative bias 0.4708, …
    certify("grpo").plot()           # axes of matplotlib
    certify("grpo").to_dataframe()   # a row
"""

import math
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, Any

from llm_mdp.own import visible

if TYPE_CHECKING:  # neither is imported before it is asked for
    from matplotlib.axes import Axes
    from pandas import DataFrame

COLOURS = {"unbiased": "#3a5fcd", "holds": "#3a5fcd", "proportional": "#8a6d00", "biased": "#c2410c"}
"""Of verdicts; all others are grey."""
GREY = "#7a828d"
MOST_ROWS = 400
"""Of a table in HTML; a data frame has all."""


class Shown:
    """A result that shows itself. A subclass says what was found (`_finding`), in which rows (`_rows`), and draws it
    (`_draw`)."""

    def _finding(self) -> tuple[str, str]:
        """What was found in a few words, and its figures: `GRPO: biased` and `cosine 0.914, K = 3`."""
        raise NotImplementedError

    def _rows(self) -> list[dict[str, Any]]:
        """One dictionary a row, with the same keys in every row."""
        raise NotImplementedError

    def _in_table(self) -> list[dict[str, Any]]:
        """The rows as a page has room for them."""
        return self._rows()

    def _draw(self, axes: "Axes") -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        """The finding in one line."""
        return ", ".join(one_line(part) for part in self._finding() if part)

    def _repr_html_(self) -> str:
        """The finding, and the rows as a table; nothing in it is taken for HTML."""
        found, figures = (escape(one_line(part)) for part in self._finding())
        return f"<p><b>{found}</b>{', ' if figures else ''}{figures}</p>{html_table(self._in_table())}"

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draw it.

        Args: axes: of matplotlib, to draw on; None: new ones, which a notebook shows by itself.

        Raises:
            ValueError: if there is no figure that could be drawn.
        """
        from matplotlib import pyplot

        with house_style():
            if axes is None:
                _, axes = pyplot.subplots()
            self._draw(axes)
        return axes

    def to_dataframe(self) -> "DataFrame":
        """All figures as a data frame of pandas, whose columns are named as in JSON.

        Raises:
            ImportError: if pandas is not installed; it comes with no extra of ours.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("a data frame needs pandas, which is not installed: pip install pandas") from error
        return DataFrame(self._rows())


def house_style() -> AbstractContextManager[None]:
    """The style of our figures, while it lasts."""
    from matplotlib import style

    return style.context("llm_mdp.report.figures")


def one_line(text: str) -> str:
    """A text on one line, as it can be shown anywhere."""
    return visible(" ".join(text.split()))


def figure(value: Any) -> str:
    """A value in a table: four digits of a number, a dash for what is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def html_table(rows: list[dict[str, Any]]) -> str:
    """Rows as a table of HTML, escaped, without columns in which nothing stands; a long one can be scrolled."""
    names = [name for name in rows[0] if any(row[name] not in (None, "") for row in rows)] if rows else []
    if not names:
        return ""
    head = "".join(f"<th>{escape(one_line(name.replace('_', ' ')))}</th>" for name in names)
    lines = (
        f"<tr>{''.join(f'<td>{escape(figure(row[name]))}</td>' for name in names)}</tr>" for row in rows[:MOST_ROWS]
    )
    more = f"<p>and {len(rows) - MOST_ROWS:,} rows more</p>" if len(rows) > MOST_ROWS else ""
    return (
        '<div style="max-height:32em;overflow:auto"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{more}</div>"
    )


def ends(name: str, interval: "tuple[float, float] | list[float] | None") -> dict[str, float | None]:
    """An interval as two columns."""
    low, high = (None, None) if interval is None else interval
    return {f"{name}_low": low, f"{name}_high": high}
