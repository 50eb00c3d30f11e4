"""Glyphs: an unlimited labelled image set made on the spot, the digits and capitals in several fonts and colours.

It needs no file and no network: the fonts are those that matplotlib installs, drawn by Pillow. Glyph `index` of `seed`
is a function of the two numbers alone. Every generating factor is returned, which makes the set useful for conditional
models and for measuring what a latent space separates.
"""

import colorsys
import functools
import math

import numpy as np

from ganstyle_jax.data.fitting import fit, shape_of
from ganstyle_jax.data.source import Size, Source
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import LUMA

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Upright fonts in which all 36 characters are what they should be and strokes survive at 32 pixels. Left out: slanted
# copies, cmr10 and STIXGeneral (hairlines vanish), cmsy10, cmex10, STIXSiz*, STIXNonUni*, *Display and LastResortHE
# (symbols, boxes or nothing in place of letters).
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneralBol",
    "cmb10",
    "cmss10",
    "cmtt10",
)
SIZE = (0.66, 0.86)  # longer side of the upright letter, as a fraction of the image side
SLANT = 12.0  # degrees of rotation to either side
SHIFT = 0.07  # largest distance of the letter's centre from the image's, as a fraction of the image side
CONTRAST = 0.45  # least difference of luma between letter and ground, of 1
OVERSAMPLING = 2  # drawn this much larger and averaged down


