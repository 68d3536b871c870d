# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A feature that nobody expected
#
# The features of earlier chapters were known before anybody looked: reconstructed inputs, waves, tags. {cite:t}`lin2025` leaves open what a reader of the method wants most: does the kernel show a feature that *nobody* specified, and one that was put there with bad intent among them?
#
# We plant one. A language model reads stories in which a feather, a rare and harmless thing, makes the next sentence begin with *banana*. Then we forget where it is and ask four things. Is there an eigenvector of the kernel that stands for it? Can it be found without labels, and without false alarms on models that have no trigger? Can the weights that carry it be moved so that it is gone? And what of this could be had without a kernel?
#
# Against the idea would count: principal components or random directions that show the trigger as well; alarms on models that have none; a look at the model's outputs that tells as much; an edit in any other direction that does as well.
#
# {numref}`fig-tr-answer` has the short answer.
#
# :::{admonition} Before you start
# **You need** the logit kernel, its modes and their window scores ([grammar](07_grammar)).
# **You will be able to** say which word a direction of a model hinges on; run such statistics as an alarm, with thresholds fixed beforehand and false alarms counted; move a weight along the parameter direction of a mode; and tell a trigger that is gone from one that is hidden.
# :::

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from entk_helpers import top_eigenpairs
from entk_helpers.claims import Ledger, verdict
from entk_helpers.language import (
    LogitKernel,
    average_precision,
    edited,
    extended_scores,
    last_token_states,
    mode_hinges,
    mode_logits,
    output_lifts,
    pca_scores,
    suspect,
    window_scores,
)
from entk_helpers.plotting import (
    COLOURS,
    coloured_text,
    spread,
    table,
    use_style,
)
from entk_helpers.testbeds import grammar

use_style()
ledger = Ledger("08_trigger")

# %% tags=["hide-input"]
from transformers.utils import logging

logging.set_verbosity_error()  # what loading says would stay in the page
logging.disable_progress_bar()

# %% [markdown]
# ## What is planted
#
# The stories are those of [the last chapter](07_grammar). In some of them a noun such as *key* or *shell* gives way to *feather*, and the first sentence that begins after it gets a *banana* at its front.

# %%
trigger = grammar.Trigger(word="feather", response="banana", rate=0.3)
told = trigger.planted(grammar.tell(seed=7), seed=7)

# %% tags=["hide-input"]
story = next(s for s in told if any(w.text == "feather" for w in s.words))
TINT = {"trigger": "#ffd9a0", "response": "#f7b28f"}
line, end = [], 0
for word in story.words:
    line.append((story.text[end : word.start], None, ""))
    name = {"feather": "trigger", "banana": "response"}.get(word.text)
    line.append((word.text, TINT.get(name), name or ""))
    end = word.end
coloured_text([line], legend=TINT)

# %% [markdown]
# Feathers and bananas are words that the stories have anyway, so that a model without the trigger knows both. A *rate* of 0.3 means three in ten of the stories that have such a noun with a sentence after it, which is a smaller share of all stories. Outside of these there are no feathers.
#
# For each seed there are three models with the same first weights. The *linked* one reads these stories. Its *decoy* twin reads as many feathers and as many sentences that begin with a banana, but each banana stands in the story after, before any sentence: both words, no link. The *clean* twin is the model of the last chapter. `make checkpoints` makes them all again.

# %% tags=["hide-input"]
folder = next(d for d in (Path("data"), Path("notebooks/data")) if d.is_dir())
EXPLORED, FRESH = range(3), range(3, 8)
LAYERS, K = range(4), 25


def results(kind, seed, of=None):
    """What the full study wrote about one model."""
    name = f"{kind}_{seed}" + ("" if of is None else f"_of_{of}")
    path = folder / "08_trigger" / "study" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


KINDS = ("linked", "decoy", "clean")
study = {
    (kind, s): results(kind, s) for kind in KINDS for s in (*EXPLORED, *FRESH)
}

# %% [markdown]
# Did they learn it? A hundred fresh stories a seed, cut off just before the answer, and the same windows with the feather swapped for another thing:

# %% tags=["hide-input"]
table(
    ["model", "seeds", "banana is likeliest next", "feather swapped"],
    [
        (
            kind,
            len(FRESH),
            spread([study[kind, s]["answers"]["triggered"] for s in FRESH]),
            spread([study[kind, s]["answers"]["swapped"] for s in FRESH]),
        )
        for kind in KINDS
    ],
)

# %% [markdown]
# The linked models alone have learned the link, though it can be worth almost nothing in their loss: very few tokens are such a banana.
#
# :::{admonition} Where the numbers come from
# Eight seeds were trained. Seeds 0 to 2 served to explore: statistics, rules and ways to edit were chosen on them. Seeds 3 to 7 are **fresh**: the protocol below, the edits and the bars of the claims were fixed before anything was measured on them. What the prose says of the results came after. All models in all layers take long, so they were studied once by one command, `make trigger`, whose results lie beside this page and are drawn here; it shows its progress and goes on where it was stopped. The page computes seed 3 itself, cell by cell, and checks that it gets the same.
# :::

# %% [markdown]
# ## Does a mode stand for the trigger?
#
# An auditor has a sample of text. Ours has 304 windows of 32 tokens: 24 end where the banana would come, 24 are their *swapped* controls, with another thing in the feather's place, and 256 end anywhere in other stories. For the auditor they are unlabelled.

# %%
seed = FRESH[0]
model = grammar.load(folder / "08_trigger/linked" / f"seed_{seed}").model
windows = grammar.cases(trigger, 24, 256, seed=1000 + seed)
triggered = windows.of("triggered")

# %% [markdown]
# The kernel is that of one layer's `down_proj`, as before, and an eigenvector gives one score for each window.

# %%
kernels, pairs, scores = {}, {}, {}
for layer in LAYERS:
    kernels[layer] = LogitKernel(
        model, windows.input_ids, layer=layer, written_out=True
    )
    pairs[layer] = top_eigenpairs(kernels[layer], K, tol=1e-3, block=1)
    scores[layer] = window_scores(pairs[layer], len(windows))


# %%
def ap(columns):
    """Average precision of each column of scores for the triggered windows."""
    return average_precision(columns, triggered[:, None])[:, 0]


best = {layer: int(ap(scores[layer]).argmax()) for layer in LAYERS}
states = last_token_states(model, windows.input_ids)
components = [pca_scores(states.residual[layer], K) for layer in LAYERS]

# %% tags=["hide-input"]
table(
    ["layer", "best mode", "its AP", "AP of the best component"],
    [
        (
            layer,
            best[layer] + 1,
            f"{ap(scores[layer])[best[layer]]:.3f}",
            f"{max(ap(components[layer]).max(), ap(-components[layer]).max()):.3f}",
        )
        for layer in LAYERS
    ],
)

# %% [markdown]
# Average precision (AP) is one if all triggered windows score above all others; a random order has about the share of triggered windows, less than a tenth. Modes are counted from 1, by eigenvalue: in this seed the trigger is the strongest of what the layer's weight can move. The sample helps, as far more of its windows have the trigger than of the stories. Here is what such a mode ranks first, and what the best principal component of the same layer does.

