"Layers swapped in models of every kind: which ones, all or none, one at a time, with their hooks."
import copy
import gc
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn
from torch.nn.utils import parametrizations, prune, weight_norm
from transformers.pytorch_utils import Conv1D

from tinyq import (QuantizedLinear, W8A16LinearLayer, W8A32LinearLayer, check_exclude, coverage, get_memory_footprint,
                   replace_linear_with_target, replace_linear_with_target_and_quantize)

pytestmark = [pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated"), pytest.mark.filterwarnings("ignore:Initializing zero-element")]


def quantize(model, exclude=(), target=W8A16LinearLayer, **kwargs):
    return replace_linear_with_target_and_quantize(model, target, exclude, **kwargs)


def stack(n=4, size=8):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(size, size) for _ in range(n)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 4)}), Mlp()


class Mlp(nn.Sequential):
    def __init__(self): super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def two_blocks(): return nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()]), "head": nn.Linear(8, 32)})


def done_in(model): return {p for p, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def snapshot(model):
    "What must be the same afterwards: the modules, their tensors, the bits, the hooks."
    modules = dict(model.named_modules())
    return (modules, {k: (v, v.clone()) for k, v in model.state_dict(keep_vars=True).items()},
            {p: [dict(vars(m)[h]) for h in vars(m) if h.endswith("_hooks")] for p, m in modules.items()})


def assert_unchanged(model, before):
    modules, tensors, hooks = before
    assert list(modules.items()) == list(model.named_modules())
    for k, v in model.state_dict(keep_vars=True).items(): assert v is tensors[k][0] and torch.equal(v.nan_to_num(), tensors[k][1].nan_to_num())
    assert snapshot(model)[2] == hooks


# ---- which layers

ALL = {"head", *(f"blocks.{i}.{p}" for i in (0, 1) for p in ("attn.q", "attn.k", "mlp.0", "mlp.2"))}
FIRST = {p for p in ALL if p.startswith("blocks.0")}
MLPS = {p for p in ALL if "mlp" in p}


@pytest.mark.parametrize("pattern, want", [
    ("head", {"head"}), ("mlp", MLPS), ("mlp.2", {p for p in ALL if p.endswith("mlp.2")}), ("blocks.0", FIRST), ("blocks.0.*", FIRST), ("*.mlp.?", MLPS),
    (Mlp, MLPS), (Block, ALL - {"head"}), (nn.Linear, ALL), (nn.ModuleDict, ALL), (lambda path, m: m.out_features == 4, {p for p in ALL if p.endswith("k")}),
    (lambda path, m: path == "head", {"head"}), (["head", Mlp], MLPS | {"head"}), ({"head"}, {"head"}), ((p for p in ["mlp"]), MLPS),
    ("blocks", ALL - {"head"}), ("*", ALL)])
def test_patterns_exclude_and_include_the_same_layers(pattern, want):
    patterns = [pattern] if isinstance(pattern, str) or callable(pattern) else list(pattern)
    assert done_in(quantize(two_blocks(), patterns)) == ALL - want
    assert done_in(quantize(two_blocks(), include=patterns)) == want
    if len(patterns) == 1: assert done_in(quantize(two_blocks(), include=patterns[0])) == want  # one pattern without a list
    assert done_in(replace_linear_with_target(two_blocks(), W8A32LinearLayer, patterns)) == ALL - want
    assert done_in(replace_linear_with_target(two_blocks(), W8A32LinearLayer, include=patterns)) == want


def test_include_and_exclude_together():
    m = two_blocks()
    rows = {c.path: c.skipped for c in coverage(m, "mlp.0", Block)}
    assert {p for p, why in rows.items() if why is None} == done_in(quantize(m, "mlp.0", include=Block)) == ALL - {"head", "blocks.0.mlp.0", "blocks.1.mlp.0"}
    assert rows["head"] == "not included" and rows["blocks.0.mlp.0"] == "excluded by 'mlp.0'"
    assert done_in(quantize(two_blocks(), include=[])) == set()
    assert done_in(quantize(two_blocks(), None)) == ALL


def test_functions_are_asked_about_linear_layers_only():
    asked = []
    m = nn.Sequential(nn.Embedding(3, 8), Mlp(), nn.LayerNorm(8), nn.MultiheadAttention(8, 2), Conv1D(4, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coverage(m, lambda path, m: bool(asked.append(path)))
    assert set(asked) == {"1.0", "1.2", "4"}


@pytest.mark.parametrize("pattern, near", [("haed", "'head'"), ("blocks.0.mpl", "'blocks.0.mlp'"), (nn.Bilinear, "'Linear'"), (lambda p, m: False, "<lambda>"), ("", "matches no module")])
def test_a_pattern_without_a_match_warns_with_near_names(pattern, near):
    for what in ("exclude", "include"):
        with pytest.warns(UserWarning, match="matches no module") as seen: coverage(two_blocks(), **{what: [pattern]})
        assert len(seen) == 1 and near in str(seen[0].message) and str(seen[0].message).startswith(what)
        assert seen[0].filename == __file__  # it points at the caller, not into the package
    m = two_blocks()
    with pytest.warns(UserWarning, match="matches no module"): quantize(m, pattern)
    assert done_in(m) == ALL
    with pytest.raises(ValueError, match="matches no module"): check_exclude(two_blocks(), pattern, strict=True)


@pytest.mark.parametrize("pattern", [3, 1.5, b"head", nn.Linear(2, 2)])
def test_what_is_no_pattern_is_refused(pattern):
    for f in (lambda m: quantize(m, [pattern]), lambda m: quantize(m, include=[pattern]), lambda m: check_exclude(m, [pattern])):
        before = snapshot(m := two_blocks())
        with pytest.raises(TypeError, match="pattern"): f(m)
        assert_unchanged(m, before)


# ---- all or none

class Plain(W8A16LinearLayer):
    "A class with a `from_linear` of its own, which fails at a given call."
    calls, fail_at, error = 0, 0, ValueError

    @classmethod
    def from_linear(cls, linear):
        Plain.calls += 1
        if Plain.calls == Plain.fail_at: raise Plain.error("no more")
        return super().from_linear(linear)


@pytest.mark.parametrize("target", [W8A16LinearLayer, W8A32LinearLayer, Plain])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("k", range(4))
def test_a_bad_weight_in_any_layer_changes_nothing(k, bad, target):
    Plain.fail_at, m, seen = 0, stack(), []
    m[0].register_forward_hook(lambda *a: None)
    m[k].weight.data[3, 2] = bad
    before = snapshot(m)
    with pytest.raises(ValueError, match=f"layer '{k}'.*nothing was changed"): quantize(m, target=target, done=lambda *a: seen.append(a))
    assert_unchanged(m, before)
    assert seen == []


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("k", range(1, 5))
def test_from_linear_that_fails_at_the_kth_call_changes_nothing(k, error):
    Plain.calls, Plain.fail_at, Plain.error, m = 0, k, error, stack()
    before = snapshot(m)
    kind = {TypeError: ValueError, MemoryError: RuntimeError}.get(error, error)
    with pytest.raises(kind, match=f"layer '{k - 1}': no more; nothing was changed"): quantize(m, target=Plain)
    assert_unchanged(m, before)


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("k", range(4))
def test_what_nobody_can_foresee_leaves_a_model_that_runs_and_can_be_finished(k, error):
    "Out of memory or Ctrl-C in the second pass: every layer is new or old, the message says how many, the same call does the rest."
    m, x, calls = stack(), torch.randn(3, 8), []
    want, old = quantize(stack())(x), list(m)

    def done(path, old, new):
        calls.append(path)
        if len(calls) == k + 1: raise error("stop")

    says = f"{k} of 4 layers are quantized" if k else "nothing was changed"
    with pytest.raises((ValueError, RuntimeError, KeyboardInterrupt), match=f"layer '{k}': stop; {says}") as e: quantize(m, done=done)
    assert isinstance(e.value, KeyboardInterrupt) == (error is KeyboardInterrupt) and isinstance(e.value.__cause__, error)
    assert [isinstance(l, QuantizedLinear) for l in m] == [i < k for i in range(4)] and all(a is b for a, b in zip(old[k:], m[k:]))
    assert m(x).isfinite().all()
    assert torch.equal(quantize(m)(x), want)


def test_a_rehearsal_is_needed_when_from_linear_is_newer_than_check_weights():
    class Inherits(W8A16LinearLayer): pass

    class Own(W8A16LinearLayer):
        @classmethod
        def from_linear(cls, linear): return made.append(1) or super().from_linear(linear)

    class OwnQuantize(W8A16LinearLayer):
        def quantize(self, weights): return made.append(1) or super().quantize(weights)

    class Both(Own):
        @classmethod
        def check_weights(cls, weight): pass

    for target, times in ((Inherits, 0), (Own, 2), (OwnQuantize, 2), (Both, 1)):
        made = []
        quantize(stack(), target=target)
        assert len(made) == 4 * times


def test_targets_and_weights_that_cannot_be_used():
    m = stack()
    before = snapshot(m)
    with pytest.raises(TypeError, match="ReLU has no from_linear"): quantize(m, target=nn.ReLU)
    with pytest.raises(ValueError, match="nothing was changed"): replace_linear_with_target(m, nn.ReLU)
    assert_unchanged(m, before)
    with pytest.raises(ValueError, match="meta.*replace_linear_with_target; nothing was changed"): quantize(stack().to("meta"))


def test_progress_and_done_see_every_layer_once_in_order():
    seen, m = [], stack()
    old = list(m)
    quantize(m, progress=lambda todo: seen.append(list(todo)) or todo, done=lambda *a: seen.append(a))
    assert seen[0] == ["0", "1", "2", "3"] and [(p, o) for p, o, _ in seen[1:]] == list(zip("0123", old)) and [n for *_, n in seen[1:]] == list(m)


def test_a_plan_is_used_as_it_is():
    m = two_blocks()
    plan = [c for c in coverage(m) if c.path != "head"]
    assert done_in(quantize(m, "not read", plan=plan)) == ALL - {"head"}


# ---- memory

def test_an_old_weight_is_gone_before_the_next_layer_is_made():
    gc.disable()  # nothing may depend on it
    try:
        m, alive = stack(6), []
        old = [weakref.ref(l.weight) for l in m]
        quantize(m, done=lambda *a: alive.append(sum(w() is not None for w in old)))
        assert alive == [6, 5, 4, 3, 2, 1] and not any(w() is not None for w in old)
    finally: gc.enable()


PEAK = """
import sys, torch
from torch import nn
from tinyq import W8A16LinearLayer, replace_linear_with_target_and_quantize
torch.set_num_threads(1)
model = nn.Sequential(*(nn.utils.skip_init(nn.Linear, 2048, 1024, bias=False) for _ in range(40)))
for p in model.parameters(): p.data.fill_(.5)
replace_linear_with_target_and_quantize(nn.Sequential(nn.Linear(2048, 1024)), W8A16LinearLayer) # whatever is loaded or made once
def peak(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM")) # ru_maxrss would count the parent's memory
before = peak()
kept = []
replace_linear_with_target_and_quantize(model, W8A16LinearLayer, done=lambda *a: kept.append(a) if sys.argv[1] == "kept" else None)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_one_layers_copies():
    "40 layers of 8 MiB: a layer's codes are 2 MiB and row blocks are small. To see that it would show: with the old layers kept, 80 MiB come on top."
    out = {k: subprocess.run([sys.executable, "-c", PEAK, k], capture_output=True, text=True, timeout=120) for k in ("let go", "kept")}
    added = {k: int(o.stdout or o.stderr) / 1024 for k, o in out.items()}
    assert added["let go"] < 24 and added["kept"] > 60, added


# ---- hooks

def test_hooks_move_to_the_new_layer_and_their_handles_still_work():
    m, heard, x = nn.Sequential(nn.Linear(4, 3)), [], torch.randn(2, 4, requires_grad=True)
    say = lambda name: lambda module, *a, **k: heard.append((name, type(module).__name__))
    state = quantize(copy.deepcopy(m)).state_dict()
    l = m[0]
    handles = [l.register_forward_hook(say("forward")), l.register_forward_hook(say("kwargs"), with_kwargs=True, always_call=True),
               l.register_forward_pre_hook(say("pre")), l.register_full_backward_hook(say("backward")), l.register_full_backward_pre_hook(say("before backward")),
               l.register_state_dict_post_hook(say("state")), l.register_state_dict_pre_hook(say("before state")),
               l.register_load_state_dict_pre_hook(say("before load")), l.register_load_state_dict_post_hook(say("load"))]
    del l
    quantize(m)
    gc.collect()
    m(x).sum().backward()
    m.state_dict()
    m.load_state_dict(state)
    names = ["pre", "forward", "kwargs", "before backward", "backward", "before state", "state", "before load", "load"]
    assert heard == [(n, "W8A16LinearLayer") for n in names] and x.grad is not None
    for h in handles: h.remove()
    heard.clear()
    m(x).sum().backward(); m.load_state_dict(m.state_dict())
    assert heard == [] and not any(vars(m[0])[k] for k in vars(m[0]) if k.endswith("_hooks"))


def test_a_hook_may_change_the_output_and_copies_keep_it():
    m = stack(2)
    m[0].register_forward_hook(lambda m, args, out: out * 2)
    m[1].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    x = torch.randn(3, 8)
    want = m(x)
    q = quantize(m)
    assert (q(x) - want).norm() < .02 * want.norm() and torch.equal(copy.deepcopy(q)(x), q(x))


def test_a_replaced_forward_is_left_alone_and_named():
    m, x = stack(2), torch.randn(3, 8)
    add_hook_to_module(m[0], ModelHook())
    want = m[0](x)
    quantize(m)
    assert type(m[0]) is nn.Linear and torch.equal(m[0](x), want) and isinstance(m[1], W8A16LinearLayer)
    assert coverage(m)[0].skipped == "its forward was replaced, as accelerate does"
    remove_hook_from_module(m[0])
    assert isinstance(quantize(m)[0], W8A16LinearLayer)


# ---- weights and modules in more places than one

def test_tied_weights_stay_tied():
    emb, head, other = nn.Embedding(9, 8), nn.Linear(8, 9, bias=False), nn.Linear(8, 9)
    head.weight, other.weight = emb.weight, nn.Parameter(emb.weight.data)  # the same Parameter; another one over the same memory
    m = nn.ModuleDict({"emb": emb, "head": head, "other": other, "free": nn.Linear(8, 9)})
    assert done_in(quantize(m)) == {"free"} and m["head"].weight is emb.weight
    assert {c.path: c.skipped for c in coverage(m)} == {"emb": "not an nn.Linear", "head": "shares its weight with emb", "other": "shares its weight with emb", "free": None}


def test_a_module_used_twice_stays_one_module():
    l, x = nn.Linear(8, 8), torch.randn(2, 8)
    m = nn.Sequential(l, nn.Sequential(l, nn.ReLU()), nn.ModuleDict({"a": l})["a"])
    want, seen = m(x), []
    quantize(m, done=lambda *a: seen.append(a))
    assert isinstance(m[0], W8A16LinearLayer) and m[0] is m[1][0] is m[2] and len(seen) == 1
    assert (m(x) - want).norm() < .03 * want.norm()
    assert [c.path for c in coverage(m)] == ["0"]


@pytest.mark.parametrize("pattern", ["a.0", "b.0", "a", "b"])
def test_either_path_of_a_module_used_twice_names_it(pattern):
    l = nn.Linear(8, 8)
    make = lambda: nn.ModuleDict({"a": nn.Sequential(l), "b": nn.Sequential(l)})
    assert done_in(quantize(make(), pattern)) == set() and type(make()["a"][0]) is nn.Linear
    m = quantize(make(), include=pattern)
    assert isinstance(m["a"][0], W8A16LinearLayer) and m["a"][0] is m["b"][0]


@pytest.mark.parametrize("root", [nn.Linear(8, 4), nn.Linear(8, 4, bias=False), Conv1D(4, 8)])
def test_a_root_that_is_a_linear_layer_comes_back_new(root):
    x, heard = torch.randn(3, 8), []
    want = root(x)
    root.register_forward_hook(lambda *a: heard.append(1))
    q = quantize(root)
    assert isinstance(q, W8A16LinearLayer) and (q(x) - want).norm() < .02 * want.norm() and heard == [1]
    assert isinstance(replace_linear_with_target(root, W8A32LinearLayer), W8A32LinearLayer)
    assert quantize(q) is q
    assert quantize(root, "*") is root


# ---- what is left alone

class Sub(nn.Linear): pass


class Wrapped(torch.Tensor): pass


def on_weight(f):
    l = nn.Linear(4, 4)
    f(l)
    return l


SKIPPED = {
    "a subclass of nn.Linear": lambda: Sub(4, 4),
    "its weight is computed": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "its weight is computed ": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "its weight is computed  ": lambda: weight_norm(nn.Linear(4, 4)),
    "its weight is computed   ": lambda: prune.l1_unstructured(nn.Linear(4, 4), "weight", 2),
    "its weight is computed    ": lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
    "its bias is computed": lambda: prune.l1_unstructured(nn.Linear(4, 4), "bias", 2),
    "its weight is a Wrapped": lambda: on_weight(lambda l: setattr(l, "weight", nn.Parameter(torch.randn(4, 4).as_subclass(Wrapped)))),
    "its weight has dtype torch.float8_e4m3fn": lambda: nn.Linear(4, 4).to(torch.float8_e4m3fn),
    "its weight has dtype torch.complex64": lambda: nn.Linear(4, 4, dtype=torch.complex64),
    "its weight is empty": lambda: nn.utils.skip_init(nn.Linear, 0, 4),
    "3-D weights, as fused experts are: weight": lambda: nn.Bilinear(4, 4, 4),
    "not an nn.Linear": lambda: nn.Conv1d(4, 4, 2),
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_left_alone_with_the_reason(reason):
    m = nn.ModuleDict({"odd": SKIPPED[reason](), "plain": nn.Linear(4, 4)})
    odd = m["odd"]
    before = {k: v.clone() for k, v in odd.state_dict().items()}
    rows = coverage(m)
    assert next(c for c in rows if c.path == "odd" or c.path.startswith("odd.")).skipped.startswith(reason.strip())
    assert sum(c.nbytes for c in rows) == get_memory_footprint(m)
    assert done_in(quantize(m)) == {"plain"} and m["odd"] is odd
    assert all(torch.equal(v, before[k]) if v.dtype.itemsize > 1 else v.dtype == before[k].dtype for k, v in odd.state_dict().items())


class Box(torch.Tensor):
    "A tensor made of others, without memory of its own, as quantization libraries use."
    @staticmethod
    def __new__(cls, inner): return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
    def __init__(self, inner): self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, f, types, args=(), kwargs=None): return args[0] if "detach" in str(f) else NotImplemented


def test_a_weight_of_another_librarys_kind_is_named():
    m = nn.ModuleDict({"odd": on_weight(lambda l: setattr(l, "weight", nn.Parameter(Box(torch.randn(4, 4))))), "plain": nn.Linear(4, 4)})
    assert [c.skipped for c in coverage(m)] == ["its weight is a Box", None] and done_in(quantize(m)) == {"plain"}


def test_a_lazy_layer_is_named_and_quantized_once_it_has_a_shape():
    m = nn.Sequential(nn.LazyLinear(4), nn.LazyConv1d(2, 2), nn.Linear(4, 4))
    assert [(c.path, c.nbytes) for c in coverage(m)][0] == ("0", 0) and done_in(quantize(m)) == {"2"}
    m[0](torch.zeros(1, 8))
    assert done_in(quantize(m)) == {"0", "2"}


def test_weights_that_somebody_else_reads():
    x = torch.randn(2, 3, 8)
    for make, names in ((lambda: nn.MultiheadAttention(8, 2, batch_first=True), {"out_proj"}),
                        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), {"linear1", "linear2", "self_attn.out_proj"})):
        m = make().eval()
        args = (x, x, x) if isinstance(m, nn.MultiheadAttention) else (x,)
        with torch.no_grad(): want, got = m(*args), quantize(m)(*args)
        assert all(torch.equal(a, b) for a, b in zip(want, got)) and done_in(m) == set()
        assert all(c.skipped for c in coverage(m)) and names <= {c.path for c in coverage(m)}


def test_a_scripted_model_is_listed_and_left_alone():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = torch.jit.script(stack(2))
    assert [c.skipped for c in coverage(m)] == ["not an nn.Linear"] * 2 and sum(c.nbytes for c in coverage(m)) == get_memory_footprint(m)


def test_quantizing_twice_changes_nothing():
    m = quantize(two_blocks(), "head")
    before = snapshot(m)
    assert_unchanged(quantize(m, "head", target=W8A32LinearLayer), before)
    assert {c.path for c in coverage(m, "head") if c.skipped is None} == ALL - {"head"}


# ---- Conv1D

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", [W8A16LinearLayer, W8A32LinearLayer])
def test_conv1d_gives_the_layer_that_its_transposed_weight_gives(target, dtype):
    torch.manual_seed(0)
    conv, linear, x = Conv1D(24, 40).to(dtype), nn.Linear(40, 24).to(dtype), torch.randn(5, 40).to(dtype)
    conv.bias.data.normal_()
    linear.weight.data, linear.bias.data = conv.weight.data.t().contiguous(), conv.bias.data.clone()
    a, b = quantize(nn.Sequential(conv), target=target)[0], quantize(nn.Sequential(linear), target=target)[0]
    assert all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values())) and torch.equal(a(x), b(x))
    assert (a.in_features, a.out_features) == (40, 24) and a.weight.is_contiguous()
    if dtype == torch.float32:  # each weight is off by at most half a step
        assert ((a(x) - conv(x)).abs() <= a.scales / 2 * x.abs().sum(-1, keepdim=True) * 1.001).all()
    conv.weight.data.zero_()  # the codes are a copy, not a view
    assert a.weight.any()


def test_conv1d_skeleton_loads_what_was_quantized():
    m, x = nn.Sequential(Conv1D(6, 4), nn.ReLU(), Conv1D(3, 6)), torch.randn(2, 4)
    skeleton = replace_linear_with_target(copy.deepcopy(m), W8A16LinearLayer)
    q = quantize(m)
    skeleton.load_state_dict(q.state_dict())
    assert torch.equal(skeleton(x), q(x))


def test_another_class_named_conv1d_is_not_taken_for_one():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.zeros(4))

    assert done_in(quantize(nn.Sequential(Conv1D()))) == set()


# ---- the tutorial's own listing

class DummyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(1, 1)
        self.linear_1 = nn.Linear(1, 1)
        self.linear_2 = nn.Linear(1, 1, bias=False)
        self.lm_head = nn.Linear(1, 1, bias=False)


def kinds(model): return {name: type(child).__name__ for name, child in model.named_children()}


@pytest.mark.parametrize("replace", [replace_linear_with_target, replace_linear_with_target_and_quantize])
@pytest.mark.parametrize("target", [W8A16LinearLayer, W8A32LinearLayer])
def test_the_dummy_model_of_the_tutorial(replace, target):
    new = target.__name__
    assert kinds(replace(DummyModel(), target, [])) == {"emb": "Embedding", "linear_1": new, "linear_2": new, "lm_head": new}
    model = DummyModel()
    bias, weight = model.linear_1.bias.clone(), model.linear_1.weight.item()
    assert replace(module=model, target_class=target, module_name_to_exclude=["lm_head"]) is model
    assert kinds(model) == {"emb": "Embedding", "linear_1": new, "linear_2": new, "lm_head": "Linear"}
    assert "Embedding(1, 1)" in repr(model) and f"(linear_1): {new}(" in repr(model) and "(lm_head): Linear(in_features=1, out_features=1, bias=False)" in repr(model)
    assert model.linear_2.bias is None and model.linear_1.bias.shape == (1,)
    if replace is replace_linear_with_target_and_quantize:  # one weight: its code is 127 or -127, its scale a 127th of it
        assert model.linear_1.int8_weights.tolist() == [[127 if weight > 0 else -127]] and model.linear_1.int8_weights.dtype == torch.int8
        assert model.linear_1.scales.item() == pytest.approx(abs(weight) / 127) and torch.equal(model.linear_1.bias, bias)
        assert model.linear_1(torch.ones(1, 1)).item() == pytest.approx(weight + bias.item(), rel=1e-5)
