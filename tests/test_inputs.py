import inspect

import pytest
import torch

from entk_helpers.inputs import blocks, each, fit, leaves, parse_bytes, require_finite, take


@pytest.mark.parametrize(
    ("text", "value"),
    [("1GiB", 2**30), ("600MB", 600_000_000), ("1.5 KiB", 1536), ("7", 7), ("7B", 7), (12, 12)],
)
def test_bytes_are_read(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "GiB", "1 XB", "-1", "1e9", True, 2.5, None, -3, 0])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match="memory must be"):
        inspect.unwrap(parse_bytes)(text)


def test_points_that_fit_are_counted():
    assert fit(10, 35, limit=100) == 3
    assert fit(10, "1KB", limit=7) == 7
    with pytest.raises(ValueError, match="one point needs about 10 bytes; pass at least that"):
        fit(10, 9, limit=1)


def test_blocks_hold_every_point_once():
    assert blocks(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert blocks(3, 9) == [slice(0, 3)]
    assert blocks(0, 3) == []


def test_points_are_indexed_alike_in_tensors_tuples_and_dicts():
    a, b = torch.arange(6.0).reshape(3, 2), torch.arange(3)
    assert torch.equal(take(a, 1), a[1])
    assert [t.tolist() for t in take((a, b), slice(0, 2))] == [a[:2].tolist(), b[:2].tolist()]
    assert take({"a": a, "b": b}, None)["b"].shape == (1, 3)
    assert [t is u for t, u in zip(leaves({"a": a, "b": b}), (a, b), strict=True)] == [True, True]
    assert each({"b": b}, lambda t: t + 1)["b"].tolist() == [1, 2, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_and_counted(bad):
    value = torch.tensor([1.0, bad, bad])
    with pytest.raises(ValueError, match="weights holds 2 NaN or Inf of 3 numbers"):
        require_finite(value, "weights")


def test_finite_integer_and_empty_values_pass():
    for value in (torch.tensor([1.0]), torch.tensor([1, 2]), torch.zeros(0)):
        assert require_finite(value, "x") is value
