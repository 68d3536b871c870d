"""Kernels of every kind of model against one backward pass for each point and output."""

import inspect
import math
from unittest import mock

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from zoo import ZOO, build, plain_jacobian, plain_kernel, reduced

from entk_helpers import kernel as kernel_module
from entk_helpers.kernel import compressed_ntk, empirical_ntk, flatten_kernel
from entk_helpers.testbeds.tms import ToyModel

REDUCTIONS = ("full", "per_class", "class_averaged", "pseudo")

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


def close(got, expected, what="", tolerance=1e-12):
    scale = expected.abs().max().clamp(min=1e-12)
    assert got.shape == expected.shape, what
    assert (got - expected).abs().max() <= tolerance * scale, what


@pytest.mark.parametrize("name", ZOO)
def test_every_model_matches_plain_autograd(name):
    model, x = build(name)
    _, x2 = build(name, n=4, seed=1)
    J, J2 = plain_jacobian(model, x), plain_jacobian(model, x2)
    own, cross = plain_kernel(J, J), plain_kernel(J, J2)
    # Every reduction, each once alone and once crossed over the three splits.
    for reduce, other, by, expected in (
        ("full", x2, "tensor", cross),
        ("per_class", None, "tensor", own),
        ("class_averaged", None, "tensor", own),
        ("class_averaged", x2, None, cross),
        ("pseudo", x2, "module", cross),
    ):
        got = empirical_ntk(model, x, other, reduce=reduce, by=by)
        if by == "tensor":
            assert list(got) == list(expected)
            for key, K in got.items():
                close(K, reduced(expected[key], reduce), f"{reduce} {key}")
        whole = got if by is None else sum(got.values())
        close(whole, reduced(sum(expected.values()), reduce), f"{reduce} whole")


@pytest.mark.parametrize("name", ZOO)
def test_compressed_kernels_are_those_of_the_full_kernel(name):
    model, x = build(name)
    K = empirical_ntk(model, x, reduce="full")
    Q = torch.randn(len(K), 3, generator=torch.Generator().manual_seed(0)).to(K)
    expected = torch.einsum("nk,nmcd,ml->cdkl", Q, K, Q)
    close(compressed_ntk(model, x, Q), expected, tolerance=1e-10)


@pytest.mark.parametrize("shape", [(5, 2), (6, 0)])
def test_columns_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match=r"Q must have shape \(6, q\), one row a point, got"):
        compressed_ntk(*build("raw parameters"), torch.ones(shape))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", ["used twice, transposed", "convolutions", "norms of weights"])
def test_every_reduction_alone_and_crossed_whole_and_by_module(name, reduce):
    model, x = build(name)
    _, x2 = build(name, n=4, seed=1)
    J, J2 = plain_jacobian(model, x), plain_jacobian(model, x2)
    for other, right in ((None, J), (x2, J2)):
        expected = reduced(sum(plain_kernel(J, right).values()), reduce)
        close(empirical_ntk(model, x, other, reduce=reduce), expected)
        close(sum(empirical_ntk(model, x, other, reduce=reduce, by="module").values()), expected)


