"The docs site, as far as it can be seen without Quarto: staged by nbdev, made HTML by pandoc, opened in a browser."
import json
import re
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from browser import browser, open_page, overflow  # noqa: F401 (browser is a fixture)
from site_pages import ROOT, Read, Site

SITE, REPO = "https://tinyq.github.io/tinyq", "https://github.com/tinyq/tinyq"
CHAPTERS = sorted(p.name for p in (ROOT / "nbs").glob("[0-9]*.ipynb"))
OPENED = ["index", "01_affine", "10_evaluate", "playground", "glossary", "choosing", "reference", "solutions/01_affine"]
MODES = [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)]

pytest.importorskip("nbdev", reason="nbdev isn't installed: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return Site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def read(site):
    "Every page, as HTML that was read: by the name of its file."
    pytest.importorskip("pypandoc", reason="pandoc isn't there: pip install pypandoc_binary")
    coloured = {f"{n}.ipynb" for n in OPENED}
    with ThreadPoolExecutor(2) as pool: made = list(pool.map(lambda p: site.render(p, p.name in coloured), site.pages.values()))
    return {page.output: Read(path.read_text(encoding="utf-8")) for page, path in zip(site.pages.values(), made)}


# ---- what Quarto will read

def test_nbdev_stages_the_site_without_a_word(site):
    assert site.log.returncode == 0 and site.log.stderr.strip() == "", site.log.stderr
    assert len(site.pages) == len(list((ROOT / "nbs").glob("*.ipynb"))) + len(list((ROOT / "nbs" / "solutions").glob("*.ipynb")))
    assert (site.proc / "_quarto.yml").read_text(encoding="utf-8") == (ROOT / "_quarto.yml").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform == "win32", reason="git may have made a text file of the link")
