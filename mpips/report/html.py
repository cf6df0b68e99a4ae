"""Pieces of a page: elements, tables, legends, cards and sections; values as people read them.

`Html` is text that is HTML already, and only what stands here makes it. All other text that is put into a page is
escaped on the way, so that no name, value or message of a run can be markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mpips.process.printable import printable
from mpips.rundir.progress import si

ALL = "all"
"""What a table says where everything was saved."""
MOST_ROWS = 2000
"""Rows of a table or a chart that are shown."""
_EMPTY = frozenset({"meta", "line", "rect", "circle", "polyline"})
"""Elements without an end."""


class Html(str):
    """Text that is HTML."""

    __slots__ = ()


def html(value: object) -> Html:
    """Give a value as HTML: text is escaped, and its control characters are shown as escapes."""
    return value if isinstance(value, Html) else Html(escape(printable(value)))


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Put values one after the other."""
    return Html(between.join(map(html, parts)))


def element(name: str, /, *inside: object, **attributes: object) -> Html:
    """Write an element.

    Args:
        name: the element's; of the page's own, as are the attributes' names.
        inside: what it holds, one after the other.
        attributes: what they are; None leaves one out. `class_` is class, `text_anchor` is text-anchor.
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
    """Write a table; columns but the first with digits first are set to the right."""
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
    """Say how many are not shown; nothing if all are."""
    return element("p", f"and {count:,} more", class_="soft") if count > 0 else Html()


def legend(entries: Iterable[tuple[str, str]]) -> Html:
    """Say what colours mean: (class, text)."""
    items = [element("span", element("i", class_=kind), text) for kind, text in entries]
    return element("div", *items, class_="legend")


def card(title: str, *body: object) -> Html:
    """Frame something under a heading."""
    return element("div", element("h3", title), *body, class_="card")


def section(title: str, intro: str, *bodies: Html) -> Html:
    """Write a section; nothing if it has no contents."""
    kept = [body for body in bodies if body]
    if not kept:
        return Html()
    return element("section", element("h2", title), element("p", intro, class_="soft"), *kept)


def pair(*cards: Html) -> Html:
    """Set cards side by side, where there is room."""
    kept = [each for each in cards if each]
    return element("div", *kept, class_="pair") if kept else Html()


def figure(value: Any) -> str:
    """Write a value as people read it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1e5:
        if abs(value) >= 1e7:
            return si(value)
        return f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
    return f"{value:.6g}"
