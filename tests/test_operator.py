"""The matrix-free operator against the kernel written out, and against curvlinops."""

import inspect

import pytest
import torch
from torch import nn
from zoo import ZOO, Branching, build, plain_jacobian, plain_kernel

from entk_helpers.jacobian import jacobian
from entk_helpers.kernel import empirical_ntk, flatten_kernel
from entk_helpers.operator import Graph, NoSecondDerivative, NTKOperator
from entk_helpers.problem import Problem
from entk_helpers.spectrum import top_eigenpairs

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


def close(got, expected, tolerance=1e-12):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-12)


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ZOO)
def test_products_with_every_model_match_plain_autograd(name):
    model, x = build(name, n=4)
    J = torch.cat(list(plain_jacobian(model, x).values()), 2).flatten(0, 1)
    K = NTKOperator(model, x)
    assert K.shape == (len(J), len(J)) and K.n_parameters == J.shape[1]
    u, v = noise(len(J), 3), noise(J.shape[1], 2)
    close(K @ u, J @ (J.T @ u))
    close(K @ u[:, 0], J @ (J.T @ u[:, 0]))
    close(K.vjp(u), J.T @ u)
    close(K.jvp(v), J @ v)
    assert K.matvecs == 4


def test_jacobian_products_and_gauss_newton_match_curvlinops():
    from curvlinops import GGNLinearOperator, JacobianLinearOperator

    model, x = build("recurrent", n=5)
    params, data = list(model.parameters()), [(x, torch.zeros(5, 2).double())]
    K = NTKOperator(model, x)
    theirs = JacobianLinearOperator(model, params, data, check_deterministic=False)
    v, u = noise(K.n_parameters, 2), noise(10, 2)
    close(K.jvp(v), theirs @ v, tolerance=1e-10)
    close(K.vjp(u), theirs.adjoint() @ u, tolerance=1e-10)
    # With the sum of squares, torch's sum over points and outputs, the GGN is 2 J^T J.
    loss = nn.MSELoss(reduction="sum")
    ggn = GGNLinearOperator(model, loss, params, data, check_deterministic=False)
    close(2 * K.vjp(K.jvp(v)), ggn @ v, tolerance=1e-10)


def test_operator_is_the_flattened_kernel_with_class_weights_and_a_subset():
    model, x = build("tied transformer", n=4)
    weight = noise(7)
    options = dict(params=["O", "embed.weight"], class_weight=weight)
    K = NTKOperator(model, x, **options)
    dense = flatten_kernel(empirical_ntk(model, x, reduce="full", **options))
    close(K @ torch.eye(28, dtype=torch.float64), dense)


def test_jvp_and_vjp_are_adjoint_under_class_weights():
    model, x = build("convolutions", n=3)
    K = NTKOperator(model, x, class_weight=noise(3))
    u, v = noise(9), noise(K.n_parameters)
    assert (u @ K.jvp(v)).item() == pytest.approx((K.vjp(u) @ v).item(), rel=1e-10)


def test_a_tiny_budget_makes_graphs_anew_and_gives_the_same_products():
    model, x = build("tied transformer", n=5)
    generous = NTKOperator(model, x)
    with pytest.raises(ValueError, match="one point needs about") as refusal:
        NTKOperator(model, x, memory=1)
    need = int(str(refusal.value).split("about ")[1].split()[0].replace(",", ""))
    scant = NTKOperator(model, x, memory=2 * need)
    assert generous._kept is not None and scant._kept is None
    assert len(list(scant._fresh_graphs())) == 3
    u, v = noise(35, 4), noise(generous.n_parameters, 4)
    close(scant @ u, generous @ u)
    close(scant.vjp(u), generous.vjp(u))
    close(scant.jvp(v), generous.jvp(v))


def compressed(K, Q):
    """Q^T K_cd Q from the kernel written out, (N, N, C, C)."""
    return torch.einsum("nk,nmcd,ml->cdkl", Q, K, Q)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", ["tied transformer", "convolutions", "raw parameters"])
