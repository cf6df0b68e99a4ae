"""`mpips infer RUN --follow`: answer lines of text by the model of a run that goes on.

    this thread                                   another thread
    -----------                                   --------------
    take the lines that are there; answer each    each second: read what is new in the run, and say its lag
    by the newest model; write, flush

All lines that have come meanwhile are answered together, so that many take little time each and one does not wait.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from mpips.client.following import FollowedModel, follow
from mpips.client.model import Model
from mpips.errors import InputError, MpipsError, Outdated
from mpips.process.printable import one_line
from mpips.rundir.claim import is_held
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import named_run

EVERY = 1.0
"""Seconds between two looks for a newer model."""
BLOCK = 1 << 16
"""Bytes that are read at once."""


def serve(run: str, program: str | None, max_lag: float | None) -> int:
    """Answer the lines of the standard input until its end; return the exit code."""
    model = _once_begun(run, program, max_lag)
    ended = threading.Event()
    reading = threading.Thread(target=_keep_new, args=(model, ended), daemon=True)
    reading.start()
    try:
        return 1 if answer_all(model, lines_of(sys.stdin.fileno())) else 0
    finally:
        ended.set()


def lines_of(file: int) -> Iterator[list[str]]:
    """Yield the lines that have come through a file descriptor, without their ends, as they come."""
    rest: list[bytes] = []
    while block := os.read(file, BLOCK):
        lines, newline, after = block.rpartition(b"\n")
        if newline:
            yield [_text(line) for line in b"".join([*rest, lines]).split(b"\n")]
            rest = []
        rest.append(after)
    if last := b"".join(rest):
        yield [_text(last)]


def _text(line: bytes) -> str:
    return line.removesuffix(b"\r").decode("utf-8", "surrogateescape")


def answer_all(model: Model, blocks: Iterator[list[str]]) -> int:
    """Write an answer for each line; return how many could not be answered."""
    head, wrong, first = "", 0, True
    for lines in blocks:
        if first:
            lines[0] = lines[0].removeprefix("\ufeff")
            if model.is_head(lines[0]):
                head = lines.pop(0)
            first = False
        answers = list(_answers(model, lines, head))
        wrong += sum(failed for _, failed in answers)
        sys.stdout.writelines(f"{text}\n" for text, _ in answers)
        sys.stdout.flush()
    return wrong


def _answers(model: Model, lines: Sequence[str], head: str) -> Iterator[tuple[str, bool]]:
    """Yield the answer to each line, and whether it is an error."""
    try:
        yield from [(text, False) for text in model.score_lines(lines, head)]
        return
    except Outdated as error:
        yield from [(_refusal(error), True)] * len(lines)
        return
    except InputError as error:
        if len(lines) <= 1:
            yield from [(_refusal(error), True)] * len(lines)
            return
    # One of them is wrong: halves, so that few are answered alone.
    half = len(lines) // 2
    yield from _answers(model, lines[:half], head)
    yield from _answers(model, lines[half:], head)


def _refusal(error: Exception) -> str:
    return one_line(f"error: {error}")


def _once_begun(run: str, program: str | None, max_lag: float | None) -> FollowedModel:
    """Follow a run, which may still have to write its first checkpoint."""
    said = False
    while True:
        try:
            model = follow(run, program=program, every=None, max_lag=max_lag)
        except InputError:
            folder = RunFolder(named_run(run))
            if not folder.run.exists() or folder.read_result() is not None:
                raise
        else:
            _say_lag(model)
            return model
        if not said:
            said = True
            what = (
                "yet; waiting" if is_held(folder.path) else "and was killed, or its hosts are gone; waiting"
            )
            print(
                f"mpips: {folder.path}: has no checkpoint {what} for the first", file=sys.stderr, flush=True
            )
        time.sleep(EVERY)


def _keep_new(model: FollowedModel, ended: threading.Event) -> None:
    """Read what is new until the end."""
    said = ""
    while not ended.wait(EVERY):
        try:
            if model.refresh():
                _say_lag(model)
            text = (
                f"{model.source}: {why}; this model answers until it is resumed"
                if (why := model.ended)
                else ""
            )
        except (MpipsError, OSError) as error:
            # The model before answers meanwhile, within its lag.
            text = one_line(str(error))
        if text not in ("", said):
            print(f"mpips: warning: {text}", file=sys.stderr, flush=True)
        said = text


def _say_lag(model: FollowedModel) -> None:
    print(f"mpips: {model.source}: {model.lag:.1f} s behind the run", file=sys.stderr, flush=True)
