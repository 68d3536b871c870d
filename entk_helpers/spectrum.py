"""Eigenpairs of kernels (dense, through the smaller side, matrix-free), and their cliffs."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import scipy.linalg
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from .inputs import blocks, real, require_finite, require_floats, require_real, whole
from .mode import constant
from .progress import progress_bar
from .storage import read_tensors, write_tensors


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenvalues in descending order and their eigenvectors, as COLUMNS.

    Each vector has norm one and its entry of largest magnitude is positive. `residuals`
    holds ||A v - lambda v|| of each pair, measured; `matvecs` the products that were spent.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "n k"]
    residuals: Float[Tensor, " k"]
    matvecs: int = 0

    def __len__(self) -> int:
        return len(self.values)


class NotConverged(RuntimeError):
    """Raised by `top_eigenpairs`; `pairs` holds the best pairs so far, with their residuals.

    Examples:
        >>> try:
        ...     top_eigenpairs(torch.diag(torch.arange(300.0)), 3, max_matvecs=30)
        ... except NotConverged as error:
        ...     print(error.pairs.values.shape, error.pairs.matvecs <= 30)
        torch.Size([3]) True
    """

    def __init__(self, message: str, pairs: Eigenpairs):
        super().__init__(message)
        self.pairs = pairs


@dataclass(frozen=True)
class Cliff:
    """A drop in an ordered spectrum.

    `index` eigenvalues lie above it; `ratio` is the last of them over the next; `score` is
    the drop in units of the drops around it (see `cliffs`).
    """

    index: int
    ratio: float
    score: float


@runtime_checkable
class SymmetricOperator(Protocol):
    """Anything with a shape that multiplies (n, k) blocks."""

    shape: tuple[int, int]

    def __matmul__(self, v: Tensor) -> Tensor: ...


@constant()
def eigenpairs(K: Float[Tensor, "n n"], k: int | None = None) -> Eigenpairs:
    """Return the k largest (default: all) eigenpairs of a symmetric matrix.

    Computed in float64, where a kernel's many near-zero eigenvalues do no harm, and
    returned in the dtype of K. Raises ValueError for a matrix that is not square, finite
    and symmetric, and for k outside 1..n.

    Examples:
        >>> pairs = eigenpairs(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        >>> pairs.values
        tensor([3., 1.])
        >>> pairs.vectors[:, 0]  # a column: (1, 1) / sqrt(2)
        tensor([0.7071, 0.7071])
    """
    require_floats(half=True, K=K)
    if K.dim() != 2 or K.shape[0] != K.shape[1]:
        raise ValueError(f"K must be square, got shape {tuple(K.shape)}; see flatten_kernel")
    if len(K) == 0:
        raise ValueError("K is empty; pass the kernel of at least one point")
    require_finite(K, "K")
    apart = (K - K.T).abs().max()
    if apart > 1e3 * torch.finfo(K.dtype).eps * K.abs().max():
        raise ValueError(
            f"K is not symmetric (max |K - K^T| = {apart:.2g}); pass (K + K.T) / 2 if it should be"
        )
    k = _check_k(k, len(K), "the size of K")
    A = K.detach().double().resolve_neg()
    values, vectors = _largest(A, k)
    residuals = (A @ vectors - vectors * values).norm(dim=0)
    found = (t.to(K.dtype) for t in (values, _fix_signs(vectors), residuals))
    return Eigenpairs(*(require_finite(t, "the eigenpairs of K") for t in found))


@constant()
def gram_eigenpairs(J: Float[Tensor, "... P"], k: int | None = None) -> Eigenpairs:
    """Return the k largest eigenpairs of J J^T, through the smaller side of J.

    J is (n, P), or (N, C, P) for the flattened (N*C, N*C) kernel. The rank is at most
    min(n, P), and J J^T and J^T J share their nonzero eigenvalues: J^T J w = lambda w gives
    the eigenvector J w / sqrt(lambda). Rows of zeros (closed gates) cost nothing. Computed
    in float64 and returned in the dtype of J. `k` defaults to the numerical rank.

    Raises ValueError for k above the numerical rank: there is no direction left to return.

    Examples:
        >>> J = torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> gram_eigenpairs(J).values  # J J^T is (3, 3), of rank 2
        tensor([9., 4.])
    """
    require_floats(half=True, J=J)
    k = None if k is None else whole(k, "k")
    if J.dim() not in (2, 3) or J.shape[-1] == 0:
        raise ValueError(f"J must have shape (n, P) or (N, C, P), got {tuple(J.shape)}")
    require_finite(J, "J")
    A = J.detach().reshape(-1, J.shape[-1])
    open_rows = A.any(1)
    B = A[open_rows].double()
    wide = len(B) < B.shape[1]
    small = require_finite(_gram(B if wide else B.T), "J J^T")
    size = len(small)
    values, vectors = _largest(small, size if k is None else max(1, min(k, size)))
    floor = size * torch.finfo(torch.float64).eps * values[:1].sum().item()
    rank = int((values > floor).sum())
    if rank == 0:
        raise ValueError(
            "J is zero, so it has no eigenpairs; check that the outputs depend on params"
        )
    if k is not None and rank == k:
        rank = size  # there are more, which nobody asked about
    k = _check_k(k, rank, "the numerical rank of J")
    values, vectors = values[:k], vectors[:, :k]
    if not wide:
        vectors = B @ vectors / values.sqrt()
        if values[-1] < 1e-6 * values[0]:  # the faintest have lost some orthogonality
            factor = torch.linalg.cholesky(_gram(vectors.T)).T
            vectors = torch.linalg.solve_triangular(factor, vectors, upper=True, left=False)
    residuals = (B @ (B.T @ vectors) - vectors * values).norm(dim=0)
    full = J.new_zeros(len(A), k)
    full[open_rows] = _fix_signs(vectors).to(J.dtype)
    found = (t.to(J.dtype) for t in (values, full, residuals))
    return Eigenpairs(*(require_finite(t, "the eigenpairs of J J^T") for t in found))


def _largest(A: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenpairs of a symmetric float64 matrix, descending."""
    n = len(A)
    if A.is_cuda or 4 * k > n:
        values, vectors = torch.linalg.eigh(A)
        return values.flip(0)[:k], vectors.flip(1)[:, :k]
    # A few pairs of a large matrix: LAPACK's evr leaves the other vectors out.
    found = scipy.linalg.eigh(
        A.numpy(), subset_by_index=(n - k, n - 1), driver="evr", check_finite=False
    )
    values, vectors = (torch.from_numpy(np.ascontiguousarray(f)) for f in found)
    return values.flip(0), vectors.flip(1)


@constant()
def top_eigenpairs(
    operator: SymmetricOperator,
    k: int,
    *,
    tol: float = 1e-4,
    max_matvecs: int | None = None,
    block: int = 4,
    seed: int = 0,
    progress: bool = False,
    resume: Path | str | None = None,
) -> Eigenpairs:
    """Return the k largest eigenpairs of a symmetric positive semi-definite operator.

    Thick-restart block Lanczos with full re-orthogonalisation (Wu & Simon 2000; Golub &
    Underwood 1977). It stops when every pair has ||A v - lambda v|| <= tol * lambda, its own
    eigenvalue (or the rounding floor of the operator's dtype), as measured by a last product.

    No residual can show a *missing* copy of a repeated eigenvalue. A block finds up to
    `block` copies; the result is then probed: Lanczos from a fresh random start, orthogonal
    to what was found, must find nothing larger than the k-th value, else it goes on.

    Args:
        operator: has `.shape` and multiplies (n, b) blocks with `@`; a tensor will do.
            `.dtype` and `.device` are followed where they are torch's.
        k: number of pairs, at most n.
        tol: residual of each pair relative to its own eigenvalue.
        max_matvecs: budget of products, never exceeded; default 1000 + 100 k.
        block: columns multiplied at once.
        seed: of the random start. The caller's random state is left alone.
        progress: show products, the worst residual and the time left in the terminal.
        resume: a safetensors file where the state is kept from time to time, and which a run that
            was cut off goes on from, bit for bit; removed at the end. In a process group of
            `torch.distributed` the first process writes it, and all must see it.

    Raises:
        NotConverged: the budget is spent; carries the partial pairs.
        ValueError: k or another argument out of range, a shape that is not square, an
            operator that is not symmetric or gives NaN, a file to resume that is of another
            operator or of other arguments.

    Examples:
        >>> pairs = top_eigenpairs(torch.diag(torch.arange(100.0) ** 4), 2)
        >>> pairs.values.pow(0.25).round(decimals=2)  # 99^4 and 98^4
        tensor([99., 98.])
        >>> pairs.matvecs < 100, bool((pairs.residuals <= 1e-4 * pairs.values).all())
        (True, True)
    """
    n = _square(operator)
    k = _check_k(whole(k, "k"), n, "the size of the operator")
    tol = real(tol, "tol")
    if not 0 < tol < 1:
        raise ValueError(f"tol must be between 0 and 1, got {tol!r}")
    block, seed = whole(block, "block", 1), whole(seed, "seed")
    budget = 1000 + 100 * k if max_matvecs is None else whole(max_matvecs, "max_matvecs")
    block, least = min(block, n), min(k + block, n) + 2
    if budget < least:
        raise ValueError(
            f"max_matvecs={budget} cannot give k={k} pairs in blocks of {block}; allow at least {least}"
        )
    with progress_bar(budget, "Lanczos", show=progress) as bar:
        A = _Counted(operator, n, seed, bar)
        _require_symmetric(A)
        about = {"n": n, "k": k, "block": block, "seed": seed, "dtype": str(A.dtype)}
        file = _StateFile(resume, about)
        pairs = _block_lanczos(A, file.load(A, block), k, tol, budget, block, file)
        file.remove()
        return pairs


@constant()
def cliffs(
    values: Float[Tensor, " n"], *, alpha: float = 0.05, window: int = 10, min_ratio: float = 1.1
) -> list[Cliff]:
    """Return the drops in a descending spectrum that stand out from the drops around them.

    The score of a drop is its size over the mean of the `window` drops on either side, the
    largest of those left out (it may be a cliff itself); taken both for the eigenvalues and
    for their logarithms, and the smaller of the two counts, so that neither the few large
    eigenvalues at one end nor the vanishing ones at the other pass for cliffs.

    The null is the spectrum of a random Gram matrix. There, spacings in units of their mean
    follow Wigner's surmise, exp(-pi s^2 / 4) being the chance to exceed s, so the largest of
    n stays below sqrt(4 / pi log(n / alpha)) but in a share alpha of spectra. The mean is
    itself estimated from about 20 spacings: a factor 1.7, found by simulation, makes up for
    that. With it, fewer than alpha of random Gram matrices show any cliff (the tests count).

    A cliff must also have ratio >= `min_ratio`: significant is not yet large. Eigenvalues
    that are zero to rounding are left out, so a deficient rank is no cliff. With the top of
    a spectrum alone, the last `window` drops are judged by one side only.

    Raises ValueError for values that are not finite, not descending or fewer than 8.

    Examples:
        >>> values = torch.cat([torch.linspace(20, 15, 10), torch.linspace(3, 1, 30)])
        >>> [(cliff.index, round(cliff.ratio, 1)) for cliff in cliffs(values)]  # 15 / 3
        [(10, 5.0)]
    """
    require_floats(half=True, values=values)
    window = whole(window, "window", 1)
    if not 0 < real(alpha, "alpha") < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}")
    if math.isnan(real(min_ratio, "min_ratio")):
        raise ValueError("min_ratio is NaN; give the smallest ratio that counts")
    if values.dim() != 1 or len(values) < 8:
        raise ValueError(
            f"values must be one spectrum of at least 8 eigenvalues, got shape {tuple(values.shape)}"
        )
    require_finite(values, "values")
    v = values.detach().double().cpu()
    if (v.diff() > 0).any():
        raise ValueError(
            "values must be in descending order; pass values.sort(descending=True).values"
        )
    v = v[v > max(v[0].item(), 0.0) * len(v) * torch.finfo(values.dtype).eps]
    if len(v) < 8:
        return []
    window = min(window, len(v))
    score = torch.minimum(_relative_drops(v, window), _relative_drops(v.log(), window))
    ratio = v[:-1] / v[1:]
    threshold = 1.7 * math.sqrt(4 / math.pi * math.log(len(score) / alpha))
    found = (
        ((score > threshold) & (ratio >= real(min_ratio, "min_ratio"))).nonzero().flatten().tolist()
    )
    return [Cliff(i + 1, ratio[i].item(), score[i].item()) for i in found]


