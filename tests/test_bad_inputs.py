"""Odd arguments to the public names: the right answer, or an error that names the argument.

Each function has one good call. Hypothesis changes one argument of it: a tensor's shape, dtype,
memory or numbers, or a number's type and size. What is then accepted must have the answer that a
plain contiguous float64 copy has. The checks of types by jaxtyping are off here, as for a user.
"""

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, reject
from hypothesis import strategies as st
from jaxtyping import config
from torch import Tensor, nn

import entk_helpers
from entk_helpers import NotConverged, NTKOperator, empirical_ntk

pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.func.vmap cannot follow",
    "ignore:Sparse",
    "ignore:Casting complex values",
    "ignore:There is a performance drop",
)


@pytest.fixture(scope="module", autouse=True)
def unchecked():
    """As for a user, who has no import hook."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Net(nn.Module):
    """Weights that are the same in each dtype; a point may be of any real one."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Parameter(noise(*s)) for s in ((5, 4), (3, 5)))

    def forward(self, x):
        if x.is_complex():
            raise RuntimeError("the model's own refusal")
        return torch.tanh(x.to(self.a) @ self.a.T) @ self.b.T


MODEL, X = Net(), noise(6, 4, seed=1)
A = noise(6, 8, seed=2)
K, Q = A @ A.T, torch.linalg.qr(noise(6, 3, seed=3)).Q
Y = noise(6, 2, seed=4)
FULL = empirical_ntk(MODEL, X, reduce="full")
OPERATOR = NTKOperator(MODEL, X)
PAIRS = OPERATOR.compress(Q)
SYMMETRIC = noise(4, 5, 5, seed=5) + noise(4, 5, 5, seed=5).mT
SPECTRUM = (
    torch.cat([30 + torch.arange(10.0), torch.arange(20.0) + 1]).double().sort().values.flip(0)
)
E = entk_helpers
NETWORK = dict(W1=noise(5, 4), W2=noise(3, 5), x=X)
POINTS = dict(model=MODEL, x=X, params="b", memory="1MiB")

