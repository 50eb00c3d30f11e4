"""Two sets of pictures into one archive, laid out as trainA, trainB, testA, testB.

    python experiments/split_pair.py pacs_photo_art_160px.zip/photo pacs_photo_art_160px.zip/art_painting photo2art.zip

Every tenth picture of each set, by the order of their names, is for tests. Files are taken as they are, and named by
where they lay: dog/1.jpg becomes trainA/dog_1.jpg. `ganstyle train cyclegan --data photo2art.zip` learns from the one
part, `ganstyle evaluate RUN --data photo2art.zip/test` looks at the other.
"""

import sys
import zipfile
from pathlib import Path

import tyro

from ganstyle_jax.data import files
from ganstyle_jax.data.open import located
from ganstyle_jax.io import folders
from ganstyle_jax.io.files import UserError, atomic_path


def main(
    a: tyro.conf.Positional[Path], b: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path], every: int = 10
) -> dict[str, int]:
    """Writes the archive and returns how many pictures each folder of it has.

    Args:
        a: a folder, a .zip or a folder of a .zip: what is translated from.
        b: what is translated to.
        out: the archive to write.
        every: one picture of so many is for tests.
    """
    if every < 2:
        raise UserError(f"--every must be at least 2, got {every}")
    counts: dict[str, int] = {}
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for side, place in (("A", a), ("B", b)):
            found = read(place)
            if len(found) < every:
                raise UserError(f"{place} has {len(found)} pictures, and one of {every} is for tests: give more")
            for i, (name, load) in enumerate(sorted(found.items())):
                part = f"{'train' if (i + 1) % every else 'test'}{side}"
                archive.writestr(zipfile.ZipInfo(f"{part}/{name.replace('/', '_')}"), load())
                counts[part] = counts.get(part, 0) + 1
    print(f"{out}: " + ", ".join(f"{part} {count:,}" for part, count in sorted(counts.items())))
    return counts


def read(place: Path) -> dict:
    """{path from there: what reads the bytes} of each picture of a folder, an archive or a folder of one."""
    path, inner = located(str(place))
    if path.is_dir():
        return {name: file.read_bytes for name, file in folders.find(path).pictures.items()}
    if not path.is_file() or path.suffix.lower() != ".zip":
        raise UserError(f"{place} is no folder and no .zip: give one of these, or a folder of a .zip")
    load, within = files.in_zip(path)[0], f"{inner}/" if inner else ""
    names = [name for name in load if name.startswith(within)]
    return {name[len(within) :]: lambda name=name: files.read_zip_member(path, load[name], None) for name in names}


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except UserError as error:
        sys.exit(str(error))
