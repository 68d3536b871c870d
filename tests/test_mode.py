"""What comes out does not depend on the mode or the defaults of whoever calls."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from zoo import build, plain_jacobian

from entk_helpers import (
    NTKOperator,
    alignment,
    cliffs,
    eigenpairs,
    empirical_ntk,
    flatten_kernel,
    gradient_flow,
    gram_eigenpairs,
    graph_rotation,
    jacobian,
    kernel_alignment,
    kernel_drift,
    kernel_logistic_regression,
    kernel_regression,
    kernel_target_alignment,
    linearised,
    match,
    quadratic_class_pairs,
    quadratic_ntk,
    subspace_overlap,
    top_eigenpairs,
)
from entk_helpers.mode import full_precision, own_defaults, own_mode
from entk_helpers.testbeds import grammar, modular, tms, wide


@contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "anomalies": lambda: torch.autograd.set_detect_anomaly(True),
}
every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_model():
    """In float32, which autocast would change; an oracle in float64."""
    model, x = build("raw parameters", dtype=torch.float32)
    exact = build("raw parameters")
    J = torch.cat([*plain_jacobian(*exact).values()], dim=2).flatten(0, 1).float()
    return model, x, J


def close(got, expected):
    assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# ---------------------------------------------------------------------------- kernels

V, U = noise(56), noise(18, 2, seed=1)
ROUTES = {
    "jacobian": lambda model, x: jacobian(model, x).flatten(0, 1),
    "kernel": lambda model, x: flatten_kernel(empirical_ntk(model, x, reduce="full")),
    "product": lambda model, x: NTKOperator(model, x) @ U,
    "product in little memory": lambda model, x: NTKOperator(model, x, memory=3000) @ U,
    "J v": lambda model, x: NTKOperator(model, x).jvp(V),
    "J^T u": lambda model, x: NTKOperator(model, x).vjp(U),
    "compressed": lambda model, x: NTKOperator(model, x).compress(U[:6]),
    "linearised": lambda model, x: linearised(model, x, V).flatten(),
}


def expected(route, model, x, J):
    if route == "linearised":
        return (model(x).flatten() + J @ V).detach()
    if route == "compressed":
        blocks = J.unflatten(0, (6, 3))
        return torch.einsum("nk,ncp,mdp,ml->cdkl", U[:6], blocks, blocks, U[:6])
    return {"jacobian": J, "kernel": J @ J.T, "J v": J @ V, "J^T u": J.T @ U}.get(
        route, J @ (J.T @ U)
    )


@every_mode
@pytest.mark.parametrize("route", ROUTES)
def test_a_kernel_is_the_same_in_every_mode(route, mode):
    model, x, J = small_model()
    with mode():
        found = ROUTES[route](model, x)
    assert found.dtype == torch.float32
    close(found, expected(route, model, x, J))


@every_mode
def test_an_operator_may_be_used_in_another_mode_than_it_was_made_in(mode):
    model, x, J = small_model()
    K = NTKOperator(model, x)
    with mode():
        found = K @ U, K.vjp(U), K.jvp(V)
    for got, wanted in zip(found, (J @ (J.T @ U), J.T @ U, J @ V), strict=True):
        close(got, wanted)


@pytest.mark.parametrize("route", ROUTES)
def test_models_and_points_made_in_inference_mode_are_understood(route):
    model, x, J = small_model()
    with torch.inference_mode():
        other = build("raw parameters", dtype=torch.float32)[0]
        points = x.clone()
    assert points.is_inference() and other.W1.is_inference()
    close(ROUTES[route](other, points), expected(route, model, x, J))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("frozen", [["W1"], ["W1", "W2"]])
def test_frozen_parameters_count_like_others_and_stay_frozen(route, frozen):
    model, x, J = small_model()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    close(ROUTES[route](model, x), expected(route, model, x, J))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == frozen


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,)),
        lambda f, x: torch.func.vmap(f)(x[None]),
    ],
    ids=["grad", "jvp", "vmap"],
)
def test_a_transform_of_a_kernel_is_refused_since_it_would_be_zero(route, transform):
    model, x, _ = small_model()
    with pytest.raises(ValueError, match=r"inside a transform of torch.func .* call it outside"):
        transform(lambda points: ROUTES[route](model, points), x)


# ---------------------------------------------------------------------------- arrays

A = noise(12, 12)
K = A @ A.T
Q = torch.linalg.qr(A)[0][:, :4].contiguous()
G = torch.linalg.qr(noise(12, 3, seed=1))[0].contiguous()
LABELS = torch.arange(12) % 3


def scalar(value):
    return torch.scalar_tensor(value, dtype=torch.float64, device="cpu")


ARRAYS = {
    "eigenpairs": lambda: eigenpairs(K, 3).values,
    "gram_eigenpairs": lambda: gram_eigenpairs(A[:, :5], 3).values,
    "top_eigenpairs": lambda: top_eigenpairs(K, 2).values,
    "kernel_regression": lambda: kernel_regression(K, A),
    "kernel_logistic_regression": lambda: kernel_logistic_regression(K, LABELS, penalty=0.5),
    "gradient_flow": lambda: gradient_flow(K, A, [0.1, 1.0]),
    "subspace_overlap": lambda: scalar(subspace_overlap(Q, G)),
    "alignment": lambda: alignment(Q, G),
    "match": lambda: match(A).scores,
    "kernel_alignment": lambda: scalar(kernel_alignment(K, A)),
    "graph_rotation": lambda: graph_rotation(Q, [K]).abs(),
    "quadratic_ntk": lambda: quadratic_ntk(A[:6, :8], A[:4, :6], A[:5, :8])["W1"],
}


@every_mode
@pytest.mark.parametrize("compute", ARRAYS.values(), ids=ARRAYS)
def test_arrays_are_worked_on_alike_in_every_mode(compute, mode):
    wanted = compute()
    with mode():
        found = compute()
    assert found.device == wanted.device
    assert_close(found.to(wanted.dtype), wanted, rtol=1e-4, atol=1e-5)


CONSTANTS = {
    "eigenpairs": (lambda K: eigenpairs(K, 3).values, K),
    "gram_eigenpairs": (lambda J: gram_eigenpairs(J, 3).values, A[:, :5]),
    "top_eigenpairs": (lambda K: top_eigenpairs(K, 2).values, K),
    "cliffs": (lambda values: values.sum() * len(cliffs(values)), K.diag().sort(descending=True)[0]),
    "kernel_regression": (lambda targets: kernel_regression(K, targets), A),
    "gradient_flow": (lambda K: gradient_flow(K, A, [0.1]), K),
    "subspace_overlap": (lambda F: scalar(subspace_overlap(Q, F)), G),
    "kernel_alignment": (lambda K: scalar(kernel_alignment(K, A)), K),
    "kernel_target_alignment": (lambda K: scalar(kernel_target_alignment(K, A)), K),
    "kernel_drift": (lambda K0: scalar(kernel_drift(K, K0)), K),
    "quadratic_ntk": (lambda W1: quadratic_ntk(W1, A[:4, :6], A[:5, :8])["W1"], A[:6, :8]),
    "quadratic_class_pairs": (
        lambda W1: quadratic_class_pairs(W1, A[:4, :6], A[:5, :8], Q[:5]), A[:6, :8]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_derivative_of_what_has_no_graph_is_refused_since_it_would_be_zero(name):
    compute, at = CONSTANTS[name]
    with pytest.raises(ValueError, match=r"inside a transform of torch.func .* call it outside"):
        torch.func.grad(lambda value: compute(value).sum())(at)


# ---------------------------------------------------------------------------- test beds

X, Y = noise(6, 3), noise(6, 1, seed=1)
SMALL = {
    "steps": 2, "shuffled": 20, "window": 16, "d_model": 16, "n_layers": 1, "d_mlp": 24,
    "n_heads": 2, "n_key_value_heads": 1, "sliding_window": 4, "batch_size": 8,
}  # fmt: skip
RUNS = {
    "toy model": lambda: tms.train(3, 0.5, n=5, n_points=20, steps=20).model,
    "wide": lambda: wide.train_seeds((3, 4, 1), X, Y, [0], steps=5, rate=0.05)[0].model,
    "MLP": lambda: modular.train_mlp(0, p=5, width=8, epochs=10).model,
    "Transformer": lambda: (
        modular.train_transformer(0, p=5, d_model=8, n_heads=2, d_mlp=8, epochs=4).model
    ),
    "Gemma": lambda: grammar.train(0, **SMALL).model,
    "Gemma, untrained": lambda: grammar.untrained(0, d_model=16, n_layers=1, d_mlp=24),
}


@every_mode
@pytest.mark.parametrize("train", RUNS.values(), ids=RUNS)
def test_a_seed_gives_the_same_network_in_every_mode(train, mode):
    wanted = train().state_dict()
    with mode():
        found = train().state_dict()
    assert_close(found, wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad], ids=["inference", "no grad"]
)
def test_fine_tuning_learns_in_every_mode(mode):
    model = RUNS["Gemma, untrained"]()
    inputs, targets = grammar.text_rows(grammar.Trigger(), n=4, seed=5)

    def tuned():
        return list(grammar.fine_tune(model, inputs, targets, every=2, batch=2))[-1].state_dict()

    wanted = tuned()
    with mode():
        found = tuned()
    assert_close(found, wanted, rtol=0, atol=0)


# ---------------------------------------------------------------------------- the contexts


def test_modes_and_defaults_are_put_back_also_after_an_error():
    with torch.inference_mode(), default_dtype(torch.float64), torch.device("meta"):
        for context in (full_precision, own_mode, own_defaults):
            with pytest.raises(KeyError), context():
                raise KeyError
            assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
            assert torch.get_default_dtype() == torch.float64
            assert torch.zeros(1).is_meta


def test_a_models_own_defaults_are_its_own():
    class Shifted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + torch.ones(1).to(x)  # of the default dtype

    with default_dtype(torch.float64):
        found = jacobian(Shifted(3, 2), noise(4, 3, dtype=torch.float64))
    assert found.dtype == torch.float64
