"""The checks of the lesson on GPUs: bytes of a cache, a speed-up with a fixed part, the batch that turns the bound."""

from collections.abc import Callable

from modegpt.course.check.verdict import answer, expect, near, number, passed


def cache_bytes(function: Callable[[list[int], list[int], int, int, int], int]) -> None:
    """Exercise 13.1: the bytes of the cache of keys and values of a compressed model.

    Args:
        function: (query_key (layers,), value (layers,), kv_heads, tokens, size) -> bytes; the lists hold the dims kept
            per head, `size` is bytes a number.

    Raises:
        NotYet: a wrong number; names values or layers forgotten, one factor 2 too many, heads forgotten.
    """
    for query_key, value, kv_heads, tokens, size in (
        ([48, 40, 64], [32, 64, 40], 3, 100, 2),
        ([8, 16], [16, 8], 8, 7, 4),
        ([64], [24], 1, 11, 2),
    ):
        found = number(answer(function, list(query_key), list(value), kv_heads, tokens, size), "the number of bytes")
        unit = kv_heads * tokens * size
        wanted = unit * (sum(query_key) + sum(value))
        mistakes = (
            (2 * unit * sum(query_key), "values have ranks of their own: add them instead of doubling the keys"),
            (2 * wanted, "once too often times two: keys and values are in the sum already"),
            (unit * (query_key[0] + value[0]), "that is the first layer: every layer keeps its own keys and values"),
            (wanted / kv_heads, "that is one head: every key/value head keeps its own"),
            (wanted / size, "those are numbers, not bytes: times their size"),
            (wanted / tokens, "that is one token: the cache holds them all"),
            (unit * sum(query_key), "values are cached, too"),
            (unit * sum(value), "keys are cached, too"),
        )
        for mistake, message in mistakes:
            expect(mistake == wanted or not near(found, mistake, 1e-9), message)
        expect(near(found, wanted, 1e-9), f"{query_key} and {value} dims take {wanted:,} bytes, not {found:,.0f}")
    passed("the cache shrinks with the ranks of the heads, and with nothing else")


def speed_up(function: Callable[[float, float, float], float]) -> None:
    """Exercise 13.2: how many times faster a token is if a share of the dense time does not shrink.

    Args:
        function: (dense_bytes, small_bytes, fixed) -> speed-up; `fixed` is a share of the dense time.

    Raises:
        NotYet: a wrong number; names a fixed part left out, taken of the small time, or the inverse.
    """
    for dense, small, fixed in ((13.5, 9.6, 0.44), (10.0, 5.0, 0.26), (8.0, 8.0, 0.5), (4.0, 1.0, 0.0)):
        found = number(answer(function, dense, small, fixed), "the speed-up")
        rest = small / dense
        wanted = 1 / (fixed + (1 - fixed) * rest)
        mistakes = (
            (1 / rest, "that is the bound: a share `fixed` of the dense time stays whatever is read"),
            (fixed + (1 - fixed) * rest, "that is the time left, as a share: the speed-up is one over it"),
            (1 / (fixed + rest), "only the rest of the time, 1 - fixed, shrinks with the bytes"),
            (1 / ((1 - fixed) * rest), "the fixed part is missing from the new time"),
            (fixed + (1 - fixed) / rest, "times add up, speed-ups do not: add the times, then divide"),
            (1 / (1 - fixed + fixed * rest), "the wrong part shrinks: it is 1 - fixed that goes with the bytes"),
        )
        for mistake, message in mistakes:
            expect(near(mistake, wanted) or not near(found, mistake), message)
        expect(near(found, wanted), f"for {dense:g} and {small:g} bytes and {fixed:g} fixed it is {wanted:.4g}")
    passed("what does not shrink sets the limit, however small the model becomes")


def batch_that_computes(function: Callable[[float, float, float], float]) -> None:
    """Exercise 13.3: from which batch on decoding is bound by operations, not by the bytes of the weights.

    Args:
        function: (peak, bandwidth, size) -> batch; operations a second, bytes a second, bytes of one weight.

    Raises:
        NotYet: a wrong number; names a factor of two, the size of a weight left out, the inverse.
    """
    for peak, bandwidth, size in ((989e12, 3.35e12, 2), (312e12, 2.0e12, 2), (67e12, 3.35e12, 8), (1e12, 1e11, 4)):
        found = number(answer(function, peak, bandwidth, size), "the batch")
        wanted = peak * size / (2 * bandwidth)
        mistakes = (
            (peak * size / bandwidth, "a weight takes two operations a sequence, a product and a sum"),
            (peak / (2 * bandwidth), "a weight has `size` bytes to be read"),
            (peak / bandwidth, "that is operations a byte: how many does a weight of `size` bytes take in a batch?"),
            (1 / wanted, "upside down: seconds of reading over seconds of computing one sequence"),
            (2 * peak * size / bandwidth, "the two operations belong to the computing: divide by them"),
            (peak / (2 * bandwidth * size), "more bytes take longer to read, so they allow a larger batch"),
        )
        for mistake, message in mistakes:
            expect(near(mistake, wanted) or not near(found, mistake), message)
        expect(near(found, wanted), f"for {peak:g} operations and {bandwidth:g} bytes a second it is {wanted:.4g}")
    passed("the size of the model cancels: the card alone says which batch fills it")