GOOD: dict[str, tuple[Callable, dict]] = {
    "jacobian": (E.jacobian, {**POINTS, "by": None}),
    "empirical_ntk": (E.empirical_ntk, {
        **POINTS, "x2": X[:2], "reduce": "full", "by": None, "class_weight": noise(3)}),
    "NTKOperator": (lambda **a: (K := NTKOperator(**a)) @ torch.eye(K.shape[0]), {
        **POINTS, "class_weight": noise(3)}),
    "product": (lambda v: OPERATOR @ v, {"v": noise(18, 2)}),
    "vjp": (OPERATOR.vjp, {"u": noise(18)}),
    "jvp": (OPERATOR.jvp, {"v": noise(35)}),
    "compress": (OPERATOR.compress, {"Q": Q}),
    "compressed_ntk": (E.compressed_ntk, {**POINTS, "Q": Q}),
    "linearised": (E.linearised, dict(model=MODEL, x=X, displacement=noise(15), params="b")),
    "flatten_kernel": (E.flatten_kernel, {"K": FULL}),
    "eigenpairs": (E.eigenpairs, dict(K=K, k=2)),
    "gram_eigenpairs": (E.gram_eigenpairs, dict(J=A, k=2)),
    "top_eigenpairs": (E.top_eigenpairs, dict(
        operator=K, k=2, tol=1e-4, max_matvecs=300, block=2, seed=0)),
    "cliffs": (E.cliffs, dict(values=SPECTRUM, alpha=0.05, window=10, min_ratio=1.1)),
    "torus_laplacian": (E.torus_laplacian, dict(p=5, step=(1, 0))),
    "graph_rotation": (E.graph_rotation, dict(Q=Q, laplacians=[K, torch.eye(6)], keep=2)),
    "joint_blocks": (E.joint_blocks, dict(matrices=SYMMETRIC, n_blocks=2, min_gap=1.2, seed=0)),
    "independent_components": (E.independent_components, dict(Y=Q, seed=0)),
    "kernel_rotation": (E.kernel_rotation, dict(
        Q=Q, class_pairs=PAIRS, n_blocks=2, min_gap=1.2, seed=0)),
    "kernel_regression": (E.kernel_regression, dict(K=K, targets=Y, K_test=K[:2], ridge=0.1)),
    "kernel_logistic_regression": (E.kernel_logistic_regression, dict(
        K=K, labels=torch.arange(6) % 3, K_test=K[:2], penalty=1.0)),
    "gradient_flow": (E.gradient_flow, dict(
        K=K, targets=Y, times=[0.0, 1.0], K_test=K[:2], step=0.01)),
    "alignment": (E.alignment, dict(vectors=A, features=Y)),
    "subspace_overlap": (E.subspace_overlap, dict(Q=Q, F=Y)),
    "orthonormalise": (E.orthonormalise, dict(F=Y, rtol=1e-6)),
    "match": (E.match, dict(A=A)),
    "family_alignment": (lambda vectors, features: E.family_alignment(
        vectors, {"features": features}), dict(vectors=A, features=Y)),
    "block_energy": (E.block_energy, dict(vectors=A, n_classes=3)),
    "kernel_alignment": (E.kernel_alignment, dict(K=K, K2=Y @ Y.T, centred=True)),
    "kernel_target_alignment": (E.kernel_target_alignment, dict(K=K, targets=Y, centred=False)),
    "kernel_drift": (E.kernel_drift, dict(K=K, K0=K + 1)),
    "tms_features": (E.tms_features, dict(X=X)),
    "fourier_families": (E.fourier_families, dict(p=5)),
    "quadratic_ntk": (E.quadratic_ntk, NETWORK),
    "quadratic_class_pairs": (E.quadratic_class_pairs, {**NETWORK, "Q": Q}),
    "relu_ntk": (E.relu_ntk, dict(x=X, x2=X[:2] + 1, depth=2)),
}  # fmt: skip
RESULTS = {"Blocks", "Cliff", "Eigenpairs", "InfiniteWidth", "KernelRotation", "NotConverged"}

# ---------------------------------------------------------------------------- odd values

SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": Tensor.flatten,
    "one number": lambda t: t.flatten()[0],
    "one dimension more": lambda t: t[None],
    "one dimension more, last": lambda t: t[..., None],
    "no points": lambda t: t[:0],
    "nothing in a point": lambda t: t[..., :0],
    "one point": lambda t: t[:1],
    "a point less": lambda t: t[:-1],
    "a column less": lambda t: t[..., :-1],
    "twice": lambda t: torch.cat([t, t]),
    "transposed": lambda t: t.mT if t.dim() > 1 else t,
}
MEMORY: dict[str, Callable[[Tensor], object]] = {
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand_as(t),
    "in a graph": lambda t: t.clone().requires_grad_() * 1 if t.is_floating_point() else t,
    "wants a gradient": lambda t: t.clone().requires_grad_() if t.is_floating_point() else t,
    "a parameter": lambda t: nn.Parameter(t.clone(), requires_grad=False),
    "negated view": lambda t: torch.complex(t, -t).conj().imag if t.dtype == torch.float64 else t,
    "sparse": lambda t: t.to_sparse() if t.dim() else t,
    "meta": lambda t: t.to("meta"),
    "numpy": Tensor.numpy,
    "a list": Tensor.tolist,
    "none": lambda t: None,
    "text": lambda t: "x",
    "a number": lambda t: 3.0,
}
DTYPES = ("float16", "bfloat16", "float32", "complex64", "complex128", "int64", "uint8", "bool")
NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: lambda t, name=name: t.to(getattr(torch, name)) for name in DTYPES},
    **{
        f"times {scale:g}": lambda t, scale=scale: t * scale
        for scale in (0.0, -1.0, 1e3, 1e-30, 1e30, 1e-200, 1e200, math.nan, math.inf)
    },
    "one NaN": lambda t: torch.cat([t[:-1], t[-1:] * math.nan]),
    "whole numbers": lambda t: t.round() if t.is_floating_point() else t,
    "constant": lambda t: torch.ones_like(t),
}
CHANGES = {**SHAPES, **MEMORY, **NUMBERS}
ODD = {
    "whole": [0, 1, -1, 3, 7, 10**4, 10**30, 2.5, 2.0, True, False, None, "2", "", [1], (1, 2)],
    "real": [0, 1, -1.0, 0.5, 1e-300, 1e300, 10**400, math.nan, math.inf, None, "x", [1], "nan"],
    "numbers": [np.int64(2), np.float32(0.5), np.array(2), torch.tensor(2), torch.tensor(0.5),
                torch.ones(2), Fraction(1, 2), 1j, object()],
    "memory": ["", "-1GiB", "1 banana", "1e9", "0", "0.1B", "9" * 400, "1gib", "nan", 10**5000,
               "1 GiB", "0.001GB", "1MB1", None, math.inf, 2.0**40],
    "params": ["", [], "*", "nope", ["b", "nope"], [1], 5, {}, ["*", "a"], "[", ("a",), "?", {"b"}],
    "words": ["", "tensor", "module", "full", "pseudo", "per_class", "Full", 1, None, [], ("full",)],
    "times": [[], [-1], [math.nan], 0.5, None, "ab", torch.ones(2), torch.ones(2, 2), [1e300], [0]],
    "step": [(0, 0), (5, 5), (1,), (1, 2, 3), (0.5, 1), None, 3, "ab", (-7, 12), [1, 2]],
    "centred": [0, 1],
    "laplacians": [[], None, K, K[None], [K, None], [A], ["x"], 5, iter([K])],
    "model": [lambda x: x, None, nn.ReLU(), nn.Linear(4, 3, dtype=torch.complex64), 5, Net],
}  # fmt: skip
SPECIAL = {"by": "words", "reduce": "words", "memory": "memory", "params": "params"} | {
    name: name for name in ("times", "centred", "laplacians", "model")
}
# Whatever a machine can hold or a lifetime wait for is allowed.
TOO_LONG = {("torus_laplacian", "p"): 50, ("fourier_families", "p"): 50, ("relu_ntk", "depth"): 50}


@st.composite
def odd_calls(draw, name: str) -> tuple[dict, str]:
    """The arguments of a call, one of them odd, and what was done to it."""
    good = GOOD[name][1]
    argument = draw(st.sampled_from(sorted(good)))
    value = good[argument]
    if isinstance(value, Tensor):
        first = draw(st.sampled_from([*sorted({**SHAPES, **NUMBERS}), "strided"]) | st.just(""))
        second = draw(st.sampled_from(sorted(CHANGES)))
        odd = value
        for change in filter(None, (first, second)):
            try:
                odd = CHANGES[change](odd.detach() if change == "numpy" else odd)
            except (IndexError, RuntimeError, TypeError):  # two changes that exclude each other
                reject()
        said = f"{argument}: {first}, {second}"
    else:
        kind = "step" if (name, argument) == ("torus_laplacian", "step") else SPECIAL.get(argument)
        kinds = [kind] if kind else ["whole", "real", "numbers"]
        odd = draw(st.sampled_from([v for k in kinds for v in ODD[k]]))
        limit = TOO_LONG.get((name, argument))
        if limit and isinstance(odd, int) and odd > limit:
            odd = limit
        said = f"{argument} = {type(odd).__name__} {str(odd)[:40] if type(odd) is not int else ''}"
    return {**good, argument: odd}, said


# ---------------------------------------------------------------------------- the property


def plain(value):
    """The same argument in the plainest form."""
    if isinstance(value, nn.Module | str):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        value = torch.as_tensor(value).double()
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        value = dense.clone(memory_format=torch.contiguous_format)
        return value.double() if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if isinstance(value, np.generic | np.ndarray):
        return value.item()
    return value


