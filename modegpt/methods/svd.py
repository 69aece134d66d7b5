"""Plain SVD of every block linear: the closest matrix of rank r (Eckart and Young, 1936), blind to the data."""

from rich.progress import track
from transformers import PreTrainedModel

from modegpt.calibrate import Tokens
from modegpt.machine import Stopwatch
from modegpt.methods.low_rank import Factors, block_linears, compress, ordered_factors

__all__ = ["compress", "measure"]


def measure(
    model: PreTrainedModel, data: Tokens | None = None, *, batch_size: int = 4, progress: bool = False
) -> Factors:
    """The SVD of every block linear; `data` and `batch_size` are those of every method, and not looked at.

    Raises:
        ModegptError: unsupported model, NaN or inf in its weights.
    """
    factors, clock = Factors("svd"), Stopwatch()
    linears = block_linears(model).items()
    for name, linear in track(linears, "decompose", transient=True, disable=not progress):
        with clock("decompose"):
            weight = linear.weight.detach().double()
            left, right = ordered_factors(weight, weight)
            factors[name] = left.float(), right.float()
    factors.seconds = dict(clock.seconds)
    return factors
