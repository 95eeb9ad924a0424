import os
import subprocess
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hub_server import Hub

from tinyq.evaluate import TINY_LM, tiny_lm
from tinyq.hub import save_quantized
from tinyq.quantizer import Quantizer


def pytest_collection_modifyitems(config, items):
    "Tests marked `slow` run only when asked for: `pytest -m slow`."
    if "slow" in config.getoption("-m"): return
    for item in items:
        if "slow" in item.keywords: item.add_marker(pytest.mark.skip(reason="slow: run with -m slow"))


def run_tinyq(*args, cwd, python="-m tinyq", timeout=300):
    "The command line in a new process."
    return subprocess.run([sys.executable, *python.split(), *map(str, args)], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=timeout)


@pytest.fixture(scope="session")
def quantized():
    "The shipped model at W8A16, and its tokenizer."
    model, tokenizer = tiny_lm()
    return Quantizer(model).quantize("w8a16"), tokenizer


@pytest.fixture(scope="session")
def checkpoint(quantized, tmp_path_factory):
    "A folder that tinyq wrote; not to be changed by a test."
    return save_quantized(quantized[0], tmp_path_factory.mktemp("checkpoint") / "tiny_lm-w8a16", quantized[1])


@pytest.fixture
def short_text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text((TINY_LM / "heldout.txt").read_text(encoding="utf-8")[:3000], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hub():
    "A Hub on this machine, with nothing in it."
    with Hub() as h: yield h


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    "For a client's settings and cache."
    return tmp_path_factory.mktemp("hf_home")
