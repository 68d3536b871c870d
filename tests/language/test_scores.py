"""Scores of modes and their grades: scikit-learn, counting by hand, planted truths, chance."""

import inspect
import math
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch.testing import assert_close

from entk_helpers.language.scores import (
    auroc,
    average_precision,
    grade,
    linear_probe_scores,
    morphology_labels,
    pca_scores,
    probe,
    random_scores,
    stratified_halves,
    table_scores,
    tag_labels,
    window_scores,
)
from entk_helpers.language.windows import Windows
from entk_helpers.spectrum import Eigenpairs

F64 = torch.float64


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def coin(*shape, p=0.3, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < p


def tied_scores(n=60):
    """Continuous, heavily tied, two-valued, constant, and sorted scores."""
    return torch.stack(
        [
            random(n),
            random(n, seed=1).round(),
            (random(n, seed=2) > 0).to(F64),
            torch.full((n,), 3.0, dtype=F64),
            torch.arange(n).to(F64),
        ],
        1,
    )


def mixed_labels(n=60):
    """Three random labels, one with a single window, one that lacks a single window."""
    one = torch.arange(n)[:, None] == 17
    return torch.cat([coin(n, 3), one, ~one], 1)


def windows(tags, *, next_words=None, features=None, greedy_words=None, greedy_features=None):
    n = len(tags)
    words = [f"w{i}" for i in range(n)]
    ids = torch.zeros(n, 2, dtype=torch.long)
    return Windows(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        texts=[""] * n,
        last_words=[""] * n,
        next_words=next_words or words,
        tags=list(tags),
        features=features or [""] * n,
        greedy_words=greedy_words or words,
        documents=list(range(n)),
        greedy_features=greedy_features or [],
    )


# average precision and AUROC


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(average_precision, metrics.average_precision_score), (auroc, metrics.roc_auc_score)],
)
def test_both_are_scikit_learns_with_ties_constants_and_single_windows(ours, theirs):
    scores, labels = tied_scores(), mixed_labels()
    expected = [[theirs(y, s) for y in labels.T.numpy()] for s in scores.T.numpy()]
    assert_close(ours(scores, labels), torch.tensor(expected, dtype=F64), rtol=0, atol=1e-12)


def test_the_order_of_the_windows_does_not_matter():
    scores, labels = tied_scores(), mixed_labels()
    turn = torch.randperm(len(scores), generator=torch.Generator().manual_seed(3))
    for f in (average_precision, auroc):
        assert_close(f(scores[turn], labels[turn]), f(scores, labels))


def test_a_label_without_windows_is_nan():
    labels = torch.stack([torch.zeros(60).bool(), torch.ones(60).bool(), coin(60)], 1)
    ap, area = average_precision(tied_scores(), labels), auroc(tied_scores(), labels)
    assert ap.isnan().any(0).tolist() == [True, False, False] and (ap[:, 1] == 1).all()
    assert area.isnan().all(0).tolist() == [True, True, False]


def test_scores_that_are_not_numbers_and_lengths_that_differ_are_refused():
    scores = tied_scores()
    scores[0, 0] = torch.nan
    with pytest.raises(ValueError, match="scores holds 1 NaN"):
        auroc(scores, mixed_labels())
    with pytest.raises(ValueError, match="same number of rows"):
        inspect.unwrap(average_precision)(tied_scores(), mixed_labels()[1:])


# grades


def test_precision_at_quota_is_the_share_among_the_best():
    scores = torch.tensor([[5.0], [4.0], [3.0], [2.0], [1.0]], dtype=F64)
    labels = torch.tensor([[1], [0], [1], [0], [1]]).bool()
    g = grade(scores, labels)
    assert g.quota.tolist() == [3]
    assert_close(g.precision, torch.tensor([2 / 3], dtype=F64))
    assert_close(g.enrichment, torch.tensor([(2 / 3) / (3 / 5)], dtype=F64))


