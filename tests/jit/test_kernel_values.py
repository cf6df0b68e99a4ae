"""The values that a program's kernel is compiled from: with other ones, its cached code is not used."""

from __future__ import annotations

import enum
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mpips.jit.kernel_values import digest_of

PROGRAM = """
import os
from mpips import kernel
import constants, helpers
from constants import BASE
TWICE, TABLE = BASE * 2, (BASE, 1.0)
GIVEN = float(os.environ["GIVEN"])

@kernel("f8(f8)")
def of_a_module(x): return x + constants.BASE
@kernel("f8(f8)")
def of_a_helper(x): return helpers.shifted(x)
@kernel("f8(f8)")
def computed(x): return x + TWICE
@kernel("f8(f8)")
def in_a_tuple(x): return x + TABLE[0]
@kernel("f8(f8)")
def of_the_environment(x): return x + GIVEN
@kernel()
def without_signature(x): return x + constants.BASE + TWICE + GIVEN
def made(rate):
    @kernel()
    def made(x): return x + rate
    return made
inner = made(GIVEN)
@kernel()
def shifted(x, by=GIVEN): return x + by
@kernel("f8(f8)")
def of_a_closure(x): return inner(x)
@kernel("f8(f8)")
def of_a_default(x): return shifted(x)

all_kernels = (
    of_a_module, of_a_helper, computed, in_a_tuple, of_the_environment, without_signature, of_a_closure, of_a_default
)
print(*(each(0.5) for each in all_kernels))
"""
HELPERS = (
    "from mpips import kernel\nimport constants\n@kernel()\ndef shifted(x): return x - constants.SHIFT\n"
)


UNCACHED = """
import os
import numpy as np
from mpips import kernel
TABLE = np.full(1 << 18, float(os.environ["GIVEN"]))

@kernel()
def entry(i): return TABLE[i]
@kernel("f8(i8)")
def of_a_table(i): return entry(i)
print(of_a_table(5))
"""


REGISTERED = """
import numba
from numba.core.typing.templates import builtin_registry
from numba.extending import overload, overload_attribute, overload_method
from mpips.jit.kernel_values import digest_of

def function(given): overload(stub)(lambda x: lambda x: x + given)
def method(given): overload_method(numba.types.Array, "mine")(lambda x: lambda x: x.sum() + given)
def attribute(given): overload_attribute(numba.types.Array, "mine")(lambda x: lambda x: x.sum() + given)
def number(given): return numba.float32 if given == 1 else numba.float64
def jitclass(given):
    @numba.experimental.jitclass([("v", numba.float64)])
    class Made:
        def __init__(self): self.v = 1.0
        @property
        def value(self): return given
    return Made
def fields(given): return numba.experimental.jitclass([("v", number(given))])(Empty)
class Empty:
    def __init__(self): pass
def stub(x): ...

for made in (function, method, attribute, number, jitclass, fields):
    for given in (1, 2):
        name = made(given) or stub
        def used(x): return name(x)
        print(made.__name__, digest_of(used))
        del builtin_registry.functions[-1 if made is function else len(builtin_registry.functions):]
        del builtin_registry.attributes[-1 if made in (method, attribute) else len(builtin_registry.attributes):]
"""


def test_what_a_program_registers_with_numba_makes_a_difference() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-P", "-W", "error", "-c", REGISTERED], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, timeout=120, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert found[0] == found[1]
    assert len(set(found[0].splitlines())) == 12


