"""Every kernel of the table is right on every shape, dtype and memory layout, and reads no byte that isn't its own.

Run as a program (`python test_kernels.py sweep`), it does one of the checks that need a process of their own."""
import ctypes
import mmap
import os
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyq import kernels
from tinyq.kernels import (Kernel, choose, dequantized_linear, explain, int8pack_fits, kernel_table, only, quantized_linear, reads_memory, register,
                           two_planes, w8_a16_forward, w8_a32_forward)

DTYPES = torch.float32, torch.bfloat16, torch.float16, torch.float64
DIGITS = "two int8 planes", "AMX tiles"  # integer products: they take inputs as 16-bit codes
NATIVE = "AMX tiles", "dot products"  # of tinyq.native, where numba is installed


def allowed(kernel, x, codes, scales, bias):
    "The result in float64, and how far from it rounding may lead (Higham 2002, section 3.1), for each output."
    info, x, w = torch.finfo(x.dtype), x.double(), codes.double() * scales.double()
    b = torch.zeros(len(codes), dtype=torch.double) if bias is None else bias.double()
    u = info.eps / 2
    size = x.abs() @ w.abs().t() + b.abs()
    lost = 2.**-24 if info.dtype == "float16" else info.tiny  # what may be rounded to 0
    room = (3*u / (1 - 3*u) + x.shape[1] * 2.**-23) * size + lost * (x.abs().sum(1, keepdim=True) + w.abs().sum(1) + 2)
    if kernel in DIGITS and x.numel():  # half a step of each input; a hundredth for the division in float32
        room += (x.abs().amax(1, keepdim=True) / 65024 * 1.01 + torch.finfo(torch.float32).tiny) * w.abs().sum(1)
    return x @ w.t() + b, room


def hold(kernel, x, codes, scales, bias=None):
    "Run a kernel if it serves; whether it did. Its result must be one that rounding explains."
    if kernel.why_not(x, codes, scales) is not None: return False
    y = kernel.run(x, codes, scales, bias)
    want, room = allowed(kernel.name, x, codes, scales, bias)
    assert y.dtype == x.dtype and y.shape == want.shape
    off = (y.double() - want).abs()
    assert (off <= room).all(), (kernel.name, x.dtype, tuple(x.shape), tuple(codes.shape), (off / room).max().item())
    return True


def shifted(t):
    "The same values, one element further on."
    return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)


def gaps(t): return torch.stack([t, t], -1)[..., 0]
def columns_first(t): return t.t().contiguous().t()
def cut(t): return torch.cat([t, t], 1)[:, :t.shape[1]]
def backwards_rows(t): return t.repeat(2, 1)[::2] if len(t) else t  # other values, every second row


LAYOUTS = [lambda t: t, shifted, gaps, columns_first, cut, backwards_rows]