def test_compressed_kernels_are_those_of_the_dense_kernel_by_both_routes(name, width, monkeypatch):
    model, x = build(name, n=5)
    classes = model(x).shape[1]
    options = dict(class_weight=1 + noise(classes).square())
    Q = noise(5, width)
    expected = compressed(empirical_ntk(model, x, reduce="full", **options), Q)
    gradients = NTKOperator(model, x, **options)
    close(gradients.compress(Q), expected)
    assert gradients.matvecs == 0
    products = NTKOperator(model, x, **options)
    products._memory = 2 * classes * width * products.n_parameters * 8 - 1
    monkeypatch.setattr(products, "vjp", None)
    close(products.compress(Q), expected)
    assert products.matvecs == width * classes


def test_the_least_memory_that_an_operator_takes_is_enough_to_compress():
    model, x = build("tied transformer", n=5)
    with pytest.raises(ValueError, match="one point needs about") as refusal:
        NTKOperator(model, x, memory=1)
    need = int(str(refusal.value).split("about ")[1].split()[0].replace(",", ""))
    Q = noise(5, 5)
    scant = NTKOperator(model, x, memory=need)
    close(scant.compress(Q), compressed(empirical_ntk(model, x, reduce="full"), Q))
    assert scant._kept is None and scant.matvecs == 35


def test_compression_takes_some_parameters_and_columns_in_another_dtype():
    model, x = build("tied transformer", n=4)
    K = empirical_ntk(model, x, reduce="full", params="O")
    for Q in (torch.eye(4)[:, :2], noise(2, 4).T):
        found = NTKOperator(model, x, params="O").compress(Q)
        close(found, compressed(K, Q.double()))
        close(found, found.permute(1, 0, 3, 2))


@pytest.mark.parametrize("shape", [(6,), (5, 2), (6, 0), (6, 2, 1)])
def test_columns_that_do_not_fit_are_refused(shape):
    K = NTKOperator(*build("raw parameters"))
    with pytest.raises(ValueError, match=r"Q must have shape \(6, q\), one row a point, got"):
        inspect.unwrap(type(K).compress)(K, torch.ones(shape))
    with pytest.raises(ValueError, match="Q holds 2 NaN"):
        K.compress(torch.full((6, 2), torch.nan).masked_fill(torch.arange(6)[:, None] > 0, 1.0))


def test_a_model_with_control_flow_is_right():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Branching().double(), torch.randn(6, 5, dtype=torch.float64)
    J = plain_jacobian(model, x)
    K = flatten_kernel(sum(plain_kernel(J, J).values()))
    close(NTKOperator(model, x) @ noise(18, 2), K @ noise(18, 2))


def test_top_eigenpairs_of_the_operator_are_those_of_the_kernel():
    model, x = build("raw parameters", n=8)
    pairs = top_eigenpairs(NTKOperator(model, x), 5, tol=1e-10)
    expected = torch.linalg.eigvalsh(flatten_kernel(empirical_ntk(model, x, reduce="full"))).flip(0)
    close(pairs.values, expected[:5], tolerance=1e-9)


def test_products_keep_the_dtype_of_the_model_and_no_graph():
    model, x = build("raw parameters", dtype=torch.float32)
    K = NTKOperator(model, x.requires_grad_(), class_weight=torch.ones(3, requires_grad=True))
    out = K @ noise(18)
    assert out.dtype == torch.float32 and not out.requires_grad
    J = jacobian(model, x).flatten(0, 1).double()
    close(out.double(), J @ (J.T @ noise(18)), tolerance=1e-5)


