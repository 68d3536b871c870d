"""Eigenpairs of matrices with a chosen spectrum, and cliffs against their null."""

import inspect

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, aslinearoperator
from torch.testing import assert_close

from entk_helpers import spectrum
from entk_helpers.spectrum import (
    NotConverged,
    cliffs,
    eigenpairs,
    gram_eigenpairs,
    top_eigenpairs,
)
from entk_helpers.storage import read_tensors, write_tensors
from entk_helpers.testbeds import tms


def orthogonal(n, m=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    Q, _ = torch.linalg.qr(torch.randn(n, m or n, generator=generator, dtype=torch.float64))
    return Q


def matrix(spectrum, seed=0):
    values = torch.as_tensor(spectrum, dtype=torch.float64)
    Q = orthogonal(len(values), seed=seed)
    A = Q * values @ Q.T
    return (A + A.T) / 2


def check(pairs, A, tolerance):
    """Everything an Eigenpairs promises, measured against A."""
    A = torch.as_tensor(A).double()
    V, values = pairs.vectors.double(), pairs.values.double()
    top = values.abs().max()
    assert (values.diff() <= 0).all()
    assert_close(
        V.T @ V, torch.eye(len(pairs), dtype=torch.float64), atol=max(tolerance, 1e-10), rtol=0
    )
    residuals = (A @ V - V * values).norm(dim=0)
    assert_close(pairs.residuals.double(), residuals, atol=float(tolerance * top), rtol=0.01)
    expected = torch.linalg.eigvalsh(A).flip(0)[: len(pairs)]
    assert_close(values, expected, atol=float(tolerance * top), rtol=0)
    largest = V.gather(0, V.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()


SPECTRA = {
    "decay": 0.8 ** np.arange(80),
    "slow decay": 1 / (1 + np.arange(120)),
    "step": np.r_[np.full(10, 5.0), np.full(60, 1.0)],
    "degenerate pairs": np.repeat(1.5 ** -np.arange(30.0), 2),
    "multiplicity of 12": np.r_[np.full(12, 3.0), np.linspace(1, 0.1, 80)],
    "multiplicity of 9 below others": np.r_[8, 7, 6, np.full(9, 3.0), np.linspace(1, 0.1, 80)],
    "nearly repeated": np.r_[1 + 1e-9 * np.arange(6)[::-1], np.linspace(0.5, 0.1, 60)],
    "cut by k": np.r_[np.full(20, 2.0), np.linspace(1, 0.1, 70)],
    "identity": np.ones(70),
    "projector": np.r_[np.ones(15), np.zeros(65)],
    "low rank": np.r_[np.linspace(3, 1, 13), np.zeros(100)],
    "tiny values": 1e-9 * 0.7 ** np.arange(60.0),
    "huge values": 1e9 * 0.7 ** np.arange(60.0),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("block", [1, 4])
def test_top_pairs_of_a_chosen_spectrum(name, block):
    A = matrix(SPECTRA[name])
    pairs = top_eigenpairs(A, 12, tol=1e-7, block=block)
    check(pairs, A, 1e-6)
    assert (pairs.residuals <= 1e-7 * pairs.values.abs() + 1e-12 * pairs.values[0]).all()


@pytest.mark.parametrize("name", SPECTRA)
def test_dense_pairs_of_a_chosen_spectrum(name):
    A = matrix(SPECTRA[name])
    check(eigenpairs(A), A, 1e-12)
    check(eigenpairs(A, 5), A, 1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_tiny_matrices(n):
    A = matrix(np.arange(n, 0, -1.0))
    for k in range(1, n + 1):
        check(top_eigenpairs(A, k, tol=1e-10), A, 1e-10)
        check(eigenpairs(A, k), A, 1e-12)


def test_all_pairs_can_be_had():
    A = matrix(SPECTRA["step"][:30])
    check(top_eigenpairs(A, 30), A, 1e-10)


def test_float32_operators_are_followed():
    A = matrix(SPECTRA["decay"]).float()
    pairs = top_eigenpairs(A, 8, tol=1e-3)
    assert pairs.values.dtype == pairs.vectors.dtype == torch.float32
    check(pairs, A, 1e-5)
    check(eigenpairs(A, 8), A, 1e-6)
    assert eigenpairs(A, 8).vectors.dtype == torch.float32


class Counting(LinearOperator):
    def __init__(self, A):
        super().__init__(A.dtype, A.shape)
        self.A, self.columns = A, 0

    def _matmat(self, V):
        self.columns += V.shape[1]
        return self.A @ V


def test_numpy_and_scipy_operators_are_accepted_and_products_counted():
    A = matrix(SPECTRA["decay"])
    operator = Counting(A.numpy())
    pairs = top_eigenpairs(operator, 6, tol=1e-8)
    check(pairs, A, 1e-8)
    assert pairs.matvecs == operator.columns
    for other in (A.numpy(), aslinearoperator(A.numpy()), Counting(A.numpy().astype(np.float32))):
        assert_close(top_eigenpairs(other, 6, tol=1e-6).values, pairs.values, rtol=1e-5, atol=1e-6)


def test_a_seed_decides_the_start_and_the_callers_state_is_left():
    A = matrix(SPECTRA["slow decay"])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    a, b, c = (top_eigenpairs(A, 5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a.vectors, b.vectors) and not torch.equal(a.vectors, c.vectors)
    assert_close(a.values, c.values, rtol=1e-6, atol=0)


def test_what_does_not_converge_raises_with_the_partial_pairs():
    A = matrix(SPECTRA["slow decay"])
    with pytest.raises(
        NotConverged, match=r"of 10 pairs converged in \d+ products.*raise max_matvecs"
    ) as e:
        top_eigenpairs(A, 10, tol=1e-13, max_matvecs=40)
    pairs = e.value.pairs
    assert len(pairs) == 10 and pairs.matvecs <= 40
    residuals = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert_close(pairs.residuals, residuals, rtol=1e-6, atol=1e-10)
    assert (residuals > 1e-13 * pairs.values).any()
    assert pairs.values[0].item() == pytest.approx(1, rel=1e-3)


BAD = {
    "not symmetric": (torch.triu(torch.ones(20, 20)), 3, {}, "operator is not symmetric: u.Av = "),
    "a little asymmetric": (
        matrix(SPECTRA["decay"]) + 1e-6 * torch.triu(torch.ones(80, 80), 1), 3, {}, "not symmetric"),
    "not square": (torch.ones(3, 4), 1, {}, r"square shape, got \(3, 4\)"),
    "empty": (torch.ones(0, 0), 1, {}, r"square shape, got \(0, 0\)"),
    "NaN": (torch.full((4, 4), torch.nan), 1, {}, "operator @ v holds .* NaN"),
    "k = 0": (torch.eye(4), 0, {}, "k=0 must be between 1 and 4"),
    "k > n": (torch.eye(4), 5, {}, "k=5 must be between 1 and 4"),
    "k > rank": (
        matrix(SPECTRA["low rank"]), 20, {}, "k=20 is more than the numerical rank .* 13 eigenvalues above"),
    "zero": (torch.zeros(30, 30), 2, {}, "k=2 is more than the numerical rank .* it has 0"),
    "tol": (torch.eye(4), 1, dict(tol=0.0), "tol must be between 0 and 1, got 0.0"),
    "block": (torch.eye(4), 1, dict(block=0), "block must be a whole number of at least 1, got 0"),
    "budget": (torch.eye(9), 5, dict(max_matvecs=3), "max_matvecs=3 cannot give k=5 pairs in blocks of 4; allow at least 11"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_operators_and_arguments_that_make_no_sense_are_refused(name):
    A, k, options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(A, k, **options)


@pytest.mark.parametrize(
    ("K", "k", "message"),
    [
        (torch.ones(3, 4), None, r"K must be square, got shape \(3, 4\)"),
        (torch.ones(2, 2, 3, 3), None, "see flatten_kernel"),
        (torch.triu(torch.ones(4, 4)), None, r"not symmetric .*pass \(K \+ K.T\) / 2"),
        (torch.full((2, 2), torch.inf), None, "K holds 4 NaN or Inf"),
        (torch.eye(3), 4, "k=4 must be between 1 and 3, the size of K"),
        (torch.eye(3), 0, "k=0 must be between 1 and 3"),
        (torch.zeros(0, 0), None, "K is empty"),
    ],
)
def test_kernels_that_are_none_are_refused(K, k, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(eigenpairs)(K, k)


def low(n, p, singular, seed=0):
    """A matrix with chosen singular values."""
    s = torch.as_tensor(singular, dtype=torch.float64)
    return orthogonal(n, len(s), seed) * s @ orthogonal(p, len(s), seed + 1).T


GRAMS = {
    "tall": torch.randn(300, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "wide": torch.randn(20, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "square": torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),
    "low rank, tall": low(200, 40, np.linspace(3, 1, 10)),
    "low rank, wide": low(40, 200, np.linspace(3, 1, 10)),
    "steep, tall": low(200, 30, 10.0 ** -np.linspace(0, 7, 30)),
    "steep, wide": low(30, 200, 10.0 ** -np.linspace(0, 7, 30)),
    "repeated": low(100, 30, np.repeat([3.0, 2.0, 1.0], 10)),
    **{f"{n} rows": torch.arange(6.0 * n).reshape(n, 6).double().sin() for n in range(2, 10)},
    "one row": torch.ones(1, 7, dtype=torch.float64),
    "one column": torch.ones(7, 1, dtype=torch.float64),
}
GRAMS["zero rows"] = GRAMS["tall"] * (torch.arange(300) % 3 == 0)[:, None]
GRAMS["more open rows than columns"] = GRAMS["tall"] * (torch.arange(300) < 25)[:, None]
GRAMS["fewer open rows than columns"] = GRAMS["tall"] * (torch.arange(300) < 5)[:, None]


@pytest.mark.parametrize("name", GRAMS)
def test_pairs_of_a_gram_matrix_through_its_smaller_side(name):
    J = GRAMS[name]
    pairs = gram_eigenpairs(J)
    check(pairs, J @ J.T, 1e-10)
    assert (pairs.residuals < 1e-10 * pairs.values[0]).all()
    if "steep" not in name:
        assert len(pairs) == torch.linalg.matrix_rank(J)
    closed = ~J.any(1)
    assert not pairs.vectors[closed].any()
    check(gram_eigenpairs(J, 1), J @ J.T, 1e-10)


def test_pairs_of_a_flattened_kernel_and_of_float32():
    J = GRAMS["tall"].reshape(100, 3, 20)
    assert torch.equal(gram_eigenpairs(J).values, gram_eigenpairs(J.flatten(0, 1)).values)
    pairs = gram_eigenpairs(J.float(), 7)
    assert pairs.vectors.dtype == torch.float32 and pairs.vectors.shape == (300, 7)
    check(pairs, GRAMS["tall"].float().double() @ GRAMS["tall"].float().double().T, 1e-6)


@pytest.mark.parametrize(
    ("J", "k", "message"),
    [
        (torch.ones(3), None, r"J must have shape \(n, P\) or \(N, C, P\), got \(3,\)"),
        (torch.ones(4, 3), 2, "k=2 must be between 1 and 1, the numerical rank of J"),
        (GRAMS["low rank, tall"], 11, "k=11 must be between 1 and 10, the numerical rank"),
        (torch.zeros(4, 3), None, "J is zero, so it has no eigenpairs"),
        (torch.zeros(0, 3), None, "J is zero, so it has no eigenpairs"),
        (torch.full((2, 2), torch.nan), None, "J holds 4 NaN"),
    ],
)
def test_jacobians_without_the_asked_rank_are_refused(J, k, message):
    with pytest.raises(ValueError, match=message):
        gram_eigenpairs(J, k)


def gram_spectra(n, p, draws, seed=0):
    generator = torch.Generator().manual_seed(seed)
    X = torch.randn(draws, n, p, generator=generator, dtype=torch.float64)
    return torch.linalg.eigvalsh(X @ X.mT).flip(1).clamp(min=0)


@pytest.mark.parametrize(
    ("n", "p"),
    [
        (20, 10),
        (30, 30),
        (30, 300),
        (40, 60),
        (50, 400),
        (60, 60),
        (60, 600),
        (100, 50),
        (100, 100),
    ],
)
def test_fewer_than_one_in_twenty_random_gram_matrices_have_a_cliff(n, p):
    fired = sum(bool(cliffs(v)) for v in gram_spectra(n, p, 200, seed=n + p))
    assert fired < 10


def test_a_small_cliff_in_a_smooth_spectrum_is_found_where_it_is():
    values = 10 * 0.985 ** torch.arange(60, dtype=torch.float64)
    values[10:] /= 1.17 / (1 / 0.985)
    (found,) = cliffs(values)
    assert found.index == 10 and found.ratio == pytest.approx(1.17)


def test_two_cliffs_are_found_and_counted_from_the_top():
    values = torch.cat(
        [torch.linspace(9, 8, 12), torch.linspace(5, 4.5, 20), torch.linspace(1, 0.9, 20)]
    )
    assert [c.index for c in cliffs(values)] == [12, 32]
    assert [round(c.ratio, 3) for c in cliffs(values)] == [1.6, 4.5]


@pytest.mark.trained
def test_the_dense_toy_model_has_its_cliffs_at_the_reconstructed_features_and_at_n():
    """Paper, figure 1 row 1: the drop after 10, of 1.17-1.20, and the one after 50."""
    run = tms.train(10, 0.3, seed=0)
    x, W, b = run.inputs.double(), run.model.W.detach().double(), run.model.b.detach().double()
    h, one = x @ W.T, torch.eye(50, dtype=torch.float64)
    gate = (h @ W + b > 0).double()
    J = torch.einsum("ni,ai,nl->nial", gate, W, x) + torch.einsum("ni,il,na->nial", gate, one, h)
    A = torch.cat([J.flatten(2), torch.diag_embed(gate)], 2).reshape(-1, 550)
    found = {c.index: c.ratio for c in cliffs(torch.linalg.eigvalsh(A.T @ A).flip(0))}
    assert 10 in found and 1.12 < found[10] < 1.25
    assert 50 in found and found[50] > 15


@pytest.mark.parametrize(
    "values",
    [
        torch.ones(30),
        torch.linspace(2, 1, 40),
        0.9 ** torch.arange(60.0),
        torch.cat([torch.ones(20), torch.zeros(20)]),
    ],
    ids=["flat", "line", "geometric", "deficient rank"],
)
def test_smooth_spectra_and_deficient_ranks_have_no_cliff(values):
    assert cliffs(values) == []


def test_a_step_between_flat_parts_is_a_cliff():
    (found,) = cliffs(torch.cat([torch.full((10,), 5.0), torch.ones(30)]))
    assert found.index == 10 and found.ratio == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.ones(7), r"at least 8 eigenvalues, got shape \(7,\)"),
        (torch.ones(8, 8), "must be one spectrum"),
        (torch.arange(9.0), r"descending order; pass values.sort\(descending=True\)"),
        (torch.full((9,), torch.nan), "values holds 9 NaN"),
    ],
)
def test_what_is_no_spectrum_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(cliffs)(values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_pairs_of_the_cpu():
    A = matrix(SPECTRA["decay"])
    here, there = top_eigenpairs(A, 6, tol=1e-9), top_eigenpairs(A.cuda(), 6, tol=1e-9)
    assert there.vectors.is_cuda
    assert_close(there.values.cpu(), here.values, rtol=1e-9, atol=0)
    J = GRAMS["tall"]
    assert_close(
        gram_eigenpairs(J.cuda()).values.cpu(), gram_eigenpairs(J).values, rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("k", "block", "budget"), [(1, 1, 4), (1, 4, 22), (3, 8, 13), (5, 2, 40)])
def test_the_budget_of_products_is_never_exceeded(k, block, budget):
    operator = torch.diag(1 / torch.arange(1, 121).double())
    try:
        spent = top_eigenpairs(operator, k, block=block, max_matvecs=budget, tol=1e-9).matvecs
    except NotConverged as stopped:
        spent = stopped.pairs.matvecs
    assert spent <= budget


class Cut:
    """A matrix that stops answering after so many calls, as a job that is killed."""

    def __init__(self, A, calls=10**9):
        self.A, self.shape, self.dtype, self.calls = A, A.shape, A.dtype, calls

    def __matmul__(self, v):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return self.A @ v


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where a state is kept after every step."""
    monkeypatch.setattr(spectrum, "SAVE_EVERY", 0.0)
    return tmp_path / "deep" / "state"


def stopped(A, path, calls, k=6, **options):
    """Run until the operator has been called so often; the state stays behind."""
    with pytest.raises(KeyboardInterrupt):
        top_eigenpairs(Cut(A, calls), k, resume=path, **options)
    assert path.exists()


# The second has copies to be looked for after convergence, the third restarts on the way.
RESUMED = {
    "decay": (SPECTRA["decay"], 6, {}),
    "repeated": (SPECTRA["multiplicity of 12"], 14, {}),
    "restarts": (1 / (1 + np.arange(200.0)) ** 0.2, 6, dict(max_matvecs=4000)),
    "all of it": (SPECTRA["step"][:30], 30, {}),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_solve_that_was_cut_off_gives_the_same_bits_as_one_that_was_not(name, dtype, kept):
    values, k, options = RESUMED[name]
    A = matrix(values).to(dtype)
    options = options | dict(tol=1e-9 if dtype == torch.float64 else 1e-4)
    whole = Cut(A)
    straight = top_eigenpairs(whole, k, **options)
    assert not kept.exists()
    last = 10**9 - whole.calls
    for calls in sorted({3, last // 2, last * 3 // 4, last - 1}):
        stopped(A, kept, calls, k, **options)
        rest = Cut(A)
        pairs = top_eigenpairs(rest, k, resume=str(kept), **options)
        # What was done is not done again, but for one product of the symmetry and one of the file.
        assert 10**9 - rest.calls <= last - calls + 3
        assert pairs.matvecs == straight.matvecs
        for one, other in ((pairs.values, straight.values), (pairs.vectors, straight.vectors)):
            assert torch.equal(one, other)
        assert list(kept.parent.iterdir()) == []


def test_a_solve_may_be_cut_off_again_and_again(kept):
    A = matrix(SPECTRA["slow decay"])
    straight = top_eigenpairs(A, 5, tol=1e-8)
    for _ in range(3):
        stopped(A, kept, 5, 5, tol=1e-8)
    assert int(read_tensors(kept)[1]["matvecs"]) > 20
    assert torch.equal(top_eigenpairs(A, 5, tol=1e-8, resume=kept).vectors, straight.vectors)


def test_a_state_survives_a_solve_that_does_not_converge(kept):
    """With more products, or a coarser tolerance, it goes on from there."""
    A = matrix(SPECTRA["slow decay"])
    with pytest.raises(NotConverged):
        top_eigenpairs(A, 6, tol=1e-9, max_matvecs=30, resume=kept)
    pairs = top_eigenpairs(A, 6, tol=1e-9, max_matvecs=600, resume=kept)
    assert torch.equal(pairs.vectors, top_eigenpairs(A, 6, tol=1e-9, max_matvecs=600).vectors)


def test_a_state_of_another_operator_or_of_other_arguments_is_refused(kept):
    A = matrix(SPECTRA["decay"])
    stopped(A, kept, 4)
    before = kept.read_bytes()
    others = {
        "another operator .*remove it": (matrix(SPECTRA["decay"], seed=1), 6, {}),
        "belongs to another operator": (A * (1 + 1e-6), 6, {}),
        "'k': 6, .* not .*'k': 5": (A, 5, {}),
        "'seed': 0.* not .*'seed': 3": (A, 6, dict(seed=3)),
        "'block': 4.* not .*'block': 2": (A, 6, dict(block=2)),
        "'n': 80.* not .*'n': 79": (A[:79, :79], 6, {}),
        "torch.float64.* not .*torch.float32": (A.float(), 6, {}),
    }
    for message, (other, k, options) in others.items():
        with pytest.raises(ValueError, match=message):
            top_eigenpairs(other, k, resume=kept, **options)
        assert kept.read_bytes() == before


def test_a_state_that_is_none_is_refused(kept):
    A = matrix(SPECTRA["decay"])
    stopped(A, kept, 4)
    whole = kept.read_bytes()
    for size in (0, 100, len(whole) - 1):
        kept.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="state is not a whole safetensors file"):
            top_eigenpairs(A, 6, resume=kept)
    write_tensors(kept, {"W": torch.ones(3)}, {})
    with pytest.raises(ValueError, match="was made by None"):
        top_eigenpairs(A, 6, resume=kept)


def test_nothing_is_written_without_a_place_for_it_or_before_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    A = matrix(SPECTRA["decay"])
    top_eigenpairs(A, 6, resume=tmp_path / "deep" / "state")  # done within a minute
    monkeypatch.setattr(spectrum, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(spectrum, "write_tensors", pytest.fail)
    top_eigenpairs(A, 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["identity", "projector", "decay"])
def test_progress_is_shown_where_residuals_vanish(name, monkeypatch, tmp_path):
    monkeypatch.setenv("ENTK_PROGRESS", str(tmp_path / "terminal"))
    A = matrix(SPECTRA[name])
    check(top_eigenpairs(A, 6, tol=1e-9, progress=True), A, 1e-8)
    top_eigenpairs(torch.eye(8, dtype=torch.float64), 3, progress=True)
    assert "Lanczos" in (tmp_path / "terminal").read_text()