def numbers(result) -> list[Tensor]:
    """All tensors and numbers of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, int | float):
        return [torch.tensor(result, dtype=torch.float64)]
    if is_dataclass(result):
        result = [getattr(result, f.name) for f in fields(result)]
    values = result.values() if isinstance(result, dict) else result
    return [number for value in values for number in numbers(value)]


# Vectors of equal eigenvalues are arbitrary: there only what does not depend on them is compared.
LOOSE = {"eigenpairs", "gram_eigenpairs", "top_eigenpairs", "joint_blocks", "kernel_rotation",
         "graph_rotation", "independent_components", "orthonormalise"}  # fmt: skip


def same(name: str, got, expected, precision: float) -> None:
    for one, other in zip(numbers(got), numbers(expected), strict=True):
        assert one.shape == other.shape or name in LOOSE
        if name == "flatten_kernel":  # moves numbers, whatever they are
            assert torch.equal(one.double().nan_to_num(), other.double().nan_to_num())
            continue
        assert one.isfinite().all(), "NaN or Inf came back"
        one, other = one.detach().double(), other.detach().double()
        if one.dim() == 0 or name not in LOOSE:
            size = other.abs().amax() if other.numel() else 1.0
            assert ((one - other).abs() <= 100 * precision**0.5 * size).all()
    if name in ("eigenpairs", "gram_eigenpairs", "top_eigenpairs"):
        size = expected.values.abs().max().item()
        bound = 30 * precision * size + torch.finfo(got.values.dtype).tiny  # or it underflows
        assert (got.values.double() - expected.values.double()).abs().max() <= bound
    if name == "orthonormalise":
        near = expected.double() @ expected.double().T - got.double() @ got.double().T
        assert near.abs().max() <= 100 * precision**0.5


# An overflow is seen in the result.
NAMES_IN_ERRORS = {"model": {"parameter", "kernel", "Jacobian", "product", "output"}}


def precision_of(arguments: dict) -> float:
    kinds = [v.dtype for v in arguments.values() if isinstance(v, Tensor) and v.is_floating_point()]
    return max([torch.finfo(kind).eps for kind in kinds], default=2.3e-16)


def refusals(arguments: dict) -> set[str]:
    """What the model itself says to these points, together or alone."""
    said, frozen = set(), Net().requires_grad_(False)  # matmul takes another way then
    for x in (arguments.get("x"), arguments.get("x2")):
        for points in (x, x[:1]) if isinstance(x, Tensor) and x.dim() else ():
            try:
                frozen(points.clone())
            except RuntimeError as error:
                said.add(str(error).partition("\n")[0])
    return said


def test_every_public_function_is_tried():
    assert set(E.__all__) - RESULTS <= set(GOOD)
    for function, good in GOOD.values():
        if inspect.isfunction(inspect.unwrap(function)) and function.__name__ in E.__all__:
            assert set(good) | {"progress", "resume", "x2"} >= set(
                inspect.signature(function).parameters
            ) - {"reduce"}


@pytest.mark.parametrize("name", GOOD)
@given(st.data())
def test_an_odd_argument_is_understood_or_named(name, data):
    function = GOOD[name][0]
    arguments, said = data.draw(odd_calls(name))
    precision = precision_of(arguments)
    try:
        result = function(**arguments)
    except (ValueError, TypeError, NotConverged) as error:
        problem = str(error).partition("; clean it first")[0]
        named = NAMES_IN_ERRORS.get(next(iter(arguments)), set()) | set(arguments)
        if not named & set(re.findall(r"\w+", problem)):
            pytest.fail(f"{said}: {type(error).__name__} names no argument: {error}")
        return
    except RuntimeError as error:
        if "converge" in str(error):  # said in the docstrings
            return
        if str(error).partition("\n")[0] not in refusals(arguments):
            pytest.fail(f"{said}: {error}")
        return
    good = {key: plain(value) for key, value in arguments.items()}
    same(name, result, function(**good), precision)
