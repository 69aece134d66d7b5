"""This kit's best: measured allocation, and each output matrix makes up for half of the earlier layers' error."""

import modegpt
from modegpt.pipeline import PLUS


def compress(model, tokenizer, text, ratio):
    return modegpt.compress(model, text, tokenizer=tokenizer, ratio=ratio, samples=32, measure_tokens=256, **PLUS)[0]
