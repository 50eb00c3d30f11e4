"""`ganstyle quickstart`: a painted photograph and a trained DCGAN, without data or network."""

import dataclasses
from pathlib import Path

from ganstyle_jax.commands import flags


@dataclasses.dataclass(frozen=True)
class Quickstart:
    """Paint a photograph, then train a DCGAN on digits drawn on the spot: 2.5 minutes on two cores, no network."""

    run_dir: Path = Path("runs/quickstart")  # folder for all that the run leaves
    steps: int = 2000  # training steps
    size: int = 320  # pixels of the optimised photograph's sides; 0 for no photographs


def run(command: Quickstart) -> None:
    flags.use_cache()
    from ganstyle_jax.gan import dcgan
    from ganstyle_jax.loop import train as training
    from ganstyle_jax.loop.train import Loop

    # Small batches and high learning rates give clearer digits in the same time than the defaults do. The half-life is
    # short, because in so short a run the weights still move fast and an average lags behind them.
    if command.size:
        painted = paint_at_once(command.run_dir)
        print(f"Look at {painted}, the same photograph as the network `paintings` paints it in one pass.\n")
        photograph = stylize_photograph(command.run_dir, command.size)
        print(f"Look at {photograph}, a photograph in the manner of the painting style.png beside it.\n")
    cfg = dcgan.Config(
        image_size=32,
        width=32,
        generator_learning_rate=4e-4,
        discriminator_learning_rate=4e-4,
        ema_halflife_images=1000,
    )
    loop = Loop(command.run_dir, command.steps, batch_size=32, sample_every=200, checkpoint_every=500, resume="auto")
    print("Training a DCGAN to draw digits. Two minutes on two cores; Ctrl-C saves and stops.")
    training.run(dcgan, cfg, "glyphs:digits:night", loop)
    grid = command.run_dir / "samples" / f"{command.steps:06d}.png"
    print(
        f"\nLook at {grid}: each cell is a digit that the network made up;\n"
        f"the earlier grids beside it show the same latents while it was learning.\n"
        f"Next: ganstyle apply --model paintings PHOTOGRAPH --style the_scream -o painted.png\n"
        f"      ganstyle apply --model adain PHOTOGRAPH --style PAINTING -o painted.png\n"
        f"      ganstyle stylize PHOTOGRAPH PAINTING -o stylized.png   (takes longer, paints better)\n"
        f"      ganstyle weights fetch vgg19-8bit   (VGG-19 itself, 19 MB, for stylize --features vgg19-8bit)\n"
        f"      ganstyle sample {command.run_dir} --interpolate --out walk\n"
        f"      ganstyle report {command.run_dir}\n"
        f"      ganstyle train dcgan --data FOLDER_OR_ZIP_OF_IMAGES"
    )


def paint_at_once(folder: Path) -> Path:
    """The first picture of the quick start: a photograph, and what the network that ships makes of it, by style."""
    import numpy as np
    import skimage.data

    from ganstyle_jax import data
    from ganstyle_jax.forward.painter import Painter
    from ganstyle_jax.io import images, sheet
    from ganstyle_jax.loop import models

    out = folder / "painted.png"
    if out.exists():
        return out
    print("Painting a photograph in one pass by a network, in each of the styles that it has learned.")
    model, photograph = models.load("paintings"), data.to_float(skimage.data.astronaut())
    columns = {"photograph": photograph[None]}
    for path in model.cfg.style:
        painter = Painter(model, model.method.module.ApplySettings(style=(path.stem,)))
        columns[path.stem.replace("_", " ")] = painter(photograph[None])
    images.save_png(out, sheet.of({title: np.asarray(x) for title, x in columns.items()}, columns=1))
    return out


def stylize_photograph(folder: Path, size: int) -> Path:
    """The picture of the quick start: a photograph that scikit-image has, in the manner of one that is painted here."""
    import skimage.data

    from ganstyle_jax import data
    from ganstyle_jax import stylize as program
    from ganstyle_jax.io import pictures
    from ganstyle_jax.style import gatys, painting

    settings = program.Settings(out=folder / "stylized.png")
    if settings.out.exists():
        return settings.out
    # Chosen by eye. The distance between Gaussians takes over the colours and whirls of a painting better than Gram
    # matrices do; a second, finer layer of content, and none of the coarsest for style, keep the face a face.
    cfg = gatys.Config(
        size=size,
        style_scale=2,  # strokes that are seen at so small a size
        content_weight=0.03,
        style_loss="wasserstein",
        content_layers=("relu3_1", "relu4_1"),
        style_layers=gatys.STYLE_LAYERS[:4],
        steps=70,
    )
    print("Painting a night over hills, and then a photograph in its manner. Less than a minute on two cores.")
    folder.mkdir(parents=True, exist_ok=True)
    sources = folder / "content.png", folder / "style.png"
    for path, picture in zip(
        sources, (data.to_float(skimage.data.astronaut()), painting.painting(2 * size)), strict=True
    ):
        pictures.write_picture(path, picture)
    program.run(sources[0], (sources[1],), cfg, settings)
    return settings.out
