"""The three decompositions of MoDeGPT as pure tensor functions: no model in sight.

Tokens are rows, as in the paper: a linear map is `X W` with `W` of shape (in, out), the transpose of
`torch.nn.Linear.weight`.
"""

from modegpt.decompose.cr import PAIR_SCORES, cr_residuals, cr_select, kept_rms
from modegpt.decompose.linalg import DAMPING_START, damped_cholesky
from modegpt.decompose.nystrom import leverage_scores, nystrom, nystrom_residuals
from modegpt.decompose.shared import pair_weights, shared_projection, shared_residuals
from modegpt.decompose.svd import query_key_residuals, query_key_svd, value_output_residuals, value_output_svd

__all__ = [
    "DAMPING_START",
    "PAIR_SCORES",
    "cr_residuals",
    "cr_select",
    "damped_cholesky",
    "kept_rms",
    "leverage_scores",
    "nystrom",
    "nystrom_residuals",
    "pair_weights",
    "query_key_residuals",
    "query_key_svd",
    "shared_projection",
    "shared_residuals",
    "value_output_residuals",
    "value_output_svd",
]
