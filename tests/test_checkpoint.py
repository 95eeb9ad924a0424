"""A saved folder: what comes back, in a new process too, in how much memory and time, and what is left alone.

What can go wrong is in test_faults.py. Run the 1.5 B measurements with `-m slow`."""
import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tinyq
from tinyq import (METHODS, QuantizedLayer, QuantizedLinear, check_output, evaluate_lm, get_generation, get_memory_footprint, heldout_text, layer_schemes, load, load_quantized,
                   model_card, quantization_config, read_quantization_config, save_quantized, tiny_lm)
from tinyq.quantizer import Quantizer


def test_same_tokens_in_a_new_process(quantized, checkpoint):
    code = ("import sys, tinyq; m, t = tinyq.load(sys.argv[1]); "
            "sys.stdout.buffer.write(tinyq.get_generation(m, t, 'Return a new', 64).encode())")
    out = subprocess.run([sys.executable, "-c", code, str(checkpoint)], capture_output=True, timeout=120)
    assert out.returncode == 0, out.stderr.decode()
    assert out.stdout.decode() == get_generation(*quantized, "Return a new", 64)


def test_same_bits_and_same_logits(quantized, checkpoint):
    model, tokenizer = load(checkpoint)
    old, new = quantized[0].state_dict(), model.state_dict()
    assert old.keys() == new.keys() and all(torch.equal(old[k], new[k]) and old[k].dtype == new[k].dtype for k in old)
    assert evaluate_lm(model, tokenizer, heldout_text()[:4000], quantized[0]).kl == 0
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))


def test_saving_a_loaded_checkpoint_again_changes_nothing(checkpoint, tmp_path):
    again = save_quantized(*(lambda m, t: (m, tmp_path / "again", t))(*load(checkpoint)))
    for name in ("config.json", "tokenizer.json"):
        assert (again / name).read_bytes() == (checkpoint / name).read_bytes(), name
    assert (again / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


def test_biases_and_an_untied_head(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                         num_key_value_heads=1, tie_word_embeddings=False)).eval()
    Quantizer(model).quantize("w8a32", ["lm_head"])
    back, tokenizer = load(save_quantized(model, tmp_path / "q"))
    ids = torch.arange(10)[None]
    assert torch.equal(back(ids).logits, model(ids).logits) and tokenizer is None


def test_output_that_is_not_ours_is_left_alone(quantized, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    (tmp_path / "float").mkdir()
    tiny_lm()[0].save_pretrained(tmp_path / "float")
    (tmp_path / "file").write_text("mine")
    for name in ("notes", "float", "file"):
        with pytest.raises(FileExistsError, match=name): save_quantized(quantized[0], tmp_path / name)
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert check_output(tmp_path / "empty") == tmp_path / "empty"


def test_a_float_model_is_no_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="quantize the model"): save_quantized(tiny_lm()[0], tmp_path / "q")
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="load_model"): load(tinyq.TINY_LM)


def test_what_the_config_says(quantized, checkpoint):
    qc = read_quantization_config(checkpoint)
    assert {k: qc[k] for k in ("quant_method", "scheme", "format_version", "version")} == {"quant_method": "tinyq", "scheme": "w8a16", "format_version": 1, "version": tinyq.__version__}
    assert qc["modules"] == [n for n, m in quantized[0].named_modules() if isinstance(m, QuantizedLinear)] and qc["modules_to_not_convert"] == ["lm_head"]
    assert qc["checksums"].keys() == {"model.safetensors", "schemes"} and qc["tied"] == {"lm_head.weight": "model.embed_tokens.weight"}
    assert layer_schemes(qc) == dict.fromkeys(qc["modules"], "w8a16")
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["dtype"] == "bfloat16" and config["architectures"] == ["LlamaForCausalLM"] and (checkpoint / "generation_config.json").is_file()


def test_every_tensor_is_aligned_and_its_own(checkpoint):
    model, _ = load(checkpoint)
    tensors = {t.data_ptr(): t for t in (*model.parameters(), *model.buffers())}
    assert all(p % 64 == 0 for p in tensors) and all(t.untyped_storage().nbytes() == t.nbytes for t in tensors.values())
    assert not model.training and all(p.requires_grad == p.is_floating_point() for p in model.parameters())  # as before saving


