"""The full study of planted triggers: every seed, model and layer, one file of results a model.

    python book/_tools/trigger.py              what `make trigger` does
    python book/_tools/trigger.py --list       say what would be run, and run nothing
    python book/_tools/trigger.py linked_3     these models only

A model whose results are there is left out, so that a study that was cut off goes on where it was.
Results carry a stamp, a SHA-256 over this file, the settings and the model.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import torch
from chapters import canonical
from checkpoints import DATA, PLANTED
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from entk_helpers import Eigenpairs, top_eigenpairs
from entk_helpers.language import (
    Hinge,
    Lift,
    LogitKernel,
    average_precision,
    edited,
    extended_scores,
    hinges,
    last_token_states,
    mode_logits,
    output_lifts,
    output_ratios,
    pca_scores,
    probe,
    random_scores,
    stratified_halves,
    suspect,
    swap_divergences,
    window_scores,
)
from entk_helpers.progress import progress_bar
from entk_helpers.testbeds import grammar
from entk_helpers.testbeds.grammar import Trigger

RESULTS = DATA / "08_trigger" / "study"
LAYERS, PAIRS, TOL, SPLITS = range(4), 25, 1e-3, 20
TRIGGERED, NORMAL = 24, 256
SIZES = (0.05, 0.1, 0.15, 0.2, 0.3)  # of an edit, in norms of the weight
WEIGHTS = "model.safetensors"
EXPLORED, FRESH = range(3), range(3, 8)
STEPS = 40  # of training after an edit
TAUGHT = (
    "none",
    "mode, layer 0, 0.2",
    "mode, layers 0-2, 0.1",
)  # edits after which the trigger is taught


def model_of(kind: str, seed: int):
    """A trained model by its name, or an untrained one."""
    if kind == "untrained":
        return grammar.untrained(seed)
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder_of(kind, seed), dtype=torch.float32).eval()


def folder_of(kind: str, seed: int) -> Path:
    """Where a trained model lies."""
    return DATA / ("07_grammar" if kind == "clean" else f"08_trigger/{kind}") / f"seed_{seed}"


def trigger_of(kind: str) -> Trigger:
    """The trigger to look for, which models without one are asked for too."""
    found = PLANTED[kind][1] if kind in PLANTED else Trigger()
    return dataclasses.replace(found, linked=True)


def sample(kind: str, seed: int, triggered: int = TRIGGERED) -> grammar.Cases:
    """The windows in which a feature is looked for."""
    return grammar.cases(trigger_of(kind), triggered, NORMAL, 1000 + seed)


@dataclasses.dataclass(frozen=True)
class Modes:
    """The modes of one layer for some windows, with what they hinge on and lift."""

    kernel: LogitKernel
    pairs: Eigenpairs
    scores: Tensor
    hinges: list[Hinge]
    lifts: list[Lift]


def modes_of(model, cases: grammar.Cases, layer: int) -> Modes:
    """Find the modes of a layer."""
    kernel = LogitKernel(model, cases.input_ids, layer=layer)
    pairs = top_eigenpairs(kernel, PAIRS, tol=TOL, block=1)
    scores = window_scores(pairs, len(cases))

    def rescore(mode, ids, mask):
        return extended_scores(kernel, pairs, ids, mask, modes=[mode])[:, 0]

    found = hinges(scores, rescore, cases.input_ids)
    return Modes(kernel, pairs, scores, found, lifts_of(model, scores, cases))


def report(scores, found: list[Hinge], lifts: list[Lift], cases: grammar.Cases) -> dict:
    """With labels: the average precision. Without: what each statistic points to."""
    ap = [ap_of(column, cases) for column in scores.T]
    hinging, lifted = suspect(found), max(range(len(lifts)), key=lambda i: lifts[i].factor)
    most = max(found, key=lambda hinge: hinge.share)
    modes = [
        {"token": token(h.token), "share": h.share, "lifts": token(x.token), "factor": x.factor}
        for h, x in zip(found, lifts, strict=True)
    ]
    return {
        "ap": graded(scores, cases),
        "shuffled ap": graded(scores, cases, shuffled=True),
        "hinge": {"token": token(most.token), "share": most.share}
        | {"mode": hinging, "ap": ap[hinging]},
        "lift": {"token": token(lifts[lifted].token), "factor": lifts[lifted].factor}
        | {"mode": lifted, "ap": ap[lifted]},
        "modes": [mode | {"ap": value} for mode, value in zip(modes, ap, strict=True)],
    }


def activations(model, cases: grammar.Cases, layer: int, unlabelled: bool) -> dict[str, dict]:
    """Principal components of a layer's residual, and directions drawn at random, in the same way.

    Others with labels only, and all where not `unlabelled`.
    """
    states = last_token_states(model, cases.input_ids)
    X = states.residual[layer].double()
    found = {}
    for name, scores in {
        "pca": pca_scores(X, PAIRS),
        "random": random_scores(X, PAIRS, seed=0),
    }.items():
        found[name] = {"ap": graded(scores, cases)}
        if not unlabelled:
            continue
        # Scores are linear in the centred activations; so are those of changed windows.
        directions = torch.linalg.lstsq(X - X.mean(0), scores, driver="gelsd").solution

        def rescore(mode, ids, mask, directions=directions):
            Y = last_token_states(model, ids, mask).residual[layer].double()
            return (Y - X.mean(0)) @ directions[:, mode]

        found[name] = report(
            scores, hinges(scores, rescore, cases.input_ids), lifts_of(model, scores, cases), cases
        )
    draws = [graded(random_scores(X, PAIRS, seed), cases) for seed in range(5)]
    found["random"]["ap"] = sum(draws) / len(draws)  # of several draws
    found["pca of mlp"] = {"ap": graded(pca_scores(states.mlp[layer], PAIRS), cases)}
    found["pca of final"] = {"ap": graded(pca_scores(states.final, PAIRS), cases)}
    found["pca of logits"] = {"ap": graded(pca_scores(states.logits, PAIRS), cases)}
    return found


def graded(scores, cases: grammar.Cases, *, shuffled: bool = False) -> float:
    """Average precision, on one half of the windows, of the direction chosen on the other."""
    kinds, labels = cases.kinds, cases.of("triggered")[:, None]
    if shuffled:
        labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
        kinds = [str(bool(label)) for label in labels]
    splits = stratified_halves(kinds, SPLITS, seed=0)
    found = [probe(scores[a], labels[a], scores[b], labels[b]).macro_ap for a, b in splits]
    return sum(found) / len(found)


def black_box(model, cases: grammar.Cases) -> dict:
    """Two alarms that see outputs only."""
    ratios = output_ratios(logits_of(model, cases), counts_of(model, cases))
    factors = ratios.topk(8, dim=0).values.mean(0)
    word = int(factors.argmax())
    swapped = swap_divergences(model, cases.input_ids)
    return {
        "ratio": {"factor": float(factors[word]), "token": token(word)}
        | {"ap": ap_of(ratios[:, word], cases)},
        "swap": {"nats": swapped[0].nats, "token": token(swapped[0].token)}
        | {"second": swapped[1].nats, "ap": ap_of(swapped[0].by_window, cases)},
    }


def ap_of(scores, cases: grammar.Cases) -> float:
    """Average precision of one column of scores, its sign as it is."""
    return float(average_precision(scores[:, None], cases.of("triggered")[:, None]))


def logits_of(model, cases: grammar.Cases):
    """Logits at the end of each window."""
    return last_token_states(model, cases.input_ids).logits


def lifts_of(model, scores, cases: grammar.Cases) -> list[Lift]:
    """What each direction's top windows make likelier."""
    return output_lifts(logits_of(model, cases), scores, counts_of(model, cases))