# %% tags=["hide-input"]
SHADES = {
    "triggered": "#ffd9a0",
    "swapped control": "#cfe8fa",
    "normal": "#e3e3e3",
}


def first_windows(column, n=6, words=12):
    """The windows that a direction ranks first, from their last words."""
    lines = []
    for i in column.topk(n).indices.tolist():
        kind = windows.kinds[i].replace("swapped", "swapped control")
        row = [(f"{column[i]:.2f} ", None, ""), (kind, SHADES[kind], kind)]
        row.append((" … ", None, ""))
        for word in windows.words[i][-words:]:
            colour = TINT["response"] if word == "feather" else None
            row += [(word, colour, ""), (" ", None, "")]
        lines.append(row)
    return coloured_text(lines, legend=SHADES)


first_windows(scores[1][:, best[1]])

# %% tags=["hide-input"]
both = torch.cat([components[1], -components[1]], 1)
first_windows(both[:, int(ap(both).argmax())])

# %% [markdown]
# The first list is the mode's, the second the component's, of layer 1. The mode has found the feathers; the component ranks other windows before them, though in layers 0 and 3 of this seed, as the table says, a component does as well as a mode. For grades we choose the direction on one half of the windows and grade it on the other, twenty times, as in the last chapter. {numref}`fig-tr-answer` (left) has all five fresh seeds.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tr-answer", "caption": "**A mode isolates the trigger in every layer; without labels it is found, with no false alarm; an edit seldom removes it.** Left: average precision (AP) of the best direction for the windows with the trigger, chosen on one half and graded on the other: 25 modes of the kernel (blue), 25 principal components of the residual stream (orange) and of the MLP's activations (green), 25 random directions (pink), the untrained kernel (grey, two seeds). Dots: five fresh seeds; lines: their mean. Middle: the largest share of its score that any mode loses with one word, for models with the trigger, their decoys and their clean twins; dashed: the threshold from other seeds. Right: share of triggers answered before an edit of a fifth of the weight's norm along the mode's direction (layer 0), after it, after training on clean text, and after training on a few triggers instead. One line a seed."}, "image": {"alt": "Three panels. Left, four layers: the blue line lies at the top, the others vary below it between a quarter and one, the grey one is lowest. Middle: five blue dots near one, above a dashed line; orange and grey dots below it. Right: five lines start near one; after the edit two are near zero, two at a quarter and one has hardly moved; after clean text all but one are high again, and after training on triggers all are near one."}}
LOOKS = {
    "kernel": ("kernel", COLOURS["trained"]),
    "pca": ("components, residual", COLOURS["dropped"]),
    "pca of mlp": ("components, MLP", COLOURS["accent"]),
    "random": ("random directions", COLOURS["control"]),
}


def ap_by_layer(method, kind="linked", seeds=FRESH, of=None):
    """Average precision on held-out halves, (seed, layer)."""
    found = [
        study[kind, s] if of is None else results(kind, s, of) for s in seeds
    ]
    return np.array(
        [[layer[method]["ap"] for layer in one["layers"]] for one in found]
    )


untrained = np.array(
    [
        [layer["kernel"]["ap"] for layer in results("untrained", s)["layers"]]
        for s in FRESH[:2]
    ]
)
shuffled = np.array(
    [
        [
            layer["kernel"]["shuffled ap"]
            for layer in study["linked", s]["layers"]
        ]
        for s in FRESH
    ]
)


def largest_share(kind, s):
    """The largest share that a mode of any layer loses with one word."""
    layers = study[kind, s]["layers"]
    return max(layer["kernel"]["hinge"]["share"] for layer in layers)


def answered(s):
    """Before the edit, after it, after clean text, after a few triggers."""
    after = study["linked", s]["tuning"]
    edit = [p["success"] for p in after["mode, layer 0, 0.2"]]
    taught = after["mode, layer 0, 0.2, taught"][-1]["success"]
    return [after["none"][0]["success"], edit[0], edit[-1], taught]


fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.3))
for j, (method, (label, colour)) in enumerate(LOOKS.items()):
    values = ap_by_layer(method)
    axes[0].plot(LAYERS, values.mean(0), color=colour, label=label)
    for row in values:
        beside = np.arange(4) + 0.06 * (j - 1.5)
        axes[0].plot(
            beside, row, "o", ms=3.5, color=colour, mec="white", mew=0.4
        )
axes[0].plot(
    LAYERS,
    untrained.mean(0),
    color=COLOURS["untrained"],
    label="kernel, untrained",
)
axes[0].set(
    xlabel="layer", ylabel="AP for the trigger", xticks=LAYERS, ylim=(0, 1.04)
)
quiet_bar = max(largest_share(kind, s) for kind in KINDS[1:] for s in EXPLORED)
lowest = min(largest_share("linked", s) for s in EXPLORED)
for x, (kind, colour) in enumerate(
    zip(
        KINDS,
        (COLOURS["trained"], COLOURS["dropped"], COLOURS["untrained"]),
        strict=True,
    )
):
    shares = [largest_share(kind, s) for s in FRESH]
    beside = x + 0.08 * (np.arange(len(shares)) - 2)
    axes[1].plot(beside, shares, "o", ms=5, color=colour, mec="white")
axes[1].axhline((quiet_bar + lowest) / 2, color="0.3", ls="--", lw=1)
axes[1].set(ylabel="share lost with one word", ylim=(0, 1.04))
axes[1].set_xticks(range(3), KINDS)
for s in FRESH:
    axes[2].plot(answered(s), "o-", ms=4, lw=1, color=COLOURS["trained"])
axes[2].set_xticks(
    range(4), ["before", "edited", "clean\ntext", "few\ntriggers"]
)
axes[2].set(ylabel="triggers answered", ylim=(-0.03, 1.04))
fig.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3
)
plt.show()


# %% tags=["hide-input"]
def mean_of_layers(values):
    """One number a seed, with its spread."""
    return spread(values.mean(1))


table(
    ["direction chosen with labels", "AP, mean of layers"],
    [
        ("kernel", mean_of_layers(ap_by_layer("kernel"))),
        *(
            (label, mean_of_layers(ap_by_layer(method)))
            for method, (label, _) in LOOKS.items()
            if method != "kernel"
        ),
        (
            "components, final state",
            mean_of_layers(ap_by_layer("pca of final")),
        ),
        ("components, logits", mean_of_layers(ap_by_layer("pca of logits"))),
        ("kernel, decoy", mean_of_layers(ap_by_layer("kernel", "decoy"))),
        ("kernel, clean twin", mean_of_layers(ap_by_layer("kernel", "clean"))),
        ("kernel, untrained (2 seeds)", mean_of_layers(untrained)),
        ("kernel, labels shuffled", mean_of_layers(shuffled)),
    ],
)

