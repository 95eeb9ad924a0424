"transformers' own from_pretrained, on twelve architectures: quantized while loading, saved, opened again, made float again. Bit for bit."
import json
import logging
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

import tinyq
from tinyq import QuantizedLayer, QuantizedLinear, Quantizer, TinyqConfig, get_memory_footprint
from tinyq.hub import load, read_quantization_config, save_quantized

FEW = dict(vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
LAYERS = dict(vocab_size=99, n_positions=64, n_embd=32, n_layer=2, n_head=4)

# name -> class, config, and how many layers are quantized
ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", FEW | dict(num_key_value_heads=2), 2 * 7 + 1),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", FEW | dict(tie_word_embeddings=True), 2 * 7),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", FEW | dict(num_key_value_heads=2), 2 * 7 + 1),
    "opt": ("OPTForCausalLM", "OPTConfig", dict(vocab_size=99, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=16,
                                                max_position_embeddings=64), 2 * 6 + 2),
    "codegen": ("CodeGenForCausalLM", "CodeGenConfig", LAYERS | dict(n_ctx=64, rotary_dim=4), 2 * 4 + 1),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", LAYERS, 2 * 4),  # Conv1D
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", FEW, 2 * 4 + 1),  # its head has another name in files
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", FEW | dict(num_key_value_heads=2, num_local_experts=4), 2 * 4 + 1),  # and its experts are apart there
    "bert": ("BertForMaskedLM", "BertConfig", FEW, 2 * 6 + 1),
    "phi": ("PhiForCausalLM", "PhiConfig", FEW | dict(pad_token_id=0), 2 * 6 + 1),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", FEW | dict(num_key_value_heads=2, head_dim=8), 2 * 7),
    "vit": ("ViTForImageClassification", "ViTConfig", dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32,
                                                           patch_size=8, num_labels=5), 2 * 6 + 1),
}
CAUSAL = [name for name, (cls, *_) in ARCHITECTURES.items() if "CausalLM" in cls or "LMHead" in cls]


def build(name):
    "A model with random weights: biases and norms too, which are otherwise all zeros and ones."
    cls, config, shape, _ = ARCHITECTURES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = getattr(transformers, cls)(getattr(transformers, config)(**shape)).eval()
    with torch.no_grad():
        for p in model.parameters(): p.add_(.02 * torch.randn_like(p))
    return model


@pytest.fixture
def said(caplog):
    "What transformers logs. (Of itself it lets its records through to the root logger only where `CI` is set.)"
    hf_logging, before = transformers.utils.logging, logging.getLogger("transformers").propagate
    hf_logging.enable_propagation()
    with caplog.at_level("WARNING"), caplog.at_level("WARNING", "transformers"): yield caplog
    logging.getLogger("transformers").propagate = before


@torch.no_grad()
def logits(model):
    if "vit" in model.config.model_type: return model(pixel_values=torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32).to(model.dtype)).logits
    return model(input_ids=torch.arange(3, 23).reshape(2, 10)).logits


