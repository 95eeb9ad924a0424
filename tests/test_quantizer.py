"The Quantizer: what it says, what it counts, the way back, and how much memory and how many threads it takes."
import contextlib
import copy
import io
import json
import logging
import math
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import tinyq.per_group as per_group
from tinyq import (GRIDS, METHODS, QuantizedLinear, Quantizer, W8A16LinearLayer, W8A32LinearLayer, compute_module_sizes, coverage, get_memory_footprint,
                   quantize_tensor, report_table, sqnr, tiny_lm, weight_sqnr)


class Mixed(nn.Module):
    "Every kind of thing that a Quantizer meets: an embedding with a tied head, a Conv1D, a frozen layer, no bias, two dtypes, a layer used twice."
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(40, 64), nn.Linear(64, 40, bias=False)
        self.head.weight = self.embed.weight
        self.conv, self.frozen = Conv1D(64, 64), nn.Linear(64, 64).requires_grad_(False)
        self.plain, self.narrow = nn.Linear(64, 64, bias=False), nn.Linear(64, 64).bfloat16()
        self.again, self.norm, self.asleep = self.plain, nn.LayerNorm(64), nn.Linear(64, 64).eval()

    def forward(self, ids):
        x = self.asleep(self.again(self.frozen(self.conv(self.embed(ids)))))
        return self.head(self.norm(self.narrow(self.plain(x).bfloat16()).float()))


def mixed():
    torch.manual_seed(0)
    return Mixed()


def signature(model): # of its float tensors and modules
    tensors = [(n, tuple(p.shape), p.stride(), p.dtype, p.requires_grad) for n, p in model.named_parameters(remove_duplicate=False)]
    return tensors, [(n, type(m), m.training) for n, m in model.named_modules(remove_duplicate=False)]


def codes(model): return {n: (m.weight.clone(), m.scales.clone()) for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(x, y) for k in a for x, y in zip(a[k], b[k]))


# ---- what it says

def test_the_logger_hears_and_nothing_is_printed(capfd, caplog):
    log = logging.getLogger("mine")
    with caplog.at_level(logging.DEBUG, "mine"):
        q = Quantizer(mixed(), log)
        q.quantize("w8a16"); q.report(); report_table(q.report()); q.dequantize()
        Quantizer(nn.ReLU(), log).quantize()
    assert capfd.readouterr() == ("", "")
    said = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert [m.split(":")[0] for level, m in said if level == "DEBUG"] == ["conv", "frozen", "plain", "narrow", "asleep"]
    assert [m.split(":")[0] for level, m in said if level == "INFO"] == ["quantized 5 layers with w8a16", "dequantized 5 layers", "quantized 0 layers with w8a32"]
    assert [m for level, m in said if level == "WARNING"] == ["nothing was quantized; report() says why, module by module"]
    assert {r.name for r in caplog.records} == {"mine"}


def test_by_default_only_warnings_are_heard():
    code = "from torch import nn; import tinyq; q = tinyq.Quantizer(nn.Sequential(nn.Linear(4, 4))); q.quantize(); q.dequantize(); tinyq.Quantizer(nn.ReLU()).quantize()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "" and done.stderr.splitlines() == ["nothing was quantized; report() says why, module by module"]


def test_progress_is_a_callable_or_true(capfd):
    seen = []
    def wrap(paths):
        assert len(paths) == 5
        for p in paths: seen.append(p); yield p
    Quantizer(mixed()).quantize("w8a32", progress=wrap)
    assert seen == ["conv", "frozen", "plain", "narrow", "asleep"]
    Quantizer(mixed()).quantize("w8a32", progress=False)
    assert capfd.readouterr() == ("", "")
    Quantizer(mixed()).quantize("w8a32", progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "5/5" in err


# ---- what it counts

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [mixed, lambda: tiny_lm()[0], lambda: nn.Linear(7, 3), lambda: nn.Sequential(nn.LazyLinear(3), nn.Linear(4, 4))])
def test_the_report_adds_up(build, method):
    model = build()
    before, kinds = get_memory_footprint(model), {c.path: c.kind for c in coverage(model)}
    q = Quantizer(model)
    model, rows = q.quantize(method), q.report()
    assert sum(r.before for r in rows) == before == compute_module_sizes(q.dequantize())[""]
    model = q.quantize(method)
    assert sum(r.after for r in rows) == get_memory_footprint(model) == compute_module_sizes(model)[""]
    assert {r.path: r.kind for r in rows} == kinds
    for r in rows:
        quantized = isinstance(model.get_submodule(r.path), QuantizedLinear)
        assert (r.scheme == method) == (r.skipped is None) == (r.sqnr is not None) == quantized
        if quantized: assert r.after < r.before and r.sqnr > 35
    lines = report_table(rows).splitlines()
    assert len(lines) == len(rows) + 2 and f"{before:,}" in lines[-1]


