"README is what the index says, and tells two commands; the page of the package shows it with links that work there."
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]


def test_readme_is_what_the_index_says():
    out = subprocess.run([sys.executable, ROOT / "scripts" / "make_readme.py", "--check"], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_readme_has_the_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "pip install -c constraints.txt -e '.[fast]' && tinyq quantize" in lines
    assert "pip install -c constraints.txt -e '.[dev]' && nbdev_test && pytest" in lines


def test_the_page_of_the_package_has_whole_links():
    with patch("setuptools.setup") as setup: exec(compile((ROOT / "setup.py").read_text(encoding="utf-8"), "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")})
    text = setup.call_args.kwargs["long_description"]
    links = re.findall(r"\]\(([^)]+)\)", text)
    home = re.compile("https://github.com/tinyq/tinyq/(raw|blob)/main/(.+)")
    ours = [m[2] for link in links if (m := home.match(link))]
    assert all(link.startswith("https:") for link in links) and len(ours) > 20 and all((ROOT / path.split("#")[0]).exists() for path in ours)
    assert {m[1] for link in re.findall(r"!\[[^]]*\]\(([^)]+)", text) if (m := home.match(link))} == {"raw"}
