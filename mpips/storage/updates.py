"""Server functions: how a push changes the values (paper, section 3.3), and calls that the scheduler issues.

An update is a named tuple of functions without hidden state: the values and the state columns are arrays
that are passed to it, so that they are saved, replicated and moved like any other rows. Users define their
own updates in the module of the job's program:

    @update("average", columns=lambda spec: {"pushes": Column("int64", 1, 0)})
    def average(values, state, slots, rows, settings):
        state["pushes"][slots] += 1
        values[slots] += (rows - values[slots]) / state["pushes"][slots]

`values` is [slots, width], a state column [slots, its width]; `slots` i32[n] are the indices of n different
rows, and `rows` [n, push width] are the rows that the workers pushed there, already summed when the vector
aggregates. The function changes values and state in place; it may return rows [n, reply width] as the answer
of a push_pull, otherwise the answer is the values. `slots` and `rows` are valid until it returns. `settings` are
the vector's, and the scheduler can change them between tasks.

An update that is a kernel is called by the kernels that receive pushes, without Python. It takes arrays only: the
values, each state column, slots, rows, and the settings as f8[n], in the order of their defaults. It returns nothing:

    @update("scaled", columns=lambda spec: {"pushes": Column("int64")}, defaults={"rate": 0.5})
    @kernel("void(f8[:,::1], i8[:,::1], i4[::1], f8[:,::1], f8[::1])")
    def scaled(values, pushes, slots, rows, settings):
        for i in range(len(slots)):
            pushes[slots[i], 0] += 1
            for j in range(values.shape[1]):
                values[slots[i], j] += settings[0] * rows[i, j]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.calls import check_function, check_runs, defined_at
from mpips.errors import UsageError
from mpips.files.json_values import check_names
from mpips.jit.kernel import is_kernel, results_of
from mpips.keys import KeyArray, dtype_of
from mpips.storage import initial
from mpips.storage.initial import Initial
from mpips.storage.update_kernels import adagrad_rows, adam_rows, add_rows, assign_rows, ftrl_rows, sgd_rows

DTYPES = ("float32", "float64", "int32", "int64")

Array = NDArray[Any]
State = dict[str, Array]
Setting = float | int | str | bool
Settings = dict[str, Setting]
Apply = Callable[[Array, State, NDArray[np.int32], Array, Settings], Array | None]


@dataclass(frozen=True)
class VectorSpec:
    """The specification of a namespace: the type of its rows, its keys, and its update.

    Raises UsageError when a field is out of range. `update` and its settings are looked up by `update_of`.

    >>> VectorSpec("w", "float32", width=2, extent=100, dense=True).update
    'add'
    >>> VectorSpec("w").key_dtype
    dtype('uint64')

    A matrix factorisation does not start from 0, where every gradient is 0:

    >>> from mpips import Uniform
    >>> users = VectorSpec("users", "float32", width=16, update="adagrad", init=Uniform(-0.1, 0.1, seed=1))
    """

    name: str
    dtype: str = "float64"
    """One of DTYPES. Sums of integers wrap around at the type's limits, as those of numpy's arrays do."""
    width: int = 1
    """Values per key."""
    extent: int = 2**64
    """Keys lie in [0, extent)."""
    update: str = "add"
    settings: Mapping[str, Setting] = field(default_factory=dict)
    dense: bool = False
    """Every key has a slot from the start, in key order; otherwise only keys that were pushed."""
    aggregate: bool = False
    """Sum the pushes of all workers, in worker order, and update once; otherwise update by each push."""
    init: Initial = 0.0
    """The value of a key before its first push, which then updates it: a number, `Uniform` or `Normal`.
    The update defines the initial values of state columns."""
    key_bits: int = 64
    """64 or 128. Of 128-bit keys (`mpips.KEY128`), a key range has those whose upper halves lie in it, and a request
    lists its keys."""

    def __post_init__(self) -> None:
        where = f"vector {self.name!r}"
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise UsageError(f"{where}: a name must consist of letters, digits, _, - and dots")
        self._normalize(where)
        if self.dtype not in DTYPES:
            raise UsageError(f"{where}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}")
        if not 1 <= self.width <= 2**20:
            raise UsageError(f"{where}: width {self.width} is outside 1 .. {2**20}")
        if not 1 <= self.extent <= 2**64:
            raise UsageError(f"{where}: extent {self.extent} is outside 1 .. 2**64")
        if self.key_bits not in (64, 128):
            raise UsageError(f"{where}: key_bits {self.key_bits!r} is neither 64 nor 128")
        if self.key_bits == 128 and (self.dense or self.extent != 2**64):
            raise UsageError(f"{where}: 128-bit keys are hashes: neither dense nor of an extent")
        if self.dense and self.extent >= 2**40:
            raise UsageError(f"{where}: a dense vector of extent {self.extent} does not fit; leave dense out")
        try:
            object.__setattr__(self, "init", initial.checked(self.init, self.dtype))
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None

    def _normalize(self, where: str) -> None:
        """Replace numpy values by Python's: messages and manifests have these types and no others."""
        for name in ("width", "extent", "key_bits"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise UsageError(f"{where}: {name} {value!r} is not an integer")
            object.__setattr__(self, name, int(value))
        for name in ("dense", "aggregate"):
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise UsageError(f"{where}: {name} {value!r} is neither True nor False")
            object.__setattr__(self, name, bool(value))
        # A numpy dtype equals its name.
        object.__setattr__(self, "dtype", next((name for name in DTYPES if name == self.dtype), self.dtype))

    def initial(self, keys: KeyArray) -> Array:
        """Return the initial rows of keys u64[n] or KEY128[n], [n, width], without a message.

        >>> VectorSpec("w", width=2, init=0.5).initial(np.array([3, 9], np.uint64)).tolist()
        [[0.5, 0.5], [0.5, 0.5]]
        """
        return initial.rows(self.init, keys, self.width, self.dtype)

    @property
    def key_dtype(self) -> np.dtype[Any]:
        """The dtype of a list of keys."""
        return dtype_of(self.key_bits)


class Column(NamedTuple):
    """One array of rows: its dtype (of DTYPES, or "int8" for state), values per row, initial value of a new key.

    >>> Column("int64", fill=1)
    Column(dtype='int64', width=1, fill=1)
    """

    dtype: str
    width: int = 1
    fill: float = 0

    def fits(self) -> bool:
        """Return whether rows can have this width, and the fill is a number of the dtype, perhaps infinite or NaN."""
        fill: Any = self.fill
        if not isinstance(self.width, int | np.integer) or self.width < 1:
            return False
        if not isinstance(fill, int | float | np.number):
            return False
        with np.errstate(all="ignore"):
            try:
                made = np.dtype(self.dtype).type(fill)
            except (OverflowError, TypeError, ValueError):
                return False
        return bool(made == fill if made.dtype.kind == "i" else np.isfinite(made) or not np.isfinite(fill))


def value_row(spec: VectorSpec) -> Column:
    """Return rows shaped like the vector's own."""
    return Column(spec.dtype, spec.width)


def no_columns(spec: VectorSpec) -> dict[str, Column]:
    """Return no state."""
    return {}


class Update(NamedTuple):
    """A server function: see the module's text for `apply`, `update` for the other fields."""

    name: str
    apply: Apply
    columns: Callable[[VectorSpec], dict[str, Column]] = no_columns
    push_row: Callable[[VectorSpec], Column] = value_row
    reply_row: Callable[[VectorSpec], Column] = value_row
    apply_range: Callable[[Array, State, Array, Settings], Array | None] | None = None
    read: Callable[[Array, State, NDArray[np.int32]], Array] | None = None
    defaults: Mapping[str, Setting] | None = None
    sums: bool = False
    exact_replies: bool = False
    kernel: Callable[..., None] | None = None


# The first argument is a `mpips.storage.segment.Segment`, which imports this module.
Function = Callable[[Any, dict[str, Any]], dict[str, Any]]


class Call(NamedTuple):
    """A function that the scheduler can issue; `reads`: it changes nothing, so that only one replica executes it."""

    function: Function
    reads: bool = False

    def run(self, segment: Any, args: dict[str, Any]) -> dict[str, Any]:
        """Call it; UsageError if JSON would change the keys of its result."""
        answer = self.function(segment, args)
        check_names(answer, f"the result of {self.function.__qualname__}{defined_at(self.function)}")
        return answer


BUILT_IN = frozenset(("add", "assign", "sgd", "adagrad", "ftrl", "adam"))
"""The names of the built-in updates: pushed rows, and answers, are like the values."""
_updates: dict[str, Update] = {}
_calls: dict[str, Call] = {}
program_files: set[str] = set()
"""Files that were loaded as programs: one process may run several in turn, whose functions have the same names."""


def registered() -> tuple[dict[str, Update], dict[str, Call]]:
    """Return the tables of registered updates and calls, by name."""
    return _updates, _calls


A = TypeVar("A", bound=Callable[..., Any])


def update(name: str, **fields: Any) -> Callable[[A], A]:
    """Register the decorated function as the update of vectors with `update = "name"`.

    Fields, all optional: `columns(spec)`, the state columns, name -> Column; `push_row(spec)`, the
    Column of rows that workers push (default: like the values; width 0: any); `reply_row(spec)`, that of what
    `apply` returns; `apply_range(values, state, rows, settings)`, the same as `apply` for rows that are
    contiguous, given as views; `read(values, state, slots)`, what a pull returns instead of the values;
    `defaults`, the settings and their default values (without it any setting is accepted); `sums`, whether two
    pushes may be replaced by one push of their sum (filters may then hold small ones back); `exact_replies`,
    whether workers must receive exact values, so that filters do not round them.
    Raises UsageError when another function has the name, or for a kernel with `apply_range`, with settings that are no
    numbers, or with a result. A kernel must not change its settings.

    >>> from mpips import simulate
    >>> @update("example_mean", columns=lambda spec: {"pushes": Column("int64")})
    ... def mean(values, state, slots, rows, settings):
    ...     state["pushes"][slots] += 1
    ...     values[slots] += (rows - values[slots]) / state["pushes"][slots]
    >>> def schedule(cluster):
    ...     w, keys = cluster.create_vector(VectorSpec("w", update="example_mean")), np.array([3], np.uint64)
    ...     cluster.wait_all([w.push(keys, np.array([row])) for row in (1.0, 3.0)])
    ...     return w.pull(keys).result().tolist()
    >>> simulate(schedule, worker=lambda context: None)
    [2.0]
    """

    def register(apply: A) -> A:
        known = _updates.get(name)
        check_unused("update", name, apply, known and (known.kernel or known.apply))
        made = Update(name, apply, **fields)
        check_runs(made.apply_range, f"update {name!r}, apply_range")
        _updates[name] = _of_kernel(made, apply) if is_kernel(apply) else made
        return apply

    return register


def _of_kernel(made: Update, kernel: Callable[..., None]) -> Update:
    """Return the update with a kernel: Python calls it as any other."""
    where = f"update {made.name!r}, which is a kernel"
    if results_of(kernel) != {"void"}:
        raise UsageError(f'{where}: it needs signatures, and no result: @kernel("void(...)")')
    if made.apply_range is not None:
        raise UsageError(f"{where}: apply_range is for updates in Python")
    defaults: Settings = {}
    for name, value in (made.defaults or {}).items():
        if isinstance(value, str):
            raise UsageError(f"{where}: setting {name!r} is no number: {value!r}")
        defaults[name] = float(value)

    def apply(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
        kernel(values, *state.values(), slots, rows, numbers_of(made, settings))

    return made._replace(apply=apply, defaults=defaults, kernel=kernel)


def numbers_of(update: Update, settings: Settings) -> NDArray[np.float64]:
    """Return the settings of an update that are numbers, in the order of their defaults."""
    return np.array([settings[name] for name in update.defaults or ()], np.float64)


def call(name: str, reads: bool = False) -> Callable[[Function], Function]:
    """Register the decorated function(segment, args) -> dict for the scheduler to issue on every shard of a vector.

    `args` and the result are JSON-able dicts. Every copy of a shard runs it, with the same result; set `reads` if it
    changes nothing. Raises UsageError when another function, or one of mpips itself, has the name.

    >>> from mpips import simulate
    >>> @call("example_count", reads=True)
    ... def count(segment, args):
    ...     return {"above": int((segment.values[: len(segment)] > args["least"]).sum())}
    >>> def schedule(cluster):
    ...     w = cluster.create_vector(VectorSpec("w"))
    ...     w.push(np.arange(4, dtype=np.uint64), np.arange(4.0)).result()
    ...     return cluster.servers.call("example_count", {"least": 1}, vector=w)
    >>> simulate(schedule, worker=lambda context: None)
    [{'above': 2}]
    """

    def register(function: Function) -> Function:
        check_function(name)
        check_unused("call", name, function, _calls[name].function if name in _calls else None)
        _calls[name] = Call(function, reads)
        return function

    return register


def check_unused(kind: str, name: str, new: Callable[..., Any], old: Callable[..., Any] | None) -> None:
    """Raise UsageError for a second function of one name; the same function, loaded again, replaces itself.

    So does that of another program (`program_files`). Also for a function that does not run when it is called.
    """
    check_runs(new, f"{kind} {name!r}")
    if old is None or _place(old) == _place(new) or _is_loaded_again(new, old):
        return
    if not {_file(old), _file(new)} <= program_files:
        raise UsageError(f"{kind} {name!r} is already defined at {_place(old)}: choose another name")


def _is_loaded_again(new: Callable[..., Any], old: Callable[..., Any]) -> bool:
    """Return whether a function is an older one that has been edited: in a file, or in a cell of a notebook."""
    new, old = _plain(new), _plain(old)
    names = [(each.__module__, each.__qualname__) for each in (new, old) if hasattr(each, "__globals__")]
    # Two of one file that was loaded once are two functions.
    twice = getattr(new, "__globals__", 0) is getattr(old, "__globals__", 1) and _file(new) == _file(old)
    return len(names) == 2 and names[0] == names[1] and "<" not in names[0][1] and not twice


def _plain(function: Callable[..., Any]) -> Any:
    return getattr(function, "py_func", function)


def _file(function: Callable[..., Any]) -> str:
    code = getattr(_plain(function), "__code__", None)
    return code.co_filename if code else ""


def _place(function: Callable[..., Any]) -> str:
    """Return the file and line where a function, plain or compiled, is defined."""
    code = getattr(_plain(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def update_named(name: str) -> Update:
    """Return the registered update; UsageError lists the known ones."""
    if name not in _updates:
        raise UsageError(f"unknown update {name!r}; known: {', '.join(sorted(_updates))}")
    return _updates[name]


def call_named(name: str) -> Call:
    """Return the registered call; UsageError lists the known ones."""
    if name not in _calls:
        raise UsageError(f"unknown call {name!r}; known: {', '.join(sorted(_calls))}")
    return _calls[name]


def settings_of(spec: VectorSpec) -> Settings:
    """Return the update's defaults overlaid with the vector's settings; UsageError on an unknown one."""
    return dict(update_named(spec.update).defaults or {}) | checked_settings(spec, spec.settings)


def checked_settings(spec: VectorSpec, settings: Mapping[str, Setting]) -> Settings:
    """Return `settings`; UsageError unless the vector's update has them, of the right kind."""
    defaults = update_named(spec.update).defaults
    where = f"vector {spec.name!r}, update {spec.update!r}"
    for key, value in settings.items():
        if defaults is None:
            if not isinstance(value, str | int | float):
                raise UsageError(f"{where}: setting {key!r} is neither a number nor text: {value!r}")
            continue
        if key not in defaults:
            known = ", ".join(sorted(defaults)) or "none"
            raise UsageError(f"{where}: unknown setting {key!r}; known: {known}")
        # An integer may be beyond all floats: `isfinite` would raise.
        number = (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
        if isinstance(defaults[key], float) and not number:
            raise UsageError(f"{where}: setting {key!r} must be a number, got {value!r}")
    return dict(settings)


@call("settings")
def change_settings(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Change settings of the vector's update, e.g. a step size per pass; return all of them."""
    segment.settings.update(checked_settings(segment.spec, args))
    return dict(segment.settings)


# The built-in updates.


def _assign_range(values: Array, state: State, rows: Array, settings: Settings) -> None:
    values[...] = rows


def _add_range(values: Array, state: State, rows: Array, settings: Settings) -> None:
    values += rows


@update("assign", apply_range=_assign_range, defaults={})
def assign(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Set w = row: the last push wins."""
    assign_rows(values, slots, rows)


@update("add", apply_range=_add_range, defaults={}, sums=True)
def add(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Add the row: w += row."""
    add_rows(values, slots, rows)


def _like_value(*names: str) -> Callable[[VectorSpec], dict[str, Column]]:
    """Return the state of a gradient update: columns shaped like the value, which must be floating point."""

    def columns(spec: VectorSpec) -> dict[str, Column]:
        if not spec.dtype.startswith("float"):
            known = "float32 or float64"
            raise UsageError(f"vector {spec.name!r}: update {spec.update!r} needs {known}, not {spec.dtype}")
        return {name: Column(spec.dtype, spec.width) for name in names}

    return columns


@update("sgd", columns=_like_value(), defaults={"rate": 0.1, "l1": 0.0, "l2": 0.0}, sums=True)
def sgd(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Step along a pushed gradient g, then the proximal step of l1 |w| + l2/2 w^2.

    w = S(w - rate g, rate l1) / (1 + rate l2), S the soft threshold.
    """
    sgd_rows(values, slots, rows, *_numbers(settings, "rate", "l1", "l2"))


_ADAPTIVE: dict[str, Setting] = {"alpha": 0.1, "beta": 1.0, "l1": 0.0, "l2": 0.0}


@update("adagrad", columns=_like_value("n"), defaults=_ADAPTIVE, sums=True)
def adagrad(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Step along a pushed gradient g by AdaGrad with a proximal step (Duchi, Hazan, Singer 2011).

    n = sqrt(n^2 + g^2), e = (n + beta)/alpha, w = S(e w - g, l1)/(e + l2). State: n.
    """
    adagrad_rows(values, state["n"], slots, rows, *_numbers(settings, *_ADAPTIVE))


@update("ftrl", columns=_like_value("z", "n"), defaults=_ADAPTIVE, sums=True)
def ftrl(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Follow the proximally regularised leader by a pushed gradient g (McMahan et al. 2013, algorithm 1).

    n' = sqrt(n^2 + g^2), z += g - (n' - n)/alpha w, w = S(-z, l1)/((beta + n')/alpha + l2). State: z, n.
    """
    ftrl_rows(values, state["z"], state["n"], slots, rows, *_numbers(settings, *_ADAPTIVE))


def _adam_columns(spec: VectorSpec) -> dict[str, Column]:
    return {**_like_value("m", "v")(spec), "t": Column("int64")}


_ADAM: dict[str, Setting] = {"alpha": 0.001, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "decay": 0.0}


@update("adam", columns=_adam_columns, defaults=_ADAM)
def adam(values: Array, state: State, slots: NDArray[np.int32], rows: Array, settings: Settings) -> None:
    """Step along a pushed gradient g by Adam (Kingma, Ba 2015, algorithm 1), each key with a step count of its own.

    m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, t += 1, w -= alpha (m/(1 - beta1^t) /
    (sqrt(v/(1 - beta2^t)) + epsilon) + decay w): a decoupled weight decay (Loshchilov, Hutter 2019). State: m, v, t.
    """
    adam_rows(values, state["m"], state["v"], state["t"], slots, rows, *_numbers(settings, *_ADAM))


def _numbers(settings: Settings, *names: str) -> list[float]:
    return [float(settings[name]) for name in names]
