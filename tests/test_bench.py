"The benchmark: its arithmetic, its file, what it does without peers or with broken ones. No timing is asserted."
import json
import math
import re
import socket

import pytest
import torch
from conftest import run_tinyq
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tinyq import bench as B

RATIO = st.floats(1e-3, 1e3)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("bench")
    out = run_tinyq("bench", "--quick", "--json", "bench.json", "--plot", "bench.png", cwd=cwd)
    return cwd, out


def test_quick_prints_the_table_and_writes_both_files(quick):
    cwd, out = quick
    assert out.returncode == 0, out.stderr
    for label in B.TABLE: assert label in out.stdout
    for text in ("1 row", "8 rows", "tiny, bfloat16", "tokens a second", "1 thread", "Other work on the machine must be absent"): assert text in out.stdout
    assert (cwd / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in cwd.iterdir()} == {"bench.json", "bench.png"}


def test_json_holds_machine_medians_and_quartiles(quick):
    result = json.loads((quick[0] / "bench.json").read_text(encoding="utf-8"))
    m = result["machine"]
    assert m["cpu"] and m["torch"] == torch.__version__ and m["threads"] == 1 and m["capability"] == torch.backends.cpu.get_cpu_capability()
    assert len(result["layers"]) == 12 and set(result["table"]) == set(B.TABLE) and {c["scheme"] for c in result["layers"]} == set(B.SCHEMES)
    for cell in result["layers"]:
        four = cell["scheme"] == "w4a16-g128" # the listing has no 4 bits
        assert list(cell["candidates"]) == ["float", "control", "tinyq", "listing"][:3 if four else 4] and cell["kernel"]
        for c in cell["candidates"].values():
            assert 0 < c["seconds"]["q1"] <= c["seconds"]["median"] <= c["seconds"]["q3"] and c["calls"] >= 1 and c["error"] < (.1 if four else .05)
    assert [p["bits"] for p in result["packing"]] == list(range(1, 9))
    for p in result["packing"]: assert all(0 < p[k]["q1"] <= p[k]["median"] <= p[k]["q3"] for k in ("pack", "unpack")) and set(p["seconds"]) == {"copy", "pack", "unpack"}
    for run in result["decode"]:
        streamed = [run["candidates"][n]["streamed"] for n in ("float", "tinyq", "tinyq w4a16-g128")]
        assert run["preset"] == "tiny" and run["methods"] == ["w8a16", "w4a16-g128"] and streamed[0] > 1.9*streamed[1] > 3.5*streamed[2]
    assert result["bandwidth"]["best"] >= result["bandwidth"]["copy"] > 0


def test_json_names_no_place_and_no_host(quick):
    text = (quick[0] / "bench.json").read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/(?:root|work|tmp|home|Users|opt|private|var)/", text)
    assert not re.search(r"[A-Z]:\\\\", text)
    if len(socket.gethostname()) > 3: assert socket.gethostname() not in text


def test_the_table_follows_from_the_cells(quick):
    result = B.load_bench(quick[0] / "bench.json")
    for label, by_rows in B.speed_table(result["layers"]).items():
        for rows, c in by_rows.items(): assert c["median"] == pytest.approx(result["table"][label][rows]["median"], rel=1e-3)
    cell = next(c for c in result["layers"] if c["scheme"] == "w8a16" and c["rows"] == 8)
    mine = [c["candidates"]["tinyq"]["ratio"]["median"] for c in result["layers"] if (c["scheme"], c["rows"]) == ("w8a16", 8)]
    assert cell in result["layers"] and math.prod(mine) ** (1 / len(mine)) == pytest.approx(result["table"]["W8A16 against bf16 nn.Linear"][8]["median"], rel=1e-3)


@given(st.lists(RATIO, min_size=1, max_size=9))
def test_geometric_mean_turns_over_with_its_ratios(values):
    mean = B.geometric_mean(values)
    assert min(values) * .999 <= mean <= max(values) * 1.001
    assert B.geometric_mean([1 / v for v in values]) == pytest.approx(1 / mean)
    assert B.geometric_mean([3 * v for v in values]) == pytest.approx(3 * mean)


@pytest.mark.parametrize("bad", [[], [0.], [1., -2.], [math.nan], [math.inf]])
def test_geometric_mean_refuses(bad):
    with pytest.raises(ValueError): B.geometric_mean(bad)


@given(st.lists(RATIO, min_size=1, max_size=9), RATIO)
def test_a_drift_that_hits_both_leaves_the_ratio(drift, gain):
    r = B.ratios([gain * d for d in drift], drift)
    assert r["median"] == pytest.approx(gain) and r["q1"] == pytest.approx(r["q3"])


