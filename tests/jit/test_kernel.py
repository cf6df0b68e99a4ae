"""Kernels are compiled once; a process that finds them in the cache loads only those it calls, and no compiler."""

from __future__ import annotations

import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mpips import kernel
from mpips.jit.compiler.numba_internals import is_cached

ROOT = Path(__file__).parents[2]

KERNELS = """
import numpy as np
from mpips.jit.kernel import kernel

@kernel("i8(i8)", "f8(f8)")
def double(x):
    return x + x

@kernel("f8[::1](i8)")
def ones(n):
    return np.ones(n)
"""

CALLER = """
from made_kernels import double
from mpips.jit.kernel import kernel

@kernel("f8(f8)")
def fourfold(x):
    return double(double(x))
"""

COMPILER = "numba.np.arraymath"  # which the compiler registers, and scipy comes with


LOADED = f"""
print({COMPILER!r} in sys.modules, len(made_kernels.double.overloads), len(made_kernels.ones.overloads))
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of modules whose kernels are in the cache."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "made_kernels.py").write_text(KERNELS)
    (folder / "made_caller.py").write_text(CALLER)
    assert python(folder, f"import made_kernels{LOADED}") == ["True", "2", "1"]
    return folder


@pytest.fixture
def folder(compiled: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder."""
    return Path(shutil.copytree(compiled, tmp_path / "folder"))


def python(folder: Path, code: str) -> list[str]:
    """Run code in a process of its own, where modules in a folder are found; return the words that it prints."""
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"],
        env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_decorator_that_is_not_called_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"or @kernel\(\) without any"):
        kernel(abs)  # type: ignore[arg-type]


def test_a_cached_kernel_is_loaded_when_it_is_called_and_the_compiler_is_not(folder: Path) -> None:
    calls = "print(made_kernels.double(2), made_kernels.double(1.5), made_kernels.double(x=3))"
    said = python(
        folder, f"import made_kernels{LOADED}{calls}{LOADED}print(made_kernels.ones(3).sum()){LOADED}"
    )
    assert said == ["False", "0", "0", "4", "3.0", "6", "False", "2", "0", "3.0", "False", "2", "1"]


def test_a_cached_kernel_that_is_not_called_costs_no_dispatcher_and_no_file(folder: Path) -> None:
    code = """
import tempfile
tempfile.TemporaryFile = None
import made_kernels
print("overloads" in vars(made_kernels.double), made_kernels.double(1.5), "overloads" in vars(made_kernels.double))
print(made_kernels.double.__name__, "scipy" in sys.modules)
"""
    assert python(folder, code) == ["False", "3.0", "True", "double", "False"]


def test_a_caller_of_a_cached_kernel_is_compiled_with_the_declared_types(folder: Path) -> None:
    said = python(folder, f"import made_kernels, made_caller{LOADED}print(made_caller.fourfold(1.5))")
    assert said == ["True", "2", "0", "6.0"]


def test_a_kernel_that_has_been_loaded_can_be_built_into_another(folder: Path) -> None:
    code = f"print(made_kernels.double(1.5)); import made_caller{LOADED}print(made_caller.fourfold(1.5))"
    assert python(folder, f"import made_kernels\n{code}") == ["3.0", "True", "2", "0", "6.0"]


def test_only_the_machine_code_of_a_cached_kernel_is_loaded(folder: Path) -> None:
    code = """
import made_kernels
import llvmlite.binding as llvm
read, real = [], llvm.parse_bitcode
llvm.parse_bitcode = lambda code: read.append(real(code)) or read[-1]
made_kernels.ones(3)
print(len(read), sum(not block.is_declaration and len(list(block.blocks)) for block in read[0].functions))
print(*(name for name in sys.modules if name.startswith("numba.np.arrayobj")))
"""
    # One module with three names, and nothing in them but the end.
    assert python(folder, code) == ["1", "3"]


def test_a_rank_that_is_asked_to_stop_while_it_loads_compiles_what_it_calls_only(tmp_path: Path) -> None:
    (tmp_path / "made_kernels.py").write_text(KERNELS)
    asked = "from mpips.process import stop_signals; stop_signals.received.append(15)"
    calls = f"{LOADED}print(made_kernels.double(2), made_kernels.double(1.5)){LOADED}"
    said = python(tmp_path, f"{asked}\nimport made_kernels{calls}")
    assert said[1:] == ["0", "0", "4", "3.0", "True", "2", "0"]


def test_a_cached_kernel_takes_nothing_that_was_not_declared(folder: Path) -> None:
    refused = "made_kernels.double('a')"
    said = python(folder, f"import made_kernels\ntry: {refused}\nexcept TypeError: print('refused'){LOADED}")
    assert said == ["refused", "False", "2", "0"]


def test_another_cache_format_of_numba_counts_as_not_cached() -> None:
    assert not is_cached(SimpleNamespace(), ["f8(f8)"])  # it has none of the parts that are looked at


def test_threads_may_call_a_kernel_first_at_the_same_time(folder: Path) -> None:
    code = """
import made_kernels, threading
together, found = threading.Barrier(8), []
def first(number):
    together.wait()
    found.append(made_kernels.double(number))
threads = [threading.Thread(target=first, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(found) == list(range(0, 16, 2)))
"""
    assert python(folder, code) == ["True"]


