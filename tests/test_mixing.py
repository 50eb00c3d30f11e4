"""`ganstyle sample --mix` and `--truncation`: styles of two pictures in one, and nearer to their average."""

import jax
import numpy as np
import pytest

from ganstyle_jax.commands import sample
from ganstyle_jax.gan import dcgan, stylegan2
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.pictures import read_picture
from ganstyle_jax.loop import runs
from ganstyle_jax.loop.checkpoints import Checkpoints
from ganstyle_jax.loop.settings import Loop

pytestmark = pytest.mark.usefixtures("quick_compile")

CFG = stylegan2.complete(
    stylegan2.Config(16, channels=3, preset="small", latent_dim=6, capacity=64, max_channels=8, mapping_layers=2)
)


def write(folder, module, cfg):
    state = jax.jit(module.init, static_argnums=1)(jax.random.key(0), cfg)
    runs.write(folder, module, runs.describe(module, cfg, "nothing", Loop(run_dir=folder)))
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(0, state)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, quick_compile):
    return write(tmp_path_factory.mktemp("runs") / "styles", stylegan2, CFG)


def test_a_table_has_what_is_mixed_at_its_sides(run, tmp_path):
    sample.run(sample.Sample(run, tmp_path / "table.png", count=4, mix="0-3"))
    table = read_picture(tmp_path / "table.png")
    assert table.shape == (3 * 16 + 2 * 2, 3 * 16 + 2 * 2, 3)

    def cell(i, j):
        return table[18 * i : 16 + 18 * i, 18 * j : 16 + 18 * j]

    loaded = runs.load(run)
    requests = loaded.requests(jax.random.key(0), 4)
    alone = np.clip(loaded.draw(requests), -1, 1)
    for at, picture in zip(((1, 0), (2, 0), (0, 1), (0, 2)), alone, strict=True):
        np.testing.assert_allclose(cell(*at), picture, atol=0.006)  # a step of 8 bits
    mixed = stylegan2.mix(loaded.variables, requests[1:2], requests[2:3], CFG, range(4))
    np.testing.assert_allclose(cell(2, 1), np.clip(mixed[0], -1, 1), atol=0.006)
    assert np.abs(cell(2, 1) - cell(2, 0)).max() > 0.02 < np.abs(cell(2, 1) - cell(0, 1)).max()


def test_all_layers_are_the_columns_picture(run, tmp_path):
    sample.run(sample.Sample(run, tmp_path / "table.png", count=1, mix=f"0-{CFG.styles - 1}"))
    table = read_picture(tmp_path / "table.png")
    np.testing.assert_allclose(table[18:34, 18:34], table[:16, 18:34], atol=0.006)


def test_truncated_to_nothing_all_are_alike(run, tmp_path):
    for psi, alike in ((0.0, True), (1.0, False)):
        sample.run(sample.Sample(run, tmp_path / "a.npz", count=3, truncation=psi))
        with np.load(tmp_path / "a.npz") as file:
            assert (np.ptp(file["images"].astype(int), axis=0).max() <= 1) == alike


def test_layers_by_name_and_number(run):
    loaded = runs.load(run)
    assert sample.layers_of("coarse", loaded) == (0, 1, 2, 3)
    assert sample.layers_of("middle", loaded) == (4, 5)
    assert sample.layers_of("1,3-4", loaded) == (1, 3, 4)
    for said, match in (
        ("fine", "0 to 5"),
        ("6", "0 to 5"),
        ("a", "coarse, middle, fine"),
        ("1-2-3", "coarse"),
        ("3-1", "0 to"),
    ):
        with pytest.raises(UserError, match=match):
            sample.layers_of(said, loaded)


def test_what_has_no_styles_says_so(run, tmp_path):
    plain = write(tmp_path / "dcgan", dcgan, dcgan.Config(16, channels=1, latent_dim=4, width=2, batch_norm="running"))
    with pytest.raises(UserError, match="--mix is for styles, which dcgan has none of"):
        sample.run(sample.Sample(plain, tmp_path / "a.png", mix="coarse"))
    with pytest.raises(UserError, match="a dcgan run has no setting truncation"):
        sample.run(sample.Sample(plain, tmp_path / "a.png", truncation=0.5))
    with pytest.raises(UserError, match=r"--out must end in \.png"):
        sample.run(sample.Sample(run, tmp_path / "folder", mix="coarse"))
