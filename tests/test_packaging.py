"""Packages and recipes: versions and dependencies agree, and the built wheel works in an environment of its own."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mpips
from mpips.cli.main import main, parser
from mpips.process.interpreter import python

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION: str = PROJECT["version"]
RECIPES = ROOT / "packaging"


def needs() -> dict[str, str]:
    """The least version of each package that mpips needs."""
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+).*", each) for each in PROJECT["dependencies"]]
    return {each[1]: each[2] for each in found if each is not None}


def test_all_files_have_the_same_version() -> None:
    assert mpips.__version__ == VERSION
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None and first[1] == VERSION
    assert f'version("{VERSION}")' in (RECIPES / "spack" / "package.py").read_text()
    assert f'set version = "{VERSION}"' in (RECIPES / "conda" / "meta.yaml").read_text()
    assert f"version = '{VERSION}'" in next((RECIPES / "easybuild").glob(f"mpips-{VERSION}-*.eb")).read_text()
    assert f"mpips-{VERSION}.tar.gz" in (RECIPES / "apptainer" / "mpips.def").read_text()
    assert f"/{VERSION}" in (RECIPES / "modulefile" / f"{VERSION}.lua").read_text()


def test_a_tag_is_the_version() -> None:
    tags = subprocess.run(
        ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD", "v*"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert tags.stdout.split() in ([], [f"v{VERSION}"])


def test_recipes_need_what_the_project_needs() -> None:
    assert len(needs()) == len(PROJECT["dependencies"])
    spack, conda = (
        (RECIPES / "spack" / "package.py").read_text(),
        (RECIPES / "conda" / "meta.yaml").read_text(),
    )
    easybuild = next((RECIPES / "easybuild").glob("*.eb")).read_text()
    for name, least in needs().items():
        assert re.search(rf'"py-{name}@{re.escape(least.removesuffix(".0"))}(\.0)?:', spack), name
        assert f"- {name} >={least}" in conda, name
        # Those that are not named there are in its bundles.
        assert name in ("numpy", "jinja2") or f"('{name}', " in easybuild, name
    compile(easybuild, "mpips.eb", "exec")


def spec_of(text: str) -> None:
    """Fail unless a text is a specification of a package as the recipe has them."""
    assert re.fullmatch(r"[a-z0-9-]*(@[\d.]*:?[\d.]*)?( ?[+~][a-z]+)*", text), text


def test_the_recipe_of_spack_uses_directives_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spack is in no package registry: these are the signatures of its package API 2 that the recipe uses."""

    def version(ver: str, checksum: str | None = None, *, sha256: str | None = None) -> None: ...
    def license_(license_identifier: str, checked_by: str | None = None, when: str | None = None) -> None: ...

    def variant(
        name: str, default: bool | None = None, description: str = "", when: str | None = None
    ) -> None:
        variants.add(name)

    def depends_on(spec: str, when: str = "", type: str | tuple[str, ...] = ("build", "link")) -> None:
        spec_of(spec)
        assert {type} <= {"build", "run"} if isinstance(type, str) else set(type) <= {"build", "link", "run"}
        assert not when or when.removeprefix("+") in variants

    def run_after(*phases: str, when: str | None = None) -> Any:
        assert phases == ("install",)
        return lambda method: method

    variants: set[str] = set()
    names = [version, license_, variant, depends_on, run_after]
    api: dict[str, Any] = {each.__name__.rstrip("_"): each for each in names}
    systems = ModuleType("spack_repo.builtin.build_systems.python")
    systems.PythonPackage = object  # type: ignore[attr-defined]
    package = ModuleType("spack.package")
    vars(package).update(api)
    for name in ("spack", "spack_repo", "spack_repo.builtin", "spack_repo.builtin.build_systems"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, systems.__name__, systems)
    recipe = runpy.run_path(str(RECIPES / "spack" / "package.py"))
    assert recipe["PyMpips"].pypi == f"mpips/mpips-{VERSION}.tar.gz"
    assert variants == {"tables", "zstd"}


def test_the_citation_is_valid() -> None:
    pytest.importorskip("cffconvert")
    line = [str(Path(sys.executable).parent / "cffconvert"), "--validate", "-i", str(ROOT / "CITATION.cff")]
    found = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_has_all_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    commands = next(each for each in parser()._actions if each.dest == "==SUPPRESS==" or each.choices).choices
    assert commands and all(name in script for name in commands) and "no-kill" not in commands


def test_each_command_has_a_man_page_with_its_examples_as_they_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("argparse_manpage")
    line = [*python(), str(RECIPES / "man_pages.py"), str(tmp_path)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 0, found.stderr
    commands = next(each for each in parser()._actions if each.dest == "==SUPPRESS==" or each.choices).choices
    assert commands is not None
    assert {path.name for path in tmp_path.iterdir()} == {
        "mpips.1",
        *(f"mpips-{name}.1" for name in commands),
    }
    page = (tmp_path / "mpips-run.1").read_text()
    assert page.startswith('.TH "MPIPS\\-RUN" "1" ')
    assert "\nmpips\\-run \\- run a job here, or inside an allocation\n" in page
    (examples,) = re.findall(r"\.nf\n(.*?)\.fi\n", page, re.S)
    assert "  mpips run JOB.toml \\-\\-servers 2 \\-\\-workers 4\n" in examples


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of sdist, wheel and man page, built from a copy of the committed files."""
    for module in ("build", "setuptools", "twine", "argparse_manpage"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("package")
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", "HEAD"], capture_output=True, timeout=60, check=False
    )
    if archive.returncode:
        pytest.skip("this is no git checkout")
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, timeout=60, check=True)
    line = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(folder)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-3000:]
    return folder / "dist"


def test_the_packages_hold_the_project_and_nothing_else(built: Path) -> None:
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    line = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)]
    found = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    line = ["git", "-C", str(ROOT), "ls-files", "mpips", "jobs", "slurm"]
    listed = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    listed = [name for name in listed if not name.startswith("slurm/testing/")]
    # Links to jobs/ and slurm/.
    files = {name if name.startswith("mpips/") else f"mpips/{name}" for name in listed} - {
        "mpips/jobs",
        "mpips/slurm",
    }
    with zipfile.ZipFile(wheel) as packed, tarfile.open(source) as archive:
        inside = {name for name in packed.namelist() if not name.startswith(f"mpips-{VERSION}.dist-info/")}
        assert inside == files
        top = f"mpips-{VERSION}/"
        rest = {each.name.removeprefix(top) for each in archive if each.isfile()} - files
    assert {name for name in rest if not name.startswith("mpips.egg-info/")} == {
        "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md",
        "SECURITY.md", "pyproject.toml", "setup.cfg",
    }  # fmt: skip


def test_the_command_line_starts_with_the_files_of_the_wheel_alone(built: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        wheel.extractall(tmp_path)
    # Neither imports kernels, which would be compiled there for a minute.
    start = "import mpips.cli; print(mpips.__file__); raise SystemExit(mpips.cli.main(['run', '--help']))"
    found = subprocess.run(
        [*python(), "-c", start],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (
        found.returncode == 0
        and found.stdout.startswith(str(tmp_path))
        and "usage: mpips run" in found.stdout
    )
