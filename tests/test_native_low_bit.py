"""The compiled kernels for packed weights are right for every number of bits, every group, every length, and read no byte that isn't theirs.

Run as a program (`python test_native_low_bit.py fence`), it does the check that needs a process of its own."""
import copy
import os
import pickle
import subprocess
import sys
from dataclasses import fields, replace
from itertools import product

import pytest
import torch

pytest.importorskip("numba")
from tinyq import native_low_bit as nl
from tinyq.low_bit import PACKED_KERNELS, packed_in_blocks
from tinyq.kernels import Table
from tinyq.packing import Packing, pack, unpack
from tinyq.per_group import QTensor

DTYPES = torch.float32, torch.bfloat16, torch.float16
NAMES = DIGITS, HALVES, DOTS, ROWS = "AMX tiles, packed", "AMX bfloat16 tiles, packed", "VNNI dot products, packed", "dot products, packed"
KERNELS = {k.name: k for k in PACKED_KERNELS.complete() if k.name in NAMES}
ABLE = {ROWS} | ({DIGITS, HALVES} if nl.AMX else set()) | ({DOTS} if nl.VNNI else set())


def without_amx(x, q):
    "The dot products of bytes leave everything to AMX where there is one; here they are asked as if there were none."
    before, nl.AMX = nl.AMX, False
    try: return nl.dots_fit(x, q)
    finally: nl.AMX = before


KERNELS[DOTS] = replace(KERNELS[DOTS], why_not=without_amx)
needs_amx = pytest.mark.skipif(not nl.AMX, reason="this processor has no AMX")


