"""Statistics of modes against a kernel that is a product of two, autograd, and counting by hand."""

import inspect
import math
import random
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
    Divergence,
    Hinge,
    edited,
    extended_scores,
    hinges,
    logit_directions,
    mode_hinges,
    mode_logits,
    output_lifts,
    output_ratios,
    suspect,
    swap_divergences,
)
from entk_helpers.language.scores import pca_scores, window_scores
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

    def __init__(self, rows):
        self.model = build("llama")
        self.model.model.norm = nn.Identity()
        ids, mask = padded(rows)
        self.K = LogitKernel(self.model, ids, attention_mask=mask, layer=-1)
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
    some = list(range(0, 60, 7))
    left = extended_scores(one.K, one.pairs, *padded(NEW, "left"), modes=some)
    close(left, one.scores(NEW)[:, some], 1e-9)
    own = extended_scores(one.K, one.pairs, *padded(ROWS), modes=some)
    close(own, one.v_of[:, some], 1e-9)


@pytest.mark.parametrize("batch", [1, 5, 28, 100])
def test_batches_change_no_scores(batch, exact):
    """Of more windows than the kernel has."""
    one, modes = product(ROWS), [59, 17]
    found = extended_scores(one.K, one.pairs, *padded(NEW * 2), modes=modes, batch=batch)
    close(found, one.scores(NEW * 2)[:, modes], 1e-9)


def test_some_modes_are_the_columns_of_all(exact):
    one = product(ROWS)
    every, some = one.scores(NEW), [17, 3, 59, -2, 3]
    close(extended_scores(one.K, one.pairs, *padded(NEW), modes=some), every[:, some], 1e-9)
    null = pairs_of(one.pairs.values.clone().index_fill(0, torch.tensor([4]), 0), one.pairs.vectors)
    close(extended_scores(one.K, null, *padded(NEW), modes=range(5, 9)), every[:, 5:9], 1e-9)
    for modes in (None, [5, 4]):
        with pytest.raises(ValueError, match=r"pairs\.values must be positive"):
            extended_scores(one.K, null, *padded(NEW), modes=modes)


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

HAND = (1, 5, 9, 5, 7, 3), (1, 6, 9, 6, 7, 4), (2, 6, 9, 6, 7, 10), (2, 8, 3)
FIRST, SECOND, SHORT = (1, 6, 9, 5, 7, 3), (1, 5, 9, 6, 7, 3), (2, 6, 3)
SWAPS = {(5, 0): [FIRST, SECOND], (8, 3): [SHORT]}


def table(*columns, seen=None):
    """A rescore that looks a window up, by its real tokens, in the table of its mode."""

    def rescore(mode, ids, mask):
        rows = [tuple(i[m == 1].tolist()) for i, m in zip(ids, mask, strict=True)]
        if seen is not None:
            seen.append((mode, rows))
        return torch.tensor([columns[mode][row] for row in rows], dtype=F64)

    return rescore


def stacked(*columns):
    return torch.tensor(columns, dtype=F64).T


BY_HAND = {  # scores; scores after the swaps FIRST, SECOND, SHORT; token; share
    "the first swap loses more": ([4, 1, 2, 3], [1, 2, 1.5], 5, 3 / 16),
    "the second swap loses more": ([4, 1, 2, 3], [2, 1, 1.5], 5, 3 / 16),
    "a token's places do not add up": ([4, 1, 2, 3], [2, 2, 1], 8, 2 / 12),
    "at most the whole score": ([4, 1, 2, 3], [-9, 4, 3], 5, 1 / 4),
    "what rises loses nothing": ([4, 1, 2, 3], [9, 5, 2], 8, 1 / 12),
    "nothing is lost": ([4, 1, 2, 3], [9, 5, 4], 5, 0),
    "a negative score loses nothing": ([4, -2, 1, -1], [3, 4, -6], 5, 1 / 16),
    "nor does one that rises": ([4, -2, 1, -1], [3.5, 4, 2], 5, 1 / 32),
    "nor does a score of zero": ([4, -2, 1, 0], [3.5, 4, -6], 5, 1 / 32),
    "a small score counts as much as a large one": ([1, 2, 3, 4], [0, 0, 2], 5, 1 / 4),
}


