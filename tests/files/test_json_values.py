"""Values of programs as JSON: what it cannot represent is named, and the rest is kept."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpips.errors import UsageError
from mpips.files.json_values import Nulls, json_data, keep


@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_that_could_not_be_read_again_is_named_and_the_rest_is_kept(sign: int) -> None:
    value = {"count": sign * 10**5000, "seed": sign * 2**1000, "rows": np.int64(3)}
    nulls = Nulls()
    found = json_data(value, nulls, "metrics")
    assert json.loads(json.dumps(found)) == {"count": None, "seed": sign * 2**1000, "rows": 3}
    assert str(nulls) == "metrics.count is an integer beyond 2**1000, which could not be read again"
    with pytest.raises(UsageError, match=r"^state\.count is an integer beyond 2\*\*1000"):
        json_data(value, keep, "state")
