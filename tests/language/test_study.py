"""Baselines and tables against scikit-learn; files; the modes of a layer against a dense kernel."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.func import functional_call, jacrev
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from entk_helpers.language import study
from entk_helpers.language.scores import Labels, stratified_halves, tag_labels
from entk_helpers.language.study import baselines, layer_modes, load_study
from entk_helpers.language.tables import (
    BEST,
    CEILING,
    CHOSEN,
    FINAL,
    KERNEL,
    LOGITS,
    MLP,
    RANDOM,
    RESIDUAL,
    TABLE,
    tabulate,
)
from entk_helpers.language.windows import Windows

N, T, K = 24, 5, 3


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=90,  # more than there are windows
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        sliding_window=4,
        initializer_range=0.5,
        bos_token_id=1,
    )
    return Gemma3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def windows():
    generator = np.random.default_rng(0)
    tags = [("NOUN", "VERB", "ADV")[n % 3] for n in range(N)]
    features = [
        ("Number=Sing", "Number=Plur|Person=3", "")[n % 3 if n < 20 else 0] for n in range(N)
    ]
    words = [f"w{generator.integers(6)}" for _ in range(N)]
    ids = torch.as_tensor(generator.integers(3, 90, (N, T)))
    return Windows(ids, torch.ones_like(ids), words, words, words, tags, features, words,
                   list(range(N)), features)  # fmt: skip


def up_to_sign(a, b):
    a, b = (np.asarray(x) for x in (a, b))
    return np.allclose(a * np.sign((a * b).sum(0)), b, atol=1e-3 * np.abs(b).max())


def test_the_modes_of_a_layer_are_those_of_the_dense_logit_kernel(model, windows):
    name = "model.layers.1.mlp.down_proj.weight"
    weight = dict(model.named_parameters())[name].detach()

    def logits(w):
        return functional_call(model, {name: w}, kwargs={"input_ids": windows.input_ids}).logits[
            :, -1
        ]

    model.set_attn_implementation("eager")
    J = jacrev(logits)(weight).reshape(N * 90, -1).detach()
    values = torch.linalg.svdvals(J).square()[:K]
    result = layer_modes(model, windows, 1, pairs=K, tol=1e-5)
    torch.testing.assert_close(result.values, values, rtol=1e-5, atol=0)
    # The flattened kernel's eigenvectors in logit coordinates hold the same profiles of windows.
    vectors = torch.linalg.svd(J, full_matrices=False)[0][:, :K]
    for mode in range(K):
        U, s, _ = torch.linalg.svd(vectors[:, mode].reshape(N, 90), full_matrices=False)
        assert up_to_sign(result.scores[:, [mode]], U[:, :1] * s[0])
    assert result.layer == 1 and result.about["products"] > K


def test_baselines_are_principal_directions_of_what_the_model_computes(model, windows):
    scores, residual = baselines(model, windows, [0, 2], k=K, seed=5)
    with torch.no_grad():
        out = model(windows.input_ids, output_hidden_states=True)
    after_first = out.hidden_states[1][:, -1].numpy()
    assert np.allclose(residual[0], after_first)
    for found, X in (
        (scores[RESIDUAL][0], after_first),
        (scores[LOGITS][None], out.logits[:, -1].numpy()),
        (scores[FINAL][None], out.hidden_states[-1][:, -1].numpy()),
    ):
        assert up_to_sign(found, PCA(K).fit_transform(X))
    assert list(scores[MLP]) == list(scores[RANDOM]) == [0, 2]
    # Random directions are others at another layer, and see the same variance as the rows have.
    assert scores[RANDOM][0].shape == (N, K)
    assert not torch.allclose(scores[RANDOM][0], scores[RANDOM][2])


def by_hand(scores, labels, train, test):
    """AUROC and AP of the column and sign with the best AP on the train half, by scikit-learn."""
    tried = [(sign, k) for k in range(scores.shape[1]) for sign in (1, -1)]
    sign, k = max(
        tried, key=lambda c: average_precision_score(labels[train], c[0] * scores[train, c[1]])
    )
    chosen = sign * scores[test, k]
    return roc_auc_score(labels[test], chosen), average_precision_score(labels[test], chosen), k


@pytest.fixture(scope="module")
def graded(windows):
    generator = torch.Generator().manual_seed(1)
    values = {n: torch.randn(N, K, generator=generator, dtype=torch.float64) for n in (0, 1, 4)}
    residual = {n: torch.randn(N, 6, generator=generator, dtype=torch.float64) for n in (0, 1, 4)}
    families = {"tags": tag_labels(windows), "empty": Labels([], torch.ones(N, 0).bool())}
    return values, tabulate(windows, {KERNEL: values}, residual, families, splits=3, seed=2)


def test_tables_follow_the_protocol(windows, graded):
    values, tables = graded
    rows = {(row["method"], row["layer"]): row for row in tables["rows"]}
    halves = stratified_halves(windows.tags, 3, 2)
    is_noun = np.array([tag == "NOUN" for tag in windows.tags])
    train, test = (h.numpy() for h in halves[0])
    for layer, scores in values.items():
        row = rows[KERNEL, layer]
        auroc, ap, _ = by_hand(scores.numpy(), is_noun, train, test)
        assert row["auroc"]["NOUN"] == pytest.approx(auroc, abs=1e-6)
        assert row["ap"]["NOUN"] == pytest.approx(ap, abs=1e-6)
        assert row["macro_auroc"][0] == pytest.approx(
            np.mean(list(row["auroc"].values())), abs=1e-6
        )
        assert len(row["macro_ap"]) == len(row["macro_auroc"]) == 3
    every = torch.cat(list(values.values()), 1).numpy()
    auroc, _, column = by_hand(every, is_noun, train, test)
    assert rows[KERNEL, CHOSEN]["auroc"]["NOUN"] == pytest.approx(auroc, abs=1e-6)
    assert rows[KERNEL, CHOSEN]["layer_of"]["NOUN"] == [0, 1, 4][column // K]
    best = max((0, 1, 4), key=lambda n: rows[KERNEL, n]["macro_auroc"][0])
    assert rows[KERNEL, BEST]["best_layer"] == best
    assert rows[KERNEL, BEST]["macro_ap"] == rows[KERNEL, best]["macro_ap"]


def test_ceiling_and_control_are_in_the_tables(graded):
    rows = {(row["method"], row["layer"]): row for row in graded[1]["rows"]}
    assert {n: len(rows[CEILING, n]["macro_ap"]) for n in (0, 1, 4)} == {0: 1, 1: 1, 4: 3}
    assert len(rows[TABLE, None]["macro_ap"]) == 3
    assert graded[1]["labels"] == {"tags": {"NOUN": 8, "VERB": 8, "ADV": 8}, "empty": {}}


def test_labels_themselves_are_graded_perfectly(windows):
    labels = tag_labels(windows)
    truth = {KERNEL: {0: labels.values.double() - 2}}
    (row, *_) = tabulate(windows, truth, {}, {"tags": labels}, splits=2)["rows"]
    assert row["macro_auroc"] == row["macro_ap"] == [1.0, 1.0]


def test_a_study_comes_back_from_its_files(windows, graded, tmp_path):
    values, tables = graded
    others = {RESIDUAL: {n: v + 1 for n, v in values.items()}, LOGITS: {None: values[0] + 2}}
    residual = {n: v.float() * 3 for n, v in values.items()}
    study.write_json(tmp_path / "settings.json", {"seed": 7})
    study.write_windows(tmp_path, windows)
    study.write_baselines(tmp_path, others, residual)
    for n, v in values.items():
        result = study.LayerResult(n, v[:K, 0], v[:K, 1], v, {"seconds": 1.5})
        study.write_layer(tmp_path, result)
    with pytest.raises(ValueError, match=r"no finished study \(it has no tables.json\)"):
        load_study(tmp_path)
    study.write_json(tmp_path / "tables.json", {"layers": [0, 1, 4]} | tables)
    assert study.finished_layers(tmp_path) == [0, 1, 4]
    back = load_study(tmp_path)
    assert back.settings == {"seed": 7} and back.tables["rows"] == tables["rows"]
    assert torch.equal(back.windows.input_ids, windows.input_ids)
    assert back.windows.texts == windows.texts and back.windows.tags == windows.tags
    assert list(back.scores) == [KERNEL, LOGITS, RESIDUAL]
    assert torch.equal(back.scores[KERNEL][4], values[4])
    assert torch.equal(back.scores[LOGITS][None], (values[0] + 2).float())
    assert list(back.residual) == [0, 1, 4] and torch.equal(back.residual[1], residual[1])
    assert back.layers[4].about == {"seconds": 1.5}
    assert not list(tmp_path.glob(".*"))


def test_a_layer_with_one_of_its_files_is_not_finished(tmp_path):
    (tmp_path / "layer_03.json").write_text("{}")
    (tmp_path / "layer_05.safetensors").write_text("")
    assert study.finished_layers(tmp_path) == []


def test_a_file_that_was_cut_off_is_named(tmp_path):
    (tmp_path / "settings.json").write_text('{"seed": ')
    with pytest.raises(ValueError, match=r"settings.json is not whole JSON"):
        study.read_json(tmp_path / "settings.json")
