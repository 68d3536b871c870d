"""Choosing a basis inside a feature subspace: by graphs, or by the kernel itself.

Eigenvectors of nearly equal eigenvalues are arbitrary mixtures, so the vectors above a cliff
need rotating before any one of them can be read. `graph_rotation` asks for smoothness on a
graph that somebody chose; `kernel_rotation` asks what the kernels of pairs of classes have in
common, and needs no graph. Arrays only: nothing here knows a model.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from jaxtyping import Float
from scipy.cluster import hierarchy
from torch import Tensor

from .inputs import real, require_finite, require_floats, require_real, whole
from .mode import own_defaults


def torus_laplacian(p: int, step: tuple[int, int]) -> Float[Tensor, "pp pp"]:
    """Return the graph Laplacian of the p x p torus whose edges join (a, b) to (a, b) + step.

    Row a*p + b is the pair (a, b); 2 on the diagonal, -1 for the neighbour on either side
    (-2 where both sides are one point), in float64. Step (1, 0) measures roughness along a, (1, 1) along the direction in which
    a - b stays constant (arXiv 2510.00468v1, appendices C and D).

    Examples:
        >>> torus_laplacian(3, (1, 0))[0]  # (0, 0) and its neighbours (1, 0) and (2, 0)
        tensor([ 2.,  0.,  0., -1.,  0.,  0., -1.,  0.,  0.], dtype=torch.float64)
    """
    if whole(p, "p") < 3:
        raise ValueError(f"p must be at least 3 for a cycle to have two sides, got {p}")
    if not isinstance(step, Sequence) or len(step) != 2:
        raise TypeError(f"step must be two whole numbers, got {step!r}")
    step = whole(step[0], "step[0]"), whole(step[1], "step[1]")
    if step[0] % p == 0 and step[1] % p == 0:
        raise ValueError(f"step {step} leads nowhere on a torus of {p} x {p}; give e.g. (1, 0)")
    points = torch.arange(p * p).reshape(p, p)
    ahead = points.roll((-step[0], -step[1]), dims=(0, 1)).flatten()
    eye = torch.eye(p * p, dtype=torch.float64)
    return 2 * eye - eye[ahead] - eye[ahead].T


@own_defaults()
def graph_rotation(
    Q: Float[Tensor, "N q"],
    laplacians: Sequence[Float[Tensor, "_ _"]],
    keep: int | None = None,
) -> Float[Tensor, "N q"]:
    """Return another orthonormal basis of the same span, smoothest on the graphs first.

    Diagonalises Q^T L Q for the first Laplacian L, in ascending order; then the next
    Laplacian within the `keep` smoothest columns (default: half of them); and so on, each
    inside what the last one kept. Columns that were not kept stay in their order. With a
    number for `keep` all steps after the first act on the same columns, so give two
    Laplacians at most. Equal eigenvalues, such as those of a cosine and a sine, leave a phase
    undetermined, and a cut between them keeps an arbitrary part.

    Raises ValueError for columns that are not orthonormal, for Laplacians that are not
    symmetric, and for `keep` outside 1..q.

    Examples:
        >>> wave = fourier_families(3)["a"][1][:, :1]
        >>> truth = torch.cat([torch.full_like(wave, 1 / 3), wave], dim=1)  # with a constant
        >>> mixed = truth @ torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=truth.dtype)
        >>> found = graph_rotation(mixed, [torus_laplacian(3, (1, 0))])
        >>> alignment(found, truth).round(decimals=4)  # the constant is smoothest
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    _require_orthonormal(Q, "Q")
    laplacians = list(laplacians) if isinstance(laplacians, Sequence | Tensor) else []
    if not laplacians:
        raise ValueError("laplacians is empty; give at least one")
    require_real(**{f"laplacians[{i}]": L for i, L in enumerate(laplacians)})
    keep = None if keep is None else whole(keep, "keep")
    width, basis = Q.shape[1], Q.double()
    if keep is not None and not 1 <= keep <= width:
        raise ValueError(f"keep={keep} must be between 1 and {width}, the number of columns of Q")
    for L in laplacians:
        if L.shape != (len(Q), len(Q)):
            raise ValueError(
                f"each of laplacians must have shape {(len(Q), len(Q))}, got {tuple(L.shape)}"
            )
        inner = basis[:, :width]
        small = require_finite(inner.T @ (L.to(inner) @ inner), "Q^T L Q, for L of laplacians,")
        if (small - small.T).abs().max() > 1e-5 * small.abs().max():
            raise ValueError("each of laplacians must be symmetric; pass (L + L.T) / 2")
        rotation = torch.linalg.eigh((small + small.T) / 2).eigenvectors
        basis = torch.cat([inner @ rotation, basis[:, width:]], dim=1)
        width = min(keep or max(1, width // 2), width)
    return basis.to(Q)


@dataclass(frozen=True)
class Blocks:
    """A simultaneous block diagonalisation: B^T A B has blocks of `sizes` for every A, nearly.

    basis: orthogonal (q, q), columns in the order of their blocks.
    commutators: the smallest eigenvalues, ascending, of X -> sum_A [A, [A, X]], for all A
    together of norm one. As many are small as there are blocks.
    gap: the ratio of the first that is not small to the last that is, 1 for one block.
    outside: the share of sum_A ||A||_F^2 that lies outside the blocks.
    """

    basis: Float[Tensor, "q q"]
    sizes: tuple[int, ...]
    commutators: Float[Tensor, " k"]
    gap: float
    outside: float

    def split(self, vectors: Float[Tensor, "N q"]) -> tuple[Float[Tensor, "N _"], ...]:
        """Return `vectors` in the new basis, one matrix a block."""
        return (vectors @ self.basis.to(vectors)).split(self.sizes, dim=1)


@own_defaults()
def joint_blocks(
    matrices: Float[Tensor, "R q q"],
    n_blocks: int | None = None,
    *,
    min_gap: float = 1.2,
    seed: int = 0,
) -> Blocks:
    """Find the blocks that all of these symmetric matrices share, and how many there are.

    If every A is block diagonal in some basis, then the matrices X that are constant on each
    block commute with every A. So we take the symmetric X with the smallest
    sum_A ||A X - X A||_F^2 (Maehara & Murota 2011): the number of small values is the number
    of blocks, and the eigenspaces of a random combination of these X are the blocks. Among
    some combinations the one whose groups leave least of the X outside is taken.

    More than these X commute where two blocks are equal up to a rotation, or zero on two
    dimensions or more. Then there are more values than blocks, and blocks may be torn:
    `outside` shows it, as it is large beside the small values.

    `n_blocks` None finds the number, at the largest ratio of neighbouring commutators among
    the first q; where no ratio reaches `min_gap`, there is one block of q, and the basis stays
    as it is. Thirty or more
    random matrices with q >= 12 stay below 1.2; of fewer or smaller ones a gap proves little,
    and of a single matrix each eigenvector is a block. Dense: of order q^6 operations and
    some 10 q^4 bytes, a second or less for q = 56.

    Raises ValueError for matrices that are not square and symmetric or all zero, and for
    `n_blocks` outside 1..q.

    Examples:
        >>> normal = torch.Generator().manual_seed(0)
        >>> A = torch.randn(30, 5, 5, generator=normal)
        >>> A *= torch.block_diag(torch.ones(2, 2), torch.ones(3, 3))
        >>> turn = torch.linalg.qr(torch.randn(5, 5, generator=normal)).Q
        >>> found = joint_blocks(turn @ (A + A.mT) @ turn.T)  # the same two blocks in all
        >>> found.sizes, found.outside < 1e-6
        ((2, 3), True)
    """
    require_floats(half=True, matrices=matrices)
    n_blocks = None if n_blocks is None else whole(n_blocks, "n_blocks")
    min_gap, seed = real(min_gap, "min_gap"), whole(seed, "seed")
    if matrices.dim() != 3 or matrices.shape[1] != matrices.shape[2] or not matrices.numel():
        raise ValueError(f"matrices must have shape (R, q, q), got {tuple(matrices.shape)}")
    A = require_finite(matrices, "matrices").detach().double().cpu()
    q, largest = A.shape[1], A.abs().max()
    if largest == 0:
        raise ValueError("matrices are all zero; any basis would do")
    A = A / largest
    scale = A.norm()
    if (A - A.mT).norm() > 1e-5 * scale:
        raise ValueError("matrices must be symmetric; pass (A + A.mT) / 2")
    if n_blocks is not None and not 1 <= n_blocks <= q:
        raise ValueError(f"n_blocks={n_blocks} must be between 1 and {q}, the size of the matrices")
    A = (A + A.mT) / (2 * scale)
    values, X = _commutant(A, min(q + 1, q * (q + 1) // 2))
    # The identity commutes with everything: its value is zero, and starts no gap.
    ratios = values[2:] / values[1:-1].clamp(min=1e-14)
    found = int(ratios.argmax()) + 2 if len(ratios) and ratios.max() >= min_gap else 1
    n = found if n_blocks is None else n_blocks
    gap = float(ratios[n - 2]) if 2 <= n < len(values) else 1.0
    basis, sizes = (torch.eye(q).to(A), (q,)) if n == 1 else _separate(X[:n], seed)
    block = torch.repeat_interleave(torch.tensor(sizes))
    outside = ((basis.T @ A @ basis) * (block[:, None] != block)).square().sum()
    return Blocks(basis.to(matrices), sizes, values.to(matrices), gap, float(outside))


@own_defaults()
def independent_components(Y: Float[Tensor, "N m"], *, seed: int = 0) -> Float[Tensor, "N m"]:
    """Return the orthonormal basis of the span of Y whose columns are most independent.

    FastICA with the fourth moment as contrast (Hyvärinen 1999), as scikit-learn has it. The
    columns of Y must be orthonormal: they are white already, so that only a rotation remains.
    Raises RuntimeError where that does not converge, as among many directions that are all
    equally Gaussian. Converging proves nothing: two columns of noise may converge, the phase of
    a cosine and a sine stays arbitrary, and the optimum is local.

    Examples:
        >>> spikes = torch.eye(20)[:, :2]
        >>> mixed = spikes @ torch.tensor([[0.8, -0.6], [0.6, 0.8]])
        >>> alignment(independent_components(mixed), spikes).amax(0).round(decimals=2)
        tensor([1., 1.])
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    _require_orthonormal(Y, "Y")
    seed = whole(seed, "seed", 0) % 2**32  # as scikit-learn takes it
    if Y.shape[1] == 1:
        return Y.clone()
    # With the default of 1e-4, a start within a degree of the *least* independent basis, where
    # the first steps are tiny, passes as converged.
    ica = FastICA(whiten=False, fun=_cube, max_iter=1000, tol=1e-6, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        try:
            ica.fit(Y.detach().double().cpu().resolve_neg().numpy() * len(Y) ** 0.5)
        except ConvergenceWarning as e:
            raise RuntimeError(
                f"no independent components found among the {Y.shape[1]} columns of Y: {e}"
            ) from None
    return Y @ torch.from_numpy(ica.components_.T).to(Y)


def _cube(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's "cube", and the mean of its slope; x * x * x is much faster than x**3."""
    square = x * x
    slope = 3 * square.mean(axis=-1)
    square *= x
    return square, slope


@dataclass(frozen=True)
class KernelRotation:
    """A basis that a kernel chose: `vectors` (N, q), orthonormal, block after block.

    blocks: how the class pairs split the subspace (see `Blocks`).
    unresolved: the blocks within which the search for independent components did not converge;
    their vectors are one basis of the block among many.
    """

    vectors: Float[Tensor, "N q"]
    blocks: Blocks
    unresolved: tuple[int, ...]


@own_defaults()
def kernel_rotation(
    Q: Float[Tensor, "N q"],
    class_pairs: Float[Tensor, "C _ _ _"],
    n_blocks: int | None = None,
    *,
    min_gap: float = 1.2,
    seed: int = 0,
) -> KernelRotation:
    """Rotate the columns of Q to a basis that the kernel itself singles out.

    `class_pairs` holds Q^T K_cd Q, as `NTKOperator.compress(Q)` returns. Different features
    serve different combinations of classes: where every K_cd with c != d maps each of some
    subspaces to itself, these are the blocks that all pairs share, and `joint_blocks` finds
    them, with their number unless `n_blocks` gives it. Only the symmetric parts of Q^T K_cd Q
    are compared. Inside a block the independent components choose, up to what they leave
    open (sign, order, phase). The kernels K_cc are left out: in them the last layer, which is
    the same for all classes, adds a term that no class sets apart. With two classes there is
    one matrix, and its eigenvectors come back.

    Answers a question left open in arXiv 2510.00468v1, footnote 7.

    Examples:
        >>> normal = torch.Generator().manual_seed(0)
        >>> pairs = torch.randn(6, 6, 5, 5, generator=normal)  # of 6 classes, seen by 5 vectors
        >>> pairs *= torch.block_diag(torch.ones(2, 2), torch.ones(3, 3))
        >>> found = kernel_rotation(torch.eye(5), pairs + pairs.permute(1, 0, 3, 2))
        >>> found.vectors.shape, found.blocks.sizes
        (torch.Size([5, 5]), (2, 3))
    """
    _require_orthonormal(Q, "Q")
    require_floats(class_pairs=class_pairs)
    seed = whole(seed, "seed", 0)
    C, q = class_pairs.shape[0] if class_pairs.dim() else 0, Q.shape[1]
    if class_pairs.shape != (C, C, q, q) or C < 2:
        raise ValueError(
            f"class_pairs must have shape (C, C, {q}, {q}) with C >= 2, got {tuple(class_pairs.shape)}"
        )
    apart = (class_pairs - class_pairs.permute(1, 0, 3, 2)).abs().max()
    if apart > 1e-4 * require_finite(class_pairs, "class_pairs").abs().max():
        raise ValueError("class_pairs[d, c] must be class_pairs[c, d] transposed, and is not")
    c, d = torch.triu_indices(C, C, 1)
    pairs = class_pairs[c, d]
    if not pairs.any():
        raise ValueError("class_pairs is zero between all classes; any basis would do")
    blocks = joint_blocks((pairs + pairs.mT) / 2, n_blocks, min_gap=min_gap, seed=seed)
    parts, unresolved = list(blocks.split(Q)), []
    for i, part in enumerate(parts):
        try:
            parts[i] = independent_components(part, seed=seed)
        except RuntimeError:
            unresolved.append(i)
    return KernelRotation(torch.cat(parts, dim=1), blocks, tuple(unresolved))


def _commutant(A: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` symmetric X of norm one with the least sum_r ||[A_r, X]||_F^2, and these values.

    The quadratic form is <X, S X + X S> - 2 sum_r <X, A_r X A_r> with S = sum_r A_r^2, here
    written out in the basis (E_ij + E_ji) / sqrt(2), E_ii of the symmetric matrices.
    """
    q = A.shape[1]
    i, j = torch.triu_indices(q, q)
    n = len(i)
    place = torch.empty(q, q, dtype=torch.long)
    place[i, j] = place[j, i] = torch.arange(n)
    entries = A[:, i, j]  # each A holds an entry twice
    products, squares = entries.T @ entries, (A @ A).sum(0)
    eye = torch.eye(q).to(A)
    form = A.new_zeros(n, n)
    for r in range(q):  # the rows (r, j), right of the diagonal; the rest is its mirror image
        size = q - r
        first = n - size * (size + 1) // 2
        # <E_rj, S E_km + E_km S - 2 sum_A A E_km A> for k, m and j from r on
        block = products[place[r, r:]][:, place[r:, r:]].mul_(-2)
        block += squares[r, r:, None, None] * eye[:size, :size]
        block[0] += squares[r:, r:]
        block = block + block.transpose(0, 1)  # and the same for E_mk
        k, m = i[first:] - r, j[first:] - r
        form[first : first + size, first:] = block[k, m].T
    weight = torch.where(i == j, 0.25, 0.5).to(A).sqrt()
    form *= 2 * weight[:, None] * weight  # and the same again for E_jr
    values, vectors = scipy.linalg.eigh(
        form.numpy().T,  # LAPACK's order, so that nothing is copied
        overwrite_a=True,
        subset_by_index=(0, count - 1),
        driver="evr",
        check_finite=False,
    )
    X = A.new_zeros(count, q, q)
    X[:, i, j] = torch.from_numpy(vectors.T) * weight
    return torch.from_numpy(values).clamp(min=0), X + X.mT


def _separate(X: Tensor, seed: int) -> tuple[Tensor, tuple[int, ...]]:
    """Eigenvectors of a combination of the X, sorted into as many groups as there are X.

    A block is where each X is constant, so vectors of one block have the same x_i = v^T X_i v.
    Of several combinations, the one that leaves least of the X between the groups.
    """
    generator = torch.Generator().manual_seed(seed)
    best = None
    for _ in range(16):
        mixture = torch.randn(len(X), generator=generator, dtype=X.dtype)
        vectors = torch.linalg.eigh(torch.einsum("k,kij->ij", mixture, X)).eigenvectors
        inside = vectors.T @ X @ vectors
        points = inside.diagonal(dim1=1, dim2=2).T
        tree = hierarchy.linkage(points.numpy(), "ward")
        group = torch.as_tensor(hierarchy.fcluster(tree, len(X), "maxclust")) - 1
        apart = group[:, None] != group
        leak = float((inside * apart).square().sum() / apart.sum())
        if best is None or leak < best[0]:
            best = leak, vectors, group
    _, vectors, group = best
    order = group.argsort(stable=True)
    return vectors[:, order], tuple(group.bincount().tolist())


def _require_orthonormal(Q: Tensor, name: str) -> None:
    require_real(**{name: Q})
    if Q.dim() != 2 or not Q.numel() or not Q.is_floating_point():
        raise ValueError(
            f"{name} must be a matrix of floating point numbers, got {tuple(Q.shape)}, {Q.dtype}"
        )
    gram = require_finite(Q, name).detach().double()
    apart = float((gram.T @ gram - torch.eye(Q.shape[1]).to(gram)).abs().max())
    if not apart <= 1e-4:  # where squares overflow, it is NaN
        raise ValueError(
            f"{name} must have orthonormal columns (max |{name}^T {name} - I| = {apart:.0e}); "
            f"call orthonormalise({name}) first"
        )
