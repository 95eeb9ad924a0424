"Properties that hold for every shape, dtype, stride, bit width, granularity and solver."
import inspect
import math
import warnings
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinyq import (GRIDS, QTensor, Scheme, as_rows, dequantize_affine, find_scale_and_zero_point, from_rows, group_views, int_range,
                   linear_dequantization_per_group, linear_q_symmetric_per_channel, linear_q_symmetric_per_group, quantize_affine, quantize_tensor, solvers)

settings.register_profile("tinyq", deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("tinyq")

SEARCHES = ["percentile", "mse", "entropy"]
dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64])


@st.composite
def schemes(draw):
    bits = draw(st.integers(1, 8))
    grid = draw(st.sampled_from([g for g in GRIDS if (bits, g) != (1, "symr")]))
    size = draw(st.one_of(st.none(), st.just(0), st.integers(1, 40)))
    return Scheme(bits, draw(st.sampled_from([8, 16, 32])), size, grid)


@st.composite
def tensors(draw, min_dim=1, max_dim=4):
    "Any rank, dtype and memory order; some groups all zero, some constant, some with an outlier, any amplitude that the dtype holds."
    shape = draw(st.lists(st.integers(1, 9), min_size=min_dim, max_size=max_dim))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    kind = draw(st.sampled_from(["plain", "zeros", "constant", "positive", "negative", "outlier", "zero rows", "tiny", "huge"]))
    x = {"plain": x, "zeros": x * 0, "constant": torch.full_like(x, -3.7), "positive": x.abs() + 5, "negative": -x.abs() - 5,
         "outlier": x, "zero rows": x * (torch.arange(shape[0]) % 2).view(-1, *[1] * (len(shape) - 1)), "tiny": x * 1e-3, "huge": x * 1e3}[kind]
    if kind == "outlier": x.view(-1)[0] = 300.
    x = x.to(draw(dtypes))
    order = draw(st.permutations(range(len(shape))))
    return x.permute(order) if draw(st.booleans()) else x


def expand(q: QTensor, t):
    "One value for each element, from one for each group."
    if t is None: return torch.zeros(q.shape)
    cols = q.codes.shape[1]
    return from_rows(t.repeat_interleave(q.group_size or max(cols, 1), 1)[:, :cols].float(), q.shape, q.dim)


def in_range_error(x, q: QTensor, scheme):
    "Error in steps where `x` lies within the grid's range, and the range of the codes."
    qmin, qmax = int_range(scheme.weight_bits, narrow=scheme.grid == "symr")
    s, z = expand(q, q.scale).double(), expand(q, q.zero_point).double()
    ends = (qmin - z) * s, (qmax - z) * s
    slack = 1e-4 * s.abs()  # float32 rounds the ends of the range
    inside = (x.double() >= torch.minimum(*ends) - slack) & (x.double() <= torch.maximum(*ends) + slack)
    assert q.codes.numel() == 0 or (qmin <= q.codes.min() and q.codes.max() <= qmax)
    return ((q.dequantize(torch.float64).double() - x.double()).abs() / s.abs())[inside]


@given(tensors(), schemes(), st.data())
def test_error_is_at_most_half_a_step_in_range(x, scheme, data):
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    q = quantize_tensor(x, scheme, dim=dim)
    assert q.shape == x.shape == q.dequantize().shape
    error = in_range_error(x, q, scheme)
    assert error.numel() == 0 or error.max() <= 0.5 + 1e-4
    if scheme.grid == "symr": assert error.numel() == x.numel()  # nothing is clipped


@pytest.mark.parametrize("name", SEARCHES)
@given(x=tensors(), bits=st.integers(2, 8), size=st.sampled_from([None, 0, 5, 16]))
@settings(max_examples=15)
def test_error_of_the_searches_is_at_most_half_a_step_in_range(name, x, bits, size):
    scheme = Scheme(bits, 16, size, "symr")
    solver = getattr(solvers, name)
    takes_grid = {"grid": "symr"} if "grid" in inspect.signature(solver).parameters else {}
    error = in_range_error(x, quantize_tensor(x, scheme, solver=partial(solver, **takes_grid)), scheme)
    assert error.numel() == 0 or error.max() <= 0.5 + 1e-4


@given(tensors(min_dim=2, max_dim=2), st.integers(2, 8), st.sampled_from(list(GRIDS)), st.sampled_from([None, 3, 16]))
@settings(max_examples=30)
def test_the_mse_search_is_never_worse_than_round_to_nearest(x, bits, grid, size):
    scheme = Scheme(bits, 16, size, grid)
    error = lambda q: (q.dequantize(torch.float64) - x.double()).square().sum()
    searched = error(quantize_tensor(x, scheme, solver=lambda *a: solvers.mse(*a, grid=grid)))
    assert searched <= error(quantize_tensor(x, scheme)) * (1 + 1e-5) + 1e-12


