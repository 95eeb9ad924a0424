"""Layers and tables of few bits: every scheme against its reference, in PyTorch's hands, tied, mixed, and given what does not fit.

Run as a program (`python test_low_bit.py fence`), it does the check that needs a process of its own."""
import copy
import getpass
import io
import pickle
import shutil
import subprocess
import sys
import tempfile
import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from test_kernels import fenced
from torch import nn

import tinyq
from tinyq import (PACKED_KERNELS, Packing, QTensor, Quantizer, Scheme, W8A16LinearLayer, explain_layer, get_memory_footprint, layer_class, only, packed_linear, quantize_tensor,
                   quantize_weight, real_weight)
from tinyq.low_bit import PackedEmbedding, PackedLinear, QuantizedEmbedding, int4pack_fits, make_class, scale_dtype

FLOATS = torch.float32, torch.bfloat16, torch.float16
OURS = "dequantize in blocks", "int4pack"  # the others may take inputs as 16-bit codes
SCHEMES = [f"w{b}a{a}{g}{z}" for b, a, g, z in product(range(1, 9), (16, 32), ("", "-g32", "-g64", "-g100", "-g128"), ("", "-asym"))]
PACKED = [s for s in SCHEMES if s not in ("w8a16", "w8a32")]


@pytest.fixture(autouse=True)
def seeded(): torch.manual_seed(0)


def make(scheme, in_features=200, out_features=24, bias=True, dtype=torch.float32):
    return layer_class(scheme).from_linear(nn.Linear(in_features, out_features, bias=bias, dtype=dtype))


def allowed(kernel, x, q, bias=None):
    "The product in float64, and how far from it rounding may lead (as in test_kernels), for each output."
    w, h, info = q.dequantize().double(), x.double(), torch.finfo(x.dtype)
    b, u = torch.zeros(len(w)).double() if bias is None else bias.double(), info.eps / 2
    lost = 2.**-24 if info.dtype == "float16" else info.tiny  # what may be rounded to 0
    room = (3*u / (1 - 3*u) + x.shape[1] * 2.**-23) * (h.abs() @ w.abs().t() + b.abs()) + lost * (h.abs().sum(1, keepdim=True) + w.abs().sum(1) + 2)
    spread = lambda t: t.repeat_interleave(min(q.group_size or q.columns, q.columns), 1)[:, :q.columns]
    z = torch.zeros_like(w) if q.zero_point is None else spread(q.int_zero_point().double())
    scale = spread(q.scale.double()).abs()
    if kernel == "int4pack": room += h.abs() @ (2.**-8 * z.abs() * scale).t()  # it keeps -scale * zero point as a bfloat16
    if kernel not in OURS and len(x):  # half a step of each input, times codes and, apart from them, zero points
        room += (h.abs().amax(1, keepdim=True) / 65024 * 1.01 + torch.finfo(torch.float32).tiny) * w.abs().sum(1)
        room += x.shape[1] * 2.**-23 * (h.abs() @ ((w.abs() + z.abs() * scale)).t())
    return h @ w.t() + b, room


def hold(kernel, x, q, bias=None):
    "Run a kernel if it serves; whether it did. Its result must be one that rounding explains."
    if kernel.why_not(x, q) is not None: return False
    y, (want, room) = kernel.run(x, q, bias), allowed(kernel.name, x, q, bias)
    assert y.dtype == x.dtype and y.shape == want.shape
    off = (y.double() - want).abs()
    assert (off <= room).all(), (kernel.name, x.dtype, tuple(x.shape), q, (off / room).max().item())
    return True


def same_state(a, b): return a.state_dict().keys() == b.state_dict().keys() and all(t.dtype == b.state_dict()[k].dtype and torch.equal(t, b.state_dict()[k]) for k, t in a.state_dict().items())


# every scheme

