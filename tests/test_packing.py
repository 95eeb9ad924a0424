"Packed codes: exact in every direction, as small as promised, and byte for byte what others write."
import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyq import QTensor, Scheme, int_range, quantize_tensor
from tinyq.packing import (LAYOUTS, STRIDE, Packing, bit_owners, from_gguf, from_layout, pack, pack_weights, packed_size, to_gguf, to_layout, unpack,
                           unpack_weights)

settings.register_profile("tinyq", deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("tinyq")

BITS = range(1, 9)
bits_ = st.integers(1, 8)
strides = st.sampled_from([1, 2, 5, 16, 64, 100])
seeds = st.integers(0, 2**31)
INTS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]


def some(bits, *shape, signed=True, seed=0):
    lo, hi = int_range(bits, signed)
    return torch.randint(lo, hi + 1, shape, dtype=torch.int8 if signed else torch.uint8, generator=torch.Generator().manual_seed(seed))


def slow_block(codes, bits, columns, lanes):
    "One block: the codes of a column are one little-endian string of bits."
    used = -(-len(codes) // columns)
    size = -(-used * bits // 8)
    out = [[0] * columns for _ in range(size)]
    for j in range(columns):
        number = sum(codes[i * columns + j] << i * bits for i in range(used) if i * columns + j < len(codes))
        for k in range(size): out[k][j] = number >> 8 * k & 255
    return sum(out, [])


def slow_pack(codes, bits, signed, stride):
    "The definition, code by code, in Python's integers."
    stored = [c + (1 << bits - 1) * signed for c in codes]
    lanes = 8 // math.gcd(8, bits)
    full = len(stored) - len(stored) % (lanes * stride)
    out = [b for i in range(0, full, lanes * stride) for b in slow_block(stored[i:i + lanes * stride], bits, stride, lanes)]
    return out + (slow_block(stored[full:], bits, -(-(len(stored) - full) // lanes), lanes) if full < len(stored) else [])


# -- there and back

@given(bits=bits_, signed=st.booleans(), stride=strides, shape=st.lists(st.integers(0, 5), max_size=3), n=st.integers(0, 300), seed=seeds)
def test_there_and_back(bits, signed, stride, shape, n, seed):
    c = some(bits, *shape, n, signed=signed, seed=seed)
    p = pack(c, bits, stride=stride)
    assert p.dtype == torch.uint8 and p.shape == (*shape, packed_size(n, bits, stride)) and p.is_contiguous()
    back = unpack(p, bits, n, signed, stride)
    assert back.dtype == c.dtype and torch.equal(back, c)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_every_remainder(bits, signed):
    for stride in (1, 2, 16):
        for n in range(8 * stride + 9):
            c = some(bits, 2, n, signed=signed, seed=n)
            p = pack(c, bits, stride=stride)
            assert p.tolist() == [slow_pack(row, bits, signed, stride) for row in c.tolist()], (bits, signed, stride, n)
            assert torch.equal(unpack(p, bits, n, signed, stride), c), (bits, signed, stride, n)


@given(bits=bits_, signed=st.booleans(), stride=strides, n=st.integers(0, 700), seed=seeds)
def test_bytes_are_the_definition(bits, signed, stride, n, seed):
    c = some(bits, n, signed=signed, seed=seed)
    assert pack(c, bits, stride=stride).tolist() == slow_pack(c.tolist(), bits, signed, stride)


@pytest.mark.parametrize("bits", BITS)
def test_lowest_and_highest_code(bits):
    for signed in (False, True):
        for v in int_range(bits, signed):
            c = torch.full((3, 130), v, dtype=torch.int8 if signed else torch.uint8)
            for stride in (1, 64): assert torch.equal(unpack(pack(c, bits, stride=stride), bits, 130, signed, stride), c)


def test_stride_one_is_one_long_number():
    for bits in BITS:
        for n in (1, 8, 13, 64):
            c = some(bits, n, signed=False, seed=n).tolist()
            number = sum(v << i * bits for i, v in enumerate(c)).to_bytes(-(-n * bits // 8), "little")
            assert bytes(pack(torch.tensor(c, dtype=torch.uint8), bits).tolist()) == number


@pytest.mark.parametrize("dtype", INTS)
def test_every_integer_dtype(dtype):
    c = some(3, 4, 77, signed=dtype.is_signed)
    assert torch.equal(pack(c.to(dtype), 3), pack(c, 3))


def test_the_dtype_says_the_sign_unless_told():
    c = some(4, 40, signed=False) % 8 # fits both
    assert torch.equal(pack(c.to(torch.int8), 4, signed=False), pack(c, 4))
    assert torch.equal(pack(c, 4, signed=True), pack(c.to(torch.int8), 4))
    assert unpack(pack(c, 4), 4, 40).dtype == torch.uint8 and unpack(pack(c, 4), 4, 40, signed=True).dtype == torch.int8


@pytest.mark.parametrize("stride", [1, 64])
def test_memory_order_of_the_codes_does_not_matter(stride):
    c = some(3, 6, 5, 200)
    want = pack(c, 3, stride=stride)
    wide = torch.zeros(6, 5, 400, dtype=torch.int8)
    wide[..., ::2] = c
    for same in (wide[..., ::2], c.permute(2, 1, 0).contiguous().permute(2, 1, 0), c[:1].expand(6, 5, 200)):
        assert torch.equal(pack(same, 3, stride=stride), want if same.shape != c.shape or torch.equal(same, c) else want[:1].expand_as(want))
    p = torch.zeros(6, 5, 2 * want.shape[-1], dtype=torch.uint8)
    p[..., ::2] = want
    for same in (p[..., ::2], want.permute(2, 1, 0).contiguous().permute(2, 1, 0)):
        assert torch.equal(unpack(same, 3, 200, True, stride), c)


def test_nothing_is_packed_into_nothing():
    for shape in ((0,), (0, 5), (5, 0), (2, 0, 3), (0, 0)):
        c = torch.zeros(shape, dtype=torch.int8)
        for stride in (1, 64):
            p = pack(c, 4, stride=stride)
            assert p.shape == (*shape[:-1], packed_size(shape[-1], 4, stride))
            assert unpack(p, 4, shape[-1], True, stride).shape == shape


def test_more_codes_than_a_block_of_the_cache(monkeypatch):
    import tinyq.packing as packing
    for shape in ((7, 5000), (1, 9000), (300, 70)):
        for bits in (3, 4):
            c = some(bits, *shape)
            want = pack(c, bits, stride=16)
            with monkeypatch.context() as m:
                m.setattr(packing, "_BLOCK", 1000)
                assert torch.equal(pack(c, bits, stride=16), want) and torch.equal(unpack(want, bits, shape[1], True, 16), c)


def test_inputs_stay_as_they_are():
    c = some(3, 3, 333)
    keep = c.clone()
    p = pack(c, 3)
    kept = p.clone()
    unpack(p, 3, 333, True)
    assert torch.equal(c, keep) and torch.equal(p, kept)
    for bits, n in ((8, 64), (8, 3), (8, 0)): # 8 unsigned bits change nothing, and still a new tensor is made
        u = some(bits, n, signed=False)
        assert n == 0 or pack(u, bits).data_ptr() != u.data_ptr()


# -- sizes

@given(length=st.integers(0, 5000), bits=bits_, stride=strides)
def test_no_larger_than_promised(length, bits, stride):
    size, least = packed_size(length, bits, stride), -(-length * bits // 8)
    assert size >= least and (stride > 1 or size == least)
    assert size - least < stride * bits # only the last block may hold a few bits more
    if length % (stride * 8) == 0: assert size == least
    assert Packing(bits, True, stride).size(length) == size


def test_where_the_bits_lie():
    for bits in BITS:
        for stride in (1, 4, 64):
            for n in (8, 64, 100):
                owners = bit_owners(lambda c: pack(c, bits, stride=stride), n, bits).flatten()
                assert torch.equal(owners[owners >= 0].bincount(minlength=n), torch.full((n,), bits)) # every code has its bits, and each bit one owner at most
    assert bit_owners(lambda c: pack(c, 4, stride=64), 128, 4).tolist() == [[j] * 4 + [j + 64] * 4 for j in range(64)]


def test_missing_codes_are_bits_of_zero():
    for bits in BITS:
        for stride in (1, 16):
            for n in (1, 3, 13, 37, 100):
                free = bit_owners(lambda c: pack(c, bits, stride=stride), n, bits) < 0
                p = pack(torch.full((n,), -1 << bits - 1, dtype=torch.int8), bits, stride=stride)
                full = pack(torch.full((n,), (1 << bits - 1) - 1, dtype=torch.int8), bits, stride=stride)
                assert not p.any() # the lowest signed code is stored as 0
                assert not (full.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1)[free].any()


# -- the seeds' pair

def test_flat_pair():
    assert pack_weights(torch.tensor([0, 1, 2, 3], dtype=torch.uint8), 2).tolist() == [228]
    assert pack_weights(torch.tensor([0, 1, 2, 3] * 2, dtype=torch.uint8), 2).tolist() == [228, 228]
    assert unpack_weights(torch.tensor([228, 228], dtype=torch.uint8), 2).tolist() == [0, 1, 2, 3] * 2
    for bits in BITS:
        for signed in (False, True):
            c = some(bits, 3, 5, 7, signed=signed)
            assert torch.equal(unpack_weights(pack_weights(c, bits), bits, c.numel(), signed), c.flatten())
            assert pack_weights(c, bits).shape == (-(-c.numel() * bits // 8),)


# -- bad input

@pytest.mark.parametrize("bits", [0, 9, -1])
def test_bits_outside_the_range(bits):
    for f in (lambda: pack(torch.zeros(4, dtype=torch.int8), bits), lambda: unpack(torch.zeros(4, dtype=torch.uint8), bits, 4), lambda: Packing(bits),
              lambda: packed_size(4, bits), lambda: pack_weights(torch.zeros(4, dtype=torch.int8), bits), lambda: to_layout(torch.zeros(8, 8, dtype=torch.int8), "plain", bits)):
        with pytest.raises(ValueError, match=f"bits is {bits}"): f()
    with pytest.raises(TypeError, match="not an int"): pack(torch.zeros(4, dtype=torch.int8), 4.)


@given(bits=bits_, signed=st.booleans(), dtype=st.sampled_from(INTS), n=st.integers(1, 300), stride=strides, seed=seeds, above=st.booleans())
def test_a_code_that_does_not_fit_is_named(bits, signed, dtype, n, stride, seed, above):
    lo, hi = int_range(bits, signed)
    bad = hi + 1 if above else lo - 1
    held = torch.iinfo(dtype)
    if not held.min <= bad <= held.max: return
    c = some(bits, 3, n, signed=signed, seed=seed).long().clamp(0, min(hi, held.max)).to(dtype)
    at = seed % n
    c[1, at] = bad
    with pytest.raises(ValueError, match=rf"code {bad} at \[1, {at}\] does not fit {bits} {'signed' if signed else 'unsigned'} bits? \({lo} to {hi}\)"):
        pack(c, bits, signed, stride)


def test_codes_that_do_not_fit_keep_their_place_in_any_shape():
    c = torch.zeros(2, 3, 5, 200, dtype=torch.int8)
    c[1, 2, 4, 190] = 9
    for wrong in (c, c.long(), c.transpose(0, 1).contiguous().transpose(0, 1)):
        with pytest.raises(ValueError, match=r"code 9 at \[1, 2, 4, 190\] does not fit 3 signed bits \(-4 to 3\)"): pack(wrong, 3, stride=16)
    with pytest.raises(ValueError, match=r"code -1 at \[0\] does not fit 4 unsigned bits \(0 to 15\)"): pack(torch.tensor([-1]), 4, signed=False)
    with pytest.raises(ValueError, match=r"code 200 at \[1\] does not fit 8 signed bits"): pack(torch.tensor([0, 200], dtype=torch.uint8), 8, signed=True)
    with pytest.raises(ValueError, match=r"code 2 at \[0\] does not fit 1 unsigned bit \(0 to 1\)"): pack(torch.tensor([2], dtype=torch.uint8), 1)
    assert pack(c, 3, check=False).shape == pack(c.clamp(-4, 3), 3).shape # the caller's promise is believed


def test_wrong_types_and_shapes():
    zeros = torch.zeros(4, 8, dtype=torch.uint8)
    for bad, error, text in [(torch.zeros(4), TypeError, "float32, not an integer dtype"), (torch.zeros(4, dtype=torch.bool), TypeError, "bool, not an integer dtype"),
                             (torch.zeros(4, dtype=torch.complex64), TypeError, "not an integer dtype"), ([1, 2], TypeError, "codes are a list"),
                             (torch.tensor(3), ValueError, r"shape \(\)")]:
        with pytest.raises(error, match=text): pack(bad, 4)
    for length, text in ((15, "8 bytes, but 15 codes of 4 bits with stride 64 take 8"), (14, "8 bytes, but 14 codes of 4 bits with stride 64 take 7"), (17, "take 9")):
        if text.endswith("take 8"): assert unpack(zeros, 4, length, stride=64).shape == (4, 15)
        else:
            with pytest.raises(ValueError, match=text): unpack(zeros, 4, length, stride=64)
    with pytest.raises(TypeError, match="int8, not torch.uint8"): unpack(zeros.to(torch.int8), 4, 16)
    with pytest.raises(ValueError, match=r"shape \(\)"): unpack(zeros[0, 0], 4, 2)
    with pytest.raises(ValueError, match="stride is 0"): pack(zeros, 4, stride=0)
    with pytest.raises(TypeError, match="stride is 1.5"): pack(zeros, 4, stride=1.5)
    with pytest.raises(ValueError, match="length is -1"): unpack(zeros, 4, -1)
    with pytest.raises(TypeError, match="length is 16.0"): unpack(zeros, 4, 16.)


# -- tracers and places without data

def test_meta():
    for bits in BITS:
        c = torch.zeros(3, 1000, dtype=torch.int8, device="meta")
        p = pack(c, bits, stride=64)
        assert p.is_meta and p.shape == (3, packed_size(1000, bits, 64)) and p.dtype == torch.uint8
        back = unpack(p, bits, 1000, True, 64)
        assert back.is_meta and back.shape == (3, 1000) and back.dtype == torch.int8


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode
    with FakeTensorMode(): assert unpack(pack(torch.zeros(3, 100, dtype=torch.int8), 3, stride=16), 3, 100, True, 16).shape == (3, 100)


@pytest.mark.parametrize("bits", [3, 4])
def test_compiled(bits):
    c = some(bits, 3, 300)
    f = torch.compile(lambda c: pack(c, bits, stride=64), fullgraph=True, backend="aot_eager")
    g = torch.compile(lambda p: unpack(p, bits, 300, True, 64), fullgraph=True, backend="aot_eager")
    assert torch.equal(f(c), pack(c, bits, stride=64)) and torch.equal(g(pack(c, bits, stride=64)), c)
    torch.compiler.reset()


def test_vmap():
    c = some(3, 4, 2, 100)
    p = torch.vmap(lambda c: pack(c, 3, stride=16))(c)
    assert torch.equal(p, pack(c, 3, stride=16)) and torch.equal(torch.vmap(lambda p: unpack(p, 3, 100, True, 16))(p), c)


def test_threads_and_inference_mode():
    c, threads = some(4, 40, 1000), torch.get_num_threads()
    p = pack(c, 4, stride=64)
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            with torch.inference_mode(): assert torch.equal(pack(c, 4, stride=64), p) and torch.equal(unpack(p, 4, 1000, True, 64), c)
    finally: torch.set_num_threads(threads)
    assert torch.equal(unpack(torch.nn.Parameter(p, requires_grad=False), 4, 1000, True, 64), c)


def test_under_a_default_device():
    with torch.device("meta"): p = pack(torch.zeros(3, 300, dtype=torch.int8, device="cpu"), 4, stride=64)
    assert p.device.type == "cpu" and (p == 0x88).all()


# -- packed tensors

@given(bits=bits_, group=st.sampled_from([None, 0, 1, 7, 32]), asym=st.booleans(), stride=st.sampled_from([1, 16, STRIDE]), cols=st.integers(1, 150), seed=seeds)
def test_packed_qtensor(bits, group, asym, stride, cols, seed):
    w = torch.randn(5, cols, generator=torch.Generator().manual_seed(seed))
    q = quantize_tensor(w, Scheme(bits, 16, group, "asym" if asym else "symf"))
    packing = Packing(bits, True, stride)
    p = q.pack(packing)
    assert p.packing == packing and p.codes.dtype == torch.uint8 and torch.equal(p.int_codes(), q.codes) and torch.equal(p.dequantize(), q.dequantize())
    rows, columns = q.codes.shape
    zeros = rows * packed_size(q.scale.shape[1], bits) if asym else 0
    assert p.nbytes == rows * packed_size(columns, bits, stride) + q.scale.nbytes + zeros
    assert p.bits_per_weight == 8 * p.nbytes / w.numel()
    back = p.unpack()
    assert isinstance(back, QTensor) and back.packing is None and torch.equal(back.codes, q.codes)
    assert back.zero_point is None if not asym else torch.equal(back.zero_point, q.zero_point)


# -- what others write

@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_there_and_back(name):
    lay = LAYOUTS[name]
    for bits in lay.bits:
        for signed in (False, True):
            for shape in ((lay.multiple, lay.multiple), (96, 64), (lay.multiple * (1 - lay.along) or 3, lay.multiple * lay.along or 5), (8, 32)):
                c = some(bits, *shape, signed=signed)
                p = to_layout(c, name, bits)
                assert p.dtype == lay.word and p.is_contiguous()
                back = from_layout(p, name, bits, shape, signed)
                assert back.dtype == c.dtype and torch.equal(back, c)


def test_layouts_that_are_not():
    c = some(4, 8, 40)
    for f, text in [(lambda: to_layout(c, "zip", 4), "layout is 'zip'; choose from plain"), (lambda: from_layout(c, "zip", 4, (8, 40)), "layout is 'zip'"),
                    (lambda: to_layout(c, "gguf", 4), "in_features is 40; layout 'gguf' needs a multiple of 32"),
                    (lambda: to_layout(c[:5], "awq", 4), "out_features is 5; layout 'awq' needs a multiple of 8"),
                    (lambda: to_layout(c, "awq", 3), "layout 'awq' has no 3 bits, only 4"), (lambda: to_layout(c[0], "plain", 4), r"shape \(40,\), not"),
                    (lambda: from_layout(c, "plain", 4, (8, 40)), "torch.int8 of shape"), (lambda: from_layout(to_layout(c, "plain", 4), "plain", 4, (8, 42)), r"of shape \(8, 21\)")]:
        with pytest.raises(ValueError, match=text): f()


def words(columns, bits): # rows of unsigned codes -> rows of 32-bit words, as ints
    return [[number >> 32 * k & 0xffffffff for k in range(-(-len(c) * bits // 32))] for c in columns for number in [sum(v << i * bits for i, v in enumerate(c))]]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gptq_where_codes_divide_a_word(bits):
    "qweight[i // n, o] |= code[i, o] << bits * (i % n), n codes in a word; stored (in_features / n, out_features)."
    c, n = some(bits, 6, 64, signed=False), 32 // bits
    want = np.zeros((64 // n, 6), dtype=np.uint32)
    for i in range(64):
        for o in range(6): want[i // n, o] |= np.uint32(int(c[o, i]) << bits * (i % n))
    assert (to_layout(c, "gptq", bits).numpy().view(np.uint32) == want).all()


def test_gptq_of_three_bits():
    "32 codes in three words: ten, a cut one, ten, a cut one, ten."
    c = some(3, 4, 64, signed=False)
    q, want = c.t().numpy().astype(np.uint32), np.zeros((6, 4), dtype=np.uint32)
    i = row = 0
    while row < len(want):
        for j in range(i, i + 10): want[row] |= q[j] << np.uint32(3 * (j - i))
        i += 10
        want[row] |= q[i] << np.uint32(30)
        row += 1
        want[row] |= (q[i] >> np.uint32(2)) & np.uint32(1)
        i += 1
        for j in range(i, i + 10): want[row] |= q[j] << np.uint32(3 * (j - i) + 1)
        i += 10
        want[row] |= q[i] << np.uint32(31)
        row += 1
        want[row] |= (q[i] >> np.uint32(1)) & np.uint32(3)
        i += 1
        for j in range(i, i + 10): want[row] |= q[j] << np.uint32(3 * (j - i) + 2)
        i += 10
        row += 1
    assert (to_layout(c, "gptq", 3).numpy().view(np.uint32) == want).all()


def test_awq():
    "qweight[i, col] |= code[i, col * 8 + order[k]] << 4 * k; stored (in_features, out_features / 8)."
    c = some(4, 24, 10, signed=False)
    want = np.zeros((10, 3), dtype=np.uint32)
    for i in range(10):
        for col in range(3):
            for k, o in enumerate([0, 2, 4, 6, 1, 3, 5, 7]): want[i, col] |= np.uint32(int(c[col * 8 + o, i]) << 4 * k)
    assert (to_layout(c, "awq", 4).numpy().view(np.uint32) == want).all()


@pytest.mark.parametrize("bits", BITS)
def test_compressed_tensors_by_definition(bits):
    for cols in (1, 31, 32, 33, 100):
        c = some(bits, 3, cols)
        assert (to_layout(c, "compressed-tensors", bits).long() & 0xffffffff).tolist() == words([[v + (1 << bits - 1) for v in row] for row in c.tolist()], bits)


@pytest.mark.parametrize("bits", BITS)
def test_compressed_tensors_own_packer(bits):
    theirs = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    for shape in ((3, 64), (5, 33), (1, 1), (16, 100)):
        c = some(bits, *shape)
        p = theirs.pack_to_int32(c, bits)
        assert torch.equal(to_layout(c, "compressed-tensors", bits), p)
        assert torch.equal(from_layout(p, "compressed-tensors", bits, shape), theirs.unpack_from_int32(p, bits, torch.Size(shape)))
        down = theirs.pack_to_int32(c, bits, packed_dim=0) # how it packs zero points
        assert torch.equal(to_layout(c.t(), "compressed-tensors", bits).t(), down)


@pytest.mark.parametrize("bits, name", [(4, "Q4_0"), (8, "Q8_0")])
def test_gguf_own_blocks(bits, name):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name]
    x = np.random.default_rng(0).standard_normal((6, 96)).astype(np.float32)
    x[1] = 0
    blocks = gguf.quants.quantize(x, kind)
    codes, scale = from_gguf(torch.from_numpy(blocks), bits)
    values = (scale.float().repeat_interleave(32, 1) * codes.float()).numpy()
    assert (values == gguf.quants.dequantize(blocks, kind)).all() # what gguf reads from its blocks
    assert (to_gguf(codes, scale, bits).numpy() == blocks).all() # byte for byte what gguf wrote
    if bits == 4: assert (to_layout(codes, "gguf", 4).view(6, 3, 16) == torch.from_numpy(blocks).view(6, 3, 18)[..., 2:]).all()


def test_gguf_reads_our_blocks():
    gguf = pytest.importorskip("gguf")
    w = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    q = quantize_tensor(w, Scheme.parse("w4a16-g32"), scale_dtype=torch.float16)
    back = gguf.quants.dequantize(to_gguf(q.codes, q.scale, 4).numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(torch.from_numpy(back), q.dequantize())


def test_gguf_blocks_without_gguf():
    codes, scale = some(4, 2, 64), torch.rand(2, 2).half()
    blocks = to_gguf(codes, scale, 4)
    assert blocks.shape == (2, 36)
    one = blocks[1, 18:]
    assert one[:2].view(torch.float16) == scale[1, 1]
    assert one[2:].tolist() == [(int(codes[1, 32 + j]) + 8) | (int(codes[1, 48 + j]) + 8) << 4 for j in range(16)]
    for bits in (4, 8):
        c = some(bits, 3, 96)
        back = from_gguf(to_gguf(c, torch.ones(3, 3), bits), bits)
        assert torch.equal(back[0], c) and torch.equal(back[1], torch.ones(3, 3).half())
    for f, text in [(lambda: to_gguf(codes, scale, 3), "bits is 3; choose 4"), (lambda: to_gguf(codes[:, :40], scale, 4), "rows of 40 codes"),
                    (lambda: to_gguf(codes, scale.t()[:1], 4), "don't belong together"), (lambda: from_gguf(blocks[:, 1:], 4), "blocks of 18 bytes"),
                    (lambda: to_gguf(codes * 2, scale, 4), "does not fit 4 signed bits")]:
        with pytest.raises(ValueError, match=text): f()
