"""The parser of a command line."""

from __future__ import annotations

import argparse
from typing import NoReturn

from mpips.process.printable import printable


class Parser(argparse.ArgumentParser):
    """A parser that reports a wrong command line in one line, with the command for help; exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit."""
        self.exit(2, f"{self.prog}: error: {printable(message, keep='')}; see {self.prog} --help\n")
