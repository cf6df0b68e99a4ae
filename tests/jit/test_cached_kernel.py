"""Cached kernels are called without numba, accept the same arguments as with it, and leave other cases to it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = """
import numpy as np
from mpips.jit.kernel import kernel
from made_constants import STEP

@kernel("i8(i8)", "f8(f8)")
def double(x):
    return x + x

@kernel()
def helper(x):
    return x * 2

@kernel("UniTuple(i8, 3)(Array(float32, 1, 'C', True), f4[:, :], b1, u8)")
def shape(read, table, more, key):
    return len(read), table.shape[1] + (10 if more else 0), np.int64(key)

@kernel("f8(f8[::1])")
def total(values):
    if len(values) == 0:
        raise ValueError("no values")
    work = np.empty(len(values))
    for i in range(len(values)):
        work[i] = helper(values[i])
    return work.sum() + np.exp(0.0) + STEP

@kernel("f8[::1](i8)")
def ones(n):
    return np.ones(n)

@kernel("void(f8[:,::1], i4[::1], f8[:,::1])")
def add_rows(table, slots, rows):
    for i in range(len(slots)):
        if slots[i] < 0:
            raise ValueError("a negative slot")
        for j in range(table.shape[1]):
            table[slots[i], j] += rows[i, j]

@kernel("void(i8[::1])")
def count(into):
    for i in range(len(into)):
        into[i] += STEP
"""
START = """
import sys
import numpy as np
import made
def by_numba():
    return "numba" in sys.modules
def refused(kernel, *args):
    try:
        return kernel(*args)
    except Exception:
        return "refused"
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a module whose kernels are in the cache."""
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "made.py").write_text(KERNELS)
    (folder / "made_constants.py").write_text("STEP = 5\n")
    run(folder, "print(by_numba())", "True")
    # `ones` needs more than is loaded without numba; the others are left.
    (folder / "made.py").write_text(KERNELS.replace('@kernel("f8[::1](i8)")', "@kernel()"))
    run(folder, "print(by_numba())", "True")
    return folder


@pytest.fixture
def folder(compiled: Path, tmp_path: Path) -> Path:
    """Return a copy of that folder."""
    return Path(shutil.copytree(compiled, tmp_path / "folder"))


def run(folder: Path, code: str, expected: str, **environ: str) -> str:
    """Run code in a process of its own; check what it prints, return what it says besides."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{START}\n{code}"],
        env={**inherited, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **environ},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == expected, done.stderr
    return done.stderr


def test_neither_numba_nor_llvm_is_imported_to_call_a_kernel(folder: Path) -> None:
    code = """
print(made.double(2), made.double(1.5), made.double(x=3), made.total(np.arange(4.0)))
counts = np.zeros(3, np.int64)
made.count(counts)
print(counts, made.double.__name__, sorted({"numba", "llvmlite", "scipy"} & sys.modules.keys()))
"""
    run(folder, code, "4 3.0 6 18.0\n[5 5 5] double []")


def test_arguments_are_converted_as_by_numba(folder: Path) -> None:
    code = """
table = np.ones((4, 6), np.float32)
read = np.ones(3, np.float32)
fixed = read.copy()
fixed.flags.writeable = False
for arguments in (
    (fixed, table, True, 7), (read, table.T, np.bool_(False), np.uint64(2**63 - 1)), (read, table[:, ::2], False, 2.0),
):
    print(*made.shape(*arguments))
print(made.double(np.float32(2)), made.double(np.int8(-3)), by_numba())
print(refused(made.double, True), refused(made.double, np.uint8(3)), made.double(np.uint64(3)))
"""
    expected = "3 16 7\n3 4 9223372036854775807\n3 3 2\n4.0 -6 False\nrefused refused 6.0"
    run(folder, code, expected)
    run(folder, f"import numba\n{code}", expected.replace("False", "True"))


