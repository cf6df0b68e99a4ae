"""Elements of an HTML page: tables, legends, cards and sections; formatting of values.

`Html` is text that is HTML already, and only this module makes it. All other text is escaped, so that no name, value or
message of a run can be markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mpips.process.printable import printable
from mpips.rundir.progress import si

ALL = "all"
"""The entry of a table where everything was saved."""
MOST_ROWS = 2000
"""Largest number of rows of a table or a chart."""
_EMPTY = frozenset({"meta", "line", "rect", "circle", "polyline"})
"""Elements without an end tag."""


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


def html(value: object) -> Html:
    """Return a value as HTML: text is escaped, and its control characters are shown as escapes."""
    return value if isinstance(value, Html) else Html(escape(printable(value)))


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Concatenate values."""
    return Html(between.join(map(html, parts)))


def element(name: str, /, *inside: object, **attributes: object) -> Html:
    """Return an element.

    Args:
        name: the element's name; from the page's own code, as are the attributes' names.
        inside: its contents, in order.
        attributes: attribute values; None leaves one out. `class_` is class, `text_anchor` is text-anchor.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(printable(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _EMPTY and not inside:
        return Html(f"<{name}{given}/>")
    return Html(f"<{name}{given}>{joined(inside)}</{name}>")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], differs: Sequence[bool] = ()) -> Html:
    """Return a table; columns other than the first whose entries start with digits are right-aligned."""
    whole = [list(row) for row in rows]
    listed = whole[:MOST_ROWS]
    right = [
        column > 0 and all(row[column][:1].isdigit() or row[column] == ALL for row in listed if row[column])
        for column in range(len(head))
    ]
    kinds = ["number" if each else None for each in right]
    titles = [element("th", title, class_=kind) for kind, title in zip(kinds, head, strict=True)]
    body = []
    for number, row in enumerate(listed):
        cells = [element("td", cell, class_=kind) for kind, cell in zip(kinds, row, strict=True)]
        stands_out = number < len(differs) and differs[number]
        body.append(element("tr", *cells, class_="differs" if stands_out else None))
    made = element("table", element("thead", element("tr", *titles)), element("tbody", *body))
    return joined([made, more(len(whole) - len(listed))])


def more(count: int) -> Html:
    """Return the number of rows not shown; empty if all are."""
    return element("p", f"and {count:,} more", class_="soft") if count > 0 else Html()


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Return a legend of colours: (class, text)."""
    items = [element("span", element("i", class_=kind), text) for kind, text in entries]
    return element("div", *items, class_="legend")


def card(title: str, *body: object) -> Html:
    """Return a frame with a heading."""
    return element("div", element("h3", title), *body, class_="card")


def section(title: str, intro: str, *bodies: Html) -> Html:
    """Return a section; empty if it has no contents."""
    kept = [body for body in bodies if body]
    if not kept:
        return Html()
    return element("section", element("h2", title), element("p", intro, class_="soft"), *kept)


def pair(*cards: Html) -> Html:
    """Return cards side by side, where there is room."""
    kept = [each for each in cards if each]
    return element("div", *kept, class_="pair") if kept else Html()


def figure(value: Any) -> str:
    """Return a value in readable form."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1e5:
        if abs(value) >= 1e7:
            return si(value)
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return f"{value:.6g}"