def test_windows_tied_at_the_quota_count_as_the_mean_over_their_orders():
    scores = random(60, 4, seed=5).round()
    labels = coin(60, 4)
    shuffled = []
    for seed in range(3000):
        noise = torch.rand(60, 4, generator=torch.Generator().manual_seed(seed), dtype=F64)
        shuffled.append(grade(scores + 1e-3 * noise, labels).precision)
    expected = torch.stack(shuffled)
    error = expected.std(0) / math.sqrt(len(expected))
    assert (expected.std(0) > 0.02).all()  # the ties do matter here
    assert ((grade(scores, labels).precision - expected.mean(0)).abs() < 4 * error).all()


def test_a_constant_score_has_the_prevalence_and_no_enrichment():
    labels = coin(50, 2)
    g = grade(torch.ones(50, 2, dtype=F64), labels)
    assert_close(g.precision, labels.double().mean(0))
    assert_close(g.ap, labels.double().mean(0))
    assert_close(g.enrichment, torch.ones(2, dtype=F64))
    assert_close(g.auroc, torch.full((2,), 0.5, dtype=F64))


def test_a_grade_is_the_diagonal_of_all_pairs():
    scores, labels = tied_scores(), mixed_labels()
    g = grade(scores, labels)
    assert_close(g.ap, average_precision(scores, labels).diagonal())
    assert_close(g.auroc, auroc(scores, labels).diagonal())
    assert g.macro_ap == pytest.approx(float(g.ap.mean()))
    with pytest.raises(ValueError, match="same shape"):
        inspect.unwrap(grade)(scores, labels[:, :2])


def test_a_label_of_all_windows_or_none_has_no_grade_and_is_left_out_of_the_mean():
    labels = torch.stack([torch.zeros(9).bool(), torch.ones(9).bool(), torch.arange(9) < 4], 1)
    g = grade(random(9, 3), labels)
    for value in (g.ap, g.auroc, g.precision, g.enrichment):
        assert value.isnan().tolist() == [True, True, False]
    assert g.macro_ap == g.ap[2] and g.macro_auroc == g.auroc[2]


# the probe


def slow_probe(train, labels_train, test, labels_test):
    """The protocol, spelt out with scikit-learn one call at a time."""
    rows = []
    for y, z in zip(labels_train.T.numpy(), labels_test.T.numpy(), strict=True):
        best = (-1.0, 0, 0)
        for mode in range(train.shape[1]):
            for sign in (1, -1):
                ap = metrics.average_precision_score(y, sign * train[:, mode].numpy())
                if ap > best[0]:
                    best = (ap, mode, sign)
        ap, mode, sign = best
        s = sign * test[:, mode].numpy()
        top = z[np.argsort(-s)[: z.sum()]]
        rows.append(
            (
                mode,
                sign,
                ap,
                metrics.average_precision_score(z, s),
                metrics.roc_auc_score(z, s),
                top.mean(),
                top.mean() / z.mean(),
            )
        )
    return torch.tensor(rows, dtype=F64).T


def test_the_probe_is_the_protocol_spelt_out():
    args = random(60, 9), coin(60, 6), random(50, 9, seed=1), coin(50, 6, seed=1)
    p = probe(*args)
    ours = [p.mode, p.sign, p.train_ap, p.ap, p.auroc, p.precision, p.enrichment]
    assert_close(torch.stack([x.to(F64) for x in ours]), slow_probe(*args))
    assert set(p.sign.tolist()) == {1, -1}


def test_the_probe_finds_a_planted_direction_and_its_sign():
    labels = coin(400, 3, p=0.2)
    scores = random(400, 8)
    scores[:, 5] -= 6 * labels[:, 1]
    p = probe(scores[:200], labels[:200], scores[200:], labels[200:])
    assert (p.mode[1], p.sign[1]) == (5, -1)
    assert p.auroc[1] > 0.99 and p.ap[1] > 0.99
    assert float(p.enrichment[1]) == pytest.approx(200 / int(labels[200:, 1].sum()), rel=0.1)
    assert (p.auroc[[0, 2]] < 0.65).all()  # noise does not carry over to the other half


