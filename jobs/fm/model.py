"""A trained machine: its weights and factors, and the classes of examples in files, arrays and sparse matrices."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import (
    ALL,
    MANIFEST,
    NUMBER,
    Cluster,
    InputError,
    explained,
    load_range,
    npz,
    read_manifest,
    replacing,
    schema_error,
)
from mpips import keys as key_arrays
from mpips.data import DataSpec, EncodingTable, Examples
from mpips.data.tables.encoding import Encoding
from mpips.jobs.fm.form import Form
from mpips.jobs.fm.kernels import F4, F8, I4, SEEN, WEIGHT
from mpips.jobs.fm.settings import MOST, MOST_WITH_FIELDS, Settings
from mpips.jobs.fm.training import factors_spec, form_of, places_of
from mpips.jobs.sparse_lr.model import LogisticModel, finite, held_keys, reading

MODEL = "model.npz"
SCHEMA: dict[str, dict[str, Any]] = {
    "fm": {
        "factors": range(1, MOST + 1), "admit": range(2**24 + 1), "init": NUMBER, "factor_alpha": NUMBER,
        "factor_beta": NUMBER, "factor_l2": NUMBER, "fields?": bool, "normalise?": bool,
    },
    "job": {"seed": int},
}  # fmt: skip
"""The settings that a checkpoint is read with."""
SHOWN = 20
"""Number of the features that are shown."""


class FactorizationModel(LogisticModel):
    """A factorization machine: P(y = 1 | x) = 1 / (1 + exp(-s)), s = sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j.

    Data are those of `LogisticModel`, and so are `decision_function`, `predict` and `predict_proba`.

    Args:
        keys: u8[n] or KEY128[n], ascending and each once.
        weights: f4[n].
        has: b1[n], whether each feature has factors.
        factors: f4[a, k], of those that have, in their order; with fields f4[a, fields * k], those of field f from
            f * k on.
        data: how files are read.
        encoding: how tables become keys and values, of a model that was trained on them.
        form: k, and the fields, of a field-aware machine.

    >>> import numpy as np
    >>> keys, weights = np.array([0, 2], np.uint64), np.array([2.0, -1.0], np.float32)
    >>> model = FactorizationModel(keys, weights, np.ones(2, bool), np.array([[0.5], [4.0]], np.float32))
    >>> model.decision_function(np.array([[1.0, 5.0, 0.0], [1.0, 0.0, 3.0]])).tolist()
    [2.0, 5.0]
    """

    def __init__(
        self,
        keys: key_arrays.KeyArray,
        weights: F4,
        has: NDArray[np.bool_],
        factors: F4,
        data: DataSpec | None = None,
        encoding: Encoding | None = None,
        form: Form | None = None,
    ) -> None:
        super().__init__(keys, weights.astype(np.float64), data, encoding)
        self.form = form or Form(factors.shape[1])
        self.with_fields = self.form.fields > 0
        self.has, self.factors = has, np.ascontiguousarray(factors)
        self._linear = np.column_stack([weights, np.zeros_like(weights)])
        self._rows: I4 = places_of(has)

    def query(self, keys: Sequence[str]) -> list[Any]:
        """Return the weight of each key, given as a whole number, and its factors: [weight, v_1, ..., v_k].

        A key without factors has the weight alone, which is 0 of a key that is not in the model.

        Raises:
            InputError: one is no whole number, or too large.
        """
        at = self._places(self._asked(keys))
        found: list[Any] = []
        for weight, place in zip(super().query(keys), at.tolist(), strict=True):
            row = self._rows[place] if place >= 0 else -1
            found.append([weight, *(self.factors[row].tolist() if row >= 0 else ())])
        return found

    def vectors(self) -> dict[str, tuple[key_arrays.KeyArray, NDArray[Any]]]:
        """Return the weights as vector `w`, and the factors as `v`."""
        return {"w": (self.keys, self.weights[:, None]), "v": (self.keys[self.has], self.factors)}

    def show(self, out: Path | None) -> None:
        """Print the features with the largest factors, a line KEY<TAB>WEIGHT<TAB>|v| each."""
        norms = np.zeros(len(self.keys))
        norms[self.has] = np.sqrt((self.factors.astype(np.float64) ** 2).sum(axis=1))
        first = np.argsort(-norms, kind="stable")[:SHOWN]
        names = key_arrays.numbers(self.keys[first])
        lines = [
            f"{len(self.keys):,} features, {int(self.has.sum()):,} of them with {self.factors.shape[1]} factors; "
            "those with the largest:\n"
        ]
        for key, weight, norm in zip(names, self.weights[first].tolist(), norms[first].tolist(), strict=True):
            lines.append(f"{key}\t{weight:.9g}\t{norm:.9g}\n")
        sys.stdout.writelines(lines)
        if out is not None:
            with replacing(out, "w") as file:
                file.writelines(lines)

    def _score(self, batch: Examples) -> F8:
        found = self.form.scores(batch, self._places(batch.keys), self._linear, self._rows, self.factors)
        return finite(found)


def export(cluster: Cluster, encoding: EncodingTable | None) -> dict[str, Any]:
    """Write `model.npz`: keys, weights f4[n], has b1[n], factors f4[a, k], the form, the program, the encoding."""
    keys, linear = _exported(cluster, "w")
    rows = _exported(cluster, "v")
    spec = cluster.vectors["v"].spec
    form = form_of(cluster.job.settings, spec.width)
    has, factors = _factors(keys, linear, rows, cluster.job.settings, spec)
    file_name = cluster.folder.path / MODEL
    model = {"model": str(file_name)}
    more: dict[str, Any] = {} if encoding is None else {"encoding": np.array(json.dumps(encoding))}
    with replacing(file_name) as file:
        np.savez(
            file, keys=key_arrays.pairs(keys), weights=np.ascontiguousarray(linear[:, WEIGHT]), has=has,
            factors=factors, form=np.array(form, np.int64), program=np.array("fm"), **more,
        )  # fmt: skip
    cluster.metrics.update(model)
    return model


def _exported(cluster: Cluster, name: str) -> tuple[key_arrays.KeyArray, F4]:
    """Return the rows of a vector that differ from their initial values, in the order of keys."""
    vector = cluster.vectors[name]
    pieces = list(cluster.export(vector))
    keys = np.concatenate([np.empty(0, vector.spec.key_dtype), *(keys for keys, _ in pieces)])
    rows = np.concatenate([np.empty((0, vector.spec.width), np.float32), *(rows for _, rows in pieces)])
    return keys, rows


def _factors(
    keys: key_arrays.KeyArray,
    linear: F4,
    rows: tuple[key_arrays.KeyArray, F4],
    settings: Settings,
    spec: Any,
) -> tuple[NDArray[np.bool_], F4]:
    """Return which features have factors, and these: initial ones of those that were in no mini-batch since."""
    has: NDArray[np.bool_] = linear[:, SEEN] >= max(settings.admit, 1)
    mine, factors = keys[has], spec.initial(keys[has])
    if len(mine):
        at = np.minimum(np.searchsorted(mine, rows[0]), len(mine) - 1)
        there = mine[at] == rows[0]
        factors[at[there]] = rows[1][there]
    return has, factors


def load(source: Path, job: Any) -> FactorizationModel:
    """Read the machine of a run's folder, of a checkpoint or of a model file; `job`: see `mpips.Model`.

    Raises:
        InputError: there is none, or it is damaged.
    """
    with explained("read", source):
        spec = reading(job)
        if (source / MANIFEST).is_file():
            linear = load_range(source, "w", [ALL], dtype="float32", width=2)
            bits = 8 * linear.keys.dtype.itemsize
            rows = load_range(source, "v", [ALL], dtype="float32", key_bits=bits)
            if problem := schema_error(job, SCHEMA, "its job"):
                raise InputError(f"{source}: {problem}")
            known = [name.rstrip("?") for name in SCHEMA["fm"]]
            settings = Settings(**{name: job["fm"][name] for name in known if name in job["fm"]})
            form = form_of(settings, rows.values.shape[1])
            if rows.values.shape[1] != form.width or (form.fields and form.width > MOST_WITH_FIELDS):
                raise InputError(f"{source}: is not a checkpoint of fm: its rows have other widths")
            factors_of = factors_spec(settings, form.width, job["job"]["seed"])
            has, factors = _factors(
                linear.keys, linear.values, (rows.keys, rows.values), settings, factors_of
            )
            keys, weights = linear.keys, linear.values[:, WEIGHT]
            table = read_manifest(source)["about"]["state"].get("encoding")
        else:
            file = source / MODEL if source.is_dir() else source
            if not file.exists():
                raise InputError(f"holds no {MODEL}; a run writes it when it has trained")
            held = npz.load(file, follow=file == source)
            keys, weights = held_keys(held), held["weights"]
            has, factors = held["has"], held["factors"]
            # A model without fields may be of a version that had none.
            form = _form(held, factors)
            table = json.loads(str(held["encoding"])) if "encoding" in held else None
        encoding = None if table is None else Encoding.of_table(table, f"{source}: its encoding")
    types = [array.dtype for array in (weights, has, factors)] == [np.float32, np.bool_, np.float32]
    if not types or factors.ndim != 2 or weights.shape != keys.shape or has.shape != keys.shape:
        raise InputError(f"{source}: is not a model of fm: its arrays have wrong types or sizes")
    if len(factors) != has.sum() or factors.shape[1] != form.width:
        raise InputError(f"{source}: is damaged: it has factors of {len(factors)} features")
    if not 1 <= factors.shape[1] <= MOST:
        raise InputError(f"{source}: is damaged: it has {factors.shape[1]:,} factors, not 1 to {MOST:,}")
    if keys.dtype not in (np.uint64, key_arrays.KEY128) or not key_arrays.ascend(keys):
        raise InputError(f"{source}: is damaged: its keys do not ascend")
    if not (np.isfinite(weights).all() and np.isfinite(factors).all()):
        raise InputError(f"{source}: is not a sound model: a weight or factor is not finite")
    return FactorizationModel(keys, np.ascontiguousarray(weights), has, factors, spec, encoding, form)


def _form(held: Any, factors: F4) -> Form:
    """Return the form of a model file: k, fields and whether examples are normalised."""
    if "form" not in held:
        return Form(factors.shape[-1] if factors.ndim else 0)
    found = held["form"]
    if found.dtype != np.int64 or found.shape != (3,) or (found < 0).any() or not found[0]:
        raise InputError("is damaged: its form is no list of factors, fields and normalise")
    return Form(int(found[0]), int(found[1]), bool(found[2]))
