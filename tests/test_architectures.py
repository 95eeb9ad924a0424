"Any model: nine architectures built from configs with random weights, quantized, run, and counted to the byte."
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import (BertConfig, BertForMaskedLM, CodeGenConfig, CodeGenForCausalLM, GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM,
                          OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM, ViTConfig, ViTForImageClassification, WhisperConfig,
                          WhisperForConditionalGeneration)

from tinyq import (METHODS, QuantizedLinear, Quantizer, W8A16LinearLayer, W8A32LinearLayer, compute_module_sizes, coverage, find_scale_and_zero_point,
                   get_memory_footprint, get_q_scale_symmetric, linear_dequantization, linear_dequantization_per_group, linear_q, linear_q_symmetric,
                   linear_q_symmetric_per_channel, linear_q_symmetric_per_group, linear_q_with_eval, linear_q_with_scale_and_zero_point,
                   replace_linear_with_target, replace_linear_with_target_and_quantize, w8_a16_forward, w8_a32_forward)
from tinyq.replace import memory_key

IDS = torch.arange(3, 43).reshape(2, 20)
CODEGEN = dict(vocab_size=51200, n_positions=2048, n_ctx=2048, n_embd=1024, n_layer=20, n_head=16, rotary_dim=32)  # Salesforce/codegen-350M-mono
QWEN = dict(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
            tie_word_embeddings=True)  # Qwen/Qwen2-1.5B
FEW = dict(num_hidden_layers=2, num_attention_heads=4)


class Cnn(nn.Module):
    "A plain convolutional network with a linear head."
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32), nn.ReLU())
        self.pool, self.classifier = nn.AdaptiveAvgPool2d(4), nn.Sequential(nn.Flatten(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, x): return self.classifier(self.pool(self.features(x)))


def text(cls, config): return lambda: (cls(config), {"input_ids": IDS})


# name -> a maker of model and inputs, and how many layers are quantized in it. Two blocks each; widths are the real ones where that is quick.
MODELS = {
    "OPT-125m": (text(OPTForCausalLM, OPTConfig(num_hidden_layers=2)), 2 * 6),  # q, k, v, out, fc1, fc2; the head is tied
    "CodeGen-350M": (text(CodeGenForCausalLM, CodeGenConfig(**CODEGEN | {"n_layer": 2, "vocab_size": 5000})), 2 * 4 + 1),
    "Qwen2": (text(Qwen2ForCausalLM, Qwen2Config(**QWEN | FEW | dict(hidden_size=256, intermediate_size=1024, vocab_size=1000))), 2 * 7),
    "GPT-2": (text(GPT2LMHeadModel, GPT2Config(n_layer=2, vocab_size=5000)), 2 * 4),  # Conv1D, all of them
    "BERT": (text(BertForMaskedLM, BertConfig(num_hidden_layers=2, vocab_size=5000)), 2 * 6 + 1),
    "ViT": (lambda: (ViTForImageClassification(ViTConfig(num_hidden_layers=2, num_labels=10)), {"pixel_values": torch.randn(2, 3, 224, 224)}), 2 * 6 + 1),
    "Whisper": (lambda: (WhisperForConditionalGeneration(WhisperConfig(encoder_layers=2, decoder_layers=2, d_model=256, encoder_ffn_dim=512, decoder_ffn_dim=512,
        encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=1000, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None)), {"input_features": torch.randn(2, 80, 3000), "decoder_input_ids": IDS}), 2 * 6 + 2 * 10),
    # every token goes to every expert: a choice that flips would be no rounding error
    "Mixtral": (text(MixtralForCausalLM, MixtralConfig(**FEW, num_key_value_heads=2, hidden_size=128, intermediate_size=256, num_local_experts=4,
        num_experts_per_tok=4, vocab_size=1000)), 2 * 4 + 1),
    "CNN": (lambda: (Cnn(), {"x": torch.randn(4, 3, 64, 64)}), 2),
}


def build(name):
    torch.manual_seed(0)
    model, inputs = MODELS[name][0]()
    return model.eval(), inputs


@torch.no_grad()
def logits(model, inputs):
    out = model(**inputs)
    return getattr(out, "logits", out).float()


@pytest.mark.parametrize("method", ["w8a16", "w8a32"])
@pytest.mark.parametrize("name", MODELS)
def test_quantize_run_close_report(name, method):
    """Close: a row of K Gaussian weights has its loudest near 3.5 standard deviations, so a step is 3.5/127 of one, and rounding adds a step/sqrt(12) to each
    weight: 0.8% of what the layer puts out. Errors of different layers are independent, so those of n layers add up to at most 1% * sqrt(n) of the logits."""
    model, inputs = build(name)
    want, before = logits(model, inputs), get_memory_footprint(model)
    held = {memory_key(t) for t in (*model.parameters(), *model.buffers())}
    holders = {path for path, m in model.named_modules() if {memory_key(t) for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))} & held}
    quantizer = Quantizer(model)
    quantized = quantizer.quantize(method)
    rows = {r.path: r for r in quantizer.report()}

    got, n = logits(quantized, inputs), sum(isinstance(m, METHODS[method]) for m in quantized.modules())
    error = ((got - want).norm() / want.norm()).item()
    assert n == MODELS[name][1] == sum(r.scheme == method for r in rows.values())
    assert got.isfinite().all() and 1e-4 < error < .01 * math.sqrt(n)

    assert set(rows) == holders and sum(r.before for r in rows.values()) == before  # every byte is in some row
    assert sum(r.after for r in rows.values()) == get_memory_footprint(quantized) == compute_module_sizes(quantized)[""] < before
    for path, r in rows.items():
        if r.scheme: assert r.skipped is None and 36 < r.sqnr < 55
        else: assert r.skipped and r.sqnr is None and r.before == r.after