def test_the_sqnr_of_the_report_is_that_of_chapter_3():
    model = mixed()
    weights = {n: m.weight.detach().clone().t() if isinstance(m, Conv1D) else m.weight.detach().clone() for n, m in model.named_modules() if hasattr(m, "weight")}
    q = Quantizer(model)
    q.quantize("w8a16")
    done = [r for r in q.report() if r.scheme]
    assert len(done) == 5
    for r in done: assert abs(r.sqnr - sqnr(weights[r.path], model.get_submodule(r.path).qtensor.dequantize())) < 1e-3


def test_the_report_is_a_copy():
    q = Quantizer(mixed())
    q.quantize()
    q.report().clear()
    assert q.report()


# ---- the way back

@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("build", [mixed, lambda: tiny_lm()[0]])
def test_there_and_back_and_there_again(build, method):
    model = build()
    original = copy.deepcopy(model)
    q = Quantizer(model)
    q.quantize(method)
    first, rows = codes(model), q.report()
    assert q.dequantize() is model is q.model and q.quantized_model is None
    assert signature(model) == signature(original)
    assert get_memory_footprint(model) == get_memory_footprint(original)
    for (n, a), b in zip(original.named_parameters(), model.parameters()):
        quantized = n.rsplit(".", 1)[0] in first and n.endswith("weight")
        assert sqnr(a, b) > 35 if quantized else torch.equal(a, b), n  # biases, norms and the rest: untouched
    q.quantize(method)
    assert same(codes(model), first)  # 127 * 2**-8 < 1/2: every code survives bfloat16
    again = q.report()
    assert [(r.path, r.before, r.after) for r in again] == [(r.path, r.before, r.after) for r in rows]


def test_what_was_shared_stays_shared():
    model, ids = mixed().eval(), torch.arange(40)
    want = model(ids)
    q = Quantizer(model)
    q.quantize("w8a16")
    assert model.again is model.plain and model.head.weight is model.embed.weight
    q.dequantize()
    assert model.again is model.plain and type(model.plain) is nn.Linear and model.head.weight is model.embed.weight
    assert (model(ids) - want).abs().max() < .05 * want.abs().max()


def test_flags_that_changed_in_between_are_kept():
    q = Quantizer(mixed())
    q.quantize("w8a16").eval().to(torch.float64)
    model = q.dequantize()
    assert not any(m.training for m in model.modules())
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert not model.frozen.weight.requires_grad and model.plain.weight.requires_grad


def test_hooks_survive_both_ways():
    model, heard = mixed(), []
    handle = model.plain.register_forward_hook(lambda m, args, out: heard.append(type(m)))
    q, ids = Quantizer(model), torch.arange(3)
    for f in (lambda: q.quantize("w8a32"), q.dequantize): f(); model(ids)
    assert heard == 2 * [W8A32LinearLayer] + 2 * [nn.Linear]  # the layer is used twice
    handle.remove(); model(ids)
    assert len(heard) == 4


def test_a_model_that_is_itself_a_layer():
    q = Quantizer(nn.Linear(8, 4, bias=False).bfloat16())
    first = q.quantize("w8a16")
    kept = first.weight.clone()
    assert isinstance(first, W8A16LinearLayer) and q.model is first
    back = q.dequantize()
    assert type(back) is nn.Linear and back.weight.dtype == torch.bfloat16 and q.model is back
    assert torch.equal(q.quantize("w8a16").weight, kept)