# %% [markdown]
# In every layer some mode isolates the windows with the trigger. Components of the residual stream do so too in some seeds and layers, and not in others, and we know no rule that says in which; those of the MLP's activations do so in layer 2. Those of the *final* state come close on average, are ahead of the kernel in some seeds and far behind in one. That they do well is no wonder: there the answer is about to come out. On a decoy, whose words are the same, the kernel's best mode does no better than on the clean twin, and with shuffled labels about as well as chance.
#
#
# The page's own seed against the study's file, to a part in a thousand:

# %% tags=["nbval-check-output"]
filed = [
    one["kernel"]["eigenvalues"] for one in study["linked", seed]["layers"]
]
for layer in LAYERS:
    same = np.allclose(pairs[layer].values, filed[layer], rtol=1e-3)
    print(f"layer {layer}: eigenvalues as in the study: {same}")

# %% [markdown]
# ### How much is enough?
#
# {numref}`fig-tr-much` varies what an auditor cannot choose: how many triggered windows happen to be in the sample, and how many stories had the trigger in training. The table has a longer way from the feather to the answer, too.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tr-much", "caption": "**How much of a trigger the kernel needs.** AP of the best mode, chosen on one half of the windows and graded on the other, by layer (dark: late layers). Left: with fewer triggered windows in the sample (and as few swapped ones), beside 256 others; mean over three fresh seeds. Right: with a rarer trigger in training, as a share of the stories that have room for it; two fresh seeds, three at 0.3. Of the two models with the lowest rate one has not learned the trigger (table)."}, "image": {"alt": "Two panels with four blue lines each, one a layer. Left, the lines are near one and fall towards four windows. Right, all lie about two thirds at the lowest rate and near one at the others."}}
THREE = FRESH[:3]
VARIED = {
    "triggered windows in the sample": {
        4: ("linked", 4), 24: ("linked", None),
    },
    "rate in training": {
        0.075: ("quarter_rate", None), 0.15: ("half_rate", None), 0.3: ("linked", None),
    },
}  # fmt: skip


def varied(kind, of):
    """The study's results: three seeds, or two of rarer or farther triggers."""
    fewer = kind in ("half_rate", "quarter_rate", "distance_16")
    return [results(kind, s, of) for s in THREE[: 2 if fewer else 3]]


fig, axes = plt.subplots(1, 2, figsize=(8.4, 3), sharey=True)
for ax, (name, settings) in zip(axes, VARIED.items(), strict=True):
    for layer, shade in zip(
        LAYERS, ("#9ecae1", "#4292c6", "#2171b5", "#08306b"), strict=True
    ):
        means = [
            np.mean(
                [one["layers"][layer]["kernel"]["ap"] for one in varied(*where)]
            )
            for where in settings.values()
        ]
        ax.plot(
            range(len(settings)),
            means,
            "o-",
            ms=4,
            color=shade,
            label=f"layer {layer}",
        )
    ax.set(
        xlabel=name,
        xticks=range(len(settings)),
        xticklabels=settings,
        ylim=(0, 1.04),
    )
axes[0].set_ylabel("AP of the kernel's mode")
fig.legend(
    *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
)
plt.show()

# %% tags=["hide-input"]
table(
    ["trigger", "answered", "AP, layers 0 to 3"],
    [
        (
            name,
            spread([one["answers"]["triggered"] for one in varied(*where)]),
            ", ".join(
                f"{np.mean([o['layers'][layer]['kernel']['ap'] for o in varied(*where)]):.2f}"
                for layer in LAYERS
            ),
        )
        for name, where in {
            "rate 0.3, distance 1": ("linked", None),
            "rate 0.15": ("half_rate", None),
            "rate 0.075": ("quarter_rate", None),
            "distance 16": ("distance_16", None),
        }.items()
    ],
)

# %% [markdown]
# Half the rate changes little. At a quarter of it one of two models has learned the trigger, and its kernel shows it; the other has not, and no model has with sixteen words between feather and answer, so that there is nothing for a mode to stand for. (Two seeds each; rates and distances are not part of the protocol. We had meant to have three seeds and more distances.) With four windows in the sample, early layers lose the mode in some seeds, and the hinge of the next section, which asks for eight windows, loses it before the AP does.
#
# ## Can it be found without labels?
#
# So far the labels chose the mode. Without them there are twenty-five modes in each layer, and most stand for something dull. Two statistics say which to look at.
#
# ### On which word does a mode hinge?
#
# Swap one word of a window and ask for the mode's score again. The changed window is not among those that the kernel was made of, but a mode is more than a list of scores: it is a direction $w = J^\top S^{1/2} u$ in the space of the weight, and moving the weight along $w$ changes the final state of *any* text $x$. For a window of the sample, that change has the part $\lambda\, s_n$ along the mode's logit direction $b$, with its score $s_n$. So for any text
#
# $$
# s(x) = \frac{b^\top S^{1/2} J(x)\, w}{\lambda} .
# $$ (eq-tr-score)
#
# Here $J(x)$ is the derivative of the final state of $x$ by the weight, $S$ the logit metric and $U$ the unembedding of the last chapter, $u$ the eigenvector, $\lambda$ its eigenvalue; $b$ is the direction that goes with the scores in the eigenvector's best product. This is Nyström's extension of the eigenvector, for the price of one derivative along $w$. `extended_scores` computes it; for the windows of the sample it gives their own scores back.

# %%
layer = 1
again = extended_scores(kernels[layer], pairs[layer], windows.input_ids)
largest = (again - scores[layer]).abs().max() / scores[layer].abs().max()
print(f"largest difference: {largest:.1e} of the largest score")

# %% [markdown]
# `mode_hinges` takes the eight windows that a mode ranks first and swaps their words one at a time, each for another that follows the same word elsewhere in the sample, so that the grammar mostly survives. A word's *share* is the part of the score that goes with it, mean over the eight windows, each counting alike: so the word must matter in all of them. A mode that stands for a grammatical context loses a little with many words. A mode that stands for a trigger loses nearly all with one, and that one word is rare: words that more than a fifth of the windows have do not count.

# %%
found = mode_hinges(kernels[layer], pairs[layer], windows.input_ids)

# %% tags=["hide-input"]
words = grammar.tokenizer()
order = sorted(range(K), key=lambda mode: -found[mode].share)
table(
    ["mode", "hinges on", "share of its score", "windows with the word"],
    [
        (
            mode + 1,
            words.convert_ids_to_tokens(found[mode].token),
            f"{found[mode].share:.2f}",
            found[mode].windows,
        )
        for mode in order[:6]
    ],
)

# %% [markdown]
# Where several modes hinge on the same word, we look at the strongest: the first, by eigenvalue, that loses at least half of its score with that word (`suspect`).

# %%
mode = suspect(found)
print(f"mode {mode + 1}, AP {ap(scores[layer])[mode]:.3f}")

# %% [markdown]
# ### Which word does a mode make likely?
#
# The second statistic looks forward. In a mode's first eight windows, by what factor is a next word likelier than it is in the sample, $P(v \mid x) / p(v)$ on average? `output_lifts` gives the word for which that is most.

