"The command line as a user meets it: a new process, its output, its exit code, what it leaves on disk."
import json
import shutil

import pytest
from conftest import run_tinyq
from hub_server import Hub, Repo
from typer.testing import CliRunner

from tinyq.cli import app
from tinyq.evaluate import TINY_LM
from tinyq.hub import load, read_quantization_config
from tinyq.layers import QuantizedLayer


@pytest.fixture(scope="module")
def main_job(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("main_job")
    text = cwd / "text.txt"
    text.write_text((TINY_LM / "heldout.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
    return cwd, run_tinyq("quantize", "--text", text, cwd=cwd)


def test_the_main_job_prints_a_table_and_saves_model_and_figure(main_job):
    cwd, out = main_job
    assert out.returncode == 0, out.stderr
    for line in ("parameters", "bits per weight", "bits per byte", "KL", "tokens a second", "quantized to w8a16", "shares its weight with"):
        assert line in out.stdout
    folder = cwd / "tiny_lm-w8a16"
    assert (folder / "quantization.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in cwd.iterdir()} == {"text.txt", "tiny_lm-w8a16"}


def test_json_has_what_the_table_has(short_text, tmp_path):
    out = run_tinyq("quantize", "--json", "--method", "w8a32", "--dtype", "float32", "--exclude", "*.layers.0.*", "--exclude", "down_proj",
                    "--output", tmp_path / "o", "--text", short_text, cwd=tmp_path)
    result = json.loads(out.stdout)
    assert result["method"] == "w8a32" and result["after"]["bytes"] < result["before"]["bytes"]
    done = {r["path"] for r in result["layers"] if r["scheme"]}
    assert len(done) == 18 and not any(".layers.0." in p or p.endswith("down_proj") for p in done)
    assert result == json.loads((tmp_path / "o" / "quantization.json").read_text(encoding="utf-8"))
    ratio = result["after"]["quantized_layers_bytes"] / result["before"]["quantized_layers_bytes"]
    assert ratio < 0.27  # float32 to one byte and a scale a row


def test_file_is_about_half_of_what_was_quantized(main_job):
    result = json.loads((main_job[0] / "tiny_lm-w8a16" / "quantization.json").read_text(encoding="utf-8"))
    before, after = result["before"], result["after"]
    assert after["quantized_layers_bytes"] <= 0.55 * before["quantized_layers_bytes"]
    on_disk = (main_job[0] / "tiny_lm-w8a16" / "model.safetensors").stat().st_size
    rotary = sum(r["after"] for r in result["layers"] if "rotary" in r["path"])  # computed on loading, not stored
    assert abs(on_disk - (after["bytes"] - rotary)) < 20_000  # the header


def test_a_second_run_replaces_its_own_output(main_job):
    cwd, _ = main_job
    out = run_tinyq("quantize", "--text", cwd / "text.txt", "--method", "w8a32", "--output", "tiny_lm-w8a16", cwd=cwd)
    assert out.returncode == 0, out.stderr
    assert json.loads((cwd / "tiny_lm-w8a16" / "config.json").read_text())["quantization_config"]["scheme"] == "w8a32"


def test_evaluate_and_inspect_open_float_and_quantized(checkpoint, short_text, tmp_path):
    for model in (TINY_LM, checkpoint):
        out = run_tinyq("evaluate", model, "--text", short_text, "--json", cwd=tmp_path)
        assert 0.5 < json.loads(out.stdout)["bits_per_byte"] < 3
        out = run_tinyq("inspect", model, "--json", cwd=tmp_path)
        rows = json.loads(out.stdout)
        assert len(rows) > 30
    assert sum(r["state"] == "w8a16" for r in rows) == 28
    assert "would be quantized" in run_tinyq("inspect", cwd=tmp_path).stdout


BAD = {
    "unknown method": (["quantize", "--method", "w2a2"], "w2a2"),
    "missing folder": (["quantize", "./nowhere"], "nowhere"),
    "no model": (["quantize", "not_a_model"], "config.json"),
    "a file": (["quantize", "some.txt"], "some.txt"),
    "empty text": (["quantize", "--text", "empty.txt"], "empty"),
    "missing text": (["evaluate", "--text", "missing.txt"], "missing.txt"),
    "binary text": (["evaluate", "--text", "binary.txt"], "UTF-8"),
    "foreign output": (["quantize", "--output", "not_a_model"], "not_a_model"),
    "output is a file": (["quantize", "--output", "some.txt"], "some.txt"),
    "misspelt exclude": (["quantize", "--exclude", "lm_haed"], "lm_haed"),
    "unknown dtype": (["quantize", "--dtype", "float8"], "float8"),
    "empty prompt": (["quantize", "--prompt", "", "--text", "short.txt"], "prompt"),
    "weights missing": (["evaluate", "no_weights"], "no_weights"),
    "config is no JSON": (["inspect", "bad_config"], "bad_config"),
    "offline Hub id": (["inspect", "nobody/nothing"], "nobody/nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, tmp_path):
    (tmp_path / "not_a_model").mkdir()
    (tmp_path / "not_a_model" / "precious.txt").write_text("mine")
    (tmp_path / "some.txt").write_text("hello")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "short.txt").write_text("Return a list of the names. " * 20)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "no_weights").mkdir()
    (tmp_path / "bad_config").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY_LM / name, tmp_path / "no_weights")
    (tmp_path / "bad_config" / "config.json").write_text("{")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    args, value = BAD[case]
    out = run_tinyq(*args, cwd=tmp_path)
    assert out.returncode != 0
    lines = out.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("tinyq: ") and value in lines[0], out.stderr
    assert out.stdout == ""
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


# ---- few bits, mixed schemes, budgets

def buffers(folder):
    "Path -> scheme and bytes of each quantized layer of a folder, opened anew; a head that is tied holds none of its own."
    seen, out = set(), {}
    for path, m in load(folder)[0].named_modules():
        if not isinstance(m, QuantizedLayer): continue
        tensors = {t.data_ptr(): t.nbytes for t in m.state_dict().values() if t.data_ptr() not in seen}
        seen |= tensors.keys()
        out[path] = str(m.scheme), sum(tensors.values())
    return out


def here(*args):
    "The command line in this process, which is quicker."
    return CliRunner().invoke(app, [*map(str, args)])


def test_a_scheme_for_each_pattern(short_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    schemes = "*.layers.0.*.down_proj=float", "*.down_proj=w8a16", "*.self_attn.*=none", "*.layers.[12].*=w4a16-g64"
    out = here("quantize", "--method", "w3a16-g32-asym", *(a for s in schemes for a in ("--scheme", s)), "--text", short_text)
    assert out.exit_code == 0, out.stderr
    folder = tmp_path / "tiny_lm-mixed"
    result = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    def wanted(path):
        if path.endswith("down_proj"): return None if ".0." in path else "w8a16"
        if "self_attn" in path: return None
        return "w4a16-g64" if ".1." in path or ".2." in path else "w3a16-g32-asym"
    rows = {r["path"]: r for r in result["layers"] if r["kind"] == "Linear" and r["path"] != "lm_head"}
    assert {p: r["scheme"] for p, r in rows.items()} == {p: wanted(p) for p in rows}
    assert rows["model.layers.0.mlp.down_proj"]["skipped"] == "left alone by '*.layers.0.*.down_proj'"
    found = buffers(folder)
    assert found == {p: (r["scheme"], r["after"]) for p, r in rows.items() if r["scheme"]}
    weights, nbytes = sum(r["params"] for p, r in rows.items() if p in found), sum(n for _, n in found.values())
    assert result["after"]["quantized_layers_bytes"] == nbytes and result["after"]["quantized_layers_bits_per_weight"] == 8 * nbytes / weights
    for line in ("tiny_lm (shipped): mixed", "quantized to w8a16: down_proj 1-3", "quantized to w4a16-g64: gate_proj, up_proj 1-2", "quantized to w3a16-g32-asym: gate_proj, up_proj 0, 3"): assert line in out.stdout


def test_a_budget(short_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = here("quantize", "--target-bits", "4.5", "--exclude", "*.layers.[12].*", "--exclude", "*.self_attn.*", "--text", short_text)
    assert out.exit_code == 0, out.stderr
    result = json.loads((tmp_path / "tiny_lm-4.5bits" / "quantization.json").read_text(encoding="utf-8"))
    bits = result["after"]["quantized_layers_bits_per_weight"]
    assert 4.2 < bits <= 4.5 and result["chosen"]["bits_per_weight"] == bits and 0 < result["after"]["kl"] < 5 * result["chosen"]["expected_kl"]
    found = buffers(tmp_path / "tiny_lm-4.5bits")
    assert len(found) == 6 and {p: s for p, (s, _) in found.items()} == {p: s for p, s in result["schemes"].items() if s}
    assert out.stdout.startswith("chosen: ") and f"{bits:.3f} bits a weight" in out.stdout.splitlines()[0]


WRONG = {
    "no such bits": ("--method w9a16", "unknown method 'w9a16'"),
    "no such layers": ("--method w4a8", "there are no layers with 8-bit activations"),
    "no scheme": ("--scheme down_proj", "--scheme 'down_proj' is not PATTERN=SCHEME"),
    "unknown scheme": ("--scheme down_proj=w4", "unknown method 'w4'"),
    "no pattern": ("--scheme =w8a16", "--scheme '=w8a16' is not"),
    "misspelt pattern": ("--scheme down_prjo=w8a16", "--scheme pattern 'down_prjo' matches no module; there is 'down_proj'"),
    "misspelt, left alone": ("--scheme down_prjo=float", "--scheme pattern 'down_prjo' matches no module"),
    "pattern without layers": ("--scheme norm=w8a16", "'norm' has no layer to quantize (model.norm: not an nn.Linear)"),
    "an embedding unasked": ("--scheme embed_tokens=w8a16", "add --embeddings"),
    "a pattern behind another": ("--scheme *.mlp.*=w8a16 --scheme up_proj=w4a16", "'*.mlp.*' takes it first"),
    "a pattern twice": ("--scheme up_proj=w8a16 --scheme up_proj=w4a16", "'up_proj' is given twice"),
    "two for the rest": ("--scheme *=w4a16 --method w8a16", "both mean all other layers"),
    "a head unlike its embedding": ("--scheme lm_head=w8a16 --method w4a16-g64 --embeddings", "its weight is that of model.embed_tokens, too"),
    "budget and method": ("--target-bits 4.5 --method w8a16", "leave out --method and --scheme"),
    "budget and scheme": ("--target-bits 4.5 --scheme up_proj=w8a16", "leave out --method and --scheme"),
    "budget too small": ("--target-bits 2", "the smallest that these schemes can is 2.25 bits"),
    "no budget": ("--target-bits nan", "NaN"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_schemes_are_one_line_before_anything_is_computed(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args, what = WRONG[case]
    out = here("quantize", *args.split())
    assert out.exit_code == 2 and out.stdout == "" and what in out.stderr
    assert len(out.stderr.strip().splitlines()) == 1 and out.stderr.startswith("tinyq: ")
    assert not list(tmp_path.iterdir())


def test_inspect_kernels():
    ask = lambda *args: here("inspect", *args)
    rows = json.loads(ask("--kernels", "--json").stdout)
    assert [r["scheme"] for r in rows] == ["w8a16"] * 12 + ["w4a16-g128"] * 12
    assert {r["scheme"] for r in json.loads(ask("--kernels", "--json", "--method", "w3a16-g64").stdout)} == {"w3a16-g64"}
    assert "w3a16-g64, on this machine" in ask("--kernels", "--method", "w3a16-g64").stdout
    for args, what in [(["--method", "w8a16"], "--method is for --kernels"), (["--kernels", "--method", "w0a16"], "unknown method")]:
        assert ask(*args).exit_code == 2 and what in ask(*args).stderr


def test_inspect_says_what_embeddings_would_become():
    states = [{r["path"]: r["state"] for r in json.loads(here("inspect", "--json", *more).stdout)} for more in ([], ["--embeddings"])]
    assert [s["model.embed_tokens"] for s in states] == ["left: not an nn.Linear", "would be quantized"]
    assert [s["lm_head"] for s in states] == ["left: shares its weight with model.embed_tokens", "would be quantized"]


# ---- the Hub

@pytest.fixture(scope="module")
def hub():
    "It has me/float: nothing on main, the shipped model on the branch v1."
    with Hub() as h:
        h.repos["me/float"] = repo = Repo("me/float")
        repo.commit("main", "nothing yet", {"README.md": b"soon"})
        repo.commit("v1", "a model", {p.name: p.read_bytes() for p in TINY_LM.iterdir() if p.suffix in (".json", ".safetensors")})
        yield h


@pytest.fixture
def online(hub, tmp_path, monkeypatch):
    "The command line in a process that talks to that Hub, with a cache of its own. Called with a token: with that one."
    def run(*args, token="hf_write"):
        for k, v in hub.env(tmp_path / "home", token).items(): monkeypatch.setenv(k, v)
        return run_tinyq(*args, cwd=tmp_path)
    return run


def one_line(out):
    lines = out.stderr.strip().splitlines()
    assert out.returncode == 2 and len(lines) == 1 and lines[0].startswith("tinyq: ") and out.stdout == "", out.stderr
    return lines[0]


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    "What `quantize me/float --push-to me/codes` said."
    cwd = tmp_path_factory.mktemp("pushed")
    (cwd / "text.txt").write_text((TINY_LM / "heldout.txt").read_text(encoding="utf-8")[:3000], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for k, v in hub.env(cwd / "home").items(): patch.setenv(k, v)
        out = run_tinyq("quantize", "me/float", "--revision", "v1", "--push-to", "me/codes", "--private", "--text", "text.txt", cwd=cwd)
    assert out.returncode == 0, out.stderr
    return cwd / "float-w8a16", out


def test_push(pushed, hub):
    folder, out = pushed
    repo = hub.repos["me/codes"]
    assert f"pushed: {hub.endpoint}/me/codes/commit/{repo.refs['main']}" in out.stdout and repo.private and len(repo.commits) == 2
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {n: c for n, c in repo.at("main").files.items() if n != ".gitattributes"}
    card, result = (folder / "README.md").read_text(encoding="utf-8"), json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    assert "base_model: me/float" in card and "base_model_relation: quantized" in card and 'tinyq.load("me/codes")' in card
    before, after = result["before"], result["after"]
    assert f"| bits per byte of text | {before['bits_per_byte']:.4f} | {after['bits_per_byte']:.4f} |" in card
    assert f"| KL to the float model, nats a token |  | {after['kl']:.6f} |" in card and "tokens a second" in card


def test_evaluate_and_inspect_from_the_hub(pushed, hub, online, short_text):
    folder, _ = pushed
    wanted = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    for model, side in [(["me/codes"], "after"), (["me/float", "--revision", "v1"], "before")]:
        out = online("evaluate", *model, "--text", short_text, "--json")
        assert out.returncode == 0 and out.stderr == "", out.stderr
        assert abs(json.loads(out.stdout)["bits_per_byte"] - wanted[side]["bits_per_byte"]) < 1e-12
    states = [r["state"] for r in json.loads(online("inspect", "me/codes", "--json", token="hf_read").stdout)]
    assert states.count("w8a16") == 28
    assert [r["state"] for r in json.loads(online("inspect", "me/float", "--revision", "v1", "--json").stdout)].count("would be quantized") == 28
    assert "me/codes is quantized already" in one_line(online("quantize", "me/codes"))


def test_four_bits_and_the_embedding_go_there_and_back(hub, online, short_text, tmp_path):
    out = online("quantize", "me/float", "--revision", "v1", "--method", "w4a16-g64", "--embeddings", "--push-to", "me/four", "--text", short_text)
    assert out.returncode == 0 and "quantized to w4a16-g64" in out.stdout, out.stderr
    folder = tmp_path / "float-w4a16-g64"
    result = json.loads((folder / "quantization.json").read_text(encoding="utf-8"))
    after, rotary = result["after"], sum(r["after"] for r in result["layers"] if "rotary" in r["path"])
    assert after["quantized_layers_bits_per_weight"] == 4 + 16 / 64 and after["bits_per_weight"] < 4.3
    assert abs((folder / "model.safetensors").stat().st_size - (after["bytes"] - rotary)) < 20_000 # the header
    again = json.loads(online("evaluate", "me/four", "--text", short_text, "--json").stdout)
    assert abs(again["bits_per_byte"] - after["bits_per_byte"]) < 1e-12
    rows = {r["path"]: r for r in json.loads(here("inspect", folder, "--json").stdout)}
    assert sum(r["state"] == "w4a16-g64" for r in rows.values()) == 30 and rows["lm_head"]["nbytes"] == 0
    assert rows["model.embed_tokens"]["bits_per_weight"] == 4.25
    assert sum(r["nbytes"] for r in rows.values()) == after["bytes"] and sum(r["params"] for r in rows.values()) == after["parameters"]


def test_a_read_only_token_keeps_the_folder(hub, online, short_text, tmp_path):
    line = one_line(online("quantize", "--push-to", "me/new", "--text", short_text, "--output", "kept", token="hf_read"))
    assert "the token given may not do that with me/new" in line and "the result is whole in kept" in line
    assert read_quantization_config(tmp_path / "kept")["scheme"] == "w8a16" and "me/new" not in hub.repos


FAULTS = {
    "no name": (["quantize", "--push-to", "a model"], {}, "'a model' is no name for a model on the Hub"),
    "no user": (["quantize", "--push-to", "model"], {}, "'model' is no name for a model on the Hub"),
    "no token": (["quantize", "--push-to", "me/new"], {"token": ""}, "there is no token"),
    "private what": (["quantize", "--private"], {}, "--private is for --push-to"),
    "nothing on main": (["quantize", "me/float"], {}, "me/float lacks a file of a model"),
    "no revision": (["evaluate", "me/float", "--revision", "v2"], {}, "me/float has no revision 'v2'"),
    "no repository": (["inspect", "me/nothing"], {}, "the Hub has no model me/nothing"),
    "no folder": (["inspect", "tiny_ml"], {}, "there is no folder 'tiny_ml', and tiny_ml is not"),
    "private": (["inspect", "me/codes"], {"token": "hf_other"}, "the Hub has no model me/codes that you may see"),
    "revision of a folder": (["evaluate", TINY_LM, "--revision", "v1"], {}, "is a folder, and revision 'v1' is for Hub ids"),
    "revision of nothing": (["inspect", "--revision", "v1"], {}, "revision 'v1' is for a model on the Hub"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_faults_at_the_hub_are_one_line_before_anything_is_computed(pushed, case, online, tmp_path):
    args, how, what = FAULTS[case]
    assert what in one_line(online(*args, **how))
    assert {p.name for p in tmp_path.iterdir()} <= {"home"}


def test_offline(tmp_path):
    assert "HF_HUB_OFFLINE is set" in one_line(run_tinyq("quantize", "--push-to", "me/new", cwd=tmp_path))