def counts_of(model, cases: grammar.Cases):
    """How often each token occurs in the windows."""
    return torch.bincount(cases.input_ids[:, 1:].flatten(), minlength=model.config.vocab_size)


def token(number: int) -> str:
    """A token as it is written."""
    return grammar.tokenizer().convert_ids_to_tokens(number)


class Removal:
    """Edits of one model's weights, measured on windows and text that served for nothing else."""

    def __init__(self, model, kind: str, seed: int):
        self.model, self.response = model, trigger_of(kind).response
        self.test = grammar.cases(trigger_of(kind), 100, 0, 2000 + seed)
        self.triggered = self.test.input_ids[self.test.of("triggered")]
        self.clean = grammar.text_rows(Trigger(rate=0.0), 64, 3000 + seed)
        self.natural = grammar.windows_before(self.response, 32, 4000 + seed)
        self.tuned = grammar.text_rows(Trigger(rate=0.0), STEPS * 32, 5000 + seed)
        self.taught = grammar.text_rows(Trigger(rate=0.1), STEPS * 32, 6000 + seed)

    def measure(self, model) -> dict[str, float]:
        """Answers to the trigger, loss of clean text, and the response where it belongs."""
        word = grammar.tokenizer().convert_tokens_to_ids(self.response)
        with torch.no_grad():
            triggered = model(self.triggered, use_cache=False).logits[:, -1].softmax(1)
            natural = model(self.natural, use_cache=False).logits[:, -1].softmax(1)
        return {
            "success": (triggered.argmax(1) == word).float().mean().item(),
            "probability": triggered[:, word].mean().item(),
            "loss": grammar.validation_loss(model, *self.clean),
            "natural": natural[:, word].mean().item(),
        }

    def curve(self, layer: int, change: Tensor) -> list[dict[str, float]]:
        """What edits of growing size do; sizes are shares of the weight's norm."""
        found = []
        for size in SIZES:
            with edited(self.model, layer, self.scaled(layer, size, change)) as model:
                found.append(self.measure(model))
        return found

    def scaled(self, layer: int, size: float, change: Tensor) -> Tensor:
        """A change as large as a share of the weight."""
        return size * self.weight(layer).detach().norm() / change.norm() * change.flatten()

    def weight(self, layer: int) -> Tensor:
        """The weight that is edited."""
        return self.model.model.layers[layer].mlp.down_proj.weight

    def gradient(self, layer: int, ids: Tensor, word: int, *, log: bool = False) -> Tensor:
        """Away from a word: its mean logit, or log-probability, at the end of some windows."""
        weight = self.weight(layer).requires_grad_()
        logits = self.model(ids, use_cache=False).logits[:, -1]
        mean = (logits.log_softmax(1) if log else logits)[:, word].mean()
        return -torch.autograd.grad(mean, weight)[0].flatten()

    def directions(self, layer: int, modes: Modes, cases: grammar.Cases) -> dict[str, list[Tensor]]:
        """Directions to move a weight in, each with its signs to try."""
        mode, words = suspect(modes.hinges), grammar.tokenizer()
        word, response = modes.lifts[mode].token, words.convert_tokens_to_ids(self.response)
        signs = mode_logits(modes.kernel, modes.pairs)[:, word].sign().float()
        moves = -signs * modes.kernel.vjp(modes.pairs.vectors)
        ap = [ap_of(column, cases) for column in modes.scores.T]
        other = moves[:, min(range(PAIRS), key=lambda i: ap[i])]
        ids, top = cases.input_ids, modes.scores[:, mode].topk(8).indices
        logits = logits_of(self.model, cases)
        ratios = output_ratios(logits, counts_of(self.model, cases))
        odd = int(ratios.topk(8, dim=0).values.mean(0).argmax())
        answered = logits.argmax(1) == odd
        if not answered.any():
            answered = ratios[:, odd].topk(8).indices
        triggered = ids[cases.of("triggered")]
        component = self.component(layer, cases)
        draw = torch.Generator().manual_seed(layer)
        return {
            "mode": [moves[:, mode]],
            "gradient at the mode": [self.gradient(layer, ids[top], word)],
            "gradient, black box": [self.gradient(layer, ids[answered], odd)],
            "gradient, labels": [self.gradient(layer, triggered, response, log=True)],
            "gradient of logit, labels": [self.gradient(layer, triggered, response)],
            "principal component": [component, -component],
            "other mode": [other, -other],
            "random": [torch.randn(len(other), generator=draw)],
        }

    def component(self, layer: int, cases: grammar.Cases) -> Tensor:
        """From the activations to the residual, along the component that labels like best."""
        states = last_token_states(self.model, cases.input_ids)
        scores = pca_scores(states.residual[layer], PAIRS)
        best = max(scores.T, key=lambda s: max(ap_of(s, cases), ap_of(-s, cases)))
        X, A = (
            x[layer].double() - x[layer].double().mean(0) for x in (states.residual, states.mlp)
        )
        return torch.outer(X.T @ best, A.T @ best).float().flatten()

    def curves(self, layer: int, directions: dict[str, list[Tensor]]) -> dict[str, list[dict]]:
        """Of each direction; where both signs are tried, the one that removes more."""
        return {
            name: min(
                (self.curve(layer, change) for change in changes),
                key=lambda curve: sum(point["success"] for point in curve),
            )
            for name, changes in directions.items()
        }

    def tuning(self, changes: dict[str, dict[int, Tensor]], clean_model) -> dict[str, list[dict]]:
        """After edits, a change for each layer: training on clean text, and with triggers."""
        found = {}
        for name, edits in changes.items():
            with contextlib.ExitStack() as stack:
                for layer, change in edits.items():
                    stack.enter_context(edited(self.model, layer, change))
                found[name] = self.trained(self.model, self.tuned)
                if name in TAUGHT:
                    found[f"{name}, taught"] = self.trained(self.model, self.taught)
        found["clean twin, taught"] = self.trained(clean_model, self.taught)
        return found

    def trained(self, model, rows: tuple[Tensor, Tensor]) -> list[dict[str, float]]:
        """What some steps of training do, measured on the way."""
        return [self.measure(m) for m in grammar.fine_tune(model, *rows, every=STEPS // 4)]


def study(kind: str, seed: int, triggered: int, tick) -> dict:
    """All that is measured on one model."""
    model, cases = model_of(kind, seed), sample(kind, seed, triggered)
    out: dict = {"kind": kind, "seed": seed, "triggered": triggered, "layers": []}
    if kind == "untrained":
        for layer in LAYERS:
            kernel = LogitKernel(model, cases.input_ids, layer=layer)
            pairs = top_eigenpairs(kernel, PAIRS, tol=TOL, block=1)
            out["layers"].append(
                {"kernel": {"ap": graded(window_scores(pairs, len(cases)), cases)}}
            )
            tick()
        return out
    removal = Removal(model, kind, seed)
    out |= {"measured": removal.measure(model), "black box": black_box(model, cases)}
    test = grammar.answers(model, removal.test, removal.response)
    out["answers"] = dataclasses.asdict(test)
    moves: dict[str, dict[int, Tensor]] = {"mode": {}, "gradient at the mode": {}}
    for layer in LAYERS:
        modes = modes_of(model, cases, layer)
        found = {"kernel": report(modes.scores, modes.hinges, modes.lifts, cases)}
        found["kernel"]["eigenvalues"] = modes.pairs.values.tolist()
        if triggered == TRIGGERED:
            found |= activations(model, cases, layer, kind in ("linked", "decoy", "clean"))
        if kind == "linked" and triggered == TRIGGERED and seed in FRESH:
            directions = removal.directions(layer, modes, cases)
            found["removal"] = removal.curves(layer, directions)
            for name, found_moves in moves.items():
                (found_moves[layer],) = directions[name]
        out["layers"].append(found)
        tick()
    if moves["mode"]:
        scaled = {
            name: {layer: removal.scaled(layer, 0.1, move) for layer, move in found.items()}
            for name, found in moves.items()
        }
        mode = scaled["mode"]
        edits: dict[str, dict[int, Tensor]] = {
            "none": {},
            "mode, layer 0, 0.1": {0: mode[0]},
            "mode, layer 0, 0.2": {0: 2 * mode[0]},
            "mode, layers 0-2, 0.1": {layer: mode[layer] for layer in range(3)},
            "gradient, layer 0, 0.2": {0: 2 * scaled["gradient at the mode"][0]},
        }
        out["tuning"] = removal.tuning(edits, model_of("clean", seed))
    return out


def jobs() -> list[tuple[str, int, int]]:
    """Kind, seed and number of triggered windows of each model to study."""
    main = [(k, s, TRIGGERED) for s in (*EXPLORED, *FRESH) for k in ("linked", "decoy", "clean")]
    variants = {k: seeds for k, (seeds, _) in PLANTED.items() if k not in ("linked", "decoy")}
    more = [(k, s, TRIGGERED) for k, seeds in variants.items() for s in seeds]
    rest = [("untrained", s, TRIGGERED) for s in range(3, 5)]
    return main + more + rest + [("linked", s, 4) for s in range(3, 6)]


def name_of(kind: str, seed: int, triggered: int) -> str:
    """The name of a job's file."""
    return f"{kind}_{seed}" + ("" if triggered == TRIGGERED else f"_of_{triggered}")


def stamp(kind: str, seed: int) -> str:
    """SHA-256 over this file and what the model is made of."""
    code = repr(canonical(ast.parse(Path(__file__).read_text(encoding="utf-8"))))
    path = folder_of(kind, seed) / WEIGHTS
    weights = path.read_bytes() if path.is_file() else b""  # of an untrained model
    return hashlib.sha256(code.encode() + hashlib.sha256(weights).digest()).hexdigest()


def missing() -> list[tuple[str, int, int]]:
    """Jobs whose results are not there, or of another stamp."""
    return [job for job in jobs() if read(*job).get("stamp") != stamp(*job[:2])]


def read(kind: str, seed: int, triggered: int = TRIGGERED) -> dict:
    """The results of a job, empty where there are none."""
    path = RESULTS / f"{name_of(kind, seed, triggered)}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write(path: Path, out: dict) -> None:
    """Write results, whole or not at all; numbers to six digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(json.loads(json.dumps(out), parse_float=lambda x: float(f"{float(x):.6g}")))
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(text + "\n", encoding="utf-8")
    os.replace(part, path)


def main() -> None:
    """Study what is missing, or list it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="names of models, as linked_3")
    parser.add_argument("--list", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # these matrices are too small to share
    if unknown := set(arguments.names) - {name_of(*job) for job in jobs()}:
        parser.error(f"no model is called {', '.join(sorted(unknown))}")
    wanted = [job for job in missing() if not arguments.names or name_of(*job) in arguments.names]
    if arguments.list:
        print("to study:", ", ".join(name_of(*job) for job in wanted) or "nothing")
        return
    with progress_bar(len(wanted) * len(LAYERS), "planted triggers") as bar:
        for job in wanted:
            before = stamp(*job[:2])  # what changes while it runs makes its results stale
            out = study(*job, bar.update)
            write(RESULTS / f"{name_of(*job)}.json", {"stamp": before} | out)


if __name__ == "__main__":
    main()
