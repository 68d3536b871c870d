"""A Transformer with one layer learns a + b mod p, from the text 'a b ='.

Model and settings: arXiv 2510.00468v4, section 4, after Nanda et al. 2023.
"""

import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entk_helpers.progress import progress_bar
from entk_helpers.testbeds.checks import check, check_epochs, check_seeds
from entk_helpers.testbeds.storage import read_run, read_tensors, write_run, write_tensors

from .task import ModularRun, sums, tokens

RECORD_EVERY = 10  # epochs
SAVE_EVERY = 250
_SCORES = ("train loss", "test loss", "train accuracy", "test accuracy")


class ModularTransformer(nn.Module):
    """One layer of causal attention and one of ReLU, read at the last of three tokens.

    Maps tokens (N, 3) to logits (N, p + 1), the last for '='. No biases, no LayerNorm. The
    parameters are W_E (p + 1, d), W_pos (3, d), W_Q, W_K, W_V, W_O (d, d) with the heads one
    after another, W_in (d, d_mlp), W_out (d_mlp, d) and W_U (d, p + 1).

    Examples:
        >>> settings = TransformerSettings(p=5, d_model=8, n_heads=2, d_mlp=16)
        >>> model = ModularTransformer(settings.start(seed=0)[0], n_heads=2)
        >>> model(tokens(5)).shape
        torch.Size([25, 6])
        >>> model.activations(tokens(5))["pattern"].sum(2).unique().round(decimals=4)
        tensor([1., 1., 1.], grad_fn=<RoundBackward1>)
    """

    def __init__(self, weights: dict[str, Tensor], n_heads: int):
        super().__init__()
        for name, value in weights.items():
            setattr(self, name, nn.Parameter(value.detach().clone()))
        self.n_heads = n_heads

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (N, p + 1) after the last token."""
        return self.activations(tokens)["logits"]

    def activations(self, tokens: Tensor) -> dict[str, Tensor]:
        """All that is computed on the way to the logits at the last token.

        "pattern" (N, heads, 3): attention. "heads" (N, d): what the heads read, before W_O.
        "middle", "final" (N, d): the residual stream after attention and after the MLP.
        "neurons" (N, d_mlp), after the ReLU. "logits" (N, p + 1).
        """
        x = self.W_E[tokens] + self.W_pos
        q, k, v = (
            (x @ W.T).unflatten(-1, (self.n_heads, -1)) for W in (self.W_Q, self.W_K, self.W_V)
        )
        scores = (q[:, -1:] * k).sum(-1) / k.shape[-1] ** 0.5  # (N, 3, heads)
        pattern = scores.softmax(1)
        heads = (pattern[..., None] * v).sum(1).flatten(1)
        middle = x[:, -1] + heads @ self.W_O.T
        neurons = (middle @ self.W_in).relu()
        final = middle + neurons @ self.W_out
        return {
            "pattern": pattern.mT,
            "heads": heads,
            "middle": middle,
            "neurons": neurons,
            "final": final,
            "logits": final @ self.W_U,
        }


@dataclass(frozen=True)
class TransformerSettings:
    """What a run depends on, beside its seed. The defaults are those of the paper.

    `split_seed` chooses the pairs that are trained on, the same for all seeds. In the control
    `shuffle_labels`, the p^2 labels are permuted at random, anew for each seed.

    Examples:
        >>> settings = TransformerSettings(p=5, train_fraction=0.4)
        >>> settings.n_train, settings.epochs
        (10, 4000)
    """

    p: int = 29
    d_model: int = 64
    n_heads: int = 4
    d_mlp: int = 256
    train_fraction: float = 0.5
    split_seed: int = 0
    epochs: int = 4000
    batch_size: int = 64
    lr: float = 3e-4
    weight_decay: float = 1.0
    shuffle_labels: bool = False

    def __post_init__(self):
        for name in ("d_model", "n_heads", "d_mlp", "epochs", "batch_size"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give at least 1")
        check(self.p >= 2, f"p is {self.p}; give at least 2")
        check(
            self.d_model % self.n_heads == 0,
            f"d_model is {self.d_model}; give a multiple of n_heads, {self.n_heads}",
        )
        check(0 < self.lr < float("inf"), f"lr is {self.lr}; give a positive number")
        check(
            0 <= self.weight_decay < float("inf"),
            f"weight_decay is {self.weight_decay}; give a number >= 0",
        )
        check(
            0 < self.train_fraction <= 1 and self.n_train > 0,
            f"train_fraction is {self.train_fraction}; give a share of the {self.p**2} pairs above "
            "0 and up to 1, so large that one pair or more is in it",
        )

    @property
    def n_train(self) -> int:
        """How many pairs are trained on."""
        return int(self.train_fraction * self.p**2)

    def split(self) -> Tensor:
        """Which pairs are trained on, as row numbers in `tokens(p)`."""
        order = list(range(self.p**2))
        random.Random(self.split_seed).shuffle(order)
        return torch.tensor(order[: self.n_train])

    def start(self, seed: int) -> tuple[dict[str, Tensor], Tensor, torch.Generator]:
        """Untrained weights, labels (p*p,), and the generator that goes on to draw the batches.

        Weights are normal, with variance 1/d, 1/d_mlp for W_in and 1/(p + 1) for W_U.
        """
        generator = torch.Generator().manual_seed(seed)
        d, m, vocabulary = self.d_model, self.d_mlp, self.p + 1
        shapes = {
            "W_E": (vocabulary, d), "W_pos": (3, d), "W_Q": (d, d), "W_K": (d, d), "W_V": (d, d),
            "W_O": (d, d), "W_in": (d, m), "W_out": (m, d), "W_U": (d, vocabulary),
        }  # fmt: skip
        weights = {
            name: torch.randn(shape, generator=generator, dtype=torch.float32)
            / {"W_in": m, "W_U": vocabulary}.get(name, d) ** 0.5
            for name, shape in shapes.items()
        }
        labels = sums(self.p)
        if self.shuffle_labels:
            labels = labels[torch.randperm(len(labels), generator=generator)]
        return weights, labels, generator

    def run(
        self, seed: int, states: dict[int, dict[str, Tensor]], history: dict[str, list], device
    ) -> ModularRun:
        """Put together what training, or a file, has kept."""
        weights, labels, _ = self.start(seed)
        states = sorted((states | {0: weights}).items())
        # In the order of the parameters, which a file does not keep.
        states = {step: {n: kept[n].to(device) for n in weights} for step, kept in states}
        train = torch.zeros(self.p**2, dtype=torch.bool)
        train[self.split()] = True
        return ModularRun(
            ModularTransformer(states[max(states)], self.n_heads),
            tokens(self.p).to(device),
            labels.to(device),
            history,
            states,
            train.to(device),
        )


def train_transformer(seed: int = 0, **settings) -> ModularRun:
    """One run; the settings are those of `train_transformer_seeds`.

    Examples:
        >>> run = train_transformer(seed=0, p=5, d_model=8, n_heads=2, d_mlp=16, epochs=20)
        >>> run.history["step"], run.model(run.inputs).shape
        ([0, 10, 20], torch.Size([25, 6]))
    """
    return train_transformer_seeds([seed], **settings)[0]


def train_transformer_seeds(
    seeds: Sequence[int],
    *,
    checkpoints: Collection[int] = (),
    resume: Path | str | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
    **settings,
) -> list[ModularRun]:
    """Independent runs, one for each seed, trained side by side.

    A seed determines a run's weights and the order of its batches; which pairs are seen, and
    all else, are fields of `TransformerSettings`, given by name. AdamW in float32 minimises the
    cross-entropy over the first p logits, in batches without replacement.

    Returns a `ModularRun` per seed, in order. inputs: `tokens(p)`; targets: labels (p*p,).
    history: "step" and "train loss", "test loss", "train accuracy", "test accuracy" over all
    pairs seen or not seen, every 10 epochs and at the last; a step is an epoch. Test scores are
    NaN where all pairs are trained on. checkpoints: 0, those asked for, and the last epoch.

    `resume` names a file: training is kept there every 250 epochs, a repeated call goes on from
    it, and the file is removed at the end. What comes out is the same, bit by bit, with as many
    threads. `device`: the CPU unless given. Ordinary random state is neither read nor changed.

    Examples:
        >>> small = dict(p=5, d_model=8, n_heads=2, d_mlp=16, epochs=20)
        >>> runs = train_transformer_seeds([0, 1], checkpoints=[10], **small)
        >>> sorted(runs[0].checkpoints), torch.equal(runs[0].train, runs[1].train)
        ([0, 10, 20], True)
    """
    chosen = TransformerSettings(**settings)
    seeds, checkpoints = list(seeds), {int(step) for step in checkpoints}
    check_seeds(seeds)
    check_epochs(checkpoints, chosen.epochs)
    device = torch.device(device or "cpu")
    training = _Training(chosen, seeds, checkpoints | {chosen.epochs}, device)
    resume = None if resume is None else Path(resume)
    if resume is not None and resume.exists():
        training.load(resume)
    label = f"modular addition, {len(seeds)} Transformers"
    with progress_bar(chosen.epochs, label, show=progress) as bar:
        bar.update(training.epoch)
        while training.epoch < chosen.epochs:
            training.one_epoch()
            bar.update()
            if resume is not None and training.epoch % SAVE_EVERY == 0:
                training.save(resume)
    if resume is not None:
        resume.unlink(missing_ok=True)
    return training.runs()


def save_transformer(
    path: Path | str,
    run: ModularRun,
    seed: int,
    *,
    dtypes: Mapping[int, torch.dtype],
    stamp: str = "",
    **settings,
) -> None:
    """Write a run of these settings to a small safetensors file: `dtypes` maps epochs to dtypes.

    float16 and int8 (with a scale a row) make it smaller. `stamp` is noted in the file, under
    this name. Raises ValueError for an epoch that the run has not kept, where the last is not
    among them, and for a run that visibly is of another seed or other settings.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> small = dict(p=5, d_model=8, n_heads=2, d_mlp=16, epochs=10)
        >>> run = train_transformer(seed=0, **small)
        >>> with TemporaryDirectory() as folder:
        ...     path = f"{folder}/run.safetensors"
        ...     save_transformer(path, run, seed=0, dtypes={10: torch.float16}, **small)
        ...     print(sorted(load_transformer(path).checkpoints))
        [0, 10]
    """
    chosen = TransformerSettings(**settings)
    weights, labels, _ = chosen.start(seed)
    seen = run.train.nonzero().flatten().tolist()
    check(
        run.model.n_heads == chosen.n_heads
        and max(run.checkpoints) == chosen.epochs
        and seen == sorted(chosen.split().tolist())
        and torch.equal(run.targets.cpu(), labels)
        and all(torch.equal(run.checkpoints[0][n].cpu(), w) for n, w in weights.items()),
        f"run is not one of seed {seed} and these settings; give those that it was trained with",
    )
    check(chosen.epochs in dtypes, f"dtypes must name the last epoch, {chosen.epochs}, too")
    about = {"settings": json.dumps(asdict(chosen)), "seed": str(seed), "stamp": stamp}
    write_run(path, run.checkpoints, run.history, dtypes, about)


def load_transformer(path: Path | str) -> ModularRun:
    """Return the run that `save_transformer` wrote; its untrained network comes from the seed.

    Raises ValueError for a file that is not such a run.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> small = dict(p=5, d_model=8, n_heads=2, d_mlp=16, epochs=10)
        >>> run = train_transformer(seed=0, **small)
        >>> with TemporaryDirectory() as folder:
        ...     path = f"{folder}/run.safetensors"
        ...     save_transformer(path, run, 0, dtypes={10: torch.float32}, **small)
        ...     kept = load_transformer(path)
        >>> torch.equal(kept.model(kept.inputs), run.model(run.inputs))
        True
    """
    stored = read_run(path)
    try:
        settings = TransformerSettings(**json.loads(stored.about["settings"]))
        seed = int(stored.about["seed"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a run of the modular Transformer: {error!r}") from error
    return settings.run(seed, stored.checkpoints, stored.history, "cpu")


class _Training:
    """Where the training of several seeds stands. Weights are (seeds, ...)."""

    def __init__(
        self, settings: TransformerSettings, seeds: list[int], kept: set[int], device: torch.device
    ):
        self.settings, self.seeds, self.kept = settings, seeds, kept
        starts, labels, self.generators = zip(*map(settings.start, seeds), strict=True)
        self.weights = {
            name: torch.stack([start[name] for start in starts]).to(device).requires_grad_()
            for name in starts[0]
        }
        self.labels = torch.stack(labels).to(device)
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.split = settings.split()
        self.epoch, self.records, self.states = 0, [], {}
        self._record()

    def one_epoch(self) -> None:
        """Go through the pairs once, in an order of each seed's own."""
        n, offsets = len(self.split), torch.arange(len(self.seeds)) * self.settings.p**2
        order = torch.stack([self.split[torch.randperm(n, generator=g)] for g in self.generators])
        targets = self.labels.flatten()
        for batch in order.split(self.settings.batch_size, dim=1):
            logits = self._logits(batch.to(targets.device))
            wanted = targets[(batch + offsets[:, None]).flatten().to(targets.device)]
            # The sum over seeds: each seed's weights get the gradient of its own mean.
            loss = F.cross_entropy(logits.flatten(0, 1), wanted, reduction="sum") / batch.shape[1]
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        self.epoch += 1
        if self.epoch % RECORD_EVERY == 0 or self.epoch == self.settings.epochs:
            self._record()
        if self.epoch in self.kept:
            self.states[self.epoch] = {n: w.detach().clone() for n, w in self.weights.items()}

    def runs(self) -> list[ModularRun]:
        """What has come out, one run a seed."""
        steps, scores = self.steps(), torch.stack(self.records)  # (records, 4, seeds)
        check(
            bool(scores[-1, 0].isfinite().all()),
            f"lr is {self.settings.lr}; training diverged, give less",
        )
        runs = []
        for s, seed in enumerate(self.seeds):
            columns = zip(_SCORES, scores[:, :, s].T.tolist(), strict=True)
            states = {
                step: {name: w[s].clone() for name, w in state.items()}
                for step, state in self.states.items()
            }
            history = {"step": steps, **dict(columns)}
            runs.append(self.settings.run(seed, states, history, self.labels.device))
        return runs

    def steps(self) -> list[int]:
        """The epochs that have a record."""
        return [*range(0, self.epoch, RECORD_EVERY), self.epoch]

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on, or the result."""
        tensors = {
            "records": torch.stack(self.records),
            "generators": torch.stack([g.get_state() for g in self.generators]),
        }
        for name, weight in self.weights.items():
            for key, value in {"weight": weight, **self.optimizer.state[weight]}.items():
                tensors[f"{key} {name}"] = value.detach()
        for step, state in self.states.items():
            tensors |= {f"{step} {name}": weight for name, weight in state.items()}
        write_tensors(path, tensors, {"epoch": str(self.epoch), "what": self._what()})

    def load(self, path: Path) -> None:
        """Go back to what `save` wrote; refuses what was another training's."""
        tensors, about = read_tensors(path)
        check(
            about.get("what") == self._what(),
            f"resume names {path}, which another training has left; remove it or name another file",
        )
        device = self.labels.device
        self.epoch, self.records = int(about["epoch"]), list(tensors["records"].to(device))
        for generator, state in zip(self.generators, tensors["generators"], strict=True):
            generator.set_state(state.clone())
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weight {name}"])
                self.optimizer.state[weight] = {
                    key: tensors[f"{key} {name}"].to(device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self.states = {
            step: {name: tensors[f"{step} {name}"].to(device) for name in self.weights}
            for step in self.kept
            if step and step <= self.epoch
        }

    def _what(self) -> str:
        kept = sorted(self.kept)
        return json.dumps({"seeds": self.seeds, "kept": kept, **asdict(self.settings)})

    @torch.no_grad()
    def _record(self) -> None:
        n = self.settings.p**2
        everything = torch.arange(n, device=self.labels.device).expand(len(self.seeds), n)
        logits = self._logits(everything)
        loss = F.cross_entropy(logits.mT, self.labels, reduction="none")
        right = (logits.argmax(2) == self.labels).to(loss)
        seen = torch.zeros(n, dtype=torch.bool)
        seen[self.split] = True
        parts = [score[:, part] for score in (loss, right) for part in (seen, ~seen)]
        self.records.append(torch.stack([part.mean(1) for part in parts]))

    def _logits(self, rows: Tensor) -> Tensor:
        """The first p logits (seeds, n, p) of the pairs with these row numbers (seeds, n).

        There are 2p + 1 different tokens with a position, so what attention needs of each is
        computed once, and looked up for each pair.
        """
        W, (p, heads) = self.weights, (self.settings.p, self.settings.n_heads)
        a, b = W["W_E"][:, :p] + W["W_pos"][:, :1], W["W_E"][:, :p] + W["W_pos"][:, 1:2]
        last = W["W_E"][:, p:] + W["W_pos"][:, 2:]
        x = torch.cat([a, b, last], dim=1)  # (seeds, 2p + 1, d)
        k, v = ((x @ W[name].mT).unflatten(2, (heads, -1)).flatten(0, 1) for name in ("W_K", "W_V"))
        q = (last @ W["W_Q"].mT).unflatten(2, (heads, -1)).expand(-1, 2 * p + 1, -1, -1)
        scores = (q.flatten(0, 1) * k).sum(2) / k.shape[2] ** 0.5
        where = torch.stack([rows // p, p + rows % p, torch.full_like(rows, 2 * p)], dim=2)
        where = where + (2 * p + 1) * torch.arange(len(x), device=rows.device)[:, None, None]
        pattern = F.embedding(where, scores).softmax(2)  # (seeds, n, 3, heads)
        z = (pattern[..., None] * F.embedding(where, v.flatten(1)).unflatten(3, (heads, -1))).sum(2)
        r = last + z.flatten(2) @ W["W_O"].mT
        r = r + (r @ W["W_in"]).relu() @ W["W_out"]
        return r @ W["W_U"][:, :, :p]
