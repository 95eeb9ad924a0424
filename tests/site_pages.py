"""The docs site as far as it can be made without Quarto: staged by nbdev, turned into HTML by pandoc.

Classes, and what becomes of a cell's options, are Quarto's, so that nbs/styles.css can be tried on the pages.
"""
import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROCESS = "from nbdev.serve import proc_nbs; proc_nbs(n_workers=0)"

# What the themes cosmo and darkly set, and a layout that is roughly Quarto's.
BASE = """
body { margin: 0; font: 17px/1.5 "Source Sans 3", "Source Sans Pro", "Segoe UI", system-ui, sans-serif; color: #343a40; background: #fff; }
a { color: #2761e3; } body.quarto-dark { color: #fff; background: #222; } .quarto-dark a { color: #00bc8c; }
code { font: .875em SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; color: #7d12ba; background: #f8f9fa; } .quarto-dark code { color: #9753b8; background: transparent; color: #c595e0; }
pre { margin: 0 0 1rem; overflow: auto; font-size: .875em; } pre code { font-size: inherit; color: inherit; background: none; white-space: pre; }
div.sourceCode { margin: 1em 0; border-radius: .25rem; background: rgba(233, 236, 239, .65); } .quarto-dark div.sourceCode { background: #2b2b2b; }
pre > code.sourceCode > span { display: inline-block; line-height: 1.25; } code.sourceCode > span:empty { height: 1.25em; } div.sourceCode { overflow: auto; }
div.sourceCode pre { padding: .4em; margin: 0; color: #003b4f; } .quarto-dark div.sourceCode pre { color: #e8e8e8; }
img { max-width: 100%; height: auto; } table { border-collapse: collapse; margin-bottom: 1rem; caption-side: top; } th, td { padding: .4rem; border-bottom: 1px solid #8886; vertical-align: top; }
h1 { font-size: 2rem; } h2 { font-size: 1.65rem; border-bottom: 1px solid #8884; padding-bottom: .4rem; } h3 { font-size: 1.35rem; } h1, h2, h3 { line-height: 1.2; font-weight: 400; margin-top: 2rem; }
.navbar { padding: .6rem 1rem; }
#quarto-content { display: grid; grid-template-columns: 250px minmax(0, 850px) 230px; gap: 0 2rem; justify-content: center; padding: 0 1rem; }
#quarto-sidebar, #TOC { font-size: .875rem; } #quarto-sidebar ul, #TOC ul { list-style: none; padding-left: .6rem; } .sidebar a, #TOC a { color: inherit; opacity: .85; text-decoration: none; }
@media (max-width: 991px) { #quarto-content { display: block; } #quarto-sidebar, #TOC { display: none; } }
"""
TEMPLATE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>$pagetitle$</title><style>$base$</style>$theme$<link rel="stylesheet" href="$up$styles.css"></head>
<body class="fullcontent"><script>
document.body.classList.add(matchMedia("(prefers-color-scheme: dark)").matches ? "quarto-dark" : "quarto-light")
</script>
<header id="quarto-header"><nav class="navbar" style="background: $background$; color: $foreground$">tinyq</nav></header>
<div id="quarto-content"><nav id="quarto-sidebar" class="sidebar">$side$</nav>
<main class="content" id="quarto-document-content">
<header id="title-block-header"><div class="quarto-title"><h1 class="title">$title$</h1></div><div><div class="description">$description$</div></div></header>
$body$
</main><nav id="TOC">$toc$</nav></div></body></html>
"""


def listed(contents) -> list[str]:
    "Every page, or pattern of pages, that a sidebar's contents name, in order."
    if isinstance(contents, str): return [contents]
    if isinstance(contents, dict): return listed(contents.get("contents", [])) + [contents[k] for k in ("href", "file") if k in contents]
    return [page for part in contents for page in listed(part) if page != "---"]


def options(source: str) -> tuple[dict, str]:
    "A cell's options, and its code without them."
    lines = source.splitlines()
    n = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    return yaml.safe_load("\n".join(line[2:].strip() for line in lines[:n])) or {}, "\n".join(lines[n:]).strip("\n")


@cache
def pandoc() -> str:
    "Where it is; `pypandoc_binary` brings it."
    import pypandoc
    return pypandoc.get_pandoc_path()


def fenced(text: str, *classes: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{{{' '.join('.' + c for c in classes)}}}\n{text.rstrip(chr(10))}\n{fence}"


class Page:
    "One staged notebook."
    def __init__(self, path: Path, proc: Path):
        self.path, self.name = path, path.relative_to(proc).as_posix()
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for c in self.cells: c["source"] = "".join(c["source"])
        first = self.cells[0]["source"] if self.cells[0]["cell_type"] == "raw" else "---\n---"
        self.front = yaml.safe_load(first.strip().strip("-")) or {}
        self.output = (path.parent / self.front.get("output-file", path.with_suffix(".html").name)).relative_to(proc).as_posix()
        self.up = "../" * self.name.count("/")
        self.images = []

    def markdown(self) -> str:
        "The page as Quarto would give it to pandoc; pictures become files beside it."
        self.images = []
        return "\n\n".join(filter(None, (self.cell(c) for c in self.cells[self.cells[0]["cell_type"] == "raw":])))

    def cell(self, c) -> str:
        if c["cell_type"] == "markdown": return c["source"]
        opts, code = options(c["source"])
        parts = []
        if opts.get("echo", True) and code:
            shown = fenced(code, "sourceCode", "python", "cell-code")
            parts.append(f"<details class=\"code-fold\"><summary>{html.escape(opts['code-summary'])}</summary>\n\n{shown}\n\n</details>" if opts.get("code-fold") is True else shown)
        for out in c.get("outputs", []): parts.append(self.show(out, opts))
        return "::: {.cell}\n" + "\n\n".join(filter(None, parts)) + "\n:::" if parts else ""

    def show(self, out, opts) -> str:
        data = {k: v if isinstance(v, str) else "".join(v) for k, v in out.get("data", {}).items() if not isinstance(v, dict)}
        box = "\n::: {.cell-output .cell-output-%s}\n%s\n:::\n"
        if "text" in out: return box % (out["name"], fenced("".join(out["text"]), "plaintext"))
        if "text/html" in data: return box % ("display", f"```{{=html}}\n{data['text/html']}\n```")
        if "text/markdown" in data: return box % ("display", data["text/markdown"])
        if "image/svg+xml" in data: raise ValueError(f"{self.name}: an SVG picture, which has no alternative text")
        if "image/png" in data:
            file = self.path.parent / f"{self.path.stem}_files" / f"{len(self.images) + 1}.png"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(base64.b64decode(data["image/png"]))
            self.images.append(opts.get("fig-alt"))
            return box % ("display", f'<img src="{self.path.stem}_files/{file.name}" alt="{html.escape(opts.get("fig-alt") or "")}" class="figure-img">')
        return box % ("display", fenced(data["text/plain"], "plaintext")) if "text/plain" in data else ""


class Site:
    "The pages, staged in `folder`, which is made."
    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*", "_proc", "nbdev.yml"))
        shutil.copy(ROOT / "settings.ini", folder)
        shutil.copy(ROOT / "_quarto.yml", folder / "nbs") # a link to it, where there are links
        env = os.environ | {"IN_TEST": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}
        self.log = subprocess.run([sys.executable, "-c", PROCESS], cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300)
        self.proc = folder / "_proc"
        self.config = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
        self.pages = {p.name: p for p in (Page(f, self.proc) for f in sorted(self.proc.rglob("*.ipynb")))}
        self.warnings = {}

    def sidebar(self) -> list[str]:
        "Names of the pages in the order of the sidebar."
        return [p.relative_to(self.proc).as_posix() for entry in listed(self.config["website"]["sidebar"]["contents"])
                for p in (sorted(self.proc.glob(entry)) if "*" in entry else [self.proc / entry])]

    def render(self, page: Page, colours: bool=False, theme: str="") -> Path:
        "Write the page as HTML, where the site would have it; colours in code take time. `theme`: for the head, in the place of `BASE`. pandoc's warnings go to `self.warnings`."
        made = subprocess.run([pandoc(), "--from=markdown", "--to=html5", "--mathml", "--toc", "--standalone", *["--syntax-highlighting=none"] * (not colours),
                               f"--template={self._template()}", "--metadata=pagetitle:-"], input=page.markdown(), capture_output=True, text=True, encoding="utf-8", timeout=120)
        self.warnings[page.name] = made.stderr.strip()
        body, _, toc = made.stdout.partition("<!-- toc -->")
        side = "<ul>" + "".join(f'<li><a href="{page.up}{self.pages[n].output}">{html.escape(self.pages[n].front.get("title", n))}</a></li>' for n in self.sidebar() if n in self.pages) + "</ul>"
        title, promise = (html.escape(page.front.get(k, "")) for k in ("title", "description"))
        navbar = self.config["website"]["navbar"]
        parts = {"background": navbar["background"], "foreground": navbar["foreground"], "pagetitle": title, "title": title, "description": f"<p>{promise}</p>", "base": "" if theme else BASE, "theme": theme, "up": page.up, "side": side, "body": body, "toc": toc}
        text = re.sub(r"\$(\w+)\$", lambda m: parts[m[1]], TEMPLATE)
        text = re.sub(r'href="([^":#]+\.ipynb)(#[^"]*)?"', lambda m: self._to_html(m, page), text)
        out = self.proc / page.output
        out.write_text(text, encoding="utf-8")
        return out

    def _template(self):
        path = self.proc / "pandoc-template.html"
        if not path.exists(): path.write_text("$body$\n<!-- toc -->\n$toc$\n", encoding="utf-8")
        return path

    def _to_html(self, m, page):
        "A link to a notebook leads to the page made of it, as Quarto sees to."
        target = os.path.normpath(os.path.join(os.path.dirname(page.name), m[1])).replace(os.sep, "/")
        if target not in self.pages: return m[0]
        return f'href="{os.path.relpath(self.pages[target].output, os.path.dirname(page.output) or ".").replace(os.sep, "/")}{m[2] or ""}"'


class Read(HTMLParser):
    "What tests ask about a page: ids, links, pictures, and the text that isn't code."
    VOID = {"img", "br", "hr", "meta", "link", "input", "source", "col", "wbr"}

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.images, self.text, self.math, self.inside = [], [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a: self.ids.append(a["id"])
        if tag == "a" and "href" in a: self.links.append(a["href"])
        if tag in ("script", "link") and (a.get("src") or a.get("href")): self.links.append(a.get("src") or a["href"])
        if tag == "img": self.images.append((a.get("src"), a.get("alt")))
        if tag == "math": self.math += 1
        if tag not in self.VOID: self.inside.append(tag)

    def handle_endtag(self, tag):
        while tag in self.inside and self.inside.pop() != tag: pass

    def handle_data(self, data):
        if not {"code", "pre", "annotation", "script", "style"} & set(self.inside): self.text.append(data)
