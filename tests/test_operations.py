"""Whatever a model does with its parameters, the kernel is right or there is an error."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint
from zoo import plain_jacobian, plain_kernel, relative

from entk_helpers.jacobian import jacobian
from entk_helpers.kernel import empirical_ntk
from entk_helpers.operator import NTKOperator
from entk_helpers.problem import Problem
from entk_helpers.structure import read_plan

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.func.vmap cannot follow"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel"),
]


class Model(nn.Module):
    """forward(x) = f(self, x); shapes become parameters, modules stay modules."""

    def __init__(self, f, **parts):
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(torch.randn(part)) if type(part) is tuple else part)

    def forward(self, x):
        return self.f(self, x)


def vectors(n):
    return torch.randn(n, 5)


def tokens(n):
    return torch.randint(0, 6, (n, 4))


def images(*shape):
    return lambda n: torch.randn(n, *shape)


def setup(make, points, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, x, x2 = make().to(dtype).eval(), points(4), points(3)
    return model, *(t.to(dtype) if t.is_floating_point() else t for t in (x, x2))


def assert_right(model, x, x2, tolerance=1e-12):
    """Cross kernel by tensor and whole symmetric kernel, against plain autograd."""
    J, J2 = plain_jacobian(model, x), plain_jacobian(model, x2)
    K = empirical_ntk(model, x, x2, reduce="full", by="tensor")
    for key, expected in plain_kernel(J, J2).items():
        assert relative(K[key], expected) < tolerance, key
    whole = sum(torch.einsum("ncp,mcp->nm", j, j) for j in J.values()) / J[key].shape[1]
    assert relative(empirical_ntk(model, x), whole) < tolerance


tanh, ein = torch.tanh, torch.einsum
ONE, TWO = torch.tensor([0, 2, 2, -1, 1]), torch.tensor([[0, -1], [2, 2]])

# name: (f(self, x), shapes of the parameters, are all of them recognised?)
PRODUCTS = {
    "x @ W": (lambda s, x: tanh(x @ s.w), dict(w=(5, 3)), True),
    "W.T.T": (lambda s, x: tanh(x @ s.w.T.T), dict(w=(5, 3)), True),
    "W.mT": (lambda s, x: tanh(x @ s.w.mT), dict(w=(3, 5)), True),
    "W and W.T, square": (lambda s, x: tanh(x @ s.w.T) @ s.w, dict(w=(5, 5)), True),
    "linear on W.T": (lambda s, x: tanh(F.linear(x, s.w.T)), dict(w=(5, 3)), True),
    "linear on W.t(), then W": (
        lambda s, x: F.linear(tanh(F.linear(x, s.w.t())), s.w), dict(w=(5, 5)), True),
    "linear with bias": (lambda s, x: tanh(F.linear(x, s.w, s.b)), dict(w=(3, 5), b=(3,)), False),
    "linear on a vector": (
        lambda s, x: torch.stack([F.linear(x, s.w), tanh(F.linear(x, s.w))], 1), dict(w=(5,)), False),
    "keywords": (
        lambda s, x: tanh(torch.mm(torch.matmul(x, other=s.w), mat2=s.v)), dict(w=(5, 3), v=(3, 2)), False),
    "linear by keywords": (lambda s, x: F.linear(input=x, weight=s.w), dict(w=(3, 5)), True),
    "flat vector, viewed": (
        lambda s, x: tanh(x @ s.w[:15].view(5, 3)) @ s.w[15:].reshape(3, 3), dict(w=(24,)), False),
    "chunks": (lambda s, x: torch.cat([tanh(x @ w) for w in s.w.chunk(3, 1)], 1), dict(w=(5, 6)), False),
    "split": (lambda s, x: sum(tanh(x @ w) for w in s.w.split(3, 1)), dict(w=(5, 6)), False),
    "iterated": (lambda s, x: sum(tanh(x @ w) for w in s.w), dict(w=(2, 5, 3)), False),
    "as_strided": (lambda s, x: tanh(x @ s.w.as_strided((5, 3), (1, 5))), dict(w=(5, 3)), False),
    "stacked": (
        lambda s, x: ein("nd,kdo->no", x, torch.stack([s.a, s.b])) ** 2, dict(a=(5, 3), b=(5, 3)), False),
    "columns picked": (lambda s, x: tanh(x @ s.w[:, [0, 2, 2]]), dict(w=(5, 3)), False),
    "rows picked": (lambda s, x: tanh(x @ s.w[ONE]), dict(w=(5, 3)), True),
    "rows picked, 2-d": (
        lambda s, x: tanh(ein("nd,abd->nab", x, s.w[TWO])).flatten(1), dict(w=(3, 5)), True),
    "numbers picked": (lambda s, x: tanh(x * s.w[ONE]), dict(w=(4,)), True),
    "rows by a mask": (
        lambda s, x: tanh(x[:, :3] @ s.w[torch.tensor([True, False, True, True, False])]),
        dict(w=(5, 3)), False),
    "expanded bmm": (
        lambda s, x: tanh(torch.bmm(x[:, None], s.w.expand(len(x), 5, 3)))[:, 0], dict(w=(5, 3)), False),
    "bmm": (
        lambda s, x: torch.bmm(tanh(x.T.reshape(5, -1, 1)).expand(5, len(x), 2), s.w).sum(0),
        dict(w=(5, 2, 3)), True),
    "broadcast weight": (
        lambda s, x: tanh(x[None].expand(4, -1, -1) @ s.w).sum(0), dict(w=(1, 5, 3)), False),
    "broadcast activation": (lambda s, x: tanh(x[None] @ s.w).sum(0), dict(w=(4, 5, 3)), False),
    "weights first, 3-d": (
        lambda s, x: tanh(s.w @ x.T[None].expand(4, -1, -1)).sum(0).T, dict(w=(4, 3, 5)), True),
    "weights 4-d": (lambda s, x: tanh(x[None, None] @ s.w).sum((0, 1)), dict(w=(2, 2, 5, 3)), False),
    "activation 4-d": (lambda s, x: tanh(x.reshape(-1, 1, 1, 5) @ s.w).flatten(1), dict(w=(5, 3)), True),
    "matrix first": (
        lambda s, x: tanh(s.w @ x[:, :, None].expand(-1, -1, 2)).flatten(1), dict(w=(3, 5)), True),
    "vector first": (
        lambda s, x: torch.stack([tanh(s.w @ x.T), s.w @ (x**2).T], 1), dict(w=(5,)), True),
    "vector first, 3-d": (
        lambda s, x: tanh(s.w @ x.reshape(-1, 5, 1).expand(-1, 5, 3)), dict(w=(5,)), True),
    "vector last": (lambda s, x: torch.stack([tanh(x @ s.w), x**2 @ s.w], 1), dict(w=(5,)), True),
    "vector, vector": (
        lambda s, x: torch.stack([tanh(s.w @ v) for v in x])[:, None] * x, dict(w=(5,)), True),
    "addmm": (lambda s, x: tanh(torch.addmm(x[:, :3], x, s.w)), dict(w=(5, 3)), True),
    "addmm, scaled": (
        lambda s, x: tanh(torch.addmm(s.b, x, s.w, beta=2, alpha=0.5)), dict(w=(5, 3), b=(3,)), False),
    "addmm of itself": (
        lambda s, x: torch.addmm(s.w, s.w, s.w).sum() + torch.addmm(s.w[0], x, s.w), dict(w=(5, 5)), False),
    "bias from the weight": (lambda s, x: F.linear(x @ s.w, s.w, s.w.sum(0)), dict(w=(5, 5)), False),
    "W @ W": (lambda s, x: tanh(x @ (s.w @ s.w)), dict(w=(5, 5)), False),
    "x W W W.T": (lambda s, x: tanh(x @ s.w @ s.w @ s.w.T), dict(w=(5, 5)), True),
    "solve": (lambda s, x: torch.linalg.solve(s.w, x.T).T, dict(w=(5, 5)), False),
    "tensordot": (lambda s, x: tanh(torch.tensordot(x, s.w, 1)), dict(w=(5, 3)), False),
    "kron": (lambda s, x: tanh(x @ torch.kron(s.a, s.b)), dict(a=(5, 1), b=(1, 3)), False),
    "bilinear": (lambda s, x: F.bilinear(x, x, s.w), dict(w=(3, 5, 5)), False),
    "scale and shift": (
        lambda s, x: F.layer_norm(x, (5,), s.g, s.b) @ s.w, dict(g=(5,), b=(5,), w=(5, 3)), False),
    "scalar": (lambda s, x: tanh(s.g * (x @ s.w)), dict(g=(), w=(5, 3)), False),
    "empty": (lambda s, x: tanh(x @ s.w) + (x @ s.e).sum(), dict(e=(5, 0), w=(5, 3)), False),
    "no gradient": (lambda s, x: tanh(x @ s.w) + 0 * (x @ s.v), dict(w=(5, 3), v=(5, 3)), True),
    "only a view": (lambda s, x: s.w.expand(len(x), 3), dict(w=(3,)), False),
    "einsum": (lambda s, x: tanh(ein("Nd,dO->NO", x, s.w)), dict(w=(5, 3)), True),
    "einsum, operands in a list": (lambda s, x: tanh(ein("nd,do->no", [x, s.w])), dict(w=(5, 3)), True),
    "einsum, implicit output": (lambda s, x: tanh(ein("zd,da", x, s.w)).T, dict(w=(5, 3)), False),
    "einsum, sublists": (lambda s, x: ein(x, [0, 1], s.w, [1, 2], [0, 2]), dict(w=(5, 3)), True),
    "einsum, ...": (lambda s, x: tanh(ein("...d, do -> ...o", x, s.w)), dict(w=(5, 3)), True),
    "einsum, ... in the weight": (
        lambda s, x: tanh(ein("nd,...d->n...", x, s.w)).flatten(1), dict(w=(2, 2, 5)), False),
    "einsum, ... in both": (
        lambda s, x: tanh(ein("...nd,...do->n...o", x[None], s.w)).flatten(1), dict(w=(2, 5, 3)), False),
    "einsum, ... behind": (lambda s, x: tanh(ein("d...,do->o...", x.T, s.w)).T, dict(w=(5, 3)), False),
    "einsum, ... amid": (
        lambda s, x: tanh(ein("n...d,do->no...", x[:, None, None], s.w)).flatten(1), dict(w=(5, 3)), False),
    "einsum, repeated letter": (
        lambda s, x: tanh(ein("ndd,do->no", torch.diag_embed(x), s.w)), dict(w=(5, 3)), False),
    "einsum, diagonal": (lambda s, x: tanh(ein("nd,dd->nd", x, s.w)), dict(w=(5, 5)), False),
    "einsum, letter summed in the weight": (
        lambda s, x: tanh(ein("nd,dok->no", x, s.w)), dict(w=(5, 3, 2)), False),
    "einsum, letter summed in the activation": (
        lambda s, x: tanh(ein("nd,oe->no", x, s.w)), dict(w=(3, 5)), False),
    "einsum, elementwise": (lambda s, x: tanh(ein("nd,d->nd", x, s.w)), dict(w=(5,)), True),
    "einsum, outer": (lambda s, x: tanh(ein("nd,o->ndo", x, s.w)).flatten(1), dict(w=(3,)), True),
    "einsum, broadcast": (lambda s, x: tanh(ein("nd,do->no", x, s.w)), dict(w=(1, 3)), False),
    "einsum, three": (lambda s, x: tanh(ein("nd,dh,ho->no", x, s.a, s.b)), dict(a=(5, 3), b=(3, 2)), False),
    "einsum, W twice": (lambda s, x: tanh(x @ ein("ij,kj->ik", s.a, s.a)), dict(a=(5, 3)), False),
    "einsum, W.T": (lambda s, x: tanh(ein("nd,od->no", x, s.w.T)) @ s.w, dict(w=(5, 5)), True),
    "einsum, groups": (
        lambda s, x: tanh(ein("hnd,hdo->nho", torch.stack([x, 2 * x]), s.w)).flatten(1),
        dict(w=(2, 5, 3)), True),
    "einsum, permuted": (
        lambda s, x: tanh(ein("oab,nba->on", s.w, x[:, :4].reshape(-1, 2, 2))).T, dict(w=(3, 2, 2)), True),
    "result changed in place": (
        lambda s, x: tanh((x @ s.w).add_(1).mul_(2).add_(s.b)) @ s.v, dict(w=(5, 3), b=(3,), v=(3, 2)), False),
    "detached uses": (lambda s, x: tanh(x @ s.w.detach()) + x @ s.w.data + x @ s.w, dict(w=(5, 3)), True),
    "detached activation": (lambda s, x: (tanh(x @ s.u).detach() + x) @ s.w, dict(u=(5, 5), w=(5, 3)), True),
    "inner vmap": (lambda s, x: torch.func.vmap(lambda v: tanh(v @ s.w))(x), dict(w=(5, 3)), None),
    "inner gradient": (
        lambda s, x: torch.func.vmap(torch.func.grad(lambda v: tanh(v @ s.w).sum()))(x), dict(w=(5, 3)), None),
    "complex intermediates": (
        lambda s, x: (torch.fft.rfft(x) @ s.w.to(torch.complex128)).abs(), dict(w=(3, 2)), False),
    "complex view": (
        lambda s, x: (x.to(torch.complex128) @ torch.view_as_complex(s.w)).abs(), dict(w=(5, 2, 2)), False),
    "fft of the weight": (
        lambda s, x: (torch.fft.rfft(x) * torch.fft.rfft(s.w)).abs(), dict(w=(5,)), False),
}  # fmt: skip


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_product_with_a_parameter_is_right(name):
    f, shapes, recognised = PRODUCTS[name]
    model, x, x2 = setup(lambda: Model(f, **shapes), vectors)
    assert_right(model, x, x2)
    if recognised is not None:
        assert (read_plan(Problem.check(model, x)).dense == {}) == recognised


LOOKUPS = {
    "embedding": lambda s, x: F.embedding(x, s.w),
    "embedding, positional": lambda s, x: F.embedding(x, s.w, None, None, 2.0, False, False),
    "padding index": lambda s, x: F.embedding(x, s.w, padding_idx=2),
    "negative padding index": lambda s, x: F.embedding(x, s.w, padding_idx=-1),
    "norm limited": lambda s, x: F.embedding(x, s.w, max_norm=1.0),
    "negative index": lambda s, x: s.w[x - 6],
    "int32 index": lambda s, x: s.w[x.int()],
    "one-hot": lambda s, x: F.one_hot(x, 6).double() @ s.w,
    "index_select": lambda s, x: s.w.index_select(0, x.flatten()).reshape(*x.shape, 3),
    "element": lambda s, x: s.w[x, 1][..., None],
    "take": lambda s, x: torch.take(s.w, x)[..., None],
    "tied read-out": lambda s, x: s.w[x] @ s.w.T,
}


@pytest.mark.parametrize("name", LOOKUPS)
def test_every_way_to_look_up_rows_is_right_and_leaves_the_weights(name):
    model, x, x2 = setup(
        lambda: Model(lambda s, x: tanh(LOOKUPS[name](s, x)).sum(1), w=(6, 3)), tokens
    )
    before = model.w.detach().clone()
    K = empirical_ntk(model, x, x2)
    assert torch.equal(before, model.w)
    assert_right(model, x, x2)
    assert K.shape == (4, 3)


CONVOLUTIONS = {
    **{f"2-d {mode}": (lambda mode=mode: nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode), (2, 4, 3))
       for mode in ("zeros", "circular", "reflect", "replicate")},
    "1-d circular": (lambda: nn.Conv1d(2, 2, 4, padding="same", padding_mode="circular"), (2, 7)),
    "same, even kernel": (lambda: nn.Conv2d(2, 2, 2, padding="same"), (2, 4, 3)),
    "same, dilated": (lambda: nn.Conv2d(2, 2, (3, 2), padding="same", dilation=(1, 2)), (2, 4, 3)),
    "valid": (lambda: nn.Conv2d(2, 2, (3, 2), padding="valid"), (2, 4, 3)),
    "groups, stride, dilation": (
        lambda: nn.Conv2d(4, 6, (3, 2), padding=(2, 1), stride=(2, 1), dilation=(2, 1), groups=2), (4, 5, 4)),
    "stride with a rest": (lambda: nn.Conv2d(2, 3, 3, stride=2), (2, 6, 6)),
    "depthwise 1-d": (lambda: nn.Conv1d(4, 4, 3, padding=2, stride=2, dilation=2, groups=4), (4, 7)),
    "3-d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 2)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 2, stride=2), (2, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_is_right(name):
    layer, shape = CONVOLUTIONS[name]
    assert_right(
        *setup(lambda: Model(lambda s, x: tanh(s.l(x)).flatten(1), l=layer()), images(*shape))
    )


OTHERS = {
    "convolution without a batch": (
        lambda: Model(lambda s, x: torch.stack([tanh(s.l(v)).flatten() for v in x]), l=nn.Conv1d(1, 2, 3)),
        images(1, 5)),
    "convolution over a folded batch": (
        lambda: Model(lambda s, x: tanh(s.l(x.reshape(-1, 1, 5))).reshape(len(x), -1), l=nn.Conv1d(1, 2, 3)),
        images(2, 5)),
    "weight as the image": (
        lambda: Model(lambda s, x: F.conv1d(s.w, x[:, None, :3]).permute(1, 0, 2).flatten(1), w=(2, 1, 5)),
        vectors),
    "LSTM": (lambda: Model(lambda s, x: s.l(x)[0][:, -1], l=nn.LSTM(3, 4, batch_first=True)), images(4, 3)),
    "LSTMCell": (lambda: Model(lambda s, x: s.l(x[:, 1], s.l(x[:, 0]))[0], l=nn.LSTMCell(3, 4)), images(2, 3)),
    "attention": (
        lambda: Model(lambda s, x: s.l(x, x, x)[0].sum(1), l=nn.MultiheadAttention(4, 2, batch_first=True)),
        images(3, 4)),
    "attention, other widths": (
        lambda: Model(lambda s, x: s.l(x, x[..., :3], x[..., :3])[0].sum(1),
                      l=nn.MultiheadAttention(4, 2, kdim=3, vdim=3, batch_first=True)),
        images(3, 4)),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(5, 3)), vectors),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(5, 3)), vectors),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(5, 3)), vectors),
    "checkpointed": (
        lambda: Model(lambda s, x: checkpoint(lambda y: tanh(y @ s.w), x @ s.u, use_reentrant=False),
                      u=(5, 5), w=(5, 3)), vectors),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_layers_that_go_their_own_way_are_right(name):
    assert_right(*setup(*OTHERS[name]))


def test_a_symmetric_parametrisation_is_right():
    class Symmetric(nn.Module):
        def forward(self, w):
            return w.triu() + w.triu(1).T

    def make():
        layer = nn.Linear(5, 5)
        parametrize.register_parametrization(layer, "weight", Symmetric())
        return layer

    assert_right(*setup(make, vectors))


def shared_by_two_names():
    a, b = nn.Linear(5, 5), nn.Linear(5, 5)
    b.weight = a.weight
    return Model(lambda s, x: s.b(tanh(s.a(x))), a=a, b=b)


def module_with_two_names():
    layer = nn.Linear(5, 5)
    return Model(lambda s, x: s.b(tanh(s.a(x))), a=layer, b=layer)


@pytest.mark.parametrize("make", [shared_by_two_names, module_with_two_names])
def test_shared_parameters_count_once_and_stay_parameters(make):
    model, x, x2 = setup(make, vectors)
    own = dict(model.named_parameters(remove_duplicate=False))
    jacobian(model, x)
    assert_right(model, x, x2)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert own.keys() == after.keys() and all(own[k] is after[k] for k in own)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("part", ["module", "function"])
def test_compiled_parts_are_right(backend, part):
    if part == "module":
        layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
        model, x, x2 = setup(lambda: torch.compile(layers, backend=backend), vectors)
    else:
        f = torch.compile(lambda x, w: tanh(x @ w), backend=backend)
        model, x, x2 = setup(
            lambda: Model(lambda s, x: f(x, s.w) @ s.v, w=(5, 3), v=(3, 2)), vectors
        )
    J, J2 = jacobian(model, x), jacobian(model, x2)  # not plain autograd: that would compile
    plain = getattr(model, "_orig_mod", None)
    if plain is not None:
        expected = torch.cat(list(plain_jacobian(plain, x).values()), 2)
        assert relative(J, expected) < 1e-12
    K = empirical_ntk(model, x, x2, reduce="full")
    assert relative(K, torch.einsum("ncp,mdp->nmcd", J, J2)) < 1e-12


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_part_is_right_and_a_scripted_whole_is_refused():
    layers = nn.Sequential(nn.Linear(5, 4), nn.Tanh()).double()
    scripted = torch.jit.script(layers)
    assert_right(*setup(lambda: Model(lambda s, x: s.l(x) @ s.v, l=scripted, v=(4, 2)), vectors))
    traced = torch.jit.trace(layers, torch.randn(2, 5, dtype=torch.float64))
    assert_right(*setup(lambda: Model(lambda s, x: s.l(x) @ s.v, l=traced, v=(4, 2)), vectors))
    with pytest.raises(ValueError, match="give the module that was scripted or traced"):
        empirical_ntk(scripted, torch.randn(2, 5, dtype=torch.float64))


class Doubled(torch.autograd.Function):
    """A gradient that is none: twice the true one."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g @ w.T, 2 * x.T @ g


