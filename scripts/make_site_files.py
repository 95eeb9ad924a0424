"""Write what the docs site needs beside the notebooks: llms.txt, the picture that a shared link shows, and the icon.

`--check` only says whether llms.txt is up to date. All of it is made of the notebooks' titles and of `tinyq.viz`.
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
SITE, RAW = "https://tinyq.github.io/tinyq", "https://raw.githubusercontent.com/tinyq/tinyq/main/nbs"


def opening(path: Path) -> tuple[str, str]:
    "Title and promise of a notebook."
    text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    m = re.match(r"# ([^\n]+)\n+((?:>[^\n]*\n?)+)", text)
    if not m: raise ValueError(f"{path.name}: the first cell is not a title and a promise")
    return m[1].strip(), " ".join(line.lstrip("> ").strip() for line in m[2].splitlines())


def entry(path: Path) -> str:
    title, promise = opening(path)
    number = re.match(r"(\d+)_", path.name)
    return f"- [{number[1] + ' ' if number else ''}{title}]({SITE}/{re.sub(r'^[0-9]+_', '', path.stem)}.html): {promise}"


def llms() -> str:
    "The course in the form of https://llmstxt.org: what there is, in a line each, for a language model to read."
    title, promise = opening(NBS / "index.ipynb")
    chapters = sorted(NBS.glob("[0-9]*.ipynb"))
    others = [NBS / f"{n}.ipynb" for n in ("choosing", "glossary", "playground", "reference") if (NBS / f"{n}.ipynb").exists()]
    return "\n".join([
        f"# {title}", "", f"> {promise}", "",
        "tinyq quantizes the linear and embedding layers of PyTorch models to 1 to 8 bits, and is a course: every chapter is a notebook that",
        "derives, draws, writes and checks one module of the library. Install it from a clone of https://github.com/tinyq/tinyq with",
        "`pip install -c constraints.txt -e '.[fast]'`; then `tinyq quantize path/to/model --method w4a16-g64`, or in Python",
        '`Quantizer(model).quantize("w8a16")`. Symbols: r real number, q code, s scale, z zero point, r = s(q - z).', "",
        f"A page's source is the notebook of its name in {RAW}, with the chapter's number in front: {RAW}/{chapters[1].name}.", "",
        "## Course", "", *map(entry, chapters), "", "## Pages", "", *map(entry, others), ""])


def card(path: Path):
    "1200 x 630 pixels: name, promise, and weights on their grid."
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    import torch
    from tinyq import quantize_tensor, viz

    x = torch.tensor([-1.2, -.83, -.52, -.17, .08, .37, .66, .97, 1.8])
    q = quantize_tensor(x, "w4a16-tensor-asym")
    line = viz.plot_number_line(x, q.scale.item(), q.zero_point.item(), -8, 7).figure
    line.set_dpi(140)
    line.canvas.draw()
    picture = line.canvas.buffer_rgba()
    height, width = picture.shape[:2]
    with plt.rc_context(viz.STYLE):
        fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=viz.CARD)
        fig.text(.055, .835, "tinyq", fontsize=68, fontweight="bold", color=viz.INK)
        fig.text(.058, .715, opening(NBS / "index.ipynb")[1].replace(", then", ",\nthen"), fontsize=25, color=viz.MUTED, va="center", linespacing=1.35)
        fig.add_artist(plt.Rectangle((0, 0), 1, .018, color=viz.PALETTE[0], transform=fig.transFigure))
        ax = fig.add_axes([.5 - width/2400, .045, width/1200, height/630])
        ax.imshow(picture, aspect="auto", interpolation="none")
        ax.axis("off")
        fig.savefig(path, dpi=100, metadata={"Software": None})


def icon(path: Path):
    "64 x 64 pixels: a line, and the stairs that it is rounded to."
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from tinyq import viz

    fig = plt.figure(figsize=(.64, .64), dpi=100)
    fig.add_artist(matplotlib.patches.FancyBboxPatch((.14, .14), .72, .72, boxstyle="round,pad=.14,rounding_size=.2", color=viz.PALETTE[0], transform=fig.transFigure, zorder=-1))
    ax = fig.add_axes([.14, .16, .72, .68])
    ax.plot([0, 3], [0, 3], color="white", alpha=.6, linewidth=1.4, solid_capstyle="round")
    ax.step([0, 1, 2, 3], [0, 1, 2, 3], where="mid", color="white", linewidth=3.6, solid_joinstyle="round", solid_capstyle="round")
    ax.axis("off")
    fig.savefig(path, dpi=100, transparent=True, metadata={"Software": None})


def main() -> int:
    path = NBS / "llms.txt"
    if "--check" in sys.argv[1:]:
        fresh = path.is_file() and path.read_bytes() == llms().encode()
        print("llms.txt says what the notebooks say" if fresh else "out of date: nbs/llms.txt (run scripts/make_site_files.py)")
        return not fresh
    path.write_bytes(llms().encode())
    (NBS / "images").mkdir(exist_ok=True)
    card(NBS / "images" / "card.png")
    icon(NBS / "images" / "favicon.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