@given(tensors(), st.data())
def test_rows_round_trip(x, data):
    dim = data.draw(st.one_of(st.none(), st.integers(-x.dim(), x.dim() - 1)))
    rows = as_rows(x, dim)
    assert rows.dim() == 2 and torch.equal(from_rows(rows, x.shape, dim), x)
    if dim is not None: assert len(rows) == x.shape[dim]


@given(st.integers(0, 7), st.integers(0, 50), st.one_of(st.none(), st.integers(1, 60)))
def test_groups_cover_every_column_once(rows, cols, size):
    x = torch.arange(rows * cols).view(rows, cols)
    views = group_views(x, size)
    assert torch.equal(torch.cat([v.flatten(1) for v in views], 1) if views else x, x)
    assert all(v.data_ptr() >= x.data_ptr() for v in views)  # views, not copies
    if cols: assert sum(v.shape[1] for v in views) == math.ceil(cols / min(size or cols, cols))


@given(schemes())
def test_a_scheme_parses_back_from_its_name(scheme):
    assert Scheme.parse(str(scheme)) == scheme and hash(Scheme.parse(str(scheme))) == hash(scheme)


@given(tensors(), schemes(), st.integers(-3, 3))
def test_a_power_of_two_changes_scales_and_no_code(x, scheme, k):
    x = x.float()
    a, b = quantize_tensor(x, scheme), quantize_tensor(x * 2.0**k, scheme)
    assert torch.equal(a.codes, b.codes)
    assert x.abs().max() == 0 or torch.equal((a.dequantize() * 2.0**k), b.dequantize())


@given(tensors(), st.integers(2, 8), st.sampled_from([None, 0, 4]))
def test_quantizing_again_changes_nothing(x, bits, size):
    first = quantize_tensor(x.float(), Scheme(bits, 16, size, "symr"))
    again = quantize_tensor(first.dequantize(), Scheme(bits, 16, size, "symr"))
    assert torch.equal(first.codes, again.codes)


