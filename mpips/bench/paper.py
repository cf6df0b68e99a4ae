"""`mpips bench paper`: the paper's evaluation at the scale of this machine, compared with its figures."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpips import __version__
from mpips.bench import _runs
from mpips.bench._paper import code_lines, delays, page, sketches, solvers, topics, traffic
from mpips.bench._paper.experiment import Experiment, Section, Setup
from mpips.bench._runs import at_least, note
from mpips.bench.applications.sparse_lr import FLIGHTS_OPTIMUM
from mpips.errors import InputError
from mpips.provenance import output_file
from mpips.provenance.git_state import state_of

DESCRIPTION = """\
The experiments of the paper's evaluation, at the scale of this machine, on real data and with injected stragglers:
comparison with the paper's figures, plots, and reasons for differences. Takes about fifteen minutes.

  mpips bench paper                             all experiments: writes docs/reproduction*.md and their plots
  mpips bench paper --only delay,topics         measure only these again, and keep the others
  mpips bench paper --only none                 write only the pages, from earlier measurements
  mpips bench paper --train news20b.train.svm.xz --optimum 1056.5146 --corpus 20news.train.ldac.gz

  lines      Table 3, lines of code             delay      Figure 13, time by delay
  solvers    Figures 9 and 10, three systems    topics     Figure 14, LDA on more machines
  filters    Figures 11 and 12, traffic         sketch     Table 5, inserts per second
"""

EXPERIMENTS: dict[str, Experiment] = {
    "lines": code_lines,
    "solvers": solvers,
    "filters": traffic,
    "delay": delays,
    "topics": topics,
    "sketch": sketches,
}
MEASURED = "measured.json"


def main(arguments: Sequence[str]) -> int:
    """Run the experiments, and write the pages."""
    parser = _runs.parser("paper", DESCRIPTION)
    names_of = _runs.listed(_runs.one_of([*EXPERIMENTS, "none"]))
    parser.add_argument("--only", type=names_of, default=list(EXPERIMENTS), metavar="NAMES",
                        help=f"of {', '.join(EXPERIMENTS)}; or none; default all")  # fmt: skip
    parser.add_argument("--repeat", type=at_least(1), default=3, metavar="N", help="rounds; default 3")
    parser.add_argument("--train", action="append", default=[], metavar="FILE",
                        help="examples for `solvers`, `filters` and `delay`; default: jobs/sparse_lr's")  # fmt: skip
    parser.add_argument("--optimum", type=at_least(0.0, float), metavar="F",
                        help="the optimum at l1 = 1, for --train")  # fmt: skip
    parser.add_argument("--corpus", action="append", default=[], metavar="FILE",
                        help="documents for `topics`; default: those of jobs/lda")  # fmt: skip
    parser.add_argument("--out", default="docs", metavar="DIR", help="the folder of the pages; default docs")
    options = parser.parse_args(arguments)
    names = [name for name in options.only if name != "none"]
    out = Path(options.out)
    figures = out / "reproduction"
    found = before(figures / MEASURED) if set(names) != set(EXPERIMENTS) else {}
    if bool(options.train) != (options.optimum is not None):
        raise InputError(
            "--train needs --optimum, and vice versa: `mpips bench sparse_lr --train FILE` computes it"
        )
    # Wrong options are reported before any run.
    train, corpus = _runs.absolute(options.train), _runs.absolute(options.corpus)
    for name, text in page.texts().items():
        output_file.check(out / f"{name}.md", own=re.escape(f"# {text.title}\n".encode()))
    for drawn in figures.glob("*.svg"):
        output_file.check(drawn, own=_runs.PLOT)
    if not found:
        output_file.check(figures / MEASURED, own=rb'\{\n "\w+": \{\n  "about": ')
    missing = [name for name in EXPERIMENTS if name not in found and name not in names]
    if missing:
        raise InputError(f"{figures / MEASURED} has no measurements of {', '.join(missing)}: run them too")
    results = {name: compare(name, found[name]) for name in EXPERIMENTS if name not in names}
    files = [
        f" --{kind} {Path(file).name}" for kind in ("train", "corpus") for file in getattr(options, kind)
    ]
    given = "".join(files) + ("" if options.optimum is None else f" --optimum {options.optimum:.10g}")
    best = FLIGHTS_OPTIMUM if options.optimum is None else options.optimum
    given += f" --repeat {options.repeat}"
    try:
        figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {options.out}: {error.strerror or error}") from None
    source = code()
    with _runs.folders(options.keep) as folder:
        for name in names:
            note(f"--- {EXPERIMENTS[name].ITEM}")
            about = _runs.conditions() | {"command": f"mpips bench paper --only {name}{given}"} | source
            setup = Setup(folder / name, options.launcher, options.repeat, train, best, corpus)
            setup.folder.mkdir()
            found[name] = {"about": about, **EXPERIMENTS[name].measure(setup)}
            (figures / MEASURED).write_text(json.dumps(found, indent=1) + "\n")
            results[name] = compare(name, found[name])
    sections = {name: results[name] for name in EXPERIMENTS}
    for each in sections.values():
        for name, picture in each.pictures.items():
            (figures / f"{name}.svg").write_text(page.drawn(picture))
    pages = page.written(sections, {name: found[name]["about"] for name in sections}, figures.name)
    for name, written in pages.items():
        (out / f"{name}.md").write_text(written)
    print(page.summary(sections), "", *(out / f"{name}.md" for name in pages), sep="\n")
    return 0


def before(path: Path) -> dict[str, Any]:
    """Read the earlier measurements; empty if there are none."""
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: was not written by this command: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: was not written by this command: it is not a table")
    return found


def compare(name: str, found: dict[str, Any]) -> Section:
    """Return the results of an experiment. InputError if the measurements are incomplete."""
    try:
        return EXPERIMENTS[name].compare(found)
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"{name}: the measurements are incomplete ({said}); run it again") from None


def code() -> dict[str, str]:
    """Identify the code: its version, and its commit if it is a checkout."""
    state = state_of(Path(__file__).resolve().parent)
    if not state:
        return {"version": __version__}
    changes = " and changes" if state.get("dirty") else ""
    return {"version": __version__, "commit": f"{state['commit'][:12]}{changes}"}