def same_bits(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


def quantized_paths(model): return [path for path, m in model.named_modules() if isinstance(m, QuantizedLayer)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_there_and_back(name, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path / "float")
    cls, opened = type(model), lambda folder: type(model).from_pretrained(tmp_path / folder)

    loaded = cls.from_pretrained(tmp_path / "float", quantization_config=TinyqConfig("w8a16"))  # while loading
    late = (quantizer := Quantizer(opened("float"))).quantize("w8a16")  # after loading
    want = logits(late)
    assert torch.equal(logits(loaded), want) and same_bits(loaded, late) and len(quantized_paths(loaded)) == ARCHITECTURES[name][3]

    loaded.save_pretrained(tmp_path / "theirs")
    save_quantized(late, tmp_path / "ours")
    for folder in ("theirs", "ours"):
        for again in (opened(folder), load(tmp_path / folder)[0]):
            assert torch.equal(logits(again), want) and same_bits(again, late), folder
    assert same_bits(cls.from_pretrained(tmp_path / "ours", device_map="cpu"), late)

    rows = {r.path: r for r in loaded.hf_quantizer.report()}
    assert [r.path for r in rows.values() if r.scheme == "w8a16"] == quantized_paths(loaded) and sum(r.after for r in rows.values()) == get_memory_footprint(loaded)
    assert all(r.sqnr > 30 if r.scheme else r.skipped for r in rows.values())

    back = opened("theirs").dequantize()
    assert same_bits(back, quantizer.dequantize()) and not hasattr(back.config, "quantization_config")
    assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    back.save_pretrained(tmp_path / "back")
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())
    assert torch.equal(logits(opened("back")), logits(back))


def test_two_methods_and_sixteen_bits(tmp_path):
    build("qwen2").to(torch.bfloat16).save_pretrained(tmp_path / "float")
    for method, dtype in [("w8a32", "auto"), ("w8a16", torch.float16)]:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TinyqConfig(method), dtype=dtype)
        late = Quantizer(AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=dtype)).quantize(method)
        assert same_bits(loaded, late) and torch.equal(logits(loaded), logits(late))
        loaded.save_pretrained(tmp_path / method)
        for again in (AutoModelForCausalLM.from_pretrained(tmp_path / method), load(tmp_path / method)[0]): assert torch.equal(logits(again), logits(late))
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "w8a32", dtype=torch.float32)
    assert other.model.layers[0].mlp.up_proj.scales.dtype == other.model.norm.weight.dtype == torch.float32
    assert type(other.model.layers[0].mlp.up_proj).__name__ == "W8A32LinearLayer" and other.dequantize(torch.float16).model.layers[0].mlp.up_proj.weight.dtype == torch.float16


def test_shards(tmp_path):
    build("mixtral").save_pretrained(tmp_path / "float", max_shard_size="20KB")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TinyqConfig())
    loaded.save_pretrained(tmp_path / "q", max_shard_size="20KB")
    assert len(list((tmp_path / "q").glob("*.safetensors"))) > 2
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "q"), load(tmp_path / "q")[0]): assert torch.equal(logits(again), logits(loaded))


def test_what_to_leave_alone(tmp_path):
    build("llama").save_pretrained(tmp_path / "float")
    def quantized(**kw): return quantized_paths(AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TinyqConfig("w8a16", **kw)))
    assert quantized(modules_to_not_convert=["lm_head", "*.mlp.*"]) == [f"model.layers.{i}.self_attn.{n}_proj" for i in (0, 1) for n in "qkvo"]
    assert quantized(include=lambda path, m: path.endswith("1.mlp.up_proj")) == ["model.layers.1.mlp.up_proj"]
    with pytest.warns(UserWarning, match="'lm_haed' matches no module; there is 'lm_head'"): quantized(modules_to_not_convert=["lm_haed"])
    with pytest.raises(ValueError, match="no quantized layers"): quantized(modules_to_not_convert=[nn.Linear])


def test_what_is_left_in_float_is_reported(tmp_path):
    build("mixtral").save_pretrained(tmp_path)
    rows = {r.path: r for r in AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=TinyqConfig()).hf_quantizer.report()}
    assert rows["model.layers.0.mlp.experts"].skipped == "3-D weights, as fused experts are: gate_up_proj, down_proj"
    build("gpt2").save_pretrained(tmp_path / "gpt2")
    rows = {r.path: r for r in AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", quantization_config=TinyqConfig()).hf_quantizer.report()}
    assert rows["lm_head"].skipped == "shares its weight with transformer.wte" and rows["transformer.h.0.attn.c_attn"].kind == "Conv1D"


def test_other_words_of_transformers(tmp_path):
    "What is asked of a quantized model elsewhere in transformers."
    build("llama").save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TinyqConfig())
    assert model.is_quantized and model.quantization_method == "tinyq" and model.config.to_dict()["quantization_config"]["scheme"] == "w8a16"
    json.loads(model.config.to_json_string()), repr(model.config), dict(model.config.quantization_config)
    with pytest.raises(ValueError, match="is not supported for quantized"): model.half()
    assert torch.equal(logits(model.to(torch.bfloat16).to(torch.float32))[0].isfinite().all(), torch.tensor(True))
    import copy
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model)) and type(twin.dequantize().lm_head) is nn.Linear and isinstance(model.lm_head, QuantizedLinear)
    out = model.generate(torch.arange(3, 9)[None], max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 10)
    model.save_pretrained(tmp_path / "q")
    pipe = transformers.pipeline("text-generation", model=AutoModelForCausalLM.from_pretrained(tmp_path / "q"), tokenizer=tinyq.tiny_lm()[1])
    assert isinstance(pipe.model.lm_head, QuantizedLinear)
    with pytest.warns(UserWarning, match="already has a `quantization_config`"):
        assert quantized_paths(AutoModelForCausalLM.from_pretrained(tmp_path / "q", quantization_config=TinyqConfig("w8a32"))) == quantized_paths(model)