def _relative_drops(v: Tensor, window: int) -> Tensor:
    """Each drop over the mean of its neighbours, the largest neighbour left out."""
    drops = -v.diff()
    padded = torch.nn.functional.pad(drops, (window, window), value=-1.0)
    around = padded.unfold(0, 2 * window + 1, 1).clone()
    around[:, window] = -1.0
    around = around.sort(dim=1, descending=True).values[:, 1:]
    there = around >= 0
    mean = (around * there).sum(1) / there.sum(1)
    return torch.where(drops > 0, drops / mean, 0.0)


def _block_lanczos(
    A: _Counted, state: _State, k: int, tol: float, budget: int, block: int, file: _StateFile
) -> Eigenpairs:
    """Rayleigh-Ritz on a growing block Krylov space; Q orthonormal, AQ its image.

    The image is stored, so residuals are measured and not inferred, and random columns
    can join the basis at any time without breaking a recurrence.
    """
    # Room for twice what is wanted makes restarts rare; with Q and AQ, memory is 2 n most.
    most = min(A.n, max(2 * k + 4 * block, 60))
    Q, AQ, fresh, known = state.Q, state.AQ, state.fresh, state.known
    while True:
        fresh = A.agreed(_orthonormal(fresh, Q, min(fresh.shape[1], A.n - Q.shape[1]), A))
        image = A(fresh)
        Q, AQ = torch.cat([Q, fresh], dim=1), torch.cat([AQ, image], dim=1)
        theta, S = map(A.agreed, _ritz(Q, AQ))
        everything = Q.shape[1] == A.n
        # Projected now: after a restart this is the direction of every kept pair's residual.
        fresh = image - Q @ (Q.T @ image)
        if Q.shape[1] > k or everything:
            # One pair more than asked for: it tells whether a probe has settled.
            V, AV = Q @ S[:, : k + 1], AQ @ S[:, : k + 1]
            residuals = A.agreed((AV - V * theta[: k + 1].to(V)).norm(dim=0).double().cpu())
            require_finite(residuals, "the residuals of the operator")
            floor = 100 * torch.finfo(A.dtype).eps * theta.abs().max().item()
            goal = torch.clamp(tol * theta[: k + 1].abs(), min=floor)
            pairs = Eigenpairs(
                theta[:k].to(V), _fix_signs(V[:, :k]), residuals[:k].to(V), A.matvecs
            )
            converged = bool((residuals[:k] <= goal[:k]).all())
            A.show((residuals[:k] / theta[:k].abs().clamp(min=floor)).max().item(), tol)
            settled = everything or bool(residuals[k] <= max(0.01 * theta[k].abs(), floor))
            if converged and (everything or (known is not None and settled)):
                if everything or bool((theta[:k] <= known + goal[:k]).all()):
                    return _above_floor(pairs, floor)
                known = None
            if converged and known is None:
                # Keep what was found, forget the rest, and look again from elsewhere.
                Q, AQ, known = V[:, :k], AV[:, :k], theta[:k]
                fresh = A.random(min(block, 2, A.n - k))
            # With the whole space in the basis, what has not converged never will.
            if everything or A.matvecs + min(fresh.shape[1], A.n - Q.shape[1]) > budget:
                raise _not_converged(pairs, goal[:k], tol)
        if Q.shape[1] + block > most and Q.shape[1] > k + block:
            keep = S[:, : k + block].to(Q)
            Q, AQ = Q @ keep, AQ @ keep
        file.save(_State(Q, AQ, fresh, known), A)