SLOWLY = """
import time, threading
import made_kernels
began, found = threading.Event(), []
def slow(function):
    def slowly(*arguments):
        began.set()
        time.sleep(0.3)
        return function(*arguments)
    return slowly
"""
SECOND = """
first = threading.Thread(target=lambda: found.append(made_kernels.double(1)))
first.start()
began.wait()
found.append(made_kernels.double(2))
first.join()
"""
"""Calls a kernel while another thread is at what was made slow."""


def test_a_thread_that_comes_while_another_loads_waits_for_it(folder: Path) -> None:
    (folder / "made_kernels.py").write_text(KERNELS.partition('@kernel("f8[::1](i8)")')[0])
    assert python(folder, "import made_kernels\nprint(made_kernels.double(2))") == ["4"]
    code = """
from mpips.jit.numba_extensions import CachedKernel
insert = slow(CachedKernel._insert)
CachedKernel._insert = lambda self, *arguments: insert(self, *arguments)
"""
    said = python(folder, f'{SLOWLY}{code}{SECOND}print(sorted(found), "numba" in sys.modules)')
    assert said == ["[2,", "4]", "False"]


def test_a_thread_that_comes_while_another_makes_a_dispatcher_waits_for_it(folder: Path) -> None:
    code = """
from mpips.jit.compiler import numba_internals
numba_internals.is_cached = slow(numba_internals.is_cached)
"""
    assert python(folder, f"{SLOWLY}{code}{SECOND}print(sorted(found))") == ["[2,", "4]"]


def test_what_has_changed_or_is_gone_is_compiled_again(folder: Path) -> None:
    for data in [*folder.rglob("*double*.nbc"), *folder.rglob("*.kernels")]:
        data.unlink()
    assert python(folder, f"import made_kernels{LOADED}") == ["True", "2", "0"]
    (folder / "made_kernels.py").write_text(KERNELS.replace("x + x", "x + x + x"))
    assert python(folder, "import made_kernels\nprint(made_kernels.double(2))") == ["6"]


SPOILT = {
    "a named pipe": os.mkfifo,
    "a link to a named pipe": lambda path: (os.mkfifo(path.parent / "pipe"), path.symlink_to("pipe")),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "a folder": Path.mkdir,
    "random bytes": lambda path: path.write_bytes(random.Random(1).randbytes(5000)),
    "a pickled number": lambda path: path.write_bytes(pickle.dumps(5)),
    "nothing": Path.touch,
}


FEW = ("a named pipe", "a folder", "random bytes")


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    "spoilt, suffix",
    [
        pytest.param(spoilt, suffix, marks=[] if spoilt in FEW else [pytest.mark.long])
        for spoilt, suffix in zip(SPOILT, [".nbi", ".nbc"] * 4, strict=True)
    ],
)
def test_incomplete_files_in_the_cache_are_compiled_again(folder: Path, spoilt: str, suffix: str) -> None:
    files = sorted(folder.rglob(f"*double*{suffix}"))
    assert files
    for path in files:
        path.unlink()
        (path.parent / "pipe").unlink(missing_ok=True)
        SPOILT[spoilt](path)
    assert python(folder, f"import made_kernels\nprint(made_kernels.double(2)){LOADED}") == [
        "4", "True", "2", "0",
    ]  # fmt: skip
    again = python(folder, f"import made_kernels\nprint(made_kernels.double(2)){LOADED}")
    assert again == ["4", *(["True"] if spoilt == "a folder" else ["False"]), "2", "0"]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
def test_one_flipped_bit_in_the_cache_is_detected(folder: Path, suffix: str) -> None:
    for path in folder.rglob(f"*double*{suffix}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    code = f"import made_kernels\nprint(made_kernels.double(2)){LOADED}"
    assert python(folder, code) == ["4", "True", "2", "0"]
    assert python(folder, code) == ["4", "False", "2", "0"]


def test_a_warm_up_compiles_what_ranks_load_later_too(tmp_path: Path) -> None:
    code = f"""
from mpips.rank.main import main
assert main(["--warm-up", {str(ROOT / "tests" / "jobs" / "programs" / "job.toml")!r}]) == 0
before = {{name for name in sys.modules if name.startswith("mpips.")}}
from mpi4py import MPI
print("mpips.transport.fastpath.server" in before, MPI.Is_initialized())
"""
    assert python(tmp_path, code) == ["True", "False"]


def test_settings_of_numba_in_the_working_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "yaml.py").write_text(
        "def safe_load(file):\n    return {'cache_dir': file.read()}\n"
    )
    (tmp_path / ".numba_config.yaml").write_text("/elsewhere")
    shown = "import numba; print(numba.config.CACHE_DIR or 'none')"
    for code, said in ((shown, "/elsewhere"), (f"import mpips.jit.kernel; {shown}", "none")):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
        environ["PYTHONPATH"] = os.pathsep.join([str(tmp_path / "modules"), str(ROOT)])
        done = subprocess.run(
            [sys.executable, "-P", "-c", code],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == said + "\n"


@pytest.mark.parametrize("first", ["mpips.jit.kernel", "mpips.jit.numba_pointers"])
def test_unreadable_settings_of_numba_cause_no_warning(tmp_path: Path, first: str) -> None:
    """Numba reads them by PyYAML, which may be missing; whichever module loads numba."""
    (tmp_path / ".numba_config.yaml").touch()
    code = f"import sys; sys.modules['yaml'] = None; import {first}"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
