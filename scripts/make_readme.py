"""Write README.md from nbs/index.ipynb and its stored outputs; `--check` only says whether it is up to date.

Cells marked `#| hide` are left out, the code of cells marked `#| echo: false` too. Pictures go to nbs/images, with the
text of `#| fig-alt:` for those who don't see them. Links in the notebook are as the site needs them: to pages relative to
nbs/, to other files of the repository in full. Here both are made relative to the top; a page that is alive only on the
site is linked there.
"""
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = Path("nbs") / "images"
LIVE = {"playground.ipynb": "https://tinyq.github.io/tinyq/playground.html"}  # needs a browser that runs its script


def text(value) -> str:
    return value if isinstance(value, str) else "".join(value)


def from_root(markdown: str) -> str:
    "Links to files of the repository, made relative to its top."
    def link(m): return f"]({LIVE.get(m[1]) or (m[1][3:] if m[1].startswith('../') else f'nbs/{m[1]}')})"
    markdown = re.sub(r"\]\((?!https?:|#)([^)]+)\)", link, markdown)
    return re.sub(r"\]\(https://github\.com/tinyq/tinyq/(?:blob|tree)/main/", "](", markdown)


def render_output(output: dict, files: dict[Path, bytes], alt: str = "") -> str:
    "Markdown of one output; a picture is added to `files`."
    data = output.get("data", {})
    if "image/png" in data:
        path = IMAGES / f"readme-{len(files) + 1}.png"
        files[path] = base64.b64decode(text(data["image/png"]))
        return f"![{alt}]({path.as_posix()})"
    if "text/markdown" in data:
        return from_root(text(data["text/markdown"]).strip())
    plain = text(data.get("text/plain", output.get("text", ""))).rstrip()
    return f"```text\n{plain}\n```" if plain else ""


def render(notebook: dict) -> dict[Path, bytes]:
    "Every file that the index makes, README.md among them."
    files: dict[Path, bytes] = {}
    parts = ["<!-- Made from nbs/index.ipynb by scripts/make_readme.py: edit the notebook, not this file. -->"]
    for cell in notebook["cells"]:
        source = text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(from_root(source.strip()))
            continue
        lines = source.splitlines()
        flags = [line for line in lines if line.startswith("#|")]
        if cell["cell_type"] != "code" or any("hide" in f for f in flags):
            continue
        code = "\n".join(line for line in lines if line not in flags).strip()
        if code and not any("echo: false" in f for f in flags):
            parts.append(f"```python\n{code}\n```")
        alt = next((f.partition(":")[2].strip().strip('"') for f in flags if "fig-alt:" in f), "")
        parts += [r for o in cell.get("outputs", []) if (r := render_output(o, files, alt))]
    return files | {Path("README.md"): ("\n\n".join(parts) + "\n").encode()}


def main() -> int:
    files = render(json.loads((ROOT / "nbs" / "index.ipynb").read_text(encoding="utf-8")))
    stale = [str(p) for p, content in files.items() if not (ROOT / p).is_file() or (ROOT / p).read_bytes() != content]
    if "--check" in sys.argv[1:]:
        print("out of date: " + ", ".join(stale) if stale else "README.md is what the index says")
        return bool(stale)
    for p, content in files.items():
        (ROOT / p).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / p).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