def _above_floor(pairs: Eigenpairs, floor: float) -> Eigenpairs:
    rank = int((pairs.values > floor).sum())
    if rank < len(pairs):
        raise ValueError(
            f"k={len(pairs)} is more than the numerical rank of the operator; it has {rank} "
            "eigenvalues above rounding"
        )
    return pairs


def _not_converged(pairs: Eigenpairs, goal: Tensor, tol: float) -> NotConverged:
    done = int((pairs.residuals.double().cpu() <= goal).sum())
    worst = (pairs.residuals / pairs.values.abs().clamp(min=1e-300)).max().item()
    return NotConverged(
        f"{done} of {len(pairs)} pairs converged in {pairs.matvecs} products, with repeated "
        f"eigenvalues not yet excluded (worst relative residual {worst:.1e}, tol {tol:.1e}); "
        "raise max_matvecs or tol, or use the partial pairs in .pairs",
        pairs,
    )


def _ritz(Q: Tensor, AQ: Tensor) -> tuple[Tensor, Tensor]:
    """Ritz values, descending (float64, on the CPU), and their coefficients like Q."""
    H = require_finite((Q.T @ AQ).double().cpu(), "Q^T operator Q")
    theta, S = torch.linalg.eigh((H + H.T) / 2)
    return theta.flip(0), S.flip(1).to(Q)


