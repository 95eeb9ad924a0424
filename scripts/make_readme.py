"""Write README.md from nbs/index.ipynb and its stored outputs; `--check` only says whether it is up to date.

Cells marked `#| hide` are left out, the code of cells marked `#| echo: false` too. Pictures go to nbs/images. Links in
the notebook are relative to nbs/, as on the site; here they are made relative to the top.
"""
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMAGES = Path("nbs") / "images"


def text(value) -> str:
    return value if isinstance(value, str) else "".join(value)


def from_root(markdown: str) -> str:
    "Links that are relative to nbs/, made relative to the top of the repository."
    link = lambda m: f"]({m[1][3:]})" if m[1].startswith("../") else f"](nbs/{m[1]})"
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", link, markdown)


def render_output(output: dict, files: dict[Path, bytes]) -> str:
    "Markdown of one output; a picture is added to `files`."
    data = output.get("data", {})
    if "image/png" in data:
        path = IMAGES / f"readme-{len(files) + 1}.png"
        files[path] = base64.b64decode(text(data["image/png"]))
        return f"![]({path.as_posix()})"
    if "text/markdown" in data:
        return text(data["text/markdown"]).strip()
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
        parts += [r for o in cell.get("outputs", []) if (r := render_output(o, files))]
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