def test_a_model_that_somebody_else_quantized():
    model = Quantizer(mixed()).quantize("w8a16")
    other = Quantizer(model)
    other.dequantize()
    assert not codes(model) and type(model.conv) is nn.Linear  # what it was before is not known to this one
    with pytest.raises(RuntimeError, match="no quantized layer"): other.dequantize()


def test_training_goes_on_after_the_way_back():
    q = Quantizer(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)))
    q.quantize("w8a16")
    model = q.dequantize()
    optimizer = torch.optim.SGD(model.parameters(), .1)
    model(torch.ones(2, 16)).sum().backward(); optimizer.step()
    assert all(p.grad is not None for p in model.parameters())


# ---- what it refuses

def test_quantizing_twice():
    q = Quantizer(mixed())
    model = q.quantize("w8a16")
    before, rows = codes(model), q.report()
    with pytest.raises(RuntimeError, match=r"quantize\(\) was called before.*dequantize\(\) first"): q.quantize("w8a32")
    assert same(codes(model), before) and q.report() == rows


def test_bad_input():
    model = mixed()
    modules = list(model.modules())
    with pytest.raises(ValueError, match="unknown method 'w5a5'; choose from w8a32, w8a16"): Quantizer(model).quantize("w5a5")
    with pytest.raises(TypeError, match="model is a str"): Quantizer("model")
    with pytest.raises(TypeError, match="pattern 3"): Quantizer(model).quantize("w8a16", [3])
    for f in ("report", "dequantize"):
        with pytest.raises(RuntimeError, match=f): getattr(Quantizer(model), f)()
    with pytest.raises(RuntimeError, match="save_model"): Quantizer(model).save_model("m.pt")
    with pytest.warns(UserWarning, match="'fozen' matches no module; there is 'frozen'"): Quantizer(mixed()).quantize("w8a16", ["fozen"])
    model.narrow.weight.data[3, 5] = math.nan
    q = Quantizer(model)
    with pytest.raises(ValueError, match=r"layer 'narrow'.*at \[3, 5\].*nothing was changed"): q.quantize("w8a16")
    assert all(a is b for a, b in zip(modules, model.modules())) and not codes(model)
    with pytest.raises(RuntimeError, match="report"): q.report()
    model.narrow.weight.data[3, 5] = 0
    q.quantize("w8a16")  # mended
    assert len(codes(model)) == 5


def test_include_and_exclude():
    q = Quantizer(mixed())
    q.quantize("w8a16", module_not_to_quantize=lambda path, m: not m.training, include=["frozen", Conv1D, "asleep"])
    why = {r.path: r.skipped for r in q.report()}
    assert [why[p] for p in ("conv", "frozen", "plain", "asleep")] == [None, None, "not included", "excluded by <lambda>"]


def test_an_interruption_can_be_taken_up_again():
    original, q = mixed(), Quantizer(mixed())
    def stop(paths):
        for k, p in enumerate(paths):
            if k == 2: raise KeyboardInterrupt
            yield p
    with pytest.raises(KeyboardInterrupt, match="2 of 5 layers are quantized"): q.quantize("w8a16", progress=stop)
    part = copy.deepcopy(q)
    q.quantize("w8a16")
    rows = q.report()
    assert sum(r.scheme is not None for r in rows) == 5 and sum(r.before for r in rows) == get_memory_footprint(original)
    assert signature(q.dequantize()) == signature(part.dequantize()) == signature(original)


def test_save_model(tmp_path):
    q = Quantizer(mixed())
    q.quantize("w8a16")
    q.save_model(tmp_path / "m.pt"); q.save_model(str(tmp_path / "m.pt"))
    assert os.listdir(tmp_path) == ["m.pt"]
    state = torch.load(tmp_path / "m.pt", weights_only=True)
    assert state.keys() == q.model.state_dict().keys() and state["plain.weight"].dtype == torch.int8
    with pytest.raises(IsADirectoryError): q.save_model(tmp_path)
    with pytest.raises(FileNotFoundError, match="make it first"): q.save_model(tmp_path / "no" / "m.pt")
    q.dequantize()
    with pytest.raises(RuntimeError, match="before quantize"): q.save_model(tmp_path / "m.pt")