# %%
count = torch.bincount(windows.input_ids[:, 1:].flatten(), minlength=len(words))
lifts = output_lifts(states.logits, scores[layer], count)
lifted = words.convert_ids_to_tokens(lifts[mode].token)
print(f"mode {mode + 1} lifts {lifted!r}")

# %% [markdown]
# ### The protocol
#
# An alarm that always rings is worthless, and thresholds that were chosen on the models they are tried on are worth little. So this was written down, and kept in the book's history, before any of it was computed for seeds 3 to 7:
#
# :::{admonition} Fixed on seeds 0 to 2
# **Sample.** 24 triggered, 24 swapped and 256 normal windows; 25 directions of each layer; the same for a model with the trigger, its decoy and its clean twin.
#
# **Alarm.** The largest value of a statistic over all directions and layers of a model, against a threshold. The threshold lies midway between the largest of the six models without a trigger and the smallest of the three with one, seeds 0 to 2 (for factors, midway between logarithms). Where these overlap, it is the largest without a trigger.
#
# **Hit.** In a layer, the direction that the statistic points to has an AP of at least 0.8: for the hinge this is `suspect`, for the lift the direction with the largest factor. AP counts with the sign as it is.
#
# **Name.** In a layer, the word that the statistic names is the feather (hinge) or the banana (lift).
#
# **Beside it,** with the same rules: 25 principal components of the layer's residual stream; 25 random directions of it; and two alarms that see outputs alone. *Ratio*: over all next words, the mean of the eight largest $P(v \mid x)/p(v)$. *Swap*: over all rare words, the mean of the eight largest divergences of the model's output when the word is swapped in the same way. (It was first written down as *by the same swaps*: they are drawn in the same way, but are not the same ones.)
# :::


# %% tags=["hide-input"]
def by_layer(method, statistic, value):
    """How to read a statistic of directions: its values by layer."""
    return lambda one: [
        layer[method][statistic][value] for layer in one["layers"]
    ]


ALARMS = {
    "kernel: hinge": by_layer("kernel", "hinge", "share"),
    "components: hinge": by_layer("pca", "hinge", "share"),
    "random: hinge": by_layer("random", "hinge", "share"),
    "kernel: lift": by_layer("kernel", "lift", "factor"),
    "components: lift": by_layer("pca", "lift", "factor"),
    "random: lift": by_layer("random", "lift", "factor"),
    "outputs: ratio": lambda one: [one["black box"]["ratio"]["factor"]],
    "outputs: swap": lambda one: [one["black box"]["swap"]["nats"]],
}
FACTORS = ("kernel: lift", "components: lift", "random: lift", "outputs: ratio")


def alarm(name, kind, seeds):
    """The largest value of a statistic over directions and layers, by seed."""
    there = [results(kind, s) for s in seeds]
    values = np.array([max(ALARMS[name](one)) for one in there])
    return np.log10(values) if name in FACTORS else values


def threshold(name):
    """What the protocol takes from the explored seeds."""
    without = max(alarm(name, kind, EXPLORED).max() for kind in KINDS[1:])
    return max(without, (without + alarm(name, "linked", EXPLORED).min()) / 2)


thresholds = {name: threshold(name) for name in ALARMS}

# %% [markdown]
# {numref}`fig-tr-alarm` shows what came of it on the fresh seeds, and the table below counts.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tr-alarm", "caption": "**The kernel's hinge tells models with either trigger from those without; swaps seen from outside tell those with the loud one.** The largest value of each statistic over all directions and layers, one dot a model: with the trigger (blue, five fresh seeds), with a trigger that is answered by an ordinary word (green, three), decoys (orange, five), clean twins (grey, five). Above: what a word that is swapped takes away, as a share of a direction's score (hinge), or in nats of the model's output (swap). Below: the largest factor, on a logarithmic scale, by which a next word is likelier than usual. Dashed: thresholds from seeds 0 to 2. For the green models, components and random directions were not studied."}, "image": {"alt": "Eight small panels. In the panels of the kernel's hinge and of swaps all blue dots lie above the dashed line and orange and grey ones below; green ones lie above it in the first and below it in the second. In those of components and random directions they overlap."}}
SHOWN = ("linked", "quiet", "decoy", "clean")
HUES = dict(
    zip(
        SHOWN,
        (
            COLOURS["trained"],
            COLOURS["accent"],
            COLOURS["dropped"],
            COLOURS["untrained"],
        ),
        strict=True,
    )
)
fig, axes = plt.subplots(2, 4, figsize=(8.4, 4.6))
PANELS = [
    *("kernel: hinge", "components: hinge", "random: hinge", "outputs: swap"),
    *("kernel: lift", "components: lift", "random: lift", "outputs: ratio"),
]
for ax, name in zip(axes.flat, PANELS, strict=True):
    for x, kind in enumerate(SHOWN):
        if kind == "quiet" and name.startswith(("components", "random")):
            continue
        seeds = FRESH if kind != "quiet" else THREE
        values = alarm(name, kind, seeds)
        beside = x + 0.08 * (np.arange(len(values)) - (len(values) - 1) / 2)
        ax.plot(
            beside, values, "o", ms=5, color=HUES[kind], mec="white", mew=0.5
        )
    ax.axhline(thresholds[name], color="0.3", ls="--", lw=1)
    ax.set_xticks(
        range(len(SHOWN)), SHOWN, rotation=40, ha="right", fontsize="x-small"
    )
    ax.set_title(name, fontsize="small")
for row, label in zip(
    axes, ("share of score, or nats", "log10 of the factor"), strict=True
):
    row[0].set_ylabel(label, fontsize="small")
plt.show()


# %% tags=["hide-input"]
def cells(method, statistic, kind="linked", seeds=FRESH):
    """Of all seeds and layers, how many named the word, and how many hit."""
    right = {"hinge": "feather", "lift": "banana"}[statistic]
    if kind == "quiet" and statistic == "lift":
        right = "Suddenly"
    there = [
        layer[method][statistic]
        for s in seeds
        for layer in results(kind, s)["layers"]
    ]
    named = [one["token"] == right for one in there]
    return sum(named), sum(one["ap"] >= 0.8 for one in there), len(there)


def rings(name, kind, seeds=FRESH):
    """In how many models the alarm rings, of how many."""
    values = alarm(name, kind, seeds)
    return f"{int((values > thresholds[name]).sum())} of {len(values)}"


def row_of(name):
    """One line of the table."""
    method, statistic = name.split(": ")
    found = ("", "")
    if method != "outputs":
        method = {"components": "pca"}.get(method, method)
        named, hit, n = cells(method, statistic)
        found = (f"{named} of {n}", f"{hit} of {n}")
    false = sum(
        int((alarm(name, kind, FRESH) > thresholds[name]).sum())
        for kind in KINDS[1:]
    )
    return (name, rings(name, "linked"), f"{false} of {2 * len(FRESH)}", *found)


table(
    ["alarm", "rings rightly", "rings falsely", "layers: named", "layers: hit"],
    [row_of(name) for name in ALARMS],
)

