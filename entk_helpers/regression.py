"""What a kernel predicts: kernel regression, and gradient flow on the way to it.

A network that moves only as far as its first-order expansion is right, trained by gradient
flow on (1/2) sum_n |f(x_n) - y_n|^2, follows d f / d t = -K (f - y) with a constant K (Jacot
et al. 2018; Lee et al. 2019). It starts at f_0 and ends at f_0 + K(., X) K^+ (Y - f_0(X)).
The functions of kernels here take a start at zero: pass Y - f_0(X), and add f_0 to what
comes back. All linear algebra is done in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .inputs import Inputs, real, require_finite, require_real
from .kernel import flatten_kernel
from .mode import constant, own_defaults, own_mode
from .operator import NTKOperator
from .problem import Params, Problem


@constant()
def kernel_regression(
    K: Tensor,
    targets: Float[Tensor, "N C"],
    K_test: Tensor | None = None,
    *,
    ridge: float = 0.0,
) -> Float[Tensor, "M C"]:
    """Return K_test (K + ridge)^+ targets: predictions at M points from N training points.

    K is what `empirical_ntk` gives on the training points: (N, N), one kernel for all outputs;
    (C, N, N), one for each; or (N, N, C, C), all outputs coupled, the exact linearised model.
    K_test has the M new points first, (M, N), (C, M, N) or (M, N, C, C); None for the training
    points themselves. `ridge` is added to the eigenvalues. The pseudo-inverse drops what rounding
    left: eigenvalues below 3 eps times the largest, with eps that of the precision in which K
    came, or below n eps in double precision. Give K as it was computed: a float32 kernel that was
    converted to float64 passes its rounding off as eigenvalues.

    Raises ValueError for shapes that do not fit together, a kernel that is not symmetric
    positive semi-definite or comes in less than float32, a negative ridge, NaN or Inf.

    Examples:
        >>> K, targets = 2 * torch.eye(2), torch.tensor([[1.0], [3.0]])
        >>> kernel_regression(K, targets, K_test=torch.tensor([[1.0, 1.0]]))  # (1 + 3) / 2
        tensor([[2.]], dtype=torch.float64)
        >>> kernel_regression(K, targets, K_test=torch.tensor([[1.0, 1.0]]), ridge=2.0)
        tensor([[1.]], dtype=torch.float64)
    """
    ridge = real(ridge, "ridge")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"ridge is {ridge}; give 0 or a positive number")
    inverse = lambda values: torch.where(values > 0, 1 / (values + ridge), 0)[None]  # noqa: E731
    return _predict(K, targets, K_test, inverse)[0]


@own_defaults()
def kernel_logistic_regression(
    K: Tensor,
    labels: Int[Tensor, " n"],
    K_test: Tensor | None = None,
    *,
    penalty: float,
) -> Float[Tensor, "M C"]:
    """Return logits at M points: the function that K allows and cross-entropy prefers.

    Minimises the sum over the N points of the cross-entropy plus (penalty / 2) sum_c |f_c|_K^2,
    with |f|_K the norm of the kernel's function space; no intercept. What `kernel_regression`
    is to squared loss. `labels` are 0 .. C-1, each of them at least once; K and K_test as there,
    one kernel for all outputs. scikit-learn's `LogisticRegression` on the kernel's own features.

    Raises ValueError as `kernel_regression` does, for labels with a class left out and for a
    penalty that is not positive; RuntimeError where the optimiser does not converge.

    Examples:
        >>> K, labels = torch.eye(3), torch.tensor([0, 1, 2])
        >>> f = kernel_logistic_regression(K, labels, penalty=0.5)
        >>> torch.allclose(f, (torch.eye(3) - f.softmax(1)) / 0.5)  # the gradient is zero
        True
    """
    from sklearn.linear_model import LogisticRegression

    require_real(K=K, labels=labels)
    penalty = real(penalty, "penalty")
    if labels.is_floating_point():
        raise TypeError(f"labels is {labels.dtype}; give whole numbers")
    if labels.dim() != 1:
        raise ValueError(f"labels must have shape (N,), got {tuple(labels.shape)}")
    classes = labels.unique()
    n_classes = len(classes)
    if n_classes < 2 or classes.tolist() != list(range(n_classes)):
        raise ValueError(
            f"labels must contain each of 0 .. C-1, two or more, got {classes.tolist()}"
        )
    if not 0 < penalty < float("inf"):
        raise ValueError(f"penalty is {penalty}; give a positive number")
    if K.dim() != 2:
        raise ValueError(
            f"K must have shape (N, N), one kernel for all outputs, got {tuple(K.shape)}"
        )
    if len(K) != len(labels):
        raise ValueError(f"K has shape {tuple(K.shape)}, but there are {len(labels)} labels")
    _check(K, torch.zeros(len(labels), 1), K_test)
    values, vectors = _eigh(K.detach().double(), torch.finfo(K.dtype).eps)
    size = values.mean().item()
    root, vectors = values[values > 0].sqrt(), vectors[:, values > 0]
    features = vectors * root if K_test is None else K_test.detach().to(vectors) @ vectors / root
    if not len(root):
        return features.new_zeros(len(features), n_classes)
    seen = vectors * (root / size**0.5)  # of size one, as the optimiser's tolerance is absolute
    # With two classes scikit-learn has one weight vector, the difference of ours.
    fit = LogisticRegression(
        C=(2 if n_classes == 2 else 1) * size / penalty,
        fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=1000,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what matters is judged below
        fit.fit(seen.cpu().numpy(), labels.cpu().numpy())
    weights = torch.from_numpy(fit.coef_).to(features)
    if n_classes == 2:
        weights = torch.cat([-weights, weights]) / 2
    # The loss curves upward by the penalty or more: the minimum is within slope / penalty.
    wrong = (seen @ weights.T).softmax(1) - nn.functional.one_hot(labels.to(K.device).long())
    slope = wrong.T @ seen + penalty / size * weights
    if slope.norm() > 1e-3 * penalty / size * weights.norm() + 1e-12 * seen.norm():
        raise RuntimeError(
            f"logistic regression with penalty {penalty} did not converge; give more"
        )
    return features @ (weights / size**0.5).T


@own_defaults()
def gradient_flow(
    K: Tensor,
    targets: Float[Tensor, "N C"],
    times: Sequence[float],
    K_test: Tensor | None = None,
    *,
    step: float | None = None,
) -> Float[Tensor, "T M C"]:
    """Return K_test phi_t(K) targets, the function at each time t, from f = 0 at t = 0.

    phi_t(l) = (1 - exp(-l t)) / l for gradient flow. With `step`, the size of a step of plain
    gradient descent on the same loss, phi_t(l) = (1 - (1 - step l)^s) / l after s = t / step
    steps, rounded to a whole number. Kernels have the shapes of `kernel_regression`, which is
    the limit of large t; what that drops as rounding does not move here.

    Raises ValueError as `kernel_regression` does, for times that are negative or not finite,
    and for a step at which gradient descent diverges (2 over the largest eigenvalue).

    Examples:
        >>> K, target = torch.tensor([[2.0]]), torch.tensor([[1.0]])
        >>> gradient_flow(K, target, times=[0.0, 0.5]).flatten()  # 1 - exp(-2 t)
        tensor([0.0000, 0.6321], dtype=torch.float64)
    """
    times = times.tolist() if isinstance(times, Tensor) else times
    if not isinstance(times, Sequence):
        raise TypeError(f"times must be a list of numbers, not {times!r}")
    t = torch.as_tensor([real(time, "times") for time in times], dtype=torch.float64)
    step = None if step is None else real(step, "step")
    if t.numel() == 0 or not bool(((t >= 0) & t.isfinite()).all()):
        raise ValueError(
            f"times must be one or more finite numbers of at least 0, got {list(times)}"
        )
    return _predict(K, targets, K_test, lambda values: _flow(values, t.to(values)[:, None], step))


@own_mode()
def linearised(
    model: nn.Module, x: Inputs, displacement: Float[Tensor, " P"], *, params: Params = None
) -> Float[Tensor, "N C"]:
    """Return f(x; theta) + J(x) displacement, the model's expansion to first order.

    `displacement` is the move away from the model's present parameters, concatenated in the
    order of ``model.named_parameters()``, or of those that `params` selects. Raises what
    `NTKOperator` raises, and ValueError for a displacement that is not one vector.

    Examples:
        >>> model, x = torch.nn.Linear(2, 1), torch.tensor([[3.0, 4.0]])
        >>> moved = linearised(model, x, torch.ones(3))  # every weight and the bias by one
        >>> round((moved - model(x)).item(), 4)
        8.0
    """
    J = NTKOperator(model, x, params=params)
    require_real(displacement=displacement)
    if tuple(displacement.shape) != (J.n_parameters,):
        raise ValueError(
            f"displacement must have shape ({J.n_parameters},), one number a parameter; "
            f"got {tuple(displacement.shape)}"
        )
    moved = J.jvp(require_finite(displacement, "displacement"))
    outputs = Problem.check(model, x, params).outputs()
    return outputs + moved.reshape(outputs.shape)


def _predict(
    K: Tensor,
    targets: Tensor,
    K_test: Tensor | None,
    phi: Callable[[Tensor], Tensor],
) -> Float[Tensor, "T M C"]:
    """K_test phi(K) targets, matrix by matrix; phi maps eigenvalues (n,) to (T, n)."""
    _check(K, targets, K_test)
    eps = torch.finfo(K.dtype).eps
    K, targets = K.detach().double(), targets.detach().to(K.device).double()
    K_test = K if K_test is None else K_test.detach().to(K)

    def solve(A: Tensor, Y: Tensor) -> Tensor:
        """phi(A) Y, (T, n, c)."""
        values, vectors = _eigh(A, eps)
        return vectors @ (phi(values)[..., None] * (vectors.T @ Y))

    if K.dim() == 2:
        return K_test @ solve(K, targets)
    if K.dim() == 3:
        outputs = zip(K, K_test, targets.T[..., None], strict=True)
        return torch.cat([test @ solve(train, y) for train, test, y in outputs], dim=-1)
    flat = solve(flatten_kernel(K), targets.reshape(-1, 1))
    return (flatten_kernel(K_test) @ flat).reshape(len(flat), len(K_test), -1)


def _eigh(A: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Eigenpairs of a positive semi-definite matrix; eigenvalues that are rounding become 0."""
    values, vectors = torch.linalg.eigh(A)
    size = values.abs().amax().item()
    # Tangent kernels in float32 are off by .1 to .4 eps in norm, at all sizes; eigh by n eps.
    rounding = max(3 * eps, len(A) * torch.finfo(torch.float64).eps) * size
    if values[0] < -30 * rounding:
        raise ValueError(
            f"K is not positive semi-definite: its eigenvalues go from {values[0].item():.3g} to "
            f"{values[-1].item():.3g}. A kernel of gradients is, up to the precision that it was "
            "computed in; pass it in that precision"
        )
    return torch.where(values > rounding, values, 0), vectors