def test_quarto_and_nbdev_read_one_configuration():
    assert (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml"


def test_every_page_is_in_the_sidebar_once_and_the_sidebar_has_no_other(site):
    listed = site.sidebar()
    assert sorted(listed) == sorted(site.pages)
    for entry in site.config["website"]["navbar"]["left"]: assert entry["href"] in site.pages


def test_files_that_the_site_needs_are_staged(site):
    for pattern in site.config["project"]["resources"] + [site.config["format"]["html"]["css"], site.config["website"]["favicon"]]:
        assert (site.proc / pattern).is_file(), pattern
    outputs = [p.output for p in site.pages.values()]
    assert len(outputs) == len(set(outputs)), "two notebooks make the same page"


def test_nothing_is_executed_and_the_output_is_where_nbdev_looks(site):
    assert site.config["execute"] == {"enabled": False}
    assert site.config["project"]["output-dir"] == "_docs"


@pytest.mark.parametrize("card", ["open-graph", "twitter-card"])
def test_a_shared_link_shows_a_picture(site, card):
    card = site.config["website"][card]
    head = (site.proc / card["image"]).read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", head[16:24]) == (card["image-width"], card["image-height"]) == (1200, 630)
    assert len(card["image-alt"]) > 40


def test_llms_txt_says_what_the_notebooks_say(site):
    run = subprocess.run([sys.executable, ROOT / "scripts" / "make_site_files.py", "--check"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    text = (ROOT / "nbs" / "llms.txt").read_text(encoding="utf-8")
    outputs = {p.output for p in site.pages.values()}
    linked = re.findall(rf"\({re.escape(SITE)}/([^)]+)\)", text)
    assert {p.output for p in site.pages.values() if p.name in CHAPTERS} <= set(linked) <= outputs
    for path in re.findall(r"raw\.githubusercontent\.com/tinyq/tinyq/main/([^\s:,]+\w)", text): assert (ROOT / path).exists(), path


# ---- what a page says

@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_number_promise_and_a_way_to_colab(site, name):
    page = site.pages[name]
    source = json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"][0]["source"]
    title, promise = re.match(r"# ([^\n]+)\n+> (.+)", "".join(source), re.S).groups()
    assert page.front["title"] == f"{name[:2]} {title}"
    assert page.front["description"] == " ".join(promise.replace("\n>", "\n").split()) and not re.search(r"[$\\]", promise)
    assert f"https://colab.research.google.com/github/tinyq/tinyq/blob/main/nbs/{name}" in page.markdown()


@pytest.mark.parametrize("name", CHAPTERS)
def test_exported_code_is_shown_named_and_linked_to_its_source(site, name):
    "nbdev alone would leave out the code that the chapter is about."
    shown = site.pages[name].markdown()
    for cell in json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"]:
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "code" and lines and re.match(r"#\|\s*exports?$", lines[0].strip()):
            assert "\n".join(lines[1:]).strip() in shown, lines[:2]
    for module, symbol, path, line in re.findall(rf"\{{#(tinyq\.\w+)\.(\w+)\}} \[source\]\({REPO}/blob/main/([\w/.]+)#L(\d+)\)", shown):
        assert path == module.replace(".", "/") + ".py"
        assert re.match(rf"(def|class) {symbol}\b", (ROOT / path).read_text(encoding="utf-8").splitlines()[int(line) - 1])
    assert "{.tq-symbol}" in shown


def test_what_follows_the_promise_in_the_first_cell_is_not_lost(site):
    for name, page in site.pages.items():
        first = "".join(json.loads((ROOT / "nbs" / name).read_text(encoding="utf-8"))["cells"][0]["source"])
        rest = re.sub(r"\A# [^\n]+\n+(>[^\n]*\n?)*", "", first).strip()
        assert rest.split("[")[0].split("`")[0] in page.markdown(), name


def test_every_picture_has_an_alternative_text(site, read):
    missing = [(name, i + 1, alt) for name, page in site.pages.items() for i, alt in enumerate(page.images) if not alt or len(alt) < 20 or re.search(r"[\\$`]", alt)]
    missing += [(out, src, alt) for out, page in read.items() for src, alt in page.images if not alt]
    assert not missing, "\n".join(map(str, missing))
    assert sum(len(p.images) for p in site.pages.values()) > 100


def test_pandoc_has_nothing_to_warn_of(site, read):
    assert {name: w for name, w in site.warnings.items() if w} == {}
    cited = [output for output in read if 'class="citation"' in (site.proc / output).read_text(encoding="utf-8")]
    assert not cited, "an @ in the text, which pandoc takes for a citation"


def test_no_tex_is_left(site, read):
    "Every formula became MathML, and nothing that looks like TeX stands in the text."
    for output, page in read.items():
        text = re.sub(r"https?://\S+", "", "".join(page.text))
        left = re.search(r".{0,40}(\$\$|(?<![\w.])\$(?!\d)|\\[a-zA-Z]{2,}|\\[(\[]).{0,40}", text)
        assert not left, f"{output}: {left[0]}"
    assert sum(page.math for page in read.values()) > 300
    assert read["affine.html"].math > 20


# ---- where links lead

def test_no_id_stands_twice_on_a_page(read):
    for output, page in read.items():
        assert sorted(page.ids) == sorted(set(page.ids)), (output, {i for i in page.ids if page.ids.count(i) > 1})


def leads_nowhere(link, output, site, read):
    "Why a link of the page `output` is dead; None if it isn't, or leads to somebody else's site."
    target, _, anchor = link.partition("#")
    if target.startswith(SITE + "/") or target == SITE: return leads_nowhere(link[len(SITE):].lstrip("/") or "index.html", "", site, read)
    target, anchor = unquote(target.partition("?")[0]), unquote(anchor)
    repo = re.match(rf"(?:{REPO}|https://colab\.research\.google\.com/github/tinyq/tinyq)/(blob|tree)/main/(.+)", target)
    if repo:
        path = ROOT / repo[2]
        if not (path.is_file() if repo[1] == "blob" else path.is_dir()): return f"no such {repo[1]} in the repository"
        line = re.fullmatch(r"L(\d+)", anchor)
        return "past the end of the file" if line and int(line[1]) > len(path.read_text(encoding="utf-8").splitlines()) else None
    if re.match(r"\w+:|//", target): return None if target.startswith(("https:", "mailto:")) else "neither a page nor https"
    path = Path(Path(output).parent, target or Path(output).name)
    parts = []
    for part in path.parts: parts = parts[:-1] if part == ".." else parts + [part]
    name = "/".join(parts)
    if name in read: return None if not anchor or anchor in read[name].ids else "no such place on the page"
    return None if (site.proc / name).is_file() and not name.endswith((".ipynb", ".html")) else "no such page or file"


def test_every_internal_link_anchor_and_image_leads_somewhere(site, read):
    dead = {(output, link, why) for output, page in read.items() for link in page.links + [src for src, _ in page.images]
            if (why := leads_nowhere(link, output, site, read))}
    assert not dead, "\n".join(map(str, sorted(dead)))


def test_dead_links_are_found(site, read):
    dead = lambda link: leads_nowhere(link, "affine.html", site, read)
    assert dead("solvers.html") is dead("#recap") is dead("solutions/affine.html") is dead("playground.js") is dead("https://example.com/x") is None
    for link in ("nowhere.html", "#nowhere", "01_affine.ipynb", "solutions", "../LICENSE", "http://example.com", f"{REPO}/blob/main/nowhere.py", f"{REPO}/blob/main/LICENSE#L9999", f"{SITE}/nowhere.html"):
        assert dead(link), link


# ---- in a browser

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1); const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const known = new Map(), colour = c => { if (!known.has(c)) known.set(c, rgba(c)); return known.get(c); };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((s, v, i) => s + v * [.2126, .7152, .0722][i], 0);
  const grounds = new Map();
  const ground = e => {
    if (!e) return [255, 255, 255, 1];
    if (!grounds.has(e)) { const own = colour(getComputedStyle(e).backgroundColor); grounds.set(e, own[3] === 1 ? own : over(own, ground(e.parentElement))); }
    return grounds.get(e);
  };
  const bad = new Map(), walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, s = getComputedStyle(e);
    if (!walk.currentNode.data.trim() || e.closest("svg, script, style, noscript, [disabled], annotation") || !e.checkVisibility?.({ opacityProperty: true, visibilityProperty: true })) continue;
    const b = ground(e), a = [light(over(colour(s.color), b)), light(b)].sort((x, y) => x - y), ratio = (a[1] + .05) / (a[0] + .05);
    const large = parseFloat(s.fontSize) >= 24 || (parseFloat(s.fontSize) >= 18.66 && s.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) bad.set(`${e.tagName}.${e.className} ${s.color} on ${b.map(Math.round)}`, `${ratio.toFixed(2)}: ${walk.currentNode.data.trim().slice(0, 40)}`);
  }
  return Object.fromEntries(bad);
}"""


@pytest.mark.parametrize("scheme,width", MODES)
@pytest.mark.parametrize("name", OPENED)
def test_a_page_in_a_browser(browser, site, read, name, scheme, width):
    "No error, no wish for the network, nothing wider than the window, all text to be read."
    with open_page(browser, site.proc / site.pages[f"{name}.ipynb"].output, scheme, width) as page:
        page.wait_for_load_state("load")
        assert page.evaluate("document.body.className").endswith(f"quarto-{scheme}")
        page.wait_for_function("document.getAnimations().every(a => a.playState != 'running')")
        assert overflow(page) <= 0
        assert page.evaluate(CONTRAST) == {}
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        assert page.problems == []


def test_what_is_wide_scrolls_by_itself_on_a_phone(browser, site, read):
    wide = "s => [...document.querySelectorAll(s)].filter(e => e.scrollWidth > e.clientWidth + 1).map(e => getComputedStyle(e).overflowX)"
    with open_page(browser, site.proc / "affine.html", "light", 390) as page:
        found = page.evaluate(wide, "pre, div.sourceCode, table")
        assert found and set(found) <= {"auto", "scroll"}
    with open_page(browser, site.proc / "affine.html", "light", 1280) as page:
        assert page.evaluate(wide, "pre.cell-code, pre.cell-code code") == [], "on a wide window long lines of code are broken"


# ---- the workflow that renders it

def test_the_workflow_pins_quarto_and_refuses_a_stale_readme():
    text = (ROOT / ".github" / "workflows" / "docs.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(text)["jobs"]["docs"]["steps"]
    quarto = next(s for s in steps if "quarto-actions/setup" in s.get("uses", ""))
    assert re.fullmatch(r"\d+\.\d+\.\d+", quarto["with"]["version"])
    commands = [line.strip() for s in steps for line in s.get("run", "").splitlines()]
    at = {part: next(i for i, c in enumerate(commands) if part in c) for part in ("make_readme.py --check", "make_site_files.py --check", "nbdev_export", "git diff --exit-code", "nbdev_proc_nbs", "quarto render")}
    assert list(at.values()) == sorted(at.values()), "checks come before the rendering"
    upload = next(s for s in steps if "upload-pages-artifact" in s.get("uses", ""))
    assert upload["with"]["path"] == "_proc/" + yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))["project"]["output-dir"]
