"""The list of the source files that a kernel depends on."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from mpips.jit.compiler import kernel_sources
from mpips.jit.deferred import Deferred

HELPER = "def address(values):\n    return 0\n"
KERNEL = """
from mpips.jit.deferred import Deferred

address = Deferred("kernel_sources_helper", "address")

def total(values):
    return address(values)
"""


def is_deferred(value: object) -> bool:
    return isinstance(value, Deferred)


@pytest.mark.parametrize("is_imported", [False, True])
def test_the_files_include_that_of_a_deferred_function_whether_or_not_it_has_been_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_imported: bool
) -> None:
    """A list without it would differ between processes, and each would compile the other's kernels again."""
    (tmp_path / "kernel_sources_helper.py").write_text(HELPER)
    (tmp_path / "kernel_sources_kernel.py").write_text(KERNEL)
    monkeypatch.syspath_prepend(tmp_path)
    names = ("kernel_sources_helper", "kernel_sources_kernel")
    try:
        if is_imported:
            import_module("kernel_sources_helper")
        module = import_module("kernel_sources_kernel")
        assert kernel_sources.files(module.total, is_deferred) == [
            str(tmp_path / f"{name}.py") for name in names
        ]
    finally:
        for name in names:
            sys.modules.pop(name, None)
