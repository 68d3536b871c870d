"""Rotations: spans, known answers on planted structure, and structure that is not there."""

import pytest
import torch

from entk_helpers import (
    NTKOperator,
    alignment,
    empirical_ntk,
    family_alignment,
    fourier_families,
    graph_rotation,
    independent_components,
    joint_blocks,
    kernel_rotation,
    match,
    quadratic_class_pairs,
    subspace_overlap,
    torus_laplacian,
)
from entk_helpers.testbeds.modular import ModularMLP, pairs

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def orthogonal(q, seed=0):
    return torch.linalg.qr(random(q, q, seed=seed)).Q


def block_matrices(sizes, count=30, seed=0, noise=0.0):
    """Symmetric matrices with common diagonal blocks, in a hidden basis; that basis."""
    A = torch.stack(
        [
            torch.block_diag(
                *[random(s, s, seed=1000 * r + 10 * i + seed) for i, s in enumerate(sizes)]
            )
            for r in range(count)
        ]
    )
    hidden = orthogonal(sum(sizes), seed)
    A = A + noise * random(*A.shape, seed=seed + 7)
    return hidden @ (A + A.mT) @ hidden.T, hidden


class TestTorusLaplacian:
    @pytest.mark.parametrize("step", [(1, 0), (0, 1), (1, 1), (1, -1), (2, 3)])
    def test_waves_are_its_eigenvectors(self, step):
        """L exp(i (ka + mb)) = 2 - 2 cos(k s + m t), for the step (s, t)."""
        p = 7
        a, b = torch.arange(p * p) // p, torch.arange(p * p) % p
        for k, m in [(0, 0), (1, 0), (2, 5), (3, 3)]:
            wave = torch.cos(2 * torch.pi / p * (k * a + m * b)).double()
            rate = 2 - 2 * torch.cos(torch.tensor(2 * torch.pi / p * (k * step[0] + m * step[1])))
            torch.testing.assert_close(
                torus_laplacian(p, step) @ wave, rate * wave, atol=1e-5, rtol=0
            )

    def test_is_a_graphs(self):
        L = torus_laplacian(5, (1, -1))
        assert torch.equal(L, L.T)
        assert not L.sum(0).any()
        assert (L.diagonal() == 2).all() and ((L == -1).sum(0) == 2).all()

    @pytest.mark.parametrize(("p", "step"), [(2, (1, 0)), (5, (0, 0)), (5, (5, -10))])
    def test_refuses_what_has_no_edges(self, p, step):
        with pytest.raises(ValueError, match=r"p must be|leads nowhere"):
            torus_laplacian(p, step)


class TestGraphRotation:
    p = 7

    def mixture(self, names=("a", "b")):
        families = fourier_families(self.p)
        waves = torch.cat([families[name][k] for name in names for k in (1, 2, 3)], dim=1)
        return waves @ orthogonal(waves.shape[1]), families

    def test_unmixes_two_families(self):
        """Functions of b are constant along a: they come first, low frequencies first."""
        Q, families = self.mixture()
        V = graph_rotation(Q, [torus_laplacian(self.p, (1, 0)), torus_laplacian(self.p, (0, 1))])
        assert subspace_overlap(V, Q) == pytest.approx(12)
        expected = [("b", 1), ("b", 2), ("b", 3), ("a", 1), ("a", 2), ("a", 3)]
        for i, (name, k) in enumerate(expected):
            pair = V[:, 2 * i : 2 * i + 2]
            assert subspace_overlap(pair, families[name][k]) == pytest.approx(2), (name, k)

    def test_one_graph_sorts_by_roughness(self):
        Q, _ = self.mixture(("sum", "diff"))
        L = torus_laplacian(self.p, (1, 1))
        V = graph_rotation(Q, [L])
        rough = (V * (L @ V)).sum(0)
        assert (rough.diff() > -1e-9).all()
        torch.testing.assert_close(V.T @ L @ V, rough.diag(), atol=1e-9, rtol=0)

    def test_keep_is_where_the_next_graph_acts(self):
        Q, _ = self.mixture()
        first = torus_laplacian(self.p, (1, 0))
        V = graph_rotation(Q, [first, torus_laplacian(self.p, (0, 1))], keep=2)
        alone = graph_rotation(Q, [first])
        torch.testing.assert_close(V[:, 2:], alone[:, 2:])
        assert subspace_overlap(V[:, :2], alone[:, :2]) == pytest.approx(2)

    def test_keeps_the_dtype(self):
        assert (
            graph_rotation(self.mixture()[0].float(), [torus_laplacian(7, (1, 0))]).dtype
            == torch.float32
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"laplacians": []}, "laplacians is empty"),
            ({"keep": 0}, "keep=0 must be between 1 and 12"),
            ({"keep": 13}, "keep=13"),
            ({"Q": torch.ones(49, 2, dtype=F64)}, "orthonormal columns"),
            ({"laplacians": [torch.eye(5, dtype=F64)]}, r"shape \(49, 49\)"),
            ({"laplacians": [torch.ones(49, 49, dtype=F64).triu()]}, "symmetric"),
            ({"laplacians": [torch.full((49, 49), torch.nan, dtype=F64)]}, "Q.T L Q"),
            ({"Q": 1.01 * torch.eye(49, 2, dtype=F64)}, "orthonormal columns"),
            ({"Q": torch.eye(49, 0, dtype=F64)}, "floating point"),
            # Squares that over- or underflow.
            ({"Q": 1e200 * torch.eye(49, 2, dtype=F64)}, "orthonormal columns"),
            ({"laplacians": [1e200 * torch.ones(49, 49, dtype=F64).triu()]}, "symmetric"),
            ({"laplacians": [1e-200 * torch.ones(49, 49, dtype=F64).triu()]}, "symmetric"),
        ],
    )
    def test_errors(self, change, message):
        Q, _ = self.mixture()
        with pytest.raises(ValueError, match=message):
            graph_rotation(**({"Q": Q, "laplacians": [torus_laplacian(7, (1, 0))]} | change))


