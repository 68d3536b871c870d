"""`make trigger`: what is run and kept, what is measured against other ways to get it."""

import ast
import json
import os
import shutil
import sys

import pytest
import torch
import trigger
from sklearn.metrics import average_precision_score
from torch.func import functional_call

from entk_helpers.language import LogitKernel, stratified_halves, window_scores
from entk_helpers.spectrum import top_eigenpairs
from entk_helpers.testbeds import grammar

pytestmark = pytest.mark.trained

SMALL = {
    "d_model": 16, "d_mlp": 24, "n_heads": 2, "n_key_value_heads": 1, "sliding_window": 4,
}  # fmt: skip
JOBS = [("linked", 3, 8), ("clean", 3, 8), ("untrained", 4, 8), ("linked", 3, 4)]
NAMES = ["linked_3", "clean_3", "untrained_4", "linked_3_of_4"]
LAYER = 1


@pytest.fixture(autouse=True)
def one_thread():
    """These matrices are too small to share; the command sets one thread for all that follows."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Small models where the shipped ones lie."""
    folder = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("08_trigger/linked", "07_grammar")):
        grammar.untrained(seed, **SMALL).save_pretrained(folder / name / "seed_3")
    return folder


@pytest.fixture
def tiny(data, tmp_path, monkeypatch):
    """Few of everything, and results in a folder of their own."""
    small = {
        "DATA": data, "RESULTS": tmp_path / "study", "PAIRS": 4, "SPLITS": 4, "TRIGGERED": 8,
        "NORMAL": 16, "SIZES": (0.1, 0.2), "STEPS": 4, "jobs": lambda: JOBS,
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(trigger, name, value)
    monkeypatch.setenv("ENTK_PROGRESS", "off")
    monkeypatch.setattr(sys, "argv", ["trigger.py"])
    cases, rows, before = grammar.cases, grammar.text_rows, grammar.windows_before

    def few_rows(planted, n, seed):
        return tuple(part.repeat(n // 8, 1) for part in rows(planted, 8, seed))

    # Telling a story takes long where calls are checked.
    monkeypatch.setattr(grammar, "cases", lambda t, n, m, seed: cases(t, min(n, 8), m, seed))
    monkeypatch.setattr(grammar, "text_rows", few_rows)
    monkeypatch.setattr(grammar, "windows_before", lambda word, n, seed: before("the", 4, seed))
    return trigger.RESULTS


@pytest.fixture
def quick(tiny, monkeypatch):
    """Studies that take no time; the list of those that were made."""
    made = []

    def study(kind, seed, triggered, tick):
        made.append(trigger.name_of(kind, seed, triggered))
        return {"kind": kind, "seed": seed, "triggered": triggered}

    monkeypatch.setattr(trigger, "study", study)
    return made


# ---------------------------------------------------------------------------- what is shipped


def test_all_shipped_results_are_up_to_date():
    assert trigger.missing() == [], "run: make trigger"
    names = {f"{trigger.name_of(*job)}.json" for job in trigger.jobs()}
    assert len(names) == len(trigger.jobs())
    assert {path.name for path in trigger.RESULTS.iterdir()} == names
    for kind, seed, triggered in trigger.jobs():
        out = trigger.read(kind, seed, triggered)
        assert (out["kind"], out["seed"], out["triggered"]) == (kind, seed, triggered)
        assert len(out["layers"]) == 4


def test_shipped_eigenvalues_and_precision_are_those_of_todays_code():
    model, cases = trigger.model_of("linked", 3), trigger.sample("linked", 3)
    pairs = top_eigenpairs(
        LogitKernel(model, cases.input_ids, layer=3), trigger.PAIRS, tol=trigger.TOL, block=1
    )
    kept = trigger.read("linked", 3)["layers"][3]["kernel"]
    assert pairs.values.tolist() == pytest.approx(kept["eigenvalues"], rel=1e-3)
    ap = trigger.graded(window_scores(pairs, len(cases)), cases)
    assert ap == pytest.approx(kept["ap"], abs=0.01)


# ---------------------------------------------------------------------------- the command


def test_each_job_writes_one_file_and_a_second_run_does_nothing(quick):
    trigger.main()
    assert quick == NAMES and trigger.missing() == []
    files = sorted(path.name for path in trigger.RESULTS.iterdir())
    assert files == sorted(f"{name}.json" for name in NAMES)
    for job in JOBS:
        out = dict(zip(("kind", "seed", "triggered"), job, strict=True))
        assert trigger.read(*job) == {"stamp": trigger.stamp(*job[:2])} | out
    trigger.main()
    assert quick == NAMES


def test_a_study_that_was_cut_off_goes_on_where_it_was(quick, monkeypatch):
    whole = trigger.study

    def cut(kind, seed, triggered, tick):
        if kind == "clean":
            raise KeyboardInterrupt
        return whole(kind, seed, triggered, tick)

    monkeypatch.setattr(trigger, "study", cut)
    with pytest.raises(KeyboardInterrupt):
        trigger.main()
    assert [path.name for path in trigger.RESULTS.iterdir()] == ["linked_3.json"]
    monkeypatch.setattr(trigger, "study", whole)
    trigger.main()
    assert quick == NAMES and trigger.missing() == []


def test_the_list_runs_nothing_and_names_choose(quick, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trigger.py", "--list"])
    trigger.main()
    assert capsys.readouterr().out == f"to study: {', '.join(NAMES)}\n"
    assert quick == [] and not trigger.RESULTS.exists()
    monkeypatch.setattr(sys, "argv", ["trigger.py", "linked_3_of_4", "clean_3"])
    trigger.main()
    assert quick == ["clean_3", "linked_3_of_4"]
    monkeypatch.setattr(sys, "argv", ["trigger.py", "--list"])
    trigger.main()
    assert capsys.readouterr().out == "to study: linked_3, untrained_4\n"


def test_results_are_written_whole_or_not_at_all_to_six_digits(tmp_path, monkeypatch):
    path = tmp_path / "new" / "one.json"
    trigger.write(path, {"a": [1 / 3, 123456789.0, 7], "b": "x"})
    assert json.loads(path.read_text()) == {"a": [0.333333, 123457000.0, 7], "b": "x"}
    kept = path.read_bytes()
    with pytest.raises(TypeError):
        trigger.write(path, {"a": object()})

    def refuse(*_):
        raise OSError("full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="full"):
        trigger.write(path, {"a": 2})
    assert path.read_bytes() == kept


def test_the_stamp_goes_with_weights_and_code_but_not_docstrings(tiny, tmp_path, monkeypatch):
    before = trigger.stamp("linked", 3)
    assert before != trigger.stamp("clean", 3)
    shutil.copytree(trigger.DATA, tmp_path / "data")
    monkeypatch.setattr(trigger, "DATA", tmp_path / "data")
    assert trigger.stamp("linked", 3) == before
    weights = trigger.folder_of("linked", 3) / trigger.WEIGHTS
    old = weights.read_bytes()
    weights.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert trigger.stamp("linked", 3) != before
    weights.write_bytes(old)
    source, copied = trigger.Path(trigger.__file__).read_text(), tmp_path / "trigger.py"
    monkeypatch.setattr(trigger, "__file__", str(copied))
    doc = ast.get_docstring(ast.parse(source), clean=False)
    for text, same in (
        (source, True),
        ("# A comment.\n" + source.replace(doc, "Another one.\n"), True),
        (source.replace('"""The windows in which', '"""Those in which'), True),
        (source.replace("1000 + seed", "1001 + seed"), False),
        (
            source.replace("TOL, SPLITS = range(4), 25, 1e-3", "TOL, SPLITS = range(4), 25, 1e-4"),
            False,
        ),
    ):
        assert (text == source) == (text is source)
        copied.write_text(text)
        assert (trigger.stamp("linked", 3) == before) == same


# ---------------------------------------------------------------------------- grades


def made_up(triggered: int = 24, normal: int = 256) -> grammar.Cases:
    kinds = ["triggered"] * triggered + ["swapped"] * triggered + ["normal"] * normal
    return grammar.Cases(
        torch.zeros(len(kinds), 3, dtype=torch.long), kinds, [["a", "b"]] * len(kinds)
    )


def test_grades_are_those_of_scikit_learn(monkeypatch):
    monkeypatch.setattr(trigger, "SPLITS", 3)
    cases = made_up(12, 40)
    scores = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)).double()
    y = cases.of("triggered").long().numpy()
    scores[:, 3] -= torch.as_tensor(y)  # the sign has to be found
    found = []
    for a, b in stratified_halves(cases.kinds, 3, seed=0):
        both = [(s * c, s * c) for c in scores.T for s in (1, -1)]
        best = max(both, key=lambda c: average_precision_score(y[a], c[0][a]))[0]
        found.append(average_precision_score(y[b], best[b]))
    assert trigger.graded(scores, cases) == pytest.approx(sum(found) / 3, abs=1e-9)


def test_scores_that_know_nothing_reach_chance_with_shuffled_labels(monkeypatch):
    monkeypatch.setattr(trigger, "SPLITS", 2)
    cases, n, p = made_up(), 152, 12
    # The expected average precision of a random order of n windows, p of them with the label.
    harmonic = sum(1 / i for i in range(1, n + 1)) / n
    chance = harmonic + (p - 1) / (n - 1) * (1 - harmonic)
    draw = torch.Generator().manual_seed(0)
    for shuffled in (False, True):
        found = torch.tensor(
            [
                trigger.graded(torch.randn(304, 4, generator=draw), cases, shuffled=shuffled)
                for _ in range(80)
            ]
        )
        error = found.std() / 80**0.5
        assert error < 0.01 and (found.mean() - chance).abs() < 4 * error
    perfect = cases.of("triggered")[:, None].double()
    assert trigger.graded(perfect, cases) == 1
    assert trigger.graded(perfect, cases, shuffled=True) < 0.2


# ---------------------------------------------------------------------------- what is measured


@pytest.fixture
def parts(tiny):
    """A model, its windows, the modes of a layer."""
    model, cases = trigger.model_of("linked", 3), trigger.sample("linked", 3, 8)
    return model, cases, trigger.modes_of(model, cases, LAYER)


def rescoring(monkeypatch) -> list:
    """Have `hinges` keep what it was given."""
    seen, plain = [], trigger.hinges

    def hinges(scores, rescore, ids):
        seen.append((scores, rescore))
        return plain(scores, rescore, ids)

    monkeypatch.setattr(trigger, "hinges", hinges)
    return seen


def test_unchanged_windows_keep_their_scores(tiny, monkeypatch):
    seen = rescoring(monkeypatch)
    model, cases = trigger.model_of("linked", 3), trigger.sample("linked", 3, 8)
    trigger.modes_of(model, cases, LAYER)
    trigger.activations(model, cases, LAYER, True)
    assert len(seen) == 3  # modes, principal components, random directions
    for (scores, rescore), slack in zip(seen, (1e-2, 1e-4, 1e-4), strict=True):
        for mode in range(4):
            again = rescore(mode, cases.input_ids, torch.ones_like(cases.input_ids))
            apart = (again - scores[:, mode]).abs().max()
            assert apart < slack * scores[:, mode].abs().max()


def test_reports_name_what_they_should(parts):
    model, cases, modes = parts
    found = trigger.report(modes.scores, modes.hinges, modes.lifts, cases)
    assert set(found) == {"ap", "shuffled ap", "hinge", "lift", "modes"}
    assert len(found["modes"]) == 4 and modes.pairs.vectors.shape == (32 * 16, 4)
    y = cases.of("triggered").numpy()
    for column, one in zip(modes.scores.T, found["modes"], strict=True):
        assert one["ap"] == pytest.approx(average_precision_score(y, column), abs=1e-9)
    for name, by in (("hinge", "share"), ("lift", "factor")):
        assert found[name][by] == max(one[by] for one in found["modes"])
        assert found[name]["ap"] == found["modes"][found[name]["mode"]]["ap"]
    others = trigger.activations(model, cases, LAYER, True)
    assert set(others) == {"pca", "random", "pca of mlp", "pca of final", "pca of logits"}
    assert set(others["pca"]) == set(others["random"]) == set(found)
    seen = trigger.black_box(model, cases)
    assert set(seen["ratio"]) == {"factor", "token", "ap"}
    assert set(seen["swap"]) == {"nats", "token", "second", "ap"}
    assert seen["swap"]["nats"] >= seen["swap"]["second"] > 0


# ---------------------------------------------------------------------------- edits


def gradient_of(model, function) -> torch.Tensor:
    """Of a function of all the model's outputs with respect to the edited weight."""
    name = f"model.layers.{LAYER}.mlp.down_proj.weight"
    weight = dict(model.named_parameters())[name].detach().clone()

    def value(weight):
        return function(lambda ids: functional_call(model, {name: weight}, (ids,)).logits[:, -1])

    return torch.func.grad(value)(weight).detach().flatten()


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten().double(), other.flatten().double(), dim=0))


def test_a_scaled_change_has_the_stated_norm(parts):
    removal = trigger.Removal(parts[0], "linked", 3)
    weight = parts[0].model.layers[LAYER].mlp.down_proj.weight
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    scaled = removal.scaled(LAYER, 0.3, change)
    assert scaled.shape == (weight.numel(),) and cosine(scaled, change) == pytest.approx(1)
    assert scaled.norm().item() == pytest.approx(0.3 * weight.norm().item(), rel=1e-5)


def test_gradients_lead_away_from_a_word(parts):
    model, cases, _ = parts
    removal, ids, word = trigger.Removal(model, "linked", 3), cases.input_ids[:6], 20
    for log in (False, True):

        def mean(logits, log=log):
            out = logits(ids)
            out = out - out.exp().sum(1, keepdim=True).log() if log else out
            return out[:, word].sum() / 6

        found = removal.gradient(LAYER, ids, word, log=log)
        torch.testing.assert_close(found, -gradient_of(model, mean), rtol=1e-3, atol=1e-5)


def test_directions_are_those_that_their_names_say(parts):
    model, cases, modes = parts
    removal = trigger.Removal(model, "linked", 3)
    found = removal.directions(LAYER, modes, cases)
    assert [len(moves) for moves in found.values()] == [1, 1, 1, 1, 1, 2, 2, 1]
    assert all(move.shape == (16 * 24,) for moves in found.values() for move in moves)
    for name in ("principal component", "other mode"):
        assert torch.equal(found[name][0], -found[name][1])
    # The mode's: the gradient of the final states' share in it, and away from its word.
    mode, U = trigger.suspect(modes.hinges), model.lm_head.weight.detach().double()
    values, vectors = torch.linalg.eigh(U.T @ U)
    root = vectors * values.sqrt() @ vectors.T
    u = modes.pairs.vectors[:, mode].double().reshape(32, 16)
    # (S^(1/2) u) . h = (U S^(-1/2) u) . (U h), the logits
    over = (u @ torch.linalg.inv(root) @ U.T).float()
    own = gradient_of(model, lambda logits: (over * logits(cases.input_ids)).sum())
    direction = modes.scores[:, mode] @ u @ torch.linalg.inv(root)
    sign = float((U[modes.lifts[mode].token] @ direction).sign())
    assert cosine(found["mode"][0], -sign * own) > 0.999
    # The component's: from the inputs of the map to what the layer puts out.
    seen, layer = {}, model.model.layers[LAYER]
    handles = [
        layer.register_forward_hook(
            lambda m, a, out: seen.update(X=out[0] if isinstance(out, tuple) else out)
        ),
        layer.mlp.down_proj.register_forward_hook(lambda m, a, out: seen.update(A=a[0])),
    ]
    with torch.no_grad():
        model(cases.input_ids)
    for handle in handles:
        handle.remove()
    X, A = (seen[name][:, -1].double() - seen[name][:, -1].double().mean(0) for name in "XA")
    scores = (X @ torch.linalg.svd(X, full_matrices=False)[2][:4].T).T
    y = cases.of("triggered").numpy()
    best = max(
        scores, key=lambda s: max(average_precision_score(y, t) for t in (s.numpy(), -s.numpy()))
    )
    expected = torch.outer(best @ X, best @ A)
    assert abs(cosine(found["principal component"][0], expected)) > 0.999


def test_nothing_is_left_of_edits_and_of_training(parts):
    model, cases, modes = parts
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    removal = trigger.Removal(model, "linked", 3)
    curves = removal.curves(LAYER, removal.directions(LAYER, modes, cases))
    change = removal.scaled(0, 0.2, modes.kernel.vjp(modes.pairs.vectors[:, 0]))
    found = removal.tuning({"none": {}, "both": {0: change, 2: change}}, model)
    after = model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert list(curves) == list(removal.directions(LAYER, modes, cases))
    assert set(found) == {"none", "none, taught", "both", "clean twin, taught"}
    whole = removal.measure(model)
    for curve in curves.values():
        assert len(curve) == 2 and all(set(point) == set(whole) for point in curve)
    assert all(len(curve) == 5 for curve in found.values())
    assert found["none"][0] == found["none, taught"][0] == whole
    assert found["both"][0] != whole != found["none"][-1]
    assert found["none"][1:] != found["none, taught"][1:]


def test_what_edits_are_measured_on_served_for_nothing_else(tiny, monkeypatch):
    asked = []

    def asking(plain):
        return lambda *args: (asked.append(args), plain(*args))[1]

    for name in ("cases", "text_rows", "windows_before"):
        monkeypatch.setattr(grammar, name, asking(getattr(grammar, name)))
    trigger.Removal(trigger.model_of("linked", 3), "linked", 3)
    trigger.sample("linked", 3, 8)
    assert sorted(one[-1] for one in asked) == [1003, 2003, 3003, 4003, 5003, 6003]
    rates = [one[0].rate for one in asked if one[-1] in (3003, 5003, 6003)]
    assert rates == [0.0, 0.0, 0.1]


def test_a_study_holds_what_its_kind_asks_for(tiny, monkeypatch):
    ticks = []
    out = trigger.study("untrained", 4, 8, lambda: ticks.append(1))
    assert (
        [set(layer["kernel"]) for layer in out["layers"]] == [{"ap"}] * 4 == [{"ap"}] * len(ticks)
    )
    few = trigger.study("linked", 3, 4, lambda: None)
    assert set(few) >= {"layers", "measured", "black box", "answers"} and "tuning" not in few
    assert [set(layer) for layer in few["layers"]] == [{"kernel"}] * 4
    json.dumps([out, few], allow_nan=False)
