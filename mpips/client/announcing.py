"""What `mpips run` tells the Python process that has started it: the run's folder, as a line of JSON in a pipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from mpips.rundir.folder import RunFolder


class Begun(NamedTuple):
    """A run that begins."""

    folder: Path
    metrics: int
    """Bytes of its `metrics.jsonl` that are of earlier starts."""


def announce(descriptor: int, folder: RunFolder) -> None:
    """Tell the caller the folder, before a rank writes into it. BrokenPipeError if the caller has ended."""
    size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    os.write(descriptor, json.dumps({"folder": str(folder.path), "metrics": size}).encode() + b"\n")
    os.close(descriptor)


def announced(line: bytes) -> Begun:
    """Read such a line."""
    told = json.loads(line)
    return Begun(Path(told["folder"]), told["metrics"])