def test_of_equal_directions_the_first_is_chosen():
    scores = random(40, 1).expand(40, 4)
    assert probe(scores, coin(40, 5), scores, coin(40, 5)).mode.tolist() == [0] * 5


def test_a_label_that_a_half_lacks_has_no_result():
    labels = torch.cat([torch.zeros(40, 1).bool(), coin(40, 2), torch.ones(40, 1).bool()], 1)
    scores = random(40, 5)
    p = probe(scores, labels, scores, coin(40, 4))
    assert p.mode.tolist()[::3] == [-1, -1] and p.sign.tolist()[::3] == [0, 0]
    for value in (p.train_ap, p.ap, p.auroc, p.precision, p.enrichment):
        assert value.isnan().tolist() == [True, False, False, True]
    assert p.macro_ap == pytest.approx(float(p.ap[1:3].mean()))
    p = probe(scores, coin(40, 4), scores, labels)
    assert p.mode.min() >= 0 and p.auroc.isnan().tolist() == [True, False, False, True]


def test_the_probe_refuses_halves_that_do_not_match():
    with pytest.raises(ValueError, match="scores_test"):
        inspect.unwrap(probe)(random(9, 3), coin(9, 2), random(9, 4), coin(9, 2))
    with pytest.raises(ValueError, match="labels_test"):
        inspect.unwrap(probe)(random(9, 3), coin(9, 2), random(9, 3), coin(9, 1))


# scores from vectors


def pairs_of(vectors):
    k = vectors.shape[1]
    return Eigenpairs(torch.arange(k, 0, -1.0, dtype=F64), vectors, torch.zeros(k, dtype=F64))


def test_the_score_of_a_product_is_its_window_profile():
    profile, direction = random(7), random(5, seed=1)
    profile, direction = profile / profile.norm(), direction / direction.norm()
    vector = torch.outer(profile, direction).reshape(-1, 1)  # row n * d + j
    score = window_scores(pairs_of(vector), 7)
    largest = profile[profile.abs().argmax()]
    assert_close(score[:, 0], profile * largest.sign())


@pytest.mark.parametrize("shape", [(7, 5), (5, 7)])
def test_the_score_is_the_best_rank_one_profile(shape):
    n, d = shape
    vectors = torch.linalg.qr(random(n * d, 4))[0]
    scores = window_scores(pairs_of(vectors), n)
    for mode in range(4):
        M = vectors[:, mode].reshape(n, d)
        values, sides = torch.linalg.eigh(M @ M.T)
        assert_close(scores[:, mode].abs(), sides[:, -1].abs() * values[-1].sqrt())
        assert scores[:, mode].abs().max() == scores[:, mode].max()
        residual = M - torch.outer(scores[:, mode], scores[:, mode]) @ M / values[-1]
        assert_close(residual.square().sum(), values[:-1].sum())


def test_a_number_of_windows_that_does_not_divide_the_vectors_is_refused():
    with pytest.raises(ValueError, match="n_windows=4 does not divide the 35 rows"):
        window_scores(pairs_of(random(35, 2)), 4)


def test_pca_scores_are_the_principal_coordinates():
    X = random(30, 6) * torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.2], dtype=F64) + 100
    scores = pca_scores(X, 4)
    variances, axes = torch.linalg.eigh(torch.cov(X.T))
    assert_close(scores.var(0), variances.flip(0)[:4])
    assert_close(scores.abs(), ((X - X.mean(0)) @ axes.flip(1)[:, :4]).abs())
    assert_close(pca_scores(X - 100, 4), scores)
    with pytest.raises(ValueError, match="k=7 must be between 1 and 6"):
        pca_scores(X, 7)
    with pytest.raises(ValueError, match="between 1 and 2"):
        pca_scores(X[:3], 3)