@pytest.mark.parametrize("scheme", PACKED)
def test_a_layer_is_its_reference(scheme):
    layer, s = make(scheme), Scheme.parse(scheme)
    assert type(layer) is layer_class(scheme) is make_class(s) is getattr(tinyq.low_bit, type(layer).__name__) and layer.scheme == s
    assert {k: (v.shape, v.dtype) for k, v in layer.state_dict().items() if k != "bias"} == {k: (torch.Size(v[0]), v[1]) for k, v in layer.form().items()}
    assert set(layer.form()) == {"weight", "scales", *["zeros"] * (not s.symmetric)}
    q = layer.qtensor
    assert q.packing == Packing(s.weight_bits) and q.nbytes == sum(t.nbytes for k, t in layer.state_dict().items() if k != "bias")
    assert torch.equal(real_weight(q.codes, q.scale, q.zero_point, s, 200), q.dequantize())
    for dtype, rows in product(FLOATS, (0, 1, 3, 40)):
        x = torch.randn(rows, 200).to(dtype)
        with torch.no_grad(): y = layer(x)
        want, room = allowed("any", x, q, layer.bias)  # a32: rounded twice, but from float32 sums
        assert y.dtype == dtype and y.shape == (rows, 24) and ((y.double() - want).abs() <= room).all()
        for kernel in PACKED_KERNELS.complete(): hold(kernel, x, q, layer.bias)


@pytest.mark.parametrize("scheme", PACKED)
def test_what_is_saved_comes_back_bit_for_bit(scheme):
    layer = make(scheme)
    x = torch.randn(3, 200)
    want = layer(x)
    torch.save(layer.state_dict(), file := io.BytesIO())
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for assign in (False, True):
        new = layer_class(scheme)(200, 24)
        new(x)  # so that there is a view of the old tensors
        new.load_state_dict(state, assign=assign)
        assert same_state(new, layer) and torch.equal(new(x), want)
    for new in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(new) is type(layer) and same_state(new, layer) and torch.equal(new(x), want) and new.weight.data_ptr() != layer.weight.data_ptr()
    again = layer_class(scheme)(200, 24)
    again.quantize(layer.dequantize().weight)
    assert again.weight.shape == layer.weight.shape
    assert torch.equal(layer.dequantize().weight, layer.qtensor.dequantize()) and torch.equal(layer.int8_weights, layer.qtensor.int_codes())


@pytest.mark.parametrize("scheme", ["w4a16-g64", "w3a16", "w2a16-g32-asym", "w1a16-g100", "w8a16-g64"])
def test_the_grid_is_never_worse_than_round_to_nearest(scheme):
    w = torch.randn(24, 200)
    near = quantize_tensor(w, scheme, scale_dtype=scale_dtype(Scheme.parse(scheme)))
    error = lambda q: (q.dequantize() - w).square().sum()
    q = quantize_weight(w, scheme)
    assert error(q) <= error(near) * (1 + 1e-6) and q.packing
    assert torch.equal(q.unpack().dequantize(), q.dequantize())


# the view, and the copy that a kernel keeps

def fresh(layer, x):
    "Whether the layer computes with the tensors that it holds now."
    g, shape = layer.scheme.group_size, (layer.out_features, layer.in_features)
    q = QTensor(layer.weight.detach().clone(), layer.scales.clone(), None, layer.scheme.weight_bits, g, torch.Size(shape), packing=Packing(layer.scheme.weight_bits))
    y, (want, room) = layer(x), allowed("int4pack", x, q, layer.bias)
    return ((y.double() - want).abs() <= room).all().item()


def swap_in_place(layer, other): layer.load_state_dict(other.state_dict())
def swap_by_assign(layer, other): layer.load_state_dict(other.state_dict(), assign=True)
def swap_weight(layer, other): layer.weight, layer.scales = nn.Parameter(other.weight.data.clone(), requires_grad=False), other.scales.clone()
def swap_data(layer, other): layer.weight.data, layer.scales = other.weight.data.clone(), other.scales.clone()
def write_codes(layer, other):
    with torch.no_grad(): layer.weight.copy_(other.weight)
def write_scales(layer, other): layer.scales.mul_(3)
def write_a_row(layer, other):
    with torch.no_grad(): layer.weight[3] = 0
def quantize_again(layer, other): layer.quantize(torch.randn(32, 128))
def move(layer, other): layer.to("meta").to_empty(device="cpu").load_state_dict(other.state_dict())
def cast(layer, other): layer.float().bfloat16()


