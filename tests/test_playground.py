"The playground of the docs site: its arithmetic is tinyq's, bit for bit, and its page works for every reader."
import base64
import html
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import browser, open_page, overflow  # noqa: F401 (browser is a fixture)

import tinyq
from tinyq import linear_q_with_scale_and_zero_point, quantize_affine, quantize_tensor
from tinyq.affine import dequantize_affine, int_range
from tinyq.error import mse_error, sqnr
from tinyq.viz import contrast

NBS = Path(__file__).parents[1] / "nbs"
GRIDS = "symf", "symr", "asym"


# ---- the arithmetic

@pytest.fixture(scope="module")
def js(browser):
    "A blank page with the script, whose functions work without the page."
    with open_page(browser, None) as page:
        page.add_script_tag(path=NBS / "playground.js")
        yield page
        assert page.problems == []


def scheme_of(bits, grid, group):
    size = {"row": "", "tensor": "-tensor"}.get(group, f"-g{group}")
    return f"w{bits}a16{size}-{grid}"


def values(rng, n, bits):
    "Weights of some kind, as float32."
    kind, top = rng.integers(12), 2 ** (bits - 1)
    x = rng.standard_normal(n)
    if kind == 0: x[:] = 0
    elif kind == 1: x[:] = rng.standard_normal()
    elif kind == 2: x = np.abs(x)
    elif kind == 3: x = -np.abs(x)
    elif kind == 4: x[rng.integers(n)] *= 100
    elif kind == 5: x *= rng.random(n) < .2 # mostly 0, with both of its signs
    if kind in (6, 7, 8): # halves on a grid whose step is a power of two: ties
        x = rng.integers(-2 * top, 2 * top, n) / 2
        x[rng.integers(n)] = [-top, top - 1, 1 - top][kind - 6]
        return (x * 2. ** rng.integers(-90, 90)).astype(np.float32)
    if kind == 9: return (x * 10. ** rng.integers(-44, -36)).astype(np.float32) # where float32 runs out of digits
    return (x * 10. ** rng.uniform(-30, 30)).astype(np.float32)


RUN = """([cases, data]) => {
  const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), x = new Float32Array(bytes.buffer);
  const out = { codes: [], scale: [], zero: [], back: [], measures: [] };
  let at = 0;
  for (const [rows, cols, bits, grid, group, scale, zero] of cases) {
    const part = x.slice(at, at += rows * cols), P = tinyqPlayground;
    const n = part.length, hand = () => ({ scale: [Math.fround(scale)], zero: [zero], bits, groups: 1, rowLength: n, groupSize: n });
    const q = grid === "hand" ? { codes: P.quantizeAffine(part, scale, zero, bits), ...hand() } : P.quantizeTensor(part, rows, cols, bits, grid, group);
    const back = P.dequantize(q), m = P.measure(part, q, back);
    out.codes.push(...q.codes); out.scale.push(...q.scale); out.zero.push(...(q.zero ?? [])); out.back.push(...back); out.measures.push(m.mse, m.sqnr, m.bpw);
  }
  const text = a => { let s = ""; for (const b of new Uint8Array(a.buffer)) s += String.fromCharCode(b); return btoa(s); };
  const types = { codes: Int8Array, scale: Float32Array, zero: Int16Array, back: Float32Array, measures: Float64Array };
  return Object.entries(types).map(([name, type]) => text(type.from(out[name])));
}"""


def run_js(js, cases, arrays):
    data = base64.b64encode(np.concatenate(arrays).tobytes()).decode()
    types = np.int8, np.float32, np.int16, np.float32, np.float64
    return [np.frombuffer(base64.b64decode(t), dtype) for t, dtype in zip(js.evaluate(RUN, [cases, data]), types)]


