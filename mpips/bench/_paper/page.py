"""The page about the paper's evaluation, in Markdown, and its plots."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from mpips.bench._paper.experiment import Picture, Section, table
from mpips.process.printable import printable
from mpips.report import charts
from mpips.report.html import Html

WIDTH = 150
"""Width of the text."""
TEXT = "page.md"
"""The text: an introduction, then `## NAME: title` for each experiment: the setup, then the reasons."""


def drawn(picture: Picture) -> str:
    """Return a plot as an SVG file, for light and dark backgrounds."""
    return charts.standalone(picture.svg, picture.legend)


def texts() -> dict[str, tuple[str, str]]:
    """Read the text: (title, text) by the experiment's name, which is "" for the introduction."""
    whole = files("mpips.bench._paper").joinpath(TEXT).read_text(encoding="utf-8")
    first, *rest = whole.split("\n## ")
    title, _, text = first.removeprefix("# ").partition("\n")
    found = {"": (title, text.strip())}
    for each in rest:
        head, _, text = each.partition("\n")
        name, _, title = head.partition(": ")
        found[name] = (title, text.strip())
    return found


def written(sections: Mapping[str, Section], about: Mapping[str, Any], folder: str) -> str:
    """Format the page; its plots are in `folder`, next to it."""
    text = texts()
    title, introduction = text[""]
    parts = [f"# {title}", _filled(introduction), claims(sections)]
    for name, each in sections.items():
        title, words = text[name]
        setting, _, why = words.format(**each.facts).partition("\n\n")
        parts += [f"## {title}", _filled(setting)]
        for file, picture in each.pictures.items():
            parts.append(f"![{picture.caption}]({folder}/{file}.svg)\n\n*{picture.caption}*")
        parts += [each.table, _filled(why)]
        at = about[name]
        code = f"; {at['commit']}" if "commit" in at else ""
        where = Html.escape(printable(f"{at['cpu']}, {at['cores']} cores; {at['at'][:10]}{code}"))
        parts.append(f"<sub>{where}; `{printable(at['command'], keep='')}`</sub>")
    return "\n\n".join(parts) + "\n"


def claims(sections: Mapping[str, Section]) -> str:
    """Format the paper's claims and our figures."""
    rows = [
        (
            claim.what,
            claim.paper,
            claim.here,
            claim.agrees if claim.agrees == "yes" else f"**{claim.agrees}**",
        )
        for each in sections.values()
        for claim in each.claims
    ]
    return table(("", "the paper", "here", "agrees"), rows)


def summary(sections: Mapping[str, Section]) -> str:
    """Format the same for a terminal."""
    rows = [claim for each in sections.values() for claim in each.claims]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        f"{row.what:<{widths[0]}}  {row.paper:>{widths[1]}}  {row.here:>{widths[2]}}  {row.agrees}"
        for row in rows
    )


def _filled(text: str) -> str:
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    options = {"width": WIDTH, "break_long_words": False, "break_on_hyphens": False}
    return "\n\n".join(textwrap.fill(paragraph, **options) for paragraph in paragraphs)  # type: ignore[arg-type]
