"""The empirical neural tangent kernel of any PyTorch model, and what its spectrum says.

One module for each step, in the order of the data: `problem`, `jacobian`, `structure`, `kernel`,
`operator`, `spectrum`, `rotation`, `regression`, `alignment`; beside them `closed_form` and
`infinite_width` (kernels by formula), `features` (ground truths), `testbeds` (systems under
study), `claims` and `plotting` (for the book's chapters).
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
from .closed_form import quadratic_class_pairs, quadratic_ntk
from .features import fourier_families, tms_features
from .infinite_width import InfiniteWidth, relu_ntk
from .jacobian import jacobian
from .kernel import compressed_ntk, empirical_ntk, flatten_kernel
from .operator import NTKOperator
from .regression import (
    gradient_flow,
    kernel_logistic_regression,
    kernel_regression,
    linearised,
)
from .rotation import (
    Blocks,
    KernelRotation,
    graph_rotation,
    independent_components,
    joint_blocks,
    kernel_rotation,
    torus_laplacian,
)
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
    "Blocks",
    "Cliff",
    "Eigenpairs",
    "InfiniteWidth",
    "KernelRotation",
    "NTKOperator",
    "NotConverged",
    "alignment",
    "block_energy",
    "cliffs",
    "compressed_ntk",
    "eigenpairs",
    "empirical_ntk",
    "family_alignment",
    "flatten_kernel",
    "fourier_families",
    "gradient_flow",
    "gram_eigenpairs",
    "graph_rotation",
    "independent_components",
    "jacobian",
    "joint_blocks",
    "kernel_alignment",
    "kernel_drift",
    "kernel_logistic_regression",
    "kernel_regression",
    "kernel_rotation",
    "kernel_target_alignment",
    "linearised",
    "match",
    "orthonormalise",
    "quadratic_class_pairs",
    "quadratic_ntk",
    "relu_ntk",
    "subspace_overlap",
    "tms_features",
    "top_eigenpairs",
    "torus_laplacian",
]