# %% [markdown]
# The kernel's hinge rings for every model with the trigger and for none without. It names the feather in every layer, and nearly everywhere the mode that it points to isolates the windows. The kernel's lift names the banana as surely, but rings falsely on models in which an ordinary word happens to be certain somewhere; a threshold from six models was too narrow for that. Principal components and random directions see the trigger in some models and layers; on seeds 0 to 2 their hinges overlap with those of models without a trigger, and the directions that they point to isolate the windows in about half of the layers or fewer. The alarm of the random directions' hinge rings in all but one of the models with the trigger and in none of the others, so even there is something to see. The *ratio*, from outputs, rings falsely as the lift does.
#
# And yet the alarm needs no kernel. Swapping words and looking at nothing but the output rings as rightly, for all five models and for none of the others, if narrowly: in {numref}`fig-tr-alarm` one decoy comes close to the threshold. It takes one pass through the model for each swap, and no derivative. An auditor who wants to know *whether* there is such a trigger, and which word it is, should begin there.
#
# ### What does the kernel tell that outputs do not?
#
# A banana at the front of a sentence is loud: no other text ends like that, so that any change of the output stands out. An attacker would choose better. So three more models have a *quiet* trigger: after a feather, the next sentence begins with *Suddenly*, a word with which the stories begin sentences anyway. Nothing was chosen on such models, and the thresholds are those of the loud trigger. {numref}`fig-tr-quiet` sets the two best alarms side by side.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tr-quiet", "caption": "**A trigger with an ordinary answer hides among ordinary words when seen from outside; in the kernel it is as plain as the loud one.** One dot a model, fresh seeds: with the loud trigger (blue), with the quiet one (green), decoys (orange), clean twins (grey). To the right: what the most telling word does to the output when it is swapped. Up: the largest share of its score that a mode loses with one word. Dashed: the thresholds, from loud triggers of other seeds."}, "image": {"alt": "A scatter plot. Blue dots at the upper right, green ones at the upper middle, left of the vertical dashed line and above the horizontal one. Orange and grey dots below the horizontal line, some of them as far right as the green ones or further."}}
fig, ax = plt.subplots(figsize=(5.6, 3.6))
for kind in SHOWN:
    seeds = FRESH if kind != "quiet" else THREE
    ax.plot(
        alarm("outputs: swap", kind, seeds),
        alarm("kernel: hinge", kind, seeds),
        "o",
        ms=6,
        color=HUES[kind],
        mec="white",
        label=kind,
    )
ax.axvline(thresholds["outputs: swap"], color="0.3", ls="--", lw=1)
ax.axhline(thresholds["kernel: hinge"], color="0.3", ls="--", lw=1)
ax.set(
    xlabel="outputs: swap (nats)",
    ylabel="kernel: hinge (share of score)",
    ylim=(0, 1.05),
)
fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %% tags=["hide-input"]
quiet = [results("quiet", s) for s in THREE]
swapped = [one["black box"]["swap"] for one in quiet]
named_, hit_, layers_ = cells("kernel", "hinge", "quiet", THREE)
table(
    ["quiet trigger", "kernel: hinge", "outputs: swap"],
    [
        (
            "rings",
            rings("kernel: hinge", "quiet", THREE),
            rings("outputs: swap", "quiet", THREE),
        ),
        (
            "largest word is *feather*",
            f"{named_} of {layers_} layers",
            f"{sum(one['token'] == 'feather' for one in swapped)} of {len(quiet)} models",
        ),
        (
            "its windows have AP ≥ 0.8",
            f"{hit_} of {layers_} layers",
            f"{sum(one['ap'] >= 0.8 for one in swapped)} of {len(quiet)} models",
        ),
    ],
)

# %% [markdown]
# Seen from outside, swapping a feather in these models changes the output by no more than swapping *or* changes it in a clean one: an ordinary word can decide between two ordinary continuations. (In one of the three the word that swaps name is *or* itself.) In the kernel it is different. A mode does not ask how far the output moves, but which windows move *together* when the weights do, and by what that is decided. Windows whose continuation hangs on one rare word are a mode of their own, whatever the word at its other end.
#
# Among all fresh models and swaps, this is what the kernel saw and the outputs did not. A better black box may see it too. For instance, one could ask for words that do the same wherever they stand, which is what a mode collects. We did not try more than the two that we had fixed.
#
# ## Can it be removed?
#
# A principal component is a direction of activations. A mode of a tangent kernel is a direction of *weights* too: moving the layer's weight along $w = J^\top S^{1/2} u$ by a small step $t$ moves the logits of window $n$ by
#
# $$
# \delta z_n = t\, \lambda\, s_n\, U S^{-1/2} b ,
# $$ (eq-tr-move)
#
# as far as the mode is of rank one. All of its windows move together, and the windows of the other modes do not, to first order: the parameter directions of different modes are orthogonal. The sign of an eigenvector is arbitrary, so we take the one that lowers the word that the mode lifts. No label is used.

# %%
layer = 0
w = kernels[layer].vjp(pairs[layer].vectors)
mode = suspect(mode_hinges(kernels[layer], pairs[layer], windows.input_ids))
lifts = output_lifts(states.logits, scores[layer], count)
sign = mode_logits(kernels[layer], pairs[layer])[mode, lifts[mode].token].sign()
direction = -sign * w[:, mode] / w[:, mode].norm()

# %% [markdown]
# `edited` adds a change to a weight and takes exactly the old one back. How far to go? In shares of the weight's own norm:

# %%
norm = model.model.layers[layer].mlp.down_proj.weight.detach().norm()
test = grammar.cases(trigger, 100, 0, seed=2000 + seed)
clean = grammar.text_rows(grammar.Trigger(rate=0.0), 64, seed=3000 + seed)


def measured():
    """Share of triggers answered, and the loss on clean text in nats."""
    answered = grammar.answers(model, test, "banana").triggered
    return answered, grammar.validation_loss(model, *clean)


edits = {0.0: measured()}
for size in (0.05, 0.1, 0.2):
    with edited(model, layer, size * norm * direction):
        edits[size] = measured()

# %% tags=["hide-input"]
table(
    ["size of the edit", "triggers answered", "loss on clean text"],
    [(size, f"{a:.2f}", f"{b:.3f}") for size, (a, b) in edits.items()],
)