def test_shards_and_an_index(quantized, tmp_path):
    folder = save_quantized(quantized[0], tmp_path / "q", max_shard_size="700KB")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = sorted(f.name for f in folder.glob("*.safetensors"))
    assert len(files) >= 4 and set(index.values()) == set(files) == read_quantization_config(folder)["checksums"].keys() - {"schemes"}
    model, tokenizer = load(folder)
    old = quantized[0].state_dict()
    assert all(torch.equal(old[k], t) for k, t in model.state_dict().items()) and tokenizer is None
    save_quantized(quantized[0], folder)  # fewer files than before: none is left over
    assert [f.name for f in folder.glob("*.safetensors")] == ["model.safetensors"] and not (folder / "model.safetensors.index.json").exists()


def test_two_schemes_in_one_model(tmp_path):
    model = tiny_lm()[0]
    Quantizer(model).quantize("w8a16", include="mlp")
    Quantizer(model).quantize("w8a32", "lm_head")
    qc = quantization_config(model)
    assert set(layer_schemes(qc).values()) == {"w8a16", "w8a32"} and 0 < len(qc["schemes"]) < len(qc["modules"])
    back, _ = load(save_quantized(model, tmp_path / "q"))
    for (path, a), (_, b) in zip(model.named_modules(), back.named_modules()): assert type(a) is type(b), path
    ids = torch.arange(3, 30)[None]
    with torch.no_grad(): assert torch.equal(back(ids).logits, model(ids).logits)


MIXED = {"*.down_proj": "w8a16", "*.0.*": "w3a16-g32-asym", "*": "w4a16-g64"}
LOW = ["w4a16-g64", "w3a16-g32-asym", "w2a16-g64", "w5a32", "w8a16-g64", "w1a32-g100-asym", MIXED]


def untied():
    model = tiny_lm()[0]
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach() * 1.25)
    model.config.tie_word_embeddings, model.all_tied_weights_keys = False, {}
    return model


@pytest.mark.parametrize("embeddings", [None, "tied", "untied"])
@pytest.mark.parametrize("scheme", LOW, ids=str)
def test_low_bits_come_back_bit_for_bit(tmp_path, scheme, embeddings):
    "Quantize, save, load: the same logits, and codes, scales and zero points byte for byte; a tied head stays tied, whoever ties again."
    model, ids = untied() if embeddings == "untied" else tiny_lm()[0], torch.arange(3, 40)[None]
    (quantizer := Quantizer(model)).quantize(scheme, embeddings=embeddings is not None)
    model.save_pretrained(tmp_path / "theirs")
    with torch.no_grad(): want = model(ids).logits
    for folder in (save_quantized(model, tmp_path / "ours"), tmp_path / "theirs"):
        back, _ = load(folder)
        with torch.no_grad(): assert torch.equal(back(ids).logits, want)
        old, new = model.state_dict(), back.state_dict()
        assert list(old) == list(new)
        for k, t in old.items(): assert t.dtype == new[k].dtype and t.shape == new[k].shape and t.contiguous().view(-1).view(torch.uint8).equal(new[k].view(-1).view(torch.uint8)), k
        assert get_memory_footprint(back) == get_memory_footprint(model)
        for _ in range(2):
            head, table = back.lm_head, back.model.embed_tokens
            assert all((getattr(head, n) is getattr(table, n)) == (embeddings == "tied") for n in (head.form() if isinstance(head, QuantizedLayer) and isinstance(table, QuantizedLayer) else ()))
            back.tie_weights()
    saved = load_file(tmp_path / "ours" / "model.safetensors")
    assert ("lm_head.weight" in saved) == (embeddings == "untied") and sum(t.nbytes for t in saved.values()) == sum(t.nbytes for t in {id(t): t for t in model.state_dict(keep_vars=True).values()}.values())
    assert read_quantization_config(tmp_path / "ours")["format_version"] == 1
    again = Quantizer(back).dequantize().state_dict()  # of what came back: the floats that the model itself would give
    assert all(torch.equal(t, again[k]) for k, t in quantizer.dequantize().state_dict().items())


def test_an_older_tinyq_says_so_instead_of_reading_packed_codes(tmp_path, monkeypatch):
    "The format is still 1: readers of before there were packed layers know neither such schemes nor embeddings, and raise."
    from tinyq import quantizer
    monkeypatch.setattr(quantizer, "MAKERS", [])
    with pytest.raises(ValueError, match="unknown method 'w4a16-g64'; choose from w8a32, w8a16"): layer_schemes({"format_version": 1, "scheme": "w4a16-g64", "modules": ["a"]})


