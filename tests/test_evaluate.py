"load_model: folders, the Hub, dtypes, remote code, checkpoints of tinyq; and quick, clear refusals. Clients of the Hub are processes, since huggingface_hub reads its settings once."
import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_hub import client

from tinyq import TINY_LM, QuantizedLinear, get_memory_footprint, load_model, tiny_lm

ids = torch.arange(5, 25)[None]
CODE = "from transformers import PreTrainedConfig\nfrom pathlib import Path\nPath(__file__).with_name('it_ran').touch()\nclass Mine(PreTrainedConfig): model_type = 'mine'\n"


@torch.no_grad()
def logits(model): return model(ids).logits


def copy_of_tiny_lm(folder, **config):
    "The shipped model in a folder of its own, with another config."
    shutil.copytree(TINY_LM, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((TINY_LM / "config.json").read_text()) | config))
    return folder


def refused(error, *args, **kwargs):
    "What `load_model` says, in one line and at once."
    start = time.perf_counter()
    with pytest.raises(error) as e: load_model(*args, **kwargs)
    assert e.type is error and "\n" not in str(e.value) and time.perf_counter() - start < 5
    return str(e.value)


# ---- folders

def test_a_folder_that_is_no_model(tmp_path):
    (tmp_path / "notes.txt").write_text("no model")
    assert "it has no config.json" in refused(ValueError, tmp_path)
    assert "is a file; give the folder" in refused(ValueError, tmp_path / "notes.txt")
    assert "no folder" in refused(FileNotFoundError, tmp_path / "nowhere")
    assert "is empty; give the folder" in refused(ValueError, "")
    for wrong in ("two words", "-name", "user/na..me", "user/" + "n" * 97): assert "can't be a Hub id" in refused(ValueError, wrong)


