"""Causal language models of Hugging Face: windows of text, the logit kernel, scores of its modes.

`text` reads annotated documents, `taggers` annotate others, `windows` cuts them before words with
known tags, `models` says what a model computes at their last token, `kernel` multiplies with the
logit kernel of a layer, `scores` makes eigenvectors into one number for each window and grades
these, `modes` says what an eigenvector stands for and edits along it; `study` and `__main__` do all
of it for a model on the hub (``python -m entk_helpers.language --help``). transformers is imported
when a model is used.
"""

import warnings

# transformers imports tqdm's bars for notebooks, which warn where there are no widgets.
warnings.filterwarnings("ignore", message="IProgress not found")

from .kernel import LogitKernel  # noqa: E402
from .models import States, gemma_3_270m_config, last_token_states  # noqa: E402
from .modes import (  # noqa: E402
    Divergence,
    Hinge,
    Lift,
    edited,
    extended_scores,
    hinges,
    logit_directions,
    mode_hinges,
    mode_logits,
    output_lifts,
    output_ratios,
    suspect,
    swap_divergences,
)
from .scores import (  # noqa: E402
    Grades,
    Labels,
    Probe,
    auroc,
    average_precision,
    grade,
    linear_probe_scores,
    morphology_labels,
    pca_scores,
    probe,
    random_scores,
    stratified_halves,
    table_scores,
    tag_labels,
    window_scores,
)
from .taggers import TableTagger  # noqa: E402
from .text import Document, Word, read_conllu, write_conllu  # noqa: E402
from .windows import UD_TAGS, Windows, select_windows  # noqa: E402

__all__ = [
    "UD_TAGS",
    "Divergence",
    "Document",
    "Grades",
    "Hinge",
    "Labels",
    "Lift",
    "LogitKernel",
    "Probe",
    "States",
    "TableTagger",
    "Windows",
    "Word",
    "auroc",
    "average_precision",
    "edited",
    "extended_scores",
    "gemma_3_270m_config",
    "grade",
    "hinges",
    "last_token_states",
    "linear_probe_scores",
    "logit_directions",
    "mode_hinges",
    "mode_logits",
    "morphology_labels",
    "output_lifts",
    "output_ratios",
    "pca_scores",
    "probe",
    "random_scores",
    "read_conllu",
    "select_windows",
    "stratified_halves",
    "suspect",
    "swap_divergences",
    "table_scores",
    "tag_labels",
    "window_scores",
    "write_conllu",
]