def said(folder: Path, base: float, shift: float, given: float) -> list[float]:
    (folder / "constants.py").write_text(f"BASE = {base}\nSHIFT = {shift}\n")
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=300, check=True,
        env={"PATH": "", "HOME": str(folder), "GIVEN": str(given), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    return [float(each) for each in done.stdout.split()]


def test_compiled_code_has_the_present_values(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "helpers.py").write_text(HELPERS)
    for base, shift, given in ((10.0, 1.0, 7.0), (20.0, 2.0, 9.0), (10.0, 1.0, 7.0)):
        right = [base + 0.5, 0.5 - shift, 2 * base + 0.5, base + 0.5, given + 0.5, 3 * base + given + 0.5]
        assert said(tmp_path, base, shift, given) == [*right, given + 0.5, given + 0.5]


def test_a_kernel_that_numba_cannot_cache_works(tmp_path: Path) -> None:
    # Its code contains the address of the large table.
    (tmp_path / "program.py").write_text(UNCACHED)
    for given in (1.0, 2.0):
        assert said(tmp_path, 0.0, 0.0, given) == [given]


def function(text: str, **names: Any) -> Callable[..., Any]:
    space = {"__name__": "mine", **names}
    exec(text, space)
    return next(each for name, each in space.items() if name == "used")  # type: ignore[no-any-return]


def closure(value: Any) -> Callable[..., Any]:
    return lambda: value


class Colour(enum.IntEnum):
    RED = 1


class Plain(enum.Enum):
    RED = 1
    GREEN = 2


def module(**values: Any) -> ModuleType:
    made = ModuleType("made")
    vars(made).update(values)
    return made


class Odd:
    """Whose attributes cannot be read."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


VALUES: list[tuple[Any, Any]] = [
    (1, 2), (1, 1.0), (1, True), ("a", "b"), (b"a", b"b"), ((1, 2), (1, 3)), ((1, (2,)), (1, (3,))), (0.0, -0.0),
    (np.arange(3), np.arange(3.0)), (np.zeros(3), np.ones(3)), (np.zeros((1, 2)), np.zeros((2, 1))),
    (np.float32(1), np.float32(2)), (np.dtype("f4"), np.dtype("f8")), (np.float32, np.float64),
    (Colour, enum.IntEnum("Colour", {"RED": 2})), (module(C=1), module(C=2)), (module(C=1, D=2), module(C=2, D=2)),
    (function("def used(x): return x"), function("def used(x): return -x")),
    (function("def used(x): return K", K=1), function("def used(x): return K", K=2)),
    (function("def used(x=K): return x", K=1), function("def used(x=K): return x", K=2)),
    (function("def used(*, x=K): return x", K=1), function("def used(*, x=K): return x", K=2)),
    (closure(1), closure(2)), (closure(closure(1)), closure(closure(2))), (Plain.RED, Plain.GREEN),
]  # fmt: skip


@pytest.mark.parametrize(("value", "other"), VALUES)
def test_every_value_that_compiled_code_may_contain_makes_a_difference(value: Any, other: Any) -> None:
    text = "def used(x): return V.C + V"
    assert digest_of(function(text, V=value)) == digest_of(function(text, V=value))
    assert digest_of(function(text, V=value)) != digest_of(function(text, V=other))


def test_each_of_several_values_of_a_closure_makes_a_difference() -> None:
    def of(a: float, b: float, c: float) -> str:
        def inner(x: float) -> float:
            return a * x + b * x + c

        return digest_of(inner)

    assert len({of(1.0, 2.0, 3.0), of(4.0, 2.0, 3.0), of(1.0, 4.0, 3.0), of(1.0, 2.0, 4.0)}) == 4


def test_a_set_of_constants_makes_the_same_digest_in_each_process() -> None:
    text = "from mpips.jit.kernel_values import digest_of\ndef used(x): return x in {'a', 'b', 'c', 'd'}\n"
    run = [sys.executable, "-P", "-c", text + "print(digest_of(used))"]
    found = {
        subprocess.run(
            run, env=os.environ | {"PYTHONHASHSEED": str(n)}, capture_output=True, timeout=60
        ).stdout
        for n in range(3)
    }
    assert len(found) == 1 and len(found.pop()) == 17


def test_functions_that_use_other_parts_of_one_module_are_told_apart() -> None:
    def of(d: int) -> str:
        both = module(C=1, D=d)
        inner = function("def used(x): return M.D", M=both)
        return digest_of(function("def used(x): return M.C + inner(x)", M=both, inner=inner))

    assert of(1) == of(1) and of(1) != of(2)


def test_what_compiled_code_cannot_contain_makes_none() -> None:
    same = [function("def used(x): return V", V=each, UNUSED=n) for n, each in enumerate((Odd(), Odd()))]
    assert len({digest_of(each) for each in same}) == 1
    recursive = function("def used(x): return used(x) + L[0]", L=[])
    recursive.__globals__["L"].append(recursive.__globals__["L"])
    assert len(digest_of(recursive)) == 16
    unset = function("def used():\n def made(): return later\n return made\n later = 1")()
    assert len(digest_of(unset)) == 16
    assert digest_of(function("def used(x): return V", __name__="mpips.filters.zeros", V=1)) == ""
