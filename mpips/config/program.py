"""Programs: an application of the parameter server in a module of its own.

A program is a module with three names:

* `Settings`, a frozen dataclass: its table in the job file;
* `schedule(cluster, settings) -> dict`, the scheduler's part: it runs the passes and returns the metrics;
* `Worker(context)`, the worker's part: the scheduler calls its public methods by name (`mpips.calls` lists reserved
names).

It may have a fourth, `exact_sums(job) -> str`: why its result depends on the number of workers even with [layout]
exact_sums, "" if it does not. Without it that option is an error.

It may have a fifth, `OUTPUTS`: the names of the files that it writes into the run's folder. A new run is refused where
these would replace files that no run has written; without it, that holds for all `model.*`.

It may register server functions with `mpips.storage.updates.update` and `mpips.storage.updates.call`: the module is
loaded on every rank.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mpips.calls import check_runs, check_worker
from mpips.errors import JobError, MpipsError, UsageError
from mpips.filters import filter as filters
from mpips.process import program_line
from mpips.storage import updates

_REGISTERED = "__mpips_registered__"
"""The attribute of a program's module with what it has registered: updates, calls and filters, by name."""
VECTORS = "vectors.h5"
"""The file in a run's folder with the vectors of a program of one's own, as they are at the end."""


@dataclass(frozen=True)
class Program:
    """A loaded program; see the module."""

    name: str
    settings: type
    schedule: Callable[..., dict[str, Any]]
    worker: Callable[..., Any]
    module: ModuleType
    exact_sums: Callable[..., str] | None = None
    outputs: tuple[str, ...] = ()
    """The names, or patterns of names, of the files that it writes into the run's folder."""

    def function(self, name: str) -> Callable[..., Any]:
        """Return a further function of the program, such as `query`, with which a command reads the results of a run.

        Raises:
            JobError: the program has no function of that name.
        """
        found = getattr(self.module, name, None)
        if not callable(found):
            raise JobError(f"program {self.name!r} ({self.module.__file__}) has no function `{name}`")
        return found  # type: ignore[no-any-return]


def load_program(name: str, base: Path) -> Program:
    """Load a program by name (`mpips.jobs.NAME.job`), as a `.py` file relative to `base`, or as a dotted module.

    Raises:
        JobError: there is no such program, it does not load, it lacks one of the three names, or its Worker has a
            method with a reserved name.
    """
    try:
        module = _registered(name, base)
    except MpipsError:
        raise
    except (Exception, SystemExit) as error:
        at = program_line.of(error)
        text = f"program {name!r} does not load: {type(error).__name__}: {error}"
        raise JobError(f"{text}, at {at}" if at else text) from error
    return program_of(module, name)


def _registered(name: str, base: Path) -> ModuleType:
    """Load a program's module; what it has registered is what its names mean from now on.

    So it is after another program in this process, whose functions have the same names. One that does not load
    registers nothing.
    """
    tables: tuple[dict[str, Any], ...] = (*updates.registered(), filters.known)
    before = [dict(table) for table in tables]
    try:
        module = _module(name, base)
    except BaseException:
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        raise
    found = [
        {key: value for key, value in table.items() if was.get(key) is not value}
        for table, was in zip(tables, before, strict=True)
    ]
    # A module that is loaded already registers nothing more.
    if not hasattr(module, _REGISTERED):
        setattr(module, _REGISTERED, found)
    for table, entries in zip(tables, getattr(module, _REGISTERED), strict=True):
        table.update(entries)
    return module


def program_of(module: ModuleType, name: str) -> Program:
    """Return the program that a module is, `name` in a job file.

    Raises:
        JobError: it lacks one of the three names, or its Worker has a method with a reserved name.
    """
    missing = [part for part in ("Settings", "schedule", "Worker") if not hasattr(module, part)]
    if missing:
        raise JobError(f"program {name!r} ({module.__file__}) has no {' and no '.join(missing)}")
    if not is_dataclass(module.Settings):
        raise JobError(f"program {name!r} ({module.__file__}): Settings must be a dataclass")
    try:
        check_runs(module.schedule, "schedule")
        check_worker(module.Worker)
    except UsageError as error:
        raise JobError(f"program {name!r}: {error}") from None
    program_line.register(module.__file__)
    settings: type = module.__dict__["Settings"]
    exact_sums, outputs = getattr(module, "exact_sums", None), getattr(module, "OUTPUTS", ("model.*",))
    if not isinstance(outputs, tuple) or not all(isinstance(each, str) for each in outputs):
        raise JobError(f"program {name!r} ({module.__file__}): OUTPUTS must be a tuple of file names")
    if not comes_with_mpips(name):
        outputs += (VECTORS,)
    return Program(table_name(name), settings, module.schedule, module.Worker, module, exact_sums, outputs)


