"""Input features and Fourier families against loops and waves typed out."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

from entk_helpers.features import fourier_families, tms_features

ODD = (3, 5, 7, 13)
FAMILIES = ("a", "b", "sum", "diff")


def all_columns(p):
    return torch.cat([f for family in fourier_families(p).values() for f in family.values()], 1)


def test_a_feature_sits_at_row_point_times_n_plus_class():
    X = torch.arange(1.0, 13.0).reshape(4, 3)
    F = tms_features(X)
    expected = torch.zeros(12, 3)
    for point in range(4):
        for feature in range(3):
            expected[point * 3 + feature, feature] = X[point, feature]
    assert torch.equal(F, expected)


def test_features_have_the_norms_of_the_inputs_and_no_overlap():
    X = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    F = tms_features(X)
    assert F.dtype == X.dtype
    assert_close(F.T @ F, torch.diag(X.square().sum(0)))


def test_a_feature_that_no_point_has_is_a_zero_column():
    X = torch.ones(4, 3)
    X[:, 1] = 0
    assert tms_features(X).any(0).tolist() == [True, False, True]


def test_features_are_the_directions_of_an_identity_model():
    """f(x) = s x with one parameter has J = x flattened, the sum of the features."""
    X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(tms_features(X).sum(1), X.flatten())


@pytest.mark.parametrize("X", [torch.ones(3), torch.ones(2, 3, 4)], ids=["vector", "cube"])
def test_inputs_that_are_no_matrix_are_refused(X):
    with pytest.raises(ValueError, match=r"X must have shape \(N, n\), got"):
        inspect.unwrap(tms_features)(X)


@pytest.mark.parametrize("p", ODD)
def test_there_are_four_families_of_every_frequency(p):
    families = fourier_families(p)
    assert tuple(families) == FAMILIES
    for family in families.values():
        assert list(family) == list(range(1, (p - 1) // 2 + 1))
        assert all(f.shape == (p * p, 2) and f.dtype == torch.float64 for f in family.values())


@pytest.mark.parametrize("p", ODD)
def test_waves_equal_cos_and_sin_typed_out(p):
    families = fourier_families(p)
    argument = {
        "a": lambda a, b: a,
        "b": lambda a, b: b,
        "sum": lambda a, b: a + b,
        "diff": lambda a, b: a - b,
    }
    for name, k in [(family, k) for family in FAMILIES for k in families[family]]:
        for a in range(p):
            for b in range(p):
                angle = 2 * math.pi * k * argument[name](a, b) / p
                wave = [math.sqrt(2) / p * math.cos(angle), math.sqrt(2) / p * math.sin(angle)]
                assert families[name][k][a * p + b].tolist() == pytest.approx(wave, abs=1e-13)


@pytest.mark.parametrize("p", ODD)
def test_all_waves_are_orthonormal_within_and_between_families(p):
    F = all_columns(p)
    assert F.shape == (p * p, 4 * (p - 1))
    assert_close(F.T @ F, torch.eye(4 * (p - 1), dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("p", ODD)
def test_all_waves_are_centred(p):
    assert all_columns(p).sum(0).abs().max() < 1e-12


def test_the_sum_family_does_not_depend_on_how_the_sum_is_split():
    p = 7
    for k, f in fourier_families(p)["sum"].items():
        grid = f.reshape(p, p, 2)
        for shift in range(1, p):
            moved = grid.roll((shift, -shift), dims=(0, 1))
            assert_close(moved, grid, atol=1e-13, rtol=0, msg=f"frequency {k}, shift {shift}")


def test_families_span_the_waves_of_a_real_fourier_transform():
    """The 2-d FFT of a family's waves is zero but for its own pair of frequencies."""
    p, places = 7, {"a": (1, 0), "b": (0, 1), "sum": (1, 1), "diff": (1, -1)}
    for name, (u, v) in places.items():
        for k, f in fourier_families(p)[name].items():
            power = torch.fft.fft2(f.T.reshape(2, p, p)).abs()
            expected = {((s * k * u) % p, (s * k * v) % p) for s in (1, -1)}
            for wave in power:
                assert {tuple(at) for at in (wave > 1e-9).nonzero().tolist()} == expected


@pytest.mark.parametrize("p", [-3, 0, 1, 2, 4, 28])
def test_even_and_small_p_are_refused(p):
    with pytest.raises(ValueError, match=rf"p must be an odd number of at least 3, got {p}"):
        fourier_families(p)