def test_buffers_and_ties_that_only_the_checkpoint_knows(tmp_path):
    model = build("llama")
    model.lm_head.weight = model.model.embed_tokens.weight  # the config says otherwise
    model.model.rotary_emb.inv_freq *= 1.5
    Quantizer(model).quantize("w8a16")
    save_quantized(model, tmp_path / "q")
    assert {"tied", "buffers"} <= read_quantization_config(tmp_path / "q").keys()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    assert torch.equal(logits(again), logits(model)) and again.lm_head.weight is again.model.embed_tokens.weight


# ---- low bits, embeddings, ties

MIXED = {"*.down_proj": "w8a16", "*.1.*": "w3a16-g32-asym", "lm_head": None, "*": "w4a16-g64"}
LOW = [("llama", "w4a16-g64", False), ("llama", "w3a16-g32-asym", True), ("llama", MIXED, False), ("llama-tied", "w4a16-g64", True), ("llama-tied", "w3a16-g16-asym", True),
       ("llama-tied", "w8a16", True), ("opt", "w2a16-g16", True), ("gpt2", "w4a16-g16-asym", True), ("gpt_neox", "w5a32", True), ("bert", "w4a16-g16", True), ("mixtral", "w4a16", True),
       ("gemma3", "w4a16-g16", True), ("vit", "w6a16-g8-asym", True), ("codegen", "w1a16-g16", False), ("qwen2", "w8a16-g64", False)]


def same_ties(a, b):
    "Names of the state dict that are one tensor."
    def groups(model):
        found = {}
        for name, t in model.state_dict(keep_vars=True).items(): found.setdefault(id(t), set()).add(name)
        return sorted(map(sorted, (names for names in found.values() if len(names) > 1)))
    return groups(a) == groups(b)


@pytest.mark.parametrize("name, scheme, embeddings", LOW, ids=str)
def test_low_bits_there_and_back(name, scheme, embeddings, tmp_path, said):
    model = build(name)
    model.save_pretrained(tmp_path / "float")
    opened = lambda folder, **kw: type(model).from_pretrained(tmp_path / folder, **kw)
    loaded = opened("float", quantization_config=TinyqConfig(scheme, embeddings=embeddings))
    late = (quantizer := Quantizer(opened("float"))).quantize(scheme, embeddings=embeddings)
    want = logits(late)
    assert torch.equal(logits(loaded), want) and same_bits(loaded, late) and same_ties(loaded, late) and quantized_paths(loaded) == quantized_paths(late) != []
    assert loaded.hf_quantizer.report() == quantizer.report() and sum(r.after for r in quantizer.report()) == get_memory_footprint(loaded)
    late.save_pretrained(tmp_path / "late")
    loaded.save_pretrained(tmp_path / "theirs")
    save_quantized(late, tmp_path / "ours")
    for folder in ("theirs", "ours", "late"):
        again = opened(folder)
        for m in (again, load(tmp_path / folder)[0]): assert torch.equal(logits(m), want) and same_bits(m, late) and same_ties(m, late), folder
        assert load_file(tmp_path / folder / "model.safetensors").keys() == load_file(tmp_path / "ours" / "model.safetensors").keys()
    assert "MISSING" not in said.text and "UNEXPECTED" not in said.text
    back = opened("theirs").dequantize()
    assert same_bits(back, quantizer.dequantize()) and same_ties(back, late) and same_ties(back.tie_weights() or back, model) and [type(m) for m in back.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(logits(opened(saved(back, tmp_path / "back"))), logits(back))


def test_a_pattern_for_each_layer(tmp_path):
    build("llama").save_pretrained(tmp_path)
    def schemes(scheme, **kw):
        model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=(config := TinyqConfig(scheme, **kw)))
        json.dumps(config.to_dict())
        return {path: str(m.scheme) for path, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    found = schemes({"lm_head": "w8a16", "*.0.*": None, "*.mlp.*": "w2a16-g32", "*": "w4a16"}, modules_to_not_convert="o_proj")
    assert found["lm_head"] == "w8a16" and found["model.layers.1.mlp.up_proj"] == "w2a16-g32" and found["model.layers.1.self_attn.q_proj"] == "w4a16"
    assert len(found) == 1 + 3 + 3 and not any(".0." in p or "o_proj" in p for p in found)
    assert len(schemes({nn.Linear: "w4a16"})) == 15
    json.dumps(TinyqConfig({nn.Linear: "w4a16", "a": None}).to_dict())
    with pytest.warns(UserWarning, match="q_method pattern 'mpl' matches no module"): schemes({"mpl": "w4a16", "*": "w8a16"})
    with pytest.raises(ValueError, match="unknown method 'w9a16'"): TinyqConfig({"*": "w9a16"})
    with pytest.raises(ValueError, match="no layers with 8-bit activations"): TinyqConfig("w4a8")


def test_a_tied_head_of_another_scheme_is_refused(tmp_path):
    build("llama-tied").save_pretrained(tmp_path)
    for load_it in (lambda s: AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=TinyqConfig(s, embeddings=True)), lambda s: Quantizer(build("llama-tied")).quantize(s, embeddings=True)):
        with pytest.raises(ValueError, match="layer 'lm_head': its weight is that of model.embed_tokens"): load_it({"lm_head": "w8a16", "*": "w4a16"})


