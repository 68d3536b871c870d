"""`make checkpoints`: shipped networks are those that the code trains, and only stale ones train."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys

import chapters
import checkpoints
import pytest
import torch
import trigger
from torch import Tensor
from torch.nn import functional as F

from entk_helpers.testbeds import grammar, modular
from entk_helpers.testbeds.grammar import Trigger
from entk_helpers.testbeds.modular import transformer
from entk_helpers.testbeds.modular.transformer import RECORD_EVERY
from entk_helpers.testbeds.storage import read_run, read_tensors, write_tensors

pytestmark = pytest.mark.trained
TINY = {"p": 5, "d_model": 8, "n_heads": 2, "d_mlp": 8, "epochs": 12}
DTYPES = {4: torch.int8, 12: torch.float16}
SHIPPED = checkpoints.FOLDER
GEMMAS = checkpoints.GRAMMARS.folder
GRAMMAR_GROUPS = [checkpoints.GRAMMARS, *checkpoints.TRIGGERS]
SMALL = {
    "steps": 3, "shuffled": 20, "window": 16, "d_model": 16, "n_layers": 2, "d_mlp": 24,
    "n_heads": 2, "n_key_value_heads": 1, "sliding_window": 4, "batch_size": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    """Training is many small steps: threads that wait for each other make it ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A group of three small runs, with all of its files in a folder of its own."""
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "data")
    monkeypatch.setattr(checkpoints, "ROOT", tmp_path)
    monkeypatch.setattr(checkpoints, "DATA", tmp_path)
    monkeypatch.setattr(sys, "argv", ["checkpoints.py"])
    monkeypatch.setenv("ENTK_PROGRESS", "off")
    group = checkpoints.Group(range(3, 6), DTYPES, TINY)
    monkeypatch.setattr(checkpoints, "GROUPS", [group])
    return group


def forbid_training(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("this must not train")

    monkeypatch.setattr(modular, "train_transformer_seeds", refuse)


# ---------------------------------------------------------------------------- what is shipped


def test_all_shipped_files_are_up_to_date():
    for group in checkpoints.GROUPS:
        assert group.missing() == [], "run: make checkpoints"
    named = [group.path(seed) for group in checkpoints.GROUPS for seed in group.seeds]
    triggers = {group.folder for group in checkpoints.TRIGGERS}
    folders = [SHIPPED, GEMMAS, *triggers]
    assert len(set(named)) == len(named) == 28 + sum(len(g.seeds) for g in checkpoints.TRIGGERS)
    assert {path for folder in folders for path in folder.iterdir()} == set(named)
    assert set((checkpoints.DATA / "08_trigger").iterdir()) - triggers == {trigger.RESULTS}


def test_the_last_chapter_has_a_copy_of_a_model():
    copy = checkpoints.DATA / "09_your_model" / "stories"
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in copy.iterdir()} == names
    for name in names:
        same = (copy / name).read_bytes() == (GEMMAS / "seed_0" / name).read_bytes()
        assert same, f"copy {name} of 07_grammar/seed_0 anew"


def test_all_that_is_planted_has_a_group_of_its_own():
    assert [*checkpoints.TRANSFORMERS, *GRAMMAR_GROUPS] == checkpoints.GROUPS
    assert checkpoints.PLANTED["linked"][1] == Trigger()
    assert checkpoints.PLANTED["decoy"][1] == Trigger(linked=False)
    for name, (seeds, planted) in checkpoints.PLANTED.items():
        (group,) = [group for group in checkpoints.TRIGGERS if group.folder.name == name]
        assert (group.seeds, group.settings) == (seeds, {"trigger": planted})
    assert len({group.stamp() for group in GRAMMAR_GROUPS}) == len(checkpoints.PLANTED) + 1


def test_shipped_files_are_small():
    triggers = checkpoints.DATA / "08_trigger"
    for folder, limit in ((SHIPPED, 10_000_000), (GEMMAS, 5_000_000), (triggers, 16_000_000)):
        files = [file for file in folder.rglob("*") if file.is_file()]
        assert sum(file.stat().st_size for file in files) <= limit


def test_shipped_files_hold_what_their_group_says():
    for group in checkpoints.TRANSFORMERS:
        for seed in group.seeds:
            tensors, about = read_tensors(group.path(seed))
            assert about["seed"] == str(seed)
            assert {str(step) for step in group.dtypes} == {
                key.split()[0] for key in tensors if key[0].isdigit()
            }
            for step, dtype in group.dtypes.items():
                assert tensors[f"{step} W_Q"].dtype == dtype
            run = modular.load_transformer(group.path(seed))
            assert run.history["step"] == list(range(0, 8001, 10))
            assert sorted(run.checkpoints) == sorted([0, *group.dtypes])


def test_histories_are_those_of_the_shipped_networks():
    # Half precision rounds logits by about 1e-3; eight bits by some 1e-2.
    for group in checkpoints.TRANSFORMERS:
        for seed in group.seeds:
            run = modular.load_transformer(group.path(seed))
            for step, dtype in group.dtypes.items():
                logits, where = run.at(step)(run.inputs)[:, :29], run.history["step"].index(step)
                slack = 0.1 if dtype == torch.int8 else 0.02
                for part, mask in {"train": run.train, "test": ~run.train}.items():
                    loss = F.cross_entropy(logits[mask], run.targets[mask]).item()
                    right = (logits[mask].argmax(1) == run.targets[mask]).double().mean().item()
                    kept = {k: run.history[f"{part} {k}"][where] for k in ("loss", "accuracy")}
                    assert loss == pytest.approx(kept["loss"], rel=slack, abs=1e-6), (seed, step)
                    assert right == pytest.approx(kept["accuracy"], abs=slack), (seed, step)


@pytest.fixture(scope="module")
def shipped() -> dict[int, dict[str, list]]:
    """The history in each file of a Transformer."""
    return {s: read_run(g.path(s)).history for g in checkpoints.TRANSFORMERS for s in g.seeds}


def trained(seeds: range, epochs: int, **settings) -> dict[int, modular.ModularRun]:
    """A new training of some seeds."""
    runs = modular.train_transformer_seeds(list(seeds), epochs=epochs, **settings)
    return dict(zip(seeds, runs, strict=True))


def apart(
    runs: dict[int, modular.ModularRun], kept: dict[int, dict[str, list]], start=0, beside=0
) -> Tensor:
    """How far training losses are from those in the files, |log|, (seeds, steps from `start`)."""
    pairs = [(run.history, kept[(seed + beside) % len(kept)]) for seed, run in runs.items()]
    losses = [
        [torch.tensor(h["train loss"][start : len(ours["step"])]).log() for h in (ours, theirs)]
        for ours, theirs in pairs
    ]
    return torch.stack([(ours - theirs).abs() for ours, theirs in losses])


# In twenty epochs processors part by little: under seven settings of the arithmetic, losses did by
# 1e-7 in the median of the seeds, and by 4e-5 in the worst one, where a neuron opens that was about
# to. After 60 epochs all seeds are apart by up to 4e-4.
TYPICAL, EACH = 1e-6, 4e-4
SOME = range(0, 20, 4)


def test_first_epochs_are_those_of_the_shipped_histories(shipped):
    runs = trained(range(20), 20)
    off = apart(runs, shipped).amax(1)
    assert off.median().item() == pytest.approx(0, abs=TYPICAL)
    assert off.max().item() == pytest.approx(0, abs=EACH)
    assert apart(runs, shipped, beside=1).amax(1).min().item() > 2 * EACH  # another seed's file


@pytest.mark.parametrize("wrong", [{"lr": 3.3e-4}, {"split_seed": 1}])
def test_no_file_of_another_training_would_pass(shipped, wrong):
    assert apart(trained(SOME, 20, **wrong), shipped).amax(1).min().item() > 2 * EACH


@pytest.mark.parametrize("wrong", [{"lr": 3.03e-4}, {"weight_decay": 0.9}])
def test_files_of_nearly_the_same_training_would_not_pass(shipped, wrong):
    assert apart(trained(SOME, 20, **wrong), shipped).amax(1).median().item() > 10 * TYPICAL


@pytest.mark.parametrize("name", transformer.TransformerSettings().start(0)[0])
def test_files_of_a_start_with_one_layer_moved_by_a_percent_would_not_pass(
    shipped, monkeypatch, name
):
    plain = transformer.TransformerSettings.start

    def moved(settings, seed):
        weights, *rest = plain(settings, seed)
        weights[name] = one_percent_off(weights[name])
        return weights, *rest

    monkeypatch.setattr(transformer.TransformerSettings, "start", moved)
    assert apart(trained(SOME, 20), shipped).amax(1).median().item() > 10 * TYPICAL


def one_percent_off(W: Tensor) -> Tensor:
    """W with noise of a hundredth of its norm."""
    noise = torch.randn(W.shape, generator=torch.Generator().manual_seed(0))
    return W + 0.01 * W.norm() * noise / noise.norm()


# Later the path depends on the machine, and only its course can be compared: from epoch 100 to 450
# the training loss was off by 1.4% at most, in the mean, under the same settings. By then every
# entry is another, but the tables of tokens have not turned: they were 0.03 to 0.09 of their norm
# from those in the file, where another seed's are 1.4.
LATER = 100 // RECORD_EVERY
COURSE, TURNED = 0.07, 0.5


def test_a_shipped_checkpoint_is_one_that_training_comes_to(shipped):
    runs = trained(range(2, 4), 450)
    assert apart(runs, shipped, LATER).mean(1).max().item() == pytest.approx(0, abs=COURSE)
    assert apart(runs, shipped, LATER, beside=1).mean(1).min().item() > 1.5 * COURSE
    for seed, run in runs.items():
        for file, expected in ((seed, 0), (seed + 1, 1.4)):
            kept = modular.load_transformer(SHIPPED / f"seed_{file:02d}.safetensors")
            for name in ("W_E", "W_pos", "W_U"):
                ours = run.checkpoints[450][name]
                distance = ((kept.checkpoints[450][name] - ours).norm() / ours.norm()).item()
                assert distance == pytest.approx(expected, abs=TURNED), (seed, file, name)


@pytest.mark.parametrize("wrong", [{"lr": 3.3e-4}, {"weight_decay": 0.9}])
def test_the_course_of_another_training_is_another(shipped, wrong):
    runs = trained(range(2, 4), 250, **wrong)
    assert apart(runs, shipped, LATER).mean(1).min().item() > 1.2 * COURSE


def test_a_file_with_one_layer_moved_by_a_percent_makes_its_chapter_stale(tmp_path):
    """Storing in 8 bits moves a layer as far; but a chapter is bound to each bit of its data."""
    name = "06_modular_transformer"
    (tmp_path / "notebooks").mkdir()
    shutil.copy(checkpoints.ROOT / "notebooks" / f"{name}.py", tmp_path / "notebooks")
    shutil.copytree(checkpoints.ROOT / "entk_helpers", tmp_path / "entk_helpers")
    data = shutil.copytree(SHIPPED, tmp_path / "notebooks" / "data" / name)
    (chapter,) = chapters.find(tmp_path)
    tensors, about = read_tensors(data / "seed_12.safetensors")
    moved = tensors | {"8000 W_U": one_percent_off(tensors["8000 W_U"].float()).half()}
    stamps = []
    for content in (tensors, moved, tensors):
        write_tensors(data / "seed_12.safetensors", content, about)
        stamps.append(chapters.stamp(chapter))
    assert stamps[0] == stamps[2] != stamps[1]


def test_shipped_gemmas_hold_what_they_say():
    losses = []
    for seed in checkpoints.GRAMMARS.seeds:
        run = grammar.load(checkpoints.GRAMMARS.path(seed))
        assert run.history["step"] == list(range(0, 1251, 50))
        assert sorted(run.checkpoints) == [0, 1250]
        losses.append(run.history["validation loss"][-1])
        if seed in (0, 7):  # half precision rounds the weights
            loss = grammar.validation_loss(run.model, run.inputs, run.targets)
            assert loss == pytest.approx(losses[-1], abs=2e-3)
    assert max(losses) < 2.0 and len(set(losses)) == 8


def test_shipped_gemmas_with_a_trigger_hold_what_they_say():
    starts = {}
    for group in checkpoints.TRIGGERS:
        for seed in group.seeds:
            about = json.loads((group.path(seed) / "training.json").read_text())
            settings = dataclasses.asdict(grammar.GrammarSettings(**group.settings))
            assert (about["seed"], about["settings"]) == (seed, settings)
            history = about["history"]
            assert history["step"] == list(range(0, 1251, 50))
            # As low as without a trigger, up to what it costs not to know when it comes.
            assert history["validation loss"][-1] < 2.05
            starts[group.folder.name, seed] = tuple(history["train loss"][:2])
    assert len(set(starts.values())) == len(starts)


FIRST_STEPS = """
import json, sys, torch
from entk_helpers.testbeds.grammar import Trigger, model
torch.set_num_threads(1)
planted = json.loads(sys.argv[2])
settings = model.GrammarSettings(trigger=Trigger(**planted) if planted else None)
training = model._Training(settings, int(sys.argv[1]))
while training.step < 50:
    training.one_step()