def same_bits(a, b):
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def test_ten_thousand_tensors_get_the_codes_scales_and_zero_points_of_tinyq(js):
    rng = np.random.default_rng(0)
    cases, arrays = [], []
    for _ in range(10_000):
        bits, (rows, cols) = int(rng.integers(1, 9)), map(int, rng.integers(1, (6, 20)))
        grid = GRIDS[rng.integers(3)]
        if bits == 1 and grid == "symr": grid = "symf"
        group = ("row", "tensor", int(rng.integers(1, cols + 3)), int(rng.integers(1, cols + 1)))[rng.integers(4)]
        cases.append([rows, cols, bits, grid, group]); arrays.append(values(rng, rows * cols, bits))
    codes, scales, zeros, backs, measures = run_js(js, cases, arrays)
    i = k = j = 0
    with np.errstate(all="ignore"):
        for n, (case, x) in enumerate(zip(cases, arrays)):
            rows, cols, bits, grid, group = case
            q = quantize_tensor(torch.from_numpy(x).view(rows, cols), scheme_of(bits, grid, group))
            s, back = q.scale.flatten().numpy(), q.dequantize().flatten()
            assert same_bits(codes[i:i + x.size], q.codes.flatten().numpy()), (case, x)
            assert same_bits(scales[k:k + s.size], s), (case, x)
            if grid == "asym":
                assert (zeros[j:j + s.size] == q.zero_point.flatten().numpy()).all(), (case, x)
                j += s.size
            assert (backs[i:i + x.size] == back.numpy()).all(), (case, x)
            if n % 10 == 0: # sums in another order, so not the last bit
                mse, db, bpw = measures[3 * n:3 * n + 3]
                assert bpw == pytest.approx(q.bits_once_packed, rel=1e-12)
                assert mse == pytest.approx(mse_error(torch.from_numpy(x), back), rel=1e-9, abs=0)
                if x.any(): assert db == pytest.approx(sqnr(torch.from_numpy(x), back), rel=1e-9)
            i, k = i + x.size, k + s.size
    assert (i, k, j) == (codes.size, scales.size, zeros.size)


def test_by_hand_gives_the_codes_of_linear_q_with_scale_and_zero_point(js):
    rng = np.random.default_rng(1)
    cases, arrays = [], []
    for n in range(2_000):
        bits = 8 if n % 2 else int(rng.integers(1, 9))
        x = values(rng, int(rng.integers(1, 40)), bits)
        scale = float(np.float32(max(np.abs(x).max(), 1e-36) * 10. ** rng.uniform(-4, 1))) if n % 3 else float(2. ** rng.integers(-90, 90))
        cases.append([1, x.size, bits, "hand", "tensor", scale, int(rng.integers(-300, 300))]); arrays.append(x)
    codes, _, _, backs, _ = run_js(js, cases, arrays)
    i = 0
    for case, x in zip(cases, arrays):
        _, _, bits, _, _, scale, zero = case
        t = torch.from_numpy(x)
        want = linear_q_with_scale_and_zero_point(t, scale, zero) if bits == 8 else quantize_affine(t, scale, zero, *int_range(bits))
        assert same_bits(codes[i:i + x.size], want.numpy()), (case, x)
        assert (backs[i:i + x.size] == dequantize_affine(want, scale, zero).numpy()).all(), (case, x)
        i += x.size


def test_halves_are_rounded_to_even_and_wrong_wishes_refused(js):
    x = [k / 2 for k in range(-40, 41)] + [2. ** 23 + 1, -2. ** 24, 1e30, .49999997, -.5]
    assert js.evaluate("x => x.map(v => tinyqPlayground.roundHalfEven(v) + 0)", x) == torch.tensor(x, dtype=torch.float64).round().tolist()
    for call in ("intRange(0)", "intRange(9)", "intRange(2.5)", "solve([1], 0, 1, 4, 'other')", "solve([1], 0, 1, 1, 'symr')"):
        assert js.evaluate(f"() => {{ try {{ tinyqPlayground.{call}; return '' }} catch (e) {{ return e.name }} }}") == "RangeError"


# ---- the page

