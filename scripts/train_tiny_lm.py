"""Train the small language model that ships in ``tinyq/tiny_lm``.

Three steps, each a sub-command::

    python scripts/train_tiny_lm.py corpus --docs python-3.11-docs-html --out build/tiny_lm_corpus
    python scripts/train_tiny_lm.py train --corpus build/tiny_lm_corpus --out tinyq/tiny_lm
    python scripts/train_tiny_lm.py card --corpus build/tiny_lm_corpus --out tinyq/tiny_lm

``train`` can also be started by ``torchrun --nproc-per-node N``: on a CPU, N processes of one thread each are faster than
one of N threads (set ``OMP_NUM_THREADS=1``).

``--docs`` is the unpacked HTML archive of Python's documentation (https://docs.python.org/3.11/download.html).
``corpus`` writes ``train.txt``, ``valid.txt``, ``heldout.txt`` and ``stats.json``; ``train`` writes the model, the
tokenizer and the log; ``card`` measures the model and writes the model card beside it.
Needs torch (2.9 or later, for ``torch.optim.Muon``), transformers, tokenizers, and for the card matplotlib.
"""

import argparse
import ast
import bz2
import hashlib
import html.parser
import json
import math
import os
import platform
import random
import re
import sysconfig
import time
import zlib
from pathlib import Path

EOT = "<|endoftext|>"
QUOTAS = {  # bytes of held-out (and, scaled, validation) text per kind of document
    "library": 70_000,
    "guide": 45_000,
    "docstrings": 35_000,
}


# ---------------------------------------------------------------------------------------------------- the text


