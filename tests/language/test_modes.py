"""Statistics of modes against a kernel that is a product of two, autograd, and counting by hand."""

import inspect
import math
import random
import re
from functools import cache

import pytest
import torch
import transformers as hf
from language_zoo import (
    IDS,
    MODELS,
    PLAIN,
    SIZES,
    build,
    own_jacobians,
    own_outputs,
    windows,
)
from torch import nn
from torch.testing import assert_close

from entk_helpers.language.kernel import LogitKernel
from entk_helpers.language.modes import (
    edited,
    extended_scores,
    hinges,
    logit_directions,
    mode_logits,
    output_lifts,
)
from entk_helpers.language.scores import window_scores
from entk_helpers.spectrum import Eigenpairs, top_eigenpairs
from entk_helpers.testbeds.grammar.cases import cases
from entk_helpers.testbeds.grammar.model import untrained
from entk_helpers.testbeds.grammar.trigger import Trigger

F64 = torch.float64
D = 12


def close(got, expected, tolerance=1e-11):
    assert_close(got, expected, rtol=0, atol=tolerance * expected.abs().max().item())


def pairs_of(values, vectors):
    return Eigenpairs(values, vectors, torch.zeros_like(values))


def taken(pairs, chosen):
    return pairs_of(pairs.values[chosen], pairs.vectors[:, chosen])


def dense_pairs(K, k):
    """The top k eigenpairs of a kernel by a dense decomposition."""
    M = K @ torch.eye(K.shape[0], dtype=K.dtype)
    values, vectors = torch.linalg.eigh((M + M.T) / 2)
    return pairs_of(values.flip(0)[:k], vectors.flip(1)[:, :k])


def padded(rows, side="right"):
    """Token ids and mask of rows of several lengths."""
    most = max(map(len, rows))
    rows, fill = [*map(list, rows)], [[0] * (most - len(row)) for row in rows]
    one = [[1] * len(row) for row in rows]
    order = (lambda a, b: a + b) if side == "right" else (lambda a, b: b + a)
    both = [[order(a, b) for a, b in zip(x, fill, strict=True)] for x in (rows, one)]
    return torch.tensor(both[0]), torch.tensor(both[1])


# A kernel that is a product. Without the last norm, h = W a + what W does not touch, so that
# K~ = (A A^T) x S for the inputs A (N, f) of the last layer's map: its eigenvectors are v x w.


class Product:
    """Such a model's kernel of some windows, with all its eigenpairs in closed form."""

    def __init__(self, rows, **options):
        self.model = build("llama")
        self.model.model.norm = nn.Identity()
        self.K = LogitKernel(
            self.model, *(b := padded(rows))[:1], attention_mask=b[1], layer=-1, **options
        )
        self.A, self.U = self.inputs(rows), self.model.lm_head.weight.detach()
        self.g, self.v = torch.linalg.eigh(self.A @ self.A.T)
        self.s, self.w = torch.linalg.eigh(self.U.T @ self.U)
        self.pairs = pairs_of(torch.outer(self.g, self.s).flatten(), torch.kron(self.v, self.w))
        self.v_of, self.w_of = (  # columns of v and w of each pair, those of v with the scores' sign
            (self.v * self.v.gather(0, self.v.abs().argmax(0)[None]).sign()).repeat_interleave(D, 1),
            (self.w[:, None] * self.v.gather(0, self.v.abs().argmax(0)[None]).sign()[0][:, None]).flatten(1),
        )  # fmt: skip
        self.g_of = self.g.repeat_interleave(D)

    def inputs(self, rows):
        """What the last layer's map is given at the end of each row, one row at a time."""
        seen, linear = [], self.model.model.layers[-1].mlp.down_proj
        hook = linear.register_forward_hook(lambda m, x, y: seen.append(x[0][0, -1]))
        with torch.no_grad():
            for row in rows:
                self.model(torch.tensor([[*row]]))
        hook.remove()
        return torch.stack(seen)

    def scores(self, rows):
        """A window's score is a . A^T v / g."""
        return self.inputs(rows) @ self.A.T @ self.v_of / self.g_of

    def logits(self, rows):
        """At the last token of each row."""
        with torch.no_grad():
            return torch.stack([self.model(torch.tensor([[*row]])).logits[0, -1] for row in rows])