def weight(n, k, bits=4, group=128, asym=False, g=None):
    "Random codes, scales and zero points, packed."
    g = g or torch.Generator().manual_seed(n * 7919 + k * 31 + bits)
    group = None if group is None or group > k else group
    groups, half = -(-k // (group or k)), 2**(bits - 1)
    codes, zeros = (torch.randint(-half, half, (n, m), dtype=torch.int8, generator=g) for m in (k, groups))
    scale = torch.rand(n, groups, generator=g) * .01 + 1e-3
    return QTensor(codes, scale if group is None else scale.bfloat16(), zeros if asym else None, bits, group, torch.Size((n, k))).pack(Packing(bits))


def allowed(name, x, q, bias):
    "The product in float64, and how far from it rounding may lead (Higham 2002, section 3.1)."
    info, x, w, b = torch.finfo(x.dtype), x.double(), q.dequantize(torch.float64), bias.double()
    size, u = x.abs() @ w.abs().t() + b.abs(), info.eps / 2
    lost = 2.**-24 if info.dtype == "float16" else 0.  # what may be rounded to 0
    room = (3*u / (1 - 3*u) + q.columns * 2.**-23) * size + lost
    group = q.group_size or q.columns
    top, scale = x.abs().amax(1, keepdim=True), q.scale.double().repeat_interleave(group, 1)[:, :q.columns].sum(1)
    if name in (DIGITS, DOTS):  # half a step of each input; a sum from which excess or zero point is taken, in float32
        room = room + top / 65024 * 1.01 * w.abs().sum(1)
        if q.zero_point is not None or name == DOTS: room = room + 2.**-22 * 2**q.bits * scale * x.abs().sum(1, keepdim=True) / q.columns**.5
    if name == HALVES: room = room + 2.**-8 * size  # the weight is rounded too
    return x @ w.t() + b, room


def hold(name, x, q, bias):
    "Run a kernel if it serves; whether it did. Its result must be one that rounding explains."
    kernel = KERNELS[name]
    if kernel.why_not(x, q) is not None: return False
    y = kernel.run(x, q, bias)
    want, room = allowed(name, x, q, bias)
    off = (y.double() - want).abs()
    assert y.dtype == x.dtype and y.shape == want.shape
    assert (off <= room).all(), (name, q.bits, q.group_size, q.zero_point is not None, tuple(x.shape), x.dtype, (off / room).max().item())
    return True


def inputs(rows, k, dtype, i=0): return torch.randn(rows, k, generator=torch.Generator().manual_seed(rows * 1000 + k + i)).to(dtype)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_grid_every_group_every_number_of_rows(bits):
    served, i = set(), 0
    for asym, group, k in product((False, True), (None, 16, 32, 64, 100, 128), (64, 200, 512, 577)):
        q, bias = weight(40, k, bits, group, asym), torch.randn(40, generator=torch.Generator().manual_seed(i))
        for rows in (*range(1 + i % 3, 21, 3), 33 + i % 2, 64, 70, 130)[i % 2::2]:
            i += 1
            for name in KERNELS:
                if hold(name, inputs(rows, k, DTYPES[(i + i // 11) % 3]), q, bias): served.add(name)
    assert served == ABLE


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_rest_of_the_packing(bits):
    "Every length up to beyond a block: all remainders, and groups that end anywhere."
    for k in (*range(1, 130), *range(130, 1100, 7)):
        q, bias = weight(17, k, bits, (None, 32, 48, 128)[k % 4], k % 3 == 0), torch.zeros(17)
        for name in KERNELS: hold(name, inputs((1, 3, 8, 12, 40)[k % 5], k, DTYPES[k % 3 if k % 5 < 4 else 1]), q, bias)


@pytest.mark.parametrize("n", [16, 17, 31, 32, 33, 63, 64, 65, 80, 129])
def test_every_number_of_channels(n):
    for rows, dtype in product((1, 4, 8, 16, 33, 50), DTYPES):
        q = weight(n, 192, 4, 64, n % 2 == 0)
        for name in KERNELS: hold(name, inputs(rows, 192, dtype), q, torch.ones(n))


def test_many_rows_come_in_portions():
    q = weight(48, 4096, 4, 32)
    for rows, dtype in ((700, torch.float32), (700, torch.bfloat16), (330, torch.float16)):
        assert sum(hold(name, inputs(rows, 4096, dtype), q, torch.zeros(48)) for name in KERNELS) == nl.AMX


@pytest.mark.parametrize("k", [2**15, 2**15 + 64, 50000])
def test_sums_of_long_rows_fit_their_integers(k):
    "The largest codes and activations of one sign, beyond what 32 bits hold in one sum."
    for bits, value in ((8, -128), (8, 127), (4, -8)):
        q = QTensor(torch.full((16, k), value, dtype=torch.int8), torch.ones(16, 1), None, bits, None, torch.Size((16, k))).pack(Packing(bits))
        for rows in (1, 8, 17): assert hold(DIGITS, torch.ones(rows, k), q, torch.zeros(16)) == nl.AMX


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(dtype, bad):
    for rows, bits, group in product((1, 2, 7, 21, 70), (3, 4, 8), (32, 128)):
        q, x, at = weight(48, 264, bits, group), inputs(rows, 264, dtype), rows // 2
        clean = x.clone()
        x[at, 100] = bad
        others = torch.arange(rows) != at
        for kernel in KERNELS.values():
            if kernel.why_not(x, q): continue
            y = kernel.run(x, q, None)
            assert not y[at].isfinite().any(), kernel.name
            assert torch.equal(y[others], kernel.run(clean, q, None)[others]), kernel.name


def test_zeros_give_the_bias():
    for rows, asym, dtype in product((1, 5, 40), (False, True), DTYPES):
        q, bias = weight(33, 300, 5, 64, asym), torch.randn(33).to(dtype)
        for kernel in KERNELS.values():
            x = torch.zeros(rows, 300, dtype=dtype)
            if kernel.why_not(x, q) is None: assert torch.equal(kernel.run(x, q, bias), bias.expand(rows, 33)), kernel.name


def test_threads_do_not_change_a_bit():
    before = torch.get_num_threads()
    try:
        for rows, bits, dtype in product((1, 8, 40, 100), (3, 4), DTYPES):
            q, x = weight(700, 1100, bits, 128, bits == 3), inputs(rows, 1100, dtype)
            for kernel in KERNELS.values():
                if kernel.why_not(x, q): continue
                results = []
                for threads in (1, 2, 2, 3):
                    torch.set_num_threads(threads)
                    results.append(kernel.run(x, q, None))
                assert all(torch.equal(results[0], y) for y in results[1:]), (kernel.name, rows, bits, dtype)
    finally: torch.set_num_threads(before)


def test_guards_name_the_reason():
    q, x = weight(32, 256), torch.randn(2, 256)
    for args, why in [((x[:0], q), "nothing to multiply"), ((x.double(), q), "float64"), ((x, q.unpack()), "not packed"),
                      ((x, replace(q, scale=q.scale.double())), "scales are")]:
        for name in KERNELS:
            assert KERNELS[name].why_not(*args) is not None
        assert why in KERNELS[ROWS].why_not(*args)
    assert "less than a tile" in (KERNELS[DIGITS].why_not(x, weight(8, 256)) or "") or not nl.AMX
    assert "rows" in KERNELS[ROWS].why_not(torch.randn(17, 256), q)
    if nl.AMX:
        assert "worth it up to" in KERNELS[DIGITS].why_not(torch.randn(64, 256).bfloat16(), q)
        assert "worth it from" in KERNELS[HALVES].why_not(torch.randn(2, 256).bfloat16(), q)
        assert "parts" in KERNELS[DIGITS].why_not(torch.randn(1, 70000), weight(16, 70000))


def test_views_and_strides():
    q, x = weight(40, 256, 4, 64), torch.randn(6, 512)[:, ::2]
    for name in KERNELS: hold(name, x, q, torch.zeros(80)[::2])


def test_what_is_remembered_follows_the_memory():
    for kernel, fits in [(k.run, k.why_not) for k in KERNELS.values()]:
        q, x = weight(48, 256, 4, 64), inputs(2, 256, torch.float32)
        if fits(x, q): continue
        first = kernel(x, q, None)
        at = q.codes.data_ptr()
        q.codes.data = q.codes.bitwise_not()
        assert q.codes.data_ptr() != at and torch.equal(kernel(x, q, None), kernel(x, replace(q), None)) and not torch.equal(kernel(x, q, None), first)
        with torch.no_grad(): q.scale.mul_(2) # in place: read anew at each call
        assert torch.equal(kernel(x, q, None), kernel(x, replace(q), None))
        for copied in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
            assert vars(copied).keys() == {f.name for f in fields(q)} and torch.equal(kernel(x, copied, None), kernel(x, q, None))
        assert "memory of the CPU" in fits(x, replace(q, codes=q.codes.to("meta")))


@pytest.mark.parametrize("bits", range(1, 9))
def test_many_codes_are_packed_and_unpacked_in_one_pass(bits, monkeypatch):
    served, table = [], Table()
    def spy(f): return lambda *args: served.append(f(*args)) or served[-1]
    table.append((spy(nl.pack_blocks), spy(nl.unpack_blocks)))
    def by(codecs, f, *args):
        monkeypatch.setattr("tinyq.packing.CODECS", codecs)
        return f(*args)
    for signed, (n, k) in product((True, False), ((2200, 1000), (2100, 512), (2, 1 << 19))):
        codes = (weight(n, k, bits, None).int_codes() + (0 if signed else 2**(bits - 1))).to(torch.int8 if signed else torch.uint8)
        packed = by(Table(), pack, codes, bits, signed, 64)
        wide = lambda t: torch.cat([t, t], 1)[:, :t.shape[1]] # rows further apart than they are long
        for c in (codes, wide(codes)): assert torch.equal(by(table, pack, c, bits, signed, 64), packed)
        for p in (packed, wide(packed)): assert torch.equal(by(table, unpack, p, bits, k, signed, 64), codes)
        assert served.count(True) >= 4; served.clear() # the rest of a row is too small, or too narrow
        assert torch.equal(by(table, unpack, by(table, pack, codes, bits, signed, 16), bits, k, signed, 16), codes) and not any(served) # another layout
        served.clear()
        if bits == 8: continue
        for bad in (2**(bits - 1), -2**(bits - 1) - 1) if signed else (2**bits, 255):
            wrong = codes.clone(); wrong[n - 1, 70] = bad
            with pytest.raises(ValueError, match=rf"code {bad} at \[{n - 1}, 70\] does not fit"): by(table, pack, wrong, bits, signed, 64)
        assert not any(served); served.clear()


def test_the_order_of_the_table():
    q = weight(64, 256)
    def first(rows, dtype): return next(k.name for k in PACKED_KERNELS.complete() if k.why_not(torch.zeros(rows, 256, dtype=dtype), q) is None)
    if nl.AMX:
        assert [first(r, torch.bfloat16) for r in (1, 32, 33, 512)] == [DIGITS, DIGITS, HALVES, HALVES]
        assert [first(r, torch.float32) for r in (1, 512)] == [DIGITS, DIGITS]
    else: assert first(1, torch.float32) == ROWS
    y = packed_in_blocks(x := torch.randn(3, 256), q)
    torch.testing.assert_close(next(k for k in PACKED_KERNELS if k.name == first(3, torch.float32)).run(x, q, None), y, rtol=1e-3, atol=1e-3)


# in processes of their own

def alone(what, **env):
    done = subprocess.run([sys.executable, "-X", "faulthandler", __file__, what], env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.split("\n")[-2]


def test_no_byte_beyond_a_tensor_is_read():
    if not sys.platform.startswith("linux"): pytest.skip("needs mprotect")
    assert int(alone("fence")) > 500


def test_on_a_lesser_processor():
    assert alone("served", ATEN_CPU_CAPABILITY="avx2") == ROWS


def fence():
    from test_kernels import fenced
    held = 0
    sizes = [(16, 64, None), (17, 65, 32), (33, 128, 64), (40, 200, 100), (16, 577, 128), (20, 1030, 16), (3, 90, 32)]
    for i, ((n, k, group), bits, rows) in enumerate(product(sizes, range(1, 9), (1, 4, 8, 20, 40))):
        q, dtype = weight(n, k, bits, group, i % 2 == 0), DTYPES[i % 3]
        for at_end in (True, False):
            f = lambda t: None if t is None else fenced(t, at_end)
            p = replace(q, codes=f(q.codes), scale=f(q.scale), zero_point=f(q.zero_point))
            x, bias = fenced(inputs(rows, k, dtype), at_end), fenced(torch.zeros(n), at_end)
            held += sum(hold(name, x, p, bias) for name in KERNELS)
            if k // 64 // nl.lanes_of(bits):
                blocks = p.codes[:, :k // 64 // nl.lanes_of(bits) * 64 * nl.lines_of(bits)].unflatten(1, (-1, nl.lines_of(bits), 64))
                out, again = f(torch.empty(n, blocks.shape[1], nl.lanes_of(bits), 64, dtype=torch.int8)), f(torch.empty_like(blocks))
                assert nl.unpack_blocks(blocks, bits, True, out) and torch.equal(out.flatten(1), p.int_codes()[:, :out[0].numel()])
                assert nl.pack_blocks(out, bits, again) and torch.equal(again, blocks)
    print(held)


def served():
    q, bias = weight(40, 300, 3, 64), torch.zeros(40)
    print("|".join(name for name in KERNELS if hold(name, inputs(2, 300, torch.float32), q, bias)))


if __name__ == "__main__": {"fence": fence, "served": served}[sys.argv[1]]()
