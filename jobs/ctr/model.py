"""The network: dot products of the rows of ids with each other, and with a row made of the numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mpips.jobs.ctr.clicks import Clicks


class DLRM(nn.Module):
    """Scores clicks (Naumov et al. 2019); the first value of each row is a weight of its id (wide and deep)."""

    def __init__(self, numbers: int, fields: int, width: int, hidden: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(numbers, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.one, self.other = torch.tril_indices(fields + 1, fields + 1, -1)
        self.top = nn.Sequential(nn.Linear(width + len(self.one), hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, numbers: Any, rows: Tensor) -> Any:
        """Return the log-odds [n] of a click, of numbers [n, k] and the rows of ids [n, fields, width]."""
        of_numbers = self.bottom(torch.as_tensor(numbers))
        every = torch.cat([of_numbers[:, None], rows], 1)
        dots = torch.bmm(every, every.transpose(1, 2))[:, self.one, self.other]
        return self.top(torch.cat([of_numbers, dots], 1))[:, 0] + rows[:, :, 0].sum(1)


def begun(numbers: int, fields: int, width: int, hidden: int, seed: int) -> DLRM:
    """Return the network with its first values, the same in all workers."""
    torch.manual_seed(seed)
    return DLRM(numbers, fields, width, hidden)


def parameters(network: DLRM) -> NDArray[np.float32]:
    """Return the parameters of all layers, one after the other, f4[n]: a copy."""
    with torch.no_grad():
        found: NDArray[np.float32] = torch.cat([each.reshape(-1) for each in network.parameters()]).numpy()
    return found


def first_parameters(numbers: int, fields: int, width: int, hidden: int, seed: int) -> NDArray[np.float32]:
    """Return the parameters with which all layers begin."""
    with torch.random.fork_rng(devices=[]):
        return parameters(begun(numbers, fields, width, hidden, seed))


def with_parameters(layers: NDArray[np.float32], numbers: int, fields: int, width: int, hidden: int) -> DLRM:
    """Return a network with such parameters, as many as it has."""
    # The random numbers of a program that loads a model stay as they are.
    with torch.random.fork_rng(devices=[]):
        network = DLRM(numbers, fields, width, hidden)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(layers.copy()), network.parameters())
    return network


def loss_of(scores: Tensor, batch: Clicks) -> Any:
    """Return the mean logistic loss of a mini-batch."""
    return nn.functional.binary_cross_entropy_with_logits(scores, torch.from_numpy(batch.labels))
