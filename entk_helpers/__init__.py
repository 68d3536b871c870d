"""The empirical neural tangent kernel of any PyTorch model, and what its spectrum says.

One module for each step, in the order of the data: `jacobian`, `structure`, `kernel`,
`operator`, `spectrum`, `regression`, `alignment`; beside them `closed_form` and `infinite_width`,
`features` (ground truths), `testbeds` (systems under study), `claims` and `plotting` (for
the book's chapters).
"""

from .alignment import (
    alignment,
    block_energy,
    family_alignment,
    kernel_alignment,
    kernel_drift,
    kernel_target_alignment,
    match,
    orthonormalise,
    subspace_overlap,
)
from .closed_form import quadratic_ntk
from .features import fourier_families, tms_features
from .infinite_width import InfiniteWidth, relu_ntk
from .jacobian import jacobian
from .kernel import empirical_ntk, flatten_kernel
from .operator import NTKOperator
from .regression import gradient_flow, kernel_regression, linearised
from .spectrum import (
    Cliff,
    Eigenpairs,
    NotConverged,
    cliffs,
    eigenpairs,
    gram_eigenpairs,
    top_eigenpairs,
)

__all__ = [
    "Cliff",
    "Eigenpairs",
    "InfiniteWidth",
    "NTKOperator",
    "NotConverged",
    "alignment",
    "block_energy",
    "cliffs",
    "eigenpairs",
    "empirical_ntk",
    "family_alignment",
    "flatten_kernel",
    "fourier_families",
    "gradient_flow",
    "gram_eigenpairs",
    "jacobian",
    "kernel_alignment",
    "kernel_drift",
    "kernel_regression",
    "kernel_target_alignment",
    "linearised",
    "match",
    "orthonormalise",
    "quadratic_ntk",
    "relu_ntk",
    "subspace_overlap",
    "tms_features",
    "top_eigenpairs",
]