@pytest.mark.drawn(1)
@pytest.mark.parametrize(
    "argument",
    [
        "np.ones(3)", "np.ones(3, np.int32)", "np.ones(3, '>f4')", "np.ones((3, 1), np.float32)", "np.float32(1)",
        "np.ones(6, np.float32)[::2]", "None", "'a'", "[1.0]", "np.ones(3, np.float16)", "np.array(1, np.float32)",
        "np.ones(3, 'M8[s]')", "np.ones(3, [('a', 'f4')])", "memoryview(bytes(4))",
    ],
)  # fmt: skip
def test_arguments_of_other_types_are_refused_and_the_kernel_continues(folder: Path, argument: str) -> None:
    code = f"""
table, good = np.ones((4, 6), np.float32), np.ones(3, np.float32)
print(refused(made.shape, {argument}, table, False, 1))
print(*made.shape(good, table, False, 1), refused(made.shape, {argument}, table, False, 1), by_numba())
"""
    run(folder, code, "refused\n3 6 1 refused True")


def test_a_table_that_may_only_be_read_is_refused_where_it_may_be_written(folder: Path) -> None:
    code = """
counts = np.zeros(3, np.int64)
counts.flags.writeable = False
print(refused(made.count, counts), counts)
"""
    run(folder, code, "refused [0 0 0]")


def test_numbers_of_arguments_are_checked(folder: Path) -> None:
    run(
        folder, "print(refused(made.double), refused(made.double, 1, 2), by_numba())", "refused refused False"
    )


def test_what_a_kernel_raises_reaches_its_caller(folder: Path) -> None:
    code = """
for _ in range(2):
    try:
        made.total(np.zeros(0))
    except ValueError as error:
        print(error)
print(made.total(np.zeros(1)))
"""
    run(folder, code, "no values\nno values\n6.0")


def test_other_compiled_code_calls_a_kernel_by_its_address(folder: Path) -> None:
    code = """
from ctypes import CFUNCTYPE, c_int32, c_int64
from mpips.jit.kernel_call import ARGUMENTS, FUNCTION, MOST_ARGUMENTS, KernelCall

table, slots, rows = np.zeros((4, 2)), np.array([3, 1], np.int32), np.arange(4.0).reshape(2, 2)
call = KernelCall(made.add_rows, 1)
print(call.prepare([table, slots]), call.prepare([table, slots, rows.astype(np.float32)]))
for each in (slots, -slots):
    print(call.prepare([table, each, rows]))
    function = CFUNCTYPE(c_int32, *[c_int64] * MOST_ARGUMENTS)(int(call.words[FUNCTION]))
    done = function(*call.words[ARGUMENTS:].tolist())
    print(done == 0, table.ravel(), repr(call.take_error()), call.take_error(), by_numba())
"""
    # Numba's package reads what it has pickled.
    expected = """False False
True
True [0. 0. 2. 3. 0. 0. 0. 1.] None None False
True
False [0. 0. 2. 3. 0. 0. 0. 1.] ValueError('a negative slot') None True"""
    run(folder, code, expected)
    run(folder, f"import numba\n{code}", expected.replace("None False", "None True"))


def test_kernels_may_be_called_by_a_profiler_and_by_threads(folder: Path) -> None:
    code = """
import threading
seen, found, together = [], [], threading.Barrier(8)
def work(number):
    together.wait()
    found.append(made.double(number))
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
sys.setprofile(lambda frame, event, argument: seen.append(frame.f_code.co_name))
made.double(1.5)
sys.setprofile(None)
print(sorted(found) == list(range(0, 16, 2)), "double" in seen, by_numba())
"""
    run(folder, code, "True True False")


def test_numba_may_be_imported_later_and_works_with_what_was_loaded_before(folder: Path) -> None:
    code = """
values = np.arange(4.0)
before = made.total(values)
from mpips.jit import numba_extensions
import numba
@numba.njit
def caller(values):
    return made.total(values) + made.helper(1.0) + np.sort(values)[0]
listed = numba.typed.List([3])
print(numba._dispatcher.Dispatcher is numba_extensions._dispatcher.Dispatcher, before, made.total(values))
print(caller(values), isinstance(made.total, type(caller)), listed[0], caller.nopython_signatures == caller.signatures)
"""
    run(
        folder,
        code.replace(", caller.nopython_signatures == caller.signatures", ""),
        "True 18.0 18.0\n20.0 True 3",
    )