class PageText(html.parser.HTMLParser):
    """Turns the body of one Sphinx page into plain text: blocks separated by blank lines."""

    BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "dt", "dd", "dl", "ul", "ol", "tr", "div", "pre"}
    BLOCKS |= {"section", "blockquote", "table", "aside"}
    VOID = {"br", "hr", "img", "input", "link", "meta", "col", "wbr"}
    SKIP_CLASSES = {"headerlink", "toctree-wrapper", "contents", "linenos", "math", "backrefs"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.blocks, self.line, self.prefix, self.pre = [], [], "", 0
        self.stack = []  # (tag, is it left out) from the main element down

    def reading(self):
        """Whether the parser is inside the page's main part and not inside an element to leave out."""
        return bool(self.stack) and not self.stack[-1][1]

    def breaks(self, tag):
        """Whether the tag ends a block; a paragraph in a table cell does not, so that a row stays one line."""
        return tag in self.BLOCKS and not (tag == "p" and any(name in ("td", "th") for name, _ in self.stack))

    def flush(self):
        text = "".join(self.line)
        text = text.strip("\n") if self.pre else " ".join(text.split())
        if text.strip(" \n|"):
            self.blocks.append(self.prefix + text)
            self.prefix = ""
        self.line = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if not self.stack:
            if attrs.get("role") == "main":
                self.stack.append((tag, False))
            return
        if tag in self.VOID:
            if self.reading():
                self.line.append("\n" if self.pre else " ")
            return
        classes = set((attrs.get("class") or "").split())
        skip = not self.reading() or bool(classes & self.SKIP_CLASSES) or tag in ("script", "style", "nav", "svg")
        if not skip:
            if self.breaks(tag):
                self.flush()
            if tag == "li":
                self.prefix = "- "
            elif tag in ("td", "th") and "".join(self.line).strip():
                self.line.append(" | ")
        self.pre += tag == "pre"
        self.stack.append((tag, skip))

    def handle_endtag(self, tag):
        if tag not in [name for name, _ in self.stack]:
            return
        while self.stack:
            name = self.stack[-1][0]
            if self.reading() and self.breaks(name):
                self.flush()
            self.pre -= name == "pre"
            self.stack.pop()
            if name == tag:
                break

    def handle_data(self, data):
        if self.reading():
            self.line.append(data)


def tidy(text):
    """Plain quotes and dashes, no trailing blanks, at most one empty line in a row."""
    for odd, plain in {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "\xa0": " "}.items():
        text = text.replace(odd, plain)
    text = "\n".join(line.rstrip() for line in text.expandtabs().splitlines())
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def read_pages(folder):
    """Yields (kind, key, name, text) for each page of the HTML documentation."""
    left_out = r"(genindex.*|py-modindex|search|contents|license|copyright|download|index|.*/index|whatsnew/.*|.*changelog.*)"
    for path in sorted(folder.rglob("*.html")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name.startswith("_") or re.fullmatch(left_out, name):
            continue
        page = PageText()
        page.feed(path.read_text(encoding="utf-8"))
        page.close()
        text = tidy("\n\n".join(page.blocks))
        kind = "library" if name.split("/")[0] in ("library", "c-api", "reference", "distutils") else "guide"
        key = module_key(name.split("/")[1]) if name.startswith("library/") else name
        yield kind, key, name, text


def module_key(name):
    """The name that a library page and the docstrings of its module share: ``asyncio-task`` -> ``asyncio``."""
    return re.split(r"[.-]", name.lstrip("_"))[0].lower()


def read_docstrings():
    """Yields (kind, key, name, text) for each module of the running Python's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests", "idle_test", "turtledemo", "__pycache__", "lib-dynload", "pydoc_data"}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if left_out & set(parts) or parts[0].startswith("config-"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        pieces = list(docstrings_of(tree, ""))
        if pieces:
            yield "docstrings", module_key(parts[0]), "Lib/" + "/".join(parts), tidy("\n\n".join(pieces))


def docstrings_of(node, indent):
    """The docstring of a module, class or function under its header, then those inside it, as source text."""
    text = ast.get_docstring(node)
    if isinstance(node, ast.Module):
        if text:
            yield text
        inner = ""
    else:
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            header = f"class {node.name}({bases}):" if bases else f"class {node.name}:"
        else:
            header = f"def {node.name}({ast.unparse(node.args)}):"
        inner = indent + "    "
        if text:
            body = ('"""' + text + ('\n"""' if "\n" in text else '"""')).splitlines()
            yield indent + header + "\n" + "\n".join(inner + line if line else "" for line in body)
        elif isinstance(node, ast.ClassDef):
            yield indent + header
    for child in node.body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            inside = list(docstrings_of(child, inner))
            if len(inside) > 1 or ast.get_docstring(child):
                yield from inside


def split_of(key, shares):
    """"heldout", "valid" or "train", by a hash of the key."""
    place = int(hashlib.sha256(f"tinyq {key}".encode()).hexdigest(), 16) % 10_000 / 10_000
    return "heldout" if place < shares[0] else "valid" if place < shares[0] + shares[1] else "train"


def excerpt(documents, quotas, most=9_000):
    """First parts of documents, cut between paragraphs, until each kind of document has filled its quota."""
    documents = sorted(documents, key=lambda d: hashlib.sha256(d[2].encode()).hexdigest())
    chosen, left = [], dict(quotas)
    for kind, _, name, text in documents:
        room = min(most, left[kind])
        if len(text) < 400 or room < 400:
            continue
        part = ""
        for paragraph in re.split(r"(?<=\n)\n(?=\S)", text):
            if len((part + "\n" + paragraph).encode()) > room:
                break
            part += ("\n" if part else "") + paragraph
        if len(part) >= 400:
            chosen.append((kind, name, part))
            left[kind] -= len(part.encode())
    return sorted(chosen, key=lambda d: hashlib.sha256(d[1].encode()).hexdigest())


def ngrams(text, n=13):
    """The set of n-word sequences of a text, ignoring case and punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + n]) for i in range(len(words) - n + 1)}


def make_corpus(args):
    """Reads the text, splits it by document, takes overlaps with the held-out text out, writes the three files."""
    documents, seen = [], set()
    for document in [*read_pages(args.docs), *read_docstrings()]:
        if len(document[3]) >= 200 and document[3] not in seen:
            seen.add(document[3])
            documents.append(document)
    by_split = {"train": [], "valid": [], "heldout": []}
    for document in documents:
        more = 2.4 if document[0] == "guide" else 1  # there are few guides
        by_split[split_of(document[1], (args.heldout * more, args.valid * more))].append(document)
    heldout = excerpt(by_split["heldout"], QUOTAS)
    valid = excerpt(by_split["valid"], {kind: size // 2 for kind, size in QUOTAS.items()})
    kept_out = set().union(*(ngrams(text) for _, _, text in heldout + valid))
    heldout_only = set().union(*(ngrams(text) for _, _, text in heldout))
    dropped, repeated, paragraphs, train = 0, 0, set(), []
    for _, _, name, text in by_split["train"]:
        kept = []
        for paragraph in text.split("\n\n"):
            grams = ngrams(paragraph)
            if grams & kept_out:
                dropped += 1
            elif grams and paragraph in paragraphs:
                repeated += 1
            else:
                kept.append(paragraph)
                paragraphs.add(paragraph)
        if len("\n\n".join(kept)) >= 200:
            train.append((name, "\n\n".join(kept).strip() + "\n"))
    args.out.mkdir(parents=True, exist_ok=True)
    train_text = EOT.join(text for _, text in train)
    assert not any(ngrams(p) & heldout_only for _, text in train for p in text.split("\n\n"))
    (args.out / "train.txt").write_text(train_text, encoding="utf-8")
    (args.out / "valid.txt").write_text("\n".join(text for _, _, text in valid), encoding="utf-8")
    (args.out / "heldout.txt").write_text("\n".join(text for _, _, text in heldout), encoding="utf-8")
    (args.out / "calibration.txt").write_text(calibration_text(train), encoding="utf-8")
    sizes = {kind: sum(len(t.encode()) for k, _, t in heldout if k == kind) for kind in QUOTAS}
    stats = {
        "python": platform.python_version(),
        "documents": {split: len(found) for split, found in by_split.items()},
        "bytes": {name: (args.out / f"{name}.txt").stat().st_size for name in ("train", "valid", "heldout")},
        "heldout_bytes_by_kind": sizes,
        "paragraphs_dropped_for_overlap": dropped,
        "repeated_paragraphs_dropped": repeated,
        "heldout_documents": [name for _, name, _ in heldout],
    }
    (args.out / "stats.json").write_text(json.dumps(stats, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(stats, indent=1))


def calibration_text(train, size=100_000, most=2_500):
    """Beginnings of training documents in a random order, about ``size`` bytes of them."""
    pieces, total = [], 0
    for _, text in random.Random(0).sample(train, len(train)):
        piece = ""
        for paragraph in text.split("\n\n"):
            if piece and len(piece) + len(paragraph) > most:
                break
            piece += paragraph.rstrip("\n") + "\n\n"
        total += len(piece.encode())
        if total > size:
            break
        pieces.append(piece.rstrip("\n") + "\n")
    return "\n".join(pieces)


# ------------------------------------------------------------------------------------------------- the training


def train_tokenizer(text, vocab_size):
    """A byte-level BPE tokenizer trained on the text, as a transformers tokenizer."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(text.split(EOT), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=EOT, eos_token=EOT, pad_token=EOT,
    )


def new_model(vocab_size, ffn):
    """A freshly initialised Llama of about 2.6 million parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size, hidden_size=256, intermediate_size=ffn, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
            bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )


def encode_documents(tokenizer, text):
    """The token ids of each document of a training text, each with the end-of-text token in front."""
    return [[0] + tokenizer(document)["input_ids"] for document in text.split(EOT)]


def bits_per_byte(model, tokenizer, text, context=512, stride=256, batch=16):
    """(bits per byte, perplexity per token) over sliding windows in which every token is scored once."""
    import torch
    import torch.nn.functional as F

    ids = [0] + tokenizer(text)["input_ids"]
    windows, scored = [], 1
    while scored < len(ids):
        end = min(len(ids), context + 1 if scored == 1 else scored + stride)
        start = max(0, end - context - 1)
        windows.append((ids[start:end], scored - start))  # the first token to score, as a place in the window
        scored = end
    device, total = next(model.parameters()).device, 0.0
    windows.sort(key=lambda w: len(w[0]))
    with torch.inference_mode():
        for at in range(0, len(windows), batch):
            group = windows[at : at + batch]
            width = max(len(w) for w, _ in group)
            tokens = torch.tensor([w + [0] * (width - len(w)) for w, _ in group], device=device)
            logits = model(tokens[:, :-1], use_cache=False).logits.float()
            losses = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").double()
            for row, (window, first) in zip(losses, group):
                total += row[first - 1 : len(window) - 1].sum().item()
    return total / math.log(2) / len(text.encode()), math.exp(total / (len(ids) - 1))


def windows(documents, context, rows, seed):
    """Endless (inputs, targets): each epoch joins the documents in a new order and cuts them in shuffled windows."""
    import torch

    chance = random.Random(seed)
    while True:
        stream = torch.tensor([token for d in chance.sample(documents, len(documents)) for token in d])
        starts = range(chance.randrange(context), len(stream) - context - 1, context)
        starts = chance.sample(starts, len(starts))
        for at in range(0, len(starts) - rows + 1, rows):
            batch = torch.stack([stream[s : s + context + 1] for s in starts[at : at + rows]])
            yield batch[:, :-1], batch[:, 1:]


def average(tensors, world):
    """Replaces the tensors by their mean over the processes."""
    import torch

    flat = torch.cat([tensor.flatten() for tensor in tensors])
    torch.distributed.all_reduce(flat)
    flat /= world
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(mean.view_as(tensor))


def train_model(args):
    """Trains the tokenizer and the model, and writes both with ``training_log.json`` to the output folder."""
    import torch
    import torch.nn.functional as F

    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if world > 1:  # started by torchrun: each process computes the gradient of its part of a batch
        torch.distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)
    device = args.device if args.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    text = {name: (args.corpus / f"{name}.txt").read_text(encoding="utf-8") for name in ("train", "valid", "heldout")}
    tokenizer = train_tokenizer(text["train"], args.vocab)
    documents = encode_documents(tokenizer, text["train"])
    model = new_model(args.vocab, args.ffn).to(device)
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(hidden, lr=args.muon_lr, weight_decay=args.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [args.muon_lr, args.adam_lr]

    def loss_of(inputs, targets):
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(inputs, use_cache=False).logits
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    step_loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    # Most of the run reads windows of 256 tokens, the last part windows of 512: attention costs less that way.
    short = windows(documents, 256, args.batch_tokens // 256 // world, args.seed + 10 * rank)
    long = windows(documents, 512, args.batch_tokens // 512 // world, args.seed + 10 * rank + 1)
    log, losses, start, done, step = [], [], time.time(), 0.0, 0
    while done < 1.0:
        inputs, targets = next(short if done < 1 - args.long_share else long)
        rate = min(1.0, (step + 1) / args.warmup, (1.0 - done) / args.decay_share)
        for optimizer, peak in zip(optimizers, peaks):
            optimizer.param_groups[0]["lr"] = peak * rate
        loss = step_loss(inputs.to(device), targets.to(device))
        loss.backward()
        numbers = torch.tensor([loss.item(), (time.time() - start) / 60], device=device)
        if world > 1:
            average([*(p.grad for p in model.parameters()), numbers], world)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(numbers[0].item())
        step += 1
        done = max(step / args.steps, numbers[1].item() / args.minutes)
        if rank == 0 and (step % args.eval_every == 0 or done >= 1.0):
            row = {"step": step, "minutes": round((time.time() - start) / 60, 2)}
            row["train_loss"] = round(sum(losses) / len(losses), 4)
            with torch.autocast(device, dtype=torch.bfloat16):
                for name in ("valid", "heldout"):
                    row[f"{name}_bits_per_byte"] = round(bits_per_byte(model, tokenizer, text[name], stride=512)[0], 4)
            log.append(row)
            losses = []
            print(json.dumps(row), flush=True)
    if rank:
        return
    seen = step * args.batch_tokens
    settings = {k: v for k, v in vars(args).items() if isinstance(v, (int, float, bool)) or k == "device"}
    settings |= {"device": device, "steps": step, "tokens": seen, "minutes": round((time.time() - start) / 60, 1)}
    settings["epochs"] = round(seen / sum(map(len, documents)), 2)
    settings["threads"] = torch.get_num_threads() * world
    args.out.mkdir(parents=True, exist_ok=True)
    model.to("cpu", torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    vocabulary = json.loads((args.out / "tokenizer.json").read_text(encoding="utf-8"))  # to a third of its size:
    (args.out / "tokenizer.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (args.out / "model.safetensors").chmod(0o644)
    rows = ",\n".join("  " + json.dumps(row) for row in log)
    text = '{\n "settings": ' + json.dumps(settings) + ',\n "log": [\n' + rows + "\n ]\n}\n"
    (args.out / "training_log.json").write_text(text, encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- the card


PROMPTS = ["The list type is", "Return a new", "Return True if", "This module provides", "random.shuffle(x)\n\n"]


def sample(model, tokenizer, prompt, temperature, length=70):
    """A continuation of the prompt, greedy if the temperature is 0; the random numbers start from the same seed."""
    import torch

    torch.manual_seed(0)
    ids = torch.tensor([[0] + tokenizer(prompt)["input_ids"]])
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    ids = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, **how)
    return tokenizer.decode(ids[0, 1:], skip_special_tokens=True)


def draw_curve(log, path):
    """The training loss and the bits per byte of the validation and held-out text, over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, left = pyplot.subplots(figsize=(6.4, 3.6), layout="constrained")
    right = left.twinx()
    steps = [row["step"] for row in log]
    (a,) = left.plot(steps, [row["train_loss"] for row in log], color="0.6", label="training loss")
    (b,) = right.plot(steps, [row["valid_bits_per_byte"] for row in log], "C0.-", label="validation text")
    (c,) = right.plot(steps, [row["heldout_bits_per_byte"] for row in log], "C1.-", label="held-out text")
    left.set(xlabel="step", ylabel="training loss (nats per token)")
    right.set(ylabel="bits per byte")
    left.legend(handles=[a, b, c])
    figure.savefig(path, dpi=110)


def make_card(args):
    """Copies the texts beside the model, measures it on them and writes README.md, the curve and the licence."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("heldout.txt", "calibration.txt"):
        (args.out / name).write_bytes((args.corpus / name).read_bytes())
    licence = Path(sysconfig.get_paths()["stdlib"], "LICENSE.txt").read_text(encoding="utf-8")
    (args.out / "LICENSE-PYTHON-DOCS.txt").write_text(LICENCE_NOTE + licence, encoding="utf-8")
    stats = json.loads((args.corpus / "stats.json").read_text())
    history = json.loads((args.out / "training_log.json").read_text())
    run, log = history["settings"], history["log"]
    draw_curve(log, args.out / "loss_curve.png")

    tokenizer = AutoTokenizer.from_pretrained(args.out)
    texts = {name: (args.corpus / f"{name}.txt").read_text(encoding="utf-8") for name in ("heldout", "valid")}
    measured = []
    for arithmetic in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(args.out, dtype=arithmetic)
        for name, text in texts.items():
            bits, perplexity = bits_per_byte(model, tokenizer, text)
            kind = str(arithmetic).split(".")[1]
            measured.append(f"| {name} | {len(text.encode()):,} | {kind} | {bits:.4f} | {perplexity:.2f} |")
            print(measured[-1])
    raw = texts["heldout"].encode()
    model = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32)
    samples = []
    for prompt in PROMPTS:
        for temperature in (0, 0.7):
            how = f"temperature {temperature}" if temperature else "greedy"
            text = sample(model, tokenizer, prompt, temperature)
            samples.append(f"Prompt `{prompt.strip()}`, {how}:\n\n```text\n{text.strip()}\n```\n")
    config = model.config
    card = CARD.format(
        parameters=sum(p.numel() for p in model.parameters()), layers=config.num_hidden_layers,
        hidden=config.hidden_size, ffn=config.intermediate_size, vocab=config.vocab_size,
        bytes_per_token=len(raw) / len(tokenizer(texts["heldout"])["input_ids"]),
        train_mb=stats["bytes"]["train"] / 1e6, train_documents=stats["documents"]["train"], python=stats["python"],
        dropped=stats["paragraphs_dropped_for_overlap"], repeated=stats["repeated_paragraphs_dropped"],
        heldout_kb=len(raw) / 1e3, valid_kb=len(texts["valid"].encode()) / 1e3, kinds=stats["heldout_bytes_by_kind"],
        heldout_documents=", ".join(f"`{name}`" for name in stats["heldout_documents"]), run=run,
        where="a GPU" if run["device"] == "cuda" else f"{run['threads']} CPU cores", measured="\n".join(measured),
        first=measured[0].split("|")[4].strip(), zlib=len(zlib.compress(raw, 9)) * 8 / len(raw),
        bz2=len(bz2.compress(raw, 9)) * 8 / len(raw), samples="\n".join(samples),
    )
    (args.out / "README.md").write_text(card, encoding="utf-8")


LICENCE_NOTE = """\
The files heldout.txt and calibration.txt beside this one hold excerpts from the documentation of Python 3.11 and from
the docstrings of its standard library, and the model beside them was trained on such text. The text was taken out of
the HTML pages and the source files; typographic quotes and dashes were replaced by plain ones and parts were left out.

Copyright (c) 2001-2023 Python Software Foundation. All rights reserved.
Copyright (c) 2000 BeOpen.com. All rights reserved.
Copyright (c) 1995-2000 Corporation for National Research Initiatives. All rights reserved.
Copyright (c) 1991-1995 Stichting Mathematisch Centrum. All rights reserved.

The licence of Python and its documentation follows.

------------------------------------------------------------------------------------------------------------------------

"""

CARD = """\
---
language: en
license: other
license_name: psf-2.0
license_link: LICENSE-PYTHON-DOCS.txt
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, python-documentation]
---