def test_hinges_by_hand():
    seen = []
    after = [dict(zip((FIRST, SECOND, SHORT), row[1], strict=True)) for row in BY_HAND.values()]
    scores = stacked(*(row[0] for row in BY_HAND.values()))
    found = hinges(scores, table(*after, seen=seen), *padded(HAND), top=4, rare=0.25)
    for hinge, (name, (_, _, token, share)) in zip(found, BY_HAND.items(), strict=True):
        assert hinge.share == pytest.approx(share, abs=1e-12), name
        assert (hinge.token == token or share == 0) and hinge.windows == 1, name
    assert [mode for mode, _ in seen] == list(range(len(BY_HAND)))
    assert all(sorted(rows) == sorted([FIRST, SECOND, SHORT]) for _, rows in seen)


def test_only_the_top_windows_count():
    after = {FIRST: 3, SECOND: 4, SHORT: -9}
    for top, share in ((1, 1 / 4), (2, 1 / 8), (3, 1 / 12)):
        (hinge,) = hinges(stacked([4, 3, 2, 1]), table(after), *padded(HAND), top=top, rare=0.25)
        assert (hinge.token, hinge.windows) == (5, 1)
        assert hinge.share == pytest.approx(share, abs=1e-12)


def test_a_share_is_the_mean_of_what_each_window_loses():
    """Of 3/6, 2/2 and, without the token, 0; not (3 + 2) / (6 + 2 + 1)."""
    rows = (1, 5, 3), (1, 6, 3, 4), (1, 5, 3, 7), (1, 6, 3), (1, 6, 3)
    after = {(1, 6, 3): 3, (1, 6, 3, 7): -1}
    scores = stacked([6, 1, 2, 0, -1])
    (hinge,) = hinges(scores, table(after), *padded(rows), top=3, rare=0.4)
    assert (hinge.token, hinge.windows) == (5, 2)
    assert hinge.share == pytest.approx(1 / 2, abs=1e-12)


def test_hinges_of_a_linear_score():
    """A principal component w of counts of tokens: t for u loses w[t] - w[u], at each place."""

    def counts(ids, mask):
        return (nn.functional.one_hot(ids, 11) * mask[:, :, None]).sum(1).double()

    X = counts(*padded(HAND))
    scores = pca_scores(X, 3)
    W = (X - X.mean(0)).T @ scores
    W /= W.norm(dim=0)
    for top in (2, 4):
        found = hinges(
            scores,
            lambda mode, ids, mask: (counts(ids, mask) - X.mean(0)) @ W[:, mode],
            *padded(HAND),
            top=top,
            rare=0.25,
        )
        for hinge, w, before in zip(found, W.T, scores.T, strict=True):
            best = before.topk(top).indices.tolist()
            lost = {
                t: max(0.0, min(1.0, float((w[t] - w[6]) / before[n]))) if before[n] > 0 else 0.0
                for t, n in ((5, 0), (8, 3))
                if n in best
            }
            assert hinge.share == pytest.approx(max(lost.values()) / top, abs=1e-12)
            assert lost[hinge.token] == max(lost.values())
        assert max(hinge.share for hinge in found) > 0.2


def hinges_of(one, modes, rows, pairs=None, **options):
    return mode_hinges(one.K, taken(pairs or one.pairs, modes), *padded(rows), **options)


