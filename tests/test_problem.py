"""Which parameters a name means, and which points go together."""

import importlib
import inspect
from collections import UserDict
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils import checkpoint
from zoo import AWKWARD, build, plain_jacobian

from entk_helpers import NTKOperator, empirical_ntk, jacobian, linearised, problem
from entk_helpers.problem import Problem, select

jacobians = importlib.import_module("entk_helpers.jacobian")  # hidden by the function


def test_unknown_names_bring_the_closest():
    model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(
        ValueError, match=r"params: '0.wieght' matches no parameter; closest: '0.weight'"
    ):
        select(model, "0.wieght")
    with pytest.raises(
        ValueError, match=r"params: 'zzz' matches no parameter; closest: '0.weight', '0.bias'"
    ):
        select(model, ["0.bias", "zzz"])
    assert select(model, ["*.bias", "0.w*"]) == ["0.weight", "0.bias"]


def test_a_name_that_looks_like_a_glob_is_a_name():
    model = nn.ParameterDict({"w[ab]": torch.ones(1), "wa": torch.ones(1)})
    assert select(model, "w[ab]") == ["w[ab]"]
    assert select(model, "w*") == ["w[ab]", "wa"]


def test_a_cross_set_needs_the_same_outputs():
    class Wide(nn.Linear):
        def forward(self, x):
            return super().forward(x[:, :5])[:, : x.shape[1] - 3]

    narrow = Problem.check(Wide(5, 4), torch.ones(2, 5))
    with pytest.raises(ValueError, match="x2 gives 3 outputs a point and x gives 2"):
        narrow.with_points(torch.ones(2, 6))


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_models_have_the_gradients_that_autograd_gives(name):
    model, x = build(name)
    plain = model.module if isinstance(model, nn.DataParallel) else Unpacked(model)
    if "checkpointed" in name:
        plain = nn.Sequential(model.below, model.out)
    J = torch.cat([*plain_jacobian(plain, x).values()], dim=2)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    close(jacobian(model, x), J)
    close(empirical_ntk(model, x), torch.einsum("ncp,mcp->nm", J, J) / 3)
    close(empirical_ntk(model, x, x, reduce="full"), torch.einsum("ncp,mdp->nmcd", J, J))
    J, u = J.flatten(0, 1), torch.randn(18, 2, dtype=torch.float64)
    for memory in ("1GiB", 40000):
        K = NTKOperator(model, x, memory=memory)
        close(K @ u, J @ (J.T @ u))
        close(K.jvp(J.T @ u), J @ (J.T @ u))
    v = 0.1 * J[0]
    close(linearised(model, x, v).flatten(), plain(x).flatten().detach() + J @ v)