def test_what_is_left_in_float_is_named():
    model, _ = build("Mixtral")
    rows = {c.path: c for c in coverage(model)}
    experts = [c for c in rows.values() if c.kind == "MixtralExperts"]
    assert [c.path for c in experts] == [f"model.layers.{i}.mlp.experts" for i in (0, 1)]
    for c in experts:
        assert c.skipped == "3-D weights, as fused experts are: gate_up_proj, down_proj" and c.nbytes == 4 * c.params == 4 * 4 * (3 * 128 * 256)
    assert not any(c.kind == "Conv1D" and c.skipped for c in coverage(build("GPT-2")[0]))
    for name, head, tied in (("OPT-125m", "lm_head", "model.decoder.embed_tokens"), ("GPT-2", "lm_head", "transformer.wte"), ("Qwen2", "lm_head", "model.embed_tokens"),
                             ("BERT", "cls.predictions.decoder", "bert.embeddings.word_embeddings"), ("Whisper", "proj_out", "model.decoder.embed_tokens")):
        assert {c.path: c.skipped for c in coverage(build(name)[0])}[head] == f"shares its weight with {tied}"


@pytest.mark.parametrize("name", ["OPT-125m", "CodeGen-350M", "Qwen2", "GPT-2", "Mixtral"])
def test_it_generates(name):
    model, inputs = build(name)
    Quantizer(model).quantize("w8a16")
    first = {k: v[:1] for k, v in inputs.items()}
    out = model.generate(**first, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0)
    assert out.shape == (1, 24) and torch.equal(out[:, :20], IDS[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_models(dtype):
    "The error of the codes, and that of 16-bit arithmetic, which the float model has too."
    model, inputs = build("GPT-2")
    want = logits(model, inputs)
    plain = (logits(model.to(dtype), inputs) - want).norm() / want.norm()
    quantized = (logits(Quantizer(model).quantize("w8a16"), inputs) - want).norm() / want.norm()
    assert next(model.parameters()).dtype == dtype and quantized < math.hypot(.01 * math.sqrt(8), 2 * plain)


# ---- counts of real models, on the meta device: shapes without numbers

def on_meta(cls, config):
    with torch.device("meta"): return cls(config)


def quantizable(model, *exclude): return [c.path for c in coverage(model, exclude) if c.skipped is None]


def test_codegen_350m_to_the_byte():
    "Both counts of the tutorial. transformers 5 counts 20 rotary tables that were no buffers then; without them both are exact."
    model = on_meta(CodeGenForCausalLM, CodeGenConfig(**CODEGEN))
    assert sum(type(m) is nn.Linear for m in model.modules()) == len(quantizable(model)) == 81 and len(quantizable(model, "lm_head")) == 80
    rotary = sum(b.nbytes for name, b in model.named_buffers() if name.endswith("embed_positions"))
    assert rotary in (0, 20 * 2048 * 32 * 4)
    before = get_memory_footprint(model)
    replace_linear_with_target(model, W8A16LinearLayer, ["lm_head"])
    assert (before - rotary, get_memory_footprint(model) - rotary) == (1_426_849_792, 672_612_352)
    assert type(model.lm_head) is nn.Linear and type(model.transformer.h[19].mlp.fc_out) is W8A16LinearLayer
    assert sum(c.nbytes for c in coverage(model)) == get_memory_footprint(model)


@pytest.mark.parametrize("make, linears, params, head", [
    (lambda: on_meta(OPTForCausalLM, OPTConfig()), 12 * 6, 125_239_296, "lm_head"),
    (lambda: on_meta(Qwen2ForCausalLM, Qwen2Config(**QWEN)), 28 * 7, 1_543_714_304, "lm_head"),
    (lambda: on_meta(GPT2LMHeadModel, GPT2Config()), 12 * 4, 124_439_808, "lm_head"),
    (lambda: on_meta(BertForMaskedLM, BertConfig()), 12 * 6 + 1, 109_514_298, "cls.predictions.decoder"),
], ids=["OPT-125m", "Qwen2-1.5B", "GPT-2", "BERT base"])
def test_counts_of_real_sizes(make, linears, params, head):
    model = make()
    rows = coverage(model)
    assert len(quantizable(model)) == linears and sum(c.params for c in rows) == params == sum(p.numel() for p in model.parameters())
    assert next(c for c in rows if c.path == head).skipped.startswith("shares its weight") and sum(c.nbytes for c in rows) == get_memory_footprint(model)
    saved = sum(c.nbytes for c in rows if c.skipped is None)
    replace_linear_with_target(model, W8A16LinearLayer)
    assert sum(isinstance(m, QuantizedLinear) for m in model.modules()) == linears
    assert sum(c.nbytes for c in rows) - get_memory_footprint(model) > .7 * saved


# ---- the tutorial's listings: names, arguments and printed results. (Its dummy model is in test_replace.py.)

T = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
CHANNELS = torch.tensor([[191.6, -13.5, 728.6], [92.14, 295.5, -184], [0, 684.6, 245.5]])


def test_listing_scale_and_zero_point():
    q = linear_q_with_scale_and_zero_point(T, 10, -90)
    r = linear_dequantization(q, 10, -90)
    assert q.dtype == torch.int8 and r.tolist() == [[0, 0, 0], [0, 0, 10], [10, 10, 10]]
    assert (r - T).square().mean().item() == pytest.approx(9.4444, abs=5e-5)
    naive = linear_q_with_scale_and_zero_point(T, 8 / 255, -128)  # the zero point -160 clamped: what the tutorial prints
    assert naive.tolist() == [[-96, -64, -32], [-1, 31, 63], [95, 127, 127]]
    unclamped = linear_q_with_scale_and_zero_point(T, 8 / 255, -160)
    assert unclamped.tolist() == [[-128, -96, -64], [-33, -1, 31], [63, 95, 127]]
    assert (linear_dequantization(unclamped, 8 / 255, -160) - T).square().mean().item() == pytest.approx(7.6893e-05, abs=1e-9)


def test_listing_linear_q():
    scale, zero_point = find_scale_and_zero_point(tensor=T)  # the range holds 0 here: 9/255 and -128 instead of 8/255 and -160
    assert float(scale) == pytest.approx(9 / 255) and int(zero_point) == -128
    out = linear_q_with_eval(tensor=T)
    assert set(out) == {"Quantized Tensor", "Dequantized Tensor", "Quantization Error"} and torch.equal(out["Quantized Tensor"], linear_q(T))
    assert torch.equal(out["Dequantized Tensor"], linear_dequantization(linear_q(T), scale, zero_point))
    assert out["Quantization Error"].item() == (out["Dequantized Tensor"] - T).square().mean().item() < (9 / 255) ** 2 / 4


def test_listing_symmetric():
    torch.manual_seed(0)
    x = torch.randn((4, 4))
    q, scale = linear_q_symmetric(tensor=x)
    assert scale == get_q_scale_symmetric(tensor=x) == pytest.approx(x.abs().max().item() / 127) and q.abs().max() == 127
    rows, by_row = linear_q_symmetric_per_channel(input_tensor=CHANNELS, dim=0)
    assert rows.tolist() == [[33, -2, 127], [40, 127, -79], [0, 127, 46]] and by_row.shape == (3, 1)
    columns, by_column = linear_q_symmetric_per_channel(input_tensor=CHANNELS, dim=1)
    assert columns.tolist() == [[127, -3, 127], [61, 55, -32], [0, 127, 43]] and by_column.shape == (1, 3)
    assert by_row.flatten().tolist() == pytest.approx([5.7370, 2.3268, 5.3906], abs=5e-5) and by_column.flatten().tolist() == pytest.approx([1.5087, 5.3906, 5.7370], abs=5e-5)
    assert (by_row * rows - CHANNELS).square().mean().item() == pytest.approx(1.8084, abs=5e-5)


def test_listing_per_group():
    torch.manual_seed(0)
    x = torch.rand((4, 128))
    q, scale = linear_q_symmetric_per_group(tensor=x, group_size=32)
    assert q.shape == x.shape and scale.numel() == 16
    assert (linear_dequantization_per_group(q, scale, 32) - x).square().mean() < 1e-5  # the tutorial prints 4.8609e-06 for other numbers


def test_listing_w8_a32():
    torch.manual_seed(0)
    x, weight = torch.rand((3, 3)), torch.rand((3, 3))
    q_w, s_w = linear_q_symmetric(tensor=weight, dtype=torch.int8)
    assert torch.allclose(w8_a32_forward(x, q_w, s_w, 0), x @ weight.T, atol=s_w / 2 * x.sum(1).max().item())


def test_listing_w8_a16():
    torch.manual_seed(0)
    weights, x = torch.randint(low=-127, high=127, size=(32, 16), dtype=torch.int8), torch.randn((1, 16), dtype=torch.float16)
    scales, bias = torch.randn((1, 32), dtype=torch.float16), torch.randn((1, 32), dtype=torch.float16)
    without, out = w8_a16_forward(weights=weights, inputs=x, scales=scales), w8_a16_forward(weights=weights, inputs=x, scales=scales, bias=bias)
    want = x.double() @ weights.double().T * scales.double()
    assert out.shape == without.shape == (1, 32) and out.dtype == torch.float16
    assert torch.allclose(without.double(), want, rtol=2e-3, atol=.5) and torch.allclose(out.double(), want + bias.double(), rtol=2e-3, atol=.5)


def test_listing_layer():
    layer = W8A16LinearLayer(in_features=16, out_features=32)
    assert layer(torch.randn((1, 8, 16), dtype=torch.float16)).shape == (1, 8, 32)
    torch.manual_seed(0)
    layer, weights = W8A16LinearLayer(8, 4), torch.randn(4, 8)  # the tutorial puts this weight into a layer of the shape (4, 8): that is refused here
    int8_weights, scales = layer.quantize(weights)
    assert layer.int8_weights.shape == (4, 8) and layer.scales.shape == (4,) and (layer.int8_weights.dtype, layer.scales.dtype) == (torch.int8, torch.float32)
    dequantized = int8_weights.to(torch.float32) * scales.unsqueeze(1)
    assert torch.isclose(weights, dequantized, atol=1e-02).all() and (dequantized - weights).abs().sum() < .2
    with pytest.raises(ValueError, match="shape"): W8A16LinearLayer(4, 8).quantize(weights)


def test_listing_quantizer(tmp_path):
    model, inputs = build("OPT-125m")
    quantizer = Quantizer(model)
    quantized_model = quantizer.quantize(q_method="w8a32")
    assert quantized_model is quantizer.quantized_model and any(isinstance(m, W8A32LinearLayer) for m in quantized_model.modules())
    quantizer.save_model(str(tmp_path / "my_quantized_model_weights.pth"))
    fresh = replace_linear_with_target(build("OPT-125m")[0], W8A32LinearLayer)
    fresh.load_state_dict(torch.load(tmp_path / "my_quantized_model_weights.pth"))
    assert torch.equal(logits(fresh, inputs), logits(quantized_model, inputs))


def test_listing_skeleton_on_meta():
    "Quantize, save, make an empty model, swap its layers, load: all keys match."
    model, _ = build("CodeGen-350M")
    replace_linear_with_target_and_quantize(model, W8A16LinearLayer, ["lm_head"])
    skeleton = on_meta(CodeGenForCausalLM, model.config)
    replace_linear_with_target(skeleton, W8A16LinearLayer, ["lm_head"])
    assert all(p.is_meta for p in skeleton.parameters()) and "lm_head): Linear(in_features=1024" in repr(skeleton)
    assert str(skeleton.load_state_dict(model.state_dict(), strict=True, assign=True)) == "<All keys matched successfully>"
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), skeleton.state_dict().values()))
    if hasattr(model, "get_memory_footprint"): assert model.get_memory_footprint() == get_memory_footprint(model)