@pytest.mark.parametrize("factor", [1., 2.])
def test_a_file_that_has_both_of_a_tied_pair(tmp_path, factor):
    "Equal, they are tied; with other values they aren't, whatever the config says: that is how transformers does it, too."
    build("llama-tied").save_pretrained(tmp_path / "float")
    changed(tmp_path / "float", tmp_path / "both", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] * factor + (factor - 1) * torch.linspace(-1, 1, 32)}))
    config = TinyqConfig("w4a16-g16", embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "both", quantization_config=config)
    tied = factor == 1
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == (model.lm_head.scales is model.model.embed_tokens.scales) == tied
    assert sum(r.after for r in model.hf_quantizer.report()) == get_memory_footprint(model)
    late = Quantizer(AutoModelForCausalLM.from_pretrained(tmp_path / "both")).quantize("w4a16-g16", embeddings=True)
    assert torch.equal(logits(model), logits(late)) and same_bits(model, late)
    save_quantized(model, tmp_path / "q")
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "q"), load(tmp_path / "q")[0]): assert torch.equal(logits(again), logits(model))


def test_half_a_tied_pair(tmp_path):
    "An embedding in codes under a float head, by a Quantizer of the inner model: tinyq.load opens it; transformers would tie the head to the codes, and it says so."
    model = build("llama-tied")
    Quantizer(model.model).quantize("w8a16", embeddings=True)
    save_quantized(model, tmp_path / "q")
    assert torch.equal(logits(load(tmp_path / "q")[0]), logits(model))
    with pytest.raises(ValueError, match="open it with tinyq.load"): AutoModelForCausalLM.from_pretrained(tmp_path / "q")


def test_ties_that_only_the_checkpoint_knows_with_codes(tmp_path):
    model = build("llama")
    model.lm_head.weight = model.model.embed_tokens.weight  # the config says otherwise
    Quantizer(model).quantize("w3a16-g16-asym", embeddings=True)
    save_quantized(model, tmp_path / "q")
    assert read_quantization_config(tmp_path / "q")["tied"].keys() == {f"lm_head.{n}" for n in ("weight", "scales", "zeros")}
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "q"), load(tmp_path / "q")[0]): assert torch.equal(logits(again), logits(model)) and same_ties(again, model)


def test_tied_codes_on_the_disk(tmp_path):
    model = Quantizer(build("llama-tied")).quantize("w4a16-g16", embeddings=True)
    save_quantized(model, tmp_path / "q")
    places = {"model": "disk", "lm_head": "disk"}
    away = AutoModelForCausalLM.from_pretrained(tmp_path / "q", device_map=places, offload_folder=tmp_path / "away")
    assert away.lm_head.weight.is_meta and torch.equal(logits(away), logits(model))
    with pytest.raises(ValueError, match="offload_buffers"): AutoModelForCausalLM.from_pretrained(tmp_path / "q", device_map=places, offload_folder=tmp_path / "away2", offload_buffers=True)