class Stopped(Doubled):
    @staticmethod
    def backward(ctx, g):
        return g @ ctx.saved_tensors[1].T, None


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign()

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: tanh(Doubled.apply(x @ s.u, s.w)),
        lambda s, x: tanh(Stopped.apply(x @ s.u, s.w)),
        lambda s, x: tanh(x @ s.u) @ Straight.apply(s.w),
    ],
    ids=["doubled", "stopped", "straight through"],
)
def test_custom_gradients_are_followed(f):
    model, x, x2 = setup(lambda: Model(f, u=(5, 5), w=(5, 3)), vectors)
    J, J2 = plain_jacobian(model, x), plain_jacobian(model, x2)
    K = empirical_ntk(model, x, x2, reduce="full", by="tensor")
    for key, expected in plain_kernel(J, J2).items():
        assert relative(K[key], expected) < 1e-12


@pytest.mark.filterwarnings("default")
def test_autocast_is_followed_to_its_own_precision():
    def f(s, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return s.b(tanh(s.a(x))).float()

    model, x, x2 = setup(
        lambda: Model(f, a=nn.Linear(5, 4), b=nn.Linear(4, 3)), vectors, torch.float32
    )
    assert_right(model, x, x2, tolerance=0.03)


@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: tanh(x @ s.w).float(),
        lambda s, x: (tanh(x @ s.w).float() ** 2).double() @ s.v,
        lambda s, x: tanh(x @ s.w) @ s.v.float().double(),
    ],
    ids=["output", "middle", "weight"],
)
def test_mixed_precision_inside_a_model_is_right_to_float32(f):
    assert_right(*setup(lambda: Model(f, w=(5, 3), v=(3, 3)), vectors), tolerance=2e-6)