@pytest.mark.parametrize("top", [1, 2, 4])
def test_hinges_of_modes(top, exact):
    one, found = product(HAND), 0
    for mode in range(2, len(one.pairs), 9):
        before, lost = one.v_of[:, mode], {}
        best = before.topk(top).indices
        for (token, n), rows in SWAPS.items():
            if n in best:
                most = (1 - one.scores(rows)[:, mode] / before[n]).max()
                lost[token] = float(most.clamp(0, 1)) if before[n] > 0 else 0.0
        if not lost:
            with pytest.raises(ValueError, match=r"rare=0.25 leaves no token to swap"):
                hinges_of(one, [mode], HAND, top=top, rare=0.25)
            continue
        (hinge,) = hinges_of(one, [mode], HAND, top=top, rare=0.25)
        assert hinge.share == pytest.approx(max(lost.values()) / top, abs=1e-9)
        assert lost[hinge.token] == max(lost.values()) and hinge.windows == 1
        found += hinge.share > 0
    assert found


def test_an_eigenvectors_sign_is_its_directions_not_its_scores(exact):
    one = product(HAND)
    turned = pairs_of(one.pairs.values, -one.pairs.vectors)
    assert_close(window_scores(turned, 4), window_scores(one.pairs, 4))
    assert_close(logit_directions(turned, 4), -logit_directions(one.pairs, 4))
    close(extended_scores(one.K, turned, *padded(NEW)), one.scores(NEW), 1e-8)
    options = dict(top=4, rare=0.25)
    a, b = (hinges_of(one, [0, 13, 44], HAND, p, **options) for p in (one.pairs, turned))
    assert [x.token for x in a] == [x.token for x in b]
    assert [x.share for x in a] == pytest.approx([x.share for x in b], abs=1e-9)


def test_a_token_that_nothing_else_follows_gives_way_to_any():
    rows, swapped = [[1, 5, 3], [2, 6, 4]], set()

    def rescore(mode, ids, mask):
        assert ids.shape == (1, 3) and ids[0, 0] == 1 and ids[0, 2] == 3
        swapped.add(int(ids[0, 1]))
        return torch.zeros(1, dtype=F64)

    for seed in range(30):
        hinges(stacked([1, 0]), rescore, *padded(rows), top=1, rare=0.5, seed=seed)
    assert swapped == {3, 4, 6}


def many():
    return [[random.Random(n).randrange(3, 12) for _ in range(3 + n % 4)] for n in range(12)]


def test_a_column_does_not_change_with_the_others():
    """Its scores alone count, up to a factor, and so do the swaps."""
    scores = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    scores = torch.cat([scores, 2 * scores[:, :1]], 1)
    seen, state = [], torch.get_rng_state()

    def rescore(mode, ids, mask):
        seen.append((ids, mask))
        return (ids * mask).sum(1) / 100 * (2.0 if mode == 3 else 1.0)

    given = padded(many())
    found = hinges(scores, rescore, *given, top=3, rare=0.4)
    assert torch.equal(state, torch.get_rng_state())  # beartype itself draws from `random`
    assert all(map(torch.equal, seen[0], seen[3]))
    assert found[3].token == found[0].token and found[3].windows == found[0].windows
    assert found[3].share == pytest.approx(found[0].share, rel=1e-9)
    for mode in range(3):
        column = scores[:, mode : mode + 1]
        assert hinges(column, rescore, *given, top=3, rare=0.4) == [found[mode]]
    assert hinges(scores[:, :1], rescore, *padded(many(), "left"), top=3, rare=0.4) == found[:1]
    other = hinges(scores, rescore, *given, top=3, rare=0.4, seed=1)
    assert [x.share for x in other] != [x.share for x in found]
    assert all(x.windows == sum(x.token in row for row in many()) <= 0.4 * 12 for x in found)


