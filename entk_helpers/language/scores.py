"""One number per window from each direction, and how well it tells labels apart.

The protocol is the paper's (version 4, section 5): for each label the direction, and its sign,
that rank it best on one half of the windows are graded on the other half. N windows, k
directions (modes), F labels; labels are 0 or 1 and may overlap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..inputs import require_finite
from ..mode import full_precision
from ..spectrum import Eigenpairs
from .windows import Windows


@full_precision()
def window_scores(pairs: Eigenpairs, n_windows: int) -> Float[Tensor, "N k"]:
    """Return one signed number per window from each eigenvector of a `LogitKernel`.

    An eigenvector has one entry for each window and each of the d logit directions. Reshaped
    to (N, d), its best approximation of rank one is (score of the window) x (unit vector of d):
    the score is the top left singular vector times its singular value. A sign is arbitrary: the
    score of largest magnitude is made positive. float64, on the CPU. Raises ValueError where
    `n_windows` does not divide the vectors' length.

    Examples:
        >>> vector = torch.tensor([[0.0], [0.6], [0.0], [0.8]])  # two windows, one direction
        >>> window_scores(Eigenpairs(torch.ones(1), vector, torch.zeros(1)), n_windows=2)
        tensor([[0.6000],
                [0.8000]], dtype=torch.float64)
    """
    rows, k = pairs.vectors.shape
    if n_windows < 1 or rows % n_windows:
        raise ValueError(
            f"n_windows={n_windows} does not divide the {rows} rows of pairs.vectors; pass the "
            "number of windows that the kernel was made of"
        )
    vectors = require_finite(pairs.vectors, "pairs.vectors").detach().cpu().double()
    scores = torch.empty(n_windows, k, dtype=torch.float64)
    for mode in range(k):
        U, s, _ = torch.linalg.svd(vectors[:, mode].reshape(n_windows, -1), full_matrices=False)
        scores[:, mode] = _largest_positive(U[:, :1] * s[0])[:, 0]
    return scores


@full_precision()
def pca_scores(X: Float[Tensor, "N D"], k: int) -> Float[Tensor, "N k"]:
    """Return the coordinates of the centred rows along their top k principal directions.

    The paper's baseline, on the last token's activations. float64, on the CPU; descending
    variance; the score of largest magnitude is positive. Raises ValueError for k beyond
    min(N - 1, D), the rank that centred rows can have.

    Examples:
        >>> X = torch.tensor([[0.0, 7.0], [1.0, 7.0], [5.0, 7.0]])
        >>> pca_scores(X, k=1)  # the first column less its mean, 2
        tensor([[-2.0000],
                [-1.0000],
                [ 3.0000]], dtype=torch.float64)
    """
    most = min(len(X) - 1, X.shape[1])
    if not 1 <= k <= most:
        raise ValueError(
            f"k={k} must be between 1 and {most}: X is {tuple(X.shape)} before centring"
        )
    U, s, _ = torch.linalg.svd(_centred(X), full_matrices=False)
    return _largest_positive(U[:, :k] * s[:k])


def random_scores(X: Float[Tensor, "N D"], k: int, seed: int) -> Float[Tensor, "N k"]:
    """Return the coordinates of the centred rows along k random unit directions.

    The null of `pca_scores`: what as many directions reach that know nothing.

    Examples:
        >>> X = torch.tensor([[0.0, 7.0], [1.0, 7.0], [5.0, 7.0]])
        >>> scores = random_scores(X, k=3, seed=0)
        >>> scores.shape, scores.sum(0).abs().max().item() < 1e-6  # centred
        (torch.Size([3, 3]), True)
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(X.shape[1], k, generator=generator, dtype=torch.float64)
    return _centred(X) @ (directions / directions.norm(dim=0))


# scikit-learn's metrics take one column of scores and one of labels a call, 0.6 ms each. 25 modes
# of both signs and 20 labels are a thousand calls for each split of the windows; the two functions
# below need 4 ms for all of them (192 windows). scikit-learn is their oracle in the tests.


