"Mixed precision: the scan leaves the model alone and says what the layers do; the solver is exact, and says by how much it may not be."
import copy
import itertools
import json
import math
import random
import warnings

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from tinyq import Quantizer, calibration_text, tiny_lm
from tinyq.layers import QuantizedLayer
from tinyq.low_bit import quantize_weight
from tinyq.mixed import SCHEMES, Sensitivity, _FloatRun, choose_schemes, sensitivity, solve_budget

SMALL = dict(vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, initializer_range=.15)
run = dict(schemes=("w2a16-g32", "w4a16-g32-asym", "w8a16"))


def llama(**kwargs):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL | {"tie_word_embeddings": False} | kwargs))


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, initializer_range=.15))


def some_ids(n=4): return torch.randint(0, 96, (n, 24), generator=torch.Generator().manual_seed(1))


def everything(model): return {k: t.clone() for k, t in model.state_dict().items()}, {n: m.training for n, m in model.named_modules()}


def assert_same(model, before):
    tensors, modes = everything(model)
    assert modes == before[1] and tensors.keys() == before[0].keys()
    for k, t in tensors.items(): assert torch.equal(t, before[0][k]), k
    assert not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def logits(model, x): return model(x)


# ---- the scan

@pytest.mark.parametrize("make, dtype", [(llama, torch.float32), (llama, torch.bfloat16), (gpt2, torch.float32)])
def test_the_model_is_as_it_was(make, dtype):
    model = make().to(dtype)
    model.lm_head.train(False) # a mixture of modes
    before = everything(model)
    scan = sensitivity(model, some_ids(), **run)
    assert_same(model, before)
    assert scan.places == 96 and all(list(c) == list(run["schemes"]) for c in scan.costs.values())
    if dtype == torch.float32: assert all(c["w2a16-g32"][1] > c["w4a16-g32-asym"][1] > c["w8a16"][1] for c in scan.costs.values())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_also_after_an_exception_at_any_moment(error):
    model, calls = llama(), 0
    before = everything(model)

    def forward(model, ids):
        nonlocal calls
        calls += 1
        if calls == stop: raise error("enough")
        return model(input_ids=ids, use_cache=False).logits

    for stop in (1, 2, 3, 7, 20, 41):
        calls = 0
        with pytest.raises(error): sensitivity(model, some_ids(), forward=forward, **run)
        assert_same(model, before)


def test_an_exception_within_a_layer():
    model = llama()
    before, seen = everything(model), []

    def hook(m, args):
        seen.append(1)
        if len(seen) == 30: raise RuntimeError("enough")

    handle = model.model.layers[1].mlp.up_proj.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError): sensitivity(model, some_ids(), **run)
    handle.remove()
    assert_same(model, before)


@torch.no_grad()
def test_each_number_is_that_of_the_layer_itself():
    model = llama().eval()
    ids, scan = some_ids(), sensitivity(model, some_ids(), **run)
    reference = model(input_ids=ids).logits.log_softmax(-1)
    for path, scheme in [("model.layers.0.self_attn.k_proj", "w2a16-g32"), ("model.layers.2.mlp.down_proj", "w4a16-g32-asym"), ("lm_head", "w8a16"),
                         ("model.layers.1.mlp.gate_proj", "w2a16-g32")]:
        new = Quantizer(copy.deepcopy(model)).quantize({path: scheme})
        layers = {p: m for p, m in new.named_modules() if isinstance(m, QuantizedLayer)}
        q = quantize_weight(model.get_submodule(path).weight, scheme)
        assert list(layers) == [path] and torch.equal(layers[path].qtensor.codes, q.codes) and torch.equal(layers[path].qtensor.scale, q.scale)
        nbytes, kl = scan.costs[path][scheme]
        assert nbytes == layers[path].qtensor.nbytes == sum(t.nbytes for k, t in layers[path].state_dict().items() if k != "bias")
        logp = new(input_ids=ids).logits.log_softmax(-1)
        measured = (reference.exp() * (reference - logp)).sum(-1).double().mean().item()
        assert abs(kl - measured) < 1e-3 * measured + 1e-8


