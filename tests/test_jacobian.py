"""Per-sample Jacobians against plain autograd, and what is refused."""

import pytest
import torch
from zoo import ZOO, Branching, build, plain_jacobian

from entk_helpers.jacobian import jacobian
from entk_helpers.problem import select
from entk_helpers.testbeds.tms import ToyModel

pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


def close(got, expected, tolerance=1e-12):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-12)


def whole(J):
    return torch.cat(list(J.values()), dim=2)


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow")
@pytest.mark.parametrize("name", ZOO)
def test_every_model_matches_plain_autograd_whole_and_split(name):
    model, x = build(name)
    expected = plain_jacobian(model, x)
    close(jacobian(model, x), whole(expected))
    by_tensor = jacobian(model, x, by="tensor")
    assert list(by_tensor) == list(expected)
    for key, J in by_tensor.items():
        close(J, expected[key])


def test_toy_model_of_superposition_follows_its_formula():
    """Paper, v1 section 3: d f_i / d W_al = g_i (delta_il h_a + W_ai x_l), entry by entry."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        W, b = torch.randn(2, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64) / 2
        x = torch.rand(5, 4, dtype=torch.float64)
    J = jacobian(ToyModel(W, b), x, by="tensor")
    h = x @ W.T
    gate = (h @ W + b > 0).double()
    for n in range(5):
        for i in range(4):
            for a in range(2):
                for j in range(4):
                    value = gate[n, i] * ((i == j) * h[n, a] + W[a, i] * x[n, j])
                    assert J["W"][n, i, 4 * a + j].item() == pytest.approx(value.item(), abs=1e-14)
            for j in range(4):
                assert J["b"][n, i, j] == gate[n, i] * (i == j)


def test_columns_follow_named_parameters():
    model, x = build("convolutions")
    J, parts = jacobian(model, x), jacobian(model, x, by="tensor")
    assert list(parts) == [name for name, _ in model.named_parameters()]
    assert torch.equal(J, whole(parts))
    modules = jacobian(model, x, by="module")
    assert torch.equal(whole(modules), J)


def test_selected_parameters_are_columns_of_the_whole():
    model, x = build("tied transformer")
    parts = jacobian(model, x, by="tensor")
    close(jacobian(model, x, params="read.weight"), parts["embed.weight"])
    close(
        jacobian(model, x, params=["down.*", "O"]),
        whole({k: parts[k] for k in ("O", "down.weight", "down.bias")}),
    )


@pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning")
@pytest.mark.parametrize("params", ["read.weight", "layer.linear2.weight", "layer.norm1.*"])
def test_parts_of_attention_modules_are_right_on_pytorchs_fast_path_too(params):
    model, x = build("attention modules")
    parts = plain_jacobian(model, x)
    close(jacobian(model, x, params=params), whole({k: parts[k] for k in select(model, params)}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_that_of_the_model(dtype):
    model, x = build("raw parameters", dtype=dtype)
    J = jacobian(model, x)
    assert J.dtype == dtype
    close(J.double(), jacobian(*build("raw parameters")), tolerance=1e-5)


def test_a_tiny_budget_gives_the_same_jacobian():
    model, x = build("convolutions")
    with pytest.raises(
        ValueError, match=r"memory=1 is too small: one point needs about ([\d,]+) bytes"
    ) as e:
        jacobian(model, x, memory=1)
    need = int(str(e.value).split("about ")[1].split()[0].replace(",", ""))
    close(jacobian(model, x, memory=need), jacobian(model, x))
    with pytest.raises(ValueError, match="too small"):
        jacobian(model, x, memory=need - 1)


def test_nothing_is_changed_and_no_graph_leaves():
    model, x = build("signals")
    x = x.requires_grad_()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        J = jacobian(model, x)
    assert not J.requires_grad and x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())


def item(self, x):
    return self.layer(x) * (1 if x.sum().item() > 0 else 2)


def numpy(self, x):
    return self.layer(x) * torch.as_tensor(x.detach().numpy().sum(1, keepdims=True))


def some_weights(self, x):
    rows = [self.layer(v) if v[0] > 0 else torch.tanh((v * self.layer.weight).sum(1)) for v in x]
    return torch.stack(rows)


@pytest.mark.parametrize("forward", [Branching.forward, item, numpy, some_weights])
def test_what_vmap_cannot_follow_warns_and_is_right(forward):
    class Odd(Branching):
        def __init__(self):
            super().__init__()
            self.layer = self.a

    Odd.forward = forward
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Odd().double(), torch.randn(6, 5, dtype=torch.float64)
    x = x if forward is not item else x[:1].abs().expand(3, 5) * torch.tensor([[1.0], [2], [3]])
    with pytest.warns(UserWarning, match="going point by point, which is right but slow"):
        J = jacobian(model, x)
    close(J, whole(plain_jacobian(model, x)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_gives_the_jacobian_of_the_cpu():
    model, x = build("convolutions")
    here = jacobian(model, x)
    there = jacobian(model.cuda(), x.cuda())
    assert there.is_cuda
    close(there.cpu(), here, tolerance=1e-10)
