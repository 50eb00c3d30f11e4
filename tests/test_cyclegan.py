"""CycleGAN, pix2pix and CUT: whole steps against PyTorch's, the history, what is drawn, warnings, what is refused."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ganstyle_jax
from ganstyle_jax import cli, contract
from ganstyle_jax.gan import cyclegan
from ganstyle_jax.io.files import UserError
from ganstyle_jax.io.images import save_png, to_uint8
from ganstyle_jax.io.pictures import read_picture

pytestmark = pytest.mark.usefixtures("quick_compile")

TINY = dict(image_size=18, crop=16, width=2, blocks=1, discriminator_width=2, discriminator_halvings=2)
CFG = cyclegan.Config(**TINY, history=3)
PAIRED = cyclegan.Config(**TINY, mode="paired", direction="b2a")
CONTRASTIVE = cyclegan.Config(**TINY, mode="contrastive", nce_patches=20, nce_width=5)
KEY = jax.random.key(3)


def noise(seed, *shape):
    return np.tanh(np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def in_float64(cfg):
    """With a learning rate that falls from the second of three steps on, and that tells."""
    return dataclasses.replace(cfg, dtype="float64", total_steps=3, learning_rate=1e-2)


def started(cfg):
    """A state whose weights are not small, so that nothing is without effect."""
    state = cyclegan.init(KEY, cfg)
    leaves, tree = jax.tree.flatten(state.params)
    drawn = [x + 0.2 * np.random.default_rng(i).normal(size=x.shape) for i, x in enumerate(leaves)]
    return state.replace(params=jax.tree.unflatten(tree, drawn))


def batch_of(cfg, seed, n=2):
    wanted = cyclegan.sources(cfg)
    return {name: {"image": noise(9 * seed + i, n, *of.shape, 3)} for i, (name, of) in enumerate(wanted.items())}


def prepared(cfg, batch, key):
    """({"a", "b": (n, 3, h, w)} in PyTorch, the key of all else): what a step sees, cut and mirrored as it draws."""
    import torch_cyclegan as reference

    key_pictures, key_step = jax.random.split(key)
    if cfg.mode == "paired":
        both = np.concatenate(np.split(batch["ab"]["image"], 2, 2), -1)
        both = cyclegan.prepared(key_pictures, jnp.asarray(both), cfg, None)
        real = dict(zip("ab", jnp.split(both, 2, -1), strict=True))
    else:
        keys = zip("ab", jax.random.split(key_pictures), strict=True)
        real = {x: cyclegan.prepared(k, jnp.asarray(batch[x]["image"]), cfg, None) for x, k in keys}
    return {x: reference.nchw(pictures) for x, pictures in real.items()}, key_step


def assert_weights(params, nets, done):
    import torch_cyclegan as reference

    for name, net in nets.items():
        expected = reference.tree(net, params[name])
        for (path, a), e in zip(
            jax.tree_util.tree_leaves_with_path(params[name]), jax.tree.leaves(expected), strict=True
        ):
            where = f"{name}{jax.tree_util.keystr(path)} after step {done}"
            np.testing.assert_allclose(a, e, rtol=0, atol=1e-10, err_msg=where)


def rate(cfg, t):
    """Of step t, from 0, of three."""
    return cfg.learning_rate * (1, 1, 2 / 3)[t]


def at_rate(optimizers, rate):
    for optimizer in optimizers.values():
        optimizer.param_groups[0]["lr"] = rate


# ---------------------------------------------------------------------------------------------------------------------
# Whole steps


@pytest.mark.parametrize("loss", ["least_squares", "non_saturating", "hinge"])
def test_steps_of_cyclegan_are_pytorchs(torch, x64, loss):
    """Four networks, histories that fill and are swapped with, and a learning rate that falls."""
    import torch_cyclegan as reference

    cfg = dataclasses.replace(in_float64(CFG), loss=loss)
    state = started(cfg)
    nets = {way: reference.load(reference.resnet(cfg.width, cfg.blocks), state.params[way]) for way in cfg.ways}
    for x in "ab":
        judge = reference.discriminator(cfg.discriminator_width, cfg.discriminator_halvings)
        nets[f"disc_{x}"] = reference.load(judge, state.params[f"disc_{x}"])
    optimizers = {"gen": reference.adam(nets["a2b"], nets["b2a"], rate=1)}
    optimizers |= {name: reference.adam(nets[name], rate=1) for name in ("disc_a", "disc_b")}
    pools = {x: reference.ImagePool(cfg.history) for x in "ab"}
    step, swapped = jax.jit(partial(cyclegan.train_step, cfg=cfg)), 0
    for t in range(3):
        key, batch = jax.random.fold_in(KEY, t), batch_of(cfg, t)
        state, metrics = step(state, batch, key)
        real, key_step = prepared(cfg, batch, key)
        draws = {}
        for i, x in enumerate("ab"):
            drawn = cyclegan.history_draws(jax.random.fold_in(key_step, i), 2, cfg.history)
            draws[x] = tuple(np.asarray(part).tolist() for part in drawn)
            swapped += sum(draws[x][0]) if t == 2 else 0
        at_rate(optimizers, rate(cfg, t))
        of = reference.cyclegan_step(nets, optimizers, pools, real, draws, loss)
        for name, share in (
            ("gen", 1),
            ("adversarial", 1),
            ("cycle", 2),
            ("identity", 2),
            ("disc_a", 1),
            ("disc_b", 1),
        ):
            np.testing.assert_allclose(metrics[f"loss/{name}"] * share, of[name], rtol=1e-10, err_msg=name)
        assert_weights(state.params, nets, t)
        for x in "ab":
            kept = torch.stack(pools[x].images)
            assert state.history[x]["count"] == len(kept)
            found = state.history[x]["pictures"][: len(kept)]
            np.testing.assert_allclose(found, reference.nhwc(kept), rtol=0, atol=1e-10)
    assert swapped > 0  # or the last step says nothing of it


def test_steps_of_pix2pix_are_pytorchs(torch, x64):
    """A U-Net with dropout and a discriminator of pairs, b to a."""
    import torch_cyclegan as reference

    cfg = in_float64(PAIRED)
    state, depth = started(cfg), cyclegan.generator_of(cfg).depth
    assert depth == 4 and set(state.params) == {"b2a", "disc_a"}
    nets = {"b2a": reference.load(reference.unet(cfg.width, depth), state.params["b2a"])}
    judge = reference.discriminator(cfg.discriminator_width, cfg.discriminator_halvings, inputs=6)
    nets["disc_a"] = reference.load(judge, state.params["disc_a"])
    optimizers = {"gen": reference.adam(nets["b2a"], rate=1), "disc": reference.adam(nets["disc_a"], rate=1)}
    step = jax.jit(partial(cyclegan.train_step, cfg=cfg))
    for t in range(2):
        key, batch = jax.random.fold_in(KEY, t), batch_of(cfg, t)
        state, metrics = step(state, batch, key)
        real, key_step = prepared(cfg, batch, key)
        masks = {}
        for level in (4, 3, 2):
            side, channels = 16 >> (level - 1), cfg.width * 2 ** (level - 2)
            mask = cyclegan.dropout_mask(key_step, f"up{level}", (2, side, side, channels), cfg, None)
            assert 0.2 < mask.mean() < 0.8
            masks[level] = 2 * reference.nchw(mask)
        at_rate(optimizers, rate(cfg, t))
        pair = {"from": real["b"], "to": real["a"]}
        of = reference.pix2pix_step(nets["b2a"], nets["disc_a"], optimizers, pair, masks)
        for name, of_name in (("gen", "gen"), ("adversarial", "adversarial"), ("disc_a", "disc")):
            np.testing.assert_allclose(metrics[f"loss/{name}"], of[of_name], rtol=1e-10, err_msg=name)
        assert_weights(state.params, nets, t)


def test_steps_of_cut_are_pytorchs(torch, x64):
    import torch_cyclegan as reference

    cfg = in_float64(CONTRASTIVE)
    state = started(cfg)
    assert set(state.params) == {"a2b", "disc_b", "heads"} and not state.history
    nets = {"a2b": reference.load(reference.resnet(cfg.width, cfg.blocks), state.params["a2b"])}
    judge = reference.discriminator(cfg.discriminator_width, cfg.discriminator_halvings)
    nets["disc_b"] = reference.load(judge, state.params["disc_b"])
    heads = {layer: reference.head(state.params["heads"][layer]) for layer in cyclegan.compared_layers(cfg)}
    optimizers = {"gen": reference.adam(nets["a2b"], *heads.values(), rate=1)}
    optimizers["disc"] = reference.adam(nets["disc_b"], rate=1)
    step = jax.jit(partial(cyclegan.train_step, cfg=cfg))
    for t in range(2):
        key, batch = jax.random.fold_in(KEY, t), batch_of(cfg, t)
        state, metrics = step(state, batch, key)
        real, key_step = prepared(cfg, batch, key)
        sizes = {"pixels": 256, "down2": 64, "down3": 16, "block1": 16}
        places = {
            layer: np.asarray(cyclegan.compared_places(key_step, layer, n, cfg)).tolist() for layer, n in sizes.items()
        }
        assert [len(set(chosen)) for chosen in places.values()] == [20, 20, 16, 16]
        at_rate(optimizers, rate(cfg, t))
        pair = {"from": real["a"], "to": real["b"]}
        of = reference.cut_step(nets["a2b"], nets["disc_b"], heads, optimizers, pair, places, cfg.blocks)
        names = {"disc_b": "disc"} | {name: name for name in ("gen", "adversarial", "nce", "nce_identity")}
        for name, of_name in names.items():
            np.testing.assert_allclose(metrics[f"loss/{name}"], of[of_name], rtol=1e-10, err_msg=name)
        assert_weights(state.params, nets, t)
        for layer, net in heads.items():
            for part, name in ((net[0], "first"), (net[2], "second")):
                found = state.params["heads"][layer][name]
                np.testing.assert_allclose(found["kernel"], part.weight.detach().numpy().T, rtol=0, atol=1e-10)
                np.testing.assert_allclose(found["bias"], part.bias.detach().numpy(), rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def test_the_history_fills_and_then_swaps():
    """Pictures that say which they are: 3 are kept and shown; of later ones about half are, for one that was kept."""
    history = {"pictures": jnp.zeros((3, 1, 1, 1)), "count": jnp.zeros((), jnp.int32)}
    kept, swaps = [], 0
    remember = jax.jit(cyclegan.remember)
    for t in range(30):
        key, fakes = jax.random.fold_in(KEY, t), np.arange(4 * t, 4 * t + 4, dtype=np.float32)
        history, shown = remember(history, fakes.reshape(4, 1, 1, 1), key)
        expected = []
        for fake, swap, place in zip(fakes, *cyclegan.history_draws(key, 4, 3), strict=True):
            if len(kept) < 3:
                kept.append(fake)
                expected.append(fake)
            elif swap:
                expected.append(kept[place])
                kept[place] = fake
                swaps += 1
            else:
                expected.append(fake)
        np.testing.assert_array_equal(np.ravel(shown), expected)
        np.testing.assert_array_equal(np.ravel(history["pictures"]), kept)
        assert history["count"] == 3
    assert 40 < swaps < 77  # of 117, four deviations about one half


def test_losses_in_closed_form():
    """At logits of 1 for real and 0.5 for generated pictures; a swap of the two would show."""
    real, fake = jnp.ones((2, 3, 3, 1)), jnp.full((2, 3, 3, 1), 0.5)
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    expected = {
        "least_squares": (0.125, 0.25),
        "non_saturating": ((softplus(-1) + softplus(0.5)) / 2, softplus(-0.5)),
        "hinge": (0.75, -0.5),
    }
    for loss, (of_discriminator, of_generator) in expected.items():
        cfg = dataclasses.replace(CFG, loss=loss)
        np.testing.assert_allclose(cyclegan.discriminator_loss(real, fake, cfg), of_discriminator, rtol=1e-6)
        np.testing.assert_allclose(cyclegan.generator_loss(fake, cfg), of_generator, rtol=1e-6)


@pytest.mark.parametrize("total_steps, rates", [(8, [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0]), (0, [1] * 10)])
def test_the_learning_rate_falls_over_the_second_half(total_steps, rates):
    cfg = dataclasses.replace(CFG, total_steps=total_steps, learning_rate=1.0, beta1=0.0)
    optimizer = cyclegan.optimizer(cfg)
    state, found = optimizer.init(jnp.ones(())), []
    for _ in rates:
        update, state = optimizer.update(jnp.ones(()), state)
        found.append(-update)
    np.testing.assert_allclose(found, rates, atol=1e-5)


def test_places_tell_patches_apart():
    """The contrastive loss is small where each place is like itself, and log n where all are alike."""
    cfg = dataclasses.replace(CONTRASTIVE, nce_patches=16, nce_width=32)
    heads = jax.tree.map(lambda x: 50 * x, cyclegan.init(KEY, cfg).params["heads"])
    shapes = {"pixels": (16, 16, 3), "down2": (8, 8, 4), "down3": (4, 4, 8), "block1": (4, 4, 8)}
    features = {layer: jnp.asarray(3 * noise(i, 2, *shape)) for i, (layer, shape) in enumerate(shapes.items())}
    other = {layer: jnp.asarray(3 * noise(9 + i, 2, *shape)) for i, (layer, shape) in enumerate(shapes.items())}
    alike = jax.tree.map(lambda x: jnp.ones_like(x), features)
    loss = jax.jit(partial(cyclegan.contrastive_loss, key=KEY, cfg=cfg))
    same, different, none = (loss(heads, of, features) for of in (features, other, alike))
    assert same.shape == (2,) and (same < 1).all() and (different > 2).all()
    np.testing.assert_allclose(loss(heads, alike, alike), np.log(16), rtol=1e-5)
    assert (none > 2).all()


def test_pictures_are_cut_and_mirrored_and_pairs_together():
    places = np.arange(18 * 18, dtype=np.float32).reshape(18, 18)
    pictures = jnp.asarray(np.stack([places + 1000 * i for i in range(64)])[..., None])
    found = np.asarray(cyclegan.prepared(KEY, pictures, CFG, None))
    corners, mirrored = set(), 0
    for part in found[..., 0] - 1000 * np.arange(64)[:, None, None]:
        backwards = part[0, 0] > part[0, 1]
        part = part[:, ::-1] if backwards else part
        top, left = divmod(int(part[0, 0]), 18)
        np.testing.assert_array_equal(part, places[top : top + 16, left : left + 16])
        corners.add((top, left))
        mirrored += backwards
    assert len(corners) == 9 and 16 < mirrored < 48
    straight = cyclegan.prepared(KEY, pictures, dataclasses.replace(CFG, flip=False), None)
    assert (np.asarray(straight)[:, 0, 0] < np.asarray(straight)[:, 0, 1]).all()
    twice = np.asarray(cyclegan.prepared(KEY, pictures.repeat(6, -1), PAIRED, None))
    np.testing.assert_array_equal(twice, found.repeat(6, -1))


def test_two_batches_in_turns():
    x, y = jnp.arange(3.0)[:, None], 10 + jnp.arange(3.0)[:, None]
    both = cyclegan.joined(x, y)
    np.testing.assert_array_equal(both.ravel(), [0, 10, 1, 11, 2, 12])
    for found, expected in zip(cyclegan.parted(both), (x, y), strict=True):
        np.testing.assert_array_equal(found, expected)


# ---------------------------------------------------------------------------------------------------------------------
# What is drawn


def drawn(cfg, requests):
    state = cyclegan.init(KEY, cfg)
    make = jax.jit(lambda state, requests: contract.of(cyclegan).sample(cyclegan.generator(state, cfg), requests, cfg))
    return make(state, requests)


def examples_of(cfg, n=2):
    return batch_of(cfg, 0, n)


def test_columns_of_a_cycle():
    requests = cyclegan.requests(KEY, 2, CFG, examples_of(CFG))
    assert {x: pictures.shape for x, pictures in requests.items()} == dict.fromkeys("ab", (2, 16, 16, 3))
    found = drawn(CFG, requests)
    assert list(found) == ["a", "a to b", "back to a", "a as a", "b", "b to a", "back to b", "b as b"]
    np.testing.assert_array_equal(found["a"], requests["a"])
    params, paint = cyclegan.init(KEY, CFG).params, cyclegan.generator_of(CFG).apply
    expected = {"a to b": ("a2b", "a"), "back to a": ("b2a", "a to b"), "a as a": ("b2a", "a"), "b to a": ("b2a", "b")}
    for title, (way, of) in expected.items():
        np.testing.assert_allclose(found[title], paint(params[way], found[of]), atol=1e-5, err_msg=title)
    assert cyclegan.judged(CFG) == ("a to b", "b")


def test_columns_of_the_other_modes():
    found = drawn(PAIRED, cyclegan.requests(KEY, 2, PAIRED, examples_of(PAIRED)))
    assert list(found) == ["b", "b to a", "a", "pair"] and cyclegan.judged(PAIRED) == ("pair", "ab")
    np.testing.assert_array_equal(found["pair"], np.concatenate([found["b to a"], found["b"]], 2))
    found = drawn(CONTRASTIVE, cyclegan.requests(KEY, 2, CONTRASTIVE, examples_of(CONTRASTIVE)))
    assert list(found) == ["a", "a to b", "b", "b as b"] and cyclegan.judged(CONTRASTIVE) == ("a to b", "b")


def test_a_users_pictures_go_either_way():
    method, pictures = contract.of(cyclegan), noise(0, 2, 19, 26, 3)
    there, back = (method.requests_of(pictures, CFG, cyclegan.ApplySettings(direction)) for direction in ("a2b", "b2a"))
    assert list(there) == ["a"] == list(method.requests_of(pictures, CFG)) and list(back) == ["b"]
    found = drawn(CFG, back)
    assert list(found) == ["b", "b to a"] and found["b to a"].shape == pictures.shape
    params = cyclegan.init(KEY, CFG).params["b2a"]
    np.testing.assert_allclose(found["b to a"], cyclegan.generator_of(CFG).apply(params, pictures), atol=1e-5)
    assert list(method.requests_of(pictures, PAIRED)) == ["b"]
    with pytest.raises(UserError, match="--direction must be b2a, the only way that this run goes, got a2b"):
        method.requests_of(pictures, PAIRED, cyclegan.ApplySettings("a2b"))


@pytest.mark.slow
def test_a_run_translates_either_way(pictures, home, tmp_path):
    """Through the commands: trained on two sets, applied to a picture of any size."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    flags += [f"--run-dir={tmp_path / 'run'}", "--steps=1", "--batch-size=2", "--devices=1"]
    cli.main(["train", "cyclegan", "--data", f"a={pictures}", f"b={pictures}", *flags])
    save_png(tmp_path / "photo.png", to_uint8(noise(0, 19, 26, 3)))
    run, photo = ganstyle_jax.load(tmp_path / "run"), read_picture(tmp_path / "photo.png")[None]
    for direction, title in (("a2b", "a to b"), ("b2a", "b to a")):
        made = tmp_path / f"{direction}.png"
        cli.main(
            ["apply", str(tmp_path / "run"), str(tmp_path / "photo.png"), "--direction", direction, "-o", str(made)]
        )
        drawn = run.draw({direction[0]: photo}, 1)
        assert list(drawn) == [direction[0], title]
        np.testing.assert_allclose(to_uint8(read_picture(made)), to_uint8(drawn[title][0]), atol=1)