class TestJointBlocks:
    @pytest.mark.parametrize(
        "sizes", [(1, 1, 1), (4, 4, 4), (2, 3, 5), (6, 1, 1, 4), (1,) * 9], ids=str
    )
    def test_finds_planted_blocks_and_their_number(self, sizes):
        A, hidden = block_matrices(sizes)
        blocks = joint_blocks(A)
        assert sorted(blocks.sizes) == sorted(sizes)
        assert blocks.gap > 1e6
        assert blocks.outside < 1e-20
        assert (blocks.commutators[: len(sizes)] < 1e-14).all()
        torch.testing.assert_close(blocks.basis.T @ blocks.basis, torch.eye(sum(sizes), dtype=F64))
        found = blocks.split(torch.eye(sum(sizes), dtype=F64))
        for planted in hidden.split(sizes, dim=1):
            best = max(subspace_overlap(planted, block) for block in found)
            assert best == pytest.approx(planted.shape[1], abs=1e-6)

    def test_noisy_blocks_are_those_planted(self):
        sizes = (1, 2, 3, 4, 5)
        for seed in range(5):
            A, hidden = block_matrices(sizes, noise=0.1, seed=seed)
            blocks = joint_blocks(A, 5)
            found = blocks.split(torch.eye(15, dtype=F64))
            for planted in hidden.split(sizes, dim=1):
                assert max(subspace_overlap(planted, b) / planted.shape[1] for b in found) > 0.9
            expected = (
                1 - sum((block.T @ A @ block).square().sum() for block in found) / A.square().sum()
            )
            assert blocks.outside == pytest.approx(float(expected), abs=1e-9)

    def test_torn_copies_of_a_block_show_in_what_is_outside(self):
        """Two equal blocks commute with more than two X: the count is no longer the blocks'."""
        A, _ = block_matrices((4,))
        twice = torch.stack([torch.block_diag(a, a) for a in A])
        blocks = joint_blocks(twice)
        assert len(blocks.sizes) == 3
        assert blocks.outside > 0.05 > 1e6 * blocks.commutators[2]

    def test_noise_lowers_the_gap_and_little_else(self):
        sizes = (4, 4, 4, 4)
        gaps = [joint_blocks(block_matrices(sizes, noise=noise)[0]) for noise in (0.01, 0.1, 0.3)]
        assert all(blocks.sizes == sizes for blocks in gaps)
        assert gaps[0].gap > gaps[1].gap > gaps[2].gap > 1.2

    @pytest.mark.parametrize("q", [12, 16, 24])
    def test_no_blocks_in_random_matrices(self, q):
        for seed in range(10):
            blocks = joint_blocks(block_matrices((q,), seed=seed)[0])
            assert blocks.sizes == (q,)
            assert (blocks.gap, blocks.outside) == (1, 0)
            assert torch.equal(blocks.basis, torch.eye(q, dtype=F64))

    def test_a_given_number_is_obeyed(self):
        A, _ = block_matrices((3, 3, 3, 3))
        assert len(joint_blocks(A, 2).sizes) == 2
        assert joint_blocks(A, 1).sizes == (12,)
        assert joint_blocks(A, 4).gap > 1e6 > joint_blocks(A, 3).gap

    def test_commutators_are_those_of_their_definition(self):
        """The second smallest value, against a dense least-squares route."""
        A, _ = block_matrices((5,), count=3)
        A = A / A.norm()
        eye = torch.eye(5, dtype=F64)
        ad = torch.cat([torch.kron(a, eye) - torch.kron(eye, a) for a in A])  # on row-major X
        symmetric = torch.stack(
            [(e + e.T).flatten() for e in torch.eye(25, dtype=F64).reshape(25, 5, 5)]
        )
        basis = torch.linalg.svd(symmetric.T, full_matrices=False).U[:, :15]
        expected = torch.linalg.svdvals(ad @ basis).square().flip(0)
        torch.testing.assert_close(joint_blocks(A).commutators, expected[:6], atol=1e-12, rtol=1e-9)

    def test_scale_and_seed_do_not_matter(self):
        A, _ = block_matrices((2, 3))
        one, two = joint_blocks(A), joint_blocks(1e-200 * A, seed=3)
        torch.testing.assert_close(one.commutators, two.commutators, atol=1e-14, rtol=1e-6)
        assert sorted(one.sizes) == sorted(two.sizes)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"matrices": torch.zeros(2, 3, 3)}, "all zero"),
            ({"matrices": torch.ones(1, 3, 3).triu()}, "symmetric"),
            ({"matrices": torch.eye(3)[None] + 0.01 * torch.ones(3, 3).triu(1)}, "symmetric"),
            ({"matrices": torch.zeros(0, 3, 3)}, r"shape \(R, q, q\)"),
            ({"n_blocks": 0}, "n_blocks=0 must be between 1 and 4"),
            ({"n_blocks": 5}, "n_blocks=5"),
        ],
    )
    def test_errors(self, change, message):
        with pytest.raises(ValueError, match=message):
            joint_blocks(**({"matrices": block_matrices((2, 2))[0]} | change))


