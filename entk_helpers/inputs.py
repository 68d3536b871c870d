"""What callers pass in: points as tensors, tuples or dicts; byte budgets; finite numbers."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import SupportsFloat, SupportsIndex

import torch
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


def blocks(n: int, step: int) -> list[slice]:
    """Consecutive slices of at most `step` that cover 0 .. n-1."""
    return [slice(start, min(start + step, n)) for start in range(0, n, step)]


def call(model: Callable[..., Tensor], x: Inputs) -> Tensor:
    """Apply a model: a tuple is its arguments, a dict its keyword arguments."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def require_dense(value: object, what: str) -> None:
    """Raise TypeError for anything but a torch tensor that has all its numbers in memory."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a torch tensor, not {type(value).__name__}")
    if value.is_meta or value.is_nested or value.layout is not torch.strided:
        where = "on the meta device" if value.is_meta else f"of layout {value.layout}"
        where = "that is nested" if value.is_nested else where
        raise TypeError(f"{what} must be a dense tensor with numbers in it, not one {where}")


def require_real(**values: object) -> None:
    """Raise TypeError for an argument that is no dense tensor of real numbers."""
    for name, value in values.items():
        require_dense(value, name)
        if value.is_complex():
            raise TypeError(f"{name} must hold real numbers, not {value.dtype}")


def require_floats(*, half: bool = False, **values: object) -> None:
    """Raise TypeError for an argument that is no dense tensor of float32, float64 or `half` those."""
    for name, value in values.items():
        require_dense(value, name)
        single = value.dtype in (torch.float32, torch.float64)
        if not (single or (half and value.is_floating_point())):
            raise TypeError(f"{name} is {value.dtype}; pass it in float32 or float64")


def whole(value: SupportsIndex | None, name: str, least: int | None = None) -> int:
    """The whole number that an argument is; TypeError or ValueError where it is none."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    kind = "a whole number" if least is None else f"a whole number of at least {least}"
    if number is None:
        raise TypeError(f"{name} must be {kind}, not {value!r}")
    if abs(number) >= 2**63:
        raise ValueError(f"{name} must be {kind}, and below 2**63")
    if least is not None and number < least:
        raise ValueError(f"{name} must be {kind}, got {number}")
    return number


def real(value: SupportsFloat, name: str) -> float:
    """The real number that an argument is; TypeError where it is none, NaN passes."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be a number, not {value!r}") from None
    except OverflowError:
        return math.inf


def require_finite(value: Tensor, what: str) -> Tensor:
    """Return `value`, or raise if it holds NaN or Inf."""
    require_dense(value, what)
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
    if isinstance(memory, int):
        value = memory
    else:
        match = re.fullmatch(r"(\d{1,30}(?:\.\d+)?)\s*([A-Za-z]*)", memory.strip())
        if not match or match[2] not in _UNITS:
            raise ValueError(
                f'memory must be bytes or text such as "1GiB" or "600MB", not {memory!r}'
            )
        value = int(float(match[1]) * _UNITS[match[2]])
    if value < 1:
        raise ValueError(f"memory must be at least one byte, not {memory!r}")
    return min(value, 2**62)  # more does not fit into what torch counts with


def fit(per_point: int, memory: str | int, *, limit: int) -> int:
    """How many points of `per_point` bytes fit in the budget, at most `limit`; raises for none."""
    budget = parse_bytes(memory)
    if per_point > budget:
        raise ValueError(
            f"memory={memory!r} is too small: one point needs about {per_point:,} bytes; "
            "pass at least that, or fewer parameters through `params`"
        )
    return max(1, min(limit, budget // max(per_point, 1)))
