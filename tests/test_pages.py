"The front page, and what a newcomer reads beside the course: it is whole, and says what is so."
import importlib.util
import re
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from tinyq import kernels, low_bit, packing, solvers

ROOT = Path(__file__).parents[1]
README, CONTRIBUTING = ((ROOT / f"{n}.md").read_text(encoding="utf-8") for n in ("README", "CONTRIBUTING"))
REPO = "https://github.com/tinyq/tinyq"


@pytest.fixture(scope="module")
def make_readme():
    spec = importlib.util.spec_from_file_location("make_readme", ROOT / "scripts" / "make_readme.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module


def version():
    ini = ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    return ini["DEFAULT"]["version"]


# ---- README

def test_a_newcomer_sees_promise_picture_and_command_first():
    lines = README.splitlines()
    at = lambda start: next(i for i, line in enumerate(lines) if line.startswith(start))
    assert at("# tinyq") < at("> ") < at("![") < at("pip install -c constraints.txt -e '.[fast]'") < at("tiny_lm (shipped)") < 50


def test_links_and_pictures_are_there():
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", README)
    for picture, alt, target in links:
        if picture: assert len(alt) > 20 and (ROOT / target).is_file(), target
        elif not target.startswith("https:"): assert (ROOT / target.partition("#")[0]).exists(), target
        assert not re.match(rf"{REPO}/(blob|tree)/", target), f"{target} leaves a fork or a branch"
    assert sum(bool(p) for p, *_ in links) >= 2


def test_every_chapter_is_on_the_map_with_its_time():
    for path in (ROOT / "nbs").glob("[0-9]*.ipynb"):
        assert re.search(rf"^\| \[{path.name[:2]} [^|]+\]\(nbs/{path.name}\) \| [^|]+ \| \d+( h \d+)? min \|$", README, re.M), path.name


def test_comparison_names_versions_and_a_date():
    row = README[README.index("## Beside other libraries"):README.index("## Honest limits")]
    for name in ("tinyq", "torchao", "optimum-quanto", "hqq", "bitsandbytes"): assert re.search(rf"^\| (\[{name}\]\(https:\S+\)|{name}) \d+\.\d+", row, re.M), name
    assert re.search(r"\b20\d\d-\d\d-\d\d\b", row)


def test_links_of_the_index_become_those_of_the_readme(make_readme):
    for link, want in {"01_affine.ipynb": "nbs/01_affine.ipynb", "solutions/01_affine.ipynb": "nbs/solutions/01_affine.ipynb", f"{REPO}/blob/main/LICENSE": "LICENSE",
                       f"{REPO}/tree/main/nbs/solutions": "nbs/solutions", "playground.ipynb": "https://tinyq.github.io/tinyq/playground.html",
                       "https://pytorch.org": "https://pytorch.org", "#results": "#results", f"{REPO}/issues": f"{REPO}/issues"}.items():
        assert make_readme.from_root(f"a [b]({link}) c") == f"a [b]({want}) c"


def test_a_picture_takes_the_text_that_stands_for_it(make_readme):
    cell = {"cell_type": "code", "source": '#| echo: false\n#| fig-alt: "A line: two dots."\nplot()', "outputs": [{"data": {"image/png": "AAAA"}}]}
    files = make_readme.render({"cells": [cell]})
    assert b'![A line: two dots.](nbs/images/readme-1.png)' in files[Path("README.md")] and b"plot()" not in files[Path("README.md")]


# ---- beside it

def test_what_contributing_names_exists():
    for name in re.findall(r"`((?:nbs|tests|scripts|tinyq|benchmarks)/[\w./]+|[\w.]+\.(?:md|txt|yml|cff))`", CONTRIBUTING):
        assert "NN" in name or (ROOT / name).exists(), name
    for link in re.findall(r"\]\((?!https:)([^)]+)\)", CONTRIBUTING): assert (ROOT / link).exists(), link
    assert isinstance(solvers.SOLVERS, dict) and isinstance(packing.LAYOUTS, dict) and low_bit.PACKED_KERNELS in kernels.TABLES
    assert "SEARCHES = [" in (ROOT / "tests" / "test_properties.py").read_text(encoding="utf-8")


def test_contributing_is_set_up_in_one_line():
    line, = re.findall(r"^git clone .*$", CONTRIBUTING, re.M)
    assert "pip install -c constraints.txt -e '.[dev]' && nbdev_install_hooks" in line
    assert "nbdev_export" in CONTRIBUTING and "nbdev_test --path" in CONTRIBUTING and "nbdev_clean" in CONTRIBUTING


def test_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys() and cited["version"] == version() and cited["repository-code"] == REPO
    assert f"\n## {version()}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_issue_templates_say_what_they_are():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        assert {"name", "about"} <= yaml.safe_load(path.read_text(encoding="utf-8").split("---")[1]).keys(), path.name
    assert (ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md").is_file()