ROWS = (1, 5, 9, 5, 7, 3), (1, 6, 9, 4), (2, 6, 10), (2, 8), (3,)
product = cache(Product)  # nothing changes one
NEW = [[4, 4, 5], [9], [1, 2, 3, 4, 5, 6, 7, 8], [2, 6, 10], [7, 8]] + [
    [i, 20 - i] for i in range(9)
]


def test_the_modes_of_a_product_are_products(exact):
    one = product(ROWS)
    close(one.K @ one.pairs.vectors, one.pairs.vectors * one.pairs.values)
    close(window_scores(one.pairs, len(ROWS)), one.v_of)
    close(logit_directions(one.pairs, len(ROWS)).T, one.w_of)
    assert one.v_of.abs().max(0).values.equal(one.v_of.max(0).values)


def test_the_logits_of_a_products_mode(exact):
    """U S^(-1/2) w = U w / sqrt(s)."""
    one = product(ROWS)
    close(mode_logits(one.K, one.pairs), (one.U @ one.w_of / one.s.sqrt().repeat(len(ROWS))).T)


def test_the_scores_of_other_windows_of_a_product(exact):
    one = product(ROWS)
    close(extended_scores(one.K, one.pairs, *padded(NEW)), one.scores(NEW), 1e-9)
    close(extended_scores(one.K, one.pairs, *padded(NEW, "left")), one.scores(NEW), 1e-9)
    close(extended_scores(one.K, one.pairs, *padded(ROWS)), one.v_of, 1e-9)


@pytest.mark.parametrize("t", [1.0, -3.0])
def test_an_edit_along_a_products_mode_moves_logits_by_eigenvalue_score_and_direction(t, exact):
    """Exactly, for any size of the change and any window."""
    one = product(ROWS)
    before, scores, along = one.logits(NEW), one.scores(NEW), mode_logits(one.K, one.pairs)
    for mode in (0, 17, 59):
        size = t / one.pairs.values[mode]  # K~ / eigenvalue, so that the change is about one
        with edited(one.model, -1, size * one.K.vjp(one.pairs.vectors[:, mode])):
            moved = one.logits(NEW) - before
        close(moved, t * torch.outer(scores[:, mode], along[mode]), 1e-9)


# Hinges. After 1 and after 9 there are 5 and 6, after 2 there are 8 and 6: one swap for each.

HAND = (1, 5, 9, 5, 7, 3), (1, 6, 9, 6, 7, 4), (2, 6, 9, 6, 7, 10), (2, 8, 9, 6, 7, 3)
SWAPS = {
    (5, 0): [[1, 6, 9, 5, 7, 3], [1, 5, 9, 6, 7, 3]],
    (8, 3): [[2, 6, 9, 6, 7, 3]],
}


def by_hand(one, mode, top):
    """The shares of 5 and 8, which are alone in one of four windows each."""
    before = one.v_of[:, mode]
    share = {}
    for (token, n), rows in SWAPS.items():
        if n in before.topk(top).indices:
            lost = [1 - one.scores([row])[0, mode] / before[n] for row in rows]
            most = min(1.0, max(0.0, *map(float, lost), 0.0)) if before[n] > 0 else 0.0
            share[token] = most / top
    return share


@pytest.mark.parametrize("top", [1, 2, 3, 4])
def test_hinges_by_hand(top, exact):
    one, found = product(HAND), 0
    for mode in range(2, len(one.pairs), 9):
        few = taken(one.pairs, [mode])
        expected = by_hand(one, mode, top)
        if not expected:
            with pytest.raises(ValueError, match=r"rare=0.25 leaves no token to swap"):
                hinges(one.K, few, *padded(HAND), top=top, rare=0.25)
            continue
        (hinge,) = hinges(one.K, few, *padded(HAND), top=top, rare=0.25)
        assert hinge.share == pytest.approx(max(expected.values()), abs=1e-9)
        assert expected[hinge.token] == max(expected.values()) and hinge.windows == 1
        found += hinge.share > 0
    assert found


