"""The documentation site: `make docs`. The source folder is the whole tree, so that links are the same on GitHub."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))
import generated

project = "mpips"
author = "the mpips developers"
root_doc = "docs/index"
include_patterns = [
    "docs/**/*.md", "docs/*.md", "jobs/*/*.md", "examples/README.md", "packaging/README.md",
    "checkpoints/README.md",
    "slurm/README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md",
]  # fmt: skip
exclude_patterns = [".*", "build", "dist", "runs", "tests", "mpips", "*.egg-info"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
nitpicky = True
# Types of annotations that have no page: only links to public names are checked.
nitpick_ignore_regex = [(r"py:(class|data|obj|exc|meth|attr|func)", r"(?!mpips\.\w+$).*")]
# Members of several classes have the same name, as fields that docstrings list; the first one is good.
suppress_warnings = ["ref.python"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
# It takes 1 GB, and has no part in what docstrings say.
autodoc_mock_imports = ["torch"]
default_role = "code"

html_theme = "furo"
html_title = "mpips"
html_show_sourcelink = False
html_copy_source = False
html_extra_path = ["start"]
html_theme_options = {"navigation_with_keys": True}


def insert_generated(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace each `<!-- generated: NAME -->` by what the code says, and link names to their docstrings."""
    text = re.sub(r"<!-- generated: (\w+) -->", lambda marked: generated.PARTS[marked[1]](), source[0])
    if docname == "docs/api":
        text = re.sub(r"^\| `(\w+)` \|", r"| {py:obj}`\1 <mpips.\1>` |", text, flags=re.M)
    source[0] = text


def keep_bars(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Leave the bars of |w| as they are: in docstrings they name no substitution."""
    code = re.compile(r"(`[^`]*`)")
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = code.split(line)
            lines[number] = "".join(part if part[:1] == "`" else part.replace("|", "\\|") for part in parts)


def sign(
    app: Sphinx, what: str, name: str, thing: type, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show the arguments of modules for PyTorch, whose class hides them where it is not installed."""
    if what != "class" or thing.__module__ != "mpips.torch":
        return None
    shown = [
        f"{each.name}: {each.annotation}"
        + (
            ""
            if each.default is each.empty
            else f" = {getattr(each.default, '__name__', repr(each.default))}"
        )
        for each in list(inspect.signature(thing.__init__).parameters.values())[1:]
    ]
    return f"({', '.join(shown)})", returns


def setup(app: Sphinx) -> None:
    """Connect what is generated."""
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-process-docstring", keep_bars)
    app.connect("source-read", insert_generated)
