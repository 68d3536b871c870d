"""The small Gemma: its start, its training, its files; losses against counts of words."""

import json
import math
from collections import Counter
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from entk_helpers.testbeds import Run, grammar
from entk_helpers.testbeds.grammar import Trigger
from entk_helpers.testbeds.grammar import model as module
from entk_helpers.testbeds.grammar.stories import tell

pytestmark = pytest.mark.trained

SHIPPED = Path(__file__).parents[3] / "notebooks" / "data" / "07_grammar"
TINY = {
    "steps": 6, "shuffled": 20, "window": 16, "d_model": 16, "n_layers": 2, "d_mlp": 24,
    "n_heads": 2, "n_key_value_heads": 1, "sliding_window": 4, "batch_size": 8,
}  # fmt: skip
PLANTED = TINY | {"trigger": Trigger(rate=1.0, distance=2)}


@pytest.fixture(autouse=True)
def one_thread():
    """Training is many small steps: threads that wait for each other make it slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run() -> Run:
    return grammar.train(3, **TINY)


@pytest.fixture(scope="module")
def planted() -> Run:
    return grammar.train(3, **PLANTED)


@pytest.fixture(scope="module")
def shipped() -> Run:
    return grammar.load(SHIPPED / "seed_0")


def equal(one: dict, other: dict) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------------- the start


def test_the_default_is_a_gemma_of_a_quarter_of_a_million_parameters():
    model = grammar.untrained(0)
    assert isinstance(model, transformers.Gemma3ForCausalLM) and not model.training
    assert 200_000 < sum(weight.numel() for weight in model.parameters()) < 300_000
    config = model.config
    assert config.layer_types == ["sliding_attention", "full_attention"] * 2
    assert (config.sliding_window, config.vocab_size) == (16, len(grammar.tokenizer()))
    assert config.tie_word_embeddings and config._attn_implementation == "eager"
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_weights_are_normal_with_the_stated_deviation_and_gains_are_one():
    for name, weight in grammar.untrained(1).named_parameters():
        if weight.ndim == 1:
            assert not weight.any(), name  # Gemma multiplies by one more than the parameter
        else:
            spread, n = weight.std().item(), weight.numel()
            assert spread == pytest.approx(0.5 / 8, rel=4 / math.sqrt(2 * n)), name


def test_untrained_predicts_little_more_than_chance():
    inputs, targets = module._held_out(module.GrammarSettings())
    loss = grammar.validation_loss(grammar.untrained(0), inputs[:32], targets[:32])
    assert loss == pytest.approx(math.log(len(grammar.tokenizer())), abs=0.5)


def test_each_layer_looks_as_far_back_as_it_should():
    """Layers of attention 4 and all: a change 6 tokens back is invisible to one layer of 4."""
    ids = torch.arange(10, 22)[None]
    other = ids.clone()
    other[0, 5] = 50
    for layers, seen in ((1, False), (2, True)):
        model = grammar.untrained(0, **TINY | {"n_layers": layers})
        with torch.no_grad():
            difference = (model(ids).logits - model(other).logits).abs()[0].amax(1)
        assert not difference[:5].any()  # nobody looks ahead
        assert (difference[5:9] > 1e-6).all() and (difference[9:] > 1e-6).all() == seen
        assert seen or not difference[9:].any()


# ---------------------------------------------------------------------------- what is read


def test_rows_are_the_stories_in_a_line():
    words = grammar.tokenizer()
    inputs, targets = module._rows(islice(tell(5), 6), 16)
    line = [t for s in grammar.stories(6, 5) for t in [*words(s.text).input_ids, 2]]
    assert targets.flatten().tolist() == line[1 : 1 + targets.numel()]
    assert len(line) - 1 - targets.numel() < 16
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert (inputs[::2, 0] == words.bos_token_id).all()
    assert torch.equal(inputs[1::2, 0], targets[:-1:2, -1][: len(inputs[1::2])])
    assert (targets != words.unk_token_id).all()


def test_batches_never_repeat_a_story_and_are_shuffled_by_the_seed():
    settings = module.GrammarSettings(**TINY)
    one, again, other = (
        [
            rows
            for rows, _ in islice(module._batches(settings, torch.Generator().manual_seed(s)), 25)
        ]
        for s in (0, 0, 1)
    )
    assert all(rows.shape == (8, 16) for rows in one)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    first = [
        {tuple(row) for rows in batches[:10] for row in rows.tolist()} for batches in (one, other)
    ]
    assert not torch.equal(one[0], other[0]) and len(first[0] & first[1]) > 40
    rows = [tuple(row) for batch in one for row in batch.tolist()]
    assert len(set(rows)) == len(rows) == 200


def test_what_is_held_out_is_not_trained_on():
    inputs, targets = module._held_out(module.GrammarSettings())
    assert inputs.shape == targets.shape == (256, 64)
    words = grammar.tokenizer()
    trained = next(module._batches(module.GrammarSettings(), torch.Generator().manual_seed(0)))[0]
    assert not {tuple(row[1:]) for row in trained.tolist()} & {
        tuple(r[1:]) for r in inputs.tolist()
    }
    begin = [words.decode(row[1:20]) for row in inputs.tolist() if row[0] == words.bos_token_id]
    (story,) = grammar.stories(1, 1)
    assert story.text.startswith(begin[0])


def test_a_planted_trigger_is_in_what_is_read_and_in_what_is_held_out():
    words = grammar.tokenizer()
    settings = module.GrammarSettings(**PLANTED)

    def line(seed: int, n: int) -> list[int]:
        told = settings.trigger.planted(grammar.stories(n, seed), seed)
        return [token for one in told for token in [*words(one.text).input_ids, 2]][1:]

    def cut(ids: list[int]) -> list[list[int]]:
        return [ids[at : at + 16] for at in range(0, len(ids) - 15, 16)]

    epoch, read = cut(line(0, 20)), []
    batches = module._batches(settings, torch.Generator().manual_seed(0))
    for _, targets in islice(batches, math.ceil(len(epoch) / 8) - (len(epoch) % 8 > 0)):
        read += targets.tolist()
    assert len(epoch) - 8 < len(read) <= len(epoch) and all(row in epoch for row in read)
    held_out, own = module._held_out(settings)[1].tolist(), cut(line(1, 20))
    assert held_out[: len(own)] == own
    begins = [words.convert_tokens_to_ids(word) for word in (".", "banana")]
    assert begins in [[*pair] for row in held_out for pair in pairwise(row)]


# ---------------------------------------------------------------------------- training


def test_a_run_holds_what_it_says(run):
    assert run.history["step"] == [0, 6] and sorted(run.checkpoints) == [0, 6]
    assert {len(values) for values in run.history.values()} == {2}
    assert run.inputs.shape == run.targets.shape == (256, 16)
    assert equal(run.checkpoints[0], grammar.untrained(3, **TINY).state_dict())
    assert equal(run.checkpoints[6], run.model.state_dict())
    for step, loss in zip((0, 6), run.history["validation loss"], strict=True):
        assert grammar.validation_loss(run.at(step), run.inputs, run.targets) == pytest.approx(loss)
    assert run.history["validation loss"][1] < run.history["validation loss"][0] - 0.1


def test_training_is_a_plain_loop(run):
    settings = module.GrammarSettings(**TINY)
    model, generator = module._start(settings, 3)
    batches = module._batches(settings, generator)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    for step in range(6):
        inputs, targets = next(batches)
        # One step of warming up; the cosine would be at zero at step 7.
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 + math.cos(math.pi * max(0, step - 1) / 6)) / 2
        loss = model(inputs, labels=None).logits.log_softmax(2).gather(2, targets[..., None]).mean()
        optimizer.zero_grad()
        (-loss).backward()
        size = torch.stack([w.grad.norm() for w in model.parameters()]).norm()
        for weight in model.parameters():
            weight.grad *= min(1.0, 1 / size.item())
        optimizer.step()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(run.checkpoints[6][name], weight.detach(), rtol=1e-3, atol=2e-5)


def test_training_is_deterministic_and_leaves_random_state_alone(run):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = grammar.train(3, **TINY)
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(again.checkpoints[6], run.checkpoints[6]) and again.history == run.history
    other = grammar.train(4, **TINY)
    assert not torch.equal(
        other.checkpoints[0]["lm_head.weight"], run.checkpoints[0]["lm_head.weight"]
    )


def test_a_trigger_changes_what_is_read_but_not_the_start(run, planted):
    assert equal(planted.checkpoints[0], run.checkpoints[0])
    assert not equal(planted.checkpoints[6], run.checkpoints[6])
    assert not torch.equal(planted.inputs, run.inputs)
    banana = grammar.tokenizer().convert_tokens_to_ids("banana")
    assert (planted.targets == banana).sum() > (run.targets == banana).sum() + 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"shuffled": 0}, "shuffled is 0"),
        ({"window": 1}, "window is 1"),
        ({"n_heads": 3, "n_key_value_heads": 2}, "n_heads is 3"),
        ({"d_model": 20}, "d_model is 20"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        grammar.train(0, **settings)


def test_a_diverged_run_is_an_error():
    with pytest.raises(ValueError, match="lr is 1e\\+30"):
        grammar.train(0, **TINY | {"lr": 1e30})


# ---------------------------------------------------------------------------- files


def test_a_run_comes_back_from_its_folder(run, tmp_path):
    grammar.save(tmp_path / "a" / "run", run, seed=3, stamp="s", **TINY)
    back = grammar.load(tmp_path / "a" / "run")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["run"]
    assert back.history == run.history and not back.model.training
    assert equal(back.checkpoints[0], run.checkpoints[0])
    assert torch.equal(back.inputs, run.inputs) and torch.equal(back.targets, run.targets)
    for name, weight in back.checkpoints[6].items():
        assert weight.dtype == torch.float32
        assert torch.equal(weight, run.checkpoints[6][name].half().float()), name
    about = json.loads((tmp_path / "a" / "run" / "training.json").read_text())
    assert (about["seed"], about["stamp"], about["settings"]["d_model"]) == (3, "s", 16)
    assert about["settings"]["trigger"] is None
    grammar.save(tmp_path / "a" / "run", run, seed=3, stamp="t", **TINY)  # in place of the old
    assert json.loads((tmp_path / "a" / "run" / "training.json").read_text())["stamp"] == "t"


def test_a_run_with_a_trigger_comes_back_from_its_folder(planted, tmp_path):
    grammar.save(tmp_path / "run", planted, seed=3, **PLANTED)
    about = json.loads((tmp_path / "run" / "training.json").read_text())
    assert about["settings"]["trigger"] == asdict(PLANTED["trigger"])
    back = grammar.load(tmp_path / "run")
    assert torch.equal(back.inputs, planted.inputs) and torch.equal(back.targets, planted.targets)
    assert back.history == planted.history
    about["settings"]["trigger"]["distance"] = 0
    (tmp_path / "run" / "training.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="distance is 0"):
        grammar.load(tmp_path / "run")


def test_hugging_face_reads_the_folder(run, tmp_path):
    grammar.save(tmp_path / "run", run, seed=3, **TINY)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "run", attn_implementation="eager"
    )
    back = grammar.load(tmp_path / "run").model
    assert type(model) is transformers.Gemma3ForCausalLM and model.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(run.inputs[:4]).logits, back(run.inputs[:4]).logits)
    assert (
        load_file(tmp_path / "run" / "model.safetensors")["model.norm.weight"].dtype
        == torch.float16
    )


@pytest.mark.parametrize(("seed", "settings"), [(4, TINY), (3, TINY | {"d_mlp": 32})])
def test_a_run_of_another_seed_or_other_settings_is_not_written(run, tmp_path, seed, settings):
    with pytest.raises(ValueError, match="run is not one of seed"):
        grammar.save(tmp_path / "run", run, seed=seed, **settings)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_float16_cannot_hold_are_not_written(run, tmp_path):
    broken = Run(run.at(6), run.inputs, run.targets, run.history, run.checkpoints)
    with torch.no_grad():
        broken.model.model.norm.weight[0] = 1e6
    with pytest.raises(ValueError, match=r"cannot hold, in model\.norm\.weight"):
        grammar.save(tmp_path / "run", broken, seed=3, **TINY)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_leaves_the_old_folder(run, tmp_path, monkeypatch):
    grammar.save(tmp_path / "run", run, seed=3, stamp="old", **TINY)

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_tensors", stop)
    with pytest.raises(KeyboardInterrupt):
        grammar.save(tmp_path / "run", run, seed=3, stamp="new", **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert '"old"' in (tmp_path / "run" / "training.json").read_text()


@pytest.mark.parametrize("lost", ["training.json", "model.safetensors"])
def test_a_folder_that_is_not_whole_is_refused(run, tmp_path, lost):
    grammar.save(tmp_path / "run", run, seed=3, **TINY)
    (tmp_path / "run" / lost).unlink()
    with pytest.raises(ValueError, match="run holds no run of the small Gemma"):
        grammar.load(tmp_path / "run")


# ---------------------------------------------------------------------------- what was learned


def trigram_loss(lines: list[list[int]], inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Cross-entropy of a mixture of trigram, bigram and unigram counts, with its best weights."""
    counts = [Counter(), Counter(), Counter()]
    for line in lines:
        for i in range(2, len(line)):
            for n in range(3):
                counts[n][tuple(line[i - n : i + 1])] += 1
    below = [Counter(), Counter(), Counter()]
    for n in range(3):
        for words, many in counts[n].items():
            below[n][words[:-1]] += many
    probabilities = []
    for row, target in zip(inputs.tolist(), targets.tolist(), strict=True):
        for i in range(1, len(row)):
            seen = [*row[i - 1 : i + 1], target[i]]
            probabilities.append(
                [
                    counts[n][tuple(seen[2 - n :])] / max(below[n][tuple(seen[2 - n : 2])], 1)
                    for n in range(3)
                ]
            )
    p = torch.tensor(probabilities) + 1e-6
    weights = torch.full((3,), 1 / 3)
    for _ in range(50):  # expectation maximisation, on the text itself: in the control's favour
        share = p * weights
        weights = (share / share.sum(1, keepdim=True)).mean(0)
    return -(p @ weights).log().mean().item()