def by_template(notebook):
    "The notebook as HTML: raw HTML as it is, other text escaped, pictures."
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown": parts.append(text if text.startswith("<") else f"<p>{html.escape(text)}</p>")
        for out in cell.get("outputs", []):
            if png := out.get("data", {}).get("image/png"): parts.append(f'<p><img src="data:image/png;base64,{"".join(png)}" style="max-width: 100%"></p>')
    body = "\n".join(f"<div>{p}</div>" for p in parts)
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Playground</title><body>{body}'


@pytest.fixture(scope="module", params=["pandoc", "template"])
def page_file(request, tmp_path_factory):
    "The page, made of the notebook by pandoc or, without colours of its own, by a template."
    folder = tmp_path_factory.mktemp("site")
    for name in ("playground.js", "playground.css"): shutil.copy(NBS / name, folder)
    file = folder / "playground.html"
    if request.param == "pandoc":
        pypandoc = pytest.importorskip("pypandoc", reason="no pandoc: pip install pypandoc_binary")
        args = ["--standalone", f"--extract-media={folder}", "--metadata=pagetitle:Playground"]
        pypandoc.convert_file(NBS / "playground.ipynb", "html", format="ipynb", outputfile=file, extra_args=args)
    else: file.write_text(by_template(NBS / "playground.ipynb").replace("<title>", "<style>:root { color-scheme: light dark }</style><title>"), "utf-8")
    return file


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    "The page by the template."
    folder = tmp_path_factory.mktemp("plain")
    for name in ("playground.js", "playground.css"): shutil.copy(NBS / name, folder)
    (folder / "playground.html").write_text(by_template(NBS / "playground.ipynb"), encoding="utf-8")
    return folder / "playground.html"


@pytest.fixture
def page(browser, plain):
    with open_page(browser, plain) as page:
        page.wait_for_selector(".pg")
        yield page
        assert page.problems == [] and overflow(page) <= 0


def state(page): return page.evaluate("tinyqPlayground.page.state")
def codes(page): return page.evaluate("[...tinyqPlayground.page.now.q.codes]")
def numbers(page): return page.locator(".pg-numbers dd").all_inner_texts()
def settle(page): page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def slide(page, name, value):
    page.locator(f".pg input[name={name}]").evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input', { bubbles: true })) }", str(value))
    settle(page)


EVERY = """() => { // states of all kinds: how far the page is ever too wide, and its heights
  const P = tinyqPlayground.page, root = document.documentElement, wide = [], heights = [];
  for (const preset of ["heavy", "positive", "T"]) for (const group of [1, 14, "tensor"]) for (const bits of [1, 8])
    for (const grid of ["symf", "asym", "hand"]) {
      P.start(tinyqPlayground.fromHash(`#tensor=${preset}&bits=${bits}&group=${group}&grid=${grid}&scale=.3141&zero=-3`));
      P.compute(); P.draw(); P.say();
      wide.push(root.scrollWidth - root.clientWidth); heights.push(P.root.getBoundingClientRect().height);
    }
  return [Math.max(...wide), heights];
}"""


OUTSIDE = """() => { // what sticks out of the card, or has text cut off
  const card = document.querySelector(".pg").getBoundingClientRect();
  const out = e => { const b = e.getBoundingClientRect(); return b.left < card.left - 1 || b.right > card.right + 1 };
  const cut = e => e.matches("dt, dd, p, button") && e.scrollWidth > e.clientWidth + 1;
  return [...document.querySelectorAll(".pg *")].filter(e => e.checkVisibility() && !e.closest("svg, pre, .pg-table") && (out(e) || cut(e))).map(e => e.outerHTML);
}"""


@pytest.mark.parametrize("width", [1280, 640, 390, 320])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_opens_light_and_dark_wide_and_narrow(browser, page_file, scheme, width):
    with open_page(browser, page_file, scheme, width) as page:
        page.wait_for_selector(".pg")
        text = sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).color"))[:3]))
        assert page.locator(".pg").get_attribute("data-theme") == ("dark" if text > 382 else "light") # as the page is, whatever is preferred
        wide, heights = page.evaluate(EVERY)
        assert wide <= 0 and (max(heights) - min(heights) < 2 or width == 320) # what stands below doesn't move
        assert page.evaluate(OUTSIDE) == []
        assert page.locator("img").first.is_hidden() # the script replaces the static figure
        assert page.problems == []