def test_an_average_of_generators():
    cfg = dataclasses.replace(CFG, ema_halflife_images=100.0)
    state = jax.eval_shape(partial(cyclegan.init, cfg=cfg), KEY)
    assert set(state.ema) == {"a2b", "b2a"} and cyclegan.generator(state, cfg) == state.ema
    assert not jax.eval_shape(partial(cyclegan.init, cfg=CFG), KEY).ema


# ---------------------------------------------------------------------------------------------------------------------
# Warnings


def shown(change, cfg=CFG):
    """(numbers, warning) of a grid of smooth pictures, of which `change` makes the outputs."""
    before = np.tanh(np.cumsum(np.cumsum(noise(1, 6, 16, 16, 3), 1), 2) / 8)
    pictures = {"a": before, "a to b": np.asarray(change(before), np.float32)}
    return cyclegan.watch({"loss/cycle": 0.05}, pictures, {})


def test_a_sound_translation_gives_no_warning():
    numbers, warning = shown(lambda x: 0.7 * x + 0.2)
    assert warning is None
    assert numbers["colours/a2b"] > 0.99 and numbers["change/a2b"] > 0.1
    np.testing.assert_allclose(numbers["variety/a2b"], 0.7, rtol=1e-3)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: -x, "a to b: colours are inverted (brightness correlates by -1.00 with the input's)"),
        (lambda x: x + 0.01, "a to b: nothing is changed (outputs differ from inputs by 0.010 of 2)"),
        (lambda x: x[:1].repeat(6, 0) + 0.01 * noise(2, *x.shape), "a to b: one output for all (they differ by 0.0"),
    ],
)
def test_warnings(change, message):
    warning = shown(change)[1]
    assert warning is not None and message in warning and warning.count("a to b:") == 1