def source(spec: str, image_size: Size, channels: int | None, seed: int) -> Source:
    """What `data.open_source` makes of glyphs[:digits][:grey][:night]: draw(seed, i, ...) for every i.

    Where a size is (h, w), glyphs lie in the centre, of the shorter side, on as much of their ground as it takes.
    """
    if image_size is None:
        raise UserError("Glyphs are drawn at any size: give one.")
    options = spec.split(":")[1:]
    if unknown := sorted(set(options) - {"digits", "grey", "night"}):
        raise UserError(
            f"Unknown option {unknown[0]!r} in {spec!r}: accepted are glyphs and, in any combination, glyphs:digits, "
            "glyphs:grey and glyphs:night (black grounds)."
        )
    characters = CHARACTERS[:10] if "digits" in options else CHARACTERS
    grey, night = "grey" in options, "night" in options
    channels = channels or (1 if grey else 3)
    shape = shape_of(image_size)
    assert shape is not None
    side = min(shape)
    before = [(length - side) // 2 for length in shape]
    around = [(first, length - side - first) for first, length in zip(before, shape, strict=True)]

    def read(i: int) -> dict[str, np.ndarray]:
        example = draw(seed, i, side, characters, grey, night)
        image = example["image"]
        if image.shape[-1] != channels:
            from PIL import Image

            picture = Image.fromarray(image[..., 0] if grey else image)
            image = fit(picture, side, channels, np.dtype(np.uint8))
        if shape != (side, side):
            image = np.pad(image, (*around, (0, 0)), mode="edge")  # at the edge there is ground alone
        return {**example, "image": image}

    return Source(spec, (*shape, channels), np.dtype(np.uint8), None, tuple(characters), read)


def draw(
    seed: int, index: int, image_size: int, characters: str = CHARACTERS, grey: bool = False, night: bool = False
) -> dict[str, np.ndarray]:
    """Glyph `index` of the sequence `seed`.

    "image" (s, s, 3) uint8, or (s, s, 1) with grey letters on grey grounds; with `night` all grounds are black, which a
    generator's tanh can match exactly, so that a small network learns sooner. Its factors: "label" int32, the place in
    `characters`; "font" int32, the place in FONTS; "colour" and "ground" (3,) float32 RGB in [0, 1]; "slant" float32
    degrees, anticlockwise; "size" float32, the upright letter's longer side; "x" and "y" float32, its centre's distance
    to the right of and below the image's centre; these three as fractions of the image side. No letter is cut off.
    """
    from PIL import Image

    # Raw Philox output and not Generator's methods, which NumPy may change between versions (NEP 19).
    bits = np.random.Philox(key=((int(index) % 2**64) << 64) | (int(seed) % 2**64)).random_raw(11)
    u = (bits >> np.uint64(11)) * 2.0**-53
    label = int(u[0] * len(characters))
    font = int(u[1] * len(FONTS))
    polarity = 1.0 if night else u[2]  # light letters on dark grounds only
    colour, ground = colours(polarity, *u[3:7], grey=grey)
    if night:
        ground = np.zeros(3, np.float32)
    slant = SLANT * (2 * u[7] - 1)
    cos, sin = math.cos(math.radians(slant)), math.sin(math.radians(slant))

    side = OVERSAMPLING * image_size
    mask = letter(FONTS[font], characters[label], side)
    width, height = mask.size
    longer = max(width, height)
    across, down = (width * cos + height * abs(sin)) / longer, (height * cos + width * abs(sin)) / longer  # turned
    size = min(SIZE[0] + (SIZE[1] - SIZE[0]) * u[8], 0.97 / max(across, down))
    scale = size * side / longer  # mask pixels to canvas pixels
    room_x, room_y = (1 - size * across) / 2, (1 - size * down) / 2
    x = (2 * u[9] - 1) * min(SHIFT, room_x)
    y = (2 * u[10] - 1) * min(SHIFT, room_y)

    # Pillow wants the way back, from canvas to mask: rotate about the letter's centre and divide by the scale.
    a, b = cos / scale, -sin / scale
    centre_x, centre_y = (0.5 + x) * side, (0.5 + y) * side
    back = (
        a, b, width / 2 - a * centre_x - b * centre_y,
        -b, a, height / 2 + b * centre_x - a * centre_y,
    )  # fmt: skip
    canvas = mask.transform((side, side), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    cover = np.asarray(canvas.reduce(OVERSAMPLING), np.float32)[..., None] / 255

    image = (ground + cover * (colour - ground)) * 255
    if grey:
        image = image[..., :1]
    return {
        "image": (image + 0.5).astype(np.uint8),
        "label": np.array(label, np.int32),
        "font": np.array(font, np.int32),
        "colour": colour,
        "ground": ground,
        "slant": np.array(slant, np.float32),
        "size": np.array(size, np.float32),
        "x": np.array(x, np.float32),
        "y": np.array(y, np.float32),
    }


def colours(
    polarity: float, hue: float, strength: float, tint: float, level: float, grey: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A saturated letter colour and a dark or light ground, (3,) float32 RGB in [0, 1] each, from uniform numbers.

    Their luma differs by at least CONTRAST: a letter too near its ground is moved towards white or black.
    """
    light_ground = polarity < 0.5
    if light_ground:
        ground = np.array(colorsys.hsv_to_rgb(tint, 0.12, 0.88 + 0.12 * level))
        colour = np.array(colorsys.hsv_to_rgb(hue, 0.7 + 0.3 * strength, 0.8 - 0.35 * strength))
    else:
        ground = np.array(colorsys.hsv_to_rgb(tint, 0.5, 0.06 + 0.16 * level))
        colour = np.array(colorsys.hsv_to_rgb(hue, 0.9 - 0.4 * strength, 0.9 + 0.1 * strength))
    if grey:
        ground = np.full(3, LUMA @ ground)
        colour = np.full(3, 0.45 * strength if light_ground else 1 - 0.45 * strength)
    luma, target = LUMA @ colour, LUMA @ ground + (-CONTRAST if light_ground else CONTRAST)
    if light_ground and luma > target:
        colour *= target / luma
    elif not light_ground and luma < target:
        colour += (1 - colour) * (target - luma) / (1 - luma)
    return colour.astype(np.float32), ground.astype(np.float32)


@functools.lru_cache(maxsize=4 * len(CHARACTERS) * len(FONTS))
def letter(font: str, character: str, side: int):
    """Ink of one character as a Pillow "L" image, cropped to the ink and about 0.8 `side` high, with a clear rim.

    Drawn near its final size, so that the transformation only rotates and hardly shrinks it. The rim is one pixel wide,
    which lets the transformation blend the edge into the ground.
    """
    from PIL import Image, ImageDraw

    face = _face(font, round(1.1 * side))
    left, top, right, bottom = face.getbbox(character)
    image = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), character, fill=255, font=face)
    return image


@functools.lru_cache(maxsize=4 * len(FONTS))
def _face(font: str, size: int):
    import matplotlib
    from PIL import ImageFont

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{font}.ttf"
    # The basic layout is in every build of Pillow; Raqm, where installed, may place characters differently.
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