def _orthonormal(V: Tensor, Q: Tensor, columns: int, A: _Counted) -> Tensor:
    """`columns` orthonormal columns orthogonal to Q that span V as far as it goes.

    What V lacks (the Krylov space is invariant: a repeated eigenvalue, a small rank) is
    filled with random directions.
    """
    V = V / V.norm(dim=0).clamp(min=torch.finfo(A.dtype).tiny)
    for _ in range(2):  # twice is enough (Kahan, Parlett)
        V = V - Q @ (Q.T @ V)
        U, s, _ = torch.linalg.svd(V, full_matrices=False)
        V = U[:, s > 1e3 * torch.finfo(A.dtype).eps][:, :columns]
    missing = columns - V.shape[1]
    if missing <= 0:
        return V
    more = _orthonormal(A.random(missing), torch.cat([Q, V], dim=1), missing, A)
    return torch.cat([V, more], dim=1)


@dataclass(frozen=True)
class _State:
    """What Lanczos goes on from: the basis, its image, the next columns, values known before."""

    Q: Tensor
    AQ: Tensor
    fresh: Tensor
    known: Tensor | None


SAVE_EVERY = 60.0
"""Seconds between two writes of a state that can be resumed."""


class _StateFile:
    """Keeps a state, if there is a path; only the first of several processes writes it."""

    def __init__(self, path: Path | str | None, about: dict):
        self._path, self._about = None if path is None else Path(path), about
        self._written = time.monotonic()

    def load(self, A: _Counted, block: int) -> _State:
        """The kept state; a fresh one where there is none."""
        path = self._path
        if path is None or not path.exists():
            return _State(A.random(0), A.random(0), A.random(block), None)
        tensors, notes = read_tensors(path)
        try:
            theirs = json.loads(notes.get("about", "null"))
        except ValueError:
            theirs = None
        if theirs != self._about:
            raise ValueError(
                f"resume={str(path)!r} was made by {theirs}, not {self._about}; remove it"
            )
        lacking = {"Q", "AQ", "fresh", "generator", "matvecs"} - tensors.keys() - notes.keys()
        if lacking:
            raise ValueError(f"resume={str(path)!r} has no {min(lacking)}; remove it")
        state = _State(
            *(tensors[key].to(A.device) for key in ("Q", "AQ", "fresh")), tensors.get("known")
        )
        if state.Q.shape[1]:
            image = A(state.Q[:, :1])
            apart = (image - state.AQ[:, :1]).norm() / image.norm()
            if not apart <= 1e4 * torch.finfo(A.dtype).eps:
                raise ValueError(
                    f"resume={str(path)!r} belongs to another operator (their images of one vector "
                    f"differ by {apart:.1g} of their norm); remove it to start anew"
                )
        A.restore(tensors["generator"], int(notes["matvecs"]))
        return state

    def save(self, state: _State, A: _Counted) -> None:
        """Write the state, unless it was written a short while ago."""
        recent = time.monotonic() - self._written < SAVE_EVERY
        if self._path is None or recent or not _first_process():
            return
        tensors = {"generator": A.generator_state} | vars(state)
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        notes = {"about": json.dumps(self._about), "matvecs": str(A.matvecs)}
        write_tensors(self._path, kept, notes)
        self._written = time.monotonic()

    def remove(self) -> None:
        """Leave nothing to go on from."""
        if self._path is not None and _first_process():
            self._path.unlink(missing_ok=True)