def test_an_eigenvectors_sign_is_its_directions_not_its_scores(exact):
    one = product(HAND)
    turned = pairs_of(one.pairs.values, -one.pairs.vectors)
    assert_close(window_scores(turned, 4), window_scores(one.pairs, 4))
    assert_close(logit_directions(turned, 4), -logit_directions(one.pairs, 4))
    close(extended_scores(one.K, turned, *padded(NEW)), one.scores(NEW), 1e-8)
    few, options = [0, 13, 44], dict(top=4, rare=0.25)
    a, b = (hinges(one.K, taken(p, few), *padded(HAND), **options) for p in (one.pairs, turned))
    assert [x.token for x in a] == [x.token for x in b]
    assert [x.share for x in a] == pytest.approx([x.share for x in b], abs=1e-9)


def test_windows_that_a_mode_does_not_score_lose_nothing(exact):
    """The second scores exactly 0; a ratio to it, or to a negative score, would say nothing."""
    one = product(HAND)
    (best,) = one.v[:, -1:].abs().argmax(0)
    vector = torch.zeros(4, D, dtype=F64)
    vector[0] = one.w[:, -1]
    alone = pairs_of(one.g[-1:] * one.s[-1:], vector.reshape(-1, 1))
    (hinge,) = hinges(one.K, alone, *padded(HAND), top=4, rare=0.25)
    assert math.isfinite(hinge.share) and hinge.share <= 0.25 and best < 4
    assert hinge.share == 0 or hinge.token == 5  # 8 is in a window that scores 0


def test_a_token_that_nothing_else_follows_gives_way_to_any(exact):
    rows = [[1, 5, 3], [2, 6, 4]]
    one = Product(rows)
    mode = int(one.v_of[0].argmax())
    shares = {
        round(hinges(one.K, taken(one.pairs, [mode]), *padded(rows), top=1, rare=0.5, seed=i)[0].share, 9)
        for i in range(12)
    }  # fmt: skip
    rows = [[1, other, 3] for other in (3, 6, 4)]
    lost = (1 - one.scores(rows)[:, mode] / one.v_of[0, mode]).clamp(0, 1)
    assert len(shares) > 1 and shares <= {round(x, 9) for x in lost.tolist()}


def test_hinges_do_not_depend_on_padding_or_memory_and_repeat_themselves(exact):
    rows = [[random.Random(n).randrange(3, 12) for _ in range(3 + n % 4)] for n in range(12)]
    one, state = Product(rows), torch.get_rng_state()
    few, options = taken(one.pairs, [143, 100, 60]), dict(top=3, rare=0.4)
    found = hinges(one.K, few, *padded(rows), **options)
    assert hinges(one.K, few, *padded(rows), **options) == found
    assert torch.equal(state, torch.get_rng_state())
    left = LogitKernel(one.model, (b := padded(rows, "left"))[0], attention_mask=b[1], layer=-1)
    again = hinges(left, few, *b, **options)
    assert [x.token for x in again] == [x.token for x in found]
    assert [x.share for x in again] == pytest.approx([x.share for x in found], abs=1e-9)
    assert all(x.windows == sum(x.token in row for row in rows) for x in found)
    assert all(x.windows <= 0.4 * 12 for x in found)
    with pytest.raises(ValueError, match="too small") as refused:
        Product(rows, memory=1)
    least = int(re.search(r"pass ([\d,]+) or more", str(refused.value))[1].replace(",", ""))
    tight = Product(rows, memory=least)
    assert not tight.K.kept
    again = hinges(tight.K, few, *padded(rows), **options)
    assert [x.share for x in again] == pytest.approx([x.share for x in found], abs=1e-9)
    wide = padded(rows * 2)  # more windows than the kernel has, in the memory of as many
    close(extended_scores(tight.K, few, *wide), one.scores(rows * 2)[:, [143, 100, 60]], 1e-8)


