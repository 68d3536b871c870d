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
# # What a tangent kernel knows, and when it tells the truth
#
# Train a network by gradient descent and the outputs at all points move together: a step that corrects one point moves the others as well.
# How much it moves them is a matrix, the *neural tangent kernel* {cite}`jacot2018`, called *empirical* (eNTK) when it is that of an actual network of finite width. If that matrix stayed as it is at the start, training would be linear algebra:
# the whole curve, and the function at its end, could be written down before the first step. When is that so, when not, and is the kernel still good for anything when not?
#
# The short answer is in {numref}`fig-t-answer`. A wide network does what its kernel says. A narrow one does not, and the error falls as a power of the width. But networks
# that learn *features* are the ones that leave their first kernel behind. What this book uses is the kernel at the *end* of training,
# and the last part of the chapter asks how far that one can be trusted, on the two systems of the next chapters.
#
# :::{admonition} Before you start
# **You need** PyTorch, eigenvectors, and what gradient descent is.
# **You will be able to** derive the kernel's equation of motion and solve it; predict a training curve without training; say which
# modes are learned first; tell lazy from rich training by the kernel's drift, its alignment with the target and the test error; and say what "the network is its kernel" means, where it holds and where it fails.
# :::

# %%
import math

import matplotlib.pyplot as plt
import numpy as np
import torch

from entk_helpers import (
    NTKOperator,
    eigenpairs,
    empirical_ntk,
    gradient_flow,
    kernel_drift,
    kernel_regression,
    kernel_target_alignment,
    linearised,
    quadratic_ntk,
    relu_ntk,
    top_eigenpairs,
)
from entk_helpers.claims import Ledger, verdict
from entk_helpers.plotting import (
    COLOURS,
    plot_scores,
    spread,
    table,
    use_style,
)
from entk_helpers.testbeds import modular, tms, wide

use_style()
ledger = Ledger("01_theory")

# %% [markdown]
# The first half of the chapter lives on a circle: sixteen training points, equally spaced, and a function of the angle. A constant third coordinate
# stands in for a bias. The points are few and the function is simple, so that nothing can hide.

# %%
SEEDS = range(8)
WIDTHS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
TIME, RATE = 20.0, 0.05  # duration of training, and the size of a step


def circle(n):
    angle = torch.arange(n) * (2 * torch.pi / n)
    points = [angle.cos(), angle.sin(), torch.ones(n)]
    return angle, torch.stack(points, dim=1)


def target(angle):
    waves = angle.cos() + 0.5 * (2 * angle).sin() + 0.3 * (3 * angle).cos()
    return waves[:, None]


angle, x = circle(16)
fine_angle, fine = circle(128)
y = target(angle)

# %% [markdown]
# The networks have one hidden layer of $n$ units, and each layer divides by the root of its width,
#
# $$
# f(x) = \sqrt{\tfrac{c}{n}}\; w^\T \sigma\!\left(\tfrac{1}{\sqrt d} V x\right), \qquad V_{ij},\, w_i \sim \mathcal N(0, 1),
# $$ (eq-t-network)
#
# with $c = 1 / \E[\sigma(u)^2]$ for a standard normal $u$ (2 for the ReLU), so that the size of the signal stays the same from layer to layer. This is the *NTK parametrisation*: it gives all widths the same
# learning rate and the same time axis. The function that the network has before training is subtracted, so that everybody starts from zero. We train
# eight seeds at eight widths with ReLU and with tanh, by full-batch gradient descent with a rate of 0.05 up to time 20, counting time as steps times rate.


# %%
def train(width, activation, **settings):
    return wide.train_seeds(
        (3, width, 1),
        x,
        y,
        SEEDS,
        steps=round(TIME / RATE),
        rate=RATE,
        activation=activation,
        centred=True,
        watch=torch.cat([x, fine]),
        record_at=range(0, round(TIME / RATE), 10),
        **settings,
    )


runs = {
    (activation, width): train(width, activation)
    for activation in ("relu", "tanh")
    for width in WIDTHS
}


# %%
def predict(run):
    """What the kernel at the start says about every recorded moment."""
    start = run.at(0).double()
    everywhere = torch.cat([x, fine]).double()
    times = [step * RATE for step in run.history["step"]]
    return gradient_flow(
        empirical_ntk(start, x.double()),
        y,
        times,
        empirical_ntk(start, everywhere, x.double()),
        step=RATE,
    )


def error(run, prediction):
    """Largest root mean square error over time: training points, circle."""
    seen = torch.stack(run.history["outputs"]).double()
    wrong = (seen - prediction).square()
    return [
        part.mean((1, 2)).sqrt().max().item()
        for part in (wrong[:, : len(x)], wrong[:, len(x) :])
    ]


errors = {
    key: [error(run, predict(run))[1] for run in seeds]
    for key, seeds in runs.items()
}


# %% tags=["hide-input"]
def slopes(values, activation, widths=WIDTHS):
    """Slope of log(value) against log(width), one a seed."""
    lines = np.log([values[activation, n] for n in widths])
    return np.polyfit(np.log(widths), lines, 1)[0].tolist()


LOOK = {
    "relu": ("ReLU", COLOURS["trained"], "o"),
    "tanh": ("tanh", COLOURS["accent"], "s"),
}


def plot_power(ax, values, ylabel):
    """Dots for seeds, a line for their geometric mean, the slope in the legend."""
    for name, (label, colour, marker) in LOOK.items():
        dots = np.array([values[name, n] for n in WIDTHS])
        slope = np.mean(slopes(values, name))
        ax.loglog(WIDTHS, dots, marker, ms=2.5, color=colour, alpha=0.5, lw=0)
        ax.loglog(
            WIDTHS,
            np.exp(np.log(dots).mean(1)),
            color=colour,
            label=f"{label}, slope {slope:.2f}",
        )
    ax.set(xlabel="width of the hidden layer", ylabel=ylabel)
    ax.legend(fontsize="small")


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-answer", "caption": "**The wider the network, the more its first kernel is right.** Left and middle: the function on the circle at the end of training (line) and the prediction of the kernel before training (dashes), for ReLU networks of 32 and 4096 hidden units, seed 0; dots are the training data. Right: root mean square error of the prediction on the circle, worst moment of training, against width; 8 seeds a width, lines are geometric means."}, "image": {"alt": "Left, a line and a dashed line that jumps and parts from it between the dots. Middle, both lines lie on each other. Right, errors of ReLU and tanh networks fall along straight lines on logarithmic axes, tanh more steeply."}}
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.0))
for ax, width in zip(axes, (32, 4096), strict=False):
    run = runs["relu", width][0]
    ax.plot(angle, y[:, 0], "o", color="black", ms=4, label="data")
    ax.plot(
        fine_angle,
        run.history["outputs"][-1][len(x) :, 0],
        color=COLOURS["trained"],
        label="network",
    )
    ax.plot(
        fine_angle,
        predict(run)[-1, len(x) :, 0],
        color=COLOURS["predicted"],
        ls=(0, (4, 2)),
        label="kernel",
    )
    ax.set(xlabel="angle (radians)", title=f"{width} hidden units")
axes[0].set_ylabel("output")
axes[0].legend(fontsize="small", loc="upper center")
plot_power(axes[2], errors, "error of the prediction")
axes[2].set_title("all widths")
plt.show()