def test_toy_model_of_superposition_follows_its_formula():
    """Paper, v1 section 3, entry by entry in Python floats."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        W, b = torch.randn(2, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64) / 2
        x = torch.rand(5, 4, dtype=torch.float64)
    K = empirical_ntk(ToyModel(W, b), x, reduce="full")
    h = x @ W.T
    gate = (h @ W + b > 0).double()
    for p in range(5):
        for q in range(5):
            for i in range(4):
                for j in range(4):
                    same = float(i == j)
                    value = gate[p, i] * gate[q, j] * (
                        same * h[p] @ h[q] + x[q, i] * h[p] @ W[:, j] + x[p, j] * W[:, i] @ h[q]
                        + (W[:, i] @ W[:, j]) * (x[p] @ x[q]) + same
                    )  # fmt: skip
                    assert K[p, q, i, j].item() == pytest.approx(value.item(), rel=1e-12, abs=1e-13)
    assert K.count_nonzero() < K.numel()  # some gate is closed


class ModularMLP(nn.Module):
    def __init__(self, p, width):
        super().__init__()
        self.W1 = nn.Parameter(torch.randn(width, 2 * p, dtype=torch.float64))
        self.W2 = nn.Parameter(torch.randn(p, width, dtype=torch.float64))

    def forward(self, x):
        return (x @ self.W1.T / x.shape[1] ** 0.5) ** 2 @ self.W2.T / len(self.W1)


def test_modular_mlp_follows_its_formulas_layer_by_layer():
    """Paper, v1 section 4: K1 and K2."""
    p, width = 3, 5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ModularMLP(p, width)
    a, b = torch.arange(p * p) // p, torch.arange(p * p) % p
    x = torch.cat([torch.eye(p)[a], torch.eye(p)[b]], 1).double()
    K = empirical_ntk(model, x, reduce="full", by="tensor")
    z, V = x @ model.W1.detach().T / math.sqrt(2 * p), model.W2.detach()
    for n in range(p * p):
        for m in range(p * p):
            overlap = float(a[n] == a[m]) + float(b[n] == b[m])
            for i in range(p):
                for j in range(p):
                    k1 = sum(V[i, h] * V[j, h] * z[n, h] * z[m, h] for h in range(width))
                    k1 = 4 / (2 * p * width**2) * k1 * overlap
                    k2 = (
                        sum(z[n, h] ** 2 * z[m, h] ** 2 for h in range(width)) / width**2 * (i == j)
                    )
                    assert K["W1"][n, m, i, j].item() == pytest.approx(
                        float(k1), rel=1e-12, abs=1e-14
                    )
                    assert K["W2"][n, m, i, j].item() == pytest.approx(
                        float(k2), rel=1e-12, abs=1e-14
                    )


def test_a_linear_model_has_the_gram_matrix_of_its_inputs_in_every_class():
    x = torch.randn(7, 4, dtype=torch.float64)
    K = empirical_ntk(nn.Linear(4, 3).double(), x, reduce="full", by="tensor")
    close(K["weight"], torch.einsum("nm,cd->nmcd", x @ x.T, torch.eye(3, dtype=torch.float64)))
    close(K["bias"], torch.eye(3, dtype=torch.float64).expand(7, 7, 3, 3))


@pytest.mark.parametrize("name", ["tied transformer", "convolutions", "attention modules"])
def test_float32_differs_from_float64_by_rounding_and_stays_float32(name):
    model, x = build(name)
    exact = empirical_ntk(model, x, reduce="full")
    K = empirical_ntk(*build(name, dtype=torch.float32), reduce="full")
    assert K.dtype == torch.float32
    close(K.double(), exact, tolerance=2e-5)


@pytest.mark.parametrize("name", ["raw parameters", "convolutions"])
def test_kernel_is_symmetric_and_positive(name):
    K = flatten_kernel(empirical_ntk(*build(name), reduce="full"))
    close(K, K.T)
    values = torch.linalg.eigvalsh(K)
    assert values[0] > -1e-12 * values[-1]


def test_permuting_points_permutes_the_kernel():
    model, x = build("tied transformer")
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    K = empirical_ntk(model, x)
    close(empirical_ntk(model, x[order]), K[order][:, order])


def test_cross_kernel_is_a_block_of_the_joint_kernel():
    model, x = build("convolutions", n=7)
    joint = empirical_ntk(model, x, reduce="full")
    close(empirical_ntk(model, x[:4], x[4:], reduce="full"), joint[:4, 4:])
    close(empirical_ntk(model, x[4:], x[:4], reduce="full"), joint[4:, :4])
    close(empirical_ntk(model, x, x, reduce="full"), joint)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_class_weight_multiplies_the_rows_of_the_jacobian(reduce):
    model, x = build("raw parameters")
    weight = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    full = empirical_ntk(model, x, reduce="full") * torch.outer(weight, weight)
    close(empirical_ntk(model, x, reduce=reduce, class_weight=weight), reduced(full, reduce))


def test_flattened_kernel_has_point_major_rows():
    model, x = build("raw parameters")
    K = empirical_ntk(model, x, x[:2], reduce="full")
    flat = flatten_kernel(K)
    assert flat.shape == (18, 6)
    for n, m, c, d in ((0, 1, 2, 0), (5, 0, 1, 2), (3, 1, 0, 0)):
        assert flat[n * 3 + c, m * 3 + d] == K[n, m, c, d]


@pytest.mark.parametrize(
    "params", ["read.weight", "embed.weight", ["*.weight"], ["embed*", "place"]]
)
def test_params_select_by_name_alias_or_glob(params):
    model, x = build("tied transformer")
    names = {
        "read.weight": ["embed.weight"],  # tied: either name means the one tensor
        "embed.weight": ["embed.weight"],
        "*.weight": ["embed.weight", "norm.weight", "up.weight", "down.weight"],
        "embed*": ["embed.weight", "place"],
    }[params if isinstance(params, str) else params[0]]
    parts = empirical_ntk(model, x, by="tensor")
    chosen = empirical_ntk(model, x, params=params, by="tensor")
    assert sorted(chosen) == sorted(names)
    for key, K in chosen.items():
        close(K, parts[key])


def test_parameters_without_influence_have_a_zero_kernel():
    K = empirical_ntk(*build("norms of weights"), by="tensor")
    assert not K["unused"].any() and K["W"].any()


def test_modules_collect_their_own_tensors():
    model, x = build("convolutions")
    parts, modules = (empirical_ntk(model, x, by=by) for by in ("tensor", "module"))
    assert list(modules) == ["layers.0", "layers.2", "layers.3", "layers.5"]
    close(modules["layers.0"], parts["layers.0.weight"] + parts["layers.0.bias"])


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("name", ["used twice, transposed", "convolutions", "tied transformer"])
def test_a_tiny_budget_takes_many_blocks_and_gives_the_same_kernel(name, reduce):
    model, x = build(name, n=4)
    _, x2 = build(name, n=3, seed=1)
    with pytest.raises(ValueError, match="one point needs about") as refusal:
        empirical_ntk(model, x, reduce=reduce, memory=1)
    need = int(str(refusal.value).split("about ")[1].split(" bytes")[0].replace(",", ""))
    for other in (None, x2):
        generous = empirical_ntk(model, x, other, reduce=reduce, by="tensor")
        with mock.patch.object(
            kernel_module, "gradients", side_effect=kernel_module.gradients
        ) as blocks:
            scant = empirical_ntk(model, x, other, reduce=reduce, by="tensor", memory=3 * need)
        assert blocks.call_count > 2
        for key, K in scant.items():
            close(K, generous[key], key)


@pytest.mark.parametrize("reduce", ["class_averaged", "per_class", "full"])
@pytest.mark.parametrize("model", ["toy", "convolutions"])
def test_memory_beside_the_kernels_stays_within_the_budget(model, reduce):
    budget = 8 * 2**20
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if model == "toy":
            model, x = ToyModel(torch.randn(8, 20), torch.zeros(20)), torch.rand(100, 20)
        else:
            model, x = build("convolutions", n=100, dtype=torch.float32)
    empirical_ntk(model, x[:2], reduce=reduce)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kernels = empirical_ntk(model, x, reduce=reduce, by="tensor", memory=budget)
    now = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    held = sum(K.numel() * K.element_size() for K in kernels.values())
    assert held <= peak <= held + budget


def plain_state(model):
    return {
        "grad": [p.grad for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "objects": [id(p) for p in (*model.parameters(), *model.buffers())],
        "modes": [module.training for module in model.modules()],
        "rng": torch.get_rng_state().tolist(),
        "enabled": torch.is_grad_enabled(),
        "values": {k: v.clone() for k, v in model.state_dict().items()},
    }


@pytest.mark.parametrize("name", ["signals", "tied transformer", "attention modules"])
@pytest.mark.parametrize("enabled", [True, False])
def test_model_inputs_and_random_state_are_left_as_they_were(name, enabled):
    model, x = build(name)
    next(model.parameters()).requires_grad_(False)
    before, points = plain_state(model), x.clone()
    with torch.set_grad_enabled(enabled):
        K = empirical_ntk(model, x)
        assert torch.is_grad_enabled() == enabled
    after = plain_state(model)
    assert torch.equal(x, points) and not K.requires_grad
    values, old = after.pop("values"), before.pop("values")
    assert before == after
    assert all(torch.equal(values[k], old[k]) for k in old)
    close(K, empirical_ntk(model, x))


def test_frozen_parameters_count():
    model, x = build("raw parameters")
    K = empirical_ntk(model, x)
    close(empirical_ntk(model.requires_grad_(False), x), K)


def test_graphs_of_the_caller_do_not_leak_in():
    model, x = build("raw parameters")
    K = empirical_ntk(model, x)
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    got = empirical_ntk(model, x.clone().requires_grad_(), class_weight=weight)
    assert not got.requires_grad
    close(got, K)
    with torch.inference_mode():
        close(empirical_ntk(model, x.clone()), K)


def test_an_in_place_first_layer_leaves_the_points():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(5, 3)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    points = x.clone()
    K = empirical_ntk(model, x)
    assert torch.equal(x, points)
    close(K, empirical_ntk(model[1], x.relu()))


def test_buffers_that_count_calls_are_left():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.layer(x)

    model, x = Counting(), torch.randn(4, 5)
    K = empirical_ntk(model, x)
    assert model.calls == 0
    close(K, empirical_ntk(model.layer, x), tolerance=1e-6)


@pytest.mark.filterwarnings("default:torch.func.vmap cannot follow")
def test_control_flow_on_data_warns_and_is_right():
    from zoo import Branching

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Branching().double(), torch.randn(6, 5, dtype=torch.float64)
    J = plain_jacobian(model, x)
    with pytest.warns(UserWarning, match="point by point, which is right but slow"):
        K = empirical_ntk(model, x, reduce="full")
    close(K, sum(plain_kernel(J, J).values()))


# A function as users call it, without the types that these tests check.
unchecked = inspect.unwrap


def test_points_of_another_length_on_the_other_side():
    model, x = build("tied transformer")
    short = x[:3, :2]
    expected = sum(plain_kernel(plain_jacobian(model, x), plain_jacobian(model, short)).values())
    close(empirical_ntk(model, x, short, reduce="full"), expected)


def linear():
    return nn.Linear(5, 3).double()


def wrong_output(change):
    class Wrong(nn.Linear):
        def forward(self, x):
            return change(super().forward(x))

    return Wrong(5, 3).double()


def points(n=4):
    return torch.linspace(-1, 1, 5 * n, dtype=torch.float64).reshape(n, 5)


class Batchwise(nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))


REFUSED = {
    "empty batch": (linear, points(0), {}, r"x is empty \(shape \(0, 5\)\); pass at least one"),
    "no tensor": (linear, {}, {}, "x must be a tensor with a first dimension"),
    "a number": (linear, torch.tensor(1.0), {}, "x must be a tensor with a first dimension"),
    "ragged dict": (linear, {"input": points(), "b": points(2)}, {}, r"x: .* different first dim.*\[2, 4\]"),
    "NaN points": (linear, points() / 0 * 0, {}, "x holds .* NaN or Inf .* clean it"),
    "empty x2": (linear, points(), dict(x2=points(0)), "x2 is empty"),
    "unknown name": (linear, points(), dict(params="wieght"), "params: 'wieght' matches no .* 'weight'"),
    "empty list": (linear, points(), dict(params=[]), "params is an empty list; pass None"),
    "reduce": (linear, points(), dict(reduce="trace"), "reduce must be one of full, per_class"),
    "by": (linear, points(), dict(by="layer"), 'by must be None, "tensor" or "module"'),
    "memory text": (linear, points(), dict(memory="lots"), 'memory must be bytes or text such as "1GiB"'),
    "memory zero": (linear, points(), dict(memory=0), "memory must be at least one byte"),
    "memory": (linear, points(), dict(memory=9), "memory=9 is too small: one point needs about .* bytes"),
    "class_weight": (
        linear, points(), dict(class_weight=torch.ones(2)), r"class_weight must have shape \(3,\).*\(2,\)"),
    "class_weight NaN": (
        linear, points(), dict(class_weight=torch.tensor([1, 2, math.nan])), "class_weight holds 1 NaN"),
    "one-dimensional": (lambda: wrong_output(lambda f: f[:, 0]), points(), {}, r"shape \(N, C\).*Wrap the"),
    "no outputs": (lambda: wrong_output(lambda f: f[:, :0]), points(), {}, r"shape \(N, C\).*\(3, 0\)"),
    "tuple": (lambda: wrong_output(lambda f: (f,)), points(), {}, r"shape \(N, C\).*tuple"),
    "integers": (lambda: wrong_output(lambda f: f.long()), points(), {}, "real numbers, not torch.int64"),
    "NaN outputs": (lambda: wrong_output(lambda f: f / 0 * 0), points(), {}, r"model\(x\) holds .* NaN"),
    "NaN gradients": (lambda: wrong_output(lambda f: (f * 0).sqrt()), points(), {}, "the kernel holds .* NaN"),
    "random": (lambda: wrong_output(lambda f: f + torch.rand(3)), points(), {}, r"two calls .* model.eval\(\)"),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout()).double(), points(), {},
        r"train mode and has Dropout at '1'.*model.eval\(\)"),
    "batch norm": (
        lambda: nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3)).double(), points(), {},
        r"train mode and has BatchNorm1d at '0'.*model.eval\(\)"),
    "batch norm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(5, 3)).double().eval(),
        points(), {}, "track_running_stats=False"),
    "samples mixed": (lambda: Batchwise(5, 3).double(), points(), {}, "depend on the other points"),
    "no parameters": (nn.Identity, points(), {}, "model has no parameters"),
    "NaN parameters": (
        lambda: linear().requires_grad_(False).apply(lambda m: m.weight.fill_(math.nan)), points(), {},
        "parameter 'weight' holds 15 NaN"),
    "complex parameters": (
        lambda: nn.ParameterList([torch.ones(2, dtype=torch.complex64)]), points(), {}, "'0' is complex"),
    "frequency-scaled embedding": (
        lambda: nn.Embedding(4, 2, scale_grad_by_freq=True), torch.tensor([1, 2]), {},
        "scale_grad_by_freq=True.*set it to False"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_make_a_kernel_wrong_is_refused_with_a_remedy(name):
    make, x, options, message = REFUSED[name]
    model = make()
    state = torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        unchecked(empirical_ntk)(model, x, **options)
    assert torch.equal(state, torch.get_rng_state())


def test_flatten_refuses_reduced_kernels():
    with pytest.raises(ValueError, match=r'reduce="full" gives; got \(2, 3, 4, 5\)'):
        unchecked(flatten_kernel)(torch.zeros(2, 3, 4, 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", ["tied transformer", "convolutions", "used twice, transposed"])
def test_cuda_gives_the_kernel_of_the_cpu(name):
    model, x = build(name)
    here = empirical_ntk(model, x, reduce="full")
    there = empirical_ntk(model.cuda(), x.cuda(), reduce="full")
    assert there.is_cuda
    close(there.cpu(), here, tolerance=1e-10)


class _Crossed(nn.Module):
    """Outputs see a hidden unit through one factor each, but for `more`."""

    def __init__(self, more: float):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        W = [torch.randn(s, generator=generator).double() for s in ((6, 4), (5, 6), (5, 6))]
        self.W1, self.W2, self.W3 = map(nn.Parameter, W)
        self.more = more

    def forward(self, x):
        z = x @ self.W1.T
        return torch.relu(z) @ self.W2.T + self.more * z.square() @ self.W3.T


@pytest.mark.parametrize("memory", ["1GiB", "12KB"])
@pytest.mark.parametrize("more", [0, 1e-12, 1e-9, 1e-8, 1e-7, 1e-6, 1e-4, 1e-2, 1])
def test_one_row_for_all_outputs_only_where_it_is_exact(more, memory):
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)).double()
    x[:7] = x[:7].abs()  # units are closed on some blocks of points and open on others
    model = _Crossed(more)
    J = plain_jacobian(model, x)
    for name, K in plain_kernel(J, J).items():
        expected = reduced(K, "class_averaged")
        close(empirical_ntk(model, x, params=name, memory=memory), expected, tolerance=1e-13)
        crossed = empirical_ntk(model, x[:9], x[5:], params=name, memory=memory)
        close(crossed, expected[:9, 5:], tolerance=1e-13)


def test_a_last_hidden_layer_costs_one_row():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)).double()
    for more, rows in ((0, 1), (1e-3, 5)):
        with mock.patch.object(
            kernel_module, "_contract_outer", wraps=kernel_module._contract_outer
        ) as contract:
            empirical_ntk(_Crossed(more), x, params="W1")
        assert contract.call_args.args[0].B.shape[1] == rows


class _TwoScales(nn.Module):
    """Position 0 has large gradients and small inputs, position 1 the reverse."""

    def __init__(self, ratio: float):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        W = [torch.randn(s, generator=generator) for s in ((32, 64), (3, 32), (3, 32))]
        self.W, self.V = nn.Parameter(W[0] / 8), nn.Parameter(W[1])
        self.register_buffer("U", W[2] * ratio)

    def forward(self, x):
        z = nn.functional.linear(x, self.W)
        return torch.relu(z[:, 0]) @ self.V.T + z[:, 1] @ self.U.T


@pytest.mark.parametrize(("dtype", "ratio"), [(torch.float32, 3e-4), (torch.float64, 3e-8)])
def test_one_row_at_a_position_with_small_gradients_and_large_inputs(dtype, ratio):
    x = torch.randn(6, 2, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[:, 1] /= ratio
    model = _TwoScales(ratio).to(dtype)
    J = plain_jacobian(model, x)
    expected = reduced(plain_kernel(J, J)["W"], "class_averaged")
    close(empirical_ntk(model, x, params="W"), expected, tolerance=1e-5)


@pytest.mark.parametrize("size", [1e-23, 1e20])
def test_one_row_neither_vanishes_nor_explodes(size):
    """In float32 squares of gradients under- or overflow: a true kernel or none."""
    model = _Crossed(0).float()
    model.W2.data *= size
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    J = plain_jacobian(model.double(), x.double())
    expected = reduced(plain_kernel(J, J)["W1"], "class_averaged")
    if expected.max() > 3e38:
        with pytest.raises(ValueError, match="overflows"):
            empirical_ntk(model.float(), x, params="W1")
    else:
        assert empirical_ntk(model.float(), x, params="W1").abs().max() <= 2e-38
        assert expected.abs().max() < 1e-38


def test_one_row_has_to_fit_every_point_and_position():
    """Half of the points see outputs through one factor a unit, or one of two positions does."""

    class Half(_Crossed):
        def forward(self, x):
            x = x.unflatten(-1, (2, 4))
            z = x @ self.W1.T
            second = torch.relu(z[:, 0]) @ self.W2.T + torch.relu(z[:, 1]) @ self.W2.T
            return second + (x[:, 0, :1] > 0) * z[:, 1].square() @ self.W3.T * self.more

    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1)).double()
    one_row, found = kernel_module._one_row, []

    def spy(*uses):
        found.append(one_row(*uses))
        return found[-1]

    for more in (0, 1e-3):
        model = Half(more)
        J = plain_jacobian(model, x)
        expected = reduced(plain_kernel(J, J)["W1"], "class_averaged")
        with mock.patch.object(kernel_module, "_one_row", spy):
            close(empirical_ntk(model, x, params="W1"), expected, tolerance=1e-13)
    assert [uses[0].B.shape[1] for uses in found] == [1, 5]