def test_random_directions_are_of_unit_length_centred_and_seeded():
    X = torch.cat([torch.eye(50, dtype=F64), torch.zeros(50, 50, dtype=F64)]) + 7
    scores = random_scores(X, 3, seed=0)
    assert_close(scores.mean(0), torch.zeros(3, dtype=F64), atol=1e-12, rtol=0)
    weights = scores[:50] - scores[50]
    assert_close(weights.square().sum(0), torch.ones(3, dtype=F64))
    assert_close(random_scores(X.float(), 3, seed=0), scores, rtol=0, atol=1e-4)
    assert (random_scores(X, 3, seed=1) - scores).abs().max() > 0.01
    with pytest.raises(ValueError, match="k=0"):
        random_scores(X, 0, seed=0)


# splits


def test_halves_are_disjoint_complete_and_keep_the_shares():
    strata = ["NOUN"] * 20 + ["VERB"] * 8 + ["DET"] * 5 + ["ADV"] * 2
    splits = stratified_halves(strata, 12, seed=0)
    assert len(splits) == 12
    for train, test in splits:
        assert sorted(train.tolist() + test.tolist()) == list(range(35))
        assert abs(len(train) - len(test)) <= 1
        assert train.tolist() == sorted(train.tolist())
        a, b = (Counter(strata[i] for i in half.tolist()) for half in (train, test))
        assert all(abs(a[tag] - b[tag]) <= 1 for tag in strata)
        assert a["NOUN"] == b["NOUN"] == 10 and a["ADV"] == b["ADV"] == 1
    assert len({tuple(train.tolist()) for train, _ in splits}) == 12
    again = stratified_halves(strata, 12, seed=0)
    assert all((a[0] == b[0]).all() for a, b in zip(splits, again, strict=True))


def test_a_stratum_of_one_window_is_refused():
    with pytest.raises(ValueError, match="these have one: ADV"):
        stratified_halves(["NOUN", "NOUN", "ADV"], 1, seed=0)
    with pytest.raises(ValueError, match="n_splits=0"):
        stratified_halves(["NOUN", "NOUN"], 0, seed=0)


# labels


def test_each_tag_is_a_label():
    labels = tag_labels(windows(["VERB", "NOUN", "VERB", "DET"]))
    assert labels.names == ["VERB", "NOUN", "DET"]
    assert labels.values.tolist() == [
        [True, False, False],
        [False, True, False],
        [True, False, False],
        [False, False, True],
    ]


def test_morphology_labels_pass_the_filters_at_their_edges():
    tags = ["NOUN"] * 100 + ["VERB"] * 100 + ["DET"] * 100
    features = [set() for _ in tags]
    words = [f"w{i}" for i in range(300)]

    def mark(name, rows):
        for row in rows:
            features[row].add(name)

    mark("Support=30", range(30))
    mark("Support=29", range(29))
    mark("Every=Yes", range(300))
    mark("Covers=Noun", range(90))  # purity 1, coverage .90: the tag in disguise
    mark("Covers=Less", range(89))  # coverage .89
    mark("Mixed=Yes", [*range(100), *range(100, 112)])  # coverage 1, purity .89
    mark("Mixed=Less", [*range(100), *range(100, 111)])  # purity .90
    mark("Few=11", range(200, 240))
    mark("Few=12", range(240, 280))
    for i, row in enumerate(range(200, 240)):
        words[row] = f"few{i % 11}"
    for i, row in enumerate(range(240, 280)):
        words[row] = f"twelve{i % 12}"
    mark("Share=Half", range(150, 190))
    mark("Share=More", range(149, 190))
    words[149:170] = ["Same"] * 21  # 20 of Share=Half's 40 words, 21 of Share=More's 41
    w = windows(tags, next_words=words, features=["|".join(sorted(f)) for f in features])
    kept = morphology_labels(w)
    assert kept.names == ["Mixed=Yes", "Covers=Less", "Few=12", "Share=Half", "Support=30"]
    assert kept.values[:, 1].nonzero().flatten().tolist() == list(range(89))
    loose = morphology_labels(w, min_support=29, redundancy=1.1, min_words=11, max_share=0.6)
    assert set(loose.names) == {n for f in features for n in f} - {"Every=Yes"}


