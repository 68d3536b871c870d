"""Figures show the numbers that they were given, and compute nothing."""

import json
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from entk_helpers import plotting

mpl.use("Agg")


@pytest.fixture
def ax():
    with mpl.rc_context():
        plotting.use_style()
        figure, axes = plt.subplots()
        yield axes
        plt.close(figure)


def test_a_spectrum_has_one_line_a_seed_counted_from_one(ax):
    values = torch.tensor([[3.0, 2.0, 1.0], [4.0, 2.0, 0.5]])
    plotting.plot_spectrum(ax, values, label="two seeds")
    assert [line.get_xdata().tolist() for line in ax.lines] == [[1, 2, 3]] * 2
    assert np.array_equal([line.get_ydata() for line in ax.lines], values.numpy())
    assert ax.get_yscale() == "log"
    assert ax.get_legend_handles_labels()[1] == ["two seeds"]


def test_a_mark_stands_between_the_eigenvalues_that_it_separates(ax):
    plotting.mark_index(ax, 50, "fifty")
    assert ax.lines[0].get_xdata() == [50.5, 50.5]
    assert ax.texts[0].get_text() == "fifty"


def test_a_heat_map_keeps_the_first_eigenvector_on_top_and_the_scale_fixed(ax):
    scores = torch.tensor([[0.9, 0.1], [0.2, 0.3]])
    image = plotting.plot_heatmap(ax, scores)
    assert np.allclose(image.get_array(), scores.numpy())
    assert image.get_clim() == (0, 1)
    low, high = ax.get_ylim()
    assert low > high


def test_scores_show_the_mean_as_a_bar_and_every_seed_as_a_dot_from_the_top(ax):
    plotting.plot_scores(ax, {"kernel": [0.5, 0.7], "random": [0.1, 0.1]})
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([0.6, 0.1])
    assert ax.lines[0].get_xdata().tolist() == [0.5, 0.7]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["kernel", "random"]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_a_table_is_markdown_and_a_spread_names_mean_deviation_and_range():
    text = plotting.table(["setting", "ours"], [("dense", 1), ("sparse", 2)]).data
    assert text.splitlines() == [
        "| setting | ours |",
        "| --- | --- |",
        "| dense | 1 |",
        "| sparse | 2 |",
    ]
    assert (
        plotting.spread([1.0, 2.0, 3.0], 1).replace("\N{NO-BREAK SPACE}", " ")
        == "2.0 ± 1.0 (1.0 to 3.0)"
    )
    assert plotting.spread([10, 10], 0) == plotting.spread([10], 0) == "10"


def test_colours_are_distinct():
    assert len(set(plotting.COLOURS.values())) >= 6


def explorer(**change):
    spectra = torch.tensor([[9.0, 1.0, 0.1], [9.0, 2.0, 0.01]])
    settings = {
        "curves": {"seen": [0, 1, 1], "held out": [0.0, 0.12345, 1]},
        "spectra": spectra,
        "maps": torch.stack([torch.zeros(2, 3), torch.ones(2, 3)]),
        "captions": ["first", "a </script> in a caption"],
        "titles": ("accuracy", "spectrum", "map"),
        "map_axes": ("feature", "vector"),
        "marks": (1,),
        "start": 1,
    }
    return plotting.training_explorer("my-id", [0, 2], **(settings | change)).data


def test_the_explorer_holds_its_data_and_needs_no_network():
    page = explorer()
    assert "__ID__" not in page and "__DATA__" not in page and page.count('id="my-id"') == 1
    assert "http" not in page and "src=" not in page
    assert page.count("</script>") == 1  # a caption cannot end the script
    (line,) = [line for line in page.splitlines() if line.startswith("const D = ")]
    data = json.loads(line.removeprefix("const D = ").removesuffix(";"))
    assert [curve["values"] for curve in data["curves"]] == [[0, 1, 1], [0, 0.123, 1]]
    assert data["spectra"][1] == pytest.approx([math.log10(9), math.log10(2), -2], abs=1e-3)
    assert data["range"][0] < -2 and math.log10(2) < data["range"][1] < math.log10(9)
    assert data["maps"] == [data["digits"][0] * 6, data["digits"][63] * 6]
    assert data["columns"] == 3 and data["start"] == 1 and data["epochs"] == [0, 2]
    assert data["captions"][1] == "a </script> in a caption"


def test_the_explorer_wants_a_frame_for_each_epoch():
    with pytest.raises(ValueError, match=r"epochs \(2\), spectra \(2\), maps \(2\) and captions"):
        explorer(captions=["only one"])


def test_coloured_text_shows_words_as_they_are_with_their_colour_and_title():
    page = plotting.coloured_text(
        [[("a < b & c ", None, ""), ("dog", "#123456", "NOUN")]], legend={"NOUN": "#123456"}
    ).data
    assert "a &lt; b &amp; c " in page
    assert page.count("background:#123456") == 2 and 'title="NOUN">dog</span>' in page
    assert page.count("<p ") == 2
    assert "background" not in plotting.coloured_text([[("plain", None, "")]]).data