# ---- faults

@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    "A float model, and a quantized checkpoint of it; not to be changed."
    folder = tmp_path_factory.mktemp("folders")
    build("llama").save_pretrained(folder / "float")
    AutoModelForCausalLM.from_pretrained(folder / "float", quantization_config=TinyqConfig()).save_pretrained(folder / "q")
    Quantizer(packed := build("llama-tied")).quantize("w3a16-g32-asym", embeddings=True)
    packed.save_pretrained(folder / "packed")
    return folder


def changed(source, target, change):
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


KEY = "model.layers.0.mlp.down_proj"


def test_weights_that_cannot_be_quantized(folders, tmp_path, said):
    def nan(t): t[f"{KEY}.weight"][2, 3] = torch.nan
    def shape(t): t[f"{KEY}.weight"] = t[f"{KEY}.weight"][:, :-1].contiguous()
    for change, why in [(nan, "at [2, 3]"), (shape, "this layer takes (32, 64)")]:
        with pytest.raises(RuntimeError, match="report"):
            AutoModelForCausalLM.from_pretrained(changed(folders / "float", tmp_path / change.__name__, change), quantization_config=TinyqConfig())
        assert why in said.text and KEY in said.text


@pytest.mark.parametrize("name, change", [
    ("is not in the checkpoint", lambda t: t.pop(f"{KEY}.scales")),
    ("is not in the checkpoint", lambda t: t.pop(f"{KEY}.weight")),
    ("is F32 in the checkpoint", lambda t: t.update({f"{KEY}.weight": t[f"{KEY}.weight"].float()})),
], ids=["no scales", "no codes", "float codes"])
def test_a_damaged_checkpoint(folders, tmp_path, name, change):
    with pytest.raises((ValueError, RuntimeError), match=name): AutoModelForCausalLM.from_pretrained(changed(folders / "q", tmp_path / "q", change))


PACKED = "model.layers.1.mlp.down_proj"

@pytest.mark.parametrize("name, change", [
    ("zeros is not in the checkpoint", lambda t: t.pop(f"{PACKED}.zeros")),
    ("scales is not in the checkpoint", lambda t: t.pop(f"{PACKED}.scales")),
    ("scales is not in the checkpoint", lambda t: t.pop("model.embed_tokens.scales")),  # of the head, too
    ("weight is I8 in the checkpoint, expected torch.uint8", lambda t: t.update({f"{PACKED}.weight": t[f"{PACKED}.weight"].view(torch.int8)})),
    ("zeros is I8 in the checkpoint", lambda t: t.update({f"{PACKED}.zeros": t[f"{PACKED}.zeros"].view(torch.int8)})),
    ("scales is F32 in the checkpoint, expected torch.bfloat16", lambda t: t.update({f"{PACKED}.scales": t[f"{PACKED}.scales"].float()})),
    ("weight is F32 in the checkpoint", lambda t: t.update({f"{PACKED}.weight": torch.zeros(32, 64)})),
    ("weight has shape", lambda t: t.update({f"{PACKED}.weight": t[f"{PACKED}.weight"][:, :-1].contiguous()})),
    ("weight has shape", lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-1].contiguous()})),
    ("scales has shape", lambda t: t.update({f"{PACKED}.scales": t[f"{PACKED}.scales"].flatten()})),
], ids=range(10))
def test_a_damaged_checkpoint_of_packed_layers(folders, tmp_path, name, change):
    folder = changed(folders / "packed", tmp_path / "q", change)
    with pytest.raises((ValueError, RuntimeError), match=name): AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="doesn't fit|expected"): load(folder)


def test_a_shape_that_does_not_fit(folders, tmp_path):
    with pytest.raises((ValueError, RuntimeError)):
        AutoModelForCausalLM.from_pretrained(changed(folders / "q", tmp_path / "q", lambda t: t.update({f"{KEY}.scales": torch.ones(7)})))


@pytest.mark.parametrize("key, value, message", [("format_version", 99, "upgrade tinyq"), ("scheme", "w2a2", "unknown method 'w2a2'"),
                                                 ("modules", ["model.layers.7.mlp.up_proj"], "LlamaForCausalLM lacks"), ("modules", None, "damaged")])