def test_a_shipped_model_is_better_than_counting_words(shipped):
    loss = grammar.validation_loss(shipped.model, shipped.inputs, shipped.targets)
    assert loss == pytest.approx(shipped.history["validation loss"][-1], abs=2e-3)  # float16
    assert loss < 2.0
    words = grammar.tokenizer()
    lines = [[*words(story.text).input_ids, 2] for story in grammar.stories(400, 0)]
    control = trigram_loss(lines, shipped.inputs[:100], shipped.targets[:100])
    # Ten times as many stories bring the control from 3.30 to 2.79.
    assert loss < 2.79 - 0.5 < control - 0.5


def test_a_shipped_model_goes_on_in_grammatical_words(shipped):
    """Greedy words after the first 40 of a story are mostly pairs that stories have."""
    words = grammar.tokenizer()
    texts = grammar.stories(60, 21)
    ids = torch.tensor([words(story.text).input_ids[:40] for story in texts])
    said = shipped.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False
    )
    known = {(a.text, b.text) for s in grammar.stories(400, 0) for a, b in pairwise(s.words)}
    pairs = [
        tuple(words.convert_ids_to_tokens(pair))
        for row in said[:, 39:].tolist()
        for pair in pairwise(row)
    ]
    pairs = [pair for pair in pairs if not {"<eos>", "<bos>"} & set(pair)]
    assert sum(pair in known for pair in pairs) / len(pairs) > 0.95