def average_precision(
    scores: Float[Tensor, "N k"], labels: Bool[Tensor, "N F"]
) -> Float[Tensor, "k F"]:
    """Return the average precision of each column of scores for each label.

    The sum over thresholds of (gain in recall) x (precision), as scikit-learn defines it: equal
    scores are one threshold, so no order of the windows matters. Chance, and a constant score,
    reach the label's prevalence. NaN for a label that no window has.

    Examples:
        >>> scores = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
        >>> labels = torch.tensor([[True], [False], [True], [False]])
        >>> average_precision(scores, labels)  # 1/2 * 1 + 1/2 * 2/3
        tensor([[0.8333]], dtype=torch.float64)
    """
    scores, labels = _rows(scores, labels)
    return _average_precision(scores[:, None], labels)


def auroc(scores: Float[Tensor, "N k"], labels: Bool[Tensor, "N F"]) -> Float[Tensor, "k F"]:
    """Return the area under the ROC curve of each column of scores for each label.

    The chance that a window with the label scores above one without it; ties count one half.
    Chance is 1/2. NaN for a label that all windows have, or none.

    Examples:
        >>> scores = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
        >>> labels = torch.tensor([[True], [False], [True], [False]])
        >>> auroc(scores, labels)  # 3 of 4 pairs are in order
        tensor([[0.7500]], dtype=torch.float64)
    """
    scores, labels = _rows(scores, labels)
    return _auroc(scores[:, None], labels)


@dataclass(frozen=True)
class Grades:
    """How well one score per label tells the label's windows from the others.

    `precision` is the share of windows with the label among the `quota` best, where the quota is
    the number of windows with the label; `enrichment` is that over the label's prevalence, 1 by
    chance. Windows tied at the quota's edge count by their share. A label that all of the
    windows have, or none of them, is NaN in each.
    """

    ap: Float[Tensor, " F"]
    auroc: Float[Tensor, " F"]
    precision: Float[Tensor, " F"]
    enrichment: Float[Tensor, " F"]
    quota: Int[Tensor, " F"]

    @property
    def macro_ap(self) -> float:
        """Mean average precision over the labels that have one."""
        return float(self.ap.nanmean())

    @property
    def macro_auroc(self) -> float:
        """Mean area under the ROC curve over the labels that have one."""
        return float(self.auroc.nanmean())


@dataclass(frozen=True)
class Probe(Grades):
    """`Grades` on the test half of the direction that each label chose on the train half.

    `mode` is its column, `sign` is +1 or -1, `train_ap` the average precision that chose it. A
    label that all windows of the train half have, or none, chooses nothing: mode -1, sign 0, and
    NaN grades.
    """

    mode: Int[Tensor, " F"]
    sign: Int[Tensor, " F"]
    train_ap: Float[Tensor, " F"]


def grade(scores: Float[Tensor, "N F"], labels: Bool[Tensor, "N F"]) -> Grades:
    """Grade column f of the scores, say of a classifier, against column f of the labels.

    Examples:
        >>> scores = torch.tensor([[4.0], [3.0], [2.0], [1.0]])
        >>> labels = torch.tensor([[True], [False], [True], [False]])
        >>> grades = grade(scores, labels)
        >>> grades.macro_auroc, grades.precision.item()  # 1 of the best 2 has the label
        (0.75, 0.5)
    """
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must have the same "
            "shape, a column a label; for all pairs of columns use average_precision and auroc"
        )
    s, y = _rows(scores, labels)
    quota = y.sum(-1)
    mixed = (quota > 0) & (quota < y.shape[-1])
    precision = torch.where(mixed, _precision_at(s, y, quota), torch.nan)
    return Grades(
        ap=torch.where(mixed, _average_precision(s, y), torch.nan),
        auroc=_auroc(s, y),
        precision=precision,
        enrichment=precision * y.shape[-1] / quota,
        quota=quota,
    )


