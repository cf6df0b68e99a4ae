"""Write the man pages, one for `mpips` and one for each command, from the parsers: python -P man_pages.py FOLDER."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from argparse_manpage.manpage import Manpage

from mpips.cli.main import parser
from mpips.process.terminal.help_text import fitted

WIDTH = 71
"""Characters of a line of text, on a terminal with 80."""


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each page."""
    root = parser()
    (commands,) = (each for each in root._actions if isinstance(each, argparse._SubParsersAction))
    meanings = {each.dest: each.help or "" for each in commands._choices_actions}
    for name, command in commands.choices.items():
        yield f"mpips-{name}", page(f"mpips-{name}", command, meanings[name])
    # The options of a command have a page of their own.
    for command in commands.choices.values():
        command._actions, command._action_groups, command.description, command.epilog = [], [], None, None
    yield "mpips", page("mpips", root, "the parameter server as an MPI job")


def page(name: str, of: argparse.ArgumentParser, meaning: str) -> str:
    """Return the page of a parser."""
    for key in ("description", "epilog"):
        if text := getattr(of, key):
            setattr(of, key, "\n".join(fitted(text, WIDTH)))
    said = {"prog": name, "project_name": "mpips", "description": meaning, "version": version("mpips"),
            "manual_title": "mpips"}  # fmt: skip
    # Commands are copied: they are neither justified nor hyphenated, and examples keep their lines.
    title = name.replace("-", r"\-")
    text = str(Manpage(of, said))
    # "mpips run" is a page of the name mpips-run.
    text = re.sub(r"^\.TH .*?(?= \"1\" )", lambda _: f'.TH "{title.upper()}"', text)
    text = re.sub(
        r"(?m)^\.SH NAME\n.*", lambda _: f".nh\n.ad l\n.SH NAME\n{title} \\- {meaning}", text, count=1
    )
    return re.sub(r"(?m)((?:^  +\S.*\n)+)", r".nf\n\1.fi\n", text)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for title, content in pages():
        (target / f"{title}.1").write_text(content, encoding="utf-8")