class Unpacked(nn.Module):
    """A model with plain outputs, whose parameters keep their order."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        out = self.model(x)
        return out if isinstance(out, torch.Tensor) else out.logits


def test_a_wrapped_models_parameters_have_their_own_names():
    model, x = build("for several devices")
    assert set(empirical_ntk(model, x, by="tensor")) == {"W1", "W2"}
    assert jacobian(model, x, params="W1").shape == (6, 3, 35)
    with pytest.raises(ValueError, match=r"'module.W1' matches no parameter; closest: 'W1'"):
        jacobian(model, x, params="module.W1")


def test_checkpointing_is_as_before_afterwards():
    before = vars(checkpoint).copy()
    model, x = build("checkpointed")
    jacobian(model, x)
    with pytest.raises(ValueError, match="NaN"):
        jacobian(model, x * torch.nan)
    assert vars(checkpoint) == before


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((4, 5)), r"x must be a tensor .* got ndarray; pass torch.as_tensor\(x\)"),
        ([1.0, 2.0], r"got list; pass torch.as_tensor\(x\)"),
        ((np.ones(4),), r"got ndarray; pass torch.as_tensor\(x\)"),
        ({"x": [1.0]}, r"got list; pass torch.as_tensor\(x\)"),
        ((), "got tuple"),
        (UserDict(x=torch.ones(4, 5)), r"got UserDict; pass dict\(x\)"),
        ((torch.ones(4, 5), None), "got NoneType"),
        ({0: torch.ones(4, 5)}, r"x has the keys \[0\]; they must name arguments"),
    ],
)
def test_points_of_other_libraries_are_named_with_what_would_work(monkeypatch, x, message):
    # Without the tests' check of types, which would be first.
    monkeypatch.setattr(problem, "leaves", inspect.unwrap(problem.leaves))
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(problem._count_points)(x, "x")


class Unseen(nn.Linear):
    """A forward pass that leaves autograd no trace, by one context or another."""

    def __init__(self, context, whole=True):
        super().__init__(5, 3)
        self.out, self.context, self.whole = nn.Linear(3, 3), context, whole

    def forward(self, x):
        with self.context():
            x = super().forward(x)
            if self.whole:
                return self.out(x)
        return self.out(x)


ROUTES = [jacobian, empirical_ntk, lambda model, x: NTKOperator(model, x) @ torch.ones(3 * len(x))]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "model",
    [
        Unseen(torch.no_grad),
        Unseen(torch.inference_mode),
        Unseen(torch.inference_mode, whole=False),
    ],
)
def test_a_model_that_hides_from_autograd_is_refused_and_not_zero(route, model):
    with pytest.raises(ValueError, match=r"forward runs under torch.no_grad, .* take that out"):
        route(model, torch.randn(4, 5))


def test_parts_of_a_model_may_be_kept_from_autograd():
    model, x = Unseen(torch.no_grad, whole=False), torch.randn(4, 5)
    J = jacobian(model, x, by="tensor")
    assert not J["weight"].any() and J["out.weight"].any()


class Typed(nn.Linear):
    """A parameter of whole numbers, and one that is not double."""

    def __init__(self):
        super().__init__(5, 3, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones(5, dtype=torch.int8), requires_grad=False)
        self.first = nn.Linear(5, 5)

    def forward(self, x):
        return super().forward((self.first(x) * self.scale).double())


def test_whole_numbers_have_no_derivative_and_precisions_may_differ():
    model, x = Typed(), torch.randn(30, 5)
    with pytest.raises(
        ValueError, match=r"'scale' is torch.int8 and has no derivative; name others"
    ):
        jacobian(model, x)
    found = jacobian(model, x, params="weight")
    J = torch.autograd.functional.jacobian(
        lambda w: torch.func.functional_call(model, {"weight": w}, x), model.weight.detach()
    )
    torch.testing.assert_close(found, J.flatten(2), rtol=1e-5, atol=1e-6)


def hooked(register):
    model = nn.Linear(5, 3)
    getattr(model, register)(lambda module, *grads: tuple(2 * g for g in grads[-1]))
    return model


class FreezesItself(nn.Linear):
    def __init__(self):
        super().__init__(5, 3)

    def forward(self, x):
        self.weight.requires_grad_(False)
        return super().forward(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.jit.script(nn.Linear(5, 3)),
            "parameters cannot be replaced; give the module",
        ),
        (lambda: nn.Sequential(nn.Embedding(4, 3, sparse=True)), "sparse=True; set it to False"),
        (lambda: nn.LazyLinear(3), "parameter 'weight' has no shape yet; call the model once"),
        (lambda: hooked("register_full_backward_hook"), "Linear at '' with a backward hook"),
        (lambda: hooked("register_full_backward_pre_hook"), "Linear at '' with a backward hook"),
        (FreezesItself, "model changes requires_grad of a parameter in forward"),
    ],
)
def test_modules_that_autograd_treats_otherwise_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        jacobian(make(), torch.zeros(4, 5))


class Prototypes(nn.Module):
    """Distances to prototypes, whose batched gradients torch gets wrong."""

    def __init__(self):
        super().__init__()
        self.map, self.read = nn.Linear(5, 4), nn.Linear(3, 2)
        self.prototypes = nn.Parameter(torch.randn(3, 4))

    def forward(self, x):
        return self.read(torch.exp(-torch.cdist(self.map(x), self.prototypes)))


class Unbatched(torch.autograd.Function):
    """A backward pass that vmap cannot follow, of which there is a derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.cos() * (1 if g.abs().sum().item() >= 0 else 2)