@settings(deadline=None)
@given(st.floats(1e-6, 1), st.floats(1e-6, 1), st.integers(1, 5))
def test_time_in_turn_on_a_clock_of_our_own(a, b, rounds):
    now, order = [0.], []

    def run(name, cost):
        def call(): now[0] += cost; order.append(name)
        return call
    times, calls = B.time_in_turn({"a": run("a", a), "b": run("b", b)}, rounds, .005, lambda: now[0])
    assert len(times["a"]) == len(times["b"]) == rounds
    assert B.ratios(times["a"], times["b"])["median"] == pytest.approx(a / b, rel=1e-6)
    assert calls["a"] * a >= .0049 and "".join(order).count("ba") >= rounds - 1


@pytest.fixture
def strange_peers(monkeypatch):
    def wrong(linear): return nn.Linear(linear.in_features, linear.out_features).to(linear.weight.dtype)

    class Picky(nn.Linear):
        def forward(self, x):
            if len(x) > 1: raise RuntimeError("one row only; see /usr/lib/somewhere/lib.so\nand a second line")
            return super().forward(x)

    def picky(linear):
        new = Picky(linear.in_features, linear.out_features).to(linear.weight.dtype)
        new.load_state_dict(linear.state_dict())
        return new
    monkeypatch.setattr(B, "PEERS", {"torchao": ("no-such-package-at-all", {8: {"": None}}), "quanto": (None, {8: {"": picky}}), "hqq": (None, {8: {"": wrong}})})


def test_missing_wrong_and_failing_peers_are_rows_that_say_so(strange_peers):
    cells = B.bench_layers([(24, 40)], [1, 2], B.PEERS, 1, .0001, ["w8a32"])
    one, two = (c["candidates"] for c in cells)
    for c in (one, two):
        assert c["torchao"] == {"failed": "not installed: pip install no-such-package-at-all"}
        assert c["hqq"]["failed"].startswith("ValueError: wrong result")
    assert one["tinyq"]["best_peer"] == "quanto" and "seconds" in one["quanto"]
    assert two["quanto"] == {"failed": "RuntimeError: one row only; see ..."} and "against_best" not in two["tinyq"]
    assert list(B.speed_table(cells)["W8A32 against the best peer, fp32"]) == [1]


def test_peers_may_come_one_at_a_time():
    assert B.check_peers(n for n in ("hqq", "torchao", "hqq")) == ["hqq", "torchao"]
    assert list(B.candidates(nn.Linear(8, 8), (n for n in ["listing"]))[0]) == ["float", "control", "tinyq", "listing"]


def test_failing_peers_in_a_whole_model(strange_peers):
    done = B.bench_decode("tiny", ["torchao", "hqq"], tokens=1, rounds=1)["candidates"]
    assert set(done) == {"float", "control", "tinyq", "torchao", "hqq"} and "not installed" in done["torchao"]["failed"] and "failed" in done["hqq"]


def test_the_head_is_quantized_and_the_float_model_left_alone():
    model = B.build_preset("tiny")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rival = B._rival(model, "tinyq")
    assert type(rival.lm_head).__name__ == "W8A16LinearLayer" and type(rival.get_input_embeddings()) is nn.Embedding
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_limit_of_the_error_lets_rounding_pass_and_no_more(bits):
    linear, x = B._float_layer((96, 256), "bfloat16"), torch.randn(4, 256).bfloat16()
    want = nn.functional.linear(x.float(), linear.weight.float(), linear.bias.float())
    layers, _ = B.candidates(linear, (), f"w{bits}a16-g128")
    assert B.relative_error(layers["tinyq"](x), want) < B.error_limit(bits) <= B.error_limit(bits - 1) and B.error_limit(bits) < 1 # zeros have 1


def test_ours_is_held_against_its_own_weights():
    want, own = torch.tensor([1., 1.]), torch.tensor([1.1, .9])
    run = lambda y: B.timed({"float": lambda: want, "tinyq": lambda: y}, want, 1, 1e-6, 4, own)["tinyq"]
    assert run(own)["error"] == pytest.approx(.1, rel=1e-3)
    assert run(want)["failed"].startswith("ValueError: wrong result") # right by the float product, but not what its codes say


def test_the_fastest_right_form_stands_for_its_library():
    linear, x = nn.Linear(8, 8).requires_grad_(False), torch.ones(2, 8)

    class Slow(nn.Module):
        def __init__(self, m): super().__init__(); self.m = m
        def forward(self, x):
            for _ in range(300): y = self.m(x)
            return y

    class Broken(nn.Module):
        def forward(self, x): raise RuntimeError("no")
    def missing(m): raise ImportError("no such package")
    forms = B.Forms({"missing": missing, "slow": Slow, "wrong": lambda m: nn.Linear(8, 8), "broken": lambda m: Broken(), "quick": lambda m: m}, linear)
    assert forms.names[0] == "slow" and torch.equal(forms(x), linear(x))
    with torch.inference_mode(): assert forms.race(x, linear(x), .05) == "quick" and torch.equal(forms(x), linear(x))
    with torch.inference_mode(): assert forms.race(x, -linear(x), .05) == "slow" # none is right: the first, which is then called wrong
    with pytest.raises(ImportError, match="no such package"): B.Forms({"a": missing}, linear)