def test_the_scheme_of_a_checkpoint_cannot_be_edited_unseen(tmp_path):
    "Groups of 60 and of 64 need as many scales in a row of 256: no shape would tell."
    folder = save_quantized(Quantizer(tiny_lm()[0]).quantize("w4a16-g64", include="q_proj"), tmp_path / "q")
    text = (folder / "config.json").read_text()
    for other in ("w4a16-g70", "w4a32-g64"):
        (folder / "config.json").write_text(text.replace("w4a16-g64", other))
        with pytest.raises(ValueError, match="the schemes in .* are not those that were saved"): load(folder)
        with pytest.raises(ValueError, match="the schemes in .* are not those that were saved"): tinyq_from_pretrained(folder)
        load(folder, verify=False)


def tinyq_from_pretrained(folder):
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_card_of_a_mixed_model(tmp_path):
    model = Quantizer(tiny_lm()[0]).quantize(MIXED | {"*.0.*": None}, embeddings=True)
    text = str(model_card(model, "user/name"))
    assert "- 1 embedding and 19 linear layers: w4a16-g64, 4.25 bits a weight\n" in text and "- 4 linear layers: w8a16, 8.083 bits a weight\n" in text
    layers = {m.weight.data_ptr(): m for m in model.modules() if isinstance(m, QuantizedLayer)}.values()
    weights, now = sum(m.in_features * m.out_features for m in layers), sum(m.weight.nbytes + m.scales.nbytes for m in layers)
    assert f"| bytes of all tensors | {get_memory_footprint(tiny_lm()[0]):,} | {get_memory_footprint(model):,} |" in text
    assert f"| bytes of the quantized layers | {2 * weights:,} | {now:,} |" in text and f"| bits a weight, scales and all | 16 | {8 * now / weights:.4g} |" in text
    assert "all else, with 6 linear layer(s) in it, is as it was." in text
    from huggingface_hub import ModelCard
    assert {"w4a16-g64", "w8a16"} <= set(ModelCard(text).data.to_dict()["tags"])


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_buffers_that_a_cast_has_rounded_come_back(tmp_path, cast):
    from transformers import LlamaForCausalLM
    model = LlamaForCausalLM(tiny_lm("float32")[0].config)
    model = getattr(model, cast)().eval()
    Quantizer(model).quantize("w8a32")
    back, _ = load(save_quantized(model, tmp_path / "q"))
    for name, b in model.named_buffers(): assert torch.equal(b, back.get_buffer(name)) and b.dtype == back.get_buffer(name).dtype, name
    ids = torch.arange(3, 40)[None]
    with torch.no_grad(): assert torch.equal(back(ids).logits, model(ids).logits)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(12, 12)
        self.register_buffer("table", torch.arange(12.) / 7, persistent=False)
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x): return self.a(x + self.table - self.mean)


class Net(nn.Module):
    "Everything that a plain module may have: a layer with two names, tied weights, buffers of both kinds, a convolution, several dtypes."
    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(30, 12), Inner(), nn.Linear(12, 30, bias=False)
        self.head.weight = self.embed.weight
        self.blocks = nn.ModuleList([self.inner, nn.Linear(12, 12).to(torch.bfloat16), self.inner])
        self.conv, self.norm = nn.Conv1d(5, 5, 3, padding=1), nn.BatchNorm1d(5)
        self.scalar, self.none = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.empty(0, 3))

    def forward(self, ids):
        x = self.norm(self.conv(self.embed(ids))) * self.scalar
        for b in self.blocks: x = b(x.to(torch.bfloat16)).float() if isinstance(getattr(b, "bias", None), torch.Tensor) and b.bias.dtype == torch.bfloat16 else b(x)
        return self.head(x)


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("method", [*METHODS, "w4a16-g8", "w3a32-g5-asym", {"head": "w2a16", "embed": "w2a16", "blocks.1": None, "*": "w6a16-g8"}], ids=str)
def test_a_plain_module(tmp_path, method, embeddings, device):
    torch.manual_seed(0)
    model, ids = Net(), torch.arange(10).reshape(2, 5)
    model(ids)  # running statistics
    with torch.no_grad(): model.inner.mean += .25; model.inner.table *= 1.01  # not what the constructor makes
    Quantizer(model).quantize(method, embeddings=embeddings)
    assert isinstance(model.head, QuantizedLayer) == isinstance(model.embed, QuantizedLayer) == embeddings
    model.eval()
    folder = save_quantized(model, tmp_path / "q")
    with torch.device(device): skeleton = Net()
    back = load_quantized(skeleton, folder)
    assert back is skeleton and back.blocks[0] is back.blocks[2] is back.inner and back.head.weight is back.embed.weight
    assert not embeddings or all(getattr(back.head, n) is getattr(back.embed, n) for n in back.head.form())
    with torch.no_grad(): assert torch.equal(back(ids), model(ids))
    assert get_memory_footprint(back) == get_memory_footprint(model)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Net"] and "load_quantized" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="load_quantized"): load(folder)