# A tiny language model of Python's documentation

A Llama of {parameters:,} parameters that writes text in the manner of Python's documentation. It is here so that
quantization can be tried, tested and measured on real trained weights with no download. It reaches **{first} bits per
byte** on held-out text. It knows no facts to rely on and is of no use as an assistant.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("tinyq/tiny_lm")
tokenizer = AutoTokenizer.from_pretrained("tinyq/tiny_lm")
```

| | |
|---|---|
| architecture | `LlamaForCausalLM`, {layers} layers, hidden {hidden}, feed-forward {ffn}, 4 heads of 64, 2 key-value heads, tied embeddings |
| weights | bfloat16 |
| context | 512 tokens |
| tokenizer | byte-level BPE of {vocab} tokens, {bytes_per_token:.2f} bytes per token on the held-out text; `<|endoftext|>` begins a text and ends it, and pads |

## Text

{train_mb:.1f} MB in {train_documents} documents: the HTML documentation of Python 3.11 (library, language and C API
reference, tutorial, guides, FAQ; without indices, licence pages and "What's new") as plain text, and the docstrings of
the standard library of Python {python} under the headers of their classes and functions. Typographic quotes and dashes
became plain ones. Both are under the Python Software Foundation License Version 2, code examples in the documentation
also under the Zero-Clause BSD license; `LICENSE-PYTHON-DOCS.txt` has the text. A few modules carry authors' notices of
their own.

Whole documents were put aside by a hash of their name, a library page together with the docstrings of its module.
`heldout.txt` ({heldout_kb:.0f} kB) is made of the first parts of such documents: {kinds[library]:,} bytes of reference
pages, {kinds[guide]:,} of tutorial, guides and FAQ, {kinds[docstrings]:,} of docstrings. Another {valid_kb:.0f} kB,
the validation text, served for every choice; the held-out text for none. {dropped} paragraphs of the training text
that share thirteen words in a row with the held-out or the validation text were taken out of it, and {repeated} that
repeat an earlier one (counted across paragraph borders, 12 of the 20,660 such sequences of the held-out text are still in
the training text, formulas such as "Changed in version 3.5: Writable bytes-like object is now accepted."). The rest of a document that is put aside is not trained on either.

Held out: {heldout_documents}.

`calibration.txt` holds beginnings of training documents. Both files are frozen: measurements depend on them.

## Training

`scripts/train_tiny_lm.py` does all of it: {run[steps]:,} steps of {run[batch_tokens]:,} tokens ({run[epochs]} epochs),
Muon (rate {run[muon_lr]}, weight decay {run[weight_decay]}) for the matrices, AdamW (rate {run[adam_lr]}) for
embeddings and norms, a short warm-up, then a constant rate that falls to 0 over the last {run[decay_share]:.0%} of the
run; windows of 256 tokens, for the last {run[long_share]:.0%} of 512; bfloat16 autocast over float32 weights. It took
{run[minutes]} minutes on {where} that had other work to do as well. The time set the number of steps, and the model has
not seen all it could learn: a longer run would reach fewer bits. Two tokenizers were compared in runs of 4.5 minutes on one
core each: 1024 tokens with a feed-forward width of 512 reached 1.88 bits per byte on the validation text, 2048 tokens
with 384 reached 1.79.

```bash
python scripts/train_tiny_lm.py corpus --docs python-3.11-docs-html --out build/tiny_lm_corpus
OMP_NUM_THREADS=1 torchrun --nproc-per-node {run[threads]} scripts/train_tiny_lm.py train --corpus build/tiny_lm_corpus \\
    --out tinyq/tiny_lm --steps {run[steps]} --compile
