"Every name that the package promises, importable from the top level, with its positional arguments."
import inspect
import subprocess
import sys

import pytest

import tinyq

NAMES = {
    "linear_q_with_scale_and_zero_point": "tensor scale zero_point dtype",
    "linear_dequantization": "quantized_tensor scale zero_point",
    "find_scale_and_zero_point": "tensor dtype",
    "linear_q": "tensor dtype",
    "linear_q_with_eval": "tensor dtype",
    "get_q_scale_symmetric": "tensor dtype",
    "linear_q_symmetric": "tensor dtype",
    "linear_q_symmetric_per_channel": "input_tensor dim dtype",
    "linear_q_symmetric_per_group": "tensor group_size dtype",
    "linear_dequantization_per_group": "quantized_tensor scale group_size",
    "w8_a32_forward": "input q_w s_w z_w bias",
    "w8_a16_forward": "weights inputs scales bias",
    "W8A32LinearLayer": "in_features out_features bias device dtype",
    "W8A16LinearLayer": "in_features out_features bias device dtype",
    "replace_linear_with_target": "module target_class module_name_to_exclude",
    "replace_linear_with_target_and_quantize": "module target_class module_name_to_exclude",
    "Quantizer": "model logger",
    "load_model": "model_path torch_dtype device_map",
    "get_generation": "model tokenizer prompt",
    "get_memory_footprint": "model",
    "compute_module_sizes": "model",
}


@pytest.mark.parametrize("name", NAMES)
def test_name_and_arguments(name):
    want = NAMES[name].split()
    assert list(inspect.signature(getattr(tinyq, name)).parameters)[: len(want)] == want
    assert name in tinyq.__all__


def test_star_import_brings_functions_and_no_modules():
    code = "from tinyq import *; import types; print([k for k, v in globals().items() if isinstance(v, types.ModuleType) and k != 'types' and not k.startswith('__')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_name_is_exported_twice():
    assert len(tinyq.__all__) == len(set(tinyq.__all__))


def test_arrows_point_down():
    "A module imports only from modules with a lower chapter number."
    import re
    from pathlib import Path
    notebooks = sorted(Path(tinyq.__file__).parents[1].glob("nbs/[0-9]*.ipynb"))
    if not notebooks: pytest.skip("not a source checkout")
    order = [p.stem.split("_", 1)[1] for p in notebooks]
    for i, name in enumerate(order):
        source = (Path(tinyq.__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        others = re.findall(r"^\s*(?:from|import) (?:tinyq)?\.(\w+)", source, re.M)
        others += [o for names in re.findall(r"^\s*from (?:tinyq|\.) import (.+)", source, re.M) for o in re.findall(r"\w+", names)]
        assert not set(others) - set(order[:i]), f"{name} imports {set(others) - set(order[:i])}"
    assert len(order) > 10 and "solvers" in order
