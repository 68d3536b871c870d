"""What callers pass in: points as tensors, tuples or dicts; byte budgets; finite numbers."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{suffix}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


def leaves(x: Inputs) -> list[Tensor]:
    """The tensors of an input, in order."""
    return [x] if isinstance(x, Tensor) else list(x.values() if isinstance(x, dict) else x)


def take(x: Inputs, index: int | slice | None) -> Inputs:
    """Index the first dimension of every tensor; None adds one."""
    return each(x, lambda value: value[index])


def each(x: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Change every tensor of an input."""
    if isinstance(x, Tensor):
        return change(x)
    if isinstance(x, dict):
        return {key: change(value) for key, value in x.items()}
    return tuple(change(value) for value in x)


def call(model: Callable[..., Tensor], x: Inputs) -> Tensor:
    """Apply a model: a tuple is its arguments, a dict its keyword arguments."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def require_finite(value: Tensor, what: str) -> Tensor:
    """Return `value`, or raise if it holds NaN or Inf."""
    # The extremes carry NaN and Inf, and need no memory beside `value`.
    real = value.is_floating_point() and value.numel() > 0
    if real and not all(extreme.isfinite() for extreme in value.aminmax()):
        bad = int((~value.isfinite()).sum())
        raise ValueError(
            f"{what} holds {bad} NaN or Inf of {value.numel()} numbers; clean it first "
            "(a result like this means that the model overflows: try float64)"
        )
    return value


def parse_bytes(memory: str | int) -> int:
    """Read "1GiB", "600 MB" or a plain number as bytes."""
    if isinstance(memory, bool) or not isinstance(memory, int | str):
        raise ValueError(f'memory must be bytes or text such as "1GiB", not {memory!r}')
    text = str(memory).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(f'memory must be bytes or text such as "1GiB" or "600MB", not {memory!r}')
    value = int(float(match[1]) * _UNITS[match[2]])
    if value < 1:
        raise ValueError(f"memory must be at least one byte, not {memory!r}")
    return value


def fit(per_sample: int, memory: str | int, *, limit: int) -> int:
    """How many points of `per_sample` bytes fit in the budget, at most `limit`."""
    budget = parse_bytes(memory)
    if per_sample > budget:
        raise ValueError(
            f"memory={memory!r} is too small: one point needs about {per_sample:,} bytes; "
            "pass at least that, or fewer parameters through `params`"
        )
    return max(1, min(limit, budget // max(per_sample, 1)))
