"""Where opt-mini comes from: `modegpt study train-mini --out DIR` on one GPU, about 20 minutes on an H100.

No pretrained OPT can be installed from a package registry, so the kit trains a small one. SmolLM2-135M-Instruct
(Apache-2.0) writes the text, Wikipedia passages (the calibration part only) join it, a byte-level BPE and a stock
`OPTForCausalLM` are trained on both. A run that was interrupted goes on from the documents it has. Other architectures
are trained the same way, to try their families on weights that have learnt something.
"""

import itertools
import json
import random
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress, TextColumn
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.cache_utils import DynamicCache

from modegpt.checkpoint.folder import save_tokenizer
from modegpt.console import err, out
from modegpt.errors import ModegptError
from modegpt.evaluate import perplexity
from modegpt.files import to_json, write_whole
from modegpt.machine import environment
from modegpt.sources import load_model, load_text, token_windows
from modegpt.sources.wiki_passages import read_passages
from modegpt.study.figures import training_curve
from modegpt.style import keep

PAD, EOS = 1, 2  # the ids of OPT's own tokenizer; </s> opens every text and stands between documents
CONTEXT = 2048
TRAINING_FILE = "training.json"

WORDS = {  # for the card
    "opt": "OPT (stock `OPTForCausalLM`: pre-norm, ReLU, biases, learned positions)",
    "qwen2": "Qwen2 (stock `Qwen2ForCausalLM`: gated MLP, rotary positions, grouped queries, biases of q, k and v)",
    "qwen3": "Qwen3 (stock `Qwen3ForCausalLM`: gated MLP, rotary positions, grouped queries, norms of q and k)",
}

SYSTEM = "You are a writer. You answer with paragraphs of running text, in plain English, without lists."
FORMS = (
    "Write an encyclopedia article about {}.",
    "Write several paragraphs about the history of {}.",
    "Explain {} to a curious twelve-year-old.",
    "Tell a story in which {} plays a part.",
    "Tell a short tale for children about {}.",
    "Write a newspaper report about {}.",
    "Write a talk between a teacher and a student about {}.",
    "Describe {} in detail.",
    "Summarize what is known about {}.",
    "Write a diary entry of somebody who thinks about {}.",
    "Write a letter to a friend about {}.",
    "Why does {} matter? Write an essay.",
    "Write the opening of a novel in which {} comes up.",
    "How would you describe {} to a visitor from another country?",
    "What do people argue about when they talk of {}?",
    "Write a magazine article about {}.",
    "Recall a memory that has to do with {}.",
    "Imagine the future of {} and describe it.",
)
MANNERS = (
    "",
    "Use simple words.",
    "Write short sentences.",
    "Write at length.",
    "Give examples.",
    "Be precise and sober.",
    "Begin in the middle of things.",
    "Mention a place and a time of year.",
    "Mention at least two people by name.",
    "Explain causes and effects.",
)
EVERYDAY = (
    """
a lighthouse, a lost key, the first snow, a village market, bread, a long train journey, a broken clock, a
school play, the night sky, a garden, an old bridge, a football match, a thunderstorm, a library, a river in
spring, honey bees, a grandmother's recipe, a farm, a small shop, a hospital, a dog, a cat, horses, a whale,
an oak tree, the moon, the tides, volcanoes, a desert, an island, the city at night, a bicycle, a ship, an
airport, a birthday, a wedding, a friendship, a quarrel, a secret, a promise, a mistake, a letter that came
late, a new job, a teacher, a doctor, a carpenter, a baker, a fisherman, a pilot, a farmer, a judge, a king, a
queen, a mayor, a soldier, a nurse, an inventor, a painter, a violin, a choir, a dance, a theatre, a film, a
photograph, a museum, a cathedral, a castle, a mountain village, a harbour, a mill, a mine, a factory, steam
engines, electricity, the telephone, the printing press, paper, glass, iron, salt, tea, coffee, sugar, rice,
cheese, apples, potatoes, water, clean air, rain, ice, fire, light, sound, time, sleep, dreams, memory, music,
mathematics, languages, writing, maps, money, trade, taxes, elections, laws, schools, sports, games, chess,
running, swimming, climbing, cooking, sewing, gardening, reading, travelling, birds, fish, ants, spiders,
bears, wolves, forests, lakes, oceans, winter, spring, summer, autumn, planets, comets, gravity, magnets,
atoms, cells, plants, medicine, vaccines, the heart, the brain, bones, eyes, ancient Rome, ancient Egypt, the
Silk Road, the Vikings, the Middle Ages, the Renaissance, railways, the space race, bridges, roads, canals,
dams, towers, robots, computers
""".strip()
    .replace("\n", " ")
    .split(", ")
)