@pytest.mark.parametrize("config", ["", "{", "[]", "{}", '{"model_type": "mystery"}', '{"model_type": "vit"}', '{"model_type": 3}'])
def test_a_config_that_makes_no_language_model(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    assert "as a causal language model: " in refused(ValueError, tmp_path)


def test_a_file_that_is_damaged_or_lacks_a_tensor(tmp_path):
    folder = copy_of_tiny_lm(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: t for k, t in tensors.items() if "layers.2.mlp.up" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert "the files lack 1 of its tensors, such as model.layers.2.mlp.up_proj.weight" in refused(ValueError, folder)
    save_file({k: t[:8] if "layers.2.mlp.up" in k else t for k, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    assert "can't load" in refused(ValueError, folder)
    (folder / "model.safetensors").write_bytes((TINY_LM / "model.safetensors").read_bytes()[:-100])
    assert "can't load" in refused(ValueError, folder)
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in refused(ValueError, folder)


def test_a_revision_is_for_the_hub(): assert "leave it out" in refused(ValueError, TINY_LM, revision="main")


# ---- arguments

@pytest.mark.parametrize("wrong", ["int8", torch.int8, torch.float8_e4m3fn, "bfloat", "", 16, None, "nn", "complex64"])
def test_unknown_dtype(wrong):
    assert f"dtype is {wrong!r}; choose" in refused(ValueError, TINY_LM, wrong)


@pytest.mark.parametrize("name", ["float32", "torch.float16", torch.bfloat16, torch.float64])
def test_dtype_by_both_names(name):
    want = getattr(torch, str(name).removeprefix("torch."))
    for model, _ in (load_model(TINY_LM, name), load_model(TINY_LM, "auto", "cpu", name), load_model(dtype=name), load_model(torch_dtype=name)):
        assert {p.dtype for p in model.parameters()} == {want} and not model.training


def test_dtype_and_torch_dtype_are_one(): assert "give one" in refused(TypeError, TINY_LM, torch.float32, dtype=torch.float16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(): assert "CUDA" in refused(ValueError, TINY_LM, device_map="cuda")


# ---- code that comes with a model

def test_remote_code_is_refused_unless_asked_for(tmp_path):
    (folder := tmp_path / "model").mkdir()
    (folder / "code.py").write_text(CODE)
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}))
    for kwargs in ({}, {"trust_remote_code": False}): assert "it needs code that comes with it" in (says := refused(ValueError, folder, **kwargs)) and "trust_remote_code=True" in says
    assert not list(tmp_path.rglob("it_ran"))


def test_a_model_that_transformers_knows_needs_no_code_of_its_own(tmp_path):
    folder = copy_of_tiny_lm(tmp_path / "model", auto_map={"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text(CODE)
    assert torch.equal(logits(load_model(folder)[0]), logits(tiny_lm()[0])) and not (folder / "it_ran").exists()


# ---- what tinyq wrote

def test_a_checkpoint_of_tinyq(checkpoint, quantized):
    model, tokenizer = load_model(checkpoint)
    assert torch.equal(logits(model), logits(quantized[0])) and not model.training
    assert get_memory_footprint(model) == get_memory_footprint(quantized[0]) and len(tokenizer) == len(quantized[1])


def test_a_checkpoint_of_tinyq_in_another_dtype(checkpoint, quantized):
    model, _ = load_model(checkpoint, dtype="float32")
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert layers and all(m.weight.dtype == torch.int8 and m.scales.dtype == torch.float32 for m in layers)
    assert logits(model).dtype == torch.float32 and torch.allclose(logits(model), logits(quantized[0]).float(), atol=.5)


def test_a_checkpoint_of_tinyq_that_is_damaged(checkpoint, tmp_path):
    folder, config = tmp_path / "model", json.loads((checkpoint / "config.json").read_text())
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith("up_proj.scales"))
    save_file({n: t for n, t in tensors.items() if n != name}, folder / "model.safetensors", {"format": "pt"})
    assert "checksum" in refused(ValueError, folder)
    config["quantization_config"].pop("checksums")
    (folder / "config.json").write_text(json.dumps(config))
    assert name in refused(ValueError, folder)
    config["quantization_config"]["format_version"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    assert "upgrade tinyq" in refused(ValueError, folder)


# ---- the Hub

def test_offline_and_not_in_the_cache():
    says = refused(ConnectionError, "user/surely-not-in-any-cache")  # HF_HUB_OFFLINE is set for all tests
    assert "not in the cache" in says and "HF_HUB_OFFLINE" in says
    assert "local_files_only" in refused(ConnectionError, "user/surely-not-in-any-cache", local_files_only=True)


@pytest.fixture(scope="module")
def trip(hub, home, tmp_path_factory, checkpoint):
    "What `load_model` makes of repositories."
    mine = tmp_path_factory.mktemp("mine")
    (mine / "code.py").write_text(CODE)
    (mine / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}))
    return client(hub, home, f"""
from pathlib import Path
api, tiny, (model, _) = HfApi(), Path(tinyq.TINY_LM), tinyq.tiny_lm()
def put(repo, folder, **kw): api.create_repo(repo, **kw); return api.upload_folder(repo_id=repo, folder_path=folder).oid
def opened(repo, **kw): return torch.equal(logits(tinyq.load_model(repo, **kw)[0]), logits(model))
first = put("me/float", tiny)
put("me/secret", tiny, private=True); put("me/codes", {str(checkpoint)!r}); put("me/mine", {str(mine)!r})
found["main"], found["positional"] = opened("me/float"), str(tinyq.load_model("me/float", torch.float32)[0].dtype)
found["own"], found["read"] = opened("me/secret"), opened("me/secret", token="hf_read")
for name, token in {{"other": "hf_other", "none": False, "bad": "hf_bad"}}.items(): found[name] = error(lambda: opened("me/secret", token=token, cache_dir={str(mine.parent / 'empty')!r}))
found["codes"] = torch.equal(logits(tinyq.load_model("me/codes")[0]), logits(tinyq.load({str(checkpoint)!r})[0]))
found["mine"] = error(lambda: tinyq.load_model("me/mine"))
found["ran"] = bool(list(Path(os.environ["HF_HOME"]).rglob("it_ran")))
found["asked for"] = error(lambda: tinyq.load_model("me/mine", trust_remote_code=True))
found["ran then"] = bool(list(Path(os.environ["HF_HOME"]).rglob("it_ran")))
found["no repo"], found["no revision"] = error(lambda: opened("me/nothing")), error(lambda: opened("me/float", revision="nope"))
api.create_repo("me/readme")
found["no config"] = error(lambda: opened("me/readme"))

config = json.loads((tiny / "config.json").read_text()) | {{"rms_norm_eps": .5}} # another model, from now on
api.upload_file(path_or_fileobj=json.dumps(config).encode(), path_in_repo="config.json", repo_id="me/float")
found["new main"], found["old commit"] = opened("me/float"), opened("me/float", revision=first)
""")


def test_a_model_of_the_hub(trip):
    assert trip["main"] and trip["positional"] == "torch.float32" and trip["codes"]
    assert trip["old commit"] and trip["new main"] is False


def test_a_private_model(trip):
    assert trip["own"] and trip["read"]
    for who in ("other", "none"): assert trip[who].startswith("FileNotFoundError: no folder 'me/secret', and no such model on the Hub that you may see") and "token" in trip[who]
    assert trip["bad"].split(":")[0] in ("ConnectionError", "FileNotFoundError")


def test_what_is_not_there(trip):
    assert trip["no repo"].startswith("FileNotFoundError: no folder 'me/nothing'")
    assert trip["no revision"] == "FileNotFoundError: me/float has no revision 'nope'; give a branch, tag or commit that its page lists"
    assert trip["no config"].startswith("FileNotFoundError: me/readme is on the Hub, but has no config.json")


def test_code_of_the_hub_runs_only_when_asked_for(trip):
    assert trip["mine"].startswith("ValueError: can't load me/mine") and "trust_remote_code=True" in trip["mine"] and not trip["ran"]
    assert trip["ran then"] and "no error" not in trip["asked for"]  # and it holds no model


def test_the_cache_serves_when_the_hub_is_gone(trip, hub, home):
    "Offline by a setting, and with a server that doesn't answer: at once, in both."
    code = """
start = time.perf_counter()
found["model"] = type(tinyq.load_model("me/secret")[0]).__name__
found["codes"] = type(tinyq.load_model("me/codes")[0].model.layers[0].mlp.up_proj).__name__
found["unknown"] = error(lambda: tinyq.load_model("me/unknown"))
found["seconds"] = time.perf_counter() - start
"""
    asked = len(hub.requests)
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        got = client(hub, home, code, **env)
        assert got["model"] == "LlamaForCausalLM" and got["codes"] == "W8A16LinearLayer" and got["seconds"] < 10
        assert got["unknown"].startswith("ConnectionError: me/unknown is no folder and not in the cache, and the Hub can't be asked")
    assert len(hub.requests) == asked
