"""Images from folders, archives, arrays, TFDS and the built-in glyphs, as pictures of one shape in seeded batches.

    source = open_source("photos.zip", image_size=64)
    batches = Batches(source, batch_size=32, seed=0)
    for batch in batches.stream(0, 1000):      # batch["image"] (32, 64, 64, 3) uint8
        images = to_float(batch["image"])      # float32 in [-1, 1], on the host or on the device

Every picture is turned as its EXIF orientation says, brought from its colour profile to sRGB, laid over white where it
is transparent, cropped to its central square (or the centre of the shape asked for) and resized to `image_size` with
Lanczos, which smooths away what the small picture cannot hold (the filter with which the published StyleGAN sets, FFHQ
and CelebA-HQ among them, were made). That is "short side to `image_size`, then the centre" without rounding the long
side first. Small pictures are enlarged.

    open      what a name means             files     folders, zip, tar            encoded   what their pictures are
    arrays    npz, npy, IDX, memory         tfds      prepared sets                glyphs    drawn on the spot
    fitting   from a picture to pixels      batches   the order of images          source    what all of them are
    sides     two sets in one place
"""

from ganstyle_jax.data.batches import Batches, permutation, threaded
from ganstyle_jax.data.fitting import fit, fit_float, to_float
from ganstyle_jax.data.open import KINDS, open_source
from ganstyle_jax.data.sides import sides
from ganstyle_jax.data.source import CorruptImage, Source, Wanted
from ganstyle_jax.data.tfds import prepare
from ganstyle_jax.io.files import UserError

__all__ = [
    "KINDS",
    "Batches",
    "CorruptImage",
    "Source",
    "UserError",
    "Wanted",
    "fit",
    "fit_float",
    "open_source",
    "permutation",
    "prepare",
    "sides",
    "threaded",
    "to_float",
]