def _first_process() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


class _Counted:
    """An operator that counts its products, checks them, and draws vectors that fit it."""

    def __init__(self, operator: SymmetricOperator, n: int, seed: int, bar):
        dtype = getattr(operator, "dtype", None)
        self._operator, self._bar = operator, bar
        self._numpy = dtype is not None and not isinstance(dtype, torch.dtype)
        self._generator = torch.Generator().manual_seed(seed)
        self._first: tuple[int, float] | None = None
        self.n, self.matvecs = n, 0
        self.dtype = dtype if isinstance(dtype, torch.dtype) else torch.float64
        if self.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"operator is {self.dtype}; give it in float32 or float64")
        self.device = "cpu" if self._numpy else getattr(operator, "device", "cpu")

    def __call__(self, v: Tensor) -> Tensor:
        self.matvecs += v.shape[1]
        self._bar.update(v.shape[1])
        out = self._operator @ (v.numpy() if self._numpy else v)
        out = (out if isinstance(out, Tensor) else torch.as_tensor(out, device="cpu")).detach()
        require_real(**{"operator @ v": out})
        if out.shape != v.shape:
            raise ValueError(
                f"operator @ v must have shape {tuple(v.shape)}, got {tuple(out.shape)}"
            )
        return require_finite(out.to(v), "operator @ v")

    def agreed(self, v: Tensor) -> Tensor:
        """What the first of several processes found, where an operator is shared between them.

        Rounding differs between processes, and where singular values are equal it decides the
        vectors; left alone, the processes would multiply different things.
        """
        agree = getattr(self._operator, "agreed", None)
        return v if agree is None else agree(v)

    @property
    def generator_state(self) -> Tensor:
        """Where the random numbers stand; `restore` takes it back."""
        return self._generator.get_state()

    def restore(self, generator: Tensor, matvecs: int) -> None:
        """Go on as the run that kept this state would have."""
        self._generator.set_state(generator.cpu())
        self.matvecs = matvecs
        self._bar.update(matvecs - self._bar.n)

    def show(self, worst: float, tol: float) -> None:
        """Tell the worst residual, and how many products are left if it goes on falling so."""
        self._bar.set_postfix(residual=f"{worst:.0e}", refresh=False)
        worst = max(worst, 1e-300)
        self._first = self._first or (self.matvecs, worst)
        done, fall = self.matvecs - self._first[0], math.log(self._first[1] / worst)
        if fall > 0:
            left = max(max(math.log(worst / tol), 0.0) * done / fall, 1.0)
            self._bar.total = self.matvecs + math.ceil(left)

    def random(self, columns: int) -> Tensor:
        """(n, columns) normal numbers, the same on every device."""
        v = torch.randn(
            self.n, columns, generator=self._generator, dtype=torch.float64, device="cpu"
        )
        return v.to(self.device, self.dtype)