def test_a_config_that_does_not_fit(folders, tmp_path, key, value, message):
    shutil.copytree(folders / "q", tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization_config"][key] = value
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message): AutoModelForCausalLM.from_pretrained(tmp_path / "q")


def test_a_new_head_stays_float_if_asked(folders):
    cls = transformers.AutoModelForSequenceClassification
    with pytest.raises(ValueError, match=r"modules_to_not_convert=\['score'\]"): cls.from_pretrained(folders / "float", quantization_config=TinyqConfig(), num_labels=3)
    model = cls.from_pretrained(folders / "float", quantization_config=TinyqConfig(modules_to_not_convert=["score"]), num_labels=3)
    assert type(model.score) is nn.Linear and len(quantized_paths(model)) == 14


def test_disk(folders, tmp_path):
    "Quantizing while loading can't offload; a finished checkpoint can."
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    for device_map in (places, {"": "disk"}):
        with pytest.raises(ValueError, match="'disk'"):
            AutoModelForCausalLM.from_pretrained(folders / "float", quantization_config=TinyqConfig(), device_map=device_map, offload_folder=tmp_path)
    away = AutoModelForCausalLM.from_pretrained(folders / "q", device_map=places, offload_folder=tmp_path)
    assert away.model.layers[1].mlp.up_proj.weight.is_meta and torch.equal(logits(away), logits(AutoModelForCausalLM.from_pretrained(folders / "q")))
    with pytest.raises(ValueError, match="offloaded"): away.dequantize()


def test_a_device_map_that_turns_out_to_have_a_disk(folders, tmp_path):
    with pytest.raises(ValueError, match="'disk'"):
        AutoModelForCausalLM.from_pretrained(folders / "float", quantization_config=TinyqConfig(), device_map="auto", max_memory={"cpu": 20_000}, offload_folder=tmp_path)


# ---- registering

def python(code, *args):
    out = subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert out.returncode == 0, out.stderr
    return out.stdout.split("\n")


OPEN = """
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
print(type(model.lm_head).__name__, [type(f).__name__ for f in sys.meta_path].count("Finder"))
"""


def test_import_tinyq_is_enough_and_light(folders):
    "For the other order, transformers before tinyq, see the last line of `when_imported`."
    out = python(f"import sys, tinyq\nprint('transformers' in sys.modules)\nfrom transformers import AutoModelForCausalLM\n{OPEN}", folders / "q")
    assert out[:2] == ["False", "W8A16LinearLayer 0"]


def test_a_failure_of_ours_does_not_break_transformers():
    out = python("""
import sys, warnings, tinyq
sys.modules["tinyq.integration"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from transformers.quantizers.auto import AutoHfQuantizer
print(AutoHfQuantizer.__name__, *[w.message for w in caught if "transformers.quantizers.auto" in str(w.message)])
""")
    assert out[0].startswith("AutoHfQuantizer after the import of transformers.quantizers.auto:")


def test_when_imported(tmp_path, monkeypatch):
    from tinyq.registration import when_imported
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("guest_a", "guest_b", "guest_c"): (tmp_path / f"{name}.py").write_text("value = 7\n" if name != "guest_c" else "value = 1 / 0\n")
    heard, before = [], list(sys.meta_path)
    when_imported("guest_a", lambda: heard.append("a"))
    import guest_b
    assert heard == [] and guest_b.value == 7
    import guest_a
    assert heard == ["a"] and guest_a.value == 7 and guest_a.__spec__.name == "guest_a"
    when_imported("guest_a", lambda: heard.append("again"))
    assert heard == ["a", "again"] and sys.meta_path == before
    when_imported("guest_c", lambda: heard.append("c"))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError): import guest_c  # noqa: F401
    (tmp_path / "guest_c.py").write_text("value = 1234567\n")
    import guest_c
    assert heard == ["a", "again", "c"] and guest_c.value == 1234567 and sys.meta_path == before
    when_imported("guest_that_is_not_there", heard.clear)
    with pytest.raises(ModuleNotFoundError): import guest_that_is_not_there  # noqa: F401
    sys.meta_path[:] = before


# ---- what the config of a model says after it was changed

