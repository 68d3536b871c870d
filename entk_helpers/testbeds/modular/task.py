"""The task: a + b mod p, on all p^2 pairs, of which a network sees some."""

from dataclasses import dataclass

import torch
from torch import Tensor

from entk_helpers.testbeds import Run
from entk_helpers.testbeds.checks import check


@dataclass(frozen=True, eq=False)
class ModularRun(Run):
    """A run that has seen only some of its points: those where `train`, (p*p,) bool, is True."""

    train: Tensor


def pairs(p: int) -> Tensor:
    """All p^2 pairs (a, b) as two one-hot vectors side by side; (p*p, 2p), row a*p + b.

    Examples:
        >>> pairs(3)[3 * 1 + 2]  # (1, 2)
        tensor([0., 1., 0., 0., 0., 1.])
    """
    a, b = _digits(p)
    one_hot = torch.eye(p, dtype=torch.float32)
    return torch.cat([one_hot[a], one_hot[b]], dim=1)


def tokens(p: int) -> Tensor:
    """All p^2 pairs as the text 'a b =': token numbers, with p for '='; (p*p, 3), row a*p + b.

    Examples:
        >>> tokens(3)[3 * 1 + 2]  # '1 2 ='
        tensor([1, 2, 3])
    """
    a, b = _digits(p)
    return torch.stack([a, b, torch.full_like(a, p)], dim=1)


def sums(p: int) -> Tensor:
    """(a + b) mod p for the rows of `pairs`; (p*p,), integers.

    Examples:
        >>> sums(3)  # of (0, 0), (0, 1), (0, 2), (1, 0), ...
        tensor([0, 1, 2, 1, 2, 0, 2, 0, 1])
    """
    a, b = _digits(p)
    return (a + b) % p


def _digits(p: int) -> tuple[Tensor, Tensor]:
    check(p >= 2, f"p is {p}; give at least 2")
    digits = torch.arange(p)
    return digits.repeat_interleave(p), digits.repeat(p)
