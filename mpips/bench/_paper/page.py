"""The pages about the paper's evaluation, in Markdown, and their plots."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from mpips.bench._paper.experiment import Picture, Section, table
from mpips.process.printable import printable
from mpips.report import charts
from mpips.report.html import Html

WIDTH = 150
"""Width of the text."""
TEXT = "page.md"
"""The text of each page: `# NAME: title` and an introduction, then `## NAME: title` for each experiment: the setup,
then the reasons."""


def drawn(picture: Picture) -> str:
    """Return a plot as an SVG file, for light and dark backgrounds."""
    return charts.standalone(picture.svg, picture.legend)


class Text(NamedTuple):
    """The text of a page: its title, its introduction, and (title, text) of each experiment by its name."""

    title: str
    introduction: str
    experiments: dict[str, tuple[str, str]]


def texts() -> dict[str, Text]:
    """Read the text of each page, by its name."""
    whole = files("mpips.bench._paper").joinpath(TEXT).read_text(encoding="utf-8")
    found = {}
    for page in whole.removeprefix("# ").split("\n# "):
        first, *rest = page.split("\n## ")
        name, title, introduction = _parts(first)
        found[name] = Text(
            title, introduction, {each: (head, below) for each, head, below in map(_parts, rest)}
        )
    return found


def _parts(text: str) -> tuple[str, str, str]:
    """Cut `NAME: TITLE`, a line, and the text below it."""
    head, _, below = text.partition("\n")
    name, _, title = head.partition(": ")
    return name, title, below.strip()


def written(sections: Mapping[str, Section], about: Mapping[str, Any], folder: str) -> dict[str, str]:
    """Format the pages, by name; their plots are in `folder`, next to them. The first one has all claims."""
    made: dict[str, str] = {}
    for name, text in texts().items():
        parts = [f"# {text.title}", _filled(text.introduction)]
        if not made:
            parts.append(claims(sections))
        for experiment, (title, words) in text.experiments.items():
            parts += _section(title, words, sections[experiment], about[experiment], folder)
        made[name] = "\n\n".join(parts) + "\n"
    return made


def _section(title: str, words: str, found: Section, at: Mapping[str, Any], folder: str) -> list[str]:
    setting, _, why = words.format(**found.facts).partition("\n\n")
    parts = [f"## {title}", _filled(setting)]
    for file, picture in found.pictures.items():
        parts.append(f"![{picture.caption}]({folder}/{file}.svg)\n\n*{picture.caption}*")
    code = f"; {at['commit']}" if "commit" in at else ""
    where = Html.escape(printable(f"{at['cpu']}, {at['cores']} cores; {at['at'][:10]}{code}"))
    return [*parts, found.table, _filled(why), f"<sub>{where}; `{printable(at['command'], keep='')}`</sub>"]


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