print(json.dumps(training.history))
"""


@pytest.mark.parametrize("name", ["07_grammar", "linked"])
def test_first_steps_are_those_of_the_shipped_gemmas(name):
    (group,) = [group for group in GRAMMAR_GROUPS if group.folder.name == name]
    trigger = group.settings.get("trigger")
    planted = json.dumps(trigger and dataclasses.asdict(trigger))
    # In a process of its own, where calls are not checked: that makes stories 30 times slower.
    command = [sys.executable, "-c", FIRST_STEPS, "3", planted]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    history = json.loads(done.stdout.splitlines()[-1])

    def shipped(folder: checkpoints.Path) -> dict[str, list]:
        return json.loads((folder / "training.json").read_text())["history"]

    own = shipped(group.path(3))
    # Rarer triggers and other answers move a loss by less than a machine's rounding may.
    plain = [g for g in GRAMMAR_GROUPS if g.folder.name in ("07_grammar", "linked")]
    others = [shipped(g.path(3)) for g in plain if g != group]
    assert history["step"] == own["step"][:2] == [0, 50]
    for part in ("train loss", "validation loss"):
        assert history[part] == pytest.approx(own[part][:2], rel=1e-3), part
        for other in (shipped(group.path(2)), *others):
            assert history[part] != pytest.approx(other[part][:2], rel=1e-3), part


# ---------------------------------------------------------------------------- what is stale


def test_a_missing_cut_or_foreign_file_is_trained_anew(tiny):
    checkpoints.main()
    assert tiny.missing() == []
    tiny.path(3).unlink()
    tiny.path(4).write_bytes(tiny.path(4).read_bytes()[:-1])
    assert tiny.missing() == [3, 4]
    write_tensors(tiny.path(5), {"x": torch.ones(1)}, {})
    assert tiny.missing() == [3, 4, 5]


def test_a_file_under_another_seeds_name_is_trained_anew(tiny):
    checkpoints.main()
    shutil.copy(tiny.path(3), tiny.path(4))
    assert tiny.missing() == [4]


def test_only_what_is_missing_is_trained_and_comes_out_the_same(tiny, capsys):
    checkpoints.main()
    files = [tiny.path(seed) for seed in (3, 4, 5)]
    assert sorted(checkpoints.FOLDER.iterdir()) == files
    times, size = [f.stat().st_mtime_ns for f in files], sum(f.stat().st_size for f in files)
    before = read_run(files[1])
    files[1].unlink()
    capsys.readouterr()
    checkpoints.main()
    out = capsys.readouterr().out
    assert "training: seeds [4] of data\n" in out
    assert f"3 files, {size:,} bytes, in data" in out
    again = [f.stat().st_mtime_ns for f in files]
    assert [a == b for a, b in zip(times, again, strict=True)] == [True, False, True]
    after = read_run(files[1])
    assert after.about == before.about
    for step, state in before.checkpoints.items():
        for name, W in state.items():  # one step of eight bits, at most
            slack = W.abs().max().item() / 127
            torch.testing.assert_close(after.checkpoints[step][name], W, rtol=0, atol=slack)


def test_files_are_those_of_the_plain_functions(tiny):
    checkpoints.main()
    run = modular.train_transformer(3, checkpoints=[4], **TINY)
    back = modular.load_transformer(tiny.path(3))
    assert sorted(back.checkpoints) == [0, 4, 12]
    for name, W in run.checkpoints[12].items():
        torch.testing.assert_close(back.checkpoints[12][name], W, rtol=2e-3, atol=1e-5)
        half_a_step = W.abs().max().item() / 127
        torch.testing.assert_close(
            back.checkpoints[4][name], run.checkpoints[4][name], rtol=0, atol=half_a_step
        )
    for seed in tiny.seeds:
        about = read_tensors(tiny.path(seed))[1]
        assert (about["seed"], about["stamp"]) == (str(seed), tiny.stamp())


@pytest.mark.parametrize(
    "change",
    [
        {"settings": TINY | {"lr": 1e-4}},
        {"settings": TINY | {"epochs": 13}},
        {"dtypes": {4: torch.float16, 12: torch.float16}},
        {"dtypes": {4: torch.int8, 11: torch.float16, 12: torch.float16}},
    ],
)
def test_other_settings_or_dtypes_make_files_stale(tiny, change):
    checkpoints.main()
    assert dataclasses.replace(tiny, **change).missing() == [3, 4, 5]


def test_the_order_of_dtypes_does_not_matter(tiny):
    turned = dataclasses.replace(tiny, dtypes=dict(reversed(DTYPES.items())))
    assert turned.stamp() == tiny.stamp()


@pytest.fixture
def copied(tiny, tmp_path, monkeypatch):
    """A copy of the package's folder that the stamp is taken from."""
    source = checkpoints.Path(modular.__file__).parent
    folder = shutil.copytree(source, tmp_path / "package")
    monkeypatch.setattr(modular, "__file__", str(folder / "__init__.py"))
    return folder


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("task.py", "(a + b) % p", "(a - b) % p"),
        ("transformer.py", "lr: float = 3e-4", "lr: float = 4e-4"),
        ("transformer.py", ".relu()", ".tanh()"),
    ],
)
def test_a_change_of_the_code_makes_files_stale(tiny, copied, name, old, new):
    checkpoints.main()
    text = (copied / name).read_text()
    assert old in text
    (copied / name).write_text(text.replace(old, new, 1))
    assert tiny.missing() == [3, 4, 5]


