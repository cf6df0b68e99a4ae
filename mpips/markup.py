"""Pieces of a page: tables, legends, cards and sections, as HTML text; values as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from mpips.progress import si

ALL = "all"
"""What a table says where everything was saved."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]], differs: Sequence[bool] = ()) -> str:
    """Write a table; cells are HTML, columns but the first with digits first are set to the right."""
    listed = [list(row) for row in rows]
    right = [
        column > 0 and all(row[column][:1].isdigit() or row[column] == ALL for row in listed if row[column])
        for column in range(len(head))
    ]
    kinds = [' class="number"' if each else "" for each in right]
    out = ["<table><thead><tr>"]
    out += [f"<th{kind}>{escape(title)}</th>" for kind, title in zip(kinds, head, strict=True)]
    out.append("</tr></thead><tbody>")
    for number, row in enumerate(listed):
        out.append('<tr class="differs">' if number < len(differs) and differs[number] else "<tr>")
        out += [f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)]
        out.append("</tr>")
    return "".join([*out, "</tbody></table>"])


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Say what colours mean: (class, text)."""
    items = [f'<span><i class="{kind}"></i>{escape(text)}</span>' for kind, text in entries]
    return f'<div class="legend">{"".join(items)}</div>'


def card(title: str, body: str) -> str:
    """Frame something under a heading."""
    return f'<div class="card"><h3>{escape(title)}</h3>{body}</div>'


def section(title: str, intro: str, *bodies: str) -> str:
    """Write a section; nothing if it has no contents."""
    kept = [body for body in bodies if body]
    return (
        f"<section><h2>{escape(title)}</h2><p class='soft'>{intro}</p>{''.join(kept)}</section>"
        if kept
        else ""
    )


def pair(*cards: str) -> str:
    """Set cards side by side, where there is room."""
    kept = [each for each in cards if each]
    return f'<div class="pair">{"".join(kept)}</div>' if kept else ""


def figure(value: Any) -> str:
    """Write a value as people read it."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1e5:
        return (
            si(value) if abs(value) >= 1e7 else f"{value:,.6g}" if isinstance(value, float) else f"{value:,}"
        )
    return f"{value:.6g}"