def test_without_script_the_static_figure_stands(browser, page_file):
    with open_page(browser, page_file, script=False) as page:
        assert page.locator("img").first.bounding_box()["width"] > 300
        assert "What to see" in page.inner_text("body") and page.locator("noscript").inner_text()


@pytest.mark.parametrize("harm", ["delete window.ResizeObserver", "window.matchMedia = null", "Element.prototype.setAttribute = null"])
def test_a_script_that_fails_leaves_the_static_figure(browser, plain, harm):
    with open_page(browser, plain, init=harm) as page:
        page.wait_for_function("document.readyState === 'complete'")
        assert page.locator("img").first.is_visible() and page.locator(".pg").count() == 0


def test_a_site_that_switches_its_theme(page):
    theme = lambda: page.locator(".pg").get_attribute("data-theme")
    assert theme() == "light"
    for name in ("dark", "light"):
        page.evaluate(f"document.body.className = 'quarto-{name}'")
        page.wait_for_function(f"document.querySelector('.pg').dataset.theme === '{name}'"); assert theme() == name
        colour = lambda v: page.evaluate(f"getComputedStyle(document.querySelector('.pg')).getPropertyValue('--{v}')").strip()
        for text, ground in (("ink", "card"), ("muted", "card"), ("held-text", "card"), ("ink", "well"), ("muted", "well"), ("on-accent", "accent")):
            assert contrast(colour(text), colour(ground)) >= 4.5, (name, text, ground)
        for mark in ("accent", "held"): assert contrast(colour(mark), colour("card")) >= 3 # WCAG 2.2, 1.4.11


def test_every_control_changes_codes_and_numbers(page):
    seen = [(codes(page), numbers(page))]
    def changed():
        settle(page); seen.append((codes(page), numbers(page)))
        return seen[-1][0] != seen[-2][0] and seen[-1][1] != seen[-2][1]
    slide(page, "bits", 3); assert changed()
    slide(page, "group", 3); assert changed() and state(page)["group"] == 4
    for grid in ("asym", "symf", "symr"):
        page.locator(f"[value={grid}]").click(); assert changed() and state(page)["grid"] == grid
    page.locator("[value=hand]").click(); assert changed() # what the weight in hand had, for all
    slide(page, "range", 60); assert changed()
    slide(page, "zero", 2); assert changed() and state(page)["zero"] == 2
    mse = page.evaluate("tinyqPlayground.page.now.mse")
    page.locator("[data-do=best]").click(); assert changed() and page.evaluate("tinyqPlayground.page.now.mse") < mse
    page.locator("[data-preset=T]").click(); assert changed() and state(page)["preset"] == "T"
    slide(page, "held", 1); slide(page, "bits", 1)
    assert state(page) | {"held": 1, "bits": 1, "grid": "symf"} == state(page) # 1 bit has no restricted grid
    page.locator("[data-do=reset]").click(); settle(page)
    assert state(page) == page.evaluate("tinyqPlayground.fresh('T')")


def test_range_and_zero_point_take_over_by_hand(page):
    slide(page, "range", 100)
    assert state(page)["grid"] == "hand" and page.locator("[name=group]").is_disabled()
    page.locator("[data-do=reset]").click(); slide(page, "zero", -3)
    assert (state(page)["grid"], state(page)["zero"]) == ("hand", -3)
    want = linear_q_with_scale_and_zero_point(torch.tensor(page.evaluate("[...tinyqPlayground.page.now.x]")), state(page)["scale"], -3).clamp(-8, 7)
    assert codes(page) == want.tolist()


