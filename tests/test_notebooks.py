"What a reader of a notebook would trip over, and what the docs site would."
import ast
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / "nbs"
NOTEBOOKS = [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
CHAPTERS = [p for p in NOTEBOOKS if p.parent == NBS and p.name[0].isdigit()]
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|work|tmp|home|Users|private|var/folders)/")


def cells(path, kind="code"):
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_outputs_hold_no_paths_errors_or_warnings(path):
    assert path.stat().st_size < 500_000
    for cell in cells(path):
        for out in cell.get("outputs", []):
            assert out["output_type"] != "error" and out.get("name") != "stderr", source(cell)
            for text in [out.get("text", "")] + [v for k, v in out.get("data", {}).items() if k.startswith("text/")]:
                assert not MACHINE_PATH.search("".join(text)), source(cell)


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.name != "index.ipynb"], ids=lambda p: p.stem)
def test_imports_stand_in_cells_of_their_own(path):
    "The docs are made by running the cells with imports; other code in them would run without what it needs."
    for cell in cells(path):
        code = "\n".join(line for line in source(cell).splitlines() if not line.startswith(("%", "!")))
        assert {isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body} != {True, False}, code


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_title_promise_recap_exercises_and_solutions(path):
    text = [source(c) for c in cells(path, "markdown")]
    title = source(json.loads(path.read_text(encoding="utf-8"))["cells"][0])
    assert re.match(r"# .+\n+> .+", title)
    whole = "\n".join(text)
    for heading in ("Recap", "Exercises", "Further reading"): assert re.search(rf"^##+ .*{heading}", whole, re.M | re.I), heading
    assert f"](solutions/{path.name})" in whole and (NBS / "solutions" / path.name).exists()
    assert f"colab.research.google.com/github/tinyq/tinyq/blob/main/nbs/{path.name}" in whole
    assert "<details>" in whole, "hints"


COMES_WITH = {"numpy": "matplotlib", "PIL": "matplotlib", "llvmlite": "numba", "IPython": "ipywidgets"}

@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_imports_nothing_but_what_it_says_to_install(path):
    ini = ConfigParser(delimiters=["="])
    ini.read(NBS.parent / "settings.ini", encoding="utf-8")
    there = {re.match(r"[\w-]+", r)[0] for kind in ("", "chapters_") for r in ini["DEFAULT"][f"{kind}requirements"].split()} | {"tinyq"} | sys.stdlib_module_names
    assert any("%pip install 'tinyq[chapters]'" in source(c) for c in cells(path, "markdown"))
    for cell in cells(path):
        code = "\n".join(line for line in source(cell).splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.parse(code).body: # what a function imports, it can do without, or says so
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in (n.split(".")[0] for n in names): assert COMES_WITH.get(name, name) in there, name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_links_between_notebooks_lead_somewhere(path):
    for cell in cells(path, "markdown"):
        for link in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", source(cell)):
            assert (path.parent / link).exists(), link