@given(tensors(), schemes(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_nan_and_infinity_are_refused(x, scheme, bad, data):
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[data.draw(st.integers(0, x.numel() - 1))] = bad
    with pytest.raises(ValueError, match="NaN or infinite"): quantize_tensor(x, scheme)


@given(tensors(min_dim=2, max_dim=2), st.integers(1, 12))
def test_the_group_functions_agree_with_quantize_tensor(x, size):
    q, s = linear_q_symmetric_per_group(x, size)
    other = quantize_tensor(x, Scheme(8, 16, size, "symr"))
    assert torch.equal(q, other.codes) and torch.equal(s.view(other.scale.shape), other.scale)
    assert torch.equal(linear_dequantization_per_group(q, s, size), other.dequantize())


# torch as the oracle. It multiplies by the reciprocal of the scale, so only a power of two divides alike.

powers = st.integers(-6, 2).map(lambda k: 2.0**k)


@given(tensors(), powers, st.integers(-8, 7), st.integers(1, 8), st.booleans())
def test_codes_of_fake_quantize_per_tensor(x, scale, zero_point, bits, signed):
    qmin, qmax = int_range(bits, signed)
    zero_point = max(qmin, min(qmax, zero_point))
    x = x.float()
    mine = dequantize_affine(quantize_affine(x, scale, zero_point, qmin, qmax, torch.int8 if signed else torch.uint8), scale, zero_point)
    assert torch.equal(mine, torch.fake_quantize_per_tensor_affine(x, scale, zero_point, qmin, qmax))


@given(tensors(), st.lists(powers, min_size=9, max_size=9), st.data())
def test_codes_of_quantize_per_channel(x, scales, data):
    x, dim = x.float(), data.draw(st.integers(0, x.dim() - 1))
    scale = torch.tensor(scales[: x.shape[dim]])
    shape = [-1 if i == dim else 1 for i in range(x.dim())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.quantize_per_channel(x.contiguous(), scale.double(), torch.zeros(len(scale), dtype=torch.int64), dim, torch.qint8).int_repr()
        whole = torch.quantize_per_tensor(x.contiguous(), scales[0], 0, torch.qint8).int_repr()
    assert torch.equal(quantize_affine(x, scale.view(shape)), theirs)
    assert torch.equal(quantize_affine(x, scales[0]), whole)
    fake = torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(len(scale), dtype=torch.int32), dim, -128, 127)
    assert torch.equal(dequantize_affine(quantize_affine(x, scale.view(shape)), scale.view(shape)), fake)


@given(tensors(max_dim=3), st.data())
def test_per_channel_solves_each_channel_alone(x, data):
    dim = data.draw(st.integers(-x.dim(), x.dim() - 1))
    q, s = linear_q_symmetric_per_channel(x, dim)
    for i in range(x.shape[dim]):
        one, scale = linear_q_symmetric_per_channel(x.select(dim, i)[None], 0)
        assert torch.equal(q.select(dim, i), one[0]) and s.select(dim, i).flatten()[0] == scale.flatten()[0]


@given(tensors())
def test_zero_is_a_code_of_every_asymmetric_grid(x):
    scale, zero_point = find_scale_and_zero_point(x)
    assert -128 <= zero_point <= 127 and scale > 0
    assert dequantize_affine(quantize_affine(torch.zeros(1), scale, zero_point), scale, zero_point).item() == 0


# what is refused, and how it is said

BAD = [
    (lambda: quantize_tensor(torch.ones(2, 2, dtype=torch.int64)), TypeError, "int64"),
    (lambda: quantize_tensor([1.0]), TypeError, "list"),
    (lambda: quantize_tensor(torch.ones(2, 2), "w9a16"), ValueError, "w9a16"),
    (lambda: quantize_tensor(torch.ones(2, 2), "w4a16-g0"), ValueError, "g0"),
    (lambda: quantize_tensor(torch.ones(2, 2), dim=2), IndexError, "2"),
    (lambda: quantize_tensor(torch.ones(2, 2) * 1e-9, scale_dtype=torch.float16), ValueError, "float16"),
    (lambda: quantize_tensor(torch.ones(2, 2) * 1e9, scale_dtype=torch.float16), ValueError, "float16"),
    (lambda: Scheme(9), ValueError, "9"),
    (lambda: Scheme(True), TypeError, "True"),
    (lambda: Scheme(4, 12), ValueError, "12"),
    (lambda: Scheme(4, 16, -64), ValueError, "-64"),
    (lambda: Scheme(4, 16, 64.0), TypeError, "64.0"),
    (lambda: Scheme(4, grid="nf4"), ValueError, "nf4"),
    (lambda: Scheme(1, grid="symr"), ValueError, "1"),
    (lambda: int_range(0), ValueError, "0"),
    (lambda: int_range(2.5), TypeError, "2.5"),
    (lambda: quantize_affine(torch.ones(2), 0.0), ValueError, "0"),
    (lambda: quantize_affine(torch.ones(2), float("nan")), ValueError, "nan"),
    (lambda: quantize_affine(torch.ones(2), 1.0, 0, -300, 300), ValueError, "300"),
    (lambda: find_scale_and_zero_point(torch.ones(2), torch.int32), ValueError, "int32"),
    (lambda: find_scale_and_zero_point(torch.ones(0)), ValueError, "no values"),
    (lambda: linear_q_symmetric_per_group(torch.ones(2, 2, 2), 2), ValueError, "2, 2, 2"),
    (lambda: linear_q_symmetric_per_group(torch.ones(2, 2), 0), ValueError, "0"),
]


@pytest.mark.parametrize("call, error, value", BAD)
def test_bad_input_is_named(call, error, value):
    with pytest.raises(error) as e: call()
    assert value in str(e.value)


@pytest.mark.parametrize("shape", [(0, 16), (0, 0)])
def test_no_rows_no_codes(shape):
    q = quantize_tensor(torch.ones(shape), "w4a16-g8")
    assert q.codes.numel() == 0 and q.dequantize().shape == shape


def test_memory_order_and_gradients_do_not_matter():
    x = torch.randn(24, 10, generator=torch.Generator().manual_seed(0))
    a = quantize_tensor(x.t(), "w4a16-g7-asym")
    b = quantize_tensor(x.t().contiguous().requires_grad_(), "w4a16-g7-asym")
    assert torch.equal(a.codes, b.codes) and not b.scale.requires_grad


def test_blocks_do_not_change_codes():
    "A tensor of many row blocks against each row alone."
    x = torch.randn(300, 5000, generator=torch.Generator().manual_seed(0))
    whole = quantize_tensor(x, "w4a16-g128-asym")
    for i in (0, 25, 26, 151, 299): assert torch.equal(whole.codes[i], quantize_tensor(x[i:i+1], "w4a16-g128-asym").codes[0])
