"""The methods that come with the package, by the names that commands and run folders know them by."""

# Those that train a network, see contract.py.
TRAINED = {
    "dcgan": "ganstyle_jax.gan.dcgan",
    "stylegan2": "ganstyle_jax.gan.stylegan2",
    "fast-style": "ganstyle_jax.style.fast_style",
    "adain": "ganstyle_jax.style.adain",
    "super-resolution": "ganstyle_jax.restore.super_resolution",
    "cyclegan": "ganstyle_jax.gan.cyclegan",
    "r3gan": "ganstyle_jax.gan.r3gan",
}
# Those that optimise a picture instead.
OPTIMISED = {
    "gatys": "ganstyle_jax.style.gatys",
    "deep-image-prior": "ganstyle_jax.restore.deep_image_prior",
}
EVERY = TRAINED | OPTIMISED

OR_FILE = f"{', '.join(TRAINED)} or a Python file such as ./my_gan.py"
EXAMPLE = next(iter(TRAINED))

# What moves weights between runs and PyTorch's files, by method; the first one says what is wrong with other files.
CONVERTERS = {
    "dcgan": "ganstyle_jax.gan.convert",
    "fast-style": "ganstyle_jax.style.fast_style_files",
    "adain": "ganstyle_jax.style.adain_files",
    "cyclegan": "ganstyle_jax.gan.cyclegan_files",
    "stylegan2": "ganstyle_jax.gan.stylegan2_files",
    "r3gan": "ganstyle_jax.gan.r3gan_files",
}
