"README is what the index says, and tells two commands."
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_readme_is_what_the_index_says():
    out = subprocess.run([sys.executable, ROOT / "scripts" / "make_readme.py", "--check"], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout


def test_readme_has_the_two_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "pip install -c constraints.txt -e '.[fast]' && tinyq quantize" in lines
    assert "pip install -c constraints.txt -e '.[dev]' && nbdev_test && pytest" in lines
