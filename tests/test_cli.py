"The command line as a user meets it: a new process, its output, its exit code, what it leaves on disk."
import json
import shutil

import pytest
from conftest import run_tinyq

from tinyq.evaluate import TINY_LM


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
