"""Does StyleGAN2 stay stable in bfloat16? 20,000 steps of it beside as many in float32.

Paper: Karras et al. 2020 (arXiv:2006.06676), appendix G, whose half precision is float16 with activations clamped at
    256; bfloat16 has float32's range and three digits. Other reimplementations call theirs unstable.
Data: glyphs of 32 pixels, digits on black, drawn once; the reader of glyphs that ships judges the samples.
Hardware and time: see processor_seconds in the record; half of it for each precision, on one core of an AMD EPYC.
Expected: docs/measured.md, "Half precision".
Command: python experiments/half_precision.py

The two runs have the same seed, settings, pictures and draws; all levels above 4x4 pixels compute in bfloat16. A run
ends with an error at the first number that is not finite, so that the last row itself is the first half of the answer.
The other half: losses, logits and penalties of the steps since the last row, their largest values, and samples by what
took no part in training: how many of them can be read, how evenly the digits come, and the Frechet distance to real
glyphs in the reader's features. "largest" is the largest absolute value of a level's features, clamped at 256.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from conditional_glyphs import drawn

from ganstyle_jax import contract
from ganstyle_jax.commands import flags
from ganstyle_jax.gan import stylegan2
from ganstyle_jax.io import images
from ganstyle_jax.io.files import UserError
from ganstyle_jax.judge import evaluate
from ganstyle_jax.loop import runs, train

sys.path.insert(1, str(Path(__file__).resolve().parent / "bench"))
import machine

CONFIG = stylegan2.Config(
    image_size=32,
    preset="small",
    latent_dim=32,
    capacity=256,
    max_channels=32,
    r1=0.3,
    augment_policy="blit,color",
    augment_speed_images=100_000.0,
    half_levels=3,
)
FOLLOWED = ("loss/disc", "loss/gen", "logit/real", "logit/fake", "penalty/r1", "path_length", "augment_p")


def main(
    folder: Path = Path("runs/half_precision"),
    kind: str = "glyphs:digits:night",
    glyphs: int = 20_000,
    steps: int = 20_000,
    measure_every: int = 4_000,
    batch_size: int = 8,
    samples: int = 2_000,
    seed: int = 0,
    json: Path = Path("half_precision.json"),
    config: stylegan2.Config = CONFIG,
) -> dict[str, Any]:
    """Trains a run for each precision, or goes on with it, and measures both.

    Args:
        folder: for the data and the runs, float32 and bfloat16.
        kind: of glyphs.
        glyphs: of the training set.
        steps: of each run.
        measure_every: steps from one row to the next.
        batch_size: pictures of a step.
        samples: that are judged.
        seed: of both runs.
        json: file for the record; a bare name goes into experiments/results/.
        config: the settings of the network.
    """
    flags.use_cache()
    source, _ = drawn(folder / "glyphs.npz", kind, glyphs, config.image_size)
    judged = evaluate.Settings(("fid", "glyphs"), "glyphs", count=samples, real_count=samples)
    network = evaluate.network_of(judged)
    real = evaluate.look(*evaluate.images_of(kind, network, samples, 0, config.image_size), network, judged)
    record: dict[str, Any] = machine.describe() | {
        "versions": machine.versions(("ganstyle_jax", "jax", "jaxlib", "flax", "optax", "numpy")),
        "settings": {"kind": kind, "batch_size": batch_size, "seed": seed, "config": contract.to_json(config)},
        "rows": [],
    }
    for dtype in ("float32", "bfloat16"):
        cfg, run_dir = dataclasses.replace(config, dtype=dtype), folder / dtype
        loop = train.Loop(
            run_dir,
            batch_size=batch_size,
            seed=seed,
            resume="auto",
            checkpoint_every=measure_every,
            keep_every=measure_every,
            sample_every=measure_every,
            devices=1,
            progress="lines",
        )
        for step in range(measure_every, steps + 1, measure_every):
            began = time.process_time()
            train.run(stylegan2, cfg, source, dataclasses.replace(loop, steps=step))
            spent = time.process_time() - began
            run = runs.load(run_dir, step)
            pictures = images.to_uint8(run.sample(jax.random.key(1), samples))
            about = {"source": "samples", "image_size": config.image_size} | evaluate.what_to_read(kind, judged)
            seen = evaluate.look(evaluate.images_from(pictures, network), about, network, judged)
            row = {"dtype": dtype, "step": step, "processor_seconds": round(spent, 1)}
            row |= evaluate.compare(real, seen, network, judged)["metrics"] | followed(run_dir, step, measure_every)
            row["largest"] = largest(run)
            record["rows"].append(row)
            print(row, flush=True)
            machine.write_record(json, record)  # kept as it grows
        images.save_png(run_dir / "samples.png", images.grid(pictures[:64]))
    print(table(record))
    return record


def followed(run_dir: Path, step: int, window: int) -> dict[str, Any]:
    """Of the lines of the log of so many steps: the mean of each metric, and the largest absolute value of any line."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if step - window < line["step"] <= step and "loss/gen" in line]
    means = {name: float(np.mean([line[name] for line in lines])) for name in FOLLOWED}
    return {"mean": means, "most": {name: max(abs(line[name]) for line in lines) for name in FOLLOWED}}


def largest(run: Any) -> float:
    """The largest absolute value of the generator's features, over 64 samples."""
    requests = stylegan2.requests(jax.random.key(2), 64, run.cfg)
    levels = stylegan2.activations(run.variables, requests, run.cfg)
    return max(float(np.abs(np.asarray(x, np.float32)).max()) for x in levels.values())


def table(record: dict[str, Any]) -> str:
    """The rows beside each other, in Markdown."""
    lines = [
        "| steps | | FD | readable | digits | loss of D, G | largest logit | largest feature |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for step in dict.fromkeys(row["step"] for row in record["rows"]):
        for row in (row for row in record["rows"] if row["step"] == step):
            mean, most = row["mean"], row["most"]
            logit = max(most["logit/real"], most["logit/fake"])
            lines.append(
                f"| {step:,} | {row['dtype']} | {row['fid']:.1f} | {1 - row['glyphs_unreadable']:.1%} | "
                f"{row['glyphs_covered']} of {row['glyphs_classes']} | "
                f"{mean['loss/disc']:.2f}, {mean['loss/gen']:.2f} | {logit:.1f} | {row['largest']:.0f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except UserError as error:
        sys.exit(f"error: {error}")