def test_what_hinges_refuses():
    ids, mask = padded(HAND)
    scores, never = stacked([1, 2, 3, 4]), table()  # which knows no window
    plain = inspect.unwrap(hinges)  # jaxtyping refuses shapes before
    with pytest.raises(ValueError, match="scores has 3 rows for 4 windows"):
        plain(scores[:3], never, ids, mask, top=2)
    with pytest.raises(ValueError, match=r"attention_mask has shape \(3, 6\)"):
        plain(scores, never, ids, mask[:3], top=2)
    for top in (0, 5):
        with pytest.raises(ValueError, match=rf"top={top} must be between 1 and .* windows, 4"):
            hinges(scores, never, ids, mask, top=top)
    with pytest.raises(ValueError, match=r"rare=0.2 leaves no token"):
        hinges(scores, never, ids, mask, top=4, rare=0.2)
    with pytest.raises(ValueError, match="scores holds 4 NaN"):
        hinges(scores * torch.nan, never, ids, mask, top=4, rare=0.25)
    for bad in (-scores, 0 * scores):
        after = dict.fromkeys((FIRST, SECOND, SHORT), 0.0)
        both = torch.cat([scores, bad], 1)
        with pytest.raises(ValueError, match="no positive entry in column 1; turn its sign"):
            hinges(both, table(after, after), ids, mask, top=4, rare=0.25)
    for bad, message in (
        (torch.tensor([0, torch.nan, 0]), r"what rescore returns holds 1 NaN"),
        (torch.zeros(2), r"rescore gave shape \(2,\) for 3 windows"),
        (torch.zeros(3, 1), r"rescore gave shape \(3, 1\) for 3 windows"),
        (torch.tensor(0.0), r"rescore gave shape \(\) for 3 windows"),
    ):
        with pytest.raises(ValueError, match=message):
            hinges(scores, lambda *_, bad=bad: bad, ids, mask, top=4, rare=0.25)
    with pytest.raises(ValueError, match="leaves no token to swap"):
        hinges(stacked([1, 2, 3]), never, *padded([[1, 2], [3, 4], [5]]), top=3, rare=1.0)
    with pytest.raises(ValueError, match="holds a single token"):
        hinges(stacked([1, 2]), never, torch.full((2, 3), 5), top=2, rare=1.0)


def test_no_mode_of_an_untrained_model_hinges_on_a_rare_word():
    """A null."""
    drawn = cases(Trigger(), 6, 24, 0)
    K = LogitKernel(untrained(0), drawn.input_ids, layer=2)
    pairs = top_eigenpairs(K, 4, tol=1e-3)
    found = mode_hinges(K, pairs, drawn.input_ids)
    assert max(hinge.share for hinge in found) < 0.25


def test_the_mode_to_look_at_first():
    def made(*found):
        return [Hinge(token, share, 3) for token, share in found]

    found = made((7, 0.6), (5, 0.4), (5, 0.5), (5, 0.9), (7, 0.8))
    assert suspect(found) == 2  # not 0, which hinges on another token
    assert suspect(found, 0.51) == suspect(found, 0.95) == 3
    assert suspect(found, 0.4) == 1
    assert suspect(made((7, 0.1), (5, 0.3), (5, 0.4), (7, 0.4))) == 2
    assert suspect(made((5, 0.7), (5, 0.7))) == suspect(made((5, 0.0))) == 0


# Divergences. After 3 there are 12 and 9 now: again one swap for each of 5, 8 and 12.

MORE = (*HAND, (1, 5, 9, 6, 7), (2, 8, 9, 6, 4), (3, 12, 9, 6, 4), (3, 9, 6, 7))
GIVES_WAY = {5: 6, 8: 6, 12: 9}


