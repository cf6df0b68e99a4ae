"""The site file: valid contents, and one line that names the place for everything else."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpips.errors import InputError
from mpips.launch import slurm_site
from mpips.launch.slurm_site import Site


def written(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_editor_of_windows_may_have_written_it(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_bytes(b'\xef\xbb\xbfpartition = "batch"\r\nqos = "low"\r\n')
    assert slurm_site.load(path) == Site(partition="batch", qos="low")
    path.write_bytes(b'\xef\xbb\xbfpartition = "a b"\r\n')
    with pytest.raises(InputError, match=rf"{path}:1: partition must be one word"):
        slurm_site.load(path)
    path.write_text('partition = "batch"', "utf-16")
    with pytest.raises(InputError, match=rf"^{path}: the site file is not UTF-8 text \(byte 0\)$"):
        slurm_site.load(path)


def test_no_site_file_gives_the_defaults() -> None:
    assert slurm_site.load(None) == Site()


def test_the_example_site_file_is_valid() -> None:
    assert slurm_site.load(Path(__file__).parents[2] / "slurm" / "site.toml").launcher in ("mpirun", "srun")


def test_it_is_read_with_its_types(tmp_path: Path) -> None:
    text = 'partition = "p"\noptions = ["--mem=0"]\nlauncher = "srun"\n[environment]\nA = "x y"\n'
    assert slurm_site.load(written(tmp_path, text)) == Site(
        partition="p", options=("--mem=0",), launcher="srun", environment={"A": "x y"}
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('partition = "a b"', ":1: partition must be one word of letters, digits and _.,:+@/-, got 'a b'"),
        ('account = "$(id)"', ":1: account must be one word"),
        ('qos = "a\\nb"', ":1: qos must be one word"),
        ('\nmodules = ["gcc", "x;y"]', ":2: modules must be one word"),
        ('options = ["--comment=a b"]', ":1: options: write --NAME or --NAME=VALUE"),
        ('options = ["-N4"]', ":1: options: write --NAME or --NAME=VALUE"),
        ('options = ["--nodes=4"]', ":1: options: --nodes is decided by --nodes"),
        ('setup = "setup.sh"', ":1: setup must be an absolute path, got 'setup.sh'"),
        ('python = "/a\\nb"', ":1: python must have no newline or other control character, got '/a\\nb'"),
        ('[environment]\n"A B" = "x"', ":1: environment: 'A B' is not a variable name"),
        ('[environment]\nA = "x\\u0000"', ":1: environment.A must have no newline"),
        ("[environment]\nA = 1", ":2: A must be a string, got 1"),
        ('launcher = "mpiexec"', ':1: launcher must be one of "mpirun", "srun", got \'mpiexec\''),
        ('partitoin = "a"', ":1: unknown key 'partitoin'; did you mean 'partition'?"),
        ("partition = ", ": not TOML: "),
    ],
)
def test_errors_are_one_line_that_names_the_place(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        slurm_site.load(path)
    assert str(caught.value).startswith(f"{path}{said}")
    assert "\n" not in str(caught.value)


def test_it_is_found_by_name_then_by_variable_then_at_home(tmp_path: Path) -> None:
    home = tmp_path / ".config" / "mpips"
    home.mkdir(parents=True)
    (home / "site.toml").touch()
    mine = written(tmp_path, "")
    assert slurm_site.find(None, {"HOME": str(tmp_path)}) == home / "site.toml"
    assert slurm_site.find(None, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": "/nowhere"}) is None
    assert slurm_site.find(None, {"HOME": str(tmp_path), "MPIPS_SITE": str(mine)}) == mine
    assert slurm_site.find(str(mine), {"MPIPS_SITE": "/no/file"}) == mine
    for named, environ, who in (("/no/file", {}, "--site"), (None, {"MPIPS_SITE": "/no/file"}, "MPIPS_SITE")):
        with pytest.raises(InputError, match=f"{who} /no/file: no such file"):
            slurm_site.find(named, environ)
