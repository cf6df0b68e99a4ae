"""The templates of pages and charts (`templates/`), which escape all text: no name or message of a run is markup.

`html` has the macros of `templates/parts.html`: each returns a part of a page as `Html`. Other values that are put
into a template are text: escaped, with control characters shown as escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mpips.process.printable import printable
from mpips.rundir.progress import si

Html: TypeAlias = Markup
"""Text that is HTML, and is not escaped again."""
ALL = "all"
"""The entry of a table where everything was saved."""
MOST_ROWS = 2000
"""Largest number of rows of a table or a chart."""


def _finished(value: object) -> object:
    """Return a template's value with its control characters shown; Jinja escapes the result, unless it is HTML."""
    return value if isinstance(value, Html) else printable(value)


TEMPLATES = Environment(
    loader=PackageLoader("mpips.report"),
    autoescape=True,
    finalize=_finished,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class _Parts(Protocol):
    """The macros of a file of templates."""

    def __getattr__(self, name: str, /) -> Callable[..., Html]: ...


html = cast(_Parts, TEMPLATES.get_template("parts.html").module)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], differs: Sequence[bool] = ()) -> Html:
    """Return a table; columns other than the first whose entries start with digits are right-aligned."""
    whole = [list(row) for row in rows]
    listed = whole[:MOST_ROWS]
    right = [
        column > 0 and all(row[column][:1].isdigit() or row[column] == ALL for row in listed if row[column])
        for column in range(len(head))
    ]
    kinds = ["number" if each else None for each in right]
    marked = [*differs, *([False] * len(listed))]
    return html.table(head, listed, kinds, marked, len(whole) - len(listed))


def figure(value: Any) -> str:
    """Return a value in readable form."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1e5:
        if abs(value) >= 1e7:
            return si(value)
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return f"{value:.6g}"
