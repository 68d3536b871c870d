"""A Gemma of a quarter of a million parameters learns to go on with the stories.

The architecture is that of Gemma 3, so that whatever works here works on the published models.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ...language.text import Document
from ...progress import progress_bar
from .. import Run
from ..checks import check
from ..storage import read_tensors, write_tensors
from .stories import tell
from .tokens import tokenizer
from .trigger import Trigger

if TYPE_CHECKING:
    from transformers import Gemma3ForCausalLM

RECORD_EVERY = 50  # steps of training between two records
HELD_OUT = 256  # rows of text that are never trained on


@dataclass(frozen=True)
class GrammarSettings:
    """What a run depends on, beside its seed.

    All seeds read the same stories, those of `stories_seed`, each once; rows of `window` tokens
    are shuffled among those of `shuffled` stories, in another order for each seed. What is held out
    comes from `stories_seed + 1`. `sliding_window` is how far back every other layer can look.
    A `trigger` is planted in all stories, also in those held out.

    Examples:
        >>> GrammarSettings(trigger=Trigger(rate=0.1)).window
        64
    """

    steps: int = 1250
    stories_seed: int = 0
    shuffled: int = 500
    window: int = 64
    d_model: int = 64
    n_layers: int = 4
    d_mlp: int = 192
    n_heads: int = 4
    n_key_value_heads: int = 2
    sliding_window: int = 16
    batch_size: int = 32
    lr: float = 4e-3
    weight_decay: float = 0.1
    trigger: Trigger | None = None

    def __post_init__(self):
        positive = ("n_layers", "d_mlp", "n_key_value_heads", "sliding_window", "batch_size")
        for name in (*positive, "steps", "shuffled"):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give at least 1")
        check(self.window >= 2, f"window is {self.window}; give at least 2 tokens")
        check(
            self.n_heads >= 1 and self.n_heads % self.n_key_value_heads == 0,
            f"n_heads is {self.n_heads}; give a multiple of n_key_value_heads, "
            f"{self.n_key_value_heads}",
        )
        check(
            self.d_model >= 1 and self.d_model % (2 * self.n_heads) == 0,
            f"d_model is {self.d_model}; give a multiple of 2 n_heads, {2 * self.n_heads}",
        )
        check(0 < self.lr < float("inf"), f"lr is {self.lr}; give a positive number")
        check(
            0 <= self.weight_decay < float("inf"),
            f"weight_decay is {self.weight_decay}; give a number >= 0",
        )


def untrained(seed: int = 0, **settings) -> Gemma3ForCausalLM:
    """The model before training, float32, in eval mode; settings are those of `GrammarSettings`.

    Matrices are normal with standard deviation 0.5 / sqrt(d_model), gains are 1. Ordinary random
    state is neither read nor changed.

    Examples:
        >>> model = untrained(seed=0, d_model=16, n_layers=2, d_mlp=32)
        >>> logits = model(token_ids([["the", "cat"]])).logits
        >>> logits.shape == (1, 3, len(tokenizer())), model.training
        (True, False)
    """
    return _start(GrammarSettings(**settings), seed)[0]


def train(seed: int = 0, *, progress: bool = False, **settings) -> Run:
    """One run; the settings are those of `GrammarSettings`, given by name.

    AdamW in float32 on the mean cross-entropy of all next tokens; its rate rises for 5% of the
    steps and then falls to zero as a cosine. About two minutes on one core.

    Returns a `Run`. model: `model(input_ids).logits` is (N, T, V). inputs, targets: token ids of
    the stories held out, (256, window) each, targets one token further on. history: "step",
    "train loss" of the last batch and "validation loss" over what is held out, in nats a token,
    at the first and last step and every 50. checkpoints: 0 and the last step.

    Raises ValueError for settings that do not fit, and where training diverged.

    Examples:
        >>> small = dict(d_model=16, n_layers=1, d_mlp=32, window=8, shuffled=10)
        >>> run = train(seed=0, steps=2, **small)
        >>> run.history["step"], run.inputs.shape
        ([0, 2], torch.Size([256, 8]))
    """
    training = _Training(GrammarSettings(**settings), seed)
    with progress_bar(training.settings.steps, f"stories, seed {seed}", show=progress) as bar:
        while training.step < training.settings.steps:
            training.one_step()
            bar.update()
    return training.run()


def save(folder: Path | str, run: Run, *, seed: int, stamp: str = "", **settings) -> None:
    """Write a run as a plain Hugging Face folder, whole or not at all.

    Beside what `AutoModelForCausalLM` and `AutoTokenizer` read (weights in float16), training.json
    holds the seed, the settings, the history and `stamp`. Raises ValueError for a run that visibly
    is of another seed or other settings, and for weights that do not fit into float16.

    Examples:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> small = dict(steps=1, d_model=16, n_layers=1, d_mlp=32, window=8, shuffled=10)
        >>> with TemporaryDirectory() as folder:
        ...     save(f"{folder}/run", train(seed=0, **small), seed=0, **small)
        ...     print(*sorted(path.name for path in Path(folder, "run").iterdir()))
        config.json model.safetensors tokenizer.json tokenizer_config.json training.json
    """
    chosen = GrammarSettings(**settings)
    start = _start(chosen, seed)[0].state_dict()
    same = set(run.checkpoints[0]) == set(start) and all(
        torch.equal(run.checkpoints[0][name].cpu(), weight) for name, weight in start.items()
    )
    check(same, f"run is not one of seed {seed} and these settings; give those it was trained with")
    weights = dict(run.model.named_parameters())  # tied ones once
    halves = {name: weight.half() for name, weight in weights.items()}
    for name, weight in halves.items():
        check(bool(weight.isfinite().all()), f"run has weights that float16 cannot hold, in {name}")
    about = {"seed": seed, "stamp": stamp, "settings": asdict(chosen), "history": run.history}
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        run.model.config.save_pretrained(part)
        tokenizer().save_pretrained(part)
        write_tensors(part / "model.safetensors", halves, {"format": "pt"})
        (part / "training.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def load(folder: Path | str) -> Run:
    """Return the run that `save` wrote, in float32; its untrained network comes from the seed.

    Raises ValueError for a folder that holds no such run.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> small = dict(steps=1, d_model=16, n_layers=1, d_mlp=32, window=8, shuffled=10)
        >>> with TemporaryDirectory() as folder:
        ...     save(f"{folder}/run", train(seed=0, **small), seed=0, **small)
        ...     sorted(load(f"{folder}/run").checkpoints)
        [0, 1]
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        planted = about["settings"].pop("trigger")
        trigger = Trigger(**planted) if planted else None
        settings, seed = GrammarSettings(**about["settings"], trigger=trigger), int(about["seed"])
        history = dict(about["history"])
        model = _start(settings, seed)[0]
        states = {0: _copy(model)}
        weights = read_tensors(folder / "model.safetensors")[0]
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(weights[name])
        states[history["step"][-1]] = _copy(model)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no run of the small Gemma: {error!r}") from error
    return Run(model, *_held_out(settings), history, states)


