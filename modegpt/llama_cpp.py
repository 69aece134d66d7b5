"""llama.cpp on a GGUF file, through the optional package xllamacpp: greedy tokens, log-probabilities, speed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from modegpt.errors import ModegptError


@dataclass(frozen=True)
class Continuation:
    """A greedy continuation: text, tokens, and tokens per second while decoding.

    `logprobs` lists the natural logarithm of each token's probability, without those of tokens in which a character
    is cut in two: llama.cpp gives none.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    tokens_per_second: float


class LlamaCpp:
    """A loaded GGUF file.

    Args:
        file: the GGUF file.
        threads: CPU threads.
        context: tokens that prompt and continuation may have together.

    Raises:
        ModegptError: xllamacpp is not installed, or llama.cpp refuses the file.
    """

    def __init__(self, file: Path, threads: int = 2, context: int = 512) -> None:
        try:
            import xllamacpp
        except ImportError as error:
            raise ModegptError("llama.cpp comes with xllamacpp: pip install 'modegpt[llama-cpp]'") from error
        params = xllamacpp.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        # nothing less exact than the file: by default keys, values and what attention multiplies are float16
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.verbosity, params.warmup = -1, True
        try:
            self._server = xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise ModegptError(f"llama.cpp does not load {file}: {error}") from error

    def greedy(self, prompt: str | Sequence[int], tokens: int = 60) -> Continuation:
        """The most likely next tokens, one after another; of a text llama.cpp's own tokenizer makes tokens."""
        request = {"prompt": prompt if isinstance(prompt, str) else list(prompt), "n_predict": tokens}
        request |= {"temperature": 0, "n_probs": 1, "cache_prompt": False, "ignore_eos": True, "return_tokens": True}
        answer = self._ask("completion", request)
        logprobs = [token["logprob"] for token in answer["completion_probabilities"]]
        return Continuation(answer["content"], answer["tokens"], logprobs, answer["timings"]["predicted_per_second"])

    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text, special ones included, as llama.cpp's own tokenizer makes them."""
        return self._ask("tokenize", {"content": text, "add_special": True, "parse_special": True})["tokens"]

    def _ask(self, what: str, request: Mapping[str, Any]) -> dict[str, Any]:
        body, kind = json.dumps(request).encode(), {"Content-Type": "application/json"}
        with urlopen(Request(f"{self._server.listening_address}/{what}", body, kind), timeout=600) as answer:
            return json.load(answer)