def test_the_weight_follows_keys_and_pointer(page):
    handle, value = page.locator(".pg-handle"), lambda: state(page)["value"]
    page.locator("[data-preset=T]").focus(); page.keyboard.press("Tab") # the last of the presets, then the weight
    assert handle.evaluate("e => e === document.activeElement && e.matches(':focus-visible')")
    assert value() == 5
    for key, want in (("ArrowRight", 5.08), ("ArrowUp", 5.16), ("Shift+ArrowLeft", 5.15), ("PageDown", 4.35), ("Home", -8), ("ArrowLeft", -8), ("End", 8)):
        page.keyboard.press(key); assert value() == pytest.approx(want)
    settle(page)
    assert handle.get_attribute("aria-valuetext").startswith("8, code 7")
    box = handle.bounding_box(); y = box["y"] + box["height"] / 2
    at = lambda v: box["x"] + 13 + (v + 8) / 16 * (box["width"] - 26)
    page.mouse.move(at(8), y); page.mouse.down()
    for v in (6, 3.3, 1): page.mouse.move(at(v), y)
    page.mouse.up(); settle(page)
    assert value() == pytest.approx(1, abs=.05)
    stem = page.locator(".pg-held").evaluate("e => e.getBBox().x") + 0
    assert abs(page.locator(".pg-line").bounding_box()["x"] + stem - at(value())) < 16 # the drawing goes with the handle


def test_dragging_shifts_nothing_and_is_quiet(page):
    page.evaluate("""() => { window.shifts = []; window.said = 0;
      new PerformanceObserver(l => shifts.push(...l.getEntries().map(e => e.value))).observe({ type: 'layout-shift' });
      new MutationObserver(() => said++).observe(document.querySelector('.pg-said'), { childList: true }) }""")
    box = page.locator(".pg-handle").bounding_box(); y = box["y"] + 22
    page.mouse.move(box["x"] + 13 + 13 / 16 * (box["width"] - 26), y); page.mouse.down()
    for k in range(40): page.mouse.move(box["x"] + 20 + 13 * k, y)
    page.mouse.up()
    for bits in range(1, 9): slide(page, "bits", bits)
    for group in range(0, 17): slide(page, "group", group)
    page.wait_for_timeout(700)
    assert page.evaluate("shifts") == [] and 1 <= page.evaluate("said") <= 20 # sentences for some 65 changes: one a pause


def test_a_click_on_a_cell_takes_that_weight(page):
    svg = page.locator("[data-panel=error]"); box = svg.bounding_box()
    svg.click(position={"x": box["width"] * 2.5 / 16, "y": box["height"] * 3.5 / 8}); settle(page)
    assert state(page)["held"] == 3 * 16 + 2 and "Row 4, column 3" in page.inner_text(".pg-read")


def test_names_for_a_screen_reader(page):
    for e in page.locator(".pg input").all():
        assert e.evaluate("e => e.labels?.[0]?.innerText || e.getAttribute('aria-label')")
        if e.get_attribute("type") == "range": assert e.get_attribute("aria-valuetext")
    assert all(e.get_attribute("aria-label") for e in page.locator(".pg > svg, .pg-line, [data-panel]").all())
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    page.locator(".pg summary").click(); settle(page)
    rows = page.locator(".pg-table tbody tr"); assert rows.count() == 128
    assert rows.nth(13).inner_text().split() == ["1,", "14", "5", "7", "5", "0"]


def test_still_for_a_reader_who_wants_it_so(browser, plain):
    for motion, still in (("reduce", True), ("no-preference", False)):
        with open_page(browser, plain, reduced_motion=motion) as page:
            assert (page.locator(".pg button").first.evaluate("e => getComputedStyle(e).transitionDuration") == "0s") == still


HASHES = ["tensor=T&bits=8&grid=hand&scale=10.&zero=-90&weight=2&value=728.6", "tensor=heavy&bits=3&grid=asym&group=5&weight=9&value=-4.2",
          "tensor=positive&bits=1&grid=symf&group=row&weight=0&value=0", "tensor=gauss&bits=4&grid=hand&scale=0.1234&zero=9&weight=127&value=8"]