@pytest.mark.parametrize("names", [("int4pack",), ()], ids=["int4pack", "in blocks"])
@pytest.mark.parametrize("change", [swap_in_place, swap_by_assign, swap_weight, swap_data, write_codes, write_scales, write_a_row, quantize_again, move, cast])
def test_a_layer_computes_with_what_it_holds(change, names):
    layer, other = (make("w4a16-g64", 128, 32, dtype=torch.bfloat16) for _ in range(2))
    x = torch.randn(2, 128).bfloat16()
    with only(*names), torch.no_grad():
        before = layer(x)
        assert layer.qtensor is layer.qtensor and fresh(layer, x)
        change(layer, other)
        assert fresh(layer, x)
        assert torch.equal(layer(x), before) == (change is cast)


def test_functional_call_and_the_view():
    layer, other = (make("w4a16-g64", 128, 32) for _ in range(2))
    x = torch.randn(2, 128)
    a, b = layer(x), other(x)
    for _ in range(2):
        assert torch.equal(torch.func.functional_call(layer, dict(other.state_dict()), (x,)), b)
        assert torch.equal(layer(x), a)


def test_the_packed_copy_is_not_saved_and_not_copied():
    layer = make("w4a16-g64", 128, 32, dtype=torch.bfloat16)
    x = torch.randn(2, 128).bfloat16()
    if int4pack_fits(x, layer.qtensor) is not None: pytest.skip("int4pack can't serve here")
    with only("int4pack"), torch.no_grad(): layer(x)
    assert "_int4pack" in vars(layer.qtensor)
    assert set(layer.state_dict()) == {"weight", "scales", "bias"} and "_view" not in layer.__getstate__()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))): assert "_view" not in vars(twin) and "_int4pack" not in vars(twin.qtensor)
    assert len(pickle.dumps(layer)) < 3 * get_memory_footprint(layer)


def test_int4pack_takes_no_inference_tensors():
    with torch.inference_mode(): layer = make("w4a16-g64", 128, 32, dtype=torch.bfloat16)
    why = dict(explain_layer(layer, torch.randn(2, 128).bfloat16()))["int4pack"]
    assert "inference" in why or "AVX" in why
    x = torch.randn(2, 128).bfloat16()
    assert layer(x).isfinite().all()
    layer = make("w4a16-g64", 128, 32, dtype=torch.bfloat16)
    with torch.inference_mode(): layer.scales = layer.scales * 2
    with torch.no_grad(): assert layer(x).isfinite().all()


# in PyTorch's hands

@pytest.mark.parametrize("act", [16, 32])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_autocast_gives_what_the_8_bit_layer_gives(act, to, dtype):
    layer, eight = make(f"w4a{act}-g64"), make(f"w8a{act}")
    x = torch.randn(5, 200).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=to): y, z = layer(x), eight(x)
    assert y.dtype == z.dtype
    want = x.double() @ layer.qtensor.dequantize().double().t() + layer.bias.double()
    assert (y.double() - want).abs().max() < 2e-2 * want.abs().max()
    y.float().sum().backward()
    assert x.grad.dtype == dtype and x.grad.abs().sum() > 0


@pytest.mark.parametrize("scheme", ["w4a16-g64", "w4a32-g64", "w3a16-g100-asym", "w2a16", "w1a16-asym", "w5a16-g64", "w8a16-g64"])
def test_compiled_without_breaks(scheme):
    layer, x = make(scheme), torch.randn(2, 3, 200)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    want, room = allowed("any", x.flatten(0, 1), layer.qtensor, layer.bias)
    for _ in range(2): assert ((compiled(x).flatten(0, 1).double() - want).abs() <= room).all()
    with torch.autocast("cpu", dtype=torch.bfloat16): assert compiled(x).dtype == torch.bfloat16
    torch._dynamo.reset()


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="needs a C++ compiler")
def test_compiled_to_machine_code(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}")
    torch._dynamo.reset()
    layers = [make(s, 130, 10) for s in ("w3a16-g64-asym", "w4a16-g100")]  # with ragged groups, for which a repeat_interleave in the graph gave garbage
    x = torch.randn(3, 130)
    with torch.no_grad(): ys = torch.compile(lambda x: [layer(x) for layer in layers], fullgraph=True)(x)
    for layer, y in zip(layers, ys):
        want, room = allowed("any", x, layer.qtensor, layer.bias)
        assert ((y.double() - want).abs() <= room).all()
    torch._dynamo.reset()


