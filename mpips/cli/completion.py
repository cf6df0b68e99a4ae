"""`mpips completion`: complete the words of mpips' command line in a shell."""

from __future__ import annotations

import argparse
from typing import Any

from mpips.process.argument_parser import add_command

DESCRIPTION = """\
Print a script by which a shell completes commands, options and file names of mpips (by shtab: pip install shtab).

  mpips completion bash > ~/.local/share/bash-completion/completions/mpips
  mpips completion zsh > ~/.zfunc/_mpips        with fpath+=~/.zfunc before compinit
  mpips completion fish > ~/.config/fish/completions/mpips.fish
"""

SHELLS = "bash", "zsh", "fish"
FILES = "FILE", "JOB", "RUN", "MODEL", "IN", "OUT", "DIR", "CHECKPOINT"
"""Parts of the names of arguments that are files or folders."""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    parser = add_command(subparsers, "completion", "complete command lines in a shell", DESCRIPTION, command)
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def command(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from mpips.errors import InputError

    try:
        import shtab
    except ImportError:
        raise InputError("completion needs shtab: pip install shtab") from None
    _complete_files(arguments.root, shtab.FILE)
    print(shtab.complete(arguments.root, arguments.shell))
    return 0


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Let the arguments of all commands that are files be completed as such."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                _complete_files(each, files)
        elif isinstance(action.metavar, str) and any(name in action.metavar.upper() for name in FILES):
            action.complete = files  # type: ignore[attr-defined]
