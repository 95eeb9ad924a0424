__version__ = "0.1.0"

from tinyq import affine, solvers, error, per_channel, per_group, kernels, layers, replace, quantizer, evaluate, hub
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

_modules = affine, solvers, error, per_channel, per_group, kernels, layers, replace, quantizer, evaluate, hub
__all__ = ["__version__", *(name for m in _modules for name in m.__all__)]
