"""A trained network with the rows of its ids: the probability of clicks in files and arrays; without MPI."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import (
    ALL,
    MANIFEST,
    Cluster,
    InputError,
    Model,
    UsageError,
    VectorSpec,
    explained,
    load_range,
    npz,
    read_manifest,
    replacing,
    retry_on_loss,
    schema_error,
)
from mpips.embedding import Dense, field_keys
from mpips.jobs.ctr.clicks import Clicks
from mpips.jobs.ctr.clicks import load as load_clicks
from mpips.jobs.sparse_lr.model import finite, held_keys

MODEL = "model.npz"
SCHEMA = {
    "state": {"shape": [range(1 << 20), range(1 << 20)], "layers": str},
    "job": {"ctr": {"width": range(1, 1025), "hidden": range(1, 2**16 + 1), "seed": range(2**31 + 1)}},
}
"""What a checkpoint says of a model: numbers and fields of a click, a hash of the first layers, and the settings."""
SCORED = 8192
"""Clicks that are scored at once."""
SHOWN = 20
F8 = NDArray[np.float64]


class ClickModel(Model):
    """A network of `mpips.jobs.ctr.model`, and the rows of the ids that were trained; others have their first values.

    Data are the names of files .npz of `ids` [n, fields] and `numbers` [n, k] (and `labels`, which are not read), a
    table of these two arrays, or `mpips.jobs.ctr.clicks.Clicks`.

    Args:
        keys: u8[m], ascending: `mpips.embedding.field_keys` of the ids.
        rows: f4[m, width].
        spec: the vector of the rows, which has their first values.
        layers: f4[parameters], of the network's layers one after the other.
        shape: numbers and fields of a click, and hidden units.
    """

    def __init__(
        self,
        keys: NDArray[np.uint64],
        rows: NDArray[np.float32],
        spec: VectorSpec,
        layers: NDArray[np.float32],
        shape: tuple[int, int, int],
    ) -> None:
        numbers, fields, hidden = shape
        _check_size(len(layers), numbers, fields, spec.width, hidden)
        from mpips.jobs.ctr.model import with_parameters

        self.keys, self.rows, self.spec, self.layers, self.shape = keys, rows, spec, layers, shape
        self._network = with_parameters(layers, numbers, fields, spec.width, hidden)

    def decision_function(self, data: Any) -> F8:
        """Return the log-odds of each click, f8[n].

        Raises:
            UsageError: the data are of no form that is listed above, or have other numbers of fields or numbers.
            DataError: a file is wrong.
            InputError: a score is not finite.
        """
        return np.concatenate([np.empty(0), *(self._scores(clicks) for clicks in self._clicks(data))])

    def predict_proba(self, data: Any) -> F8:
        """Return the probabilities of no click and of a click, f8[n, 2]. Errors as `decision_function`."""
        half = 0.5 * np.tanh(0.5 * self.decision_function(data))
        return np.column_stack([0.5 - half, 0.5 + half])

    def predict(self, data: Any) -> NDArray[np.int64]:
        """Return whether each is more probably a click, 0 or 1, i8[n]. Errors as `decision_function`."""
        return (self.decision_function(data) > 0.0).astype(np.int64)

    def query(self, keys: Sequence[str]) -> list[list[float]]:
        """Return the row of each id, given as FIELD:ID; of one that was not trained its first values.

        Raises:
            InputError: one is not of this form.
        """
        found = []
        for key in keys:
            field, colon, name = key.partition(":")
            if not (colon and all(each.isascii() and each.isdigit() for each in (field, name))) or not (
                int(field) < self.shape[1] and int(name) < 2**64
            ):
                raise InputError(
                    f"{key!r} is not of the form FIELD:ID, with a field below {self.shape[1]} and a whole number"
                )
            ids = np.zeros((1, self.shape[1]), np.uint64)
            ids[0, int(field)] = int(name)
            found.append(self._rows_of(field_keys(ids)[:, int(field)])[0].tolist())
        return found

    def vectors(self) -> dict[str, tuple[NDArray[np.uint64], NDArray[Any]]]:
        """Return the rows of ids as vector `rows`, and the layers' parameters as `layers`."""
        return {
            "rows": (self.keys, self.rows),
            "layers": (np.arange(len(self.layers), dtype=np.uint64), self.layers[:, None]),
        }

    def score_files(self, files: Sequence[Path], out: Path | None) -> None:
        """Write a line for each click of the files: its number from 0, and the probability of a click."""
        number = 0
        with ExitStack() as stack:
            # Opened first, so that an error comes before the work.
            file = sys.stdout if out is None else stack.enter_context(replacing(out, "w"))
            chances = [self.predict_proba([path])[:, 1] for path in files]
            file.write("example\tprobability\n")
            for number, chance in enumerate(np.concatenate([np.empty(0), *chances]).tolist(), 1):
                file.write(f"{number - 1}\t{chance:.9g}\n")
        if out is not None:
            print(f"{out}: {number:,} clicks")

    def show(self, out: Path | None) -> None:
        """Print how large the model is, and the longest rows, a line KEY<TAB>|ROW| each."""
        norms = np.linalg.norm(self.rows.astype(np.float64), axis=1)
        first = np.argsort(-norms, kind="stable")[:SHOWN]
        lines = [
            f"{len(self.keys):,} ids of {self.shape[1]} fields with {self.spec.width} values each, and"
            f" {len(self.layers):,} parameters of layers; the longest rows:\n"
        ]
        lines += [f"{self.keys[at]}\t{norms[at]:.9g}\n" for at in first]
        sys.stdout.writelines(lines)
        if out is not None:
            with replacing(out, "w") as file:
                file.writelines(lines)

    def _clicks(self, data: Any) -> Iterable[Clicks]:
        if isinstance(data, Clicks):
            return [data]
        if isinstance(data, Mapping):
            ids = field_keys(data["ids"])
            numbers = np.asarray(data["numbers"], np.float32)
            return [Clicks(ids, numbers, np.zeros(len(ids), np.float32))]
        names = [data] if isinstance(data, str | Path) else data
        if not isinstance(names, list | tuple) or not all(isinstance(each, str | Path) for each in names):
            raise UsageError("data must be files .npz, or a table of the arrays ids and numbers")
        return (load_clicks(Path(each), labelled=False) for each in names)

    def _scores(self, clicks: Clicks) -> F8:
        import torch

        if clicks.ids.shape[1:] != (self.shape[1],) or clicks.numbers.shape != (
            len(clicks.ids),
            self.shape[0],
        ):
            raise UsageError(
                f"ids {clicks.ids.shape} and numbers {clicks.numbers.shape}: the model was trained with"
                f" {self.shape[1]} fields of ids and {self.shape[0]} numbers"
            )
        found = [np.empty(0)]
        with torch.no_grad():
            for at in range(0, len(clicks.ids), SCORED):
                part = clicks.at(slice(at, at + SCORED))
                rows = self._rows_of(part.ids.reshape(-1)).reshape(*part.ids.shape, self.spec.width)
                found.append(self._network(part.numbers, torch.from_numpy(rows)).numpy().astype(np.float64))
        return finite(np.concatenate(found))

    def _rows_of(self, keys: NDArray[np.uint64]) -> NDArray[np.float32]:
        """Return the row of each key, f4[n, width]."""
        distinct, places = np.unique(keys, return_inverse=True)
        rows: NDArray[np.float32] = self.spec.initial(distinct)
        if len(self.keys):
            at = np.minimum(np.searchsorted(self.keys, distinct), len(self.keys) - 1)
            there = self.keys[at] == distinct
            rows[there] = self.rows[at[there]]
        return rows[places.reshape(-1)]