class Odd(nn.Module):
    "A model of blocks that does what a replay can't stand: `kind` says what."
    def __init__(self, kind):
        super().__init__()
        self.kind, self.calls, self.saw = kind, 0, 0.
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        first = self.blocks[0](x)
        if self.kind == "in place": first += x
        if self.kind == "state": self.calls += 1; first = first + .01 * self.calls
        h = self.blocks[1](first.relu())
        if self.kind == "twice": h = self.blocks[1](h.relu())
        if self.kind == "backwards": h = self.blocks[0](self.blocks[2](self.blocks[1](x).relu()).relu())
        else: h = self.blocks[2](h.relu())
        return self.head(h.relu())


@pytest.mark.parametrize("kind", ["plain", "in place", "twice", "backwards"])
def test_what_is_replayed_is_right(kind, monkeypatch):
    torch.manual_seed(0)
    model, data = Odd(kind), [torch.randn(64, 16), torch.randn(32, 16)]
    quick = sensitivity(model, data, schemes=("w2a16", "w4a16"), forward=logits)
    monkeypatch.setattr(_FloatRun, "replay", lambda self, modules: [{} for _ in self.batches])
    slow = sensitivity(model, data, schemes=("w2a16", "w4a16"), forward=logits)
    assert quick.places == slow.places == 96
    for p, costs in slow.costs.items():
        for s, (b, k) in costs.items(): assert quick.costs[p][s][0] == b and abs(quick.costs[p][s][1] - k) < 1e-6 * k + 1e-9


def test_a_model_of_many_blocks_is_replayed_and_asked_less():
    asked = []

    class Block(nn.Linear): # a subclass is not scanned, only run
        def forward(self, x): asked.append(self); return super().forward(x)

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.head = nn.ModuleList(Block(8, 8) for _ in range(10)), nn.Linear(8, 5)

        def forward(self, x):
            for b in self.blocks: x = x + b(x).relu()
            return self.head(x)

    torch.manual_seed(0)
    sensitivity(Deep(), [torch.randn(20, 8)], schemes=("w4a16", "w8a16"), forward=logits)
    assert len(asked) == 10 # in the float run, and never again


def test_tied_weights_are_one_layer():
    model = llama(tie_word_embeddings=True)
    assert all("embed" not in p and "lm_head" not in p for p in sensitivity(model, some_ids(), **run).costs)
    before = everything(model)
    scan = sensitivity(model, some_ids(), embeddings=True, **run)
    assert_same(model, before)
    assert list(scan.also.items()) == [("lm_head", "model.embed_tokens")] and scan.weights["model.embed_tokens"] == 96 * 64
    choice = choose_schemes(scan, target_bits=5)
    assert choice["lm_head"] == choice["model.embed_tokens"] is not None and len(choice) == len(scan.costs) + 1
    q = Quantizer(copy.deepcopy(model).eval())
    new = q.quantize(choice, embeddings=True)
    assert new.lm_head.weight is new.model.embed_tokens.weight and str(new.lm_head.scheme) == choice["lm_head"]
    assert sum({m.qtensor.codes.data_ptr(): m.qtensor.nbytes for m in new.modules() if isinstance(m, QuantizedLayer)}.values()) == scan.nbytes(choice)


def test_untied_embeddings():
    scan = sensitivity(llama(), some_ids(), embeddings=True, include=["embed_tokens", "lm_head"], **run)
    assert list(scan.costs) == ["model.embed_tokens", "lm_head"] and not scan.also


def test_a_layer_that_never_runs_is_named():
    model = nn.ModuleDict({"used": nn.Linear(8, 8), "idle": nn.Linear(8, 8)})
    with pytest.warns(UserWarning, match="1 layers, such as 'idle', never ran on this data"):
        scan = sensitivity(model, [torch.randn(5, 8)], schemes="w4a16", forward=lambda m, x: m["used"](x))
    assert scan.costs["idle"]["w4a16"][1] < 1e-9 < scan.costs["used"]["w4a16"][1]


