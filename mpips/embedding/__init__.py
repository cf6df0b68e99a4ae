"""Embeddings: rows of ids on the servers, for programs that compute with NumPy, PyTorch or JAX.

    table      the rows of a vector as mini-batches use them: fetched ahead, pushed once each, with bounded delay
    bags       sums and means of rows, and their gradients
    dense      dense parameters on the servers, which all workers step together
    fields     one key for a field and an id

`mpips.torch` and `mpips.jax` are these as modules and functions of the frameworks.
"""

from mpips.embedding.bags import Bags as Bags
from mpips.embedding.dense import Dense as Dense
from mpips.embedding.fields import field_keys as field_keys
from mpips.embedding.table import Embedding as Embedding
from mpips.embedding.table import Fetched as Fetched