def export(cluster: Cluster) -> dict[str, Any]:
    """Write `model.npz`: the keys and rows of ids, the layers, what they are of, and the program."""
    rows = cluster.vectors["rows"]
    spec = rows.spec
    pieces = [(np.empty(0, np.uint64), np.empty((0, spec.width), np.float32)), *cluster.export(rows)]
    keys, values = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
    found = retry_on_loss(cluster, lambda: cluster.workers.start("parameters", only=[0]).result())[0]
    path = cluster.folder.path / MODEL
    with replacing(path) as file:
        np.savez(
            file, keys=keys, rows=values, layers=found.values[:, 0], shape=np.array(found.meta["shape"]),
            seed=np.array(cluster.job.settings.seed), program=np.array("ctr"),
        )  # fmt: skip
    return {"model": str(path)}


def load(source: Path, job: Mapping[str, Any], specs: Any) -> ClickModel:
    """Read the model of a run's folder, of a checkpoint or of a model file; `specs(width, seed)`: the vector of rows.

    Raises:
        InputError: there is none, or it is damaged.
    """
    with explained("read", source):
        if (source / MANIFEST).is_file():
            return _of_checkpoint(source, job, specs)
        file = source / MODEL if source.is_dir() else source
        if not file.exists():
            raise InputError(f"holds no {MODEL}; a run writes it when it has trained")
        held = npz.load(file, follow=file == source)
        keys, rows, layers = held_keys(held), held["rows"], held["layers"]
        types = [array.dtype for array in (keys, rows, layers)] == [np.uint64, np.float32, np.float32]
        shape, seed = held["shape"], held["seed"]
        types &= shape.dtype.kind == seed.dtype.kind == "i"
        if (
            not types
            or rows.shape[:1] != keys.shape
            or rows.ndim != 2
            or layers.ndim != 1
            or (shape.shape, seed.shape) != ((3,), ())
        ):
            raise InputError("is not a model of ctr: its arrays have wrong types or sizes")
        if (keys[1:] <= keys[:-1]).any():
            raise InputError("is damaged: its keys do not ascend")
        numbers, fields, hidden = shape.tolist()
        spec = specs(rows.shape[1], int(seed))
        return ClickModel(keys, rows, spec, layers, (numbers, fields, hidden))