# ---- threads

@contextlib.contextmanager
def torch_threads(n):
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try: yield
    finally: torch.set_num_threads(before)


def in_new_thread(f):
    out = []
    t = threading.Thread(target=lambda: out.append(f()))
    t.start(); t.join()
    return out[0]


BIG = (3000, 1500)  # more than four large blocks of rows, the last one short


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16-g64", "w3a16-g128-asym", "w8a8-tensor"])
def test_threads_change_no_bit(dtype, scheme):
    x = torch.randn(BIG, generator=torch.Generator().manual_seed(0)).to(dtype)
    for t in (x, x.t(), x[::2, 1:]):
        with torch_threads(1): one, db = quantize_tensor(t, scheme), weight_sqnr(t, quantize_tensor(t, scheme))
        for n in (2, 3, 16):
            with torch_threads(n):
                many = quantize_tensor(t, scheme)
                for name in ("codes", "scale", "zero_point"):
                    a, b = getattr(one, name), getattr(many, name)
                    assert a is b is None or torch.equal(a, b)
                assert abs(weight_sqnr(t, many) - db) < 1e-5  # blocks of another size, sums of another order


def test_threads_leave_nothing_behind():
    x = torch.randn(BIG)
    quantize_tensor(x)
    before = threading.active_count()
    with torch_threads(3):
        q = quantize_tensor(x)
        weight_sqnr(x, q)
        assert threading.active_count() == before
        assert torch.get_num_threads() == 3 == in_new_thread(torch.get_num_threads)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_errors_come_out_of_threads(bad):
    x = torch.randn(BIG)
    x[2999, 3] = x[1, 1] = bad
    before = threading.active_count()
    with torch_threads(3):
        with pytest.raises(ValueError, match="2 NaN or infinite value"): quantize_tensor(x)
        with pytest.raises(ValueError, match="scale .* is outside the normal range of torch.float16"): quantize_tensor(torch.full(BIG, 1e9), scale_dtype=torch.float16)
        assert torch.get_num_threads() == 3
    assert threading.active_count() == before


def test_a_solver_of_ones_own_stays_in_the_calling_thread():
    seen = set()
    def solver(x, *args):
        seen.add(threading.get_ident())
        return GRIDS["symr"](x, *args)
    x = torch.randn(BIG)
    with torch_threads(3): q = quantize_tensor(x, "w8a16", solver=solver)
    assert seen == {threading.get_ident()}
    assert torch.equal(q.codes, quantize_tensor(x).codes)


def test_inference_mode_and_no_grad_reach_the_threads():
    x = torch.randn(BIG)
    want = quantize_tensor(x)
    with torch_threads(3):
        with torch.inference_mode():
            inside = quantize_tensor(nn.Parameter(x))
            made = torch.randn(BIG)
            db = weight_sqnr(x, inside)
        assert inside.codes.is_inference() and torch.equal(inside.codes, want.codes) and db == weight_sqnr(x, want)
        outside = quantize_tensor(made)  # a tensor of inference mode, outside of it
        assert not outside.codes.is_inference()
        with torch.no_grad(): assert torch.equal(quantize_tensor(nn.Parameter(x)).codes, want.codes)
        q = quantize_tensor(nn.Parameter(x))
        assert not q.scale.requires_grad and torch.equal(q.codes, want.codes) and torch.is_grad_enabled()
        with torch.inference_mode():
            m = nn.Sequential(nn.Linear(1500, 3000))
            quantizer = Quantizer(m)
            quantizer.quantize("w8a16"); quantizer.dequantize()


