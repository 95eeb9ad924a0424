"The real huggingface_hub client against a Hub on this machine: up, down, cut in the middle, refused. Each client is a process, since it reads its settings once."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

HEAD = """
import json, os, sys, time, warnings
sys.path.insert(0, os.path.dirname(os.environ["HUB_TESTS"]))
import torch, tinyq
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.utils import disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, utils
utils.logging.set_verbosity_error(), utils.logging.disable_progress_bar(), disable_progress_bars()
found = {}
def error(f):
    try: return f"no error: {f()}"
    except Exception as e: return f"{type(e).__name__}: {e}"
ids = torch.arange(5, 25)[None]
@torch.no_grad()
def logits(model): return model(ids).logits
"""


def client(hub, home, code, token="hf_write", **env):
    "What `found` holds after `code` has run in a process that talks to `hub`."
    env = os.environ | hub.env(home, token, **env) | {"HUB_TESTS": __file__, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", HEAD + code + "\nprint(json.dumps(found))"], env=env, capture_output=True, text=True, timeout=240)
    assert out.returncode == 0, out.stderr[-3000:]
    return json.loads(out.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def trip(hub, home):
    "The twelve architectures, there and back; and what the shipped model does on a Hub."
    return client(hub, home, """
import test_transformers as t
for name in t.ARCHITECTURES:
    model = tinyq.Quantizer(t.build(name)).quantize("w8a16")
    tinyq.push_to_hub(model, f"me/{name}")
    want, cls = t.logits(model), type(model)
    found[name] = [torch.equal(t.logits(tinyq.load(f"me/{name}")[0]), want), torch.equal(t.logits(cls.from_pretrained(f"me/{name}")), want)]

found["low"] = []
for name, scheme, embeddings in t.LOW[:6]:
    model = tinyq.Quantizer(t.build(name)).quantize(scheme, embeddings=embeddings)
    tinyq.push_to_hub(model, "me/low")
    for again in (tinyq.load("me/low")[0], type(model).from_pretrained("me/low")): found["low"].append(t.same_bits(again, model) and t.same_ties(again, model) and torch.equal(t.logits(again), t.logits(model)))

model, tokenizer = tinyq.tiny_lm()
tinyq.Quantizer(model).quantize("w8a16")
found["pushed"] = str(tinyq.push_to_hub(model, "me/tiny", tokenizer, commit_message="Codes and scales"))
again, words = tinyq.load("me/tiny")
theirs = AutoModelForCausalLM.from_pretrained("me/tiny")
found["ours"], found["theirs"] = torch.equal(logits(again), logits(model)), torch.equal(logits(theirs), logits(model))
found["words"] = words.decode(words("a quantized model").input_ids) == AutoTokenizer.from_pretrained("me/tiny").decode(words("a quantized model").input_ids)
found["files"] = sorted(HfApi().list_repo_files("me/tiny"))
found["title"] = HfApi().list_repo_commits("me/tiny")[0].title

fly = AutoModelForCausalLM.from_pretrained(tinyq.TINY_LM, quantization_config=tinyq.TinyqConfig("w8a16"))
fly.push_to_hub("me/theirs", revision="half")
found["branch"] = torch.equal(logits(tinyq.load("me/theirs", revision="half")[0]), logits(model))
found["main"] = error(lambda: tinyq.load("me/theirs"))
head = HfApi().list_repo_refs("me/theirs").branches
commit = next(b.target_commit for b in head if b.name == "half")
found["commit"] = torch.equal(logits(AutoModelForCausalLM.from_pretrained("me/theirs", revision=commit)), logits(model))
""")


def test_twelve_architectures_through_the_hub(trip):
    from test_transformers import ARCHITECTURES
    assert {name: trip[name] for name in ARCHITECTURES} == dict.fromkeys(ARCHITECTURES, [True, True])


def test_packed_layers_through_the_hub(trip): assert trip["low"] == [True] * 12


def test_push_and_pull(trip, hub):
    assert trip["ours"] and trip["theirs"] and trip["words"] and trip["title"] == "Codes and scales" and "/me/tiny" in trip["pushed"]
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(trip["files"])
    card = hub.repos["me/tiny"].at("main").files["README.md"].decode()
    assert "tinyq.load(\"me/tiny\")" in card and card.startswith("---\n")
    assert not [c for c in hub.repos["me/tiny"].commits[1:-1]]  # one commit


def test_a_branch_and_a_commit(trip):
    assert trip["branch"] and trip["commit"] and "no error" not in trip["main"] and "config.json" in trip["main"]


@pytest.fixture(scope="module")
def refused(trip, hub, tmp_path_factory):
    "What is not to work, each with a cache of its own."
    return client(hub, tmp_path_factory.mktemp("hf_home"), """
import itertools, tempfile
def opened(token=None, repo="me/secret", **kw):
    with tempfile.TemporaryDirectory() as cache: return type(tinyq.load(repo, token=token, cache_dir=cache, **kw)[0]).__name__
def theirs(token=None, repo="me/secret", **kw):
    with tempfile.TemporaryDirectory() as cache: return type(AutoModelForCausalLM.from_pretrained(repo, token=token, cache_dir=cache, **kw)).__name__
model = tinyq.Quantizer(tinyq.tiny_lm()[0]).quantize("w8a16")
found["read-only push"] = error(lambda: tinyq.push_to_hub(model, "me/tiny", token="hf_read"))
found["other's push"] = error(lambda: tinyq.push_to_hub(model, "me/tiny", token="hf_other"))
found["no token push"] = error(lambda: tinyq.push_to_hub(model, "me/tiny", token=False))
found["bad token push"] = error(lambda: tinyq.push_to_hub(model, "me/tiny", token="hf_bad"))
tinyq.push_to_hub(model, "me/secret", private=True)
for name, token in {"own": None, "read": "hf_read", "other": "hf_other", "none": False, "bad": "hf_bad"}.items():
    found[f"private {name}"], found[f"private {name} theirs"] = error(lambda: opened(token)), error(lambda: theirs(token))
found["revision"], found["revision theirs"] = error(lambda: opened(repo="me/tiny", revision="nope")), error(lambda: theirs(repo="me/tiny", revision="nope"))
found["no repo"] = error(lambda: opened(repo="me/nothing"))
api = HfApi()
api.create_repo("me/readme")
found["no model"] = error(lambda: opened(repo="me/readme"))
api.upload_file(path_or_fileobj=hf_hub_download("me/tiny", "config.json"), path_in_repo="config.json", repo_id="me/readme")
found["no tensors"], found["no tensors theirs"] = error(lambda: opened(repo="me/readme")), error(lambda: theirs(repo="me/readme"))
api.upload_folder(repo_id="me/float", folder_path=tinyq.TINY_LM) if api.create_repo("me/float") else 0
found["float"], found["float theirs"] = error(lambda: opened(repo="me/float")), error(lambda: theirs(repo="me/float", quantization_config=tinyq.TinyqConfig()))
""")


def test_who_may_push(refused, hub):
    for who in ("read-only", "other's", "no token", "bad token"):
        assert refused[f"{who} push"].startswith("PermissionError: the token given may not do that with me/tiny"), who
    assert len(hub.repos["me/tiny"].commits) == 2


def test_who_may_read_what_is_private(refused):
    for who in ("own", "read"): assert refused[f"private {who}"] == refused[f"private {who} theirs"] == "no error: LlamaForCausalLM"
    for who in ("other", "none"):
        assert refused[f"private {who}"].startswith("FileNotFoundError: the Hub has no model me/secret that you may see") and "token" in refused[f"private {who}"]
        assert "no error" not in refused[f"private {who} theirs"]
    assert refused["private bad"].split(":")[0] in ("PermissionError", "FileNotFoundError")


def test_what_is_not_there(refused):
    assert refused["revision"] == "FileNotFoundError: me/tiny has no revision 'nope': give a branch, tag or commit that its page lists"
    assert "nope" in refused["revision theirs"] and "no error" not in refused["revision theirs"]
    assert refused["no repo"].startswith("FileNotFoundError: the Hub has no model me/nothing")
    assert refused["no model"].startswith("FileNotFoundError: me/readme lacks a file of a model")
    assert "no error" not in refused["no tensors"] and "me/readme" in refused["no tensors"] and "no error" not in refused["no tensors theirs"]
    assert refused["float"].startswith("ValueError: me/float is no tinyq checkpoint") and refused["float theirs"] == "no error: LlamaForCausalLM"


def test_the_cache_is_enough_afterwards(trip, hub, home):
    code = """
found["ours"] = type(tinyq.load("me/tiny")[0]).__name__
found["theirs"] = type(AutoModelForCausalLM.from_pretrained("me/tiny").model.layers[0].mlp.up_proj).__name__
found["unknown"] = error(lambda: tinyq.load("me/secret"))
"""
    asked = len(hub.requests)
    got = client(hub, home, code, HF_HUB_OFFLINE="1")
    assert got["ours"] == "LlamaForCausalLM" and got["theirs"] == "W8A16LinearLayer" and got["unknown"].startswith("ConnectionError: me/secret is not (or not all of it) in the cache")
    assert len(hub.requests) == asked


def test_a_connection_cut_in_the_middle(trip, hub, tmp_path):
    "24 MB of tensors; the client writes 10 MB at a time, and goes on from there. Killed in the middle, it leaves nothing that the next process would take for the file."
    big = {f"layer{i}.weight": torch.randint(-127, 128, (1024, 8192), dtype=torch.int8) for i in range(3)} | {f"layer{i}.scales": torch.rand(1024) for i in range(3)}
    save_file(big, tmp_path / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["Big"], "quantization_config": {"quant_method": "tinyq", "format_version": 1, "version": "0", "scheme": "w8a16", "modules": [f"layer{i}" for i in range(3)], "modules_to_not_convert": []}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = """
class Big(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for i in range(3): setattr(self, f"layer{i}", torch.nn.Linear(8192, 1024, bias=False, device="meta"))
found["pushed"] = error(lambda: tinyq.push_to_hub(os.environ["BIG"], "me/big"))
"""
    opened = "found['sum'] = int(sum(m.weight.sum(dtype=torch.int64) for m in tinyq.load_quantized(Big(), 'me/big').children()))\n"
    killed = "import huggingface_hub.file_download as d\nd.time.sleep = lambda seconds: (print(json.dumps(found), flush=True), os._exit(0))\n"
    hub.cut_at, want = 15 << 20, sum(int(t.sum(dtype=torch.int64)) for n, t in big.items() if n.endswith("weight"))
    got = client(hub, tmp_path / "home", code + killed + opened, BIG=str(tmp_path))  # dies where it would wait before trying again
    assert "no error" in got["pushed"] and hub.cut_at is None and "sum" not in got
    hub.cut_at = 15 << 20
    got = client(hub, tmp_path / "home", code.split("found")[0] + opened)
    assert got["sum"] == want and hub.cut_at is None
    ranges = [r for method, path, r in hub.requests if method == "GET" and path.startswith("/lfs/") and r]
    assert ranges == [f"bytes={10 << 20}-"]  # not from the beginning
