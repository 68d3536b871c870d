"""What must hold for every matrix: spectra, alignments, rotations and regressions.

Matrices are drawn; `tests/conftest.py` says how to draw more of them.
"""

from itertools import permutations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from entk_helpers import (
    alignment,
    block_energy,
    cliffs,
    eigenpairs,
    family_alignment,
    gradient_flow,
    gram_eigenpairs,
    graph_rotation,
    joint_blocks,
    kernel_alignment,
    kernel_drift,
    kernel_regression,
    kernel_target_alignment,
    match,
    orthonormalise,
    subspace_overlap,
    top_eigenpairs,
)

SEEDS = st.integers(0, 2**20)
SIZES = st.integers(1, 9)
SCALES = st.sampled_from([1e-12, 0.3, 7.0, 1e9])


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(noise(n, n, seed=seed + 1)).Q


def projector(Q: Tensor) -> Tensor:
    return Q @ Q.T


def near(got, expected, tolerance=1e-9):
    got, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (got, expected))
    assert got.shape == expected.shape and got.isfinite().all()
    if got.numel():
        assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-30)


# ---------------------------------------------------------------------------- spectra


@given(SIZES, SIZES, SEEDS, SCALES)
def test_pairs_of_a_gram_matrix_through_either_side_are_those_of_the_matrix(n, p, seed, scale):
    J = noise(n, p, seed=seed) * scale
    pairs, dense = gram_eigenpairs(J), eigenpairs(J @ J.T)
    k = len(pairs)
    assert k == min(n, p)
    near(pairs.values, dense.values[:k])
    near(pairs.vectors * pairs.values @ pairs.vectors.T, J @ J.T)
    near(pairs.vectors.T @ pairs.vectors, torch.eye(k).double())


@given(SIZES, SEEDS, SCALES)
def test_pairs_rebuild_the_matrix_and_scale_with_it(n, seed, scale):
    A = noise(n, n, seed=seed)
    K = A + A.T
    pairs = eigenpairs(K)
    near(pairs.vectors * pairs.values @ pairs.vectors.T, K)
    near(eigenpairs(K * scale).values, pairs.values * scale)
    assert (pairs.vectors.gather(0, pairs.vectors.abs().argmax(0)[None]) > 0).all()


