"""The paper's method, as it stands (arXiv 2408.09632): Block Influence, Nystrom, CR and SVD."""

import modegpt


def compress(model, tokenizer, text, ratio):
    return modegpt.compress(model, text, tokenizer=tokenizer, ratio=ratio, samples=32)[0]