python scripts/train_tiny_lm.py card --corpus build/tiny_lm_corpus --out tinyq/tiny_lm
```

![loss curve](loss_curve.png)

The curve is from `training_log.json` (windows of 512 tokens side by side, so a little higher than below). It steps down
where the training windows become longer: until then the second half of each measured window is beyond them.

## Measured

Windows of 512 tokens, 256 apart, every token scored once, `<|endoftext|>` in front; total loss / ln 2 / UTF-8 bytes.
The stored bfloat16 weights on a CPU:

| text | bytes | arithmetic | bits per byte | perplexity per token |
|---|---|---|---|---|
{measured}

For comparison, on the held-out text: zlib (level 9) {zlib:.2f} bits per byte, bz2 {bz2:.2f}.

## What it writes

Unedited, the first text that came (random numbers from seed 0). The manner is that of the documentation, the meaning is
not, and greedy text soon repeats itself:

{samples}"""


def main():
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    corpus = commands.add_parser("corpus", help="make the training, validation and held-out text")
    corpus.add_argument("--docs", type=Path, required=True, help="the unpacked HTML documentation of Python")
    corpus.add_argument("--out", type=Path, required=True)
    corpus.add_argument("--heldout", type=float, default=0.05, help="share of module and page names held out")
    corpus.add_argument("--valid", type=float, default=0.03, help="share of names kept for validation")
    corpus.set_defaults(run=make_corpus)
    train = commands.add_parser("train", help="train the tokenizer and the model")
    train.add_argument("--corpus", type=Path, required=True)
    train.add_argument("--out", type=Path, required=True)
    train.add_argument("--steps", type=int, default=2100)
    train.add_argument("--minutes", type=float, default=math.inf, help="end the schedule by then, if steps take longer")
    train.add_argument("--device", default="auto", help="cpu, cuda or auto")
    train.add_argument("--compile", action="store_true", help="use torch.compile")
    train.add_argument("--vocab", type=int, default=2048)
    train.add_argument("--ffn", type=int, default=384, help="width of the feed-forward layers")
    train.add_argument("--batch-tokens", type=int, default=4096)
    train.add_argument("--muon-lr", type=float, default=0.02)
    train.add_argument("--adam-lr", type=float, default=0.003)
    train.add_argument("--weight-decay", type=float, default=0.05)
    train.add_argument("--warmup", type=int, default=100)
    train.add_argument("--decay-share", type=float, default=0.7, help="part of the run in which the rate falls to 0")
    train.add_argument("--long-share", type=float, default=0.17, help="part of the run, at its end, with context 512")
    train.add_argument("--eval-every", type=int, default=250)
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=train_model)
    card = commands.add_parser("card", help="measure the model and write the model card")
    card.add_argument("--corpus", type=Path, required=True)
    card.add_argument("--out", type=Path, required=True)
    card.set_defaults(run=make_card)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