def test_the_operator_is_a_snapshot_and_changes_nothing():
    model, x = build("signals", n=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        K = NTKOperator(model, x)
        first = K @ torch.ones(9)
        for p in model.parameters():
            p.mul_(2)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    close(K @ torch.ones(9), first)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(model.norm.running_mean, before["norm.running_mean"])


class Undifferentiable(torch.autograd.Function):
    """A right gradient whose own derivative is lost."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return (g.detach() @ w.T).detach(), (x.T @ g.detach()).detach()


class Custom(nn.Linear):
    def forward(self, x):
        return Undifferentiable.apply(super().forward(x), self.weight)


def test_a_graph_whose_derivative_is_lost_is_found():
    problem = Problem.check(Custom(5, 5).double(), noise(4, 5))
    live = {name: p.requires_grad_() for name, p in problem.selected.items()}
    graph = Graph.of(lambda: torch.stack([problem(live, point) for point in problem.x]), live)
    with pytest.raises(NoSecondDerivative, match="again"):
        graph.check()


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
@pytest.mark.parametrize("memory", ["1GiB", 9000])
def test_a_backward_pass_that_cannot_be_differentiated_has_its_gradients_written_out(memory):
    model, x = Custom(5, 5).double(), noise(4, 5)
    J = torch.cat([*plain_jacobian(model, x).values()], dim=2).flatten(0, 1)
    K, u, v = NTKOperator(model, x, memory=memory), noise(20, 2), noise(30, 3)
    close(K @ u, J @ (J.T @ u))
    close(K.vjp(u[:, 0]), J.T @ u[:, 0])
    close(K.jvp(v), J @ v)
    with pytest.raises(ValueError, match="memory=100 is too small"):
        NTKOperator(model, x, memory=100)


def test_a_second_derivative_that_is_nan_is_none():
    class Cumulated(nn.Linear):
        def forward(self, x):
            return torch.logcumsumexp(super().forward(x), 1)

    model, x = Cumulated(5, 3).double(), noise(4, 5)
    J = torch.cat([*plain_jacobian(model, x).values()], dim=2).flatten(0, 1)
    close(NTKOperator(model, x) @ torch.eye(12).double(), J @ J.T)


@pytest.mark.parametrize(
    ("multiply", "message"),
    [
        (lambda K: K @ torch.ones(17), r"v must have shape \(18,\) or \(18, k\), got \(17,\)"),
        (lambda K: K @ torch.ones(18, 0), r"v must have shape .* got \(18, 0\)"),
        (lambda K: K @ torch.ones(18, 1, 1), r"v must have shape .* got \(18, 1, 1\)"),
        (lambda K: K @ torch.tensor(1.0), r"v must have shape .* got \(\)"),
        (lambda K: K.vjp(torch.ones(3)), r"u must have shape \(18,\)"),
        (lambda K: K.jvp(torch.ones(18)), r"v must have shape \(56,\)"),
        (lambda K: K @ torch.full((18,), torch.nan), "v holds 18 NaN"),
    ],
)
def test_vectors_that_do_not_fit_are_refused_and_not_counted(multiply, message):
    K = NTKOperator(*build("raw parameters"))
    with pytest.raises(ValueError, match=message):
        multiply(K)
    assert K.matvecs == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(class_weight=torch.ones(2)),
            r"class_weight must have shape \(3,\), one number an output; got \(2,\)",
        ),
        (dict(params="nope"), "params: 'nope' matches no parameter"),
        (dict(memory=0), "memory must be at least one byte"),
        (dict(memory=10), "memory=10 is too small"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(NTKOperator)(*build("raw parameters"), **options)


def test_products_that_overflow_are_refused():
    class Root(nn.Linear):
        def forward(self, x):
            return (super().forward(x) * 0).sqrt()

    with pytest.raises(ValueError, match="NaN or Inf"):
        NTKOperator(Root(5, 3), torch.ones(2, 5)) @ torch.ones(6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_products_of_the_cpu():
    model, x = build("tied transformer", n=4)
    here = NTKOperator(model, x) @ noise(28, 2)
    there = NTKOperator(model.cuda(), x.cuda()) @ noise(28, 2).cuda()
    assert there.is_cuda
    close(there.cpu(), here, tolerance=1e-10)