def trusted_loader(named: str | None) -> Callable[[str, Path], Program]:
    """Return a loader of programs named by untrusted files (a run, a model, a checkpoint), for
    `mpips.config.job_file.load`.

    It loads the programs that come with mpips. Any other program is code that this process would run: it is loaded only
    if the user has named it, and then that one, regardless of the file.

    Args:
        named: the `.py` file, relative to the working folder, or dotted module that the user has named, if any.
    """

    def load(name: str, base: Path) -> Program:
        if named is not None:
            return load_program(named, Path.cwd())
        if comes_with_mpips(name):
            return load_program(name, base)
        file = str((base / name).resolve()) if name.endswith(".py") else name
        raise JobError(
            f"the program {file!r} does not come with mpips, and is run only if you trust it and name it: "
            f"--program {shlex.quote(file) if file.isprintable() else 'FILE.py'}"
        )

    return load


def table_name(name: str) -> str:
    """Return the name of a program's table in the job file: its own name, without folder, `.py` or package."""
    return Path(name).stem if name.endswith(".py") else name.rpartition(".")[2]


def _module(name: str, base: Path) -> ModuleType:
    if name.endswith(".py"):
        path = (base / name).resolve()
        if not path.is_file():
            raise JobError(f"program {name!r}: there is no file {path}")
        if str(path.parent) not in sys.path:
            # The program's own modules are in the same folder.
            sys.path.append(str(path.parent))
        alias, about = _module_name(path), os.stat(path)
        version, earlier = (about.st_mtime_ns, about.st_size), sys.modules.get(alias)
        # Once in a process: what it has defined is of the same types wherever it is loaded.
        if earlier is not None and _loaded(earlier) == (str(path), version):
            return earlier
        spec = importlib.util.spec_from_file_location(alias, path)
        if spec is None or spec.loader is None:
            raise JobError(f"program {name!r}: {path} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader_state = version
        program_line.register(str(path))
        updates.program_files.add(str(path))
        sys.modules[alias] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            # As by `import`, nothing half executed is left.
            if earlier is None:
                sys.modules.pop(alias, None)
            else:
                sys.modules[alias] = earlier
            raise
        return module
    target = name if "." in name else f"mpips.jobs.{name}.job"
    if (
        importlib.util.find_spec(target.rpartition(".")[0]) is None
        or importlib.util.find_spec(target) is None
    ):
        raise JobError(f"there is no program {name!r}; built in: {', '.join(built_in())}; or name a .py file")
    return importlib.import_module(target)


def _loaded(module: ModuleType) -> tuple[str, Any]:
    """Return the file that a module is from, and its time of change and size when it was loaded as a program."""
    spec = module.__spec__
    return ("", None) if spec is None else (str(spec.origin), spec.loader_state)


def _module_name(path: Path) -> str:
    """Return the name under which a program's file is loaded: as by `import`, unless that finds another module.

    What numba caches on disk names the module, and can be loaded only where there is one of that name.
    """
    try:
        found = importlib.util.find_spec(path.stem)
    # ImportError: the name has dots; ValueError: a module of that name has no spec.
    except (ImportError, ValueError):
        found = None
    is_own = found is not None and found.origin is not None and Path(found.origin).resolve() == path
    return path.stem if is_own else f"mpips_program_{path.stem}"


def comes_with_mpips(name: str) -> bool:
    """Return whether a program's name in a job file means one that comes with mpips."""
    return name in built_in() or name in [f"mpips.jobs.{each}.job" for each in built_in()]


def built_in() -> list[str]:
    """List the programs that come with mpips."""
    jobs = importlib.util.find_spec("mpips.jobs")
    folders = (jobs.submodule_search_locations or []) if jobs else []
    return sorted({path.parent.name for folder in folders for path in Path(folder).glob("*/job.py")})
