import contextlib
import io
import os
import random
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

for inherited in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):  # of `make test`: a make that a test calls is not a part of it
    os.environ.pop(inherited, None)


def _tiny_llama(**changes) -> LlamaForCausalLM:
    """Random weights, large enough that a wrong head, scale or rotation shows in the logits."""
    options = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


def _tiny_opt(**changes) -> OPTForCausalLM:
    """Random weights and, unlike a fresh model's, random biases, all large enough to show in the logits."""
    options = {
        "hidden_size": 48,
        "ffn_dim": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "init_std": 0.2,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = OPTForCausalLM(OPTConfig(**options | changes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture
def soon(request):
    """An endless loop fails the test after 20 seconds (or its parameter) instead of stopping the run."""
    seconds = getattr(request, "param", 20)

    def stop(*_):
        raise TimeoutError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def tiny_llama():
    """Builds a tiny dense Llama, any config entry changed by keyword."""
    return _tiny_llama


@pytest.fixture(scope="session")
def tiny_opt():
    """Builds a tiny dense OPT with large biases, any config entry changed by keyword."""
    return _tiny_opt


@pytest.fixture
def tokens():
    """Six samples of forty tokens of the tiny vocabulary, none of them padding."""
    return torch.randint(2, 128, (6, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Some 30,000 tokens of invented sentences."""
    draw = random.Random(0)
    words = ["".join(draw.choices("aeioulnrst", k=draw.randint(2, 7))) for _ in range(200)]
    sentences = (" ".join(draw.choices(words, k=8)).capitalize() + "." for _ in range(1500))
    path = tmp_path_factory.mktemp("text") / "invented.txt"
    path.write_text(" ".join(sentences))
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(text_file) -> PreTrainedTokenizerFast:
    """Byte-level BPE trained on the invented text; adds no BOS token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train([str(text_file)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def dense_folder(tmp_path_factory, tiny_tokenizer) -> Path:
    """A tiny random Llama with its tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "dense"
    _tiny_llama(vocab_size=len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@dataclass
class Outcome:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_figure_stays():
    """pyplot keeps what a test draws and does not close, and warns of too many."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture
def one_thread():
    """Tiny models gain nothing from more threads, which wait for each other on a busy machine."""
    with _one_thread():
        yield


@pytest.fixture(scope="session")
def modegpt():
    """Runs `modegpt ARGUMENTS...` in this process, which saves the seconds that importing torch takes, on the CPU."""
    from modegpt.cli import main

    def call(*arguments: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        argv = mock.patch.object(sys, "argv", ["modegpt", *map(str, arguments)])
        no_gpu = mock.patch.object(torch.cuda, "is_available", return_value=False)
        streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
        with _one_thread(), argv, no_gpu, streams[0], streams[1], pytest.raises(SystemExit) as end:
            main()
        return Outcome(end.value.code, out.getvalue(), err.getvalue())

    return call


@pytest.fixture(scope="session")
def start_modegpt():
    """Starts `modegpt ARGUMENTS...` in a process of its own, on one CPU thread."""

    def start(*arguments: object, **options) -> subprocess.Popen:
        command = [sys.executable, "-m", "modegpt", *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # a job in the background may have been started with Ctrl-C ignored, and would pass that on
        options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)} | options
        return subprocess.Popen(command, env=environment, **pipes, **options)

    return start
