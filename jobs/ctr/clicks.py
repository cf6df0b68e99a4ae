"""Clicks: read from a file, or drawn from a known model."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import DataError, Job, JobError, UsageError, npz
from mpips.data import resolve
from mpips.data.spec import as_list
from mpips.embedding import field_keys

VALUES = (5_000, 2_000, 1_000, 500, 200, 50, 20, 10)
"""The number of ids of each generated field."""


class Clicks(NamedTuple):
    """Clicks and what was not clicked."""

    ids: NDArray[np.uint64]
    """[n, fields]: `mpips.embedding.field_keys` of the ids."""
    numbers: NDArray[np.float32]
    """[n, k]."""
    labels: NDArray[np.float32]
    """0 or 1, [n]."""

    def at(self, rows: slice | NDArray[np.intp]) -> Clicks:
        """Return some of them."""
        return Clicks(self.ids[rows], self.numbers[rows], self.labels[rows])

    def part(self, index: int, count: int) -> Clicks:
        """Return the part of one of `count` workers."""
        return self.at(slice(index, None, count))


def crc(clicks: Clicks) -> int:
    """Return a checksum of clicks."""
    found = 0
    for each in clicks:
        found = zlib.crc32(np.ascontiguousarray(each).view(np.uint8).reshape(-1).data, found)
    return found


def generated(count: int, seed: int, part: int = 0) -> Clicks:
    """Draw clicks of a factorization model: frequent and rare ids of 8 fields, 4 numbers; `part` varies the draw."""
    teacher, random = np.random.default_rng(seed), np.random.default_rng([seed, part])
    numbers = random.normal(size=(count, 4))
    ids = np.empty((count, len(VALUES)), np.int64)
    score = numbers @ teacher.normal(0, 0.3, 4) - 1.0
    total, squares = np.zeros((count, 4)), np.zeros((count, 4))
    for field, values in enumerate(VALUES):
        # Zipf's law: id r with a probability of about 1 / r.
        ids[:, field] = np.floor(values ** random.random(count)) - 1
        weights, factors = teacher.normal(0, 0.5, values), teacher.normal(0, 0.3, (values, 4))
        score += weights[ids[:, field]]
        total, squares = total + factors[ids[:, field]], squares + factors[ids[:, field]] ** 2
    score += 0.5 * (total**2 - squares).sum(1)
    labels = random.random(count) < 1 / (1 + np.exp(-score))
    return Clicks(field_keys(ids), numbers.astype(np.float32), labels.astype(np.float32))


def of_job(job: Job) -> tuple[Clicks, Clicks]:
    """Return the clicks to train with, and those of the test: none with a file to train with alone.

    Raises:
        DataError: as of `load`.
        JobError: there are only files for the test.
    """
    settings, data = job.settings, resolve(job.data, str(job.base))
    paths = [[Path(each) for each in as_list(files)] for files in (data.train, data.test)]
    train, test = map(_of_files, paths)
    if train is not None and test is not None:
        _check_alike([paths[0][0], paths[1][0]], [train, test])
    count, seed = settings.clicks, settings.seed
    if train is not None:
        return train, train.at(slice(0)) if test is None else test
    if test is not None:
        raise JobError("[data] test names clicks for the test, and train names none to train with")
    return generated(count, seed), generated(max(count // 10, 1), seed, 1)


def _of_files(paths: list[Path]) -> Clicks | None:
    loaded = [load(path) for path in paths]
    _check_alike(paths, loaded)
    return Clicks(*(np.concatenate(each) for each in zip(*loaded, strict=True))) if loaded else None


def _check_alike(paths: list[Path], loaded: list[Clicks]) -> None:
    for path, each in zip(paths, loaded, strict=True):
        found, wanted = ([of.shape[1] for of in clicks[:2]] for clicks in (each, loaded[0]))
        if found != wanted:
            raise DataError(
                f"{path}: {found[0]} fields of ids and {found[1]} numbers, but {paths[0]} has {wanted[0]} and"
                f" {wanted[1]}"
            )


def load(path: Path, labelled: bool = True) -> Clicks:
    """Read a file .npz of `ids` [n, fields], `numbers` [n, k] and `labels` [n], which are 0 if it is not `labelled`.

    Raises:
        DataError: it is no such file.
    """
    what = f"{path}: not a file of clicks (.npz of ids, numbers, labels)"
    try:
        held = npz.load(path, follow=True)
        ids, numbers = held["ids"], held["numbers"]
        keys = field_keys(ids)
        labels = held["labels"] if labelled else np.zeros(len(ids))
    except KeyError as error:
        raise DataError(f"{what}: it has no array {error}") from None
    except (OSError, ValueError, UsageError) as error:
        raise DataError(f"{what}: {getattr(error, 'strerror', None) or error}") from None
    if numbers.dtype.kind not in "biuf" or labels.dtype.kind not in "biuf":
        raise DataError(f"{what}: its numbers are {numbers.dtype}, and its labels {labels.dtype}")
    shape = len(ids), *numbers.shape[-1:]
    if not len(ids) or numbers.shape != shape or labels.shape not in ((len(ids),), (len(ids), 1)):
        raise DataError(
            f"{path}: ids {ids.shape}, numbers {numbers.shape} and labels {labels.shape} are not of the same clicks"
        )
    with np.errstate(over="ignore"):
        found = Clicks(keys, numbers.astype(np.float32), labels.astype(np.float32).reshape(-1))
    if not np.isin(labels, (0, 1)).all() or not np.isfinite(found.numbers).all():
        raise DataError(f"{path}: labels must be 0 or 1, and numbers finite")
    return found