def test_a_plain_module_that_is_one_layer(tmp_path):
    torch.manual_seed(0)
    layer = Quantizer(nn.Linear(8, 4)).quantize("w8a32")
    folder = save_quantized(layer, tmp_path / "q")
    assert read_quantization_config(folder)["modules"] == [""]


def test_a_skeleton_of_another_class_is_refused(tmp_path):
    class Other(Net):
        def forward(self, ids): return -super().forward(ids)
    class Same(nn.Sequential): pass
    folder = save_quantized(Quantizer(Net()).quantize("w8a32"), tmp_path / "q")
    with pytest.raises(ValueError, match="holds a Net, and the skeleton is a Same"): load_quantized(Same(), folder)
    load_quantized(Other(), folder)  # a subclass is one


def test_pieces_of_one_tensor_and_what_cannot_be_saved(tmp_path):
    class Pieces(nn.Module):
        def __init__(self):
            super().__init__()
            big = torch.arange(24.)
            self.lin, self.x, self.y = nn.Linear(4, 4), nn.Parameter(big[:12]), nn.Parameter(big[12:])
            self.register_buffer("z", torch.arange(6.).view(2, 3).t())
    model = Quantizer(Pieces()).quantize("w8a32")
    back = load_quantized(Pieces(), save_quantized(model, tmp_path / "q"))
    assert torch.equal(back.y, model.y) and torch.equal(back.z, model.z)
    model.x = nn.Parameter(torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match="x is on the meta device"): save_quantized(model, tmp_path / "r")
    assert not (tmp_path / "r").exists()

    class Extra(nn.Linear):
        def get_extra_state(self): return {"a": 1}
        def set_extra_state(self, state): pass
    with pytest.raises(TypeError, match="_extra_state"): save_quantized(Quantizer(nn.Sequential(nn.Linear(4, 4), Extra(4, 4))).quantize("w8a32"), tmp_path / "r")


def test_a_skeleton_with_buffers_on_meta_that_the_files_lack(checkpoint):
    "load_quantized of a transformers model on meta: its frequencies are computed from the config and in no file, so it raises."
    from transformers import AutoConfig, LlamaForCausalLM
    config = AutoConfig.from_pretrained(checkpoint)
    del config.quantization_config
    with torch.device("meta"): skeleton = LlamaForCausalLM(config)
    with pytest.raises(ValueError, match="inv_freq.*init_empty_weights"): load_quantized(skeleton, checkpoint)


def test_the_card(quantized, tmp_path):
    text = str(model_card(quantized[0], "user/name", "org/base", {"bits per byte": (1.25, 1.2512345), "tokens a second": 200.0}))
    assert "base_model: org/base" in text and "base_model_relation: quantized" in text and 'tinyq.load("user/name")' in text
    assert "| bits per byte | 1.25 | 1.251 |" in text and "| tokens a second |  | 200 |" in text and "Without `import tinyq`" in text
    from huggingface_hub import ModelCard
    data = ModelCard(text).data.to_dict()
    assert data["library_name"] == "tinyq" and "w8a16" in data["tags"]
    folder = save_quantized(quantized[0], tmp_path / "q", extra={"README.md": b"mine"})
    assert (folder / "README.md").read_text() == "mine"
    model = copy.copy(quantized[0]); model.config = copy.deepcopy(model.config); model.config._name_or_path = str(tmp_path)
    assert str(tmp_path) not in str(model_card(model, "q"))  # no path of this machine


def test_a_clone_of_a_repository_is_left_alone(quantized, tmp_path):
    folder = save_quantized(quantized[0], tmp_path / "q")
    (folder / ".git").mkdir()
    with pytest.raises(FileExistsError): save_quantized(quantized[0], folder)