def test_forms_are_named_in_the_cells(monkeypatch):
    monkeypatch.setattr(B, "PEERS", {"torchao": (None, {4: {"a": lambda m: m, "b": lambda m: nn.Identity()}}), "quanto": (None, {8: {"": lambda m: m}})})
    four, eight = (B.bench_layers([(32, 128)], [1], B.PEERS, 1, .0001, [k])[0]["candidates"] for k in ("w4a16-g128", "w8a16"))
    assert four["torchao"]["form"] == "a" and "quanto" not in four and four["tinyq"]["best_peer"] == "torchao"
    assert "form" not in eight["quanto"] and "torchao" not in eight and eight["tinyq"]["best_peer"] == "quanto"


def test_layers_are_made_outside_inference_mode(monkeypatch):
    seen, timed = [], B.timed
    def spy(runs, *args): seen.append([torch.is_inference(m.weight) for m in made.values()] + [torch.is_inference_mode_enabled()]); return timed(runs, *args)
    made, candidates = {}, B.candidates
    monkeypatch.setattr(B, "candidates", lambda *args: (made.update((out := candidates(*args))[0]), out)[1])
    monkeypatch.setattr(B, "timed", spy)
    B.bench_layers([(16, 128)], [1], (), 1, .0001)
    assert seen == [[False]*3 + [True]]*3 # kernels that keep something beside a weight must see whether it changed


def test_packing_must_come_back(monkeypatch):
    monkeypatch.setattr(B.Packing, "unpack", lambda self, packed, n: torch.zeros(len(packed), n, dtype=torch.int8))
    with pytest.raises(ValueError, match="3-bit codes don't come back"): B.bench_packing([3], (4, 16), 1, .0001)


def test_methods_of_a_model_follow_its_dtype():
    run = B.bench_decode("tiny", ["listing"], ["w4a16-g128", "w8a16"], tokens=1, rounds=1, dtype="float32")
    assert run["methods"] == ["w4a32-g128", "w8a32"] and list(run["candidates"]) == ["float", "control", "tinyq w4a32-g128", "tinyq", "listing"]
    assert not any("failed" in c for c in run["candidates"].values())


def test_a_rough_layer_holds_what_a_real_one_does():
    linear = B._float_layer((32, 256), "bfloat16")
    for method in ("w4a16-g128", "w3a16", "w2a16-g64-asym"):
        rough, real = B._rough(method)(linear), B.layer_class(method).from_linear(linear)
        assert type(rough).__name__ == type(real).__name__ and isinstance(rough, type(real))
        assert {k: (t.shape, t.dtype) for k, t in rough.state_dict().items()} == {k: (t.shape, t.dtype) for k, t in real.state_dict().items()}


def test_bytes_of_a_weight_count_the_scales_of_groups():
    cell = {"scheme": "w4a16-g128", "dtype": "bfloat16", "out": 64, "in": 256, "rows": 1, "candidates": {n: {"seconds": {"median": 1.}} for n in ("float", "tinyq")}}
    layer = B.layer_class("w4a16-g128").from_linear(B._float_layer((64, 256), "bfloat16"))
    assert B.reading([cell], "w4a16-g128", "tinyq") == [(1, layer.qtensor.nbytes, 1.)] and B.reading([cell], "w4a16-g128", "float") == [(1, 2*64*256, 1.)]


def test_an_unknown_method_is_refused_before_any_work():
    for bad in ("w9a16", "gguf"):
        with pytest.raises(ValueError, match=bad): B.bench(layers=False, methods=[bad])


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), B.torch_threads(1): 1 / 0
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads is 0"), B.torch_threads(0): pass


BAD = {
    "unknown peer": (["--peers", "gguf"], "gguf"),
    "unknown preset": (["--decode", "--preset", "gpt-5"], "gpt-5"),
    "bad shape": (["--layers", "--shapes", "768x"], "768x"),
    "bad rows": (["--layers", "--rows", "0"], "rows"),
    "bad dtype": (["--decode", "--dtype", "float16"], "float16"),
    "no threads": (["--threads", "0"], "threads"),
    "no rounds": (["--quick", "--rounds", "0"], "rounds"),
    "json in a missing folder": (["--json", "nowhere/b.json"], "nowhere"),
    "plot is a folder": (["--plot", "."], "folder"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, tmp_path):
    from typer.testing import CliRunner
    from tinyq.cli import app
    args, named = BAD[case]
    out = CliRunner().invoke(app, ["bench", *(str(tmp_path / a) if case.startswith("json") and "/" in a else a for a in args)])
    assert out.exit_code == 2 and out.stdout == "" and named in out.stderr and len(out.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_inspect_shows_the_table_of_kernels(tmp_path):
    out = run_tinyq("inspect", "--kernels", "--json", cwd=tmp_path)
    rows = json.loads(out.stdout)
    assert {r["activations"] for r in rows} == {"bfloat16", "float32", "float16"} and all(r["kernel"] for r in rows)
    assert "1024x1024" in run_tinyq("inspect", "--kernels", cwd=tmp_path).stdout