# ---- the whole of Qwen2-1.5B: seconds to minutes and 3 GB

FULL = """
import resource, time, torch, tinyq
from transformers import Qwen2Config, Qwen2ForCausalLM
config = Qwen2Config(**{config}, dtype="bfloat16")
with torch.device("meta"): model = Qwen2ForCausalLM(config).to(torch.bfloat16)
model = model.to_empty(device="cpu").eval()
torch.manual_seed(0)
for name, p in model.named_parameters(): p.data.normal_(std=.02) if p.ndim > 1 else p.data.fill_("norm" in name)
model.model.rotary_emb = type(model.model.rotary_emb)(config)
model.tie_weights()
ids = torch.arange(3, 23)[None]
with torch.no_grad(): want = model(ids).logits.float()
float_bytes, base = tinyq.get_memory_footprint(model), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
start = time.perf_counter()
quantizer = tinyq.Quantizer(model)
quantizer.quantize("w8a16")
seconds = time.perf_counter() - start
added = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - base
with torch.no_grad(): got = model(ids).logits.float()
error = ((got - want).norm() / want.norm()).item()
print(float_bytes, tinyq.get_memory_footprint(model), sum(r.scheme == "w8a16" for r in quantizer.report()), added, error, seconds)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_the_whole_of_qwen2(request):
    if "slow" not in (request.config.getoption("-m") or "") and not os.environ.get("TINYQ_SLOW"): pytest.skip("run with -m slow")
    out = subprocess.run([sys.executable, "-c", FULL.replace("{config}", repr(QWEN))], capture_output=True, text=True, timeout=1200)
    assert out.returncode == 0, out.stderr
    print(out.stdout)
    before, after, n, added, error, _ = map(float, out.stdout.split()[-6:])
    assert n == 28 * 7 and added < .15 * before and after < .58 * before
    assert error < .01 * math.sqrt(n)