def probe(
    scores_train: Float[Tensor, "n k"],
    labels_train: Bool[Tensor, "n F"],
    scores_test: Float[Tensor, "m k"],
    labels_test: Bool[Tensor, "m F"],
) -> Probe:
    """Choose a direction and its sign for each label on one half; grade them on the other.

    The choice is the best average precision on the train half, the first of equal ones. With
    2 k candidates, even random directions reach more than chance: compare with `random_scores`
    of as many.

    Examples:
        >>> labels = torch.tensor([[True], [False], [True], [False]])
        >>> scores = torch.tensor([[1.0, -1.0], [2.0, 1.0], [2.0, -2.0], [1.0, 2.0]])
        >>> chosen = probe(scores, labels, scores, labels)
        >>> chosen.mode, chosen.sign, chosen.ap  # the second direction, turned around
        (tensor([1]), tensor([-1]), tensor([1.], dtype=torch.float64))
    """
    if scores_train.shape[1] != scores_test.shape[1] or scores_train.shape[1] < 1:
        raise ValueError(
            f"scores_train {tuple(scores_train.shape)} and scores_test {tuple(scores_test.shape)} "
            "must have the same columns, one or more"
        )
    if labels_train.shape[1] != labels_test.shape[1]:
        raise ValueError(
            f"labels_train {tuple(labels_train.shape)} and labels_test "
            f"{tuple(labels_test.shape)} must have the same columns"
        )
    both = torch.stack([scores_train, -scores_train], 2).flatten(1)
    ap = average_precision(both, labels_train)
    count = labels_train.sum(0).to(ap.device)
    undecided = (count == 0) | (count == len(labels_train))
    train_ap, choice = ap.nan_to_num(-1.0).max(0)
    mode, sign = choice // 2, 1 - 2 * (choice % 2)
    grades = grade(scores_test[:, mode] * sign, labels_test)
    blank = {
        name: value.masked_fill(undecided, torch.nan)
        for name, value in vars(grades).items()
        if name != "quota"
    }
    return Probe(
        **blank,
        quota=grades.quota,
        mode=mode.masked_fill(undecided, -1),
        sign=sign.masked_fill(undecided, 0),
        train_ap=train_ap.masked_fill(undecided, torch.nan),
    )


def stratified_halves(
    strata: Sequence[str], n_splits: int, seed: int
) -> list[tuple[Int[Tensor, " n"], Int[Tensor, " m"]]]:
    """Split the windows at random into two halves with the same share of each stratum, often.

    `strata` has one entry per window, as `windows.tags`. Each split is (train, test), the
    sorted numbers of its windows; a stratum of odd size gives its last window to either.
    Raises ValueError for a stratum of a single window, which cannot be in both.

    Examples:
        >>> tags = ["NOUN"] * 4 + ["VERB"] * 2
        >>> ((train, test),) = stratified_halves(tags, n_splits=1, seed=0)
        >>> len(train), len(test), int((train >= 4).sum())  # one of the verbs
        (3, 3, 1)
    """
    from sklearn.model_selection import StratifiedShuffleSplit

    if n_splits < 1:
        raise ValueError(f"n_splits={n_splits} must be at least 1")
    names, codes, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    if len(names) == 0 or counts.min() < 2:
        single = ", ".join(map(str, names[counts < 2])) or "none at all"
        raise ValueError(
            f"strata must have at least two windows each, but these have one: {single}; draw "
            "more windows or leave these out"
        )
    halves = StratifiedShuffleSplit(n_splits, test_size=0.5, random_state=seed)
    return [
        (torch.as_tensor(np.sort(train)), torch.as_tensor(np.sort(test)))
        for train, test in halves.split(codes, codes)
    ]


@dataclass(frozen=True)
class Labels:
    """F named yes-or-no properties of N windows: `values[n, f]` says if window n has names[f]."""

    names: list[str]
    values: Bool[Tensor, "N F"]


