"""LIBLINEAR of scikit-learn, or another solver (`_solvers`), in a separate process: fits of one data set on one thread.

`python -P -m mpips.bench.applications._liblinear DATA.npz L1 SOLVER` answers each line of its input, a JSON object with
`tolerance` and `iterations`, by a line with `seconds` (of the fit alone), `objective` and `nonzeros`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mpips.bench._runs import RunFailed
from mpips.bench.applications._solvers import SOLVERS
from mpips.data import DataSpec, read, resolve
from mpips.data.examples import concatenate
from mpips.errors import InputError
from mpips.launch.mpi_launcher import THREADS
from mpips.process import interpreter, user_folders
from mpips.rundir.folder import write_json

OPTIMUM_TOLERANCE, OPTIMUM_ITERATIONS = 1e-6, 1_000_000
LOOSEST, TIGHTEST = 1.0, 1e-7
WARM = 50
"""Examples of each label in the fit before the first one that is measured."""
BISECTION_STEPS = 3
"""Steps of the bisection, in the logarithm, for the loosest tolerance that reaches the target."""

Fit = Callable[..., dict[str, Any]]


def check_installed() -> None:
    """Raise InputError unless scikit-learn is installed."""
    if importlib.util.find_spec("sklearn") is None:
        raise InputError("the comparison needs scikit-learn's liblinear: pip install 'mpips[bench]'")


def write_data(spec: DataSpec, base: Path, path: Path) -> dict[str, int]:
    """Write the training data as CSR over its distinct keys, f8; return examples, features and nonzeros."""
    examples = concatenate(read(resolve(spec, str(base)).train, spec))
    keys, indices = np.unique(examples.keys, return_inverse=True)
    values = np.ones(len(indices)) if examples.values is None else examples.values.astype(np.float64)
    np.savez(
        path,
        labels=examples.labels.astype(np.float64),
        indptr=examples.indptr.astype(np.int32),
        indices=indices.astype(np.int32),
        values=values,
    )
    return {"examples": len(examples), "features": len(keys), "nonzeros": len(indices)}


@contextmanager
def fits(data: Path, l1: float, solver: str = "liblinear") -> Iterator[Fit]:
    """Start the process, which loads the data and warms up; return `fit(tolerance, iterations)`."""
    environment = os.environ | dict.fromkeys(THREADS, "1")
    module = "mpips.bench.applications._liblinear"
    command = [*interpreter.python(), "-m", module, str(data), repr(l1), solver]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None

    def fit(tolerance: float, iterations: int = 10_000) -> dict[str, Any]:
        try:
            print(
                json.dumps({"tolerance": tolerance, "iterations": iterations}), file=process.stdin, flush=True
            )
            line = process.stdout.readline() if process.stdout else ""
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunFailed(f"{solver}'s process ended with exit code {process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    try:
        yield fit
    finally:
        process.stdin.close()
        process.terminate()
        process.wait()
        process.stdout.close()


def loosest_tolerance(fit: Fit, objective: float, solver: str = "liblinear") -> float:
    """Find approximately the loosest tolerance whose fit reaches `objective`, the fastest such fit.

    Raises:
        InputError: no fit reaches it: the objective is below the optimum.
    """
    tolerance, missed = LOOSEST, math.inf
    while (found := fit(tolerance)["objective"]) > objective:
        missed, tolerance = tolerance, tolerance / 10.0
        if tolerance < TIGHTEST:
            raise InputError(
                f"{solver} reached {found:.7g} at best, not {objective:.7g}: is --optimum too low?"
            )
    if missed < math.inf:
        for _ in range(BISECTION_STEPS):
            midpoint = math.sqrt(tolerance * missed)
            if fit(midpoint)["objective"] <= objective:
                tolerance = midpoint
            else:
                missed = midpoint
    return tolerance


def optimum(data: Path, l1: float, cache: Path | None = None) -> tuple[float, str]:
    """Return LIBLINEAR's optimum at tolerance 1e-6, from the cache if it was computed before, and its source."""
    cache = cache_file() if cache is None else cache
    name = f"{digest(data)} l1={l1!r}"
    cached = json.loads(cache.read_text()) if cache is not None and cache.is_file() else {}
    if name in cached:
        return float(cached[name]), f"liblinear, tolerance {OPTIMUM_TOLERANCE:g}, computed before"
    with fits(data, l1) as fit:
        found = fit(OPTIMUM_TOLERANCE, OPTIMUM_ITERATIONS)["objective"]
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_json(cache, {**cached, name: found})
    return float(found), f"liblinear, tolerance {OPTIMUM_TOLERANCE:g}"


def cache_file() -> Path | None:
    """Return the path of the cache of optima; None if the user has no folder for it."""
    folder = user_folders.cache()
    return None if folder is None else folder / "mpips" / "optimum.json"


def digest(data: Path) -> str:
    """Return the SHA-256 of the arrays of a data set."""
    sha = hashlib.sha256()
    with np.load(data) as arrays:
        for name in sorted(arrays.files):
            sha.update(arrays[name].tobytes())
    return sha.hexdigest()


# --- The process -----------------------------------------------------------------------------------------


def objective(x: Any, y: Any, w: Any, l1: float) -> float:
    """Return sum_i log(1 + exp(-y_i x_i.w)) + l1 |w|_1."""
    return float(np.logaddexp(0.0, -y * (x @ w)).sum() + l1 * np.abs(w).sum())


def main() -> None:
    """Compute the fits that the input requests."""
    from scipy.sparse import csr_matrix

    l1, make = float(sys.argv[2]), SOLVERS[sys.argv[3]].make
    with np.load(sys.argv[1]) as arrays:
        y = arrays["labels"]
        shape = (len(y), int(arrays["indices"].max(initial=0)) + 1)
        x = csr_matrix((arrays["values"], arrays["indices"], arrays["indptr"]), shape=shape)
    # A loose fit need not converge.
    warnings.simplefilter("ignore")
    # Some are compiled at their first fit.
    some = np.sort(np.concatenate([np.flatnonzero(y == label)[:WARM] for label in (-1.0, 1.0)]))
    make(l1, len(y), 0.1, 10).fit(x[some], y[some])
    for line in sys.stdin:
        request = json.loads(line)
        fitted = make(l1, len(y), request["tolerance"], request["iterations"])
        start = time.perf_counter()
        fitted.fit(x, y)
        elapsed = time.perf_counter() - start
        w = np.ravel(fitted.coef_) * (1.0 if fitted.classes_[1] > 0 else -1.0)
        answer = {
            "seconds": elapsed,
            "objective": objective(x, y, w, l1),
            "nonzeros": int(np.count_nonzero(w)),
            # Not of each solver.
            "iterations": int(np.max(getattr(fitted, "n_iter_", 0))),
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