def _of_checkpoint(source: Path, job: Mapping[str, Any], specs: Any) -> ClickModel:
    """Read the model of a checkpoint, which has what the layers differ by from their first values."""
    about, own = read_manifest(source)["about"]["state"], job["ctr"]
    if "shape" not in about:
        raise InputError(
            "is a checkpoint of a version that has no models of ctr: resume the run, which writes one"
        )
    if problem := schema_error({"state": about, "job": job}, SCHEMA):
        raise InputError(problem)
    (numbers, fields), width, hidden = about["shape"], own["width"], own["hidden"]
    rows = load_range(source, "rows", [ALL], dtype="float32", width=width, key_bits=64)
    layers = load_range(source, "layers", [ALL], dtype="float32", width=1, key_bits=64)
    _check_size(len(layers.values), numbers, fields, width, hidden)
    from mpips.jobs.ctr.model import first_parameters

    first = first_parameters(numbers, fields, width, hidden, own["seed"])
    if Dense.digest_of(first) != about["layers"]:
        raise InputError("its layers began with values that this version of PyTorch does not make")
    spec = specs(width, own["seed"])
    return ClickModel(rows.keys, rows.values, spec, first + layers.values[:, 0], (numbers, fields, hidden))


def _check_size(found: int, numbers: int, fields: int, width: int, hidden: int) -> None:
    """Raise InputError unless a network has so many parameters: a small file may declare one of any size."""
    pairs = fields * (fields + 1) // 2
    bottom, top = hidden * (numbers + 1) + width * (hidden + 1), hidden * (width + pairs + 1) + hidden + 1
    if min(numbers, fields, width, hidden) < 0 or found != bottom + top:
        raise InputError(f"is damaged: it has {found} parameters of layers")