def prompts(seed: int) -> Iterator[str]:
    """Endless requests: a subject (everyday things, titles of Wikipedia articles), a form, a manner."""
    chance = random.Random(seed)
    kept = load_text("wiki-passages", "calibration")
    titles = sorted({title for title, passage in read_passages() if passage in kept})
    while True:
        subject = chance.choice(EVERYDAY if chance.random() < 0.4 else titles)
        yield f"{chance.choice(FORMS).format(subject)} {chance.choice(MANNERS)}".strip()


@torch.no_grad()
def write_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Iterator[str],
    rows: int,
    length: int,
    seed: int,
) -> list[str]:
    """Answers to requests: `rows` conversations of `length` tokens at once, temperature 0.7, the 50 likeliest tokens.

    A row that has ended its answer is fed its next request, so no row waits for another and none is padded.
    """
    chat = "<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    start = tokenizer(f"<|im_start|>system\n{SYSTEM}")["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    per_row = length // 100 + 1
    asked = tokenizer([chat.format(next(requests)) for _ in range(rows * per_row)])["input_ids"]
    longest = max(map(len, asked)) + 1
    # (rows, per_row, longest): -1 marks the end of a request
    queue = torch.tensor([ids + [-1] * (longest - len(ids)) for ids in asked], device=model.device)
    queue = queue.view(rows, per_row, longest)

    row = torch.arange(rows, device=model.device)
    request, position = torch.zeros_like(row), torch.zeros_like(row)
    generator = torch.Generator(model.device).manual_seed(seed)
    cache, tokens = DynamicCache(config=model.config), torch.tensor(start, device=model.device).expand(rows, -1)
    written, answer = [], []
    for _ in range(length):
        logits = model(tokens, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        top, index = logits.float().topk(50)
        choice = torch.multinomial((top / 0.7).softmax(-1), 1, generator=generator)
        forced = queue[row, request, position]
        free = forced < 0
        tokens = torch.where(free, index.gather(1, choice)[:, 0], forced)[:, None]
        written.append(tokens[:, 0])
        answer.append(free)
        ended = free & (tokens[:, 0] == end)
        request = torch.where(ended, (request + 1).clamp(max=per_row - 1), request)
        # a request opens with <|im_end|>, which has just been written
        position = torch.where(ended, 1, torch.where(free, position, position + 1))

    texts = []
    for ids, mine in zip(torch.stack(written, 1).cpu(), torch.stack(answer, 1).cpu(), strict=True):
        turns = (mine[1:] != mine[:-1]).nonzero()[:, 0] + 1
        for part, answered in zip(ids.tensor_split(turns), mine.tensor_split(turns), strict=True):
            if answered[0]:
                text = tokenizer.decode(part, skip_special_tokens=True).strip()
                # an answer cut at the end of the row closes with its last whole sentence
                texts.append(text if part[-1] == end else text[: text.rfind(".") + 1])
    return texts


def readable(text: str) -> bool:
    """Running English prose: no code, tables, forms to fill in, other scripts or endless repetition."""
    if len(text) < 100 or not text.replace("\n", "").isprintable():
        return False
    strange = sum(not ("a" <= c.lower() <= "z" or c in " ,.;:'\"’“”-–—!?()\n0123456789") for c in text)
    signs = ("```", "[", "|", "**", "##", "SmolLM", "AI assistant", "language model")
    repeated = len(zlib.compress(text.encode())) < 0.3 * len(text.encode())
    return strange < 0.01 * len(text) and not any(sign in text for sign in signs) and not repeated


def corpus(folder: Path, characters: int, rows: int, length: int, seed: int, device: str) -> tuple[list[str], float]:
    """Documents with at least so many characters in all, and the seconds that writing them took.

    Each batch is kept in `folder` as it is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents, size, seconds, model = [], 0, 0.0, None
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[pace]}")) as bar:
        task = bar.add_task("write", total=characters, pace="")
        for batch in itertools.count():
            file = folder / f"{batch:04d}.json"
            if not file.exists():
                if model is None:
                    model, tokenizer = load_model("smollm2-135m", device=device)
                begin, chance = time.perf_counter(), seed * 10_000 + batch
                texts = write_texts(model, tokenizer, prompts(chance), rows, length, chance)
                texts = [text for text in texts if readable(text)]
                write_whole(file, json.dumps({"seconds": time.perf_counter() - begin, "texts": texts}))
            done = json.loads(file.read_text())
            documents += done["texts"]
            seconds += done["seconds"]
            size += sum(map(len, done["texts"]))
            bar.update(task, completed=size, pace=f"{size / seconds:,.0f} characters/s")
            if size >= characters:
                return documents, seconds


def train_tokenizer(documents: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE with OPT's special tokens; like OPT's, it puts </s> in front of a text."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(documents, vocab_size=size, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    front = TemplateProcessing(single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", EOS)])
    bpe._tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=False), front])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
    )


def pack(documents: list[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """(windows, CONTEXT) int64: all documents in a row, </s> before each."""
    ids = [i for encoded in tokenizer(documents)["input_ids"] for i in encoded]
    return torch.tensor(ids[: len(ids) // CONTEXT * CONTEXT], dtype=torch.int64).view(-1, CONTEXT)


def config(architecture: str, vocabulary: int) -> PreTrainedConfig:
    """The smallest sizes at which compression costs something that can be measured: 13 to 18 M parameters."""
    ends = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": PAD}
    same = {"vocab_size": vocabulary, "hidden_size": 384, "num_attention_heads": 6, "max_position_embeddings": CONTEXT}
    if architecture == "opt":  # pre-norm, ReLU, biases, learned positions, as every OPT but the 350m
        return OPTConfig(word_embed_proj_dim=384, ffn_dim=1536, num_hidden_layers=8, dropout=0.05, **same, **ends)
    sizes = {"intermediate_size": 1024, "num_hidden_layers": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}
    found = {"qwen2": Qwen2Config, "qwen3": Qwen3Config}[architecture]
    return found(**({"head_dim": 64} if architecture == "qwen3" else {}), **sizes, **same, **ends)


def train(
    model: PreTrainedModel, windows: Tensor, held_out: Tensor, steps: int, batch: int, peak: float, seed: int
) -> list[dict[str, float]]:
    """AdamW with warm-up and a cosine to zero, bfloat16 autocast; the loss in nats per token as it falls.

    `windows` and `held_out` are token ids, (windows, length).
    """
    device = model.device
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=peak,
        betas=(0.9, 0.95),
        fused=device.type == "cuda",
    )
    warm = max(1, steps // 20)
    plan = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warm),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - warm),
        ],
        [warm],
    )
    run = torch.compile(model) if device.type == "cuda" else model
    order = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.int64)
    curve, losses, begin = [], [], time.perf_counter()
    with Progress(*Progress.get_default_columns(), TextColumn("{task.fields[loss]}")) as bar:
        task = bar.add_task("train", total=steps, loss="")
        for step in range(1, steps + 1):
            model.train()
            while len(queue) < batch:
                queue = torch.cat([queue, torch.randperm(len(windows), generator=order)])
            ids, queue = windows[queue[:batch]].to(device), queue[batch:]
            with torch.autocast(device.type, torch.bfloat16):
                loss = run(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            plan.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.detach())
            if step % max(1, steps // 100) == 0 or step == steps:
                model.eval()
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                    parts = held_out.to(device).split(batch)
                    held = sum(model(input_ids=p, labels=p).loss.item() * len(p) for p in parts) / len(held_out)
                curve.append({"step": step, "loss": torch.stack(losses).mean().item(), "held_out_loss": held})
                losses = []
                pace = step * ids.numel() / (time.perf_counter() - begin)
                bar.update(task, loss=f"loss {curve[-1]['loss']:.3f}, held out {held:.3f}, {pace:,.0f} tokens/s")
            bar.advance(task)
    return curve


def card(facts: dict[str, Any]) -> str:
    """The model card: what it is, what it read, what it cost, what it can and cannot do."""
    settings, seconds, last = facts["settings"], facts["seconds"], facts["curve"][-1]
    architecture = settings.get("architecture", "opt")
    dropout = "with dropout, " if architecture == "opt" else ""
    option = "" if architecture == "opt" else f"--architecture {architecture} "
    minutes = ", ".join(f"{step} {took / 60:.0f} min" for step, took in seconds.items())
    scores = "\n".join(f"| {text} | {value:.2f} |" for text, value in facts["perplexity"].items())
    return f"""---
license: cc-by-sa-3.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {architecture}-mini

A small {WORDS[architecture]} with {facts["parameters"] / 1e6:.1f} M
parameters and a byte-level BPE of its own, made to be compressed in class. It writes plain English sentences and is of
no other use: what it says is mostly untrue.

**Data.** {facts["documents"]:,} documents, {facts["tokens"] / 1e6:.1f} M tokens: answers that SmolLM2-135M-Instruct
(Apache-2.0) wrote to random requests about everyday things and titles of Wikipedia articles, sampled at temperature 0.7
from the 50 likeliest tokens, filtered for running prose, and the calibration part of the Wikipedia passages of BoolQ
(CC BY-SA 3.0). The evaluation part was not seen.

**Training.** {settings["steps"]:,} steps of {settings["batch"]} x {CONTEXT:,} tokens
({facts["tokens_seen"] / 1e6:.0f} M tokens, {facts["tokens_seen"] / facts["tokens"]:.0f} passes), AdamW,
learning rate {settings["peak"]} at its highest, cosine to zero,
bfloat16 autocast, seed {settings["seed"]}. Time: {minutes}, on
{facts["device"]}. Weights are saved in float16. `{TRAINING_FILE}` holds the loss as it fell; at the end it was
{last["loss"]:.3f} nats per token ({dropout}on documents seen before) and {last["held_out_loss"]:.3f} on held-out
answers of SmolLM2.

| perplexity on (all windows of {CONTEXT:,} tokens, own tokenizer, float32) | |
|---|---:|
{scores}

Perplexities of different tokenizers do not compare.

![The loss in nats per token against the tokens seen, in training and held out](loss.png)

**Made by** `modegpt study train-mini {option}--out DIR` on one GPU. **Licence:** CC BY-SA 3.0, that of the passages.

**Limits.** English only. It inherits what SmolLM2 gets wrong, adds much of its own, repeats itself when it decodes
greedily, and must not be used to inform anybody.
"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a small model is made: see `modegpt study train-mini --help`."""

    architecture: str
    characters: int
    steps: int
    batch: int
    peak: float
    vocabulary: int
    rows: int
    length: int
    seed: int


def train_mini(folder: Path, recipe: Recipe, device: str) -> None:
    """Write a corpus with SmolLM2, train a tokenizer and a model on it, measure, save in float16.

    Raises ModegptError if the corpus does not fill a window.
    """
    seconds = {}
    written = corpus(folder / "documents", recipe.characters, recipe.rows, recipe.length, recipe.seed, device)
    documents, seconds["write"] = written
    random.Random(recipe.seed).shuffle(documents)
    held = documents[: max(1, len(documents) // 200)]
    documents = documents[len(held) :] + load_text("wiki-passages", "calibration").split("\n\n")
    random.Random(recipe.seed).shuffle(documents)

    begin = time.perf_counter()
    tokenizer = train_tokenizer(documents, recipe.vocabulary)
    windows, held_out = pack(documents, tokenizer), pack(held, tokenizer)
    if not len(windows) or not len(held_out):
        raise ModegptError(
            f"{recipe.characters} characters do not fill windows of {CONTEXT} tokens to train and to test on"
        )
    seconds["tokenize"] = time.perf_counter() - begin

    torch.manual_seed(recipe.seed)
    begin = time.perf_counter()
    model = AutoModelForCausalLM.from_config(config(recipe.architecture, recipe.vocabulary)).to(device)
    curve = train(model, windows, held_out, recipe.steps, recipe.batch, recipe.peak, recipe.seed)
    seconds["train"] = time.perf_counter() - begin

    model = model.half().float().eval()  # what is measured is what is saved
    facts: dict[str, Any] = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "documents": len(documents),
        "tokens": windows.numel(),
        "tokens_seen": recipe.steps * recipe.batch * CONTEXT,
        "settings": asdict(recipe),
        "perplexity": perplexities(model, tokenizer),
        "seconds": seconds,
        "curve": curve,
    } | environment(model.device)
    model.half().save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    (folder / TRAINING_FILE).write_text(to_json(facts))
    (folder / "README.md").write_text(card(facts))
    keep(training_curve(facts), folder / "loss.png")
    out.print(f"held-out loss {curve[-1]['held_out_loss']:.3f}, perplexity {facts['perplexity']}, saved in {folder}")


def perplexities(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """On the texts that this machine has."""
    found = {}
    for name in ("wiki-passages", "wikitext2"):
        try:
            tokens = token_windows(load_text(name, "evaluation"), tokenizer, None, CONTEXT)
        except ModegptError as error:
            err.print(f"{name}: {error}")
            continue
        found[name] = perplexity(model, tokens).perplexity
    return found
