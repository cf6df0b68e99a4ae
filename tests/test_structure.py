"""The packages of `mpips`: which may import which, and how large a folder may be."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import tomllib
from glob import glob
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from mpips.process.interpreter import python

ROOT = Path(__file__).resolve().parent.parent / "mpips"
NAMES = """
    exit_codes errors forked ranges typed consistency calls
    process files jit keys rundir storage data transport filters tasks checkpoint cluster membership history tracing
    config server worker scheduler provenance replay launch rank report client testing estimators embedding torch jax
    planning jobs bench cli
"""
ORDER = NAMES.split()
"""Modules of the root and packages; each imports only what stands before it."""
ENTRIES = {"mpips": "planning", "mpips.__main__": "rank"}
"""Modules of the root that stand elsewhere: the public API, and what starts a rank."""
MOST = 15
"""Modules of a folder."""
LARGER = {"jobs/lda", "jobs/sparse_lr"}
"""Folders that may hold more: the largest applications."""


def modules() -> dict[str, Path]:
    """Find all modules by name; `mpips/jobs` may be a link to a folder beside."""
    found = {}
    for folder, _, files in os.walk(ROOT, followlinks=True):
        for path in (Path(folder, file) for file in files if file.endswith(".py")):
            parts = ("mpips", *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Name the modules of mpips that a module imports anywhere in its text, so under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, (
                f"{name}: line {node.lineno} imports relatively"
            )
            within = {f"{node.module}.{each.name}" for each in node.names}
            found |= within & MODULES.keys() or {node.module}
    return {each for each in found if each.split(".")[0] == "mpips"} - {name}


IMPORTS = {name: imports(name) for name in MODULES}


def rank(name: str) -> int:
    """Return the place of a module's package in the order."""
    return ORDER.index(ENTRIES.get(name) or name.split(".")[1])


def test_every_package_has_its_place_in_the_order() -> None:
    tops = {name.split(".")[1] for name in MODULES if name not in ENTRIES}
    assert tops == set(ORDER)


def test_imports_name_modules_that_are_there() -> None:
    assert not [(name, each) for name, them in IMPORTS.items() for each in them if each not in MODULES]


def test_a_package_imports_only_what_stands_before_it() -> None:
    wrong = [
        f"{name} -> {each}" for name, them in IMPORTS.items() for each in them if rank(each) > rank(name)
    ]
    assert not wrong, "imports against the order: " + ", ".join(sorted(wrong))


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(IMPORTS).prepare()
    except CycleError as error:
        raise AssertionError("a circle: " + " <- ".join(error.args[1])) from None


def test_no_folder_is_too_large() -> None:
    sizes: dict[str, int] = {}
    for path in MODULES.values():
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(ROOT))
            sizes[folder] = sizes.get(folder, 0) + 1
    too_large = {folder: size for folder, size in sizes.items() if size > MOST and folder not in LARGER}
    assert not too_large, f"folders of more than {MOST} modules: {too_large}"


def test_every_package_says_what_it_is_for() -> None:
    packages = [path for path in MODULES.values() if path.name == "__init__.py"]
    folders = {path.parent for path in MODULES.values()}
    assert {path.parent for path in packages} == folders
    silent = [
        str(path) for path in packages if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent, f"packages without a docstring: {silent}"


SIDE_EFFECTS = {
    # Hides scipy from numba.
    ("mpips.jit.compiler.numba_environment", "numba"),
    # Hides a ucx.conf of the working folder from MPI.
    ("mpips.rank.main", "mpips.transport.mpi.van"),
}
"""Imports for their effect only, by module: no name of theirs is used, and a linter would remove them."""


def test_imports_for_their_effect_only_are_marked_and_there() -> None:
    marked = set()
    for name, path in MODULES.items():
        for line in path.read_text(encoding="utf-8").splitlines():
            if "F401" in line:
                (statement,) = ast.parse(line.strip()).body
                assert isinstance(statement, ast.Import), f"{name}: {line.strip()}: write `import x.y`"
                marked |= {(name, each.name) for each in statement.names}
    assert marked == SIDE_EFFECTS


REGISTERED = """
import json, sys
from pathlib import Path
from mpips.config.program import built_in, load_program
from mpips.filters.named import BUILT_IN, find
from mpips.storage import updates
for name in built_in():
    load_program(name, Path())
for name in BUILT_IN:
    assert find(name).name == name
print(json.dumps([sorted(updates._updates), sorted(updates._calls)]))
"""


def test_a_fresh_interpreter_has_all_functions_that_jobs_name() -> None:
    """Updates and calls are registered by modules that nothing else of a job may need."""
    done = subprocess.run(
        [*python(), "-c", REGISTERED], capture_output=True, text=True, check=True, timeout=60, cwd=ROOT.parent
    )
    updates, calls = json.loads(done.stdout)
    for path in (path for name, path in MODULES.items() if name.startswith("mpips.jobs.")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = [each.value for each in node.keywords if each.arg == "update"]
            assert {each.value for each in named if isinstance(each, ast.Constant)} <= set(updates), path
            to_servers = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value).endswith(
                "servers"
            )
            if to_servers and node.args and isinstance(node.args[0], ast.Constant):
                assert node.args[0].value in calls, f"{path}:{node.lineno}"


def test_files_other_than_code_are_installed_too() -> None:
    """A plain installation takes of it what pyproject.toml names, for each package, and nothing below that."""
    reported = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]
    missing = []
    for folder, within, files in os.walk(ROOT):
        within[:] = [each for each in within if each != "__pycache__"]
        package = next(
            each for each in (Path(folder), *Path(folder).parents) if (each / "__init__.py").is_file()
        )
        listed = {each for pattern in reported["*"] for each in glob(f"{package}/{pattern}", recursive=True)}
        whole = {str(Path(folder, file)) for file in files if not file.endswith(".py")}
        missing += sorted(whole - listed)
    assert missing == []


def test_jobs_are_imported_as_parts_of_mpips() -> None:
    """As modules of another name, too, their kernels are compiled for each name, into the same files."""
    other = re.compile(r"^\s*(?:from|import) jobs\b", re.MULTILINE)
    found = [
        path
        for folder in ("tests", "examples", "mpips", "jobs")
        for path in (ROOT.parent / folder).rglob("*.py")
        if other.search(path.read_text("utf-8"))
    ]
    assert found == []