def test_no_warning_before_training_and_none_where_pictures_do_not_come_back():
    before = noise(1, 6, 16, 16, 3)
    assert cyclegan.watch({}, {"a": before, "a to b": -before}, {})[1] is None
    assert cyclegan.watch({"loss/cycle": 0.5}, {"a": before, "a to b": before}, {})[1] is None
    both = cyclegan.watch({"loss/cycle": 0.0}, {"a": before, "a to b": -before, "b": before, "b to a": before}, {})
    assert "a to b: colours are inverted" in both[1] and "b to a: nothing is changed" in both[1]
    assert set(both[0]) == {f"{name}/{way}" for name in ("colours", "change", "variety") for way in ("a2b", "b2a")}


# ---------------------------------------------------------------------------------------------------------------------
# What is refused


@pytest.mark.parametrize(
    "values, message",
    [
        ({"crop": 100}, "crop must be a multiple of 8 from 24 pixels up, .* halve it 3 times, got 100: take 96"),
        ({"crop": 16}, "got 16: take 24"),
        ({"image_size": 128}, "image_size must be at least the crop's 256, got 128"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"cycle_weight": -1.0}, "cycle_weight must not be negative, got -1.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"mode": "both"}, "mode must be cycle or paired or contrastive, got 'both'"),
        ({"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        ({"mode": "contrastive", "network": "unet"}, "compares layers of a resnet of one block or more"),
    ],
)
def test_settings_that_do_not_fit(values, message):
    with pytest.raises(ValueError, match=message):
        cyclegan.Config(**values)


def test_an_empty_side_is_refused(tmp_path):
    from PIL import Image

    from ganstyle_jax.loop import sources

    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    Image.new("RGB", (20, 20)).save(full / "one.png")
    method = contract.of(cyclegan)
    with pytest.raises(UserError, match=r"No images in .*empty"):
        sources.opened(sources.named({"a": str(full), "b": str(empty)}, method, CFG), method, CFG, 0)
    with pytest.raises(
        UserError, match=r"cyclegan learns from 2 sets of pictures: give --data a=SOURCE b=SOURCE, .*got a"
    ):
        sources.named({"a": str(full)}, method, CFG)


def test_a_picture_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 16 pixels on each side, got 15x40"):
        jax.eval_shape(partial(drawn, CFG), {"a": jnp.zeros((1, 15, 40, 3))})


def test_the_papers_networks_are_the_defaults():
    cycle, paired = cyclegan.Config(), cyclegan.Config(mode="paired")
    assert cyclegan.generator_of(cycle).blocks == 9 and cyclegan.generator_of(paired).depth == 8
    assert cyclegan.discriminator_of(paired).inputs == 6 and cyclegan.sources(paired)["ab"].shape == (286, 572)
    assert list(cyclegan.compared_layers(cycle).items()) == [
        ("pixels", 3), ("down2", 128), ("down3", 256), ("block1", 256), ("block5", 256)
    ]  # fmt: skip