@given(st.integers(2, 24), st.integers(1, 24), st.integers(1, 4), SEEDS, SCALES)
def test_lanczos_finds_what_the_dense_solver_finds(n, k, block, seed, scale):
    """Spectra with every eigenvalue there one to three times: copies must not be missed."""
    k = min(k, n)
    values = (1 + torch.arange(n) // (1 + seed % 3)).double().flip(0)
    Q = rotation(n, seed)
    K = Q * (scale * values) @ Q.T
    pairs = top_eigenpairs((K + K.T) / 2, k, tol=1e-8, block=block, seed=seed)
    near(pairs.values, scale * values[:k], 1e-7)
    near(K @ pairs.vectors, pairs.vectors * pairs.values, 1e-6)


@given(
    st.integers(8, 60), SEEDS, st.integers(-60, 60), st.sampled_from([torch.float32, torch.float64])
)
def test_cliffs_stay_where_they_are_when_a_spectrum_is_scaled(n, seed, power, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, dtype=torch.float64, generator=generator).sort(descending=True).values
    values[: n // 3] += 20.0
    values = values.to(dtype)
    found = cliffs(values)
    scaled = cliffs(values * 2.0**power)
    assert [c.index for c in found] == [c.index for c in scaled]
    assert n < 24 or n // 3 in [c.index for c in found]


# ---------------------------------------------------------------------------- alignments


@given(st.integers(2, 9), SIZES, SIZES, SEEDS, SCALES)
def test_alignment_sees_directions_and_nothing_else(n, k, f, seed, scale):
    V, F = noise(n, k, seed=seed), noise(n, f, seed=seed + 7)
    cosines = alignment(V, F)
    assert (cosines >= 0).all() and (cosines <= 1 + 1e-12).all()
    near(alignment(-V * scale, F / scale), cosines)
    near(alignment(F, V), cosines.T)
    Q = rotation(n, seed)
    near(alignment(Q @ V, Q @ F), cosines)


@given(st.integers(1, 5), st.integers(1, 5), SEEDS)
def test_no_other_assignment_scores_more(k, f, seed):
    A = noise(k, f, seed=seed)
    found = match(A)
    rows, columns = found.rows.tolist(), found.columns.tolist()
    assert len(rows) == min(k, f) == len(set(rows)) == len(set(columns)) and rows == sorted(rows)
    near(found.scores, A[found.rows, found.columns], 0)
    small, large = (A, f) if k <= f else (A.T, k)
    best = max(
        sum(small[i, j].item() for i, j in enumerate(order))
        for order in permutations(range(large), min(k, f))
    )
    near(found.scores.sum(), best)
    order = torch.randperm(f, generator=torch.Generator().manual_seed(seed))
    near(match(A[:, order]).scores.sum(), best)


@given(st.integers(3, 9), st.integers(1, 3), st.integers(1, 3), SEEDS)
def test_overlaps_depend_on_spans_alone(n, q, m, seed):
    Q, F = noise(n, q, seed=seed), noise(n, m, seed=seed + 7)
    mixed = Q @ (rotation(q, seed) * torch.linspace(1, 2, q))
    overlap = subspace_overlap(Q, F)
    assert 0 <= overlap <= min(q, m) + 1e-9
    near(subspace_overlap(mixed, F), overlap)
    near(projector(orthonormalise(mixed)), projector(orthonormalise(Q)))
    scores = family_alignment(F, {"Q": Q, "mixed": mixed})
    near(scores["mixed"], scores["Q"])
    near((scores["Q"] * F.norm(dim=0)).square().sum(), (orthonormalise(Q).T @ F).square().sum())
    near(family_alignment(mixed, {"Q": Q})["Q"], torch.ones(q).double())


@given(SIZES, SIZES, SIZES, SEEDS, SCALES)
def test_the_shares_of_classes_add_up_to_one(n, c, k, seed, scale):
    V = noise(n * c, k, seed=seed) * scale
    shares = block_energy(V, c)
    assert shares.shape == (k, c)
    near(shares.sum(1), torch.ones(k).double())
    near(shares, V.reshape(n, c, k).square().sum(0).T / V.square().sum(0)[:, None])


@given(st.integers(3, 9), SEEDS, SCALES, st.booleans())
def test_kernel_alignment_is_blind_to_scale_and_to_rotations_of_features(n, seed, scale, centred):
    A, B = noise(n, 4, seed=seed), noise(n, 3, seed=seed + 7)
    cosine = kernel_alignment(A @ A.T, B @ B.T, centred=centred)
    assert 0 <= cosine <= 1 + 1e-12
    R = rotation(4, seed)
    near(kernel_alignment(scale * (A @ R) @ (A @ R).T, B @ B.T, centred=centred), cosine)
    near(kernel_alignment(B @ B.T, A @ A.T, centred=centred), cosine)
    near(kernel_target_alignment(A @ A.T, B * scale, centred=centred), cosine)
    near(kernel_alignment(A @ A.T, scale * (A @ A.T), centred=centred), 1.0)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    near(
        kernel_alignment((A @ A.T)[order][:, order], (B[order] @ B[order].T), centred=centred),
        cosine,
    )
    if centred:
        near(kernel_alignment((A + 3) @ (A + 3).T, B @ B.T), cosine)


@given(SIZES, SEEDS, SCALES)
def test_drift_is_relative(n, seed, scale):
    K, K0 = noise(n, n, seed=seed), noise(n, n, seed=seed + 7)
    near(kernel_drift(scale * K, scale * K0), (K - K0).norm() / K0.norm())
    near(kernel_drift((1 + 1 / 8) * K0, K0), 1 / 8)


# ---------------------------------------------------------------------------- rotations


@given(st.integers(2, 9), st.integers(1, 5), SEEDS, st.none() | st.integers(1, 5))
def test_a_rotation_keeps_the_span(n, q, seed, keep):
    q = min(q, n)
    Q = rotation(n, seed)[:, :q]
    graphs = [noise(n, n, seed=seed + i) for i in (3, 4)]
    graphs = [L + L.T for L in graphs]
    rotated = graph_rotation(Q, graphs, None if keep is None else min(keep, q))
    near(rotated.T @ rotated, torch.eye(q).double())
    near(projector(rotated), projector(Q))
    smooth = (
        graph_rotation(Q, graphs[:1]).T @ graphs[0] @ graph_rotation(Q, graphs[:1])
    ).diagonal()
    near(smooth, torch.linalg.eigvalsh(Q.T @ graphs[0] @ Q))


@given(st.lists(st.integers(1, 3), min_size=2, max_size=3), SEEDS, SCALES)
def test_blocks_that_are_there_are_found_in_any_basis(sizes, seed, scale):
    q = sum(sizes)
    inside = [noise(12, s, s, seed=seed + 11 * i) for i, s in enumerate(sizes)]
    hidden = torch.stack([torch.block_diag(*(part[r] for part in inside)) for r in range(12)])
    U = rotation(q, seed)
    A = scale * (U @ (hidden + hidden.mT) @ U.T)
    found = joint_blocks((A + A.mT) / 2, len(sizes))
    assert sorted(found.sizes) == sorted(sizes) and found.outside < 1e-9
    near(found.basis.T @ found.basis, torch.eye(q).double())


# ---------------------------------------------------------------------------- regressions


@given(SIZES, st.integers(1, 3), st.integers(1, 4), SEEDS, SCALES)
def test_regression_passes_through_its_points_and_is_linear_in_them(n, c, m, seed, scale):
    A = noise(n + m, n + m + 2, seed=seed)
    whole = scale * A @ A.T
    K, K_test, Y = whole[:n, :n], whole[n:, :n], noise(n, c, seed=seed + 7)
    assume(torch.linalg.cond(K) < 1e6)
    near(kernel_regression(K, Y), Y, 1e-6)
    f = kernel_regression(K, Y, K_test)
    near(f, K_test @ torch.linalg.solve(K, Y), 1e-6)
    near(kernel_regression(K, 2 * Y, K_test), 2 * f)
    near(kernel_regression(3 * K, Y, 3 * K_test), f, 1e-6)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    near(kernel_regression(K[order][:, order], Y[order], K_test[:, order]), f, 1e-6)
    ridge = scale / 2
    expected = K_test @ torch.linalg.solve(K + ridge * torch.eye(n), Y)
    near(kernel_regression(K, Y, K_test, ridge=ridge), expected, 1e-6)


@given(st.integers(1, 6), SEEDS, SCALES)
def test_gradient_flow_starts_at_zero_ends_at_regression_and_shrinks_the_error(n, seed, scale):
    A = noise(n, n + 3, seed=seed)
    K, Y = scale * A @ A.T, noise(n, 2, seed=seed + 7)
    assume(torch.linalg.cond(K) < 1e4)
    times = [0.0, 0.1 / scale, 1 / scale, 1e9 / scale]
    f = gradient_flow(K, Y, times)
    assert not f[0].any()
    near(f[-1], Y, 1e-6)
    near(f[1], Y - torch.linalg.matrix_exp(-K * times[1]) @ Y)
    errors = (f - Y).norm(dim=(1, 2))
    assert (errors.diff() <= 1e-9 * errors[0]).all()