# %% [markdown]
# ## Gradient flow is kernel dynamics
#
# Let $f(x; \theta)$ have $C$ outputs, and train on $N$ points with the loss $L = \tfrac12 \sum_n \norm{f(x_n) - y_n}^2$ by gradient flow,
# $\dot\theta = -\nabla_\theta L$: gradient descent with steps so small that time is continuous. Write $J(x)$ for the $C \times P$ matrix of derivatives of
# the outputs by the $P$ parameters, $X$ for the training points and $J$ for their derivatives stacked, $NC \times P$. An index 0 means *before training*. The chain rule, twice:
#
# $$
# \dot\theta = -J^\T (f - y), \qquad
# \dot f(x) = J(x)\, \dot\theta = - \underbrace{J(x)\, J^\T}_{K(x, X)} (f - y) .
# $$ (eq-t-flow)
#
# Where $f$ can be differentiated, nothing was approximated (for the ReLU, see [below](kinks)). *At each moment*, a network follows its present tangent kernel $K_{ij}(x, x') = \sum_\mu \partial_\mu f_i(x)\, \partial_\mu f_j(x')$: the
# residuals $f - y$ at the training points are the only thing that drives it, and $K$ says where they push. The trouble is that $K$ depends on $\theta$ and moves too.
#
# ### The linearised model
#
# Suppose it did not move. That is exactly the case for the model's first-order expansion around its start,
#
# $$
# f_{\text{lin}}(x; \theta) = f(x; \theta_0) + J_0(x)\, (\theta - \theta_0) ,
# $$ (eq-t-linearised)
#
# which is linear in $\theta$ though not in $x$. With a constant $K_0$, {eq}`eq-t-flow` is a linear equation. For the residual at the training points, $r = f - y$, it reads
# $\dot r = -K_0 r$, so $r(t) = e^{-K_0 t}\, r(0)$. Put this back and integrate:
#
# $$
# \begin{aligned}
# f_t(x) &= f_0(x) + K_0(x, X)\, \frac{1 - e^{-K_0 t}}{K_0}\, \bigl( y - f_0(X) \bigr) \\
# &\xrightarrow{\; t \to \infty \;} \; f_0(x) + K_0(x, X)\, K_0^{+}\, \bigl( y - f_0(X) \bigr) .
# \end{aligned}
# $$ (eq-t-solution)
#
# The fraction is a function of the matrix $K_0$, applied to its eigenvalues (it is $t$ where they vanish). The limit is *kernel regression* without a ridge, and
# $K^+$ is the pseudo-inverse. For gradient descent with a step $\eta$ there is no need for continuous time: replace $e^{-\lambda t}$ by $(1 - \eta \lambda)^{t / \eta}$.
#
# {numref}`fig-t-answer` compares this with actual training. `predict` above is all the code: two kernels of the untrained network, between training points, and from training points to
# everywhere; then {eq}`eq-t-solution`. First, is the formula right? For the *linearised* model it must be exact, whatever the width. We train that model, step by step,
# for a narrow network.

# %% tags=["nbval-check-output"]
start = runs["relu", 32][0].at(0).double()
J = NTKOperator(start, x.double())
moved = torch.zeros(J.n_parameters, dtype=torch.float64)
for _ in range(round(TIME / RATE)):
    residual = linearised(start, x.double(), moved) - y
    moved -= RATE * J.vjp(residual.flatten())

by_training = linearised(start, fine.double(), moved)
by_formula = predict(runs["relu", 32][0])[-1, len(x) :]
print(
    "the two agree to 1e-10:",
    bool((by_training - by_formula).abs().max() < 1e-10),
)

# %% [markdown]
# So what separates the lines in {numref}`fig-t-answer` is one thing: the kernel moved. {numref}`fig-t-curves` shows the same along the way.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-curves", "caption": "**Training curves can be written down before training, if the network is wide.** Mean loss on the 16 training points against time, tanh networks of three widths, three seeds each (thin lines); dashes: equation {eq}`eq-t-solution` with the kernel of the untrained network, for the same seeds."}, "image": {"alt": "Three panels of falling loss curves on a logarithmic axis. For 32 units the dashed predictions leave the curves, for 256 units a little, for 4096 units they coincide."}}
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.8), sharey=True)
for ax, width in zip(axes, (32, 256, 4096), strict=True):
    for seed, run in enumerate(runs["tanh", width][:3]):
        time = RATE * np.array(run.history["step"])
        gone = (predict(run)[:, : len(x)] - y).square().mean((1, 2)) / 2
        label = ("network", "kernel") if seed == 0 else (None, None)
        ax.semilogy(
            time,
            run.history["loss"],
            color=COLOURS["trained"],
            lw=0.9,
            label=label[0],
        )
        ax.semilogy(
            time,
            gone,
            color=COLOURS["predicted"],
            lw=1.1,
            ls=(0, (4, 2)),
            label=label[1],
        )
    ax.set(xlabel="time (step × rate)", title=f"{width} hidden units")
axes[0].set_ylabel("training loss")
axes[0].legend(fontsize="small")
plt.show()

# %% [markdown]
# ## How the error falls with the width
#
# Each parameter is one of many, so each has to move only a little: with $n$ hidden units, by about $1/\sqrt n$ of its size. For *smooth* activations
# {cite:t}`lee2019` prove that this keeps the prediction within $O(n^{-1/2})$ of the network for all times, if the smallest eigenvalue of the kernel is above zero. Expansions in the
# width {cite}`dyer2020` expect $n^{-1}$. What do we find? One straight line through eight widths, for each seed:


# %% tags=["hide-input"]
def drift(run):
    """Drift of the kernel, and among all its modes but the first five."""
    before, after = (
        empirical_ntk(model.double(), x.double())
        for model in (run.at(0), run.model)
    )
    small = eigenpairs(before).vectors[:, 5:]
    return (
        kernel_drift(after, before),
        kernel_drift(small.T @ after @ small, small.T @ before @ small),
    )


both = {key: [drift(run) for run in seeds] for key, seeds in runs.items()}
drifts, rest = (
    {key: [pair[i] for pair in pairs] for key, pairs in both.items()}
    for i in (0, 1)
)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-drift", "caption": "**Wider networks move their kernel less; the small modes of ReLU networks settle most slowly.** Relative change of the kernel on the training points between the start and the end of training, against width: the whole kernel (left) and its part among all modes but the first five (right). Eight seeds a width, lines are geometric means, slopes are means over seeds."}, "image": {"alt": "Two panels of falling lines on logarithmic axes. Left, ReLU and tanh both fall, tanh with slope near minus one, ReLU with about minus three quarters. Right, tanh as before, ReLU only with about minus one half."}}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.0))
plot_power(axes[0], drifts, "drift of the kernel")
plot_power(axes[1], rest, "drift among the small modes")
plt.show()

# %% tags=["hide-input"]
table(
    ["slope against width, over 8 seeds", "ReLU", "tanh"],
    [
        (
            "error of the network's own first kernel",
            spread(slopes(errors, "relu")),
            spread(slopes(errors, "tanh")),
        ),
        (
            "drift of the kernel",
            spread(slopes(drifts, "relu")),
            spread(slopes(drifts, "tanh")),
        ),
        (
            "drift among all modes but the first five",
            spread(slopes(rest, "relu")),
            spread(slopes(rest, "tanh")),
        ),
    ],
)

# %% [markdown]
# Tanh networks come close to $n^{-1}$, better than the bound. ReLU networks, which the theorem does not cover, are nearer $n^{-1/2}$. Look at the left panel of {numref}`fig-t-answer` again: the
# prediction *jumps*. The derivative of a ReLU network by its first layer contains the *gates* $1[v_i \cdot x > 0]$, with $v_i$ the rows of $V$. The linearised model keeps every gate
# where it was at the start, so that its output jumps where a gate does, while the gates of the real network move along. And in ReLU networks (not with tanh) the small modes of the kernel
# settle more slowly with width than the large ones. We come back to them.
#
# ## Infinite width
#
# What does the first kernel itself tend to? For the network {eq}`eq-t-network` it is a sum over hidden units, with two terms for the two layers,
#
# $$
# K(x, x') = \frac{c}{n} \sum_{i=1}^{n} \Bigl[ \sigma(z_i)\, \sigma(z_i') + w_i^2\, \sigma'(z_i)\, \sigma'(z_i')\, \frac{x \cdot x'}{d} \Bigr],
# \qquad z = \tfrac{1}{\sqrt d} V x .
# $$ (eq-t-finite)
#
# Units are independent, so that the law of large numbers turns the mean into an expectation over two correlated Gaussians, the values $u$ and $v$ of a unit at the two points. For the ReLU these expectations are
# integrals over the wedge where both gates are open {cite}`cho2009`. With $\vartheta$ the angle between the points,
#
# $$
# 2\, \E[\sigma'(u)\, \sigma'(v)] = 1 - \frac{\vartheta}{\pi}, \qquad
# 2\, \E[\sigma(u)\, \sigma(v)] = \frac{\norm{x} \norm{x'}}{d} \cdot \frac{\sin\vartheta + (\pi - \vartheta) \cos\vartheta}{\pi} .
# $$ (eq-t-arccos)
#
# Deeper networks repeat this. The covariance $\Sigma$ of the units of one layer gives the angle for the next; the kernel $\Theta$ adds one term a layer,
# because the gradient by a layer's own weights is new and the gradient by all earlier ones passes through one more set of gates:
#
# $$
# \Sigma^{l+1} = 2\, \E[\sigma(u)\, \sigma(v)], \qquad
# \Theta^{l+1} = \Sigma^{l+1} + \Theta^{l} \cdot \Bigl(1 - \frac{\vartheta^l}{\pi}\Bigr), \qquad
# \Theta^1 = \Sigma^1 = \frac{x \cdot x'}{d} .
# $$ (eq-t-recursion)
#
# with $u$, $v$ Gaussian of covariance $\Sigma^l$. A network with $h$ hidden layers has the kernel $\Theta^{h+1}$. The recursion takes eight lines:


# %% tags=["nbval-check-output"]
def arc_cosine(x, depth):
    covariance = kernel = x @ x.T / x.shape[1]
    size = covariance.diagonal().sqrt().outer(covariance.diagonal().sqrt())
    for _ in range(depth):
        cos = (covariance / size).clamp(-1, 1)
        angle = cos.arccos()
        covariance = size * (angle.sin() + (torch.pi - angle) * cos) / torch.pi
        kernel = covariance + kernel * (1 - angle / torch.pi)
    return kernel


print(
    "as in the package:",
    torch.allclose(
        arc_cosine(x.double(), 3), relu_ntk(x, depth=3).ntk, rtol=1e-6
    ),
)

# %% [markdown]
# Networks of finite width scatter around it. By {eq}`eq-t-finite`, with one hidden layer the mean over many networks *is* the limit, whatever their width. With more
# layers it is not: the angles of a narrow layer are random, and the recursion is not linear in them. So we expect a scatter of $n^{-1/2}$ at all depths, which an
# ensemble of $E$ networks cuts by $\sqrt E$, and, for deep networks only, a floor that no ensemble gets below.

# To see a floor one needs many networks. With one matrix of signals $A_l$ and one of derivatives $B_l$ a layer, the kernel is $\sum_l (B_l B_l^\T) \circ (A_l A_l^\T)$, entry by entry (the next chapter derives it), for
# thousands of small networks in one go:


# %%
def many_kernels(width, depth, count, generator):
    """Kernels of many random ReLU networks, (count, 16, 16)."""
    signal, layers = x / math.sqrt(3), []
    for fan_in in (3, *[width] * depth):
        fan_out = 1 if len(layers) == depth else width
        W = torch.randn(count, fan_out, fan_in, generator=generator)
        layers.append((signal, W))
        signal = (signal @ W.mT).relu() * math.sqrt(2 / fan_out)
    back, total = torch.ones(count, len(x), 1), 0.0
    for signal, W in reversed(layers):
        total = total + (back @ back.mT) * (signal @ signal.mT)
        back = back @ W * (signal > 0) * math.sqrt(2 / W.shape[-1])
    return total


# %%
KERNEL_WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
DEPTHS = (1, 2, 3)


def first_kernel(width, depth, seed):
    network = wide.network((3, *[width] * depth, 1), seed)
    return empirical_ntk(network, x).double()


distance = {}
for depth in DEPTHS:
    limit = relu_ntk(x, depth=depth).ntk
    for n in KERNEL_WIDTHS:
        kernels = [first_kernel(n, depth, seed) for seed in SEEDS]
        distance[depth, n] = [kernel_drift(K, limit) for K in kernels]

# %% tags=["hide-input"]
CASES = {
    (16, 1): (1, 16, 256, 4096, 32768),
    (16, 3): (1, 16, 256, 4096, 32768),
    (64, 3): (1, 16, 256, 4096),
}  # (width, depth): networks in an ensemble


def ensemble_errors(width, depth, seed):
    """Distance to the limit of the mean over the first 1, 16, ... networks."""
    generator = torch.Generator().manual_seed(seed)
    limit = relu_ntk(x, depth=depth).ntk
    total, done = torch.zeros(16, 16, dtype=torch.float64), 0
    for size in CASES[width, depth]:
        while done < size:
            count = min(size - done, 2048)
            kernels = many_kernels(width, depth, count, generator)
            total += kernels.sum(0, dtype=torch.float64)
            done += count
        yield kernel_drift(total / done, limit)


