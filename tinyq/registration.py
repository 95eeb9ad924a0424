"Wait for an import. Written by hand, as it must be light: chapter 15 shows it and says what for."
import sys, warnings


class Finder:
    "Finds one module, as the other finders do, and calls `f` when it has run."
    def __init__(self, name, f): self.name, self.f = name, f

    def find_spec(self, name, path=None, target=None):
        if name != self.name: return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((s for finder in others if (s := finder.find_spec(name, path, target))), None)
        if spec is None or not hasattr(spec.loader, "exec_module"): return spec
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            if self in sys.meta_path: sys.meta_path.remove(self)
            call(self.f, name)
        spec.loader.exec_module = exec_module
        return spec


def call(f, name):
    "Whoever imports `name` gets it, whatever happens in `f`."
    try: f()
    except Exception as e: warnings.warn(f"after the import of {name}: {type(e).__name__}: {e}")


def when_imported(name, f):
    "Call `f()` when somebody has imported the module `name`; at once if that was before."
    if name in sys.modules: call(f, name)
    else: sys.meta_path.insert(0, Finder(name, f))