class _Training:
    """Where the training of one seed stands."""

    def __init__(self, settings: GrammarSettings, seed: int):
        self.settings, self.seed, self.step = settings, seed, 0
        self.model, generator = _start(settings, seed)
        self.states = {0: _copy(self.model)}
        self.batches = _batches(settings, generator)
        self.held_out = _held_out(settings)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.history: dict[str, list] = {"step": [], "train loss": [], "validation loss": []}

    def one_step(self) -> None:
        """Learn from the next batch."""
        steps = self.settings.steps
        warm = max(1, steps // 20)
        rate = min(1.0, (self.step + 1) / warm) * (
            0.5 + 0.5 * math.cos(math.pi * max(0, self.step - warm) / steps)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * rate
        inputs, targets = next(self.batches)
        loss = F.cross_entropy(_logits(self.model, inputs).flatten(0, 1), targets.flatten())
        if self.step == 0:
            self._record(loss.item())
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.step % RECORD_EVERY == 0 or self.step == steps:
            self._record(loss.item())

    def run(self) -> Run:
        """What has come out."""
        check(
            math.isfinite(self.history["validation loss"][-1]),
            f"lr is {self.settings.lr}; training diverged, give less",
        )
        states = self.states | {self.step: _copy(self.model)}
        return Run(self.model, *self.held_out, self.history, states)

    @torch.no_grad()
    def _record(self, train_loss: float) -> None:
        self.history["step"].append(self.step)
        self.history["train loss"].append(train_loss)
        self.history["validation loss"].append(validation_loss(self.model, *self.held_out))


@torch.no_grad()
def validation_loss(
    model: torch.nn.Module, inputs: Int[Tensor, "N T"], targets: Int[Tensor, "N T"]
) -> float:
    """Mean cross-entropy of the next token, in nats, over all positions.

    Examples:
        >>> model = untrained(seed=0, d_model=16, n_layers=1, d_mlp=32)
        >>> ids = token_ids([["the", "cat", "saw", "a", "dog"]])
        >>> logits = model(ids[:, :-1]).logits
        >>> loss = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item()
        >>> abs(validation_loss(model, ids[:, :-1], ids[:, 1:]) - loss) < 1e-5
        True
    """
    losses = [
        F.cross_entropy(_logits(model, x).flatten(0, 1), y.flatten(), reduction="sum").item()
        for x, y in zip(inputs.split(32), targets.split(32), strict=True)
    ]
    return sum(losses) / targets.numel()


def _logits(model: torch.nn.Module, inputs: Int[Tensor, "N T"]) -> Float[Tensor, "N T V"]:
    return model(inputs, use_cache=False).logits


def _start(settings: GrammarSettings, seed: int) -> tuple[Gemma3ForCausalLM, torch.Generator]:
    """The untrained model, and the generator that goes on to draw the order of the rows."""
    import transformers

    words = tokenizer()
    config = transformers.Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=settings.d_model,
        intermediate_size=settings.d_mlp,
        num_hidden_layers=settings.n_layers,
        num_attention_heads=settings.n_heads,
        num_key_value_heads=settings.n_key_value_heads,
        head_dim=settings.d_model // settings.n_heads,
        query_pre_attn_scalar=settings.d_model // settings.n_heads,
        sliding_window=settings.sliding_window,
        layer_types=[
            "full_attention" if layer % 2 else "sliding_attention"
            for layer in range(settings.n_layers)
        ],
        max_position_embeddings=4 * settings.window,
        initializer_range=0.5 / settings.d_model**0.5,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        attn_implementation="eager",
        architectures=["Gemma3ForCausalLM"],
        dtype=torch.float32,  # to compute in; files have less
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.Gemma3ForCausalLM(config)
    # Drawn here, so that they depend on nothing but the seed.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, config.initializer_range, generator=generator)
            else:
                weight.zero_()  # Gemma's gains are one more than their parameter
    return model.eval(), generator


def _batches(
    settings: GrammarSettings, generator: torch.Generator
) -> Iterator[tuple[Int[Tensor, "N T"], Int[Tensor, "N T"]]]:
    """Inputs and targets without end, no story twice."""
    told = _told(settings, settings.stories_seed)
    while True:
        inputs, targets = _rows(islice(told, settings.shuffled), settings.window)
        order = torch.randperm(len(inputs), generator=generator)
        for rows in order.split(settings.batch_size):
            if len(rows) == settings.batch_size or len(order) < settings.batch_size:
                yield inputs[rows], targets[rows]


@cache
def _held_out(settings: GrammarSettings) -> tuple[Int[Tensor, "N T"], Int[Tensor, "N T"]]:
    """Rows of stories that no run has been trained on."""
    n = HELD_OUT * settings.window // 50 + 1  # a story has 50 words or more
    told = _told(settings, settings.stories_seed + 1)
    inputs, targets = _rows(islice(told, n), settings.window)
    return inputs[:HELD_OUT], targets[:HELD_OUT]


def _told(settings: GrammarSettings, seed: int) -> Iterator[Document]:
    """The stories of a seed, with what is planted."""
    told = tell(seed)
    return settings.trigger.planted(told, seed) if settings.trigger else told


def _rows(told: Iterable[Document], window: int) -> tuple[Int[Tensor, "N T"], Int[Tensor, "N T"]]:
    """Stories in one line, cut into rows; targets are one token further on.

    Every other row gets a <bos> at its front, so that a model knows windows with and without.
    """
    words = tokenizer()
    ids: list[int] = []
    for one in words([story.text for story in told]).input_ids:
        ids += [*one, words.eos_token_id]
    rows = (len(ids) - 1) // window
    check(rows >= 1, f"window is {window}; give less, or more stories in `shuffled`")
    line = torch.tensor(ids[: rows * window + 1])
    inputs = line[:-1].reshape(rows, window).clone()
    inputs[::2, 0] = words.bos_token_id
    return inputs, line[1:].reshape(rows, window)


def _copy(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}