def test_a_leftover_of_a_running_process_is_not_swept(quantized, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    mine, dead = tmp_path / ".q-01234567", tmp_path / ".q-89abcdef"
    for f in (mine, dead): f.mkdir(); (f / "half").touch()
    (tmp_path / ".q-notes").mkdir()
    fd = os.open(mine, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    save_quantized(quantized[0], tmp_path / "q")
    assert sorted(f.name for f in tmp_path.iterdir()) == [".q-01234567", ".q-notes", "q"]
    os.close(fd)


def test_offline_and_not_cached(tmp_path):
    with pytest.raises(ConnectionError, match="user/name is not .* in the cache"): load("user/name", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(FileNotFoundError, match="no folder 'name'"): load("name")
    with pytest.raises(ValueError, match="revision 'v1' is for Hub ids"): load(tmp_path if (tmp_path / "config.json").write_text("{}") else "", revision="v1")


# ---- speed and memory -----------------------------------------------------------------------------------------------------

MEASURE = """
import json, os, shutil, sys, time
from pathlib import Path
import torch, transformers, tinyq
from transformers import AutoModelForCausalLM, AutoConfig, Qwen2ForCausalLM
what, folder = sys.argv[1], Path(sys.argv[2])
def now(key): return int(next(l for l in open("/proc/self/status") if l.startswith(key)).split()[1]) * 1024
for f in folder.glob("*/*.safetensors"): # into the page cache, for all alike
    with open(f, "rb") as g:
        while g.read(1 << 24): pass
open("/proc/self/clear_refs", "w").write("5")
before, start = now("VmRSS"), time.perf_counter()
if what == "float":
    model = AutoModelForCausalLM.from_pretrained(folder / "float", dtype=torch.float32) # what peaks at 4.5 times the checkpoint
    tinyq.Quantizer(model).quantize("w8a16")
else: model, _ = tinyq.load(folder / "int8")
out = {"seconds": time.perf_counter() - start, "peak": now("VmHWM") - before}
if what == "save":
    from safetensors.torch import save_file
    tensors = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
    plain, synced, ours = [], [], []
    for _ in range(5):
        start = time.perf_counter()
        save_file(tensors, folder / "plain.safetensors"); plain.append(time.perf_counter() - start)
        fd = os.open(folder / "plain.safetensors", os.O_RDONLY); os.fsync(fd); os.close(fd); synced.append(time.perf_counter() - start)
        os.unlink(folder / "plain.safetensors")
        start = time.perf_counter()
        tinyq.save_quantized(model, folder / "again"); ours.append(time.perf_counter() - start)
        shutil.rmtree(folder / "again")
    out |= {"plain": plain, "synced": synced, "ours": ours}
print(json.dumps(out))
"""


def measure(what, folder):
    out = subprocess.run([sys.executable, "-c", MEASURE, what, str(folder)], capture_output=True, text=True, timeout=900)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def both(folder, **shape):
    "A float model and its checkpoint; the weights are a pattern, since time and memory don't depend on them."
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from tinyq.hub import meta_skeleton
    config = Qwen2Config(**shape, tie_word_embeddings=True, architectures=["Qwen2ForCausalLM"], dtype="bfloat16")
    model, pattern = meta_skeleton(config), torch.randn(1 << 20).bfloat16()
    for name, p in list(model.named_parameters()):
        n = p.numel()
        setattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], nn.Parameter(pattern.repeat(n // len(pattern) + 1)[:n].clone().view(p.shape)))
    model.tie_weights()
    model.save_pretrained(folder / "float")
    save_quantized(Quantizer(model).quantize("w8a16"), folder / "int8")
    return sum(f.stat().st_size for f in (folder / "int8").glob("*.safetensors"))


linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from /proc")


@linux
def test_loading_takes_the_memory_of_the_checkpoint(tmp_path):
    size = both(tmp_path, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6, num_attention_heads=16, num_key_value_heads=4, vocab_size=32000)
    got = measure("load", tmp_path)
    assert got["peak"] < 1.1 * size + 3e7, (got, size)  # 30 MB for code that is imported on the way


@linux
@pytest.mark.slow
def test_a_qwen2_of_1_5_billion(tmp_path, request):
    "The ratios that are promised: memory at most 1.1 of the checkpoint, time at most 0.3 of the float route, saving at most 1.3 of safetensors alone."
    size = both(tmp_path, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2, vocab_size=151936)
    try: runs = {what: measure(what, tmp_path) for what in ("float", "load", "save")}
    finally: shutil.rmtree(tmp_path)  # gigabytes
    memory, time = {w: runs[w]["peak"] / size for w in ("float", "load")}, min(runs[w]["seconds"] for w in ("load", "save")) / runs["float"]["seconds"]
    best = {k: min(runs["save"][k]) for k in ("plain", "synced", "ours")}
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\ncheckpoint {size:,} bytes; peak memory over the bare process: load {memory['load']:.3f} of that, float and quantize {memory['float']:.2f}")
        print(f"load {runs['load']['seconds']:.2f} s, float and quantize {runs['float']['seconds']:.2f} s: {time:.3f}")
        print(f"save {best['ours']:.2f} s; safetensors alone {best['plain']:.2f} s, and until it is on the disk {best['synced']:.2f} s: {best['ours'] / best['synced']:.3f} of that")
    assert memory["load"] <= 1.1 and time <= .3 and best["ours"] <= 1.3 * best["synced"]