def test_experts():
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2))
    before = everything(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scan = sensitivity(model, some_ids(), **run)
    assert_same(model, before)
    Quantizer(model).quantize(choose_schemes(scan, target_bits=4.5))


def test_one_layer_that_is_the_model():
    torch.manual_seed(0)
    layer = nn.Linear(64, 10)
    scan = sensitivity(layer, torch.randn(7, 64), schemes=("w4a16-g64", "w8a16"), forward=logits)
    assert choose_schemes(scan, target_bits=5) == {"*": "w4a16-g64"} and scan.kl({"*": "w8a16"}) == scan.kl("w8a16")
    assert str(Quantizer(layer).quantize(choose_schemes(scan, target_bits=8.5)).scheme) == "w8a16"


def test_paths_that_end_alike():
    "A path is a pattern for the ends of longer ones, and for all below it."
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))), nn.Linear(32, 32))
    data, args = [torch.randn(50, 32)], dict(schemes=("w3a16", "w4a16", "w5a16", "w6a16", "w8a16"), forward=logits)
    scan = sensitivity(model, data, **args)
    for bits in (4.6, 5.5, 6.5):
        choice = choose_schemes(scan, target_bits=bits)
        new = Quantizer(copy.deepcopy(model)).quantize(choice)
        assert {p: str(m.scheme) for p, m in new.named_modules() if isinstance(m, QuantizedLayer)} == {p: choice[p] for p in scan.costs}
    part = sensitivity(model, data, exclude=["1.1"], **args)
    new = Quantizer(copy.deepcopy(model)).quantize(choose_schemes(part, target_bits=6))
    assert {p for p, m in new.named_modules() if isinstance(m, QuantizedLayer)} == set(part.costs) == {"0", "1.0", "2"}


def test_the_whole_way():
    "Scan in float32, choose, quantize in bfloat16: the layers have the bytes and the codes that were scanned."
    exact, tokenizer = tiny_lm(torch.float32)
    scan = sensitivity(exact, calibration_text(), tokenizer, schemes=("w3a16-g64", "w5a16-g64"), tokens=256, include=["*.layers.0.*"])
    choice = choose_schemes(scan, target_bits=4.5)
    assert set(choice.values()) == {"w3a16-g64", "w5a16-g64"} and scan.bits_per_weight(choice) <= 4.5
    new = Quantizer(tiny_lm()[0]).quantize(choice)
    layers = {p: m for p, m in new.named_modules() if isinstance(m, QuantizedLayer)}
    assert {p: str(m.scheme) for p, m in layers.items()} == choice and sum(m.qtensor.nbytes for m in layers.values()) == scan.nbytes(choice)
    for p, m in layers.items(): assert torch.equal(m.qtensor.codes, quantize_weight(exact.get_submodule(p).weight, choice[p]).codes)


# ---- bad input

def test_what_cant_be_scanned():
    model, ids = llama(), some_ids()
    for call, says in [
        (lambda: sensitivity(nn.ReLU(), [ids], forward=logits), "there is no layer to scan: no module holds weights"),
        (lambda: sensitivity(nn.Conv2d(1, 1, 3), [ids], forward=logits), "there is no layer to scan: the model: not an nn.Linear"),
        (lambda: sensitivity(Quantizer(nn.Sequential(nn.Linear(8, 8))).quantize("w8a16"), [torch.randn(2, 8)], forward=logits), "0: quantized before"),
        (lambda: sensitivity(model, ids, schemes=()), "schemes is empty"),
        (lambda: sensitivity(model, ids, schemes=("w9a16",)), "'w9a16' is no scheme"),
        (lambda: sensitivity(model, []), "data is empty"),
        (lambda: sensitivity(model, ids[:0]), "data is empty"),
        (lambda: sensitivity(model, "text"), "it needs a tokenizer"),
        (lambda: sensitivity(model.to("meta"), ids), "is on the meta device")]:
        with pytest.raises(ValueError) as e: call()
        assert says in str(e.value), e.value


def test_numbers_that_break():
    model, ids = llama(), some_ids()
    with torch.no_grad(): model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match="the float model's own logits hold NaN"): sensitivity(model, ids, **run)
    with torch.no_grad(): model.model.layers[1].mlp.up_proj.weight[0, 0] = 1

    def forward(m, x): # far from its own weight the model overflows; and it always forbids one class
        y = m(x)
        y = y * (math.nan if (m.weight - w).abs().max() > .05 else 1)
        return y.index_fill(-1, torch.tensor([3]), -math.inf)

    torch.manual_seed(0)
    layer = nn.Linear(64, 10)
    w = layer.weight.detach().clone()
    scan = sensitivity(layer, [torch.randn(9, 64)], schemes=("w1a16", "w8a16"), forward=forward)
    assert scan.costs[""]["w1a16"][1] == math.inf and 0 < scan.costs[""]["w8a16"][1] < 1e-3
    with pytest.raises(ValueError, match=r"the smallest that these schemes can is 8\.5 bits"): choose_schemes(scan, target_bits=4)
    assert choose_schemes(scan, target_bits=8.5) == {"*": "w8a16"}