def _require_symmetric(A: _Counted) -> None:
    pair = A.random(2)
    image = A(pair)
    one, two = (pair[:, 0] @ image[:, 1]).item(), (pair[:, 1] @ image[:, 0]).item()
    scale = (pair.norm(dim=0) * image.norm(dim=0)).max().item()
    if abs(one - two) > 1e3 * torch.finfo(A.dtype).eps * scale:
        raise ValueError(
            f"operator is not symmetric: u.Av = {one:.6g} and v.Au = {two:.6g} for random u and v"
        )


def _square(operator: SymmetricOperator) -> int:
    shape = tuple(getattr(operator, "shape", ()))
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"operator must have a square shape, got {shape}")
    return int(shape[0])


def _check_k(k: int | None, most: int, what: str) -> int:
    k = most if k is None else whole(k, "k")
    if not 1 <= k <= most:
        raise ValueError(f"k={k} must be between 1 and {most}, {what}")
    return k


def _fix_signs(vectors: Tensor) -> Tensor:
    """Make each column's entry of largest magnitude positive."""
    if vectors.numel() == 0:
        return vectors
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(largest < 0, -1, 1).to(vectors)


def _gram(B: Tensor) -> Tensor:
    """B B^T by strips on and below the diagonal."""
    n = len(B)
    out = B.new_empty(n, n)
    for strip in blocks(n, max(1, -(-n // 4))):
        out[strip, : strip.stop] = B[strip] @ B[: strip.stop].T
        out[: strip.start, strip] = out[strip, : strip.start].T
    return out