def tag_labels(windows: Windows) -> Labels:
    """Return a label for each tag of the next word, in order of first appearance.

    Examples:
        >>> ids, none = torch.zeros(3, 2, dtype=torch.long), [""] * 3
        >>> tags = ["NOUN", "VERB", "NOUN"]
        >>> windows = Windows(ids, ids, none, none, none, tags, none, none, [0, 1, 2])
        >>> labels = tag_labels(windows)
        >>> labels.names, labels.values.int().tolist()
        (['NOUN', 'VERB'], [[1, 0], [0, 1], [1, 0]])
    """
    names = list(dict.fromkeys(windows.tags))
    return Labels(names, torch.tensor([[tag == name for name in names] for tag in windows.tags]))


def morphology_labels(
    windows: Windows,
    *,
    of: str = "next",
    min_support: int = 30,
    redundancy: float = 0.9,
    min_words: int = 12,
    max_share: float = 0.5,
) -> Labels:
    """Return a label for each feature of the next word ("Number=Sing") that is worth a test.

    `of` is "next" for the word of the text, "greedy" for the word that the model would have
    written, as in the published notebook. The filters are the published ones. A label stays if

    - at least `min_support` windows have it, but not all;
    - it is not one tag in disguise: its commonest tag holds less than `redundancy` of its windows
      (purity), or it holds less than `redundancy` of that tag's windows (coverage);
    - its windows have at least `min_words` distinct next words, as they are spelt, and none of
      them takes more than `max_share`.

    Most frequent first, then by name. Two labels may still coincide, as Mood=Ind and
    VerbForm=Fin can. A small vocabulary needs smaller thresholds.

    Examples:
        >>> ids, none = torch.zeros(4, 2, dtype=torch.long), [""] * 4
        >>> words, tags = ["cat", "dog", "cats", "run"], ["NOUN"] * 3 + ["VERB"]
        >>> features = ["Number=Sing"] * 2 + ["Number=Plur", ""]
        >>> windows = Windows(ids, ids, none, none, words, tags, features, none, [0, 1, 2, 3])
        >>> morphology_labels(windows, min_support=1, min_words=2).names
        ['Number=Sing']
    """
    sources = {
        "next": (windows.next_words, windows.features),
        "greedy": (windows.greedy_words, windows.greedy_features),
    }
    if of not in sources:
        raise ValueError(f'of={of!r} must be "next" or "greedy"')
    words, features = sources[of]
    if len(features) != len(windows):
        raise ValueError(
            f"of={of!r}: windows have {len(features)} features for {len(windows)} rows"
        )
    rows: dict[str, list[int]] = {}
    for n, entry in enumerate(features):
        for name in filter(None, entry.split("|")):
            rows.setdefault(name, []).append(n)
    per_tag = Counter(windows.tags)

    def keep(index: list[int]) -> bool:
        """Whether a label with these windows passes the filters."""
        support = len(index)
        tag, same = Counter(windows.tags[n] for n in index).most_common(1)[0]
        surface = Counter(words[n] for n in index)
        return (
            min_support <= support < len(windows)
            and not (same >= redundancy * support and same >= redundancy * per_tag[tag])
            and len(surface) >= min_words
            and surface.most_common(1)[0][1] <= max_share * support
        )

    names = sorted((name for name in rows if keep(rows[name])), key=lambda x: (-len(rows[x]), x))
    values = torch.zeros(len(windows), len(names), dtype=torch.bool)
    for f, name in enumerate(names):
        values[rows[name], f] = True
    return Labels(names, values)


