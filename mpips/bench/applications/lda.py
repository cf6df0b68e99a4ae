"""`mpips bench lda`: time to the likelihood that tomotopy reaches on the same documents."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.errors import InputError
from mpips.rundir.progress import Column, seconds, si, significant

DESCRIPTION = """\
Topics of the same documents, by tomotopy (collapsed Gibbs, one thread) and by the job `lda`: first tomotopy runs its
sweeps; then the job runs until its joint log-likelihood, by the same formula, is as high. Times do not include reading
the data, nor tomotopy's evaluation of the likelihood; they include the job's, after each sweep. alpha and beta are the
same, and fixed.

  mpips bench lda                                        the project's own data: 395 Reuters stories
  mpips bench lda --train 20news.train.ldac.gz --topics 1000,100
  mpips bench lda --train 20news.train.ldac.gz --rates 10,100,1000,10000
  mpips bench lda --set lda.sampler='"mh"'

With --rates: tokens per second of the job for these numbers of topics, over a few sweeps from the twentieth on, without
tomotopy.
"""

COLUMNS = (
    Column("topics", "topics", 6, si),
    Column("theirs", "tomotopy", 9, seconds),
    Column("their_rate", "tokens/s", 8, si),
    Column("per_token", "LL a token", 10, significant(5)),
    Column("ours", "mpips", 9, seconds),
    Column("sweeps", "sweeps", 6),
    Column("our_rate", "tokens/s", 8, si),
    Column("ratio", "mpips/tomotopy", 8, significant(2)),
)
RATES = (
    Column("topics", "topics", 6, si),
    Column("our_rate", "tokens/s", 9, si),
    Column("per_token", "LL a token", 10, significant(5)),
)
ALPHA, BETA = 0.1, 0.01
FIRST, LAST = 20, 25
"""The sweeps between which rates are measured."""


class TomotopyResult(NamedTuple):
    """The result of tomotopy."""

    seconds: float
    likelihood: float
    tokens: int


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark; return 1 if mpips did not reach the likelihood."""
    parser = _runs.common_parser("lda", DESCRIPTION, repeat=1)
    numbers = _runs.listed(_runs.count)
    parser.add_argument("--topics", type=numbers, default=[20], metavar="K,...", help="default 20")
    parser.add_argument(
        "--sweeps", type=_runs.at_least(1), default=50, metavar="N", help="sweeps of tomotopy; default 50"
    )
    parser.add_argument(
        "--rates", type=numbers, metavar="K,...", help="measure only rates, for these numbers of topics"
    )
    options = parser.parse_args(arguments)
    if options.test:
        raise InputError("--test: this benchmark does not evaluate on test data")
    settings = [*_overrides(options), f"lda.alpha={ALPHA}", f"lda.beta={BETA}"]
    job_file = _runs.job_file("job.toml", "lda")
    conditions, rows = _runs.conditions(), []
    with _runs.folders(options.keep) as folder:
        if options.rates:
            for topics in options.rates:
                note(f"{topics:,} topics: {LAST} sweeps")
                done = _run(job_file, folder / f"rate-{topics}", settings, topics, LAST, options.launcher)
                rows.append({"topics": topics} | rate(done))
        else:
            check_installed()
            for number in range(options.repeat):
                for topics in options.topics:
                    note(f"{topics:,} topics: tomotopy, {options.sweeps} sweeps")
                    theirs = tomotopy(_files(options), topics, options.sweeps)
                    note(f"{topics:,} topics: mpips, at most {4 * options.sweeps} sweeps")
                    done = _run(
                        job_file,
                        folder / f"{topics}-{number}",
                        settings,
                        topics,
                        4 * options.sweeps,
                        options.launcher,
                    )
                    rows.append({"topics": topics} | compare_with_tomotopy(done, theirs, options.sweeps))
    report = {"benchmark": "lda", "conditions": conditions, "alpha": ALPHA, "beta": BETA, "rows": rows}
    print(_runs.described(conditions))
    print(f"servers {options.servers}, workers {options.workers}; alpha {ALPHA}, beta {BETA}\n")
    print(_runs.table(RATES if options.rates else COLUMNS, rows))
    _runs.write_report(options.json, report)
    return 0 if all(row["ratio"] is not None for row in rows if "ratio" in row) else 1