def test_several_callers_at_once():
    xs = [torch.randn(BIG, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    want, got = [quantize_tensor(x) for x in xs], {}
    with torch_threads(3):
        def call(i):
            for _ in range(3): got[i] = quantize_tensor(xs[i])
        callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
        for t in callers: t.start()
        for t in callers: t.join()
        assert torch.get_num_threads() == 3
    for i, w in enumerate(want): assert torch.equal(got[i].codes, w.codes) and torch.equal(got[i].scale, w.scale)


# ---- memory, each in a process of its own

MEMORY = """
import json, sys, time
import torch
from torch import nn
from tinyq import Quantizer, get_memory_footprint

def resident(key):
    try:
        with open("/proc/self/status") as f: return next(int(l.split()[1]) << 10 for l in f if l.startswith(key))
    except FileNotFoundError:
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)

def fill(model): # every page touched, at the price of a copy
    for t in (*model.parameters(), *model.buffers()):
        if t.is_floating_point(): t.data.copy_((.02 * torch.randn(t.shape[-1:])).to(t.dtype).expand(t.shape))
    return model

def small(): return fill(nn.Sequential(*(nn.Linear(4096, 4096, bias=False, device="meta") for _ in range(8))).to_empty(device="cpu")) # 64 MiB each

def qwen(tied): # Qwen2-1.5B: all parameters, no download
    from transformers import Qwen2Config, Qwen2ForCausalLM
    config = Qwen2Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12, num_key_value_heads=2,
                         tie_word_embeddings=tied)
    with torch.device("meta"): model = Qwen2ForCausalLM(config).bfloat16()
    model.to_empty(device="cpu").tie_weights()
    return fill(model)

Quantizer(nn.Sequential(nn.Linear(4096, 64), nn.Linear(1024, 64).bfloat16())).quantize("w8a16") # loads what the first call needs
before = resident("VmRSS")
model = {"small": small, "tied": lambda: qwen(True), "untied": lambda: qwen(False)}[sys.argv[1]]()
nbytes, now, built = get_memory_footprint(model), resident("VmRSS"), resident("VmHWM")
start = time.perf_counter()
q = Quantizer(model)
q.quantize("w8a16")
quantized, took = resident("VmHWM"), time.perf_counter() - start
after = get_memory_footprint(model)
start = time.perf_counter()
q.dequantize()
print(json.dumps({"float": nbytes, "resident": now - before, "built": built - before, "peak": quantized - before, "after": after, "seconds": took,
                  "back": time.perf_counter() - start, "peak_back": resident("VmHWM") - before, "threads": torch.get_num_threads(),
                  "params": sum(r.params for r in q.report()) if q.quantized_model else sum(p.numel() for p in model.parameters())}))
"""


def peak_memory(which):
    fixed = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)} # what is freed goes back at once: glibc may keep it or not, by chance, and this is about what tinyq holds
    done = subprocess.run([sys.executable, "-c", MEMORY, which], capture_output=True, text=True, timeout=600, env=os.environ | fixed)
    assert done.returncode == 0, done.stderr
    r = json.loads(done.stdout.splitlines()[-1])
    assert r["resident"] > .98 * r["float"]  # all pages of the float model are there
    assert r["built"] < 1.05 * r["resident"]  # and it took no more to build it, which would hide what quantizing takes
    print(f"{which}: {r['params'] / 1e9:.2f} billion parameters, float {r['float'] / 1e9:.2f} GB, quantized {r['after'] / 1e9:.2f} GB, peak {r['peak'] / r['resident']:.3f} of the float model, "
          f"{r['seconds']:.1f} s with {r['threads']} thread(s); back in {r['back']:.1f} s, peak {r['peak_back'] / r['resident']:.3f}")
    return r


linux = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="resident memory is read from /proc")


@linux
def test_peak_memory_is_one_layer_on_top():
    r = peak_memory("small")
    assert r["peak"] < 1.2 * r["resident"] and r["peak_back"] < 1.2 * r["resident"]


@linux
@pytest.mark.slow
@pytest.mark.parametrize("which", ["tied", "untied"])
def test_peak_memory_of_qwen2_1_5b(which, request):
    if "slow" not in (request.config.getoption("-m") or "") and not os.environ.get("TINYQ_SLOW"): pytest.skip("run with -m slow")
    r = peak_memory(which)
    assert r["peak"] < 1.15 * r["resident"] and r["seconds"] < 60