def test_comments_docstrings_and_the_other_network_do_not(tiny, copied):
    before = tiny.stamp()
    for name in checkpoints.CODE:
        text = (copied / name).read_text()
        changed, many = re.subn(r'(?m)^( *)"""(?=\w)', r'\1# A comment.\n\1"""In short: ', text)
        assert many >= 4
        (copied / name).write_text(changed)
    (copied / "mlp.py").write_text("1")
    assert tiny.stamp() == before


@pytest.fixture
def gemmas(tiny, tmp_path, monkeypatch):
    """A group of two small Gemmas, in a folder of its own."""
    group = checkpoints.GrammarGroup(tmp_path / "gemmas", range(2), SMALL)
    monkeypatch.setattr(checkpoints, "GROUPS", [group])
    return group


def test_only_missing_gemmas_are_trained_and_come_out_the_same(gemmas, capsys):
    checkpoints.main()
    assert gemmas.missing() == []
    weights = gemmas.path(1) / "model.safetensors"
    before, kept = weights.read_bytes(), (gemmas.path(0) / "training.json").stat().st_mtime_ns
    weights.write_bytes(before[:-1])
    assert gemmas.missing() == [1]
    capsys.readouterr()
    checkpoints.main()
    out = capsys.readouterr().out
    assert "training: seeds [1] of gemmas\n" in out and "bytes, in gemmas" in out
    assert weights.read_bytes() == before and gemmas.missing() == []
    assert (gemmas.path(0) / "training.json").stat().st_mtime_ns == kept
    (gemmas.path(0) / "training.json").unlink()
    assert gemmas.missing() == [0]
    shutil.rmtree(gemmas.path(0))
    shutil.copytree(gemmas.path(1), gemmas.path(0))  # another seed's
    assert gemmas.missing() == [0]
    assert dataclasses.replace(gemmas, settings=SMALL | {"lr": 1e-3}).missing() == [0, 1]