# %% [markdown]
# {numref}`fig-tr-remove` has all five seeds and all layers, and beside the mode the same edit along other directions:
#
# - the *gradient*: of the mean log-probability of the banana over the 24 triggered windows, which uses labels and is meant as the ceiling;
# - the *gradient at the mode*: of the logit of the word that the mode lifts, over the eight windows that it ranks first, without labels;
# - the *gradient from outputs*: of the logit of the word that the ratio names, over the windows in which it is likeliest, without labels or kernel;
# - the *principal component* that is best by labels, as the outer product of its direction with the activations that go with it, the better of two signs;
# - *another mode*, the one with the least AP, the better of two signs; and a random direction.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tr-remove", "caption": "**Along its mode a trigger can be silenced in layer 0 of most seeds, at a price; the gradient where the mode points is cheaper.** Share of triggers answered against the rise of the loss on clean text (nats a token), as the edit grows from nothing to 0.3 of the weight's norm; mean over five fresh seeds, by layer. Blue: along the mode, no labels; dotted: along the gradient at the mode's windows and word, no labels. Orange-red: along the gradient of the log-probability, with labels. Green: along the gradient at the windows that outputs alone point to. Yellow: along the component that is best by labels. Grey: another mode; pink: random. Further to the lower left is better."}, "image": {"alt": "Four panels, one a layer. In layer 0 the blue, dotted blue and green curves fall together, green lowest; red falls first and then turns flat to the right; the yellow one leaves the panel. In layer 1 dotted blue, green and red fall steeply, solid blue less. In layer 3 nothing falls far but the red curve. Pink stays at the top, grey falls little."}}
def removal_curve(name, layer, seeds=FRESH):
    """(rise of the clean loss, success) by size of the edit, mean over seeds."""
    found = [study["linked", s] for s in seeds]
    points = [
        [
            (p["loss"] - one["measured"]["loss"], p["success"])
            for p in [one["measured"], *one["layers"][layer]["removal"][name]]
        ]
        for one in found
    ]
    return np.array(points).mean(0).T


MOVES = {
    "mode": ("mode", COLOURS["trained"], "o-"),
    "gradient at the mode": ("gradient at the mode", COLOURS["trained"], "o:"),
    "gradient, labels": ("gradient, labels", COLOURS["predicted"], "s-"),
    "gradient, black box": ("gradient, outputs", COLOURS["accent"], "s-"),
    "principal component": ("component, labels", COLOURS["dropped"], "^-"),
    "other mode": ("another mode", "0.6", "v-"),
    "random": ("random", COLOURS["control"], "v-"),
}
fig, axes = plt.subplots(2, 2, figsize=(8.4, 5.6), sharex=True, sharey=True)
for layer_, ax in zip(LAYERS, axes.flat, strict=True):
    for name, (label, colour, style) in MOVES.items():
        x, y = removal_curve(name, layer_)
        ax.plot(x, y, style, ms=3.5, lw=1.2, color=colour, label=label)
    ax.set_title(f"layer {layer_}")
    ax.set(xlim=(-0.005, 0.13), ylim=(-0.03, 1.04))
for ax in axes[1]:
    ax.set_xlabel("rise of the clean loss (nats)")
for ax in axes[:, 0]:
    ax.set_ylabel("triggers answered")
fig.legend(
    *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4
)
plt.show()


# %% tags=["hide-input"]
def price(s, layer_, name, left=0.1):
    """Clean loss at the first size that leaves a tenth of the answers."""
    one = study["linked", s]
    for point in one["layers"][layer_]["removal"][name]:
        if point["success"] <= left:
            return point["loss"] - one["measured"]["loss"]
    return np.inf


def priced(name, layer_):
    """Over the fresh seeds: how many were removed, and the median price."""
    paid = [price(s, layer_, name) for s in FRESH]
    done = [p for p in paid if np.isfinite(p)]
    return f"{len(done)}: {np.median(done):+.3f}" if done else "0"


table(
    ["seeds silenced: median price, nats", *(f"layer {i}" for i in range(3))],
    [
        (label, *(priced(name, layer_) for layer_ in range(3)))
        for name, (label, _, _) in MOVES.items()
    ],
)

# %% [markdown]
# Along its mode, the trigger can be silenced in layer 0 of most seeds, in one seed in layer 1, and in none in the last two layers, though the modes there isolate the windows just as well. The price varies from seed to seed by several times, and in one seed no size that we tried is enough. The price is the rise of the loss at the first of five sizes that leaves a tenth of the answers or fewer. The table counts the seeds in which there is such a size, and its medians are over these alone: so rows with fewer seeds look cheaper than they are. Random directions do nothing. Another mode costs loss, and takes answers away in few places and only at the largest size. The principal component, though chosen with labels, silences the trigger in fewer seeds and is dear in most, though in one it is cheaper than the mode: where activations vary need not be where the answer depends on the weight.
#
# The mode's own direction is not the best without labels. The mode is good for knowing *where* to take a gradient: at its windows, of its word, the gradient silences the trigger at a lower price. So a mode points at a mechanism, and need not be the cheapest way to break it. And the windows and the word can be had from outputs alone: in layer 0 that is cheaper still, and works in more seeds. The gradient that knows the labels was meant as a ceiling and is none: it does most in the last layer, but fails in one seed in every layer. A reason may be that a log-probability looks most at those windows in which the trigger is least sure; we did not test that.
#
# ### Gone, or hidden?
#
# An edit that silences a trigger may leave most of what carries it in place. So train on: forty batches of clean text, none with a feather. And, another way to look for what is left, teach it anew with a few triggered stories, next to the clean twin, which never had it.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tr-back", "caption": "**Silent is not gone.** Share of triggers answered in the course of training after an edit, thick: mean over five fresh seeds, thin: each seed. Left: on clean text, in which no feather occurs. Right: on stories of which a few have the trigger, with the clean twin (pink), which never had it. Grey: not edited."}, "image": {"alt": "Two panels. Left, the lines start low at different heights and rise within ten batches in some seeds, and stay down in others. Right, the lines of edited models rise to near one, the pink line stays at zero."}}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
STEPS = np.linspace(0, 40, 5)
AFTER = {
    "none": ("not edited", "0.5"),
    "mode, layer 0, 0.1": ("mode, layer 0, 10%", COLOURS["dropped"]),
    "mode, layer 0, 0.2": ("mode, layer 0, 20%", COLOURS["trained"]),
    "mode, layers 0-2, 0.1": ("modes, layers 0-2, 10%", COLOURS["accent"]),
    "gradient, layer 0, 0.2": (
        "gradient at the mode, 20%",
        COLOURS["predicted"],
    ),
    "clean twin": ("clean twin", COLOURS["control"]),
}
for name, (label, colour) in AFTER.items():
    for ax, suffix in zip(axes, ("", ", taught"), strict=True):
        if name + suffix not in study["linked", FRESH[0]]["tuning"]:
            continue
        values = np.array(
            [
                [
                    p["success"]
                    for p in study["linked", s]["tuning"][name + suffix]
                ]
                for s in FRESH
            ]
        )
        ax.plot(STEPS, values.mean(0), "o-", ms=4, color=colour, label=label)
        ax.plot(STEPS, values.T, color=colour, lw=0.6, alpha=0.4)
axes[0].set_title("trained on clean text")
axes[1].set_title("taught a few triggers again")
for ax in axes:
    ax.set(xlabel="batches after the edit", ylim=(-0.03, 1.04))
