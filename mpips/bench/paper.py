"""`mpips bench paper`: the paper's evaluation, again, at this scale, beside its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._paper import code_lines, delays, page, sketches, solvers, topics, traffic
from mpips.bench._paper.experiment import Experiment, Lab
from mpips.bench._runs import at_least, note
from mpips.bench.sparse_lr import FLIGHTS_OPTIMUM
from mpips.errors import InputError

DESCRIPTION = """\
The experiments of the paper's evaluation, at this machine's scale, on real data and with stragglers injected: the
figures beside the paper's, with plots: what agrees, what does not, and why. Takes about fifteen minutes.

  mpips bench paper                             all of it: writes docs/reproduction.md, and plots beside it
  mpips bench paper --only delay,topics         only these anew; the others stay as they were measured
  mpips bench paper --only none                 only the page, of what was measured before
  mpips bench paper --train news20b.train.svm.xz --optimum 1056.5146 --corpus 20news.train.ldac.gz

  lines      Table 3, lines of code             delay      Figure 13, time by delay
  solvers    Figures 9 and 10, three systems    topics     Figure 14, LDA on more machines
  filters    Figures 11 and 12, traffic         sketch     Table 5, inserts a second
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
    """Run the experiments, and write the page."""
    parser = _runs.parser("paper", DESCRIPTION)
    parser.add_argument("--only", type=_runs.listed(_known), default=list(EXPERIMENTS), metavar="NAMES",
                        help=f"of {', '.join(EXPERIMENTS)}; or none; default all")  # fmt: skip
    parser.add_argument("--repeat", type=at_least(1), default=3, metavar="N", help="rounds; default 3")
    parser.add_argument("--train", action="append", default=[], metavar="FILE",
                        help="examples for `solvers`, `filters` and `delay`; default: jobs/sparse_lr's")  # fmt: skip
    parser.add_argument("--optimum", type=at_least(0.0, float), metavar="F",
                        help="with --train: the optimum at l1 = 1")  # fmt: skip
    parser.add_argument("--corpus", action="append", default=[], metavar="FILE",
                        help="documents for `topics`; default: those of jobs/lda")  # fmt: skip
    parser.add_argument("--out", default="docs", metavar="DIR", help="where the page goes; default docs")
    asked = parser.parse_args(arguments)
    names = [name for name in asked.only if name != "none"]
    out = Path(asked.out)
    figures = out / "reproduction"
    found = before(figures / MEASURED) if set(names) != set(EXPERIMENTS) else {}
    if bool(asked.train) != (asked.optimum is not None):
        raise InputError(
            "--train and --optimum belong together: `mpips bench sparse_lr --train FILE` finds it"
        )
    train, corpus = (
        _runs.absolute(asked.train),
        _runs.absolute(asked.corpus),
    )  # what is wrong is said before anything is run
    missing = [name for name in EXPERIMENTS if name not in found and name not in names]
    if missing:
        raise InputError(f"{figures / MEASURED} has nothing of {', '.join(missing)}: run them too")
    files = [f" --{kind} {Path(file).name}" for kind in ("train", "corpus") for file in getattr(asked, kind)]
    given = "".join(files) + ("" if asked.optimum is None else f" --optimum {asked.optimum:.10g}")
    best = FLIGHTS_OPTIMUM if asked.optimum is None else asked.optimum
    figures.mkdir(parents=True, exist_ok=True)
    with _runs.folders(asked.keep) as folder:
        for name in names:
            note(f"--- {EXPERIMENTS[name].ITEM}")
            about = _runs.conditions() | {"command": f"mpips bench paper --only {name}{given}"}
            lab = Lab(folder / name, asked.launcher, asked.repeat, train, best, corpus)
            lab.folder.mkdir()
            found[name] = {"about": about, **EXPERIMENTS[name].measure(lab)}
            (figures / MEASURED).write_text(json.dumps(found, indent=1) + "\n")
    sections = {name: each.tell(found[name]) for name, each in EXPERIMENTS.items()}
    for each in sections.values():
        for name, picture in each.pictures.items():
            (figures / f"{name}.svg").write_text(page.drawn(picture))
    told = page.written(sections, {name: found[name]["about"] for name in sections}, figures.name)
    (out / "reproduction.md").write_text(told)
    print(page.summary(sections))
    print(f"\n{out / 'reproduction.md'}")
    return 0


def _known(name: str) -> str:
    if name not in (*EXPERIMENTS, "none"):
        raise ValueError(name)
    return name


def before(path: Path) -> dict[str, Any]:
    """Read what was measured before; nothing if nothing was."""
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: is not what this command wrote: {error}") from None
    return found