def test_what_hinges_refuses(exact):
    one = product(HAND)
    few = taken(one.pairs, [47])
    ids, mask = padded(HAND)
    for other in (ids.flip(0), ids[:3], torch.cat([ids[:, :1], ids], 1), ids.where(ids != 7, 11)):
        with pytest.raises(ValueError, match=r"input_ids .* are not the 4 windows"):
            hinges(one.K, few, other, top=2)
    for top in (0, 5):
        with pytest.raises(ValueError, match=rf"top={top} must be between 1 and .* windows, 4"):
            hinges(one.K, few, ids, mask, top=top)
    with pytest.raises(ValueError, match=r"rare=0.2 leaves no token"):
        hinges(one.K, few, ids, top=4, rare=0.2)
    short = Product([[1, 2], [3, 4], [5]])
    with pytest.raises(ValueError, match="leaves no token to swap"):
        hinges(short.K, taken(short.pairs, [30]), *padded([[1, 2], [3, 4], [5]]), top=3, rare=1.0)
    same = Product([[5, 5, 5], [5, 5, 5]])
    with pytest.raises(ValueError, match="holds a single token"):
        hinges(same.K, taken(same.pairs, [23]), torch.full((2, 3), 5), top=2, rare=1.0)


def test_no_mode_of_an_untrained_model_hinges_on_a_rare_word():
    """A null: over seeds 0 to 6 the largest share of four modes was 0.11 to 0.17."""
    drawn = cases(Trigger(), 6, 24, 0)
    K = LogitKernel(untrained(0), drawn.input_ids, layer=2)
    found = hinges(K, top_eigenpairs(K, 4, tol=1e-3), drawn.input_ids)
    assert max(hinge.share for hinge in found) < 0.25


# Models that are not linear.

SCALED = {
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(
        **SIZES, **PLAIN, **IDS, num_key_value_heads=3, logits_scaling=5.0)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(
        **SIZES, **PLAIN, **IDS, num_key_value_heads=3, logit_scale=0.25)),
}  # fmt: skip
ZOO = {
    "gemma 3": ("model.layers", 2, "mlp.down_proj", "left"),
    "gemma 2": ("model.layers", 1, "self_attn.v_proj", "right"),
    "gpt 2": ("transformer.h", 1, "mlp.c_proj", "left"),
    "granite": ("model.layers", 0, "mlp.up_proj", "right"),
    "cohere": ("model.layers", 2, "mlp.down_proj", "right"),
    "llama, tied": ("model.layers", 0, "self_attn.o_proj", "left"),
}


class Real:
    """A model of the zoo, its kernel of some windows, and the top five modes."""

    def __init__(self, name):
        folder, self.layer, self.module, side = ZOO[name]
        self.model = build(name, models=MODELS | SCALED)
        self.name = f"{folder}.{self.layer}.{self.module}.weight"
        self.batch, self.new = (
            windows((7, 3, 5, 1), side),
            windows((4, 7, 2, 6, 1, 7), side, seed=1),
        )
        options = dict(layer=self.layer, module=self.module)
        self.K = LogitKernel(self.model, self.batch[0], attention_mask=self.batch[1], **options)
        self.pairs = dense_pairs(self.K, 5)
        factor = {"granite": 0.2, "cohere": 0.25}.get(name, 1.0)
        _, s, Vh = torch.linalg.svd(factor * self.model.get_output_embeddings().weight.detach())
        self.root = Vh.T * s @ Vh
        J, _ = own_jacobians(self.model, self.name, self.batch, logits=False)
        J = (self.root @ J.unflatten(0, (4, D))).flatten(0, 1)
        self.along = J.T @ self.pairs.vectors  # (P, 5), by autograd

    def rank_one(self, mode):
        """Scores and direction of a mode, with the largest score positive."""
        U, s, Vh = torch.linalg.svd(self.pairs.vectors[:, mode].reshape(4, D), full_matrices=False)
        sign = U[U[:, 0].abs().argmax(), 0].sign()
        return sign * s[0] * U[:, 0], sign * Vh[0]

    def logits(self):
        """Before the cap, at the last real token of each window."""
        with torch.no_grad():
            out = own_outputs(self.model, {}, *self.batch)[1]
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return cap * (out / cap).atanh() if cap else out


real_of = cache(Real)


@pytest.mark.parametrize("name", ZOO)
def test_scores_of_other_windows_are_those_of_autograd(name, exact):
    real = real_of(name)
    found = extended_scores(real.K, real.pairs, *real.new[:2])
    own = extended_scores(real.K, real.pairs, *real.batch[:2])
    weight = real.model.get_parameter(real.name).detach()
    for mode in range(5):
        scores, direction = real.rank_one(mode)
        close(own[:, mode], scores, 1e-9)
        _, moved = torch.func.jvp(
            lambda W: own_outputs(real.model, {real.name: W}, *real.new)[0],
            (weight,),
            (real.along[:, mode].reshape(weight.shape),),
        )
        close(found[:, mode], moved @ real.root @ direction / real.pairs.values[mode], 1e-9)


