"""The parser of a command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mpips.process.printable import printable


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line, and where its help is; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Leave with it."""
        self.exit(2, f"{self.prog}: error: {printable(message, keep='')}; see {self.prog} --help\n")
