"""Saves the states of filters as arrays of a checkpoint, and restores them, also with other numbers of ranks.

Arrays are named `filter.VECTOR.SHARD.FILTER.NAME`. A state with "keys" is split by the current shards, and the
states of several workers are summed key by key. A state without keys goes to the shards with the nearest numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.errors import CheckpointError
from mpips.filters.chain import Chain
from mpips.filters.filter import State
from mpips.keys import from_pairs, pairs, upper

Arrays = dict[str, NDArray[Any]]
PREFIX = "filter."


def to_arrays(chain: Chain) -> Arrays:
    """Copy the states of a chain whose peers are shards (~shard)."""
    return {
        f"{PREFIX}{vector}.{~peer}.{step.name}.{name}": pairs(array).copy()
        for (peer, vector), states in chain.states.items()
        for step, state in zip(chain.steps, states, strict=True)
        for name, array in state.items()
    }


def restore_states(chain: Chain, saved: Sequence[Arrays], cuts: Callable[[str], NDArray[np.uint64]]) -> None:
    """Set the states of a chain to those of one or several workers; `cuts` gives u64[shards], their first keys.

    Raises:
        CheckpointError: a saved filter holds changes back and is not in this chain.
    """
    places = {step.name: position for position, step in enumerate(chain.steps)}
    found: dict[tuple[str, str], dict[int, list[State]]] = {}
    for arrays in saved:
        own: dict[tuple[str, str, int], State] = {}
        for path, array in arrays.items():
            vector, shard, filter_name, name = path.removeprefix(PREFIX).split(".")
            saved_array = from_pairs(array) if name == "keys" else array
            own.setdefault((vector, filter_name, int(shard)), {})[name] = saved_array
        for (vector, filter_name, at), state in own.items():
            found.setdefault((vector, filter_name), {}).setdefault(at, []).append(state)
    for (vector, filter_name), by_shard in found.items():
        if filter_name not in places:
            if any("keys" in state for states in by_shard.values() for state in states):
                raise CheckpointError(
                    f"in the checkpoint, filter {filter_name!r} holds back changes of {vector!r}: "
                    "resume with it in [filters] push"
                )
            continue
        begins = cuts(vector)
        for at, state in enumerate(_reshard(by_shard, begins)):
            if state:
                states = chain.states.setdefault((~at, vector), [{} for _ in chain.steps])
                states[places[filter_name]] = state


def _reshard(by_shard: dict[int, list[State]], begins: NDArray[np.uint64]) -> list[State]:
    """Return the state of each shard."""
    all_states = [state for states in by_shard.values() for state in states]
    keyed = [state for state in all_states if "keys" in state]
    made: list[State] = []
    for shard in range(len(begins)):
        nearest = min(by_shard, key=lambda each: (abs(each - shard), each))
        state = by_shard[nearest][0]
        made.append({name: array.copy() for name, array in state.items() if not _is_keyed(name)})
    if keyed:
        keys, places = np.unique(np.concatenate([state["keys"] for state in keyed]), return_inverse=True)
        owners = np.searchsorted(begins, upper(keys), "right") - 1
        for name in [name for name in keyed[0] if name.startswith("row")]:
            parts = np.concatenate([state[name] for state in keyed])
            rows = np.zeros((len(keys), *parts.shape[1:]), parts.dtype)
            np.add.at(rows, places.reshape(-1), parts)
            for shard in np.unique(owners).tolist():
                own = owners == shard
                made[shard] |= {"keys": keys[own], name: np.ascontiguousarray(rows[own])}
    return made


def _is_keyed(name: str) -> bool:
    return name == "keys" or name.startswith("row")