@pytest.mark.parametrize("name", ZOO)
def test_an_edit_moves_the_logits_as_the_mode_says(name, exact):
    """Sum over windows of score x change = eigenvalue x |scores|^2 x `mode_logits`, any rank."""
    real = real_of(name)
    expected, change = mode_logits(real.K, real.pairs), real.K.vjp(real.pairs.vectors)
    for mode in range(5):
        scores, _ = real.rank_one(mode)
        t, value = 1e-4 / change[:, mode].norm(), real.pairs.values[mode]
        logits = []
        for sign in (1, -1):
            with edited(real.model, real.layer, sign * t * change[:, mode], module=real.module):
                logits.append(real.logits())
        moved = scores @ (logits[0] - logits[1]) / (2 * t)
        close(moved / (value * scores.square().sum()), expected[mode], 1e-5)


def test_float32_follows_double_precision(exact):
    real = real_of("gemma 3")
    model = build("gemma 3").float()
    K = LogitKernel(model, real.batch[0], attention_mask=real.batch[1], layer=2)
    pairs = pairs_of(real.pairs.values.float(), real.pairs.vectors.float())
    close(mode_logits(K, pairs), mode_logits(real.K, real.pairs), 1e-4)
    expected = extended_scores(real.K, real.pairs, *real.new[:2])
    found = extended_scores(K, pairs, *real.new[:2])
    assert found.dtype == F64
    close(found, expected, 1e-4)
    with (
        pytest.raises(ValueError, match=r"float16, too coarse"),
        edited(model.half(), 1, torch.ones(240)),
    ):
        pass


def test_eigenvalues_that_are_not_positive_are_refused(exact):
    one = product(HAND)
    for value in (0.0, -1.0, torch.nan):
        bad = pairs_of(torch.tensor([1.0, value], dtype=F64), one.pairs.vectors[:, :2])
        with pytest.raises(ValueError, match=r"pairs\.values must be positive"):
            extended_scores(one.K, bad, torch.tensor(HAND))
    with pytest.raises(ValueError, match="n_windows=5 does not divide"):
        logit_directions(one.pairs, 5)
    holed = pairs_of(one.pairs.values, one.pairs.vectors.where(one.pairs.vectors > -0.5, torch.nan))
    for call in (lambda p: logit_directions(p, 4), lambda p: mode_logits(one.K, p)):
        with pytest.raises(ValueError, match=r"pairs\.vectors holds .* NaN"):
            call(holed)


# Edits.


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("name", "module"), [("gemma 3", "mlp.down_proj"), ("gpt 2", "mlp.c_proj")]
)
@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_an_edit_is_taken_back_to_the_bit(name, module, trainable, fails):
    model = build(name, torch.float32)
    linear = model.get_decoder().get_submodule(f"{ZOO[name][0].split('.')[-1]}.1.{module}")
    kept = linear.weight.requires_grad_(trainable)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    change = torch.randn(kept.numel())
    try:
        with edited(model, 1, change, module=module) as same:
            assert same is model and linear.weight is not kept
            assert linear.weight.requires_grad == trainable
            assert torch.equal(linear.weight, kept + change.reshape(kept.shape))
            rest = [n for n, p in model.state_dict().items() if not torch.equal(p, before[n])]
            assert len(rest) == 1 and rest[0].endswith(f".1.{module}.weight")
            if trainable:
                model(torch.tensor([[1, 2, 3]])).logits.sum().backward()
                torch.optim.SGD([linear.weight], lr=0.1).step()
            if fails:
                raise Stop
    except Stop:
        assert fails
    assert linear.weight is kept and kept.grad is None and kept.requires_grad == trainable
    assert all(torch.equal(p, before[n]) for n, p in model.state_dict().items())


