"""Networks pickled whole, in the layout that StyleGAN2-ADA's own code writes, by modules of the same names."""

import contextlib
import pickle
import sys
import types

SOURCE = "raise AssertionError('source code of a pickle was executed')"


class EasyDict(dict):
    """As dnnlib's: a dictionary whose keys are attributes too."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name, value):
        self[name] = value


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a pickle was executed")


EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextlib.contextmanager
def importable():
    """Within it the names that such files hold can be looked up, as pickling does."""
    modules = {
        name: types.ModuleType(name) for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")
    }
    modules["dnnlib.util"].EasyDict = EasyDict
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def persistent(cls):
    """A class of torch.nn.Module whose objects are pickled as `torch_utils.persistence` does."""

    def init(self, *args, **kwargs):
        cls.__init__(self, *args, **kwargs)
        self._init_args, self._init_kwargs = args, EasyDict(kwargs)

    def reduce(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE}
        meta |= {"class_name": cls.__name__, "state": dict(self.__dict__)}
        return _reconstruct_persistent_obj, (meta,), None, None, None

    return type(cls.__name__, (cls,), {"__init__": init, "__reduce_ex__": lambda self, protocol: reduce(self)})


def dump(tree, path, protocol=4):
    with importable(), open(path, "wb") as file:
        pickle.dump(tree, file, protocol)
    return path
