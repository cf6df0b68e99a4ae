"""The recipe of mpips for Spack 1 and later."""

# Recipes of Spack take all names from there.
# ruff: noqa: F403, F405
from spack.package import *
from spack_repo.builtin.build_systems.python import PythonPackage


class PyMpips(PythonPackage):
    """The parameter server (Li et al., OSDI 2014) as an ordinary MPI job."""

    # Of the sdist of a version, as `make package` writes it.
    pypi = "mpips/mpips-0.1.0.tar.gz"

    license("Apache-2.0")

    # spack checksum py-mpips fills in the checksum.
    version("0.1.0")

    variant("tables", default=True, description="Read tables in CSV and Parquet")
    variant("zstd", default=True, description="Read files compressed by Zstandard")

    depends_on("python@3.11:", type=("build", "run"))
    depends_on("py-setuptools@77:", type="build")
    depends_on("mpi", type="run")
    depends_on("py-greenlet@3:", type=("build", "run"))
    depends_on("py-h5py@3.10: ~mpi", type=("build", "run"))
    depends_on("py-jinja2@3.1:", type=("build", "run"))
    depends_on("py-mpi4py@4.1:", type=("build", "run"))
    depends_on("py-numba@0.61:0.68", type=("build", "run"))
    depends_on("py-numpy@1.26:", type=("build", "run"))
    depends_on("py-pyarrow@17: +parquet", when="+tables", type=("build", "run"))
    depends_on("py-zstandard@0.22:", when="+zstd", type=("build", "run"))

    @run_after("install")
    def compile_kernels(self):
        """Compile the kernels once, for all users."""
        python("-P", "-m", "mpips.jit.compile_all")