def test_edits_nest_and_take_the_weights_own_shape_and_dtype():
    model = build("gpt 2", torch.float32)
    linear = model.transformer.h[2].mlp.c_proj
    kept, change = linear.weight, torch.randn(20, 12, dtype=F64)
    with edited(model, -1, change, module="mlp.c_proj"):
        assert linear.weight.dtype == torch.float32
        once = linear.weight.clone()
        with edited(model, 2, -change.flatten(), module="mlp.c_proj"):
            assert_close(linear.weight, kept, rtol=0, atol=1e-6)
        assert torch.equal(linear.weight, once)
    assert linear.weight is kept


def test_a_kernel_refuses_during_an_edit_and_works_after_it():
    model, (ids, mask, _) = build("llama").float(), windows()
    K = LogitKernel(model, ids, attention_mask=mask, layer=1)
    v = torch.ones(K.shape[0])
    before = K @ v
    pairs = pairs_of(torch.ones(1), torch.ones(K.shape[0], 1))
    with edited(model, 1, torch.ones(K.n_parameters)):
        for product in (lambda: K @ v, lambda: extended_scores(K, pairs, ids, mask)):
            with pytest.raises(ValueError, match="weights have changed"):
                product()
        assert not torch.equal(LogitKernel(model, ids, attention_mask=mask, layer=1) @ v, before)
    assert torch.equal(K @ v, before)


def test_what_edited_refuses():
    model = build("gpt 2", torch.float32)
    kept = model.transformer.h[1].mlp.c_proj.weight
    holed = torch.zeros(240).index_fill(0, torch.tensor([7]), torch.nan)
    bad = {
        r"shape \(239,\); give \(240,\) or the weight's, \(20, 12\)": torch.zeros(239),
        r"shape \(12, 20\)": torch.zeros(12, 20),  # of an nn.Linear; this is a Conv1D
        r"shape \(240, 2\)": torch.zeros(240, 2),
        "change holds 1 NaN": holed,
    }
    for message, change in bad.items():
        with (
            pytest.raises(ValueError, match=message),
            edited(model, 1, change, module="mlp.c_proj"),
        ):
            pass  # pragma: no cover
    for layer, module, message in ((3, "mlp.c_proj", "layer=3"), (1, "mlp", "module='mlp'")):
        with (
            pytest.raises(ValueError, match=message),
            edited(model, layer, torch.zeros(240), module=module),
        ):
            pass
    assert model.transformer.h[1].mlp.c_proj.weight is kept


# Lifts.


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("top", [1, 3, 10])
def test_lifts_against_a_loop(top, integer):
    generator = torch.Generator().manual_seed(top)
    logits = 3 * torch.randn(10, 6, generator=generator)
    scores = torch.randn(10, 4, generator=generator, dtype=F64)
    counts = torch.tensor([0, 50, 3, 1, 7, 20])
    found = output_lifts(logits, scores, counts if integer else counts.float(), top=top)
    for mode, lift in enumerate(found):
        best = sorted(range(10), key=lambda n: -scores[n, mode])[:top]
        P = [
            [math.exp(x - torch.logsumexp(logits[n].double(), 0)) for x in logits[n]] for n in best
        ]
        mean = [sum(p[v] for p in P) / top / ((int(counts[v]) + 1) / 87) for v in range(6)]
        assert lift.token == max(range(6), key=mean.__getitem__)
        assert lift.factor == pytest.approx(max(mean), rel=1e-9)


def test_what_lifts_refuse():
    logits, scores, counts = torch.zeros(4, 6), torch.zeros(4, 2), torch.ones(6)
    holed = scores.index_fill(0, torch.tensor([1]), torch.nan)
    cases = {
        r"logits \(4, 6\), scores \(3, 2\)": (logits, scores[:3], counts),
        r"counts \(5,\) must be": (logits, scores, counts[:5]),
        "logits holds 24": (logits / 0, scores, counts),
        "scores holds 2 NaN": (logits, holed, counts),
        "counts holds 6 NaN": (logits, scores, counts * torch.inf),
        "counts must not be negative, got -1": (logits, scores, -counts),
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message):
            inspect.unwrap(output_lifts)(*given, top=2)  # jaxtyping refuses shapes before
    for top in (0, 5):
        with pytest.raises(ValueError, match=rf"top={top} must be between 1 and .* 4"):
            output_lifts(logits, scores, counts, top=top)