class TestIndependentComponents:
    def test_separates_two_circles(self):
        """cos and sin of a + b, mixed with those of a - b, and mixed no longer."""
        families = fourier_families(11)
        waves = torch.cat([families["sum"][2], families["diff"][2]], dim=1)
        found = independent_components(waves @ orthogonal(4))
        torch.testing.assert_close(found.T @ found, torch.eye(4, dtype=F64))
        each = family_alignment(found, {name: families[name][2] for name in ("sum", "diff")})
        scores = torch.stack(list(each.values())).amax(0)
        assert (scores > 0.999).all()
        assert [int((score > 0.9).sum()) for score in each.values()] == [2, 2]

    def test_one_column_is_its_own(self):
        Y = torch.full((4, 1), 0.5, dtype=F64)
        assert torch.equal(independent_components(Y), Y)

    def test_says_when_there_are_none(self):
        with pytest.raises(RuntimeError, match="no independent components"):
            independent_components(torch.linalg.qr(random(200, 20, seed=1)).Q)

    def test_needs_orthonormal_columns(self):
        with pytest.raises(ValueError, match="Y must have orthonormal columns"):
            independent_components(torch.ones(5, 2))


class TestKernelRotation:
    p = 5

    def analytic(self, phases=6, seed=0):
        """Units that are cosines of one frequency each, with psi = phi_a + phi_b (Gromov 2023)."""
        p, digits = self.p, torch.arange(self.p)
        generator = torch.Generator().manual_seed(seed)
        rows, columns = [], []
        for k in (1, 2):
            for phi_a, phi_b in 2 * torch.pi * torch.rand(phases**2, 2, generator=generator):
                wave = 2 * torch.pi / p * k * digits
                rows.append(torch.cat([torch.cos(wave + phi_a), torch.cos(wave + phi_b)]))
                columns.append(torch.cos(wave + phi_a + phi_b))
        return ModularMLP(torch.stack(rows).double(), torch.stack(columns, 1).double())

    def families(self):
        every = fourier_families(self.p)
        return {f"{n} {k}": every[n][k] for n in ("sum", "diff") for k in every[n]}

    def test_finds_the_frequencies_of_an_analytic_network(self):
        model, families = self.analytic(), self.families()
        waves = torch.cat(list(families.values()), dim=1)
        Q = waves @ orthogonal(8)
        found = kernel_rotation(Q, quadratic_class_pairs(model.W1, model.W2, pairs(self.p), Q))
        assert found.blocks.sizes == (4, 4)
        assert found.unresolved == ()
        scores = torch.stack(list(family_alignment(found.vectors, families).values()), dim=1)
        assert match(scores.repeat_interleave(2, 1)).scores.min() > 0.97
        assert subspace_overlap(found.vectors, Q) == pytest.approx(8)

    def test_needs_pairs_of_different_classes(self):
        """What K_cc holds does not count: the answer is the same without it."""
        model = self.analytic()
        Q = torch.cat(list(self.families().values()), dim=1) @ orthogonal(8)
        class_pairs = quadratic_class_pairs(model.W1, model.W2, pairs(self.p), Q)
        expected = kernel_rotation(Q, class_pairs).vectors
        class_pairs.diagonal(dim1=0, dim2=1).zero_()
        assert torch.equal(kernel_rotation(Q, class_pairs).vectors, expected)

    def test_finds_nothing_in_random_pairs(self):
        Q = torch.linalg.qr(random(60, 16)).Q
        class_pairs = random(9, 9, 16, 16)
        class_pairs = class_pairs + class_pairs.permute(1, 0, 3, 2)
        assert kernel_rotation(Q, class_pairs).blocks.sizes == (16,)

    def test_blocks_without_components_are_told(self):
        Q = torch.linalg.qr(random(200, 20, seed=1)).Q
        found = kernel_rotation(Q, torch.eye(20, dtype=F64).expand(3, 3, 20, 20), 1)
        assert found.unresolved == (0,)
        assert subspace_overlap(found.vectors, Q) == pytest.approx(20)

    def test_only_symmetric_parts_count_and_transposes_have_to_match(self):
        Q = torch.linalg.qr(random(20, 6)).Q
        class_pairs = random(4, 4, 6, 6)
        class_pairs = class_pairs + class_pairs.permute(1, 0, 3, 2)
        symmetric = (class_pairs + class_pairs.mT) / 2
        one, two = (kernel_rotation(Q, pairs).vectors for pairs in (class_pairs, symmetric))
        torch.testing.assert_close(one, two)
        class_pairs[3, 1] += 1
        for scale in (1, 1e200, 1e-200):
            with pytest.raises(ValueError, match="transposed"):
                kernel_rotation(Q, class_pairs * scale)

    @pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 1, 4, 4), (3, 3, 5, 5)])
    def test_wrong_shapes(self, shape):
        Q = torch.linalg.qr(random(9, 4)).Q
        with pytest.raises(ValueError, match=r"class_pairs must have shape \(C, C, 4, 4\)"):
            kernel_rotation(Q, torch.ones(shape, dtype=F64))


