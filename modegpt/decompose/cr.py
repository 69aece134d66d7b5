"""Type II, query-key: CR decomposition (MoDeGPT, Theorem 2 and Algorithm 2; arXiv 2408.09632).

f(X) = rope(X W_Q) rope(X W_K)^T per head. The same columns are kept in W_Q and W_K; nothing is solved again,
because the rotation sits between the two matrices. (An OPT has no rotation, so its pair can be solved for, see
`svd.query_key_svd`; the paper selects its columns too.)
"""

import torch
from torch import Tensor

from modegpt.errors import ModegptError

PAIR_SCORES = ("joint", "sum")


def cr_select(query: Tensor, key: Tensor, rank: int, rotary: bool = True, pair_score: str = "joint") -> Tensor:
    """Choose the query-key dims of every key/value head.

    The score of a dim is ||C_Q^1/2 [:, i]|| ||C_K^1/2 [:, i]||, and a column norm of C^1/2 is sqrt(C_ii): the
    norm of that dim's queries times the norm of its keys. Rotary embeddings turn dims i and i + d/2 together, so
    they are kept or dropped as a pair, scored as one unit: "joint" takes the norms over both dims of the pair,
    sqrt(Q_ii + Q_jj) sqrt(K_ii + K_jj), which no rotation changes; "sum" adds the scores of the two dims.
    With grouped queries the scores are summed over the query heads that share the key head.

    Args:
        query: C_Q, Gram matrices of the (rotated) queries, (kv_heads, group, d, d).
        key: C_K, Gram matrices of the (rotated) keys, (kv_heads, d, d).
        rank: dims to keep per head, even if `rotary`.
        rotary: tie dims i and i + d/2 (the pairing of Hugging Face models).
        pair_score: "joint" or "sum"; without rotary there are no pairs and it is ignored.

    Returns:
        Kept dims of each key/value head, (kv_heads, rank) int64; with rotary the first half holds the lower dims
        of the kept pairs, ascending, and the second half their partners, the layout that `rotate_half` expects.

    Raises:
        ModegptError: an unknown `pair_score`.
    """
    scores = _scores(query, key, rotary, pair_score)
    if not rotary:
        return scores.topk(rank, dim=-1).indices.sort(-1).values
    lower = scores.topk(rank // 2, dim=-1).indices.sort(-1).values
    return torch.cat([lower, lower + query.shape[-1] // 2], dim=-1)


def cr_residuals(query: Tensor, key: Tensor, rotary: bool = True, pair_score: str = "joint") -> Tensor:
    """What `cr_select` drops at every rank, summed over the heads, (d + 1,): the squared scores of the dropped dims.

    The error of a selection is the sum over dropped i, j of (C_Q o C_K)_ij; this is its diagonal, which the ranking
    rests on too. With rotary an odd rank holds one pair less.

    Args:
        query, key, rotary, pair_score: as in `cr_select`.
    """
    squares = _scores(query, key, rotary, pair_score).sort(-1, descending=True).values.square().sum(0)
    tails = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
    return tails.repeat_interleave(2)[: query.shape[-1] + 1] if rotary else tails


def _scores(query: Tensor, key: Tensor, rotary: bool, pair_score: str) -> Tensor:
    """Of every dim, or rotary pair, of every key/value head: (kv_heads, d) or (kv_heads, d / 2)."""
    query_power = query.diagonal(dim1=-2, dim2=-1)
    key_power = key.diagonal(dim1=-2, dim2=-1)[:, None]
    if not rotary:
        return (query_power * key_power).sqrt().sum(1)
    half = query.shape[-1] // 2
    if pair_score not in PAIR_SCORES:
        raise ModegptError(f"pair_score is one of {', '.join(PAIR_SCORES)}, got '{pair_score}'")
    if pair_score == "joint":
        query_pair = query_power[..., :half] + query_power[..., half:]
        key_pair = key_power[..., :half] + key_power[..., half:]
        return (query_pair * key_pair).sqrt().sum(1)
    per_dim = (query_power * key_power).sqrt().sum(1)
    return per_dim[:, :half] + per_dim[:, half:]


def kept_rms(projected: Tensor, dims: Tensor, all_heads: bool = False) -> Tensor:
    """Root mean square of the kept dims of queries or keys over all tokens, relative to that of all dims.

    A query-key norm (Qwen3) of the kept dims alone divides by another number than that of all dims, at every token in
    another ratio; this one number, folded into its weight, makes up for it.

    Args:
        projected: Gram matrices of what the norm gets, (kv_heads, ..., d, d).
        dims: kept dims of each key/value head, (kv_heads, rank).
        all_heads: one norm spans all heads (OLMo 2), so they share the number.

    Returns:
        One number a head, (kv_heads, ...); exactly 1 if all dims are kept.
    """
    power = projected.diagonal(dim1=-2, dim2=-1)
    index = dims.view(len(dims), *(1,) * (power.ndim - 2), -1).expand(*power.shape[:-1], -1)
    kept, full = power.gather(-1, index).mean(-1), power.mean(-1)
    if all_heads:
        kept, full = (t.mean().expand_as(t) for t in (kept, full))
    return (kept / full).sqrt()
