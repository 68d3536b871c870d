"""How much of its tolerance each comparison of the tests uses: a plugin, for `make portable`.

    ENTK_ROOM=folder python -m pytest -p room -m trained

Watches `pytest.approx` and the `allclose` of torch and numpy. A comparison that holds uses
|a - b| / tolerance, at most 1; one that fails, where a test wants two things to differ, has more
than 1. Each process writes what it saw to a file in the folder: line and test -> [uses].
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
EXACT = 1e9  # what a difference uses where none is allowed
_seen: dict[str, list[float]] = defaultdict(list)
_open: list[list[float]] = []


def _note(used: float) -> None:
    if _open:
        _open[-1].append(used)
        return
    frame = sys._getframe(1)
    while frame and not (
        Path(frame.f_code.co_filename).is_relative_to(HERE)
        and frame.f_code.co_name.startswith("test_")
    ):
        frame = frame.f_back
    if frame:
        name = Path(frame.f_code.co_filename).relative_to(HERE.parent)
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition("::")[2].rpartition(" (")[0]
        _seen[f"{name}:{frame.f_lineno} {test}"].append(used)


def used(a: object, b: object, rtol: float, atol: float) -> float:
    """The largest |a - b| / (atol + rtol |b|) of all entries; 0 for two that are equal."""
    a, b = (np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v) for v in (a, b))
    wide = complex if np.iscomplexobj(a) or np.iscomplexobj(b) else float
    a, b = a.astype(wide), b.astype(wide)
    if a.shape != b.shape or not a.size:
        return 0.0
    with np.errstate(all="ignore"):
        share = np.abs(a - b) / (atol + rtol * np.abs(b))
    return float(np.nan_to_num(share, nan=0.0, posinf=EXACT).max())


def _tolerances(a: object, b: object, rtol: float | None, atol: float | None):
    """Those given, or what `torch.testing.assert_close` takes for the dtypes."""
    if rtol is not None:
        return rtol, atol
    kinds = {v.dtype if isinstance(v, torch.Tensor) else torch.float64 for v in (a, b)}
    coarse = torch.float32 in kinds
    return (1.3e-6, 1e-5) if coarse else (1e-7, 1e-7)


def _pairs(a: object, b: object):
    if isinstance(a, dict):
        yield from (pair for key in a if key in b for pair in _pairs(a[key], b[key]))
    elif isinstance(a, list | tuple):
        yield from (pair for one in zip(a, b, strict=False) for pair in _pairs(*one))
    else:
        yield a, b


def _watch_assert_close() -> None:
    plain = torch.testing.assert_close

    @wraps(plain)
    def watched(actual, expected, *, rtol=None, atol=None, **rest):
        plain(actual, expected, rtol=rtol, atol=atol, **rest)
        pairs = list(_pairs(actual, expected))
        _note(max((used(a, b, *_tolerances(a, b, rtol, atol)) for a, b in pairs), default=0.0))

    torch.testing.assert_close = watched


def _watch_allclose(module: object, name: str, rtol: float, atol: float) -> None:
    plain = getattr(module, name)

    @wraps(plain)
    def watched(a, b, rtol=rtol, atol=atol, **rest):
        answer = plain(a, b, rtol=rtol, atol=atol, **rest)
        _note(used(a, b, rtol, atol))
        return answer

    setattr(module, name, watched)


def _watch_approx() -> None:
    """Of a list or dict, the entry that uses most counts, and the whole once."""
    single = type(pytest.approx(1.0))
    plain = single.__eq__

    def one(self, actual) -> bool:
        if isinstance(actual, int | float) and isinstance(self.expected, int | float):
            apart = abs(float(actual) - float(self.expected))
            _note(apart / self.tolerance if self.tolerance else float(apart > 0) * EXACT)
        return plain(self, actual)

    single.__eq__ = one
    for some in ([1.0], {"a": 1.0}, np.ones(1)):
        kind = type(pytest.approx(some))

        def many(self, actual, plain=kind.__eq__) -> bool:
            _open.append([])
            try:
                return plain(self, actual)
            finally:
                _note(max(_open.pop(), default=0.0))

        kind.__eq__ = many


def pytest_configure(config) -> None:
    """Watch, before test modules take names from the libraries."""
    _watch_assert_close()
    _watch_allclose(torch, "allclose", 1e-5, 1e-8)
    _watch_allclose(np, "allclose", 1e-5, 1e-8)
    _watch_allclose(np.testing, "assert_allclose", 1e-7, 0)
    _watch_approx()


def pytest_sessionfinish(session) -> None:
    """Write what this process saw."""
    if _seen:
        folder = Path(os.environ["ENTK_ROOM"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{os.getpid()}.json").write_text(json.dumps(_seen))
