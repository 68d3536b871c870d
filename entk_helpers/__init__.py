"""The empirical neural tangent kernel of any PyTorch model, and what its spectrum says.

One module for each step, in the order of the data: `jacobian`, `structure`, `kernel`,
`operator`, `spectrum`, `alignment`; beside them `features` (ground truths), `testbeds`
(systems under study), `claims` and `plotting` (for the book's chapters).
"""

from .alignment import (
    alignment,
    block_energy,
    family_alignment,
    match,
    orthonormalise,
    subspace_overlap,
)
from .features import fourier_families, tms_features
from .jacobian import jacobian
from .kernel import empirical_ntk, flatten_kernel
from .operator import NTKOperator
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
    "gram_eigenpairs",
    "jacobian",
    "match",
    "orthonormalise",
    "subspace_overlap",
    "tms_features",
    "top_eigenpairs",
]
