"""Training data: readers of svmlight, delimited categories and HDF5; each worker's part; its matrix; conversion.

The workers' data of the paper's section 3.1. May import: the root modules, process/, files/, jit/, rundir/ and
storage/.
"""

from mpips.data.examples import Examples, Tally, concatenate, minibatches
from mpips.data.kept_columns import KeptColumns
from mpips.data.matrix import Columns, load_columns
from mpips.data.read import format_of, read
from mpips.data.same_files import SameFiles, check_sizes
from mpips.data.spec import DataSpec, expand, resolve, unusual_files

__all__ = [
    "Columns",
    "DataSpec",
    "Examples",
    "KeptColumns",
    "SameFiles",
    "Tally",
    "check_sizes",
    "concatenate",
    "expand",
    "format_of",
    "load_columns",
    "minibatches",
    "read",
    "resolve",
    "unusual_files",
]
