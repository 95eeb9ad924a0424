"The layers in PyTorch's hands: compiled, cast, moved, copied, saved, transformed, and given what does not fit."
import copy
import gc
import getpass
import pickle
import shutil
import subprocess
import sys
import tempfile
import weakref

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers.pytorch_utils import Conv1D

from tinyq import QuantizedLinear, W8A16LinearLayer, W8A32LinearLayer, linear_parts

LAYERS = [W8A32LinearLayer, W8A16LinearLayer]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("cls", LAYERS)
inductor = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))), reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make(cls, in_features=64, out_features=24, bias=True, dtype=torch.float32):
    return cls.from_linear(nn.Linear(in_features, out_features, bias=bias, dtype=dtype))


TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-4, torch.float16: 3e-3, torch.bfloat16: 2e-2}  # of a kernel, against float64


def assert_near(got, want, tol):
    "Equal up to `tol` of the largest wanted number."
    assert got.shape == want.shape and got.isfinite().all()
    assert (got.double() - want.double()).abs().max() <= tol * want.double().abs().max()


def oracle(layer, x):
    "The product in float64."
    return F.linear(x.double(), layer.weight.double() * layer.scales.double()[:, None], None if layer.bias is None else layer.bias.double())


# compiled

@pytest.fixture
def compiler_cache(monkeypatch):
    "PyTorch's own cache serves code for AVX512 to a process that ATEN_CPU_CAPABILITY=avx2 tells not to use it: even `x + 1` is garbage then."
    name = f"torchinductor_{getpass.getuser()}_{torch.backends.cpu.get_cpu_capability()}"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/{name}")
    torch._dynamo.reset()


SHAPES = [(4,), (1, 1), (1, 2), (2, 2), (1, 16)]  # rows, or (batch, sequence)


@inductor
@pytest.mark.usefixtures("compiler_cache")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_compiled_in_one_graph_for_sizes_that_crash_a_rewritten_one(dtype):
    "The compiler replaces `F.linear(x, codes.to(x.dtype)) * scales` by an op that reads out of bounds at 1032 inputs."
    layer = make(W8A16LinearLayer, 1032, 40, dtype=dtype)
    xs = [torch.randn(*shape, 1032).to(dtype) for shape in SHAPES]
    compiled = torch.compile(lambda xs: [layer(x) for x in xs], fullgraph=True)
    with torch.no_grad():
        for _ in range(2):
            for x, y in zip(xs, compiled(xs)):
                assert y.dtype == dtype
                assert_near(y, oracle(layer, x), TOLERANCE[dtype])


@inductor
@pytest.mark.usefixtures("compiler_cache")
def test_compiled_once_for_all_row_counts():
    layer = make(W8A16LinearLayer, 72, 40).bfloat16()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for rows in (2, 3, 16, 65): assert_near(compiled(x := torch.randn(rows, 72).bfloat16()), oracle(layer, x), 2e-2)


def test_compiled_gradient_reaches_the_input():
    layer, x = make(W8A16LinearLayer), torch.randn(3, 64, requires_grad=True)
    torch._dynamo.reset()
    torch.compile(layer, fullgraph=True, backend="aot_eager")(x).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    layer.dequantize()(other).square().sum().backward()
    assert_near(x.grad, other.grad, 1e-4)


@pytest.mark.parametrize("cls, dynamic", [(W8A32LinearLayer, False), (W8A16LinearLayer, False), (W8A16LinearLayer, True)])
def test_no_graph_breaks(cls, dynamic):
    "Without a C++ compiler: what Python is traced, in and out of autocast, with and without gradients."
    layer = make(cls, 72, 40)
    for dtype in (torch.float32, torch.bfloat16):
        torch._dynamo.reset()
        compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for shape in ((3, 72), (2, 5, 72), (72,)):
            x = torch.randn(shape).to(dtype).requires_grad_()
            assert_near(compiled(x).detach(), oracle(layer, x.detach()), TOLERANCE[dtype])
    with torch.autocast("cpu", dtype=torch.bfloat16): assert compiled(torch.randn(3, 72)).dtype == torch.bfloat16