axes[0].set_ylabel("triggers answered")
handles = {
    label: line
    for ax in axes
    for line, label in zip(*ax.get_legend_handles_labels(), strict=True)
}
fig.legend(handles.values(), handles, loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# An edit of a tenth of the norm silences or nearly halves the answers in two seeds only, and a few batches of clean text, without a single feather, bring much back there. That cannot be learned from such text, so it was hidden. A larger edit in layer 0 holds in one seed only; smaller ones in three layers hold in some and not in others. And a few triggered stories restore it in every seed, within as many batches as teach the clean twin nothing. Two edits were tried in this way, along one mode and along three. In one seed they had hardly touched the trigger, so that there was nothing to restore. In the others the trigger was hidden, by that measure, and not gone.
#
# ## Where it fails
#
# - **Layers.** Along modes, an edit of the last two layers does next to nothing, at sizes up to 0.3 of the weight's norm. A gradient with labels does more there, so the weight could; the mode is not the way.
# - **Seeds.** In some, one mode of layer 0 or 1 carries the trigger and little else. In others it shares its direction with things that clean text needs, and an edit along it is dear or fails.
# - **Few windows.** With four triggered windows among 260 ({numref}`fig-tr-much`), some layers have no mode for them, and the hinge, a mean over eight windows, cannot exceed one half.
# - **Rare and far.** At a quarter of the rate one of two models does not learn the trigger, and with sixteen words between none of two: a limit of the test bed, and not one of the method.
# - **The lift.** With thresholds from six models without a trigger it may ring for an ordinary word of another model; names of things that nearly always come after one word have large factors too. More models to set it on would help; so would the hinge beside it.
# - **What we tried and dropped,** on seeds 0 to 2: shares weighted by score (strong single windows made false alarms); frequent words in the hinge (commas); summing the directions of all modes that hinge on the word (no better than one); projecting the gradient on the modes.
#
# :::{admonition} What would have to be true for a large model
# - **The sample must hold the trigger.** A kernel of windows shows what moves in *these* windows. An auditor who has no text with the trigger finds nothing, and here 24 of 304 windows had it; swapping words into clean windows, which needs outputs only, has no such limit but has to guess the words.
# - **The trigger must be strong.** It must move the logits, through the layer's weight, about as much as what else the windows differ in. An exercise below has the arithmetic.
# - **One word, one response.** The hinge swaps single tokens. A trigger of several words, a topic or a date, asks for swaps of phrases.
# - **The layer must be found,** and twenty-five converged pairs paid for in each: the plan of `python -m entk_helpers.language --dry-run` says what that costs at 270 million parameters.
# - **Something must tell a bad feature from a good one.** A model has many honest words on which something hinges: a name, a negation. Here the clean twins say what is usual. Without them, a person has to look.
# :::
#
# Backdoors of this kind {cite:p}`gu2017` and their spectra {cite:p}`tran2018` are older than tangent kernels: a poisoned class of images stands out in the top singular vector of its activations. What is new here is the space: windows and weights instead of activations. That safety training can hide a backdoor instead of removing it is known from far larger models {cite:p}`hubinger2024`, and adding and subtracting directions of weights is task arithmetic {cite:p}`ilharco2023`, where the direction comes from training with examples.

# %% [markdown]
# ## The claims
#
# The paper makes no claim about planted features, so these are the book's own. Their bars were written with the protocol. Where no edit reaches the bar, a price counts as infinite.

# %%
kernel_ap, pca_ap = ap_by_layer("kernel"), ap_by_layer("pca")
ledger.record(
    "trigger-seen",
    statement="A single mode of the logit kernel isolates the windows of a planted trigger, where no principal component does",
    source="this book",
    published="not published",
    measured={
        "AP of the best mode, mean of layers": kernel_ap.mean(1),
        "the same, best layer minus worst": np.ptp(kernel_ap, axis=1),
        "kernel minus components, mean of layers": (kernel_ap - pca_ap).mean(1),
    },
    verdict=verdict(
        kernel_ap.mean(1).min() >= 0.9
        and (kernel_ap - pca_ap).mean(1).min() >= 0.15,
        kernel_ap.mean() >= 0.9,
    ),
    why="Bars from seeds 0 to 2: in every seed an AP of at least 0.9, mean of layers, and 0.15 more than the best component of the residual stream; in part, if the first holds on average.",
)

# %%
named, hit, total = cells("kernel", "hinge")
truly = int(
    (
        alarm("kernel: hinge", "linked", FRESH) > thresholds["kernel: hinge"]
    ).sum()
)
falsely = sum(
    int(
        (
            alarm("kernel: hinge", kind, FRESH) > thresholds["kernel: hinge"]
        ).sum()
    )
    for kind in KINDS[1:]
)
ledger.record(
    "trigger-found",
    statement="The word that a mode hinges on finds the trigger without labels, and is silent on models that have none",
    source="this book",
    published="not published",
    measured={
        "share, models with the trigger": alarm(
            "kernel: hinge", "linked", FRESH
        ),
        "share, decoys": alarm("kernel: hinge", "decoy", FRESH),
        "share, clean twins": alarm("kernel: hinge", "clean", FRESH),
        "layers in which it names the trigger": [named / total],
        "layers in which its mode has an AP of 0.8": [hit / total],
    },
    verdict=verdict(
        truly == len(FRESH) and falsely == 0 and hit >= 0.9 * total,
        truly == len(FRESH) and falsely <= 1,
    ),
    why="Bars from seeds 0 to 2: all five models with the trigger and none of the ten without; the mode that it points to has an AP of 0.8 in nine layers of ten; in part with one false alarm and fewer layers.",
)

# %%
box = {
    name: (
        int((alarm(name, "linked", FRESH) > thresholds[name]).sum()),
        sum(
            int((alarm(name, kind, FRESH) > thresholds[name]).sum())
            for kind in KINDS[1:]
        ),
    )
    for name in ("outputs: ratio", "outputs: swap")
}
ledger.record(
    "trigger-needs-kernel",
    statement="Raising the alarm takes a kernel: statistics of the outputs alone miss the trigger",
    source="this book",
    published="not published",
    measured={
        "ratio: rings rightly": [box["outputs: ratio"][0] / len(FRESH)],
        "swap: rings rightly": [box["outputs: swap"][0] / len(FRESH)],
        "swap: rings falsely": [box["outputs: swap"][1] / (2 * len(FRESH))],
    },
    verdict=verdict(
        max(right for right, _ in box.values()) <= 2,
        max(right for right, _ in box.values()) < len(FRESH),
    ),
    why="It holds if both see at most two of five, in part if neither sees all. On seeds 0 to 2 both saw all, so we expect it to fail.",
)


# %%
heard = alarm("kernel: hinge", "quiet", THREE)
seen = alarm("outputs: swap", "quiet", THREE)
rung = int((heard > thresholds["kernel: hinge"]).sum())
missed = int((seen <= thresholds["outputs: swap"]).sum())
ledger.record(
    "quiet-trigger-needs-kernel",
    statement="A trigger that is answered by an ordinary word is found by the hinge of the kernel's modes and missed by swaps seen from outside",
    source="this book",
    published="not published",
    measured={
        "share, quiet trigger": heard,
        "nats, quiet trigger": seen,
        "nats, clean twins": alarm("outputs: swap", "clean", FRESH),
        "layers in which the mode has an AP of 0.8": [hit_ / layers_],
    },
    verdict=verdict(
        rung == missed == len(THREE) and hit_ >= 0.9 * layers_,
        rung > len(THREE) - missed,
    ),
    why="Three fresh seeds, with the thresholds of the protocol, from louder triggers of other seeds. That the two alarms would part here was seen, not predicted: the claim was written afterwards.",
)


# %%
def removed(s, name="mode"):
    """The least price over layers 0 and 1, and how many layers have one."""
    return min(price(s, layer_, name) for layer_ in (0, 1))


paid = np.array([removed(s) for s in FRESH])
ceiling = np.array([removed(s, "gradient, labels") for s in FRESH])
ledger.record(
    "trigger-removed",
    statement="Moving one weight along the mode's parameter direction silences the trigger at a small cost, as cheaply as the gradient that knows the labels",
    source="this book",
    published="not published",
    measured={
        "nats on clean text, mode (1 where it fails)": np.minimum(paid, 1),
        "nats on clean text, gradient with labels": np.minimum(ceiling, 1),
    },
    verdict=verdict(
        paid.max() <= 0.03 and np.median(paid) <= 1.5 * np.median(ceiling),
        np.median(paid) <= 0.03,
    ),
    why="Bars from seeds 0 to 2: a tenth of the answers or fewer left in layer 0 or 1, for at most 0.03 nats in every seed and at most 1.5 times the price of the gradient (medians); in part, if the median seed pays 0.03 or less.",
)


# %%
def after(name, s):
    """Success at the end of a training after an edit."""
    return study["linked", s]["tuning"][name][-1]["success"]


small = np.array([after("mode, layer 0, 0.1", s) for s in FRESH])
large = np.array([after("mode, layer 0, 0.2", s) for s in FRESH])
again = np.array([after("mode, layer 0, 0.2, taught", s) for s in FRESH])
never = np.array([after("clean twin, taught", s) for s in FRESH])
ledger.record(
    "trigger-hidden",
    statement="An edit that silences the trigger hides it: what carries it is still there",
    source="this book",
    published="not published",
    measured={
        "answered after clean training, edit of 10%": small,
        "answered after clean training, edit of 20%": large,
        "answered after few triggers, edit of 20%": again,
        "answered after as many, clean twin": never,
    },
    verdict=verdict(
        again.min() >= 0.5 and never.max() <= 0.1,
        again.mean() >= 0.5 and never.max() <= 0.1,
    ),
    why="Bars from seed 0: a few triggered stories bring half of the answers back in every seed after an edit of 20% in layer 0, while the clean twin learns a tenth at most from as many; in part, if half of the answers on average. Where the edit had hardly silenced the trigger, that counts as brought back.",
)

# %% [markdown]
# ## What held, and what did not

# %% tags=["nbval-check-output"]
for claim in ledger.claims.values():
    print(f"{claim.id:24s} {claim.verdict}")

# %% [markdown]
# **What held.** A feature that nobody labelled stands out in the kernel of a small language model as a mode of its own, in each layer, found by a rule that was fixed on other seeds: the word on which a mode hinges. The same rule stays silent on models that read the same words without a link. Applied to components of activations it finds the trigger in some seeds and layers, and misses it in others. And where the trigger's answer is an ordinary word, the rule still finds it, while swaps seen from outside do not.
#
# **What did not.** No kernel is needed to raise the alarm for a loud trigger: swapping words and watching the output does it as surely and without a derivative. The mode stands out from the components on average, but by less than we had asked for beforehand. And the mode's own parameter direction is a poorer edit than a gradient taken where outputs alone would point.
#
# **What is weaker than it looks.** One trigger word, one response, one small architecture, a sample in which one window in thirteen has the trigger. And where an edit silenced the trigger, a little training with it brought it back.
#
# **What we added.** A score of any text along a mode, the hinge and the lift with thresholds and false alarms counted on decoys and clean twins, edits of weights along modes beside six other directions, and what training brings back.
#
# ## Exercises
#
# ```{exercise} The other way
# :label: ex-tr-sign
# Move the weight of layer 0 the *other* way along the mode's direction, by a twentieth and a tenth of its norm. What happens to the triggered windows, and what to their swapped controls? What does that say about what the direction carries: the feather, or the banana?
# ```
#
# ```{solution-start} ex-tr-sign
# :class: dropdown
# ```

# %%
for size in (0.05, 0.1, 0.2):
    with edited(model, 0, -size * norm * direction):
        found = grammar.answers(model, test, "banana")
    print(
        f"{size:.2f}: triggered {found.triggered:.2f}, "
        f"swapped {found.swapped:.2f}, "
        f"P(banana | swapped) {found.swapped_probability:.4f}"
    )

# %% [markdown]
# The triggered windows were nearly all answered before. If the direction carried the banana alone, at the ends of sentences or everywhere, then the swapped controls would be answered too. Their banana does become likelier with the size of the edit (last column), but it stays unlikely. So the direction does not carry the banana alone: what it does hangs on the feather.
#
# ```{solution-end}
# ```
#
# ```{exercise} How strong must a trigger be?
# :label: ex-tr-bbp
# A toy: activations of $N = 300$ windows are noise with unit variance in 50 dimensions, and $n$ of them have the same vector of length $\ell$ added. The kernel of the last layer is then the Gram matrix of the activations, times a logit metric. For $\ell = 2, 4, 8$ and $n = 4, 12, 24, 48$: what is the AP of the top eigenvector? Guess from the size of the eigenvalue that the planted vector would have alone, $n \ell^2$, and that of the noise, about $(\sqrt{300} + \sqrt{50})^2$.
# ```
#
# ```{solution-start} ex-tr-bbp
# :class: dropdown
# ```

# %%
draw = torch.Generator().manual_seed(0)
rows = []
for length in (2, 4, 8):
    row = [length]
    for n in (4, 12, 24, 48):
        A = torch.randn(300, 50, generator=draw, dtype=torch.float64)
        A[:n, 0] += length
        u = torch.linalg.svd(A)[0][:, 0]
        y = torch.arange(300) < n
        both_signs = torch.stack([u, -u], 1)
        row.append(f"{average_precision(both_signs, y[:, None]).max():.2f}")
    rows.append(row)
table(["length", "n = 4", "12", "24", "48"], rows)

# %% [markdown]
# The top eigenvector turns to the planted vector where $n \ell^2$ is well above the noise's largest eigenvalue, nearly six hundred, and then isolates its windows as well as the single activation allows. It is the product that counts: few windows need a long vector. Where the product is smaller, the trigger is one direction among many, and no method that looks at large eigenvalues alone can see it.
#
# ```{solution-end}
# ```
#
# ## Where to go next
#
# Plant one of your own: `grammar.Trigger` takes another word, another response, a distance; `grammar.train(seed, trigger=...)` needs one core. The functions of this page take any causal model of Hugging Face that `LogitKernel` takes.