@pytest.mark.parametrize("scheme", ["w4a16-g64", "w3a32-g100-asym", "w2a16"])
def test_the_gradient_reaches_the_input(scheme):
    layer, x = make(scheme), torch.randn(3, 200, requires_grad=True)
    layer(x).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    layer.dequantize()(other).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-4)
    scales = layer.scales.float().requires_grad_()  # and, by functional_call, the scales
    torch.func.functional_call(layer, {"scales": scales}, (x.detach(),)).sum().backward()
    assert scales.grad.abs().sum() > 0


def test_vmap_over_inputs():
    layer, x = make("w4a16-g64-asym"), torch.randn(5, 3, 200)
    torch.testing.assert_close(torch.vmap(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


def test_vmap_over_layers():
    x = torch.randn(5, 3, 200)
    layers = [make("w4a16-g64-asym") for _ in range(3)]
    params, buffers = torch.func.stack_module_state(layers)
    together = torch.vmap(lambda p, b: torch.func.functional_call(layers[0], (p, b), (x[0],)))(params, buffers)
    torch.testing.assert_close(together, torch.stack([m(x[0]) for m in layers]), rtol=1e-4, atol=1e-4)


def test_meta_and_exported():
    layer = make("w3a16-g64").eval()
    assert layer.to("meta")(torch.empty(2, 200, device="meta")).shape == (2, 24)
    layer = make("w3a16-g64").eval()
    program = torch.export.export(layer, (torch.randn(3, 200),))
    assert set(program.state_dict) == {"weight", "scales", "bias"}
    torch.testing.assert_close(program.module()(x := torch.randn(3, 200)), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", ["w4a16-g64", "w4a32-g64-asym", "w3a16"])
def test_what_a_layer_refuses(scheme):
    layer = make(scheme)
    with pytest.raises(ValueError, match=r"\(2, 199\).*200 inputs"): layer(torch.randn(2, 199))
    with pytest.raises(TypeError, match="int64"): layer(torch.ones(2, 200, dtype=torch.int64))
    with pytest.raises(ValueError): layer(torch.tensor(1.))
    with pytest.raises(ValueError, match="nan"): layer.quantize(torch.full((24, 200), float("nan")))
    state, before = layer.state_dict(), copy.deepcopy(layer)
    for change in [{"weight": state["weight"][:, :9]}, {"weight": state["weight"].view(torch.int8)}, {"scales": state["scales"][:, :0]}, {"scales": state["scales"].half()},
                   {"bias": state["bias"][:3]}, nn.Linear(200, 24).state_dict(), make("w8a16").state_dict(), make("w5a16-g64").state_dict()]:
        with pytest.raises(RuntimeError, match="expected|Missing|size"): layer.load_state_dict(change if len(change) > 1 else state | change)
        assert same_state(layer, before)


@pytest.mark.parametrize("name, words", [("w9a16", "unknown method"), ("w0a16", "unknown method"), ("w4a16-g0", "unknown method"), ("w4a8-g64", "8-bit activations"), ("w4a16-tensor", "a scale a row")])
def test_schemes_without_layers(name, words):
    with pytest.raises(ValueError, match=words): layer_class(name)
    m = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match=words): Quantizer(m).quantize(name)
    assert type(m[0]) is nn.Linear


def test_names_of_classes():
    for s in ("w4a16-g128", "w3a32-g64-asym", "w8a16-g32-symf", "w4a16-symr", "w1a16"):
        for embedding in (False, True):
            cls = layer_class(s, embedding)
            assert cls is layer_class(s, embedding) and getattr(tinyq.low_bit, cls.__name__) is cls and pickle.loads(pickle.dumps(cls)) is cls
    assert layer_class("w4a16-g128").__name__ == "W4A16G128LinearLayer" and layer_class("w4a16-g128-asym", True).__name__ == "W4A16G128AsymEmbedding"
    assert layer_class("W8A16") is W8A16LinearLayer
    for wrong in ("W9A16LinearLayer", "W4A16G128", "W4A8LinearLayer", "W4A16G0LinearLayer", "nothing"):
        with pytest.raises(AttributeError): getattr(tinyq.low_bit, wrong)


# tables of rows

TABLES = ["w8a16", "w4a16-g64", "w4a16-g32-asym", "w3a16", "w2a16-g100", "w1a16-g64"]


@pytest.mark.parametrize("scheme", TABLES)
def test_an_embedding_is_its_rows(scheme):
    float_ = nn.Embedding(50, 200, padding_idx=3, dtype=torch.bfloat16)
    table = layer_class(scheme, True).from_embedding(float_)
    rows, ids = table.qtensor.dequantize(torch.bfloat16), torch.tensor([[0, 49, 3], [7, 7, 1]])
    assert isinstance(table, QuantizedEmbedding) and isinstance(table, PackedEmbedding) == (scheme != "w8a16")
    for i in (ids, ids.int(), ids[0, 0], ids[:, ::2], ids[:0], torch.empty(0, dtype=torch.int64)):
        assert torch.equal(table(i), rows[i.long()]) and table(i).dtype == torch.bfloat16 and table(i).shape == float_(i).shape
    assert torch.equal(torch.compile(table, fullgraph=True, backend="eager")(ids), rows[ids])
    back = table.dequantize()
    assert type(back) is nn.Embedding and back.padding_idx == 3 and torch.equal(back.weight, rows) and back.weight.requires_grad
    assert table.to(torch.float32)(ids).dtype == torch.float32
    new = layer_class(scheme, True)(200, 50)
    new.load_state_dict(table.state_dict())
    for twin in (new, copy.deepcopy(table), pickle.loads(pickle.dumps(table))): assert torch.equal(twin(ids).float(), table(ids).float())
    assert f"{scheme}" in repr(table) and "50" in repr(table)
    torch._dynamo.reset()


def test_vmap_over_ids():
    table, ids = layer_class("w4a16-g64", True).from_embedding(nn.Embedding(50, 200)), torch.tensor([[0, 49, 3], [7, 7, 1]])
    assert torch.equal(torch.vmap(table)(ids), table(ids))


@pytest.mark.parametrize("scheme", TABLES)
@pytest.mark.parametrize("bad", [50, -1, -51, 10**9])
def test_ids_that_are_none(scheme, bad):
    float_ = nn.Embedding(50, 200)
    table = layer_class(scheme, True).from_embedding(float_)
    for ids in (torch.tensor([1, bad]), torch.tensor(bad), torch.tensor([[bad]], dtype=torch.int32)):
        for m in (float_, table):
            with pytest.raises(IndexError): m(ids)


def test_ids_of_a_wrong_dtype():
    table = layer_class("w4a16-g64", True).from_embedding(nn.Embedding(50, 200))
    for ids in (torch.ones(2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises((TypeError, RuntimeError, IndexError)): table(ids)


class Odd(nn.Embedding): pass


def test_embeddings_that_are_refused():
    cls = layer_class("w4a16-g64", True)
    for m, words in ((Odd(5, 8), "Odd"), (nn.Embedding(5, 8, max_norm=1.), "max_norm"), (nn.Linear(5, 8), "Linear")):
        with pytest.raises(TypeError, match=words): cls.from_embedding(m)
    with pytest.raises(TypeError): layer_class("w4a16-g64").from_linear(nn.Embedding(5, 8))
    model = nn.Sequential(nn.Embedding(5, 8, max_norm=1.), nn.Linear(8, 8))
    q = Quantizer(model)
    q.quantize("w4a16-g64", embeddings=True)
    assert type(model[0]) is nn.Embedding and q.report()[0].skipped and isinstance(model[1], PackedLinear)


# tied heads

class Tied(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.emb, self.mid, self.head = nn.Embedding(50, 64), nn.Linear(64, 64), nn.Linear(64, 50, bias=bias)
        self.head.weight = self.emb.weight
    def forward(self, ids): return self.head(self.mid(self.emb(ids)))


IDS = torch.tensor([[1, 2, 3], [49, 0, 7]])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scheme", ["w4a16-g64", "w8a16", "w2a16-g32-asym"])
def test_a_tied_head_stays_tied(scheme, bias):
    model = Tied(bias)
    float_, keys = copy.deepcopy(model), list(model.state_dict())
    q = Quantizer(model)
    before = get_memory_footprint(model)
    assert q.quantize(scheme, embeddings=True) is model
    assert model.head.weight is model.emb.weight and model.head.scales is model.emb.scales
    assert sum(r.after for r in q.report()) == get_memory_footprint(model) and sum(r.before for r in q.report()) == before
    with torch.no_grad():
        w, s, b = model.emb.qtensor.dequantize(), model.mid.dequantize(), model.head.bias
        want = F.linear(s(w[IDS]), w, b)
        assert (model(IDS) - want).abs().max() < 1e-3 * want.abs().max()
    out = model(IDS)
    other = Tied(bias)
    Quantizer(other).quantize(scheme, embeddings=True)
    for assign in (False, True):
        other.load_state_dict(model.state_dict(), assign=assign)
        assert torch.equal(other(IDS), out)
    assert torch.equal(copy.deepcopy(model)(IDS), out) and torch.equal(pickle.loads(pickle.dumps(model))(IDS), out)
    twin = copy.deepcopy(model)
    assert twin.head.weight is twin.emb.weight
    q.dequantize()
    assert type(model.emb) is nn.Embedding and type(model.head) is nn.Linear and model.head.weight is model.emb.weight
    assert list(model.state_dict()) == keys and get_memory_footprint(model) == before
    assert (model(IDS) - out).abs().max() < 1e-3 * out.abs().max()
    assert torch.equal(model.emb.weight, w) and not torch.equal(model.emb.weight, float_.emb.weight)


@pytest.mark.parametrize("exclude, include", [("emb", None), ("head", None), (None, "mid"), (None, ["mid", "head"])])
def test_half_of_a_pair_is_left(exclude, include):
    model = Tied()
    q = Quantizer(model)
    q.quantize("w4a16-g64", exclude, include=include, embeddings=True)
    assert type(model.emb) is nn.Embedding and type(model.head) is nn.Linear and model.head.weight is model.emb.weight and isinstance(model.mid, PackedLinear)
    why = {r.path: r.skipped for r in q.report()}
    assert all(any(w in why[p] for w in ("excluded", "not included", "shares its weight")) for p in ("emb", "head"))


def test_a_head_without_embeddings_is_left_as_before():
    model = Tied()
    q = Quantizer(model)
    q.quantize("w4a16-g64")
    assert type(model.head) is nn.Linear and {r.path: r.skipped for r in q.report()}["head"].startswith("shares its weight with emb")


def test_a_pair_with_two_schemes_is_refused_before_anything_changes():
    model = Tied()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="(?s)head.*w8a16.*nothing was changed|head.*w4a16-g64.*nothing was changed"):
        Quantizer(model).quantize({"head": "w8a16", "*": "w4a16-g64"}, embeddings=True)
    assert all(type(m) in (nn.Embedding, nn.Linear) for m in model.children()) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    Quantizer(model).quantize({"head": "w4a32-g64", "*": "w4a16-g64"}, embeddings=True)  # the weight is the same, the activations are each layer's own
    assert model.head.weight is model.emb.weight and str(model.head.scheme) == "w4a32-g64"


# a scheme for each pattern

def stack(): return nn.Sequential(nn.Embedding(50, 128), nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)), nn.Linear(64, 50))


def kinds(model): return {path: str(m.scheme) for path, m in model.named_modules() if hasattr(m, "scheme")}


def test_the_first_pattern_counts():
    model = stack()
    q = Quantizer(model)
    q.quantize({"1.0": "w8a16", "1": "w3a16-g64", "*": "w4a16-g32-asym"})
    assert kinds(model) == {"1.0": "w8a16", "1.2": "w3a16-g64", "2": "w4a16-g32-asym"}
    assert sum(r.after for r in q.report()) == get_memory_footprint(model)
    assert {r.path: r.scheme for r in q.report()} == {"0": None, **kinds(model)}
    model = stack()
    Quantizer(model).quantize({"1": "w3a16-g64", "1.0": "w8a16", "*": "w4a16"}, embeddings=True)
    assert kinds(model) == {"0": "w4a16", "1.0": "w3a16-g64", "1.2": "w3a16-g64", "2": "w4a16"}


def test_none_leaves_alone_and_so_does_no_pattern():
    model = stack()
    q = Quantizer(model)
    q.quantize({"1.2": None, "1": "w4a16-g64"})
    assert kinds(model) == {"1.0": "w4a16-g64"}
    why = {r.path: r.skipped for r in q.report()}
    assert "left alone by '1.2'" == why["1.2"] and why["2"] == "no method is given for it"
    q.dequantize()
    assert not kinds(model)


def test_a_pattern_that_matches_nothing_warns():
    with pytest.warns(UserWarning, match="q_method pattern '1.7' matches no module"): Quantizer(stack()).quantize({"1.7": "w8a16", "*": "w4a16"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Quantizer(stack()).quantize({"1": "w8a16"})


def test_an_unknown_method_is_refused_before_anything_changes():
    for methods in ({"1": "w4a16", "*": "w9a16"}, {"nowhere": "w4"}, {"*": 4}):
        model = stack()
        with pytest.raises(ValueError, match="unknown method"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Quantizer(model).quantize(methods)
        assert not kinds(model)


def test_a_layer_that_cannot_be_quantized_stops_all():
    model = stack()
    model[2].weight.data[3, 4] = float("inf")
    with pytest.raises(ValueError, match=r"layer '2'.*inf, at \[3, 4\].*nothing was changed"): Quantizer(model).quantize({"1.0": "w8a16", "*": "w4a16-g64"})
    assert not kinds(model)


# in a process of its own

AWKWARD = [(1, 1, 1), (1, 3, 5), (2, 16, 32), (3, 17, 33), (4, 16, 63), (5, 15, 64), (1, 16, 64), (8, 32, 128), (7, 31, 127), (9, 33, 129), (2, 48, 256), (4, 16, 192), (33, 5, 200), (1, 65, 320)]


def fence():
    held = 0
    for i, (rows, n, k) in enumerate(AWKWARD):
        for bits, g, z in product((1, 2, 3, 4, 5, 8), ("", "-g32", "-g64", "-g50"), ("", "-asym")):
            q = quantize_tensor(torch.randn(n, k), f"w{bits}a16{g}{z}", scale_dtype=torch.bfloat16 if g else torch.float32).pack(Packing(bits))
            at_end = bool((i + bits) % 2)
            parts = {name: fenced(t, at_end) for name in ("codes", "scale", "zero_point") if (t := getattr(q, name)) is not None}
            held += run(rows, q, parts, at_end)
    print(held)


def run(rows, q, parts, at_end):
    from dataclasses import replace
    p, held = replace(q, **parts), 0
    for dtype, kernel in product(FLOATS, PACKED_KERNELS.complete()):
        x, bias = fenced(torch.randn(rows, q.columns).to(dtype), at_end), fenced(torch.randn(len(q.codes)), at_end)
        held += hold(kernel, x, p, bias)
    return held


def test_no_byte_beyond_a_tensor_is_read():
    if not sys.platform.startswith("linux"): pytest.skip("needs mprotect")
    done = subprocess.run([sys.executable, "-X", "faulthandler", __file__, "fence"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split("\n")[-2]) > 2000


def test_packed_linear_takes_any_number_of_dimensions():
    q = quantize_weight(torch.randn(8, 64), "w4a16-g32")
    for shape in ((64,), (1, 64), (2, 3, 64), (0, 64), (2, 0, 64)): assert packed_linear(torch.randn(shape), q).shape == (*shape[:-1], 8)


if __name__ == "__main__": {"fence": fence}[sys.argv[1]]()