def linear_probe_scores(
    X_train: Float[Tensor, "n D"],
    labels_train: Bool[Tensor, "n F"],
    X_test: Float[Tensor, "m D"],
    *,
    C: float = 0.1,
) -> Float[Tensor, "m F"]:
    """Return a ceiling: each label's logistic regression on all D activations together.

    One fit a label on standardised activations, with an L2 penalty of strength 1 / C; `grade`
    takes the decision values. Zeros for a label that all train windows have, or none.

    Examples:
        >>> X = torch.tensor([[-1.0], [-2.0], [1.0], [2.0]])
        >>> linear_probe_scores(X, X > 0, torch.tensor([[-3.0], [3.0]])) > 0
        tensor([[False],
                [ True]])
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    X, y, Z = (t.detach().cpu().numpy() for t in (X_train, labels_train, X_test))
    scores = np.zeros((len(Z), y.shape[1]))
    for f in np.flatnonzero(y.any(0) & ~y.all(0)):
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=2000))
        scores[:, f] = fit.fit(X, y[:, f]).decision_function(Z)
    return torch.as_tensor(scores)


def table_scores(
    words_train: Sequence[str], labels_train: Bool[Tensor, "n F"], words_test: Sequence[str]
) -> Float[Tensor, "m F"]:
    """Return a control that reads one word: P(label | last word), counted on the train half.

    `words_train` and `words_test` are the windows' `last_words`. Add-one smoothing at the label's
    own rate p: (c + 1) / (n + 1/p) for a word that was seen n times, c of them with the label. With
    eight tags equally often this is (c + 1) / (n + 8); an unseen word gets p.

    Examples:
        >>> labels = torch.tensor([[True], [False], [False]])
        >>> table_scores(["the", "the", "a"], labels, ["the", "new"])  # 2/5, and 1/3
        tensor([[0.4000],
                [0.3333]], dtype=torch.float64)
    """
    labels = labels_train.detach().cpu().double()
    if len(words_train) != len(labels):
        raise ValueError(
            f"words_train has {len(words_train)} words for the {len(labels)} rows of labels_train"
        )
    rows: dict[str, list[int]] = {}
    for n, word in enumerate(words_train):
        rows.setdefault(word, []).append(n)
    p = labels.mean(0)
    # Multiplied by p above and below, so that a label without a window has probability 0.
    table = {
        word: p * (labels[index].sum(0) + 1) / (p * len(index) + 1) for word, index in rows.items()
    }
    return torch.stack([table.get(word, p) for word in words_test])


def _centred(X: Tensor) -> Tensor:
    X = require_finite(X, "X").detach().cpu().double()
    return X - X.mean(0)


def _largest_positive(columns: Tensor) -> Tensor:
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    return columns * torch.where(largest < 0, -1.0, 1.0).to(columns)


def _rows(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and labels with the windows last, where sorting and summing are fastest."""
    if len(scores) != len(labels) or len(scores) == 0:
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must have the same "
            "number of rows, one a window, and at least one"
        )
    scores = require_finite(scores, "scores").detach().double()
    return scores.T.contiguous(), labels.to(scores.device).T.contiguous()


def _at_least(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The order of descending scores, and how many reach each score in that order."""
    ordered, order = (-scores).sort(-1)
    return order, torch.searchsorted(ordered, ordered, right=True)


def _average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    order, reach = _at_least(scores)
    shape = torch.broadcast_shapes(scores.shape, labels.shape)
    y = labels.expand(shape).gather(-1, order.expand(shape))
    hits = y.cumsum(-1).gather(-1, (reach - 1).expand(shape))
    return (y * (hits / reach.double())).sum(-1) / y.sum(-1)


def _auroc(scores: Tensor, labels: Tensor) -> Tensor:
    ordered = scores.sort(-1).values
    # The mean rank of equal scores, from 1; Mann and Whitney's U counts the pairs in order.
    rank = (
        torch.searchsorted(ordered, scores) + torch.searchsorted(ordered, scores, right=True) + 1
    ) / 2
    y = labels.double()
    positive, negative = y.sum(-1), (1 - y).sum(-1)
    U = torch.linalg.vecdot(rank.double(), y) - positive * (positive + 1) / 2
    return U / (positive * negative)


def _precision_at(scores: Tensor, labels: Tensor, quota: Tensor) -> Tensor:
    edge = scores.sort(-1, descending=True).values.gather(-1, (quota - 1).clamp(min=0)[:, None])
    above, tied = scores > edge, scores == edge
    open_places = quota - above.sum(-1)
    share = open_places.double() / tied.sum(-1)
    return ((above & labels).sum(-1) + (tied & labels).sum(-1) * share) / quota