@pytest.mark.parametrize("mark", HASHES)
def test_a_link_restores_the_state_and_the_copied_code_makes_the_same_codes(browser, plain, mark):
    with open_page(browser, f"{plain}#{mark}") as page:
        page.wait_for_selector(".pg")
        assert page.evaluate("tinyqPlayground.toHash(tinyqPlayground.page.state)") == "#" + mark
        page.locator("[data-do=copy]").click(); page.wait_for_function("tinyqPlayground.page.copied")
        names = {}
        exec(page.evaluate("tinyqPlayground.page.copied"), names)
        assert (names["q"].codes if "q" in names else names["codes"]).flatten().tolist() == codes(page)
        assert page.inner_text(".pg-said").startswith("Copied")
        assert page.problems == []


def test_the_address_follows_and_what_is_no_state_is_let_be(page):
    slide(page, "bits", 6); page.wait_for_function("location.hash.includes('bits=6')")
    page.evaluate("location.hash = 'things-to-try'"); page.wait_for_timeout(50)
    assert state(page)["bits"] == 6 and page.url.endswith("#things-to-try")
    page.evaluate("location.hash = 'tensor=T&bits=99&grid=none&group=-4&weight=1e9&value=nan&zero=x'"); page.wait_for_function("tinyqPlayground.page.state.bits === 8")
    assert state(page) == {"preset": "T", "bits": 8, "grid": "symr", "group": 1, "held": 8, "value": 245.5, "scale": 1, "zero": 0}
    page.evaluate("location.hash = 'tensor=constructor&bits=2'"); page.wait_for_timeout(200)
    assert state(page)["preset"] == "T"


def test_random_hashes_make_a_legal_state(js):
    r = random.Random(0)
    text = lambda: r.choice(["", "-1", "0", "3", "1e99", "NaN", "row", "hand", "symr", "tensor", "%", "T", "gauss"])
    marks = ["#tensor=T&" + "&".join(f"{k}={text()}" for k in ("bits", "grid", "group", "weight", "value", "scale", "zero")) for _ in range(500)]
    bad = js.evaluate("""marks => marks.filter(m => { const s = tinyqPlayground.fromHash(m), r = tinyqPlayground.run(s);
      return !Number.isFinite(r.mse) || tinyqPlayground.toHash(tinyqPlayground.fromHash(tinyqPlayground.toHash(s))) !== tinyqPlayground.toHash(s) })""", marks)
    assert bad == []


def test_what_there_is_to_try_is_so(js):
    code = """([preset, change]) => {
      const { mse, bpw, used } = tinyqPlayground.run({ ...tinyqPlayground.fresh(preset), ...change });
      return { mse, bpw, used };
    }"""
    run = lambda preset, **change: js.evaluate(code, [preset, change])
    assert run("gauss", value=8)["mse"] > 2 * run("gauss", value=4)["mse"] > 2 * run("gauss")["mse"]
    steps = [run("gauss", value=8, group=g) for g in ("tensor", "row", 4)]
    assert [s["mse"] for s in steps] == sorted((s["mse"] for s in steps), reverse=True) and [s["bpw"] for s in steps] == sorted(s["bpw"] for s in steps)
    assert run("positive", grid="symr")["used"] <= 4 and run("positive", grid="symr")["mse"] > 3 * run("positive")["mse"]
    assert run("heavy", bits=3, grid="hand", scale=2)["mse"] < run("heavy", bits=3)["mse"]


def test_a_frame_is_drawn_in_time(page):
    ms = page.evaluate("""() => {
      const P = tinyqPlayground.page, best = [];
      P.start(tinyqPlayground.fromHash("#tensor=gauss&bits=8&grid=asym&group=tensor"));
      for (let i = 0; i < 40; i++) {
        const start = performance.now();
        P.state.value = i / 6; P.compute(); P.draw(); document.body.offsetHeight;
        best.push(performance.now() - start);
      }
      return best.sort((a, b) => a - b)[10];
    }""")
    assert ms < 250 # a slider that sticks would be seen; a sixtieth of a second is 16, but machines that test are slow and shared
