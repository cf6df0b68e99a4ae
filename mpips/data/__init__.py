"""Training data: readers of svmlight, delimited categories, HDF5, tables; each worker's part; its matrix; conversion.

The workers' data of the paper's section 3.1. May import: the root modules, process/, files/, jit/, rundir/ and
storage/.
"""

from mpips.data.examples import Examples, Tally, concatenate, minibatches
from mpips.data.kept_columns import KeptColumns
from mpips.data.matrix import Columns, load_columns
from mpips.data.read import HASHED_FORMATS, format_of, read
from mpips.data.same_files import SameFiles, check_sizes
from mpips.data.source import EncodingTable, Source, learned
from mpips.data.spec import DataSpec, expand, resolve, unusual_files
from mpips.data.write import write

__all__ = [
    "HASHED_FORMATS",
    "Columns",
    "DataSpec",
    "EncodingTable",
    "Examples",
    "KeptColumns",
    "SameFiles",
    "Source",
    "Tally",
    "check_sizes",
    "concatenate",
    "expand",
    "format_of",
    "learned",
    "load_columns",
    "minibatches",
    "read",
    "resolve",
    "unusual_files",
    "write",
]