class Sine(nn.Linear):
    def forward(self, x):
        return Unbatched.apply(super().forward(x))


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("make", [Prototypes, lambda: Sine(5, 2)])
def test_gradients_that_torch_batches_wrongly_or_not_at_all_are_those_of_plain_autograd(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = make().double(), torch.randn(4, 5, dtype=torch.float64)
    J = torch.cat([*plain_jacobian(model, x).values()], dim=2)
    close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
    close(jacobian(model, x), J)
    close(empirical_ntk(model, x, reduce="full"), torch.einsum("ncp,mdp->nmcd", J, J))
    J, u = J.flatten(0, 1), torch.randn(8, 2, dtype=torch.float64)
    K = NTKOperator(model, x)
    close(K @ u, J @ (J.T @ u))
    close(K @ u[:, 0], J @ (J.T @ u[:, 0]))
    close(K.jvp(J.T @ u), J @ (J.T @ u))


def test_gradients_are_compared_with_plain_autograd_once(monkeypatch):
    model, x = build("raw parameters", n=9)
    calls = []
    one_by_one = jacobians._one_by_one
    monkeypatch.setattr(
        jacobians, "_one_by_one", lambda *args: calls.append(1) or one_by_one(*args)
    )
    K = NTKOperator(model, x, memory="8KB")
    assert K._kept is None
    K @ torch.ones(27)
    assert len(calls) == 1
    jacobian(model, x, memory="8KB")
    assert len(calls) == 2
    empirical_ntk(model, x, memory="40KB")
    assert len(calls) == 3


@pytest.fixture
def process_group():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_sharded_parameters_are_refused(process_group):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = torch.distributed.fsdp.fully_shard(nn.Linear(5, 3), mesh=mesh)
    with pytest.raises(ValueError, match="parameter 'weight' is sharded over processes; load its"):
        jacobian(model, torch.ones(4, 5))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_points_of_several_lengths_in_one_tensor_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    with pytest.raises(TypeError, match=r"x must be a dense tensor .* not one that is nested"):
        inspect.unwrap(problem._count_points)(nested, "x")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_hides_neither_chance_nor_other_points(dtype):
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    class Random(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 99 * torch.rand(3).to(x)

    class InPart(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5).to(dtype), Centred(5, 3)

        def forward(self, x):
            return self.second(self.first(x.to(dtype)).float())

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = 3 * torch.randn(4, 5)
        for model, points in ((Centred(5, 3).to(dtype), x.to(dtype)), (InPart(), x)):
            with pytest.raises(ValueError, match="depend on the other points of its batch"):
                jacobian(model, points)
        with pytest.raises(ValueError, match=r"two calls of the model .* differ"):
            jacobian(Random(5, 3).to(dtype), x.to(dtype))


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
def test_checkpoints_that_vmap_cannot_follow_are_differentiated():
    class Branches(nn.Linear):
        def forward(self, x):
            branch = lambda x: super(Branches, self).forward(x) * (1 if x.sum().item() < 99 else 2)  # noqa: E731
            return checkpoint.checkpoint(branch, x, use_reentrant=False)

    model, x = Branches(5, 3).double(), torch.ones(4, 5, dtype=torch.float64)
    linear = nn.Linear(5, 3).double()
    expected = torch.cat([*plain_jacobian(linear, x).values()], dim=2)
    torch.testing.assert_close(jacobian(model, x), expected)
    torch.testing.assert_close(NTKOperator(model, x).vjp(torch.ones(12)), expected.sum((0, 1)))
