"""A method of one's own: SVD of every matrix, its inputs scaled by their root mean square."""

from modegpt.calibrate import stream
from modegpt.cli import main
from modegpt.families import family_of
from modegpt.methods import METHODS, Method
from modegpt.methods.low_rank import Factors, block_linears, compress, ordered_factors


def measure(model, data, *, batch_size=4, progress=False):
    """Factors of every W (out, in), best first, for E[x x^T] replaced by its diagonal."""
    family, linears, factors = family_of(model), iter(block_linears(model).items()), Factors("svd-rms")

    def taps(layer):  # whose Gram matrices are wanted: a module, and which side of it
        return {name: (layer.get_submodule(name), "input") for name in family.linears}

    for _, seen in stream(model, family, data, taps, batch_size=batch_size, progress=progress):
        factors.tokens = seen.tokens
        for gram in (seen.grams[name] for name in family.linears):
            name, linear = next(linears)
            weight = linear.weight.detach().to(gram)
            left, right = ordered_factors(weight, weight * gram.diagonal().sqrt())
            factors[name] = left.float(), right.float()
    return factors


METHODS["svd-rms"] = Method(measure, compress, "SVD of every matrix, inputs scaled by their root mean square")

if __name__ == "__main__":
    main()