def overwrite_input(s, x):
    h = x * 1
    z = h @ s.w
    h.zero_()
    return tanh(z)


def overwrite_hidden(s, x):
    h = tanh(x @ s.v)
    z = h @ s.w
    h.mul_(2)
    return tanh(z) + h[:, :3]


@pytest.mark.parametrize("f", [overwrite_input, overwrite_hidden])
def test_an_activation_that_is_overwritten_after_its_use_is_refused(f):
    model, x, _ = setup(lambda: Model(f, v=(5, 5), w=(5, 3)), vectors)
    with pytest.raises(RuntimeError, match="inplace operation"):
        empirical_ntk(model, x)


def test_a_route_that_changes_from_call_to_call_is_right():
    def f(s, x):
        s.calls = getattr(s, "calls", 0) + 1
        return tanh(x @ s.w) if s.calls % 2 else tanh((x[:, None] * s.w.T).sum(2))

    assert_right(*setup(lambda: Model(f, w=(5, 3)), vectors))


def from_a_list():
    model = Model(lambda s, x: tanh(x @ s.weights[0]) @ s.weights[1], a=(5, 3), b=(3, 2))
    model.weights = [model.a, model.b]
    return model


def from_a_frozen_list():
    return from_a_list().requires_grad_(False)


def from_a_view():
    model = Model(lambda s, x: tanh(x @ s.view.T), a=(3, 5))
    model.view = model.a.T.T
    return model


def from_a_product():
    model = Model(lambda s, x: tanh(x @ s.twice), a=(5, 3))
    model.twice = model.a * 2
    return model


def from_a_closure():
    a = nn.Parameter(torch.randn(5, 3))
    return Model(lambda s, x: tanh(x @ a), a=a)


@pytest.mark.parametrize(
    "make", [from_a_list, from_a_frozen_list, from_a_view, from_a_product, from_a_closure]
)
@pytest.mark.parametrize("route", [empirical_ntk, jacobian, NTKOperator])
def test_parameters_that_cannot_be_replaced_are_refused(make, route):
    model = make()
    with pytest.raises(ValueError, match=r"reaches its parameter 'a'.*use the attribute"):
        route(model, torch.randn(4, 5))