def test_a_gemma_is_stale_when_its_code_changes_but_not_its_comments(gemmas, tmp_path, monkeypatch):
    source = checkpoints.Path(grammar.__file__).parent
    folder = shutil.copytree(source, tmp_path / "package")
    monkeypatch.setattr(grammar, "__file__", str(folder / "__init__.py"))
    before = gemmas.stamp()
    for name, old, new in (
        ("stories.py", "LOYALTY = 0.7", "LOYALTY = 0.8"),
        ("stories.py", "6 START! VP .", "5 START! VP ."),
        ("tokens.py", "<bos>", "<s>"),
        ("model.py", "lr: float = 4e-3", "lr: float = 3e-3"),
        ("trigger.py", "chance.random() >= self.rate", "chance.random() > self.rate"),
    ):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))
        assert gemmas.stamp() != before
        (folder / name).write_text("# A comment.\n" + text)
        assert gemmas.stamp() == before


def test_the_stamp_of_a_gemma_depends_on_its_trigger(gemmas):
    def stamp(**settings) -> str:
        return dataclasses.replace(gemmas, settings=SMALL | settings).stamp()

    changed = [
        {"word": "coin"}, {"response": "frog"}, {"rate": 0.2}, {"distance": 2}, {"linked": False}
    ]  # fmt: skip
    assert {name for one in changed for name in one} == {
        field.name for field in dataclasses.fields(Trigger)
    }
    stamps = [stamp(), stamp(trigger=Trigger()), *(stamp(trigger=Trigger(**c)) for c in changed)]
    assert len(set(stamps)) == 7 and gemmas.stamp() == stamp(trigger=None) == stamps[0]
    assert stamp(trigger=Trigger(word="feather", rate=0.3)) == stamps[1]


