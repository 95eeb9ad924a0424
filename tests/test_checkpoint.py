"A saved folder: what comes back, in a new process too, and what is refused."
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import tinyq
from tinyq.evaluate import evaluate_lm, get_generation, heldout_text, tiny_lm
from tinyq.hub import check_output, load, save_quantized
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
        assert (again / name).read_bytes() == (checkpoint / name).read_bytes()
    a, b = (load_file(f / "model.safetensors") for f in (again, checkpoint))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_biases_and_an_untied_head(tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                         num_key_value_heads=1, tie_word_embeddings=False)).eval()
    Quantizer(model).quantize("w8a32", ["lm_head"])
    back, tokenizer = load(save_quantized(model, tmp_path / "q"))
    ids = torch.arange(10)[None]
    assert torch.equal(back(ids).logits, model(ids).logits) and tokenizer is None


def test_a_crash_leaves_the_old_checkpoint_whole(quantized, checkpoint, tmp_path, monkeypatch):
    folder = tmp_path / "q"
    shutil.copytree(checkpoint, folder)
    for step in ("huggingface_hub.save_torch_state_dict", "os.replace"):
        target = "tinyq.hub.save_torch_state_dict" if "hub" in step else step
        def fail(*args, **kw): raise OSError(28, "No space left on device")
        with monkeypatch.context() as m:
            m.setattr(target, fail)
            with pytest.raises(OSError, match="No space"):
                save_quantized(*quantized[:1], folder, quantized[1])
        assert [p.name for p in tmp_path.iterdir()] == ["q"]
        load(folder)


def test_crash_between_the_two_renames_puts_the_old_folder_back(quantized, checkpoint, tmp_path, monkeypatch):
    folder, real, calls = tmp_path / "q", os.replace, []
    shutil.copytree(checkpoint, folder)

    def second_fails(a, b):
        if str(b) == str(folder):
            calls.append(a)
            if len(calls) == 1: raise OSError(5, "Input/output error")
        return real(a, b)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="Input/output"):
        save_quantized(quantized[0], folder, quantized[1])
    monkeypatch.undo()
    load(folder)


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


def broken(change):
    return pytest.param(change, id=change.__name__)


def missing_tensor(t): t.popitem()
def extra_tensor(t): t["model.layers.9.mlp.up_proj.scales"] = torch.ones(1)
def wrong_shape(t): t["model.norm.weight"] = torch.ones(3, dtype=torch.bfloat16)
def float_codes(t): t["model.layers.0.mlp.up_proj.weight"] = t["model.layers.0.mlp.up_proj.weight"].float()


@pytest.mark.parametrize("change", [broken(c) for c in (missing_tensor, extra_tensor, wrong_shape, float_codes)])
def test_tensors_that_do_not_fit(checkpoint, tmp_path, change):
    folder = tmp_path / "q"
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="fit"): load(folder)


@pytest.mark.parametrize("key, value, message", [("format", 99, "upgrade"), ("scheme", "w2a2", "w2a2"), ("modules", ["model.layers.7.mlp.up_proj"], "layers.7")])
def test_config_that_does_not_fit(checkpoint, tmp_path, key, value, message):
    folder = tmp_path / "q"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"][key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message): load(folder)


def test_truncated_and_missing_files(checkpoint, tmp_path):
    folder = tmp_path / "q"
    shutil.copytree(checkpoint, folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])
    with pytest.raises(ValueError, match="damaged"): load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"): load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match="outside"): load(folder)