ensembles = {
    case: np.array([list(ensemble_errors(*case, seed)) for seed in range(5)])
    for case in CASES
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-limit", "caption": "**The first kernel reaches its limit as the root of the width; ensembles get there as the root of their size, unless they are deep and narrow.** Distance $\\norm{K - \\Theta}_F / \\norm{\\Theta}_F$ of ReLU networks on 16 points of the circle. Left: one network, against width, 8 seeds, geometric means. Right: the mean kernel of an ensemble against its size, five independent ensembles, root mean squares; grey lines go down as the square root, through the point at 16."}, "image": {"alt": "Left, three bundles of dots for one to three hidden layers fall along parallel lines. Right, shallow ensembles follow the grey square root line to the end; the deep narrow one bends off it and stays near three hundredths; the deep one of width 64 follows to its end at 4096 networks."}}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
SHADES = ("#56B4E9", COLOURS["trained"], "#003B5C")
for depth, colour in zip(DEPTHS, SHADES, strict=True):
    dots = np.array([distance[depth, n] for n in KERNEL_WIDTHS])
    slope = np.polyfit(np.log(KERNEL_WIDTHS), np.log(dots).mean(1), 1)[0]
    axes[0].loglog(KERNEL_WIDTHS, dots, "o", ms=2.5, color=colour, alpha=0.5)
    axes[0].loglog(
        KERNEL_WIDTHS,
        np.exp(np.log(dots).mean(1)),
        color=colour,
        label=f"{depth} hidden, slope {slope:.2f}",
    )
STYLES = {
    (16, 1): ("1 hidden layer of 16", SHADES[0], "o"),
    (16, 3): ("3 hidden layers of 16", COLOURS["predicted"], "s"),
    (64, 3): ("3 hidden layers of 64", COLOURS["control"], "^"),
}
for case, (label, colour, marker) in STYLES.items():
    sizes, line = CASES[case], np.sqrt((ensembles[case] ** 2).mean(0))
    axes[1].loglog(
        sizes, ensembles[case].T, marker, ms=3, color=colour, alpha=0.5
    )
    axes[1].loglog(sizes, line, color=colour, label=label)
    root = line[1] * np.sqrt(16 / np.array(sizes))
    axes[1].loglog(sizes, root, color="0.75", lw=0.8, zorder=0)
axes[0].set(xlabel="width of the hidden layers", ylabel="distance to the limit")
axes[1].set(xlabel="networks in the ensemble", ylabel="distance to the limit")
axes[0].legend(fontsize="small")
axes[1].legend(fontsize="small")
plt.show()

# %% [markdown]
# Both show in {numref}`fig-t-limit`: the floor with three layers of 16, and with three of 64 not yet.
#
# The limit of $\Sigma$ has a use of its own: the outputs of infinitely wide random networks are a Gaussian process with this covariance, the neural-network Gaussian process or *NNGP* {cite}`lee2018`, and
# Bayesian inference with it corresponds to training the last layer only. `relu_ntk` returns both.
#
# ## Small eigenvalues learn late
#
# Write {eq}`eq-t-flow` in the eigenvectors of $K_0$: the residual along $u_k$ decays as $e^{-\lambda_k t}$, each mode at its own rate. On a circle the modes of the
# infinite kernel are waves (it depends on the difference of two angles only), and slow waves have the large eigenvalues. So a network
# fits smooth functions first: *spectral bias* (shown in terms of waves, not of kernels, by {cite:t}`rahaman2019`). The statement is sharp enough to test mode by mode. We give each network a target with the same amount
# of each of its own modes, as far as $\lambda_k > 0.03$, wait until time $1/\lambda_k$, and read off how fast mode $k$ has decayed.

# %% tags=["hide-input"]
BIAS_RATE = 0.02


def mode_rates(width, activation):
    """For each seed: every mode's eigenvalue, and its decay over the prediction."""
    values, modes, looks = [], [], []
    for seed in SEEDS:
        start = wide.network((3, width, 1), seed, activation=activation)
        pairs = eigenpairs(empirical_ntk(start.double(), x.double()))
        values.append(pairs.values[pairs.values > 0.03])
        modes.append(pairs.vectors[:, : len(values[-1])])
        waits = (1 / (values[-1] * BIAS_RATE)).round().int()
        looks.append(waits.clamp(min=1).tolist())
    runs = wide.train_seeds(
        (3, width, 1),
        x,
        torch.stack([m.sum(1, keepdim=True).float() for m in modes]),
        SEEDS,
        steps=max(map(max, looks)),
        rate=BIAS_RATE,
        activation=activation,
        centred=True,
        record_at=sorted({look for waits in looks for look in waits}),
    )
    return [
        np.array([*zip(v.tolist(), decay(run, m, v, w), strict=True)])
        for run, m, v, w in zip(runs, modes, values, looks, strict=True)
    ]


def decay(run, modes, values, looks):
    """What is left of each mode when it is looked at, against the prediction."""
    for mode, value, look in zip(modes.T, values.tolist(), looks, strict=True):
        outputs = run.history["outputs"][run.history["step"].index(look)]
        left = 1 - (outputs[:, 0].double() @ mode).item()
        # One step of gradient descent leaves 1 - rate * lambda of a mode.
        yield math.log(max(left, 1e-3)) / (
            look * math.log1p(-BIAS_RATE * value)
        )


rates = {
    (activation, width): mode_rates(width, activation)
    for activation in ("relu", "tanh")
    for width in (64, 512, 4096)
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-bias", "caption": "**Smooth networks learn each mode at the rate of its eigenvalue; ReLU networks learn small modes more slowly, at every width.** Measured decay rate of the residual along each eigenvector of the first kernel, over the predicted one, against the eigenvalue; 8 seeds, one dot a seed and mode. Left: ReLU. Right: tanh, which has fewer modes above 0.03."}, "image": {"alt": "Two panels of ratio against eigenvalue. Left, ReLU: large eigenvalues at ratio one, small ones between 0.2 and 0.9, lowest for 64 and 512 units, higher for 4096. Right, tanh: 4096 and 512 units at ratio one throughout, 64 units rise to about two at the smallest eigenvalues."}}
fig, axes = plt.subplots(1, 2, figsize=(8.4, 3.0), sharex=True, sharey=True)
TONES = {
    64: COLOURS["dropped"],
    512: COLOURS["control"],
    4096: COLOURS["trained"],
}
for ax, activation in zip(axes, LOOK, strict=True):
    ax.axhline(1, color="0.75", lw=0.8, zorder=0)
    for width, colour in TONES.items():
        dots = np.concatenate(rates[activation, width])
        ax.semilogx(
            *dots.T,
            "o",
            ms=3,
            alpha=0.5,
            color=colour,
            mec="none",
            label=f"{width} units",
        )
    ax.set(xlabel="eigenvalue", title=LOOK[activation][0])
axes[0].set_ylabel("measured rate / predicted")
axes[1].legend(fontsize="small")
plt.show()

# %% tags=["hide-input"]
BANDS = {
    "above 1": (1, math.inf),
    "0.1 to 1": (0.1, 1),
    "0.03 to 0.1": (0.03, 0.1),
}


def middle(seeds, low, high):
    """Median over the modes of a seed whose eigenvalue is in the band."""
    return [np.median(r[(r[:, 0] > low) & (r[:, 0] <= high), 1]) for r in seeds]


table(
    ["measured / predicted, median of modes, 8 seeds", *BANDS],
    [
        (
            f"{LOOK[activation][0]}, {width} units",
            *(spread(middle(seeds, *band)) for band in BANDS.values()),
        )
        for (activation, width), seeds in rates.items()
    ],
)

# %% [markdown]
# Large modes obey, everywhere. With tanh the small ones do so too, once the network is wide. In ReLU networks the small modes lag behind, and hardly less so with 512 units than with 64.
# "The kernel is constant" is a statement about the *smallest eigenvalue that matters* for the target. But a drifting kernel makes the small modes of the narrow tanh network too *fast*, and those of ReLU networks are too slow. Something else is going on.
#
# (kinks)=
# ### Where the equation itself fails
#
# A ReLU network can be differentiated everywhere but on its kinks, $v_i \cdot x_n = 0$: a set of measure zero, one is told, and no reason to worry. But suppose that on either side of a kink, training pushes the unit back across it. Then the unit
# is caught: it slides along the kink, and its gate at that point flips at every step, however small the steps. What then moves the function is neither the kernel with the gate open nor the one with the gate shut, but a mixture of the two that keeps $v_i \cdot x_n = 0$: a *sliding mode* {cite}`filippov1988`. The unit has lost a direction to learn in.
# So {eq}`eq-t-flow` may fail in the limit of small steps. We add up, over training, what each step does and {eq}`eq-t-flow` does not say, $f_{t + \eta} - f_t + \eta K_t\, (f_t - y)$, with the kernel of that very step from {eq}`eq-t-finite`. For a function that can be differentiated, the sum vanishes with $\eta$.


# %%
def along_training(run, activation):
    """Signals z and kernels K at every step, one hidden layer."""
    states = [run.checkpoints[step] for step in run.history["step"]]
    V = torch.stack([state["weights.0"] for state in states])
    w = torch.stack([state["weights.1"][0] for state in states])
    form = wide.ACTIVATIONS[activation]
    z = V @ x.T / math.sqrt(3)
    a = form.function(z)
    gate = form.slope(a)
    inner = a.mT @ a + (w.square()[:, :, None] * gate).mT @ gate * (x @ x.T / 3)
    return z, form.gain**2 / V.shape[1] * inner


def unexplained(run, activation, rate):
    """Motion that the kernels of all steps do not explain; gates that flip."""
    z, K = along_training(run, activation)
    f = torch.stack(run.history["outputs"])[:, :, 0]
    said = -rate * torch.einsum("tij,tj->ti", K[:-1], f[:-1] - y[:, 0])
    missing = (f[1:] - f[:-1] - said).sum(0, dtype=torch.float64)
    open_late = z[-round(2 / rate) :] > 0
    flips = (open_late[1:] != open_late[:-1]).sum(0)
    return missing.norm().item() / f[-1].norm().item(), int((flips > 2).sum())


# %%
ETAS = (0.04, 0.02, 0.01)
beyond = {}
for activation in LOOK:
    for eta in ETAS:
        steps = round(TIME / eta)
        seeds = wide.train_seeds(
            (3, 256, 1),
            x,
            y,
            range(5),
            steps=steps,
            rate=eta,
            activation=activation,
            centred=True,
            record_at=range(steps),
        )
        beyond[activation, eta] = [
            unexplained(run, activation, eta) for run in seeds
        ]

# %% tags=["hide-input"]
table(
    ["5 seeds, 256 units", *(f"η = {eta:g}" for eta in ETAS)],
    [
        (
            f"{LOOK[activation][0]}: {name}",
            *(
                spread(
                    [pair[i] * scale for pair in beyond[activation, eta]],
                    digits,
                )
                for eta in ETAS
            ),
        )
        for activation in LOOK
        for i, name, scale, digits in (
            (0, "unexplained motion, % of the function", 100, 3),
            (
                1,
                "gates that flip more than twice in the last two units of time",
                1,
                0,
            ),
        )
    ],
)

# %% [markdown]
# With tanh the unexplained part falls in proportion to the step. With the ReLU it does not fall, and neither does the number of gates that are caught (of $256 \cdot 16$). It is a small part of the function, but so are the
# small modes. That caught units are *why* the small modes lag fits all that we have measured, and we have not shown it ({ref}`ex-theory-slow`). The book uses kernels of trained networks as descriptions of the
# function near their weights; that use is not touched.
#
# ## Lazy and rich
#
# Width is not the only way to keep a kernel still. Multiply the output by $\alpha$ and subtract the initial function {cite}`chizat2019`:
#
# $$
# f_\alpha(x) = \alpha \left[ f(x; \theta) - f(x; \theta_0) \right], \qquad L = \frac{1}{2 \alpha^2} \sum_n \norm{f_\alpha(x_n) - y_n}^2 .
# $$ (eq-t-scale)
#
# The kernel of $f_\alpha$ has a factor $\alpha^2$ and the loss $\alpha^{-2}$; they cancel in {eq}`eq-t-flow`, so that time means the same at every $\alpha$ and training starts in the same way. (For $\alpha < 1/2$ we take smaller steps, because the kernel grows.) But to change the output by one, the parameters need to move only
# by $1/\alpha$. Large $\alpha$: they hardly move, the model is its linearisation, *lazy*. Small $\alpha$: they must move far, the kernel changes, *rich*.
#
# When is rich better? When the target is made of features that the first kernel does not favour. Take points $x \in \{-1, 1\}^{30}$ and the target $x_1 x_2$: a product of two of thirty
# coordinates. The first kernel treats all coordinates alike, and has to find one product among 435 from 200 points.

# %%
SCALES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 4, 16)


def parity(n, seed):
    """Points with 30 random signs, and the product of the first two."""
    signs = torch.randint(
        0, 2, (n, 30), generator=torch.Generator().manual_seed(seed)
    )
    points = 2.0 * signs - 1
    return points, points[:, :1] * points[:, 1:2]


def mse(guess, truth):
    return (guess - truth).square().mean().item()


def lazy_or_rich(scale, seed):
    points, product = parity(200, seed)
    new, truth = parity(500, 1000 + seed)
    run = wide.train_seeds(
        (30, 512, 1),
        points,
        product,
        [seed],
        steps=20000,
        rate=0.02 * min(1, 2 * scale),
        scale=scale,
        centred=True,
        stop_loss=0.0005,
        watch=new,
    )[0]

    def fit(K):
        guess = kernel_regression(K[:200, :200], product, K[200:, :200])
        return mse(guess, truth)

    both = torch.cat([points, new])
    first, last = (empirical_ntk(m, both) for m in (run.at(0), run.model))
    before, after = first[200:, 200:], last[200:, 200:]
    return {
        "drift": kernel_drift(after, before),
        "alignment before": kernel_target_alignment(before, truth),
        "alignment": kernel_target_alignment(after, truth),
        "test error": mse(run.history["outputs"][-1], truth),
        "first kernel": fit(first),
        "last kernel": fit(last),
    }


lazy = {scale: [lazy_or_rich(scale, s) for s in SEEDS] for scale in SCALES}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-lazy", "caption": "**One knob leads from a fixed kernel to learned features.** ReLU networks of 512 units trained on $x_1 x_2$ to the same training loss, against the output scale $\\alpha$; mean of 8 seeds (data and weights), range shaded. Drift of the kernel (relative), its alignment with the target (centred) and the mean squared error, all on 500 new points; always predicting zero has an error of one. Dashes: kernel regression with the first kernel and with the last one."}, "image": {"alt": "On logarithmic axes, from left to right: drift falls from about five to below a hundredth, alignment falls from a tenth to its initial value, test error rises from a fifth to about 0.8, where the dashed line of the first kernel is. The last kernel's error lies below the network's everywhere."}}
fig, ax = plt.subplots(figsize=(8.4, 3.6))


def over_seeds(name):
    return np.array([[run[name] for run in lazy[a]] for a in SCALES])


for name, colour, label in (
    ("drift", "kept", "drift of the kernel"),
    ("alignment", "accent", "alignment with the target"),
    ("test error", "predicted", "test error of the network"),
):
    values = over_seeds(name)
    ax.loglog(
        SCALES, values.mean(1), "o-", ms=4, color=COLOURS[colour], label=label
    )
    ax.fill_between(
        SCALES, values.min(1), values.max(1), color=COLOURS[colour], alpha=0.2, lw=0
    )  # fmt: skip
for name, style in (
    ("first kernel", (0, (4, 2))),
    ("last kernel", (0, (1, 1))),
):
    ax.loglog(
        SCALES, over_seeds(name).mean(1), color=COLOURS["control"], ls=style,
        label=f"test error of the {name}",
    )  # fmt: skip
ax.set(
    xlabel="output scale α (left: rich, right: lazy)",
    ylabel="drift, alignment or error",
)
ax.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
plt.show()

# %% tags=["hide-input"]
ROWS = {
    "drift": "drift of the kernel",
    "alignment before": "alignment before training",
    "alignment": "alignment after",
    "test error": "test error, network",
    "first kernel": "test error, first kernel",
    "last kernel": "test error, last kernel",
}
table(
    ["8 seeds", *(f"α = {a:g}" for a in (SCALES[0], 1, SCALES[-1]))],
    [
        (
            label,
            *(
                spread([run[name] for run in lazy[a]], 3)
                for a in (SCALES[0], 1, SCALES[-1])
            ),
        )
        for name, label in ROWS.items()
    ],
)

# %% [markdown]
# On the right, training is lazy: the drift vanishes, alignment stays at what it was before, and the network's error agrees with that of kernel regression with its first kernel. On the left it is rich: the kernel
# has moved by several times its own size, towards the target, and the network generalises from the same 200 points. The dotted line is kernel regression with the *last* kernel: wherever training is rich it does better than
# the network that made it. It also fits the training points more closely (exactly, where the network stops at a loss of 0.0005), so this is not a fair race; but the features are in the kernel.
#
# ## Is a trained network its last kernel?
#
# The book leans on one assumption. {cite:t}`lin2025` calls it the *eNTK hypothesis*: put the kernel of the *trained* network into {eq}`eq-t-solution`, and the result is often still a good approximation of the network,
#
# $$
# f(x) \;\approx\; f_0(x) + K(x, X)\, K^{+} \bigl( y - f_0(X) \bigr), \qquad K \text{ at the end of training}.
# $$ (eq-t-hypothesis)
#
# If so, the leading eigenvectors of $K$ carry what the network computes. Others had seen that the kernel after training is a better kernel than the one before {cite}`fort2020,long2021`; whether it reproduces *the network* is a stronger claim.
# We first say when it must hold, and then look at the systems of the next chapters.
#
# ### When it must hold
#
# A network without biases and skip connections is often *homogeneous* of some degree $\kappa$: scale all weights by $s > 0$, and the output scales by $s^\kappa$. Euler's identity then says $J(x)\, \theta = \kappa f(x)$ ({ref}`ex-theory-euler`). So
# the function is, at every moment, itself linear in its tangent features $J(x)$.
#
# ````{prf:theorem} A finished network is its last kernel
# :label: thm-finished
# Let $f$ be homogeneous of degree $\kappa > 0$, and let $\theta$, where $f$ can be differentiated, be a stationary point of $\tfrac12 \sum_n \norm{f(x_n) - y_n}^2 + \tfrac{\beta}{2} \norm{\theta}^2$ with $\beta > 0$. Then, with the kernel $K$ at that very point, and points and outputs stacked,
#
# $$
# f(x) = K(x, X) \left[ K(X, X) + \kappa \beta \right]^{-1} y \qquad \text{for all } x .
# $$ (eq-t-finished)
# ````
#
# ````{prf:proof}
# Stationary means $J^\T (y - f) = \beta\, \theta$. Multiply by $J(x)$ and use Euler: $K(x, X) (y - f) = \kappa \beta f(x)$. At the training points this is $(K + \kappa\beta) f = K y$, hence $y - f = \kappa\beta\, (K + \kappa\beta)^{-1} y$. Put this back.
# ````
#
# No width, no laziness, no small step. The kernel must be the last one, $f_0$ must be left *out*, and training must be finished. Without weight decay, stationary means that $\theta / \kappa$ is *a* least-squares fit of the targets in the tangent features. It is kernel regression, the *shortest* one, only as far as $\theta$ has no part that the training points do not see.
# We check the theorem where it can be brought to a point: modular addition with $p = 11$ and a narrow version of the network of chapter 4,
#
# $$
# f(x) = \tfrac{1}{H}\, W_2 \left( \tfrac{1}{\sqrt{2p}}\, W_1 x \right)^{2}, \qquad x = (\text{one-hot } a,\; \text{one-hot } b), \quad y = \text{one-hot } (a + b) \bmod p ,
# $$ (eq-t-modular)
#
# which is homogeneous of degree three. A short training by AdamW is followed by a long one by L-BFGS on the loss of the theorem.


# %%
def finish(run, decay):
    """Bring a network to a stationary point of the loss of the theorem."""
    net = run.model.double()
    x, y = run.inputs[run.train].double(), run.targets[run.train].double()
    optimizer = torch.optim.LBFGS(
        net.parameters(),
        max_iter=2000,
        max_eval=3000,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        weights = sum(p.square().sum() for p in net.parameters())
        out = ((net(x) - y).square().sum() + decay * weights) / 2
        out.backward()
        return out

    optimizer.step(loss)
    return net


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def against_its_kernel(run, net, decay):
    """Held-out distance of a network to kernel regression with its kernel."""
    x, y = run.inputs.double(), run.targets.double()
    seen, new = x[run.train], x[~run.train]
    fit = kernel_regression(
        empirical_ntk(net, seen, reduce="full"),
        y[run.train],
        empirical_ntk(net, new, seen, reduce="full"),
        ridge=3 * decay,
    )
    return relative(fit, net(new).detach())


def accuracy(run, outputs):
    """Share of the held-out pairs whose largest output is the right one."""
    right = outputs.argmax(1) == run.targets[~run.train].argmax(1)
    return right.double().mean().item()


# %%
DECAY = 1e-2
small = {
    labels: modular.train_mlp_seeds(
        range(10, 15),
        p=11,
        width=48,
        epochs=200,
        shuffle_labels=labels == "shuffled labels",
    )
    for labels in ("true labels", "shuffled labels")
}
before = {
    labels: [
        against_its_kernel(run, run.model.double(), DECAY) for run in seeds
    ]
    for labels, seeds in small.items()
}
nets = {
    labels: [finish(run, DECAY) for run in seeds]
    for labels, seeds in small.items()
}
finished = {
    labels: [
        (
            against_its_kernel(run, net, DECAY),
            accuracy(run, net(run.inputs[~run.train].double())),
        )
        for run, net in zip(small[labels], seeds, strict=True)
    ]
    for labels, seeds in nets.items()
}

# %% tags=["hide-input"]
table(
    [
        "5 seeds",
        "distance after AdamW",
        "distance when finished, largest",
        "held-out accuracy when finished",
    ],
    [
        (
            labels,
            spread(before[labels]),
            f"{max(d for d, _ in finished[labels]):.0e}",
            spread([a for _, a in finished[labels]]),
        )
        for labels in small
    ],
)

# %% [markdown]
# Distance is $\norm{F - f} / \norm{f}$ on pairs that were not trained on, with $F$ the right side of {eq}`eq-t-finished`. It vanishes when training is finished, for labels with a rule behind them and for shuffled labels, which can only be memorised. So agreement between a network
# and its last kernel is a sign neither of laziness nor of understanding.
#
# ### Modular addition: the kernel knows first
#
# Now the network of the paper: $p = 29$, $H = 512$, 70% of the 841 pairs, AdamW, 500 epochs. It first memorises, and then *groks*: accuracy on the held-out pairs rises from nothing to one long after the training pairs are right. We stop it at
# several epochs, take the kernel of that moment, fit the *training* pairs by kernel regression, and ask for the *held-out* pairs. The exact kernel couples all outputs and has $589 \cdot 29$ rows; conjugate gradients
# need tens of products with it and never build it (we stop at a relative residual of 0.01):


# %%
def tangent_fit(net, x, y, new, tol=1e-2):
    """K(new, x) K(x, x)^-1 y with all outputs coupled, by conjugate gradients."""
    K = NTKOperator(net, x)
    v, r = torch.zeros_like(y.flatten()), y.flatten().clone()
    d, start = r.clone(), r @ r
    while r @ r > tol**2 * start:
        Kd, old = K @ d, r @ r
        v, r = v + old / (d @ Kd) * d, r - old / (d @ Kd) * Kd
        d = r + (r @ r) / old * d
    return NTKOperator(net, new).jvp(K.vjp(v)).reshape(len(new), -1)


# %% [markdown]
# Beside it: the class-averaged kernel, one $589 \times 589$ matrix for all outputs, which is the kernel that the book will read; and as a control that needs no tangent kernel, ridge regression on the
# hidden layer's activations, whose Gram matrix is the kernel of $W_2$ alone. A ridge of $10^{-3}$ times the largest eigenvalue was chosen for the control, in its favour: it did worse without when we tried.

# %%
ADD_SEEDS = range(10, 15)
EPOCHS = (0, 45, 50, 55, 60, 65, 70, 75, 80, 90, 500)
addition = modular.train_mlp_seeds(ADD_SEEDS, checkpoints=EPOCHS, progress=True)


def three_fits(run, epoch):
    """Predictions for the held-out pairs: exact, averaged, last layer only."""
    net, x, y = run.at(epoch), run.inputs, run.targets
    seen, new = x[run.train], x[~run.train]
    parts = quadratic_ntk(net.W1, net.W2, x)  # see chapter 4
    last, averaged = parts["W2"], parts["W1"] + parts["W2"]
    ridge = 1e-3 * top_eigenpairs(last, 1, tol=1e-5).values.item()

    def fit(K, ridge=0.0):
        train, both = K[run.train][:, run.train], K[~run.train][:, run.train]
        return kernel_regression(train, y[run.train], both, ridge=ridge)

    return {
        "network": net(new).detach(),
        "exact kernel": tangent_fit(net, seen, y[run.train], new),
        "class-averaged kernel": fit(averaged),
        "hidden activations": fit(last, ridge),
    }


fits = [{epoch: three_fits(run, epoch) for epoch in EPOCHS} for run in addition]
held_out = {
    name: np.array(
        [
            [accuracy(run, fit[epoch][name]) for epoch in EPOCHS]
            for run, fit in zip(addition, fits, strict=True)
        ]
    )
    for name in fits[0][0]
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-first", "caption": "**The kernel knows how to add before the network does.** Accuracy on held-out pairs against the epoch at which the network was stopped: the network itself, and regression on the training pairs with three kernels of the network at that epoch. Modular addition, $p = 29$, mean of 5 seeds, range shaded. Grey: chance."}, "image": {"alt": "Four rising curves. The exact kernel rises first, around epoch 55; the class-averaged kernel and the hidden activations around 70; the network itself around 84."}}
fig, ax = plt.subplots(figsize=(8.4, 3.2))
COLOUR = {
    "network": "black",
    "exact kernel": COLOURS["trained"],
    "class-averaged kernel": COLOURS["accent"],
    "hidden activations": COLOURS["control"],
}
for name, values in held_out.items():
    ax.plot(
        EPOCHS, values.mean(0), "o-", ms=3.5, color=COLOUR[name], label=name
    )
    ax.fill_between(
        EPOCHS, values.min(0), values.max(0), color=COLOUR[name], alpha=0.15, lw=0
    )  # fmt: skip
ax.axhline(1 / 29, color="0.75", lw=0.8)
ax.set(xlim=(44.5, 90.5), xlabel="epoch", ylabel="accuracy, held-out pairs")
ax.legend(fontsize="small")
plt.show()


# %% tags=["hide-input"]
def half(values):
    """Epoch at which accuracy passes one half, between grid points linearly."""
    after = int(np.argmax(values >= 0.5))
    (a, b), (u, v) = (
        EPOCHS[after - 1 : after + 1],
        values[after - 1 : after + 1],
    )
    return a + (b - a) * (0.5 - u) / (v - u)


halves = {n: [half(v) for v in values] for n, values in held_out.items()}
lead = {
    name: [
        net - own
        for net, own in zip(halves["network"], halves[name], strict=True)
    ]
    for name in halves
}
at_end = {
    name: [
        relative(fit[500][name].double(), fit[500]["network"].double())
        for fit in fits
    ]
    for name in halves
}
start = {
    name: [
        relative(fit[0][name].double(), fit[0]["network"].double())
        for fit in fits
    ]
    for name in halves
}
table(
    [
        "5 seeds",
        "held-out 50% at epoch",
        "ahead of the network by",
        "accuracy, first kernel",
        "accuracy, epoch 60",
        "epoch 80",
        "epoch 500",
    ],
    [
        (
            name,
            spread(halves[name], 0),
            spread(lead[name], 0),
            *(
                spread(held_out[name][:, EPOCHS.index(e)])
                for e in (0, 60, 80, 500)
            ),
        )
        for name in halves
    ],
)

# %% tags=["hide-input"]
memorised = [run.reaches("train accuracy", 0.99) for run in addition]
generalised = [run.reaches("test accuracy", 0.99) for run in addition]
table(
    [
        "the network, 5 seeds",
        "99% of training pairs at epoch",
        "99% of held-out pairs",
    ],
    [("", spread(memorised, 0), spread(generalised, 0))],
)

# %% [markdown]
# **Does the kernel at the end of training generalise on the held-out pairs? Yes**, in every seed, and so does the exact kernel from epoch 80 on. The first kernel does not: it is *below* chance (two pairs that share an operand never share a
# sum, and this kernel is large exactly for such pairs). In between, the kernel is ahead of the network. At epoch 60 the network gets hardly any held-out pair right, and the exact kernel of that same network most of them. The features
# are there, and the weights do not use them yet.
#
# A sceptic will say that part of the lead belongs to the solver: kernel regression jumps to the optimum in one step, while the network has to walk. That is so. Ridge regression on the hidden activations, which
# takes no gradient, has about half of the lead, and the class-averaged kernel has no more than that. What the exact kernel adds is that the *first* layer may move too, with all outputs coupled.
#
# ### How close is it to the network?
#
# After grokking every method is right on all pairs, so accuracy says nothing about {eq}`eq-t-hypothesis`. We ask for the outputs themselves. References: the distance to the *true targets*, and that of the regression to *another* network (trained from other weights on other pairs; compared on pairs
# that neither has seen). Controls: a network trained on *shuffled labels*, and an untrained one, whose first kernel has to continue its own random outputs. And two other weight decays.


# %% tags=["hide-input"]
def exact_fit(run, epoch, y=None):
    net, y = run.at(epoch), run.targets if y is None else y
    return tangent_fit(
        net, run.inputs[run.train], y[run.train], run.inputs[~run.train]
    )


def outputs(run, epoch):
    return run.at(epoch)(run.inputs).detach()


def gap(run, epoch=500, y=None):
    return relative(exact_fit(run, epoch, y), outputs(run, epoch)[~run.train])


def gap_to_other(run, fit, other):
    """Against another network, on pairs held out from both."""
    both = ~run.train & ~other.train
    return relative(fit[both[~run.train]], outputs(other, 500)[both])


pairs = zip(addition, [*addition[1:], addition[0]], strict=True)
last_fits = [fit[500]["exact kernel"] for fit in fits]
gaps = {
    "true targets": [
        relative(run.targets[~run.train], outputs(run, 500)[~run.train])
        for run in addition
    ],
    "last kernel, to another network": [
        gap_to_other(run, fit, other)
        for (run, other), fit in zip(pairs, last_fits, strict=True)
    ],
    "last kernel": at_end["exact kernel"],
    "first kernel, its own random outputs": [
        gap(run, 0, outputs(run, 0)) for run in addition
    ],
    "last kernel, shuffled labels": [
        gap(run)
        for run in modular.train_mlp_seeds(ADD_SEEDS, shuffle_labels=True)
    ],
    "last kernel, no weight decay": [
        gap(run) for run in modular.train_mlp_seeds(ADD_SEEDS, weight_decay=0.0)
    ],
    "last kernel, decay 0.1": [
        gap(run) for run in modular.train_mlp_seeds(ADD_SEEDS, weight_decay=0.1)
    ],
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-t-gap", "caption": "**At the paper's settings the last kernel is nearer to its own network than to another one, and weight decay brings it nearer.** Relative distance on held-out pairs between a network's outputs and regression with its kernel (weight decay 0.01 unless said); 5 seeds, bar at the mean. Zero: the network *is* kernel regression. Grey bars are references: the true targets, a different network, and an untrained network's own kernel and outputs."}, "image": {"alt": "Horizontal bars with dots. True targets and another network are far, near 0.9 and 0.7. The last kernel is near 0.3, the untrained control near 0.26, shuffled labels near 0.18, no decay near 0.34, decay 0.1 near 0.08."}}
fig, ax = plt.subplots(figsize=(8.4, 3.2))
plot_scores(
    ax,
    gaps,
    colours={
        name: COLOURS["trained"]
        if "last kernel" in name and "another" not in name
        else COLOURS["untrained"]
        for name in gaps
    },
)
ax.set(
    xlabel="distance to the network's outputs on held-out pairs", xlim=(0, None)
)
plt.show()

# %% [markdown]
# A rough approximation: the last kernel is much nearer to its own network than to the targets or to another network, and it is off by a third of the size of the outputs. In line with {prf:ref}`thm-finished`, ten times the decay cuts the distance several times, and no decay makes it larger.
# (AdamW's decay is not quite the penalty of the theorem, so this is a parallel and not a test.) The distance does not measure what was learned. A network with shuffled labels agrees with its kernel *better*. Even an untrained network is continued by its own kernel as well as the trained one is,
# because a homogeneous function lies in the span of its tangent features at any time. Read {eq}`eq-t-hypothesis` in this light: **convergence under weight decay forces a homogeneous network to agree with its last kernel; agreement alone proves neither convergence nor understanding. What the kernel's eigenvectors say about the network has to be shown separately.**
#
# ### Toy models of superposition
#
# The toy models of [chapter 3](03_tms) squeeze 50 features through $m$ hidden units, $f = \relu(W^\T W x + b)$. Features are absent with probability $S$, and the loss weighs feature $i$ by its importance $0.8^i$; there is no weight decay. They are homogeneous up to the bias: $f = J \psi$ with $\psi = (W/2, b)$. A finished one is a weighted least-squares fit in its own tangent features. We fit the 500 training points and compare
# on 2000 fresh ones, with the importance weights: first kernel, last kernel, last kernel with a small ridge ($10^{-5}$ of the largest eigenvalue, chosen with the result in view), and {eq}`eq-t-hypothesis` as it stands, with $f_0$ and that ridge.


# %% tags=["hide-input"]
TOYS = {"dense": (10, 0.3), "sparse": (10, 0.9), "wide": (40, 0.9)}
weight = tms.importance().sqrt()


def tangent_modes(model, x):
    """Eigenpairs of J^T J, importance in the rows, without the null space."""
    gram = tms.ClosedForm.of(model, x, weight).gram()
    values, vectors = torch.linalg.eigh(gram)
    kept = values > 1e-12 * values[-1]
    return values[kept], vectors[:, kept]


def toy_fit(model, x, targets, new, modes, ridge=0.0):
    """Weighted least squares in the tangent features, from the P x P side."""
    right = tms.ClosedForm.of(model, x, weight).vjp(weight * targets)
    values, vectors = modes
    step = vectors @ (vectors.T @ right / (values + ridge * values[-1]))
    moved = tms.ClosedForm.of(model, new).jvp(step[:, None])
    return moved.reshape(new.shape)


def toy_distances(run, sparsity, seed):
    """Distances to the network of five candidates; rest; condition number."""
    generator = torch.Generator().manual_seed(1000 + seed)
    new = tms.sparse_inputs(2000, 50, sparsity, generator).double()
    x, start, end = run.inputs.double(), run.at(0).double(), run.model.double()
    with torch.no_grad():
        f, f0, f0_new = end(new), start(x), start(new)
        residual = x - end(x)
    last = tangent_modes(end, x)
    candidates = (
        new,
        toy_fit(start, x, x, new, tangent_modes(start, x)),
        toy_fit(end, x, x, new, last),
        toy_fit(end, x, x, new, last, 1e-5),
        f0_new + toy_fit(end, x, x - f0, new, last, 1e-5),
    )
    J = tms.ClosedForm.of(end, x, weight)
    gradient = relative_size(J.vjp, residual, x)
    condition = (last[0][-1] / last[0][0]).item()
    return (
        *(relative(weight * g, weight * f) for g in candidates),
        gradient,
        condition,
    )


def relative_size(vjp, left, right):
    """Gradient at the end of training, over that of predicting zero."""
    pull = [vjp(weight * part).norm() for part in (left, right)]
    return (pull[0] / pull[1]).item()


toys = {}
for name, (m, sparsity) in TOYS.items():
    trained = tms.train_seeds(m, sparsity, ADD_SEEDS, progress=True)
    toys[name] = np.array(
        [
            toy_distances(run, sparsity, seed)
            for run, seed in zip(trained, ADD_SEEDS, strict=True)
        ]
    ).T.tolist()

# %% tags=["hide-input"]
CANDIDATES = (
    "targets",
    "first kernel",
    "last kernel",
    "last kernel, ridge",
    "with $f_0$, ridge",
)
table(
    [
        "distance, 5 seeds",
        *(f"{n}, $m$ = {m}, $S$ = {S}" for n, (m, S) in TOYS.items()),
    ],
    [
        *(
            (label, *(spread(toys[name][i], 3) for name in TOYS))
            for i, label in enumerate(CANDIDATES)
        ),
        (
            "gradient at the end, largest",
            *(f"{max(toys[name][5]):.0e}" for name in TOYS),
        ),
        (
            "condition number, median",
            *(f"{np.median(toys[name][6]):.0e}" for name in TOYS),
        ),
    ],
)

# %% [markdown]
# With ten hidden units the last kernel *is* the network, to within a percent in every seed, and the first kernel is not. Five thousand steps of Adam have arrived at a stationary point: the gradient (relative to that at $f = 0$) is small. With forty hidden units the least-squares problem is badly
# conditioned, and without a ridge the fit fails. With $f_0$, as the formula is written for the lazy limit, it fails in all three settings: the initial function is not in the span of the last tangent features, so nothing can take it away again.

# %% tags=["hide-input"]
HELD = "held-out accuracy of the exact kernel"


targets_gap = gaps["true targets"]
near = [
    a < b / 2 for a, b in zip(at_end["exact kernel"], targets_gap, strict=True)
]
ledger.record(
    "hypothesis-modular",
    statement="With the kernel at the end of training, kernel regression is often still a good approximation of the network: modular addition.",
    source="arXiv 2510.00468v4, sections 1 and 3",
    published="a hypothesis, no figure",
    measured={
        "distance to the network, last kernel": at_end["exact kernel"],
        "the same, first kernel": start["exact kernel"],
        "the same, last kernel and decay 0.1": gaps["last kernel, decay 0.1"],
        "distance of the true targets": targets_gap,
        f"{HELD}, last": held_out["exact kernel"][:, -1].tolist(),
        f"{HELD}, first": held_out["exact kernel"][:, 0].tolist(),
    },
    verdict=verdict(max(at_end["exact kernel"]) <= 0.1, all(near)),
    why="Nearer to its own network than half the distance of the targets, and off by about a third; nearer with more weight decay.",
)

# %% tags=["hide-input"]
small_toys = [*toys["dense"][2], *toys["sparse"][2]]
all_toys = [*small_toys, *toys["wide"][2]]
ledger.record(
    "hypothesis-toy-models",
    statement="Without the initial function, regression with the last kernel is often a good approximation of the network: toy models of superposition.",
    source="arXiv 2510.00468v1, sections 1 and 3",
    published="a hypothesis, no figure",
    measured={
        **{f"last kernel, {name}": toys[name][2] for name in TOYS},
        "last kernel with a ridge, wide": toys["wide"][3],
        "first kernel, dense": toys["dense"][1],
    },
    verdict=verdict(max(all_toys) <= 0.1, max(small_toys) <= 0.1),
    why="With ten hidden units it is the network; with forty the fit is ill-conditioned and needs a ridge.",
)

# %% tags=["hide-input"]
with_start = {name: toys[name][4] for name in TOYS}
nearer = [
    a < b / 2
    for name in TOYS
    for a, b in zip(toys[name][4], toys[name][0], strict=True)
]
ledger.record(
    "hypothesis-with-initial-function",
    statement="With the initial function, as the formula is written, regression with the last kernel approximates the network: toy models of superposition.",
    source="arXiv 2510.00468v1, section 1",
    published="a hypothesis, no figure",
    measured={
        f"distance to the network, {n}": v for n, v in with_start.items()
    },
    verdict=verdict(
        max(max(v) for v in with_start.values()) <= 0.1, all(nearer)
    ),
    why="The initial function does not lie in the span of the last tangent features.",
)

# %% [markdown]
# The bars: *holds* asks for a distance of at most 0.1 in every seed, *in part* for less than half the distance of the true targets (for the toy models: the two settings with ten units within 0.1). They were set with the numbers of other seeds (0 to 7) in view; this page shows seeds 10 to 14.
#
# ## What changes for other losses, optimisers and layers
#
# **Loss and optimiser.** Equation {eq}`eq-t-flow` was for squared error. With cross-entropy the residual is $\mathrm{softmax}(f) - y$ in place of $f - y$: still driven by the same kernel, no longer linear in $f$,
# and without a finite end: once all points are right, larger outputs still lower the loss. Adam multiplies gradients by a matrix $D$ of its own, so that the kernel that moves the function is $J D J^\T$, not $J J^\T$. Both matter in this book: the networks of the next chapters are trained by Adam or AdamW. Their tangent kernel is
# a well-defined description of the trained function's neighbourhood; it is not a record of how they got there.
#
# **Attention.** At finite size nothing changes: an attention layer is a differentiable function of its parameters, $K = J J^\T$ holds, layers add up, and {eq}`eq-t-flow` is exact at each moment. The *limit* is another matter. The limit of many heads
# is a Gaussian process with a kernel of its own {cite}`hron2020`; one wide head is not Gaussian in the limit with the usual scaling by $1/\sqrt d$, because the attention weights stay random. There is a recursion for every architecture made of matrix products and
# functions applied element by element, under conditions on the last layer {cite}`yang2020`, but seldom a closed form such as {eq}`eq-t-arccos`.
#
# **Normalisation.** Layer normalisation acts on each point alone, and an eNTK of a network with it is as good as any other. It makes the function indifferent to the scale of the weights before it, so that gradients by
# these weights are orthogonal to them and shrink as they grow ({ref}`ex-theory-euler`). Steps of finite size let them grow, and the kernel drifts through that alone. Batch normalisation in training mode lets points of a batch depend on each
# other; "the gradient of the output at $x$" has then no meaning without the batch. In evaluation mode it has; `empirical_ntk` refuses the former.
#
# ## What held, and what did not

# %% tags=["nbval-check-output"]
for claim in ledger.claims.values():
    print(f"{claim.id:34s} {claim.verdict}")

# %% [markdown]
# **What held.** The solution for the linearised model, exactly; prediction from the first kernel, better with width; the limit of infinite width; one learning rate a mode, for smooth networks; one knob from lazy to rich. And that a
# finished homogeneous network with weight decay is regression with its last kernel.
#
# **What did not.** ReLU networks approach their linearisation more slowly than tanh networks, and learn small modes more slowly than their eigenvalue says. Some of their units are caught on kinks, where the equation of motion itself fails; whether that is the cause is open. The eNTK hypothesis with the initial function in it fails where we
# tried it on toy models.
#
# **What surprised us.** That the kernel of a network which has not grokked already knows how to add; and how little it means that a network agrees with its last kernel.
#
# ## Exercises
#
# ```{exercise} Euler's identity
# :label: ex-theory-euler
# A function is homogeneous of degree $\kappa$ in its parameters if $f(x; s\theta) = s^\kappa f(x; \theta)$ for $s > 0$. Show that then $J(x)\, \theta = \kappa f(x)$. What is $\kappa$ for the modular network
# {eq}`eq-t-modular`, for a ReLU network {eq}`eq-t-network` with three hidden layers, and for the weights that feed a layer normalisation? Check with one product $J \theta$ each.
# ```
#
# ```{solution-start} ex-theory-euler
# :class: dropdown
# ```
#
# Differentiate $f(x; s\theta) = s^\kappa f(x; \theta)$ by $s$ at $s = 1$: the left side gives $J(x)\, \theta$. The degrees are 3 (two for $W_1$, squared, and one for $W_2$), 4 (one a matrix), and 0: normalisation
# undoes the scale, so that $J \theta = 0$, which says that the gradient is orthogonal to the weights.


# %% tags=["nbval-check-output"]
def flat(model, name=""):
    return torch.cat(
        [p.detach().flatten() for n, p in model.named_parameters() if name in n]
    )


def degree(model, points, params=None):
    """J theta against f, by least squares."""
    model, points = model.double(), points.double()
    weights = flat(model, params or "")
    jtheta = NTKOperator(model, points, params=params).jvp(weights)
    f = model(points).detach().flatten()
    return (jtheta @ f / (f @ f)).item()


normed = torch.nn.Sequential(
    torch.nn.Linear(3, 20, bias=False),
    torch.nn.LayerNorm(20),
    torch.nn.Linear(20, 2),
)
print("modular  ", round(degree(addition[0].model, addition[0].inputs), 9))
print("deep ReLU", round(degree(wide.network((3, 9, 9, 9, 2), 0), x), 9))
print("before layer norm", abs(degree(normed, x, "0.weight")) < 1e-4)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Where does the time go?
# :label: ex-theory-time
# A ReLU network with one hidden layer of infinite width is trained on our sixteen points by gradient descent, with steps of size $1/\lambda_1$, half of the largest that converges. After how many steps has the wave $\cos(k \cdot \text{angle})$ lost 99% of its amplitude, for $k = 1, 3, 5, 7$?
# ```
#
# ```{solution-start} ex-theory-time
# :class: dropdown
# ```
#
# The waves are eigenvectors, and a step leaves $1 - \lambda / \lambda_1$ of a mode, so that $\ln(0.01) / \ln(1 - \lambda / \lambda_1)$ steps are needed; about $\ln(100)\, \lambda_1 / \lambda$ for the small ones.

# %%
kernel = relu_ntk(x).ntk
top = eigenpairs(kernel, 1).values[0]
rows = []
for k in (1, 3, 5, 7):
    wave = (k * angle).cos().double()
    value = wave @ kernel @ wave / (wave @ wave)
    steps = math.log(0.01) / math.log1p(-value / top)
    rows.append((k, f"{value:.3f}", f"{math.ceil(steps):,}"))
table(["k", "eigenvalue", "steps"], rows)

# %% [markdown]
# ```{solution-end}
# ```
#
# ```{exercise} Move a network in a straight line
# :label: ex-theory-line
# Take a trained narrow ReLU network and its displacement $\theta - \theta_0$. Compare the real outputs on the circle at $\theta_0 + s\,(\theta - \theta_0)$ with {eq}`eq-t-linearised`, for $s = 1/8, 1/4, 1/2, 1$, 64 hidden units and all seeds. As which power of $s$ does the error (norm over the circle) grow? And for tanh?
# ```
#
# ```{solution-start} ex-theory-line
# :class: dropdown
# ```

# %%
rows = []
for name in ("relu", "tanh"):
    curves = []
    for run in runs[name, 64]:
        before, after = run.at(0).double(), run.model.double()
        way = flat(after) - flat(before)
        errors_on_line = []
        for s in (0.125, 0.25, 0.5, 1.0):
            there = run.at(0).double()
            with torch.no_grad():
                for p, q in zip(
                    there.parameters(), after.parameters(), strict=True
                ):
                    p += s * (q - p)
            wrong = there(fine.double()) - linearised(
                before, fine.double(), s * way
            )
            errors_on_line.append(wrong.norm().item())
        curves.append(
            np.polyfit(
                np.log((0.125, 0.25, 0.5, 1.0)), np.log(errors_on_line), 1
            )[0]
        )
    rows.append((LOOK[name][0], spread(curves)))
table(["activation", "error grows as s to the power"], rows)

# %% [markdown]
# A smooth function leaves its tangent as $s^2$. In a ReLU network, the number of gates that flip grows in proportion to $s$, and so does what each of them gets wrong; the signs are random, so that the sum grows as $s \sqrt s$. With 64 units
# the measured power is, in the mean, between that and the $s^2$ of two layers that multiply.
#
# ```{solution-end}
# ```
#
# ```{exercise} Caught units (open)
# :label: ex-theory-slow
# Is it the caught units that slow the small modes in {numref}`fig-t-bias`? Find the (unit, point) pairs whose gates flip in the last part of training; replace their gradients by what is left of them when $v_i \cdot x_n$ may not change; and compare the decay that the resulting kernel
# predicts with the measured one. How does the share of caught pairs fall with the width? Would a softplus with a sharp bend behave like the ReLU or like tanh?
# ```
#
# ## Where to go next
#
# [The next chapter](02_method) is about the kernel as a thing to compute and to read: its shapes, its cost, its spectrum, and how to tell a finding from luck.