def _flow(values: Tensor, t: Tensor, step: float | None) -> Float[Tensor, "T n"]:
    """phi_t of the eigenvalues; 0 where they are 0, as for the pseudo-inverse."""
    if step is None:
        left = torch.expm1(-values * t)
    else:
        largest = values.amax().item()
        if not (step > 0 and step * largest < 2):
            raise ValueError(
                f"step is {step}; the largest eigenvalue is {largest:.4g}, and gradient descent "
                "needs a step between 0 and 2 over it"
            )
        steps, shrink = (t / step).round(), 1 - step * values
        slow = torch.expm1(steps * torch.log1p(-(step * values).clamp(max=0.5)))
        left = torch.where(shrink > 0.5, slow, shrink.sign() ** steps * shrink.abs() ** steps - 1)
    return torch.where(values > 0, -left / values, 0)


def _check(K: Tensor, targets: Tensor, K_test: Tensor | None) -> None:
    require_real(K=K, targets=targets, K_test=K if K_test is None else K_test)
    if targets.dim() != 2:
        raise ValueError(f"targets must have shape (N, C), got {tuple(targets.shape)}")
    n, c = targets.shape
    if n == 0 or c == 0:
        raise ValueError(f"targets is empty, {tuple(targets.shape)}; give at least one point")
    for value, name in ((K, "K"), (K_test, "K_test")):
        if value is not None and value.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"{name} is {value.dtype}; compute kernels in float32 or float64, less is rounding"
            )
    train = {2: (n, n), 3: (c, n, n), 4: (n, n, c, c)}.get(K.dim())
    if tuple(K.shape) != train:
        raise ValueError(
            f"K has shape {tuple(K.shape)}, but targets {tuple(targets.shape)} need "
            f"({n}, {n}), ({c}, {n}, {n}) or ({n}, {n}, {c}, {c})"
        )
    if K_test is not None:
        rows = 1 if K.dim() == 3 else 0
        expected = list(train)
        if K_test.dim() == K.dim():
            expected[rows] = K_test.shape[rows]
        if list(K_test.shape) != expected:
            expected[rows] = "M"
            raise ValueError(
                f"K_test has shape {tuple(K_test.shape)}, but K {tuple(K.shape)} needs "
                f"({', '.join(map(str, expected))}): the M new points first"
            )
        require_finite(K_test, "K_test")
    require_finite(K, "K")
    require_finite(targets, "targets")
    flipped = K.permute(1, 0, 3, 2) if K.dim() == 4 else K.mT
    asymmetry = (K - flipped).abs().amax().item()
    if asymmetry > 1e3 * torch.finfo(K.dtype).eps * K.abs().amax().item():
        raise ValueError(
            f"K is not symmetric (entries differ by up to {asymmetry:.3g}); pass the kernel "
            "between the training points and themselves"
        )