def test_exported():
    layer = make(W8A16LinearLayer).eval()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(layer, (torch.randn(3, 64),), dynamic_shapes=({0: rows},))
    assert set(program.state_dict) == {"weight", "scales", "bias"}
    for n in (2, 9): assert_near(program.module()(x := torch.randn(n, 64)), oracle(layer, x), 1e-5)


# autocast

@both
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", FLOATS)
def test_autocast_does_what_nn_linear_does(cls, to, dtype):
    linear = nn.Linear(64, 24)
    layer, x = cls.from_linear(linear), torch.randn(5, 64).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=to):
        y, want = layer(x), linear(x)
        with torch.autocast("cpu", enabled=False): assert layer(x).dtype == dtype
    assert y.dtype == want.dtype == to
    assert_near(y.detach(), oracle(layer, x.detach()), 2e-2)
    y.float().sum().backward()
    assert x.grad.dtype == dtype and x.grad.abs().sum() > 0


@both
def test_autocast_leaves_float64_alone_and_integers_refused(cls):
    layer = make(cls, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(2, 64, dtype=torch.float64)).dtype == torch.float64
        with pytest.raises(TypeError, match="int32"): layer(torch.ones(2, 64, dtype=torch.int32))


def test_w8a32_multiplies_in_float32_under_autocast():
    layer, x = make(W8A32LinearLayer), torch.randn(40, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16): y = layer(x)
    assert torch.equal(y, layer(x).bfloat16())


# cast, moved, copied

@both
@pytest.mark.parametrize("swap", [False, True])
def test_casts_keep_codes_and_scales(cls, swap):
    layer = make(cls, out_features=24)
    codes, scales = layer.weight.clone(), layer.scales.clone()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        for cast, dtype in [(layer.half, torch.float16), (layer.bfloat16, torch.bfloat16), (layer.double, torch.float64),
                            (lambda: layer.to(torch.float16), torch.float16), (lambda: layer.to("cpu", torch.bfloat16), torch.bfloat16),
                            (lambda: layer.type(torch.float16), torch.float16), (lambda: nn.Sequential(layer).float(), torch.float32)]:
            cast()
            assert torch.equal(layer.weight, codes) and torch.equal(layer.scales, scales)
            assert (layer.weight.dtype, layer.scales.dtype, layer.bias.dtype, layer.dtype) == (torch.int8, torch.float32, dtype, dtype)
            assert isinstance(layer.weight, nn.Parameter) and not layer.weight.requires_grad
            assert layer.dequantize().weight.dtype == dtype
    finally: torch.__future__.set_swap_module_params_on_conversion(False)


@both
def test_to_meta_and_back(cls):
    layer = make(cls)
    state = copy.deepcopy(layer.state_dict())
    layer.to("meta", torch.bfloat16)
    assert layer(torch.empty(2, 64, device="meta")).shape == (2, 24)
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}
    layer.to_empty(device="cpu")
    assert [t.dtype for t in layer.state_dict().values()] == [torch.int8, torch.float32, torch.bfloat16]
    layer.load_state_dict(state)
    assert torch.equal(layer.weight, state["weight"]) and torch.equal(layer.scales, state["scales"])


@both
def test_a_skeleton_takes_tensors_by_assignment(cls):
    "As a checkpoint is loaded: nothing is copied, and tensors may lie anywhere in a file."
    layer = make(cls, 96, 24, dtype=torch.bfloat16)
    file = torch.empty(96 * 24 + 1, dtype=torch.int8)
    unaligned = file[1:].view(24, 96)
    unaligned.copy_(layer.weight)
    with torch.device("meta"): skeleton = cls(96, 24, dtype=torch.bfloat16)
    skeleton.load_state_dict(layer.state_dict() | {"weight": unaligned}, assign=True)
    assert skeleton.weight.data_ptr() == unaligned.data_ptr() and not skeleton.weight.requires_grad
    for rows in (1, 4, 9): assert_near(skeleton(x := torch.randn(rows, 96).bfloat16()), oracle(layer, x), 2e-2)


