"""A feature network of a few channels in a file of its own, for methods that take one by its path."""

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import jax

from ganstyle_jax.features import network_files
from ganstyle_jax.features.vgg import VGG

NETWORK = VGG(((4, 6), (6,), (6, 4), (8,)), first_padding="reflect", heads=((4, 0), (0,), (5, 0), (8,)))


@functools.cache
def path() -> str:
    """A file of this process's."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    params = NETWORK.init(jax.random.key(3))
    for i, layer in enumerate(params.values()):
        layer["bias"] = 0.1 * jax.random.normal(jax.random.key(i), layer["bias"].shape)
    network_files.write(Path(folder, "small_encoder.safetensors"), NETWORK, params)
    return str(Path(folder, "small_encoder.safetensors"))