def check_installed() -> None:
    """Raise InputError unless tomotopy is installed."""
    if find_spec("tomotopy") is None:
        raise InputError("the comparison needs tomotopy: pip install tomotopy (or use --rates)")


def _files(options: Any) -> list[Path]:
    if options.train:
        return [Path(name) for name in _runs.absolute(options.train)]
    return [_runs.job_file("job.toml", "lda").parent / "data" / "reuters395.ldac.gz"]


def _overrides(options: Any) -> list[str]:
    data = [f"data.train={json.dumps([str(file) for file in _files(options)])}"]
    if options.train:
        data.append('data.vocab=""')
    return [*data, f"layout.servers={options.servers}", f"layout.workers={options.workers}", *options.set]


def _run(
    job: Path, folder: Path, settings: Sequence[str], topics: int, sweeps: int, launcher: str
) -> list[dict[str, Any]]:
    """Run the job; return the metrics of its sweeps."""
    shape = [f"lda.topics={topics}", f"lda.sweeps={sweeps}"]
    run = _runs.run(job, folder, [*settings, *shape], launcher)
    tokens = {"tokens": run.result["metrics"]["tokens"]}
    return [line | tokens for line in _runs.events(run.folder, "sweep")]


def rate(sweeps: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the tokens per second from sweep FIRST to LAST, and the likelihood at LAST."""
    first, last = sweeps[FIRST - 1], sweeps[LAST - 1]
    elapsed = last["seconds"] - first["seconds"]
    return {
        "our_rate": (LAST - FIRST) * last["tokens"] / elapsed,
        "per_token": last["log_likelihood_per_token"],
    }


def compare_with_tomotopy(
    sweeps: Sequence[dict[str, Any]], theirs: TomotopyResult, count: int
) -> dict[str, Any]:
    """Return the time at which the job reached the likelihood of tomotopy."""
    reached = next(
        (line for line in sweeps if line.get("log_likelihood", -math.inf) >= theirs.likelihood), None
    )
    return {
        "theirs": theirs.seconds,
        "their_rate": count * theirs.tokens / theirs.seconds,
        "per_token": theirs.likelihood / theirs.tokens,
        "ours": math.nan if reached is None else reached["seconds"],
        "sweeps": None if reached is None else reached["sweep"],
        "our_rate": sweeps[-1]["tokens"] * len(sweeps) / sweeps[-1]["seconds"],
        "ratio": math.nan if reached is None else reached["seconds"] / theirs.seconds,
    }


def tomotopy(files: Sequence[Path], topics: int, sweeps: int) -> TomotopyResult:
    """Sample by tomotopy on one thread; return its seconds, and the joint log-likelihood by the job's formula."""
    import tomotopy as library  # type: ignore[import-not-found, import-untyped, unused-ignore]

    from mpips.jobs.lda.corpus import Block, open_corpus
    from mpips.jobs.lda.evaluate import doc_likelihood, topic_norm, word_likelihood

    model = library.LDAModel(k=topics, alpha=ALPHA, eta=BETA, seed=1)
    model.optim_interval = 0
    with TemporaryDirectory() as scratch, open_corpus(files, None, 0, 1, Path(scratch)) as corpus:
        for b in range(corpus.blocks):
            block = corpus.load(b)
            names = [str(word) for word in range(corpus.vocabulary)]
            for first, last in zip(block.ptr[:-1].tolist(), block.ptr[1:].tolist(), strict=True):
                if last > first:
                    model.add_doc([names[word] for word in block.words[first:last].tolist()])
        tokens, vocabulary = corpus.tokens, corpus.vocabulary
    model.train(0)
    begin = perf_counter()
    model.train(sweeps, workers=1)
    elapsed = perf_counter() - begin
    docs = [(np.asarray(doc.words, np.int32), np.asarray(doc.topics, np.int32)) for doc in model.docs]
    words, z = (np.concatenate(parts) for parts in zip(*docs, strict=True))
    ptr = np.cumsum([0, *(len(mine) for mine, _ in docs)])
    rows = np.zeros((max(vocabulary, int(words.max()) + 1), topics), np.int32)
    np.add.at(rows, (words, z), 1)
    likelihood = (
        doc_likelihood(Block(ptr.astype(np.int64), words), z, topics, np.full(topics, ALPHA))
        + word_likelihood(rows, BETA)
        + topic_norm(rows.sum(0).astype(np.int64), BETA, vocabulary)
    )
    return TomotopyResult(elapsed, likelihood, tokens)