@both
def test_copies_are_whole_and_separate(cls):
    layer, x = make(cls), torch.randn(3, 64)
    with torch.no_grad():
        for rows in (1, 4, 64):
            for dtype in FLOATS: layer(torch.randn(rows, 64).to(dtype))  # whatever a kernel prepares must not end in a copy
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x)) and len(pickle.dumps(layer)) == len(pickle.dumps(make(cls)))
    twin.quantize(torch.randn(24, 64))
    assert not torch.equal(twin(x), layer(x)) and vars(twin).keys() == vars(cls(64, 24)).keys()


def test_pickle_opens_in_a_new_process(tmp_path):
    layers, x = nn.ModuleList([make(cls, bias=bias).bfloat16() for cls in LAYERS for bias in (True, False)]), torch.randn(2, 64)
    torch.save((layers, x, [m(x) for m in layers]), tmp_path / "layers.pt")
    code = """import sys, torch
layers, x, ys = torch.load(sys.argv[1], weights_only=False)
assert all(torch.equal(m(x), y) for m, y in zip(layers, ys)), "other results"
print([(m.weight.dtype, m.scales.dtype, m.dtype, m.weight.requires_grad) for m in layers] == [(torch.int8, torch.float32, torch.bfloat16, False)] * 4)"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "layers.pt")], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_shared_memory():
    layer = make(W8A16LinearLayer).share_memory()
    assert all(t.is_shared() for t in layer.state_dict().values()) and layer.scales.dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
def test_the_float_layer_is_let_go(bias):
    linear = nn.Linear(64, 24, bias=bias)
    traces = [weakref.ref(t) for t in linear.parameters()] + [weakref.ref(linear)]
    before = {t.untyped_storage().data_ptr() for t in linear.parameters()}
    layer = W8A16LinearLayer.from_linear(linear)
    assert not before & {t.untyped_storage().data_ptr() for t in layer.state_dict().values()}
    assert all(t.untyped_storage().nbytes() == t.nbytes for t in layer.state_dict().values())  # no view of something larger
    del linear
    gc.collect()
    assert not any(t() is not None for t in traces)


# the state dict

@both
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_round_trip(cls, bias):
    "Exactly these names, and through safetensors, by copy and by assignment."
    layer, x = make(cls, bias=bias), torch.randn(2, 64)
    with torch.no_grad(): want = layer(x)
    state = load(save(layer.state_dict()))
    assert list(layer.state_dict()) == ["weight", "scales"] + ["bias"] * bias == [n for n, _ in layer.named_parameters()] + [n for n, _ in layer.named_buffers()]
    for assign in (False, True):
        fresh = cls(64, 24, bias)
        assert fresh.load_state_dict(state, assign=assign) == ([], [])
        assert torch.equal(fresh(x), want) and isinstance(fresh.weight, nn.Parameter)


MISFITS = {
    "float weights": ("weight", lambda t: t.float(), ["weight is torch.float32 (24, 64)", "expected torch.int8 (24, 64)", "quantize"]),
    "unsigned codes": ("weight", lambda t: t.to(torch.uint8), ["torch.uint8", "expected torch.int8"]),
    "transposed codes": ("weight", lambda t: t.t(), ["(64, 24)", "expected torch.int8 (24, 64)", "transpose"]),
    "fewer inputs": ("weight", lambda t: t[:, :60], ["(24, 60)", "W8A16LinearLayer(60, 24)"]),
    "flat codes": ("weight", lambda t: t.flatten(), ["(1536,)", "64 inputs and 24 outputs"]),
    "half scales": ("scales", lambda t: t.half(), ["scales is torch.float16 (24,)", ".float()"]),
    "integer scales": ("scales", lambda t: t.int(), ["torch.int32", "expected torch.float32"]),
    "standing scales": ("scales", lambda t: t[:, None], ["(24, 1)", "flatten"]),
    "one scale": ("scales", lambda t: t[0], ["()", "one scale for each output"]),
    "scales of groups": ("scales", lambda t: t.repeat(2), ["(48,)", "(24,)"]),
    "lying bias": ("bias", lambda t: t[None], ["bias is torch.float32 (1, 24)", "flatten"]),
    "integer bias": ("bias", lambda t: t.int(), ["torch.int32", "expected floats (24,)"]),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("case", MISFITS)
def test_a_state_dict_that_does_not_fit(case, assign):
    name, change, words = MISFITS[case]
    model = nn.ModuleDict({"proj": make(W8A16LinearLayer)})
    state = copy.deepcopy(model.state_dict())
    other = nn.ModuleDict({"proj": make(W8A16LinearLayer)}).state_dict()
    with pytest.raises(RuntimeError) as e: model.load_state_dict(other | {f"proj.{name}": change(other[f"proj.{name}"])}, strict=False, assign=assign)
    assert all(w in str(e.value) for w in [f"proj.{name}", *words]), str(e.value)
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())  # all three or none


def test_missing_and_unexpected_names():
    layer = make(W8A16LinearLayer, bias=False)
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match='Missing.*"scales"'): layer.load_state_dict({"weight": state["weight"]})
    with pytest.raises(RuntimeError, match='Unexpected.*"bias"'): layer.load_state_dict(state | {"bias": torch.ones(24)})
    assert layer.load_state_dict({"scales": state["scales"]}, strict=False).missing_keys == ["weight"]  # a shard may hold a part


# gradients and function transforms

@both
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_gradient_of_the_input_is_that_of_the_float_layer(cls, dtype, rows):
    layer, x = make(cls, 96, 40, dtype=dtype), torch.randn(rows, 96).to(dtype).requires_grad_()
    g = torch.randn(rows, 40).to(dtype)
    layer(x).backward(g)
    assert layer.weight.grad is None and layer.scales.grad is None and layer.bias.grad is None
    assert_near(x.grad, g.double() @ (layer.weight.double() * layer.scales.double()[:, None]), TOLERANCE[dtype])


@both
def test_gradcheck_and_double_backward(cls):
    layer = make(cls, 6, 4, dtype=torch.float64)
    if cls is W8A16LinearLayer: assert torch.autograd.gradcheck(layer, torch.randn(3, 6, dtype=torch.float64, requires_grad=True), atol=1e-4)
    x = torch.randn(3, 6, requires_grad=True)
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    g.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_nothing_is_trained_and_requires_grad_says_so():
    layer = make(W8A16LinearLayer)
    assert not any(p.requires_grad for p in layer.parameters()) and not layer(torch.randn(2, 64)).requires_grad
    with pytest.raises(RuntimeError, match="floating point"): layer.requires_grad_(True)
    nn.Sequential(nn.Linear(3, 64), layer).requires_grad_(False)


@both
def test_function_transforms(cls):
    layers, x = [make(cls) for _ in range(3)], torch.randn(5, 2, 64)
    params, buffers = torch.func.stack_module_state(layers)
    skeleton = copy.deepcopy(layers[0]).to("meta")
    one = lambda p, b: torch.func.functional_call(skeleton, (p, b), (x,))
    assert_near(torch.vmap(one)(params, buffers), torch.stack([m(x) for m in layers]), 2e-4)
    for dtype in (torch.float32, torch.bfloat16):
        assert_near(torch.vmap(layers[0])(x.to(dtype)), layers[0](x.to(dtype)), TOLERANCE[dtype])
        assert_near(torch.vmap(layers[0])(x[:, 0].to(dtype)), layers[0](x[:, 0].to(dtype)), TOLERANCE[dtype])
    assert_near(torch.func.jacrev(layers[0])(x[0, 0]), layers[0].dequantize().weight.detach(), 1e-5)
    doubled = torch.func.functional_call(layers[0], {"scales": layers[0].scales * 2, "bias": layers[0].bias * 2}, (x,))
    assert_near(doubled, 2 * layers[0](x), 2e-4)


def test_inference_mode():
    layer = make(W8A16LinearLayer)
    with torch.inference_mode():
        for dtype in FLOATS: assert layer(torch.randn(1, 64).to(dtype)).is_inference()
        made = make(W8A16LinearLayer)
    assert made(torch.randn(2, 64)).shape == (2, 24)


# what goes in

@both
@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_and_back(cls, dtype, bias):
    linear = nn.Linear(33, 7, bias=bias, dtype=dtype).eval()
    layer = cls.from_linear(linear)
    assert layer.dtype == dtype and layer.weight.is_contiguous() and layer.scales.dtype == torch.float32 and not layer.training
    back = layer.dequantize()
    assert type(back) is nn.Linear and back.weight.dtype == dtype and not back.training
    assert all(p.requires_grad and p.dtype == dtype for p in back.parameters()) and (back.bias is not None) == bias
    error = (back.weight - linear.weight).detach().float().abs()
    ulp = {torch.bfloat16: 2**-8, torch.float16: 2**-11}.get(dtype, 1e-6)
    assert (error <= layer.scales[:, None] / 2 + linear.weight.float().abs() * ulp + 1e-7).all()
    assert layer.dequantize(torch.float16).weight.dtype == torch.float16
    if bias:
        back.bias.data.zero_()
        assert torch.equal(layer.bias, linear.bias.detach())  # a copy


def test_conv1d_gets_the_codes_of_the_linear_that_computes_the_same():
    conv, linear = Conv1D(24, 64), nn.Linear(64, 24)
    linear.weight.data, linear.bias.data = conv.weight.data.t(), conv.bias.data.normal_()
    a, b = W8A16LinearLayer.from_linear(conv), W8A16LinearLayer.from_linear(linear)
    assert all(torch.equal(t, b.state_dict()[k]) for k, t in a.state_dict().items()) and a.weight.is_contiguous()
    w, bias = linear_parts(conv)
    assert w.shape == (24, 64) and w.data_ptr() == conv.weight.data_ptr() and bias.data_ptr() == conv.bias.data_ptr() and not w.requires_grad


class Odd(nn.Linear): pass
class Impostor(nn.Module): pass


Impostor.__name__ = "Conv1D"


def pruned_bias():
    return prune.random_unstructured(nn.Linear(5, 3), "bias", 1)


@pytest.mark.parametrize("make_module, words", [
    (lambda: W8A16LinearLayer(5, 3), "quantized already (w8a16)"), (lambda: Odd(5, 3), "Odd, a subclass"), (lambda: nn.LazyLinear(3), "subclass"),
    (lambda: parametrizations.weight_norm(nn.Linear(5, 3)), "subclass"), (lambda: prune.random_unstructured(nn.Linear(5, 3), "weight", 1), "pruning"),
    (pruned_bias, "pruning"), (lambda: nn.Embedding(5, 3), "got Embedding"), (Impostor, "got Conv1D"), (lambda: "layer", "got str")])
def test_modules_that_are_no_linear_layer(make_module, words):
    module = make_module()
    assert linear_parts(module) is None
    with pytest.raises(TypeError) as e: W8A32LinearLayer.from_linear(module)
    assert words in str(e.value)


def with_value(value, dtype=torch.float32):
    w = torch.randn(24, 64, dtype=dtype)
    w[7, 9] = value
    return w


BAD_WEIGHTS = [
    (with_value(float("nan")), ValueError, "nan, at [7, 9]"), (with_value(float("inf"), torch.float16), ValueError, "inf, at [7, 9]"),
    (with_value(float("-inf"), torch.bfloat16), ValueError, "1 NaN or infinite value(s) of 1,536"), (with_value(1e300, torch.float64), ValueError, "1e+300, at [7, 9]"),
    (torch.zeros(24, 64, dtype=torch.int8), TypeError, "torch.int8"), (torch.zeros(24, 64, dtype=torch.bool), TypeError, "torch.bool"),
    (torch.zeros(24, 64, dtype=torch.complex64), TypeError, "complex64"), (torch.zeros(24, 64).to(torch.float8_e5m2), TypeError, "float8_e5m2"),
    (torch.zeros(24, 64).to_sparse(), TypeError, "to_dense"), (torch.zeros(24, 64, device="meta"), ValueError, "meta"), ([[1.0]], TypeError, "list"),
    (torch.zeros(24, 0), ValueError, "(24, 0)"), (torch.zeros(0, 64), ValueError, "(0, 64)"), (torch.zeros(64), ValueError, "(64,)"), (torch.zeros(2, 24, 64), ValueError, "(2, 24, 64)")]


@pytest.mark.parametrize("weight, error, words", BAD_WEIGHTS, ids=[w for *_, w in BAD_WEIGHTS])
def test_weights_that_can_not_be_quantized(weight, error, words):
    "`check_weights` and `quantize` say the same, and the layer stays as it was."
    layer = make(W8A16LinearLayer)
    codes, scales = layer.weight, layer.scales
    with pytest.raises(error) as a: W8A16LinearLayer.check_weights(weight)
    with pytest.raises(error) as b: layer.quantize(weight)
    assert words in str(a.value) and str(a.value) == str(b.value)
    assert layer.weight is codes and layer.scales is scales
    if isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.is_floating_point():
        linear = nn.Linear(1, 1)
        linear.weight = nn.Parameter(weight, requires_grad=False)
        with pytest.raises(error) as c: W8A16LinearLayer.from_linear(linear)
        assert str(c.value) == str(a.value)


def test_place_of_a_nan_in_any_memory_order():
    w = torch.randn(40, 70)
    w[30, 2] = w[5, 60] = float("nan")
    for t, at in [(w, "[5, 60]"), (w.t(), "[2, 30]"), (w[:, 2:], "[5, 58]"), (w[::5], "[1, 60]"), (w.half(), "[5, 60]")]:
        with pytest.raises(ValueError) as e: W8A16LinearLayer.check_weights(t)
        assert at in str(e.value)


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_odd_but_good_weights_pass(dtype):
    for w in (torch.zeros(24, 64), torch.full((24, 64), 60000.0), torch.full((24, 64), 1e-7), torch.randn(64, 24).t(), torch.randn(48, 64)[::2]):
        W8A16LinearLayer.check_weights(w.to(dtype))
        layer = W8A16LinearLayer(64, 24)
        q, s = layer.quantize(w.to(dtype))
        assert q.dtype == torch.int8 and s.isfinite().all() and (s > 0).all() and layer.weight.is_contiguous()


def test_rows_of_zeros_give_the_bias():
    linear = nn.Linear(64, 24)
    linear.weight.data[3] = 0
    for cls in LAYERS:
        layer = cls.from_linear(linear)
        assert layer.scales[3] == 1 and (layer.weight[3] == 0).all()
        for rows in (0, 1, 5): assert (layer(torch.randn(rows, 64))[:, 3] == linear.bias[3]).all()


@both
def test_what_a_layer_refuses_to_be_or_to_multiply(cls):
    for sizes in ((0, 3), (3, 0), (-1, 3)):
        with pytest.raises(ValueError, match="nothing to quantize"): cls(*sizes)
    with pytest.raises(TypeError, match="int8"): cls(3, 3, dtype=torch.int8)
    layer = make(cls)
    with pytest.raises(ValueError, match=r"\(2, 63\).*\(24, 64\)"): layer(torch.randn(2, 63))
    for dtype in (torch.int32, torch.int8, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=str(dtype)): layer(torch.ones(2, 64).to(dtype))
    with pytest.raises(ValueError, match=r"\(64, 24\).*\(24, 64\)"): layer.quantize(torch.randn(64, 24))


def test_repr_says_shapes_scheme_and_bytes():
    layer = make(W8A32LinearLayer).bfloat16()
    assert repr(layer) == f"W8A32LinearLayer(in_features=64, out_features=24, bias=True, w8a32, {24 * 64 + 24 * 4 + 24 * 2:,} bytes)"
    assert isinstance(layer, QuantizedLinear) and not isinstance(layer, nn.Linear)