def test_a_layer_that_breaks_at_every_scheme():
    scan = Sensitivity({"a": {"w4a16": (4, .1)}, "b": {"w4a16": (4, math.inf), "w8a16": (8, math.inf)}}, {"a": 8, "b": 8}, 1)
    with pytest.raises(ValueError, match="layer 'b' breaks the model at every scheme"): choose_schemes(scan, target_bits=8)


def test_budgets():
    scan = Sensitivity({"a": {"w3a16": (31, .3), "w4a16": (40, .1)}}, {"a": 80}, 1)
    assert choose_schemes(scan, budget=31) == choose_schemes(scan, target_bits=3.1) == choose_schemes(scan, budget=39.9) == {"a": "w3a16"}
    assert choose_schemes(scan, budget=40) == choose_schemes(scan, target_bits=4) == choose_schemes(scan, target_bits=math.inf) == choose_schemes(scan, budget=10**30) == {"a": "w4a16"}
    for kwargs, says in [({"budget": 30}, "30 bytes (3.000 bits per weight) can't be met: the smallest that these schemes can is 3.1 bits per weight (31 bytes)"),
                         ({"target_bits": 3.05}, "is 3.1 bits per weight (31 bytes)"), ({"target_bits": -1}, "can't be met"), ({"target_bits": math.nan}, "NaN"),
                         ({}, "give either"), ({"budget": 50, "target_bits": 4}, "give either")]:
        with pytest.raises(ValueError) as e: choose_schemes(scan, **kwargs)
        assert says in str(e.value)
    for wrong in ("4.5", True, [4]):
        with pytest.raises(TypeError, match="target_bits is"): choose_schemes(scan, target_bits=wrong)
    with pytest.raises(ValueError, match="the scan has no layers"): choose_schemes(Sensitivity({}, {}, 1), budget=4)


def test_the_smallest_that_is_named_can_be_met():
    r = random.Random(0)
    for _ in range(200):
        n = r.randint(1, 10**6)
        scan = Sensitivity({"a": {"w4a16": (r.randint(1, 10**6), .1)}}, {"a": n}, 1)
        with pytest.raises(ValueError) as e: choose_schemes(scan, budget=0)
        bits = float(str(e.value).split("can is ")[1].split(" bits")[0])
        assert choose_schemes(scan, target_bits=scan.bits_per_weight("w4a16")) == {"a": "w4a16"}
        assert choose_schemes(scan, target_bits=bits) == {"a": "w4a16"}


# ---- the file

def test_files(tmp_path):
    scan = sensitivity(llama(), some_ids(), embeddings=True, **run)
    path = tmp_path / "scan.json"
    for s in (scan, Sensitivity({"a": {"w4a16": (4, math.inf)}}, {"a": 8}, 3, {"b": None})):
        s.save(path)
        assert Sensitivity.load(path) == s and json.loads(path.read_text(), parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert [p.name for p in tmp_path.iterdir()] == ["scan.json"]
    assert choose_schemes(Sensitivity.load(path) if scan is s else scan, target_bits=5)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"costs": {"a": {"w4a16": [1, 2]}}}', '{"costs": {"a": {"w9a16": [1, 2]}}, "weights": {"a": 1}, "places": 1, "also": {}}',
                                  '{"costs": {"a": {"w4a16": 1}}, "weights": {"a": 1}, "places": 1, "also": {}}', '{"costs": {"a": {"w4a16": [1, 2]}}, "weights": {}, "places": 1, "also": {}}'])
def test_a_file_that_is_no_scan(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="is no sensitivity scan"): Sensitivity.load(tmp_path / "x.json")


