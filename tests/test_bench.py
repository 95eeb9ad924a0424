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
    assert len(result["layers"]) == 8 and set(result["table"]) == set(B.TABLE)
    for cell in result["layers"]:
        assert list(cell["candidates"]) == ["float", "control", "tinyq", "listing"]
        for c in cell["candidates"].values():
            assert 0 < c["seconds"]["q1"] <= c["seconds"]["median"] <= c["seconds"]["q3"] and c["calls"] >= 1 and c["error"] < .05
    for run in result["decode"]:
        assert run["preset"] == "tiny" and run["candidates"]["tinyq"]["streamed"] < run["candidates"]["float"]["streamed"]
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
    cell = next(c for c in result["layers"] if c["dtype"] == "bfloat16" and c["rows"] == 8)
    mine = [c["candidates"]["tinyq"]["ratio"]["median"] for c in result["layers"] if (c["dtype"], c["rows"]) == ("bfloat16", 8)]
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
    monkeypatch.setattr(B, "PEERS", {"torchao": ("no-such-package-at-all", None), "quanto": (None, picky), "hqq": (None, wrong)})


def test_missing_wrong_and_failing_peers_are_rows_that_say_so(strange_peers):
    cells = B.bench_layers([(24, 40)], [1, 2], B.PEERS, 1, .0001, ["float32"])
    one, two = (c["candidates"] for c in cells)
    for c in (one, two):
        assert c["torchao"] == {"failed": "not installed: pip install no-such-package-at-all"}
        assert c["hqq"]["failed"].startswith("ValueError: wrong result")
    assert one["tinyq"]["best_peer"] == "quanto" and "seconds" in one["quanto"]
    assert two["quanto"] == {"failed": "RuntimeError: one row only; see ..."} and "against_best" not in two["tinyq"]
    assert list(B.speed_table(cells)["W8A32 against the best peer, fp32"]) == [1]


def test_failing_peers_in_a_whole_model(strange_peers):
    done = B.bench_decode("tiny", ["torchao", "hqq"], tokens=1, rounds=1)["candidates"]
    assert set(done) == {"float", "control", "tinyq", "torchao", "hqq"} and "not installed" in done["torchao"]["failed"] and "failed" in done["hqq"]


def test_the_head_is_quantized_and_the_float_model_left_alone():
    model = B.build_preset("tiny")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    rival = B._rival(model, "tinyq")
    assert type(rival.lm_head).__name__ == "W8A16LinearLayer" and type(rival.get_input_embeddings()) is nn.Embedding
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.lm_head.weight is model.get_input_embeddings().weight


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