@pytest.mark.parametrize(("top", "side"), [(1, "right"), (2, "left"), (3, "right"), (8, "left")])
def test_divergences_against_a_loop(top, side, exact):
    """5 is at three places of two windows, 8 at two and 12 at one."""
    model = build("gemma 3")

    @torch.no_grad()
    def logs(row):
        return model(torch.tensor([row])).logits[0, -1].log_softmax(0)

    effects = {token: [] for token in GIVES_WAY}
    for n, row in enumerate(MORE):
        for place in range(1, len(row) - 1):
            if (old := row[place]) in GIVES_WAY:
                new = [*row[:place], GIVES_WAY[old], *row[place + 1 :]]
                nats = nn.functional.kl_div(logs(new), logs(row), reduction="sum", log_target=True)
                effects[old].append((n, float(nats)))
    assert [len(found) for found in effects.values()] == [3, 2, 1]
    state = torch.get_rng_state()
    found = swap_divergences(model, *padded(MORE, side), top=top, rare=0.25, batch=2 + top)
    assert torch.equal(state, torch.get_rng_state())
    assert [one.nats for one in found] == sorted((one.nats for one in found), reverse=True)
    assert {one.token for one in found} == set(effects)
    for one in found:
        largest = sorted((nats for _, nats in effects[one.token]), reverse=True)[:top]
        assert one.nats == pytest.approx(sum(largest) / top, rel=1e-8)
        by_window = torch.zeros(len(MORE), dtype=F64)
        for n, nats in effects[one.token]:
            by_window[n] = max(by_window[n], nats)
        close(one.by_window, by_window, 1e-8)


def test_divergences_are_equal_where_token_and_nats_are():
    """A comparison of tensors has no truth value."""
    one = Divergence(5, 0.5, torch.zeros(3, dtype=F64))
    assert one == Divergence(5, 0.5, torch.ones(3, dtype=F64))
    assert one != Divergence(6, 0.5, one.by_window) and one != Divergence(5, 0.4, one.by_window)


def test_what_divergences_refuse():
    model, (ids, mask) = build("llama"), padded(MORE)
    for top in (0, 9):
        with pytest.raises(ValueError, match=rf"top={top} must be between 1 and .* windows, 8"):
            swap_divergences(model, ids, mask, top=top)
    with pytest.raises(ValueError, match=r"rare=0.1 leaves no token to swap"):
        swap_divergences(model, ids, mask, rare=0.1)
    with pytest.raises(ValueError, match="holds a single token"):
        swap_divergences(model, torch.full((2, 3), 5), top=2, rare=1.0)
    with pytest.raises(ValueError, match=r"float16, too coarse"):
        swap_divergences(model.half(), ids, mask, rare=0.25)


# Models that are not linear.

SCALED = {
    "granite": lambda: hf.GraniteForCausalLM(hf.GraniteConfig(
        **SIZES, **PLAIN, **IDS, num_key_value_heads=3, logits_scaling=5.0)),
}  # fmt: skip
ZOO = {
    "gemma 3": ("model.layers", 2, "mlp.down_proj", "left"),
    "gemma 2": ("model.layers", 1, "self_attn.v_proj", "right"),
    "gpt 2": ("transformer.h", 1, "mlp.c_proj", "left"),
    "granite": ("model.layers", 0, "mlp.up_proj", "right"),
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
        factor = 0.2 if name == "granite" else 1.0
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
            extended_scores(one.K, bad, *padded(HAND))
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


# Ratios.


@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_ratios_by_hand(dtype):
    """Probabilities (2, 4, 2) / 8 and (7, 0.5, 0.5) / 8 over frequencies (1, 2, 5) / 8."""
    logits = torch.tensor([[2.0, 4, 2], [7, 0.5, 0.5]]).log() + torch.tensor([[3.0], [-200]])
    found = output_ratios(logits, torch.tensor([0, 1, 4], dtype=dtype))
    expected = torch.tensor([[2, 2, 0.4], [7, 0.25, 0.1]], dtype=F64)
    assert found.dtype == F64
    assert_close(found, expected, rtol=1e-4, atol=0)  # of 200 in float32


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
        "scores has 3 rows for 4 rows of logits": (logits, scores[:3], counts),
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
    with pytest.raises(ValueError, match=r"counts \(5,\) must have .* logits, \(4, 6\)"):
        inspect.unwrap(output_ratios)(logits, counts[:5])