def test_a_scan_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "scan.json"
    Sensitivity({"a": {"w4a16": (4, .5)}}, {"a": 8}, 3).save(path)
    before = path.read_bytes()
    monkeypatch.setattr("tinyq.quantizer.os.replace", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError): Sensitivity({}, {}, 0).save(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["scan.json"]


# ---- the solver

def brute(nbytes, kl, budget):
    fits = [(sum(r[s] for r, s in zip(kl, picks)), sum(r[s] for r, s in zip(nbytes, picks))) for picks in itertools.product(*(range(len(r)) for r in kl))]
    return min((k, b) for k, b in fits if b <= budget)


def problem(r, layers, schemes, hard=False):
    "Sizes of all kinds, ties, equal layers, and schemes that must not be used."
    size = r.choice([lambda: r.randint(1, 8), lambda: r.randint(1, 10**9), lambda: 64 * r.randint(1, 99)])
    loss = r.choice([r.random, lambda: r.choice([0., .25, .5]), lambda: r.random() ** 8, lambda: 10 ** r.uniform(-9, 3)])
    rows = [r.randint(1, schemes) for _ in range(layers)]
    nbytes = [[size() for _ in range(n)] for n in rows]
    kl = [[b / 10**9 if hard else loss() for b in row] for row in nbytes]
    for row in kl:
        for i in range(1, len(row)):
            if r.random() < .1: row[i] = math.inf
    return nbytes, kl, sum(min(b for b, k in zip(*rows) if k < math.inf) for rows in zip(nbytes, kl))


@pytest.mark.parametrize("seed", range(8))
def test_exact(seed):
    r = random.Random(seed)
    for _ in range(25):
        nbytes, kl, least = problem(r, r.randint(1, 6), 4)
        for budget in (least, least + r.randint(0, max(map(max, nbytes))), sum(map(max, nbytes)), math.inf):
            picks, gap = solve_budget(nbytes, kl, budget)
            got = sum(k[s] for k, s in zip(kl, picks)), sum(b[s] for b, s in zip(nbytes, picks))
            want = brute(nbytes, kl, budget)
            assert gap == 0 and got[1] <= budget and abs(got[0] - want[0]) <= 1e-9 * want[0] + 1e-15
            if got[0] == want[0]: assert got[1] <= want[1]
        with pytest.raises(ValueError, match="can't be met"): solve_budget(nbytes, kl, least - 1)


def test_more_bytes_never_hurt():
    r = random.Random(1)
    for _ in range(10):
        nbytes, kl, least = problem(r, 12, 5)
        top, last = sum(map(max, nbytes)), math.inf
        for budget in sorted({least, top, *(r.randint(least, max(least, top)) for _ in range(12))}):
            picks, _ = solve_budget(nbytes, kl, budget)
            now = math.fsum(k[s] for k, s in zip(kl, picks))
            assert now <= last * (1 + 1e-9)
            last = now


@pytest.mark.parametrize("limit", [1, 5, 20])
def test_the_gap_is_a_promise(limit):
    r, lost = random.Random(limit), 0
    for _ in range(20):
        nbytes, kl = ([[draw() for _ in range(6)] for _ in range(40)] for draw in (lambda: r.randint(10**5, 10**7), lambda: r.random() ** 4))
        budget = sum(sorted(row)[r.choice([1, 2])] for row in nbytes)
        (best, none), (picks, gap) = solve_budget(nbytes, kl, budget), solve_budget(nbytes, kl, budget, limit)
        want, got = (sum(k[s] for k, s in zip(kl, p)) for p in (best, picks))
        assert none == 0 and sum(b[s] for b, s in zip(nbytes, picks)) <= budget and got - gap <= want * (1 + 1e-9) and want <= got * (1 + 1e-9)
        lost += got > want * (1 + 1e-9)
    assert lost


def test_large_problems():
    "As many layers as the largest models have; also the kind where every mix is as good as the price allows."
    r = random.Random(2)
    for layers in (28, 300):
        for hard in (False, True):
            nbytes = [sorted(r.sample(range(10**5, 10**7), 6)) for _ in range(layers)]
            kl = [[(10**7 - b) / 10**7 if hard else r.random() ** 4 for b in row] for row in nbytes]
            if not hard: kl = [sorted(row, reverse=True) for row in kl]
            budget = sum(row[2] for row in nbytes) + 12345
            picks, gap = solve_budget(nbytes, kl, budget, 1 << 13)
            got = sum(k[s] for k, s in zip(kl, picks))
            assert sum(b[s] for b, s in zip(nbytes, picks)) <= budget and gap < 1e-4 * got


def test_names():
    assert all(str(s) == s for s in SCHEMES) and all(isinstance(s, str) for s in SCHEMES)