def test_morphology_can_be_that_of_the_models_own_word():
    tags = ["NOUN", "VERB"] * 4
    w = windows(
        tags,
        features=["Number=Sing", ""] * 4,
        greedy_features=["Number=Plur", "Tense=Past", "", ""] * 2,
        greedy_words=list("abcdabca"),
    )
    few = dict(min_support=2, min_words=1, max_share=1.0)
    assert morphology_labels(w, **few).names == []  # Number=Sing is NOUN
    greedy = morphology_labels(w, of="greedy", **few)
    assert greedy.names == ["Number=Plur", "Tense=Past"]
    assert greedy.values[:, 0].tolist() == [True, False, False, False] * 2
    assert morphology_labels(w, of="greedy", **{**few, "min_words": 2}).names == []
    with pytest.raises(ValueError, match="of='both' must be"):
        morphology_labels(w, of="both")
    with pytest.raises(ValueError, match="0 features for 2 rows"):
        morphology_labels(windows(["NOUN", "VERB"]), of="greedy")


# ceilings and controls


def test_the_linear_probe_finds_a_direction_that_no_column_is():
    X = random(600, 30) * torch.logspace(-3, 3, 30, dtype=F64) + 5
    w = random(30, seed=1)
    unit = (X - X.mean(0)) / X.std(0)
    labels = torch.stack([unit @ w > 1, coin(600), torch.zeros(600).bool()], 1)
    scores = linear_probe_scores(X[:400], labels[:400], X[400:])
    g = grade(scores, labels[400:])
    assert g.auroc[0] > 0.98 and abs(g.auroc[1] - 0.5) < 0.1
    assert (scores[:, 2] == 0).all()


def test_the_table_is_add_one_smoothing_and_falls_back_on_the_rate():
    words = ["the", "the", "the", "a", "a", "ran", "ran", "ran"]
    tags = ["NOUN", "NOUN", "ADJ", "NOUN", "ADJ", "ADV", "ADV", "ADJ"]
    names = ["NOUN", "ADJ", "ADV", "PUNCT"]
    labels = torch.tensor([[t == n for n in names] for t in tags])
    table = table_scores(words, labels, ["the", "ran", "unseen"])
    p = [3 / 8, 3 / 8, 2 / 8, 0.0]
    seen = {"the": [2, 1, 0, 0], "ran": [0, 1, 2, 0]}
    expected = [
        [(c + 1) / (3 + 1 / q) if q else 0.0 for c, q in zip(seen[w], p, strict=True)] for w in seen
    ]
    assert_close(table, torch.tensor([*expected, p], dtype=F64))
    with pytest.raises(ValueError, match="7 words for the 8 rows"):
        table_scores(words[1:], labels, ["the"])


def test_with_equally_frequent_tags_the_table_is_the_textbooks():
    words, names = list("xxyyxyxy"), ["A", "B", "C", "D"]
    labels = torch.tensor([[i % 4 == f for f in range(4)] for i in range(8)])
    counts = {
        w: [sum(labels[i, f].item() for i in range(8) if words[i] == w) for f in range(4)]
        for w in "xy"
    }
    expected = [[(c + 1) / (4 + len(names)) for c in counts[w]] for w in "xy"]
    table = table_scores(words, labels, ["x", "y"])
    assert_close(table, torch.tensor(expected, dtype=F64))
    assert_close(table.sum(1), torch.ones(2, dtype=F64))


def test_no_metric_warns_of_labels_without_windows():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        average_precision(random(4, 1), torch.zeros(4, 1).bool())