def entry(folder): return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_quantize_then_save_pretrained(name, tmp_path):
    "Quantized, saved by transformers, opened by both; made float again, saved; and what `tinyq.load` opened, saved by transformers."
    quantizer = Quantizer(model := build(name))
    quantizer.quantize("w8a16")
    want, opened = logits(model), lambda folder: type(model).from_pretrained(tmp_path / folder)
    model.save_pretrained(tmp_path / "q")
    ours, _ = load(tmp_path / "q")
    ours.save_pretrained(tmp_path / "again")
    for m in (opened("q"), ours, opened("again"), load(tmp_path / "again")[0]): assert torch.equal(logits(m), want) and same_bits(m, model)
    save_quantized(ours, tmp_path / "saved")
    assert entry(tmp_path / "q") == entry(tmp_path / "again") and entry(tmp_path / "saved").keys() - entry(tmp_path / "q").keys() == {"checksums"} | ({"tied"} if entry(tmp_path / "saved").get("tied") else set())

    quantizer.dequantize().save_pretrained(tmp_path / "float")
    Quantizer(ours).dequantize().save_pretrained(tmp_path / "theirs")
    for folder in ("float", "theirs"):
        assert entry(tmp_path / folder) is None and not quantized_paths(opened(folder)) and torch.equal(logits(opened(folder)), logits(model))
    assert load_file(tmp_path / "float" / "model.safetensors").keys() == load_file(saved(build(name), tmp_path / "plain") / "model.safetensors").keys()


def saved(model, folder):
    model.save_pretrained(folder)
    return folder


def test_a_quantizer_after_from_pretrained(tmp_path):
    "The entry is what the model holds, whoever quantized it."
    build("gpt_neox").save_pretrained(tmp_path / "float")
    def half(): return transformers.GPTNeoXForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TinyqConfig(modules_to_not_convert=["*.mlp.*"]))
    model = half()
    Quantizer(model).quantize("w8a32")
    model.save_pretrained(tmp_path / "q")
    assert entry(tmp_path / "q")["schemes"].keys() == {p for p in entry(tmp_path / "q")["modules"] if ".mlp." in p}
    for again in (AutoModelForCausalLM.from_pretrained(tmp_path / "q"), load(tmp_path / "q")[0]): assert torch.equal(logits(again), logits(model)) and len(quantized_paths(again)) == 9
    back = model.dequantize()
    assert not quantized_paths(back) and entry(saved(back, tmp_path / "back")) is None and not back.is_quantized

    Quantizer(model := half()).dequantize()  # the other way round
    assert entry(saved(model, tmp_path / "there")) is None and not model.is_quantized and torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "there")), logits(model))


def test_a_quantization_that_broke_off(tmp_path):
    def stop(layers):
        for i, layer in enumerate(layers):
            if i == 3: raise KeyboardInterrupt
            yield layer
    model = build("llama")
    with pytest.raises(KeyboardInterrupt): Quantizer(model).quantize("w8a16", progress=stop)
    assert 0 < len(quantized_paths(model)) < 15 and torch.equal(logits(AutoModelForCausalLM.from_pretrained(saved(model, tmp_path / "q"))), logits(model))


def test_configs_that_say_something_else(tmp_path):
    model = build("llama")
    model.config.quantization_config = {"quant_method": "another"}
    with pytest.warns(UserWarning, match="quantization_config of another"): (quantizer := Quantizer(model)).quantize()
    quantizer.dequantize()
    assert model.config.quantization_config == {"quant_method": "another"}
    inner = build("llama")
    Quantizer(inner.model).quantize()  # the config is that of the whole, the paths aren't: loud, at least
    inner.save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="has a quantized layer 'layers.0"): AutoModelForCausalLM.from_pretrained(tmp_path / "q")


def test_checksums(tmp_path):
    "Whatever save_quantized wrote is checked by from_pretrained as well; sharded, too."
    model = Quantizer(build("llama")).quantize("w8a16")
    save_quantized(model, tmp_path / "q", max_shard_size="30KB")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "q")), logits(model))
    shard = sorted((tmp_path / "q").glob("*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    data[-100] ^= 64
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=f"{shard.name} is not the file that was saved"): AutoModelForCausalLM.from_pretrained(tmp_path / "q")
