"""Tables with named columns, CSV and Parquet, as sparse examples: texts are hashed, numbers scaled or put in bins.

`encoding` is how columns become keys and values, `summary` what of the training data it depends on, `reader` the files.
"""

from mpips.data.tables.encoding import Encoding, Scaling
from mpips.data.tables.summary import Summary

__all__ = ["Encoding", "Scaling", "Summary"]