def test_alignment_is_the_same_for_a_class_pair_basis_and_its_span():
    """A rotation moves no vector out of the subspace: what is outside stays outside."""
    A, _ = block_matrices((2, 2))
    Q = torch.linalg.qr(random(10, 6)).Q
    inside, outside = Q[:, :4], Q[:, 4:]
    V = torch.cat(joint_blocks(A).split(inside), dim=1)
    assert alignment(V, outside).max() < 1e-12


def test_compressed_class_pairs_are_the_kernels_own():
    model = ModularMLP(random(8, 10), random(5, 8, seed=1))
    x, Q = pairs(5).double(), torch.linalg.qr(random(25, 3)).Q
    full = empirical_ntk(model, x, reduce="full")
    expected = torch.einsum("nk,nmcd,ml->cdkl", Q, full, Q)
    torch.testing.assert_close(NTKOperator(model, x).compress(Q), expected)
    torch.testing.assert_close(quadratic_class_pairs(model.W1, model.W2, x, Q), expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sine", [0.6, -0.6])
def test_a_start_beside_the_least_independent_basis_does_not_stay_there(sine, seed):
    spikes = torch.eye(20, dtype=torch.float64)[:, :2]
    mixed = spikes @ torch.tensor([[0.8, -sine], [sine, 0.8]], dtype=torch.float64)
    found = alignment(independent_components(mixed, seed=seed), spikes)
    assert found.amax(0).min() > 0.99
