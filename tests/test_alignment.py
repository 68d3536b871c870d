"""Cosines, overlaps and matches against numpy by hand, brute force and chance."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from entk_helpers.alignment import (
    alignment,
    block_energy,
    family_alignment,
    kernel_alignment,
    kernel_drift,
    kernel_target_alignment,
    match,
    orthonormalise,
    subspace_overlap,
)
from entk_helpers.features import fourier_families, tms_features


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def basis(n, m, seed=0):
    return torch.linalg.qr(random(n, m, seed=seed))[0]


def projector(F):
    return F @ torch.linalg.pinv(F)


# orthonormalise


def test_a_basis_is_orthonormal_and_spans_the_same():
    F = random(20, 6)
    Q = orthonormalise(F)
    assert_close(Q.T @ Q, torch.eye(6, dtype=torch.float64))
    assert_close(Q @ Q.T, projector(F))


def test_dependent_columns_are_dropped():
    F = random(20, 3)
    Q = orthonormalise(torch.cat([F, F @ random(3, 4, seed=1), torch.zeros(20, 1)], 1))
    assert Q.shape == (20, 3)
    assert_close(Q @ Q.T, projector(F))


def test_more_columns_than_points_span_everything():
    assert orthonormalise(random(5, 9)).shape == (5, 5)


def test_rtol_decides_what_counts_as_dependent():
    F = basis(10, 2) * torch.tensor([1.0, 1e-4])
    assert orthonormalise(F).shape[1] == 2
    assert orthonormalise(F, rtol=1e-3).shape[1] == 1


@pytest.mark.parametrize("shape", [(4, 2), (4, 0), (0, 3)])
def test_nothing_has_no_basis(shape):
    with pytest.raises(ValueError, match="spans nothing; pass at least one nonzero column"):
        orthonormalise(torch.zeros(shape))


# subspace_overlap


def test_equal_subspaces_overlap_by_their_dimension():
    Q = random(30, 5)
    assert subspace_overlap(Q, Q) == pytest.approx(5)
    assert subspace_overlap(Q, Q @ random(5, 5, seed=1)) == pytest.approx(5)


def test_a_subspace_within_another_overlaps_by_its_own_dimension():
    Q = random(30, 5)
    assert subspace_overlap(Q[:, :2], Q) == pytest.approx(2)


def test_orthogonal_subspaces_do_not_overlap():
    Q = basis(30, 9)
    assert subspace_overlap(Q[:, :4], Q[:, 4:]) == pytest.approx(0, abs=1e-25)


def test_overlap_is_the_sum_of_squared_cosines_of_principal_angles():
    angles = torch.tensor([0.1, 0.7, 1.3], dtype=torch.float64)
    E = basis(12, 6)
    Q, F = E[:, :3], E[:, :3] * angles.cos() + E[:, 3:] * angles.sin()
    assert subspace_overlap(Q, F) == pytest.approx(angles.cos().square().sum().item())


def test_overlap_is_symmetric_and_free_of_the_basis():
    Q, F = random(25, 4), random(25, 7, seed=1)
    expected = torch.trace(projector(Q) @ projector(F)).item()
    for q, f in (
        (Q, F),
        (F, Q),
        (Q @ random(4, 4, seed=2), F @ random(7, 7, seed=3)),
        (1e6 * Q, F),
    ):
        assert subspace_overlap(q, f) == pytest.approx(expected)


def test_random_subspaces_overlap_by_q_m_over_N_on_average():
    N, q, m = 40, 5, 8
    scores = [
        subspace_overlap(random(N, q, seed=2 * s), random(N, m, seed=2 * s + 1)) for s in range(400)
    ]
    # Four standard errors of the mean.
    assert np.mean(scores) == pytest.approx(q * m / N, abs=4 * np.std(scores) / math.sqrt(400))


# alignment


def test_alignment_is_the_absolute_cosine_uncentred():
    V, F = random(15, 3) + 2, random(15, 4, seed=1) - 1
    v, f = V.numpy(), F.numpy()
    got = alignment(V, F)
    assert got.shape == (3, 4)
    for i, j in itertools.product(range(3), range(4)):
        cos = v[:, i] @ f[:, j] / math.sqrt((v[:, i] ** 2).sum() * (f[:, j] ** 2).sum())
        assert got[i, j].item() == pytest.approx(abs(cos), rel=1e-12)


def test_alignment_ignores_sign_and_scale():
    V, F = random(15, 3), random(15, 4, seed=1)
    scales = torch.tensor([-1.0, 1e-8, -1e8], dtype=torch.float64)
    assert_close(alignment(V * scales, -3 * F), alignment(V, F))


def test_a_vector_aligns_with_itself_and_with_nothing_orthogonal():
    Q = basis(20, 6)
    assert_close(alignment(Q, Q), torch.eye(6, dtype=torch.float64))


def test_eigenvectors_of_planted_features_align_and_random_ones_do_not():
    """K = sum of s_i f_i f_i^T has the features for eigenvectors."""
    X = (random(30, 8) > 0.5) * random(30, 8, seed=1).abs()
    F = tms_features(X)
    unit = F / F.norm(dim=0)
    s = torch.arange(8, 0, -1, dtype=torch.float64)
    V = torch.linalg.eigh(unit * s @ unit.T).eigenvectors[:, -8:].flip(1)
    assert_close(alignment(V, F), torch.eye(8, dtype=torch.float64), atol=1e-7, rtol=0)
    chance = alignment(basis(240, 8, seed=2), F)
    assert chance.max() < 0.35
    assert match(chance).scores.mean() < 0.2


def test_random_directions_have_the_stated_mean_cosine():
    N = 200
    got = alignment(random(N, 60), random(N, 60, seed=1)).mean().item()
    assert got == pytest.approx(math.sqrt(2 / (math.pi * N)), rel=0.06)


@pytest.mark.parametrize("swap", [False, True])
def test_a_zero_column_has_no_direction(swap):
    V, F = torch.ones(4, 3), torch.ones(4, 2)
    (F if swap else V)[:, 1] = 0
    name = "features" if swap else "vectors"
    with pytest.raises(ValueError, match=rf"{name}: columns \[1\] are zero"):
        alignment(V, F)


def test_nan_is_refused():
    bad = torch.full((4, 2), torch.nan)
    for call in (alignment, subspace_overlap):
        with pytest.raises(ValueError, match="NaN or Inf"):
            call(bad, torch.ones(4, 2))
    with pytest.raises(ValueError, match="A holds 8 NaN"):
        match(bad)
    with pytest.raises(ValueError, match="vectors holds 8 NaN"):
        block_energy(bad, 2)
    with pytest.raises(ValueError, match="NaN or Inf"):
        family_alignment(torch.ones(4, 1), {"bad": bad})


@pytest.mark.parametrize("shapes", [((4, 2), (5, 2)), ((4,), (4, 2)), ((4, 2), (4,))])
@pytest.mark.parametrize("call", [alignment, subspace_overlap])
def test_other_points_are_refused(call, shapes):
    with pytest.raises(ValueError, match="must be matrices with the same number of rows"):
        inspect.unwrap(call)(*(torch.ones(s) for s in shapes))


# match


def test_match_has_the_largest_sum_of_all_permutations():
    for seed in range(20):
        A = random(4, 4, seed=seed)
        best = max(
            itertools.permutations(range(4)), key=lambda p: sum(A[i, p[i]].item() for i in range(4))
        )
        found = match(A)
        assert found.rows.tolist() == [0, 1, 2, 3]
        assert found.columns.tolist() == list(best)
        assert torch.equal(found.scores, A[torch.arange(4), torch.tensor(best)])


def test_match_is_not_greedy():
    A = torch.tensor([[1.0, 0.9], [0.9, 0.0]])
    assert match(A).columns.tolist() == [1, 0]


@pytest.mark.parametrize("shape", [(3, 6), (6, 3)])
def test_match_of_an_oblong_has_the_smaller_number_of_pairs(shape):
    A = random(*shape)
    wide = A if shape[0] == 3 else A.T
    best = max(
        sum(wide[i, p[i]].item() for i in range(3)) for p in itertools.permutations(range(6), 3)
    )
    found = match(A)
    assert len(found.rows) == len(set(found.rows.tolist())) == len(set(found.columns.tolist())) == 3
    assert (found.rows.diff() > 0).all()
    assert found.scores.sum().item() == pytest.approx(best)


def test_match_undoes_a_permutation():
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    Q = basis(30, 9)
    found = match(alignment(Q, Q[:, order]))
    assert torch.equal(order[found.columns], torch.arange(9))
    assert_close(found.scores, torch.ones(9, dtype=torch.float64))


# family_alignment


@pytest.mark.parametrize("name", ["a", "b", "sum", "diff"])
def test_a_wave_of_any_phase_is_within_its_family(name):
    p, families = 7, fourier_families(7)
    a, b = np.divmod(np.arange(p * p), p)
    argument = {"a": a, "b": b, "sum": a + b, "diff": a - b}[name]
    phases = np.linspace(0, 2 * np.pi, 9)
    flat = {(f, k): waves for f, family in families.items() for k, waves in family.items()}
    for k in families[name]:
        vectors = np.cos(2 * np.pi * k * argument[:, None] / p + phases)
        scores = family_alignment(
            torch.from_numpy(vectors), {f"{f} {j}": w for (f, j), w in flat.items()}
        )
        assert len(scores) == len(flat)
        for key, got in scores.items():
            expected = torch.full((9,), float(key == f"{name} {k}"), dtype=torch.float64)
            assert_close(got, expected, atol=1e-12, rtol=0)


def test_family_alignment_is_the_norm_of_the_projection():
    V, F = random(20, 5), random(20, 3, seed=1)
    expected = (projector(F) @ V).norm(dim=0) / V.norm(dim=0)
    assert_close(family_alignment(V, {"f": F})["f"], expected)
    mixed = F @ random(3, 3, seed=2)
    assert_close(family_alignment(-4 * V, {"f": mixed})["f"], expected)


def test_one_feature_is_its_own_family():
    V, F = random(20, 5), random(20, 1, seed=1)
    assert_close(family_alignment(V, {"f": F})["f"], alignment(V, F)[:, 0])


def test_squared_scores_of_a_whole_basis_add_up_to_one():
    E = basis(12, 12)
    families = {"one": E[:, :2], "two": E[:, 2:7], "three": E[:, 7:]}
    scores = family_alignment(random(12, 4, seed=1), families)
    total = sum(s.square() for s in scores.values())
    assert_close(total, torch.ones(4, dtype=torch.float64))


def test_random_vectors_reach_root_m_over_N():
    N, m = 300, 6
    got = family_alignment(random(N, 400), {"f": random(N, m, seed=1)})["f"]
    assert got.square().mean().item() == pytest.approx(m / N, rel=0.15)
    assert got.max() < 0.4


def test_families_that_make_no_sense_are_refused():
    V = torch.ones(4, 1)
    unchecked = inspect.unwrap(family_alignment)
    with pytest.raises(ValueError, match="families is empty; pass at least one name"):
        family_alignment(V, {})
    with pytest.raises(ValueError, match=r"families\['short'\] \(3, 2\) must be matrices"):
        unchecked(V, {"short": torch.ones(3, 2)})
    with pytest.raises(ValueError, match="spans nothing"):
        family_alignment(V, {"zero": torch.zeros(4, 2)})
    with pytest.raises(ValueError, match=r"vectors: columns \[0\] are zero"):
        family_alignment(0 * V, {"f": torch.ones(4, 1)})


# block_energy


def test_row_n_times_C_plus_c_counts_for_class_c():
    for point, c in itertools.product(range(4), range(3)):
        vector = torch.zeros(12, 1)
        vector[point * 3 + c] = -2
        assert block_energy(vector, 3).tolist() == [[float(j == c) for j in range(3)]]


def test_shares_are_sums_of_squares_by_hand():
    V = random(12, 5)
    got = block_energy(V, 3)
    v = V.numpy()
    for i, c in itertools.product(range(5), range(3)):
        share = sum(v[n * 3 + c, i] ** 2 for n in range(4)) / (v[:, i] ** 2).sum()
        assert got[i, c].item() == pytest.approx(share)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 4, 6, 12])
def test_shares_of_each_vector_add_up_to_one(n_classes):
    got = block_energy(random(12, 5), n_classes)
    assert got.shape == (5, n_classes)
    assert_close(got.sum(1), torch.ones(5, dtype=torch.float64))


def test_an_input_feature_lies_in_its_own_class():
    X = random(6, 4)
    assert_close(block_energy(tms_features(X), 4), torch.eye(4, dtype=torch.float64))


def test_a_random_vector_has_one_in_C_in_each_class():
    got = block_energy(random(3000, 20), 3).mean(0)
    assert_close(got, torch.full((3,), 1 / 3, dtype=torch.float64), atol=0.01, rtol=0)


@pytest.mark.parametrize("n_classes", [0, -2, 5, 24])
def test_classes_that_do_not_divide_the_rows_are_refused(n_classes):
    with pytest.raises(ValueError, match=rf"n_classes={n_classes} does not divide the 12 rows"):
        block_energy(torch.ones(12, 2), n_classes)


def test_block_energy_of_a_zero_vector_is_refused():
    with pytest.raises(ValueError, match="zero and have no direction"):
        block_energy(torch.zeros(12, 2), 3)


# kernels beside kernels


def kernel(n, rank, seed=0):
    F = random(n, rank, seed=seed)
    return F @ F.T


def test_centred_alignment_is_that_of_the_centring_matrix():
    K, K2 = kernel(12, 4), kernel(12, 5, seed=1)
    H = torch.eye(12, dtype=torch.float64) - 1 / 12
    by_hand = torch.trace(K @ H @ K2 @ H) / torch.sqrt(
        torch.trace(K @ H @ K @ H) * torch.trace(K2 @ H @ K2 @ H)
    )
    assert kernel_alignment(K, K2) == pytest.approx(by_hand.item(), rel=1e-12)


def test_alignment_is_one_for_multiples_and_ignores_constants_only_when_centred():
    K = kernel(12, 4)
    assert kernel_alignment(K, 3 * K) == pytest.approx(1, abs=1e-12)
    assert kernel_alignment(K, K + 5) == pytest.approx(1, abs=1e-12)
    assert kernel_alignment(K, K + 5, centred=False) < 0.99


def test_alignment_does_not_depend_on_rotation_of_the_points():
    K, K2, Q = kernel(12, 4), kernel(12, 5, seed=1), basis(12, 12)
    turned = kernel_alignment(Q @ K @ Q.T, Q @ K2 @ Q.T, centred=False)
    assert turned == pytest.approx(kernel_alignment(K, K2, centred=False), rel=1e-12)


@pytest.mark.parametrize(("classes", "each"), [(2, 5), (7, 3)])
def test_identity_has_its_known_alignment_with_balanced_classes(classes, each):
    labels = torch.eye(classes, dtype=torch.float64).repeat(each, 1)
    n = classes * each
    found = kernel_target_alignment(torch.eye(n, dtype=torch.float64), labels)
    assert found == pytest.approx(math.sqrt((classes - 1) / (n - 1)), rel=1e-12)


def test_target_alignment_is_one_for_the_kernel_of_the_targets():
    Y = random(12, 3)
    assert kernel_target_alignment(Y @ Y.T, Y) == pytest.approx(1, abs=1e-12)
    assert kernel_target_alignment((Y @ Y.T).float(), Y) == pytest.approx(1, abs=1e-6)
    uncentred = kernel_target_alignment(Y @ Y.T + 5, Y, centred=False)
    assert uncentred == pytest.approx(kernel_alignment(Y @ Y.T + 5, Y @ Y.T, centred=False))
    assert uncentred < 0.99


def test_drift_is_a_relative_distance():
    K = random(3, 4, 2, 2)
    assert kernel_drift(K, K) == 0
    assert kernel_drift(1.25 * K, K) == pytest.approx(0.25, rel=1e-12)
    step = random(3, 4, 2, 2, seed=1)
    by_hand = math.sqrt((step**2).sum() / (K**2).sum())
    assert kernel_drift(K + step, K) == pytest.approx(by_hand, rel=1e-12)
    huge = (1e25 * K).float()
    assert kernel_drift(1.25 * huge, huge) == pytest.approx(0.25, rel=1e-6)


def test_kernels_that_cannot_be_compared_are_refused():
    K = kernel(5, 3)
    with pytest.raises(ValueError, match="must have the same points"):
        inspect.unwrap(kernel_alignment)(K, kernel(6, 3))
    with pytest.raises(ValueError, match="K2 is zero after centring"):
        kernel_alignment(K, torch.ones(5, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="K is zero"):
        kernel_alignment(0 * K, K, centred=False)
    with pytest.raises(ValueError, match="same shape"):
        kernel_drift(K, kernel(6, 3))
    with pytest.raises(ValueError, match="K0 is zero"):
        kernel_drift(K, 0 * K)
    with pytest.raises(ValueError, match=r"targets must have shape \(5, C\)"):
        inspect.unwrap(kernel_target_alignment)(K, torch.ones(4, 1))
    with pytest.raises(ValueError, match="targets is the same for all points"):
        kernel_target_alignment(K, torch.ones(5, 1))
    with pytest.raises(ValueError, match="targets holds 5 NaN"):
        kernel_target_alignment(K, torch.ones(5, 1) * torch.nan)
    K[0, 0] = torch.nan
    with pytest.raises(ValueError, match="K holds 1 NaN"):
        kernel_drift(K, kernel(5, 3))
