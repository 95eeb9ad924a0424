from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

from tinyq import affine, solvers, error, per_channel, per_group, kernels, layers, replace, quantizer, evaluate, hub, packing, low_bit, mixed
from tinyq.affine import *
from tinyq.solvers import *
from tinyq.error import *
from tinyq.per_channel import *
from tinyq.per_group import *
from tinyq.kernels import *
from tinyq.layers import *
from tinyq.replace import *
from tinyq.quantizer import *
from tinyq.evaluate import *
from tinyq.hub import *
from tinyq.packing import *
from tinyq.low_bit import *
from tinyq.mixed import *
from tinyq.registration import when_imported

if find_spec("numba"): # compiled kernels, imported when the first product, many packed codes or a search for scales ask for one
    kernels.KERNELS.providers.append("tinyq.native")
    low_bit.PACKED_KERNELS.providers.append("tinyq.native_low_bit")
    packing.CODECS.providers.append("tinyq.native_low_bit")
    solvers.MEASURE_MODULES.append("tinyq.native_low_bit")
when_imported("transformers.quantizers.auto", lambda: import_module("tinyq.integration")) # from then on, from_pretrained knows tinyq

_modules = affine, solvers, error, per_channel, per_group, kernels, layers, replace, quantizer, evaluate, hub, packing, low_bit, mixed
__all__ = ["__version__", *(name for m in _modules for name in m.__all__)]


def __getattr__(name):
    "`TinyqConfig` needs transformers, so it is imported when it is asked for."
    if name == "TinyqConfig": return import_module("tinyq.integration").TinyqConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