def problem(rows, n, k, dtype, i=0, g=None, loud=1.):
    "Inputs, codes, scales and bias; `i` picks layouts, one scale or many, and whether there is a bias."
    g = g or torch.Generator().manual_seed(rows * 71 * 71 + n * 71 + k)
    x = torch.randn(rows, k, generator=g)
    if k: x[:, i % k] *= loud
    codes = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=g)
    scales = torch.rand((n, 1)[i % 5 == 4], 1, generator=g) * .01 + 1e-3
    scales = (scales, scales.bfloat16(), gaps(scales))[i % 3]
    bias = (None, torch.randn(n, generator=g), torch.randn(n, generator=g).bfloat16())[i // 2 % 3]
    return LAYOUTS[i % 6](x.to(dtype)), LAYOUTS[i // 6 % 5 if i % 4 == 0 else 0](codes), scales, bias


def sweep():
    "Every size from 1 to 70 on both axes and every number of rows from 0 to 70, thrice in other company, and all dtypes; then some special shapes."
    served, i = Counter(), 0
    sizes = [(i * r % 71, i * n % 71, i) for r, n in ((11, 1), (35, 37), (60, 7)) for i in range(1, 71)]  # 71 is prime: each column runs through 1 to 70
    sizes += [(0, n, k) for n, k in ((1, 1), (16, 64), (70, 70))] + [(r, n, 0) for r, n in ((1, 3), (5, 16))] + [(r, 0, k) for r, k in ((1, 64), (5, 7))]
    sizes += [(r, n, k) for r, n, k in product((1, 3, 4, 5, 8, 9, 17, 64, 65), (1, 16, 31, 96), (32, 64, 127, 128, 160))]
    sizes += [(2, 40, 4096), (20, 4096, 40), (300, 33, 65), (1, 1, 2**17 - 1), (1, 1, 2**17)]
    for (rows, n, k), dtype in product(sizes, DTYPES):
        args = problem(rows, n, k, dtype, i)
        served.update(kernel.name for kernel in kernels.KERNELS.complete() if hold(kernel, *args))
        i += 1
    return served


def torch_ops(): return [k.name for k in kernels.KERNELS.complete() if k.name not in NATIVE]


# in this process

def test_sweep():
    served = sweep()
    assert served["dequantize in blocks"] > 1500 and served["scale after"] > 300
    able = {"dequantize in blocks", "scale after"}
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"): able.add("int8pack")
    if kernels._int_mm_is_exact(): able.add("two int8 planes")
    if any(k.name in NATIVE for k in kernels.KERNELS.complete()): able.add("dot products")
    assert able <= set(served) <= able | {"AMX tiles"}


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(rows=st.integers(0, 70), n=st.integers(1, 150), k=st.integers(1, 300), dtype=st.sampled_from(DTYPES), i=st.integers(0, 119),
       seed=st.integers(0, 2**31), loud=st.sampled_from([1., 0., 1e-3, 30., 1000.]), special=st.sampled_from(["", "zero rows", "extreme codes", "ones"]))
def test_kernels_equal_the_reference(rows, n, k, dtype, i, seed, loud, special):
    x, codes, scales, bias = problem(rows, n, k, dtype, i, torch.Generator().manual_seed(seed), loud)
    if special == "zero rows": x = x * (torch.arange(rows) % 2).to(dtype)[:, None]
    if special == "extreme codes": codes = torch.where(codes < 0, -128, 127).to(torch.int8)
    if special == "ones": x, codes = torch.ones_like(x), torch.ones_like(codes)
    assert hold(Kernel("reference", 0, lambda *a: None, dequantized_linear), x, codes, scales, bias)
    for kernel in kernels.KERNELS.complete(): hold(kernel, x, codes, scales, bias)
    y = w8_a16_forward(codes, x, scales, bias)
    torch.testing.assert_close(y, choose(x, codes, scales).run(x, codes, scales, bias), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_codes_and_activations(dtype):
    "The largest activations whose sums a float32 holds, all of one sign and of both, times the largest codes."
    for rows, n, k in product((1, 4, 9, 33), (1, 16, 40), (1, 64, 67, 2048)):
        top = min(torch.finfo(dtype).max, 3e38 / 256 / k)
        scales = torch.full((n, 1), 1 / 256 / k)
        for pattern, value in product(range(3), (-128, 127)):
            sign = [torch.ones(rows, k), -torch.ones(rows, k), torch.randn(rows, k).sign()][pattern]
            codes = torch.full((n, k), value, dtype=torch.int8)
            codes[:, ::3] = (value, -128, 127)[pattern]
            for kernel in kernels.KERNELS.complete(): hold(kernel, (sign.double() * top).to(dtype), codes, scales, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(dtype, bad):
    torch.manual_seed(0)
    for rows, k in product((1, 3, 8, 21), (1, 31, 64, 129)):
        codes, scales = torch.randint(-128, 128, (40, k), dtype=torch.int8), torch.rand(40, 1) + .1
        x = torch.randn(rows, k).to(dtype)
        at = torch.randint(rows, (1,)).item()
        x[at, torch.randint(k, (1,)).item()] = bad
        others = torch.arange(rows) != at
        for kernel in kernels.KERNELS.complete():
            if kernel.why_not(x, codes, scales): continue
            y = kernel.run(x, codes, scales, None)
            want, room = allowed(kernel.name, x[others], codes, scales, None)
            assert not y[at].isfinite().any(), kernel.name
            assert ((y[others].double() - want).abs() <= room).all(), kernel.name


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_and_zero_codes_give_the_bias(dtype):
    torch.manual_seed(0)
    for rows, k in product((1, 4, 20), (1, 64, 70)):
        codes, bias, scales = torch.randint(-128, 128, (33, k), dtype=torch.int8), torch.randn(33).to(dtype), torch.rand(33, 1)
        for kernel in kernels.KERNELS.complete():
            for x, c in ((torch.zeros(rows, k, dtype=dtype), codes), (-torch.zeros(rows, k, dtype=dtype), codes), (torch.randn(rows, k).to(dtype), codes * 0)):
                if kernel.why_not(x, c, scales) is None: assert torch.equal(kernel.run(x, c, scales, bias), bias.expand(rows, 33)), kernel.name


def test_tiny_activations():
    "Down to numbers whose scale would not be a normal float32."
    torch.manual_seed(0)
    for size, dtype in product((1e-20, 1e-33, 1e-36, 1e-38), (torch.float32, torch.bfloat16)):
        x, codes = (torch.randn(6, 64) * size).to(dtype), torch.randint(-128, 128, (32, 64), dtype=torch.int8)
        for kernel in kernels.KERNELS.complete(): hold(kernel, x, codes, torch.full((32, 1), .5))


@pytest.mark.parametrize("name", NATIVE)
def test_threads_do_not_change_a_bit(name):
    kernel = next((k for k in kernels.KERNELS.complete() if k.name == name), None)
    if kernel is None: pytest.skip("numba is not installed")
    torch.manual_seed(0)
    before, ran = torch.get_num_threads(), 0
    try:
        for rows, n, k, dtype in product((1, 3, 8, 40), (700, 1029), (768, 1000), DTYPES[:3]):
            x, codes, scales, bias = problem(rows, n, k, dtype, 2)
            if kernel.why_not(x, codes, scales): continue
            results = []
            for threads in (1, 2, 2, 3):
                torch.set_num_threads(threads)
                results.append(kernel.run(x, codes, scales, bias))
            assert all(torch.equal(results[0], y) for y in results[1:]), (rows, n, k, dtype)
            ran += 1
    finally: torch.set_num_threads(before)
    if not ran: pytest.skip(f"this machine can't run {name}")


# the choice

def test_first_that_serves_is_taken():
    x, codes, scales = torch.randn(2, 3, 64).bfloat16(), torch.zeros(8, 64, dtype=torch.int8), torch.ones(8)
    reasons = explain(x, codes, scales)
    assert [name for name, _ in reasons] == [k.name for k in kernels.KERNELS.complete()]
    assert [k.rank for k in kernels.KERNELS.complete()] == sorted(k.rank for k in kernels.KERNELS.complete())
    first = next(name for name, why in reasons if why == "serves")
    assert choose(x.flatten(0, 1), codes, scales[:, None]).name == first
    assert set(kernel_table((1,)).keys()) == {torch.bfloat16, torch.float16, torch.float32}


def test_only_narrows_and_gives_back():
    x, codes, scales = torch.randn(2, 64), torch.zeros(8, 64, dtype=torch.int8), torch.ones(8, 1)
    before = choose(x, codes, scales)
    for name in torch_ops():
        with only(name): assert choose(x, codes, scales).name in (name, "dequantize in blocks")
    with only():
        assert choose(x, codes, scales).name == "dequantize in blocks"
        h, c, s = torch.randn(3, 70), torch.randint(-128, 128, (9, 70), dtype=torch.int8), torch.rand(9, 1)
        assert torch.equal(w8_a32_forward(h, c, s), F.linear(h, c * s))  # float32 arithmetic, to the last bit
    assert choose(x, codes, scales) is before
    with pytest.raises(ValueError, match="unknown kernel 'fast'; there are"):
        with only("fast"): pass
    with pytest.raises(ZeroDivisionError):
        with only(): 1 / 0
    assert choose(x, codes, scales) is before


@pytest.fixture
def table():
    "The table, to be changed: afterwards it is as it was."
    before = list(kernels.KERNELS.complete())
    yield kernels.KERNELS
    kernels.KERNELS[:] = before


def test_register_replaces_by_name(table):
    mine = Kernel("mine", 1, lambda *a: None, lambda x, codes, scales, bias: x.new_full((len(x), len(codes)), 7))
    register(mine); register(mine)
    assert [k.name for k in kernels.KERNELS].count("mine") == 1 and kernels.KERNELS[0] is mine
    assert w8_a16_forward(torch.zeros(3, 5, dtype=torch.int8), torch.ones(2, 2, 5), 1.).eq(7).all()


class Sub(torch.Tensor): pass


def test_who_watches_gets_the_reference(table):
    x, codes, scales = torch.randn(2, 64), torch.randint(-128, 128, (8, 64), dtype=torch.int8), torch.rand(8, 1)
    called = []
    trap = Kernel("trap", 0, lambda *a: None, lambda *a: called.append(a) or dequantized_linear(*a))
    register(trap)
    f = lambda t: quantized_linear(t, codes, scales)
    want = dequantized_linear(x, codes, scales)
    assert torch.equal(f(x), want) and called
    called.clear()
    grad = x.clone().requires_grad_()
    f(grad).sum().backward()
    torch.testing.assert_close(grad.grad, (codes * scales).sum(0).expand(2, -1))
    torch.testing.assert_close(torch.vmap(f)(x), want)
    torch.testing.assert_close(torch.func.jvp(f, (x,), (x,))[1], want)
    torch.testing.assert_close(torch.func.grad(lambda t: f(t).sum())(x), grad.grad)
    torch.testing.assert_close(torch.compile(f, backend="eager", fullgraph=True)(x), want)
    torch.testing.assert_close(torch.fx.experimental.proxy_tensor.make_fx(f)(x)(x), want)
    torch.testing.assert_close(torch.export.export(Module(f), (x,)).module()(x), want)
    assert quantized_linear(x.to("meta"), codes.to("meta"), scales.to("meta")).is_meta
    assert type(f(x.as_subclass(Sub))) is Sub
    quantized_linear(x, codes, scales.clone().requires_grad_()).sum().backward()
    quantized_linear(x, codes, scales, torch.zeros(8, requires_grad=True)).sum().backward()
    assert not called
    with torch.no_grad(): f(grad)
    with torch.inference_mode(): f(x)
    assert len(called) == 2
    assert not reads_memory(x, None, grad) and reads_memory(x, None)
    torch.compiler.reset()


class Module(torch.nn.Module):
    def __init__(self, f): super().__init__(); self.f = f
    def forward(self, x): return self.f(x)


def test_int8pack_asks_for_what_the_op_does_not_check(monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    x, codes, scales = torch.randn(4, 64).bfloat16(), torch.zeros(8, 64, dtype=torch.int8), torch.ones(8, 1)
    assert int8pack_fits(x, codes, scales) is None
    for args in [(x.half(), codes, scales), (x, codes.to(torch.uint8), scales), (x[:0], codes, scales), (x.repeat(2, 1), codes, scales),
                 (x[:, :48], codes[:, :48], scales), (x[:, :0], codes[:, :0], scales), (x, codes[:0], scales[:0]), (x, codes, scales[:1]),
                 (gaps(x), codes, scales), (x, columns_first(codes), scales), (shifted(x), codes, scales), (x, shifted(codes), scales)]:
        assert isinstance(int8pack_fits(*args), str)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert int8pack_fits(x, codes, scales) == "needs AVX2 or AVX512"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows=st.integers(1, 9), k=st.integers(1, 90), seed=st.integers(0, 2**31), power=st.integers(-44, 38))
def test_two_planes_are_16_bit_codes(rows, k, seed, power):
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3) * 10.**power
    planes, step = two_planes(x)
    high, low = planes.long().chunk(2)
    assert planes.dtype == torch.int8 and (high.abs() <= 127).all() and step.shape == (rows, 1)
    assert ((256*high + low) * step.double() - x.double()).abs().le(step.double() * .505).all()


# in processes of their own

def alone(what, timeout=300, **env):
    done = subprocess.run([sys.executable, "-X", "faulthandler", __file__, what], env={**os.environ, **env}, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")[-2]


@pytest.mark.parametrize("env, lacking", [({"ATEN_CPU_CAPABILITY": "avx2"}, {"AMX tiles"}), ({"ATEN_CPU_CAPABILITY": "default"}, {"AMX tiles", "int8pack"}),
                                          ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, {"two int8 planes"})], ids=["avx2", "default", "no VNNI"])
def test_sweep_on_a_lesser_processor(env, lacking):
    served = set(alone("sweep", **env).split("|"))
    assert {"dequantize in blocks", "scale after"} <= served and not served & lacking


def test_no_byte_beyond_a_tensor_is_read():
    if not sys.platform.startswith("linux"): pytest.skip("needs mprotect")
    assert int(alone("fence")) > 1000
    with pytest.raises(AssertionError, match="egmentation"): alone("beyond")  # the fence holds


def test_no_crash_under_repetition():
    assert alone("repeat") == "3000 calls"


def test_default_device_and_dtype_do_not_matter():
    assert alone("defaults") == "right"


def fenced(t, at_end):
    "A copy of `t` whose last byte lies before, or whose first byte lies behind, a page that can't be read."
    page, size = mmap.PAGESIZE, t.numel() * t.element_size()
    room = -(-max(size, 1) // page) * page
    m = mmap.mmap(-1, room + 2*page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(m))
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    assert protect(address, page, 0) == 0 == protect(address + page + room, page, 0)
    offset = page + room - size if at_end else page
    return torch.frombuffer(m, dtype=t.dtype, count=t.numel(), offset=offset).view(t.shape).copy_(t)


def fence():
    held = 0
    sizes = [(i * 11 % 71, i * 37 % 71, i) for i in range(1, 71)] + list(product((1, 4, 8, 20), (1, 16, 33), (64, 65, 96)))
    for i, (rows, n, k) in enumerate(sizes):
        for dtype, at_end in product(DTYPES[:3], (True, False)):
            g = torch.Generator().manual_seed(i)
            x, codes = torch.randn(rows, k, generator=g).to(dtype), torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=g)
            scales, bias = torch.rand(n, 1, generator=g), torch.randn(n, generator=g)
            args = [fenced(t, at_end) for t in (x, codes, scales, bias)]
            held += sum(hold(kernel, *args) for kernel in kernels.KERNELS.complete())
            assert args[0].equal(x) and args[1].equal(codes)
    print(held)


def beyond():
    t = fenced(torch.ones(33), True)
    ctypes.c_char.from_address(t.data_ptr() + 4*33).value


def repeat(calls=3000):
    g, table = torch.Generator().manual_seed(0), kernels.KERNELS.complete()
    draw = lambda n: torch.randint(n, (1,), generator=g).item()
    for i in range(calls):
        torch.set_num_threads(1 + (i >= calls - 500))
        x, codes, scales, bias = problem(draw(24), 1 + draw(80), 1 + draw(160), DTYPES[draw(4)], i, g)
        y = w8_a16_forward(codes, x, scales, bias)
        if i % 10 == 0: assert y.isfinite().all()
        kernel = table[i % len(table)]
        if kernel.why_not(x, codes, scales) is None: kernel.run(x, codes, scales, bias)
    print(calls, "calls")


def defaults():
    "A default device or dtype of the program is no business of a kernel."
    sizes = [(1, 16, 64), (6, 40, 130), (70, 33, 64)]
    problems = [problem(*size, dtype, 2 * i) for size in sizes for dtype in DTYPES for i in range(3)]
    expected = [[k.run(*p) if k.why_not(*p[:3]) is None else None for k in kernels.KERNELS.complete()] for p in problems]
    def again(): return [[k.run(*p) if k.why_not(*p[:3]) is None else None for k in kernels.KERNELS.complete()] for p in problems]
    def same(got): assert all(a is b or a.device == b.device and torch.equal(a, b) for p, q in zip(got, expected) for a, b in zip(p, q))
    with torch.device("meta"): same(again()); kernels._int_mm_is_exact.cache_clear(); kernel_table(); same(again())
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        torch.set_default_dtype(dtype); same(again()); torch.set_default_dtype(torch.float32)
    print("right")


if __name__ == "__main__":
    {"sweep": lambda: print("|".join(sweep())), "fence": fence, "beyond": beyond, "repeat": repeat, "defaults": defaults}[sys.argv[1]]()
