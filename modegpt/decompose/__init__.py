"""The three decompositions of MoDeGPT as pure tensor functions: no model in sight.

Tokens are rows, as in the paper: a linear map is `X W` with `W` of shape (in, out), the transpose of
`torch.nn.Linear.weight`.
"""

from modegpt.decompose.cr import PAIR_SCORES, cr_select
from modegpt.decompose.linalg import DAMPING_START, damped_cholesky
from modegpt.decompose.nystrom import leverage_scores, nystrom
from modegpt.decompose.svd import value_output_svd

__all__ = [
    "DAMPING_START",
    "PAIR_SCORES",
    "cr_select",
    "damped_cholesky",
    "leverage_scores",
    "nystrom",
    "value_output_svd",
]
