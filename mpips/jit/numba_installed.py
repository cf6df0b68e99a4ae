"""Which numba is installed, without importing it, and whether cached kernels can be called without it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from mpips.jit import kernel_index

TRIED = ("0.61.2", "0.68.1")
"""Tested versions: the latest with all of tests/jit, the oldest with the tests of kernels and of numba's names."""
THREADS = "NUMBA_NUM_THREADS"
HARMLESS = {"NUMBA_CACHE_DIR", THREADS, "NUMBA_DISABLE_JIT"}
"""Variables of numba that do not change what a kernel does; with any other, all is left to numba."""
_VERSION = re.compile(r"version_json = '''(.*?)'''", re.DOTALL)


@cache
def folder() -> Path | None:
    """Return the folder of the package; None if it is not installed as files."""
    spec = importlib.util.find_spec("numba")
    return None if spec is None or not spec.origin else Path(spec.origin).parent


def is_tested(version: str) -> bool:
    """Return whether a version is within those tested.

    >>> [is_tested(each) for each in ("0.60.0", "0.61.2", "0.68.9", "0.69.0")]
    [False, True, True, False]
    """
    first, here, last = (
        [int(part) for part in each.split(".")[:2]] for each in (TRIED[0], version, TRIED[1])
    )
    return first <= here <= last


@cache
def key() -> str:
    """Return the key of files with kernels; "" if kernels are called by numba only.

    That is so for a version of numba that was not tested, and on other systems than Linux.
    """
    package = folder()
    if package is None or sys.platform != "linux":
        return ""
    try:
        found = _VERSION.search((package / "_version.py").read_text(encoding="utf-8"))
        tried = found is not None and is_tested(json.loads(found[1])["version"])
    except (OSError, ValueError, KeyError):
        return ""
    return kernel_index.key(found[1]) if found is not None and tried else ""


def is_needed() -> bool:
    """Return whether this process has imported numba, or has settings of numba that may matter."""
    return "numba" in sys.modules or _has_settings() or not key()


@cache
def _has_settings() -> bool:
    unusual = any(name.startswith("NUMBA_") and name not in HARMLESS for name in os.environ)
    return unusual or not are_threads(os.environ.get(THREADS, "1"))


def are_threads(value: str) -> bool:
    """Return whether numba accepts a text as its number of threads; with others its import fails with a traceback.

    >>> [are_threads(each) for each in ("1", " 8 ", "0", "-1", "two")]
    [True, True, False, False, False]
    """
    digits = value.strip()
    return digits.isascii() and digits.isdigit() and int(digits) > 0


class _Settings:
    """Makes numba ignore a configuration file in the working folder, whichever module imports numba.

    The file may be another user's, and can set the folder from which cached code is loaded. Numba reads it when
    `numba.core.config` is imported.
    """

    def find_spec(self, fullname: str, path: object = None, target: object = None, /) -> ModuleSpec | None:
        """Find that module, so that its configuration is set when it has been imported."""
        if fullname != "numba.core.config":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_ignore(module: Any) -> None:
                execute(module)
                ignore_file(module)

            spec.loader.exec_module = execute_and_ignore  # type: ignore[method-assign]
        return spec


def ignore_file(config: Any) -> None:
    """Let only environment variables determine numba's configuration."""
    config._config_fname = os.devnull
    config.reload_config()


if "numba.core.config" in sys.modules:
    ignore_file(sys.modules["numba.core.config"])
else:
    sys.meta_path.insert(0, _Settings())