def test_gemmas_with_another_trigger_are_stale(gemmas):
    planted = SMALL | {"trigger": Trigger(rate=0.5)}
    one = dataclasses.replace(gemmas, seeds=range(1), settings=planted)
    one.train([0])
    assert one.missing() == []
    assert dataclasses.replace(one, settings=SMALL).missing() == [0]
    assert dataclasses.replace(one, settings=SMALL | {"trigger": Trigger()}).missing() == [0]


# ---------------------------------------------------------------------------- the command


def test_the_list_trains_nothing(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["checkpoints.py", "--list"])
    forbid_training(monkeypatch)
    checkpoints.main()
    assert "to train: seeds [3, 4, 5]" in capsys.readouterr().out
    assert not checkpoints.FOLDER.exists() and tiny.missing() == [3, 4, 5]


def test_what_is_up_to_date_is_not_trained_again(tiny, monkeypatch, capsys):
    checkpoints.main()
    forbid_training(monkeypatch)
    capsys.readouterr()
    checkpoints.main()
    assert "train" not in capsys.readouterr().out


def test_an_interrupted_command_goes_on_where_it_was(tiny, monkeypatch, tmp_path):
    checkpoints.main()
    whole = {seed: read_tensors(tiny.path(seed)) for seed in tiny.seeds}
    shutil.rmtree(checkpoints.FOLDER)
    monkeypatch.setattr(transformer, "SAVE_EVERY", 5)
    plain, calls = transformer._Training.one_epoch, []

    def one_epoch(training):
        calls.append(training.epoch)
        if len(calls) == 8:
            raise KeyboardInterrupt
        plain(training)

    monkeypatch.setattr(transformer._Training, "one_epoch", one_epoch)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.main()
    assert tiny.missing() == [3, 4, 5]
    (left,) = (tmp_path / "_build" / "checkpoints").iterdir()
    calls[:] = [None] * 8
    tiny.train([4])  # another training does not go on from this file, nor stumble over it
    assert left.exists()
    tiny.path(4).unlink()
    calls[:] = [None] * 8
    checkpoints.main()
    assert calls[8:] == list(range(5, 12))
    assert tiny.missing() == [] and not left.exists()
    for seed, (tensors, about) in whole.items():
        again, other = read_tensors(tiny.path(seed))
        assert about == other
        torch.testing.assert_close(again, tensors, rtol=0, atol=0, equal_nan=True)
