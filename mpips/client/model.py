"""The base class of trained models: what `mpips.load_model` returns, and `mpips infer` and `query` use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mpips.errors import UsageError
from mpips.keys import KeyArray

Job = Mapping[str, Mapping[str, Any]]
"""The tables of a job file."""
ANSWERS = (
    "predict",
    "predict_proba",
    "decision_function",
    "transform",
    "query",
    "score_lines",
    "score_files",
    "show",
)


class Model:
    """A trained model in memory, applied without MPI; each program has its own class, with some of these methods.

    A program offers its models by a function `load_model(source, job)`, which returns an instance of a class derived
    from this one. `source` is the path of a run's folder, of a checkpoint, or of a model file that names the program;
    `job` are the tables of its job, {} if they are not known. Then `mpips.load_model`, `mpips infer` and `mpips query`
    work with it.

    >>> class Mean(Model):
    ...     def predict(self, data):
    ...         return data.mean(axis=1)
    >>> import numpy as np
    >>> Mean().predict(np.ones((2, 3))).tolist()
    [1.0, 1.0]
    >>> Mean().transform(np.ones((2, 3)))
    Traceback (most recent call last):
        ...
    mpips.errors.UsageError: Mean has no `transform`; it has: predict

    With these, `mpips query` and all forms of `mpips infer` work, too:

    >>> class Rates(Mean):
    ...     def query(self, keys):
    ...         return [len(key) for key in keys]
    ...
    ...     def show(self, out):
    ...         print("two rates")
    ...
    ...     def score_files(self, files, out):
    ...         print(*(file.name for file in files))
    ...
    ...     def is_head(self, line):
    ...         return line == "rate"
    ...
    ...     def score_lines(self, lines, head=""):
    ...         return [str(2 * float(line)) for line in lines]
    ...
    ...     def vectors(self):
    ...         return {"rates": (np.array([3, 8], np.uint64), np.ones((2, 1)))}
    ...
    ...     def names(self):
    ...         return ["slow", "fast"]
    >>> model = Rates()
    >>> model.show(None)
    two rates
    >>> model.score_files([Path("new.txt")], None)
    new.txt
    >>> model.query(["a", "bcd"]), list(model.vectors()), model.names()
    ([1, 3], ['rates'], ['slow', 'fast'])
    >>> model.is_head("rate"), model.score_lines(["1.5", "2"])
    (True, ['3.0', '4.0'])
    """

    def predict(self, data: Any) -> NDArray[Any]:
        """Return the prediction for each example, [n]."""
        raise self._missing("predict")

    def predict_proba(self, data: Any) -> NDArray[Any]:
        """Return the probability of each class for each example, f8[n, classes]."""
        raise self._missing("predict_proba")

    def decision_function(self, data: Any) -> NDArray[Any]:
        """Return a score for each example, f8[n]; the class is its sign."""
        raise self._missing("decision_function")

    def transform(self, data: Any) -> NDArray[Any]:
        """Return another representation of each example, f8[n, width]."""
        raise self._missing("transform")

    def query(self, keys: Sequence[str]) -> Sequence[object]:
        """Return what the model has for each of some keys, given as text: the answers of `mpips query`."""
        raise self._missing("query")

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Write the predictions for the examples of files to `out`, None: standard output: `mpips infer RUN FILE`."""
        raise self._missing("score_files")

    def is_head(self, line: str) -> bool:
        """Return whether a first line of text is no example, but names the columns of those after it."""
        return False

    def score_lines(self, lines: Sequence[str], head: str = "") -> Sequence[str]:
        """Return the prediction for the example in each line of text, as text: the answers of `mpips infer --follow`.

        `head` is the line that names their columns, if there was one (`is_head`).

        Raises:
            InputError: a line is no example.
        """
        raise self._missing("score_lines")

    def show(self, out: Path | None) -> None:
        """Describe the model on standard output, and in `out` if it is given: `mpips infer RUN`."""
        raise self._missing("show")

    def vectors(self) -> dict[str, tuple[KeyArray, NDArray[Any]]]:
        """Return the vectors that the model holds, by name: keys in ascending order, u8[n], and rows, [n, width]."""
        return {}

    def names(self) -> Sequence[str]:
        """Return a name for each key of the only vector, "" for one without; [] if its keys have no names."""
        return []

    def _missing(self, name: str) -> UsageError:
        own = [each for each in ANSWERS if getattr(type(self), each) is not getattr(Model, each)]
        return UsageError(
            f"{type(self).__name__} has no `{name}`; it has: {', '.join(own) or 'none of these'}"
        )