def test_a_kernel_of_one_that_was_loaded_is_compiled(folder: Path) -> None:
    (folder / "caller.py").write_text(
        "from made import double, helper\nfrom mpips.jit.kernel import kernel\n\n"
        '@kernel("f8(f8)")\ndef fourfold(x):\n    return double(helper(x))\n'
    )
    code = "print(made.double(1.5)); import caller; print(caller.fourfold(1.5), made.double(1.5))"
    run(folder, f"{code}\nprint(by_numba())", "3.0\n6.0 3.0\nTrue")
    run(folder, f"{code}\nprint(by_numba())", "3.0\n6.0 3.0\nFalse")


def test_numba_handles_what_cached_kernels_do_not_support(folder: Path) -> None:
    code = "print(made.ones(2), by_numba()); print(made.helper(2), made.helper(1.5))"
    run(folder, code, "[1. 1.] True\n4 3.0")
    (folder / "made.py").write_text(KERNELS)
    for _ in range(2):
        run(folder, "print(made.ones(2), made.double(2), by_numba())", "[1. 1.] 4 True")


@pytest.mark.drawn(1)
@pytest.mark.parametrize("name", ["NUMBA_DEBUG_CACHE", "NUMBA_CPU_NAME"])
def test_settings_of_numba_leave_all_to_it(folder: Path, name: str) -> None:
    value = {"NUMBA_CPU_NAME": "generic"}.get(name, "1")
    code = "found = made.double(2)\nprint('found', found, by_numba(), file=sys.stderr)"
    inherited = {key: each for key, each in os.environ.items() if not key.startswith("NUMBA_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{START}\n{code}"],
        env={**inherited, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), name: value},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "found 4 True" in done.stderr


def test_a_number_of_threads_changes_nothing(folder: Path) -> None:
    run(folder, "print(made.double(2), by_numba())", "4 False", NUMBA_NUM_THREADS="1")
    assert "NUMBA_NUM_THREADS" in run(folder, "print(made.double(2))", "4", NUMBA_NUM_THREADS="none")


@pytest.mark.drawn(1)
@pytest.mark.parametrize("place", [10, 30, -10])
def test_damage_is_detected_and_repaired(folder: Path, place: int) -> None:
    (path,) = folder.rglob("made-*.kernels")
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    counts = "counts = np.zeros(1, np.int64); made.count(counts)"
    # the last bytes are those of `count`
    code = f"{counts}; print(counts[0], made.double(2), by_numba())"
    run(folder, code, "5 4 True")
    run(folder, "print(by_numba())", "True" if place < 0 else "False")
    run(folder, code, "5 4 False")


def test_a_file_that_is_gone_before_the_first_call_is_made_again(folder: Path) -> None:
    (path,) = folder.rglob("made-*.kernels")
    run(folder, f"import os; os.unlink({str(path)!r}); print(made.double(2), by_numba())", "4 True")
    run(folder, "print(made.double(2))", "4")
    run(folder, "print(made.double(2), by_numba())", "4 False")


def test_a_change_of_a_constant_that_is_imported_compiles_its_kernels_again(folder: Path) -> None:
    (folder / "made_constants.py").write_text("STEP = 70\n")
    code = "counts = np.zeros(1, np.int64); made.count(counts); print(counts[0], made.double(2), by_numba())"
    run(folder, code, "70 4 True")
    run(folder, code, "70 4 False")


def test_a_copy_of_the_sources_with_other_times_is_compiled_again(folder: Path) -> None:
    os.utime(folder / "made.py", ns=(1, 1))
    code = "print(made.double(2), by_numba())"
    run(folder, code, "4 True")
    run(folder, code, "4 False")
