"""Convolutions against their formula, XLA's and PyTorch's, to the second derivative; BatchNorm against PyTorch's."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax.nn import layers, norm

pytestmark = pytest.mark.usefixtures("quick_compile")

# (b, h, w, c, d) of `halve`: (b, h, w, c) to (b, h/2, w/2, d). Odd channels, smallest and larger pictures, not square;
# the fast convolutions choose by height and channels how they compute, and here are some for each way.
SHAPES = [
    (1, 2, 2, 1, 1),
    (2, 4, 6, 3, 5),
    (3, 2, 32, 7, 4),
    (2, 8, 4, 17, 2),
    (1, 16, 12, 16, 3),
    (1, 32, 16, 5, 3),
    (2, 4, 8, 32, 3),
    (1, 12, 4, 33, 2),
]
OPERATIONS = {"halve": layers.halve, "double": layers.double}
halve, double = (jax.jit(operation, static_argnums=2) for operation in OPERATIONS.values())
DEVICES = 8


def draw(seed, *shape):
    """N(0, 1) in the current default precision."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.zeros(()).dtype)


def operands(name, shape):
    """An input that `name` maps to or from (b, h/2, w/2, d), a kernel, and a weight for each output value."""
    b, h, w, c, d = shape
    large, small = (b, h, w, c), (b, h // 2, w // 2, d)
    if name == "halve":
        return draw(0, *large), draw(1, 4, 4, c, d), draw(2, *small)
    return draw(0, *small), draw(1, 4, 4, d, c), draw(2, *large)


def assert_close(actual, expected, tolerance):
    """Norm-wise: |actual - expected| <= tolerance * |expected| for each array."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert a.shape == e.shape
        assert np.linalg.norm(a - e) <= tolerance * np.linalg.norm(e)


@functools.cache  # several tests compare with the same compiled functions
def derivatives(operation, platform):
    """(x, k, weight) -> value, first and second derivatives by x and k.

    The loss is curved in the output, so that its gradient depends on x and k in every way; the second derivatives are
    those of the squared norms of the first ones, each by x and k: all that R1, R2 and WGAN-GP can ask for.
    """

    def loss(x, k, weight):
        y = operation(x, k, platform)
        return jnp.sum(weight * jnp.tanh(y / 4)), y

    def everything(x, k, weight):
        def squared_norms(x, k):
            first, y = jax.grad(loss, (0, 1), has_aux=True)(x, k, weight)
            return [jnp.sum(g**2) for g in first], (y, first)

        _, pull_back, (y, first) = jax.vjp(squared_norms, x, k, has_aux=True)
        one, zero = jnp.ones((), x.dtype), jnp.zeros((), x.dtype)
        return y, first, (pull_back([one, zero]), pull_back([zero, one]))

    return jax.jit(everything)


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions


@pytest.mark.parametrize("platform", ["cpu", "xla", "auto"])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_convolutions_are_what_their_docstrings_say(x64, shape, platform):
    x, k, _ = map(np.asarray, operands("halve", shape))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((shape[0], shape[1] // 2, shape[2] // 2, shape[4]))
    for i, j in np.ndindex(expected.shape[1:3]):  # y[i, j] = sum over p, q of x[2i + p - 1, 2j + q - 1] k[p, q]
        expected[:, i, j] = np.einsum("bpqc,pqcd->bd", padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4], k)
    assert_close(halve(x, k, platform), expected, 1e-12)

    x, k, _ = map(np.asarray, operands("double", shape))
    padded = np.zeros((shape[0], shape[1] + 2, shape[2] + 2, shape[3]))
    for i, j in np.ndindex(x.shape[1:3]):  # y[2i + p - 1, 2j + q - 1] += x[i, j] k[p, q]
        padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("bc,pqcd->bpqd", x[:, i, j], k)
    assert_close(double(x, k, platform), padded[:, 1:-1, 1:-1], 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_platforms_agree_to_the_second_derivative(x64, name, shape):
    arguments = operands(name, shape)
    ours, reference = (derivatives(OPERATIONS[name], platform)(*arguments) for platform in ("cpu", "xla"))
    assert_close(ours, reference, 1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_convolutions_match_pytorch_to_the_second_derivative(x64, torch, name, shape):
    arguments = operands(name, shape)
    x, k, weight = (torch.tensor(np.array(a), dtype=torch.float64) for a in arguments)
    x.requires_grad_()
    k.requires_grad_()
    nchw = x.permute(0, 3, 1, 2)
    if name == "halve":
        y = torch.nn.functional.conv2d(nchw, k.permute(3, 2, 0, 1), stride=2, padding=1)
    else:
        y = torch.nn.functional.conv_transpose2d(nchw, k.permute(2, 3, 0, 1), stride=2, padding=1)
    y = y.permute(0, 2, 3, 1)
    first = torch.autograd.grad((weight * torch.tanh(y / 4)).sum(), (x, k), create_graph=True)
    second = [torch.autograd.grad((g**2).sum(), (x, k), retain_graph=True) for g in first]
    expected = jax.tree.map(lambda t: t.detach().numpy(), (y, first, tuple(second)))
    assert_close(derivatives(OPERATIONS[name], "cpu")(*arguments), expected, 1e-12)


@pytest.mark.parametrize("platform", ["cpu", "xla"])
@pytest.mark.parametrize("shape", [SHAPES[5], SHAPES[-1]])  # of few channels and of many
@pytest.mark.parametrize("name", OPERATIONS)
def test_float32_is_as_exact_as_its_sums_allow(name, shape, platform):
    arguments = operands(name, shape)
    with jax.enable_x64(True):
        expected = derivatives(OPERATIONS[name], platform)(*(np.asarray(a, np.float64) for a in arguments))
    actual = derivatives(OPERATIONS[name], platform)(*arguments)
    assert jax.tree.all(jax.tree.map(lambda a: a.dtype == jnp.float32, actual))
    # Sums of up to 512 products, one after another, within each other: far fewer than 1e-5 / 6e-8 roundings add up.
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("platform", ["cpu", "xla"])
def test_bfloat16_stays_bfloat16(platform):
    x, k, _ = operands("halve", SHAPES[1])
    for operation in (halve, double):
        exact = operation(x, k, "xla")
        short = operation(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16), platform)
        assert short.dtype == jnp.bfloat16
        assert_close(short, exact, 2e-2)  # 8 bits: each factor is off by up to 0.4 %, and the result once more


@pytest.mark.parametrize("platform", ["cpu", "xla"])
@pytest.mark.parametrize("shape", SHAPES)
def test_double_is_the_transpose_of_halve(x64, shape, platform):
    """<halve(x, k), y> = <x, double(y, k transposed)>."""
    x, k, y = operands("halve", shape)
    left = jnp.vdot(halve(x, k, platform), y)
    right = jnp.vdot(x, double(y, k.swapaxes(2, 3), platform))
    np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12 * float(jnp.linalg.norm(x) * jnp.linalg.norm(y)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_convolutions_inside_loops(x64, name):
    """Three steps down a gradient: by hand, in fori_loop and in scan, and the derivative through all of them."""
    operation, (x, k, weight) = OPERATIONS[name], operands(name, SHAPES[1])

    def descend(k, platform):
        return k - 0.1 * jax.grad(lambda k: jnp.sum(weight * jnp.tanh(operation(x, k, platform) / 4)))(k)

    def by_hand(k):
        for _ in range(3):
            k = descend(k, "xla")
        return jnp.sum(k**3)

    def in_fori_loop(k):
        return jnp.sum(lax.fori_loop(0, 3, lambda _, k: descend(k, "cpu"), k) ** 3)

    def in_scan(k):
        return jnp.sum(lax.scan(lambda k, _: (descend(k, "cpu"), None), k, length=3)[0] ** 3)

    expected = jax.jit(jax.value_and_grad(by_hand))(k)
    assert_close(jax.jit(jax.value_and_grad(in_fori_loop))(k), expected, 1e-12)
    assert_close(jax.jit(jax.value_and_grad(in_scan))(k), expected, 1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_convolutions_under_vmap(x64, name):
    """A batch of inputs and of kernels, to the second derivative."""
    many = [operands(name, SHAPES[1]), tuple(2 * a for a in operands(name, SHAPES[1]))]
    one = derivatives(OPERATIONS[name], "cpu")
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *(one(*arguments) for arguments in many))
    assert_close(
        jax.jit(jax.vmap(one))(*(jnp.stack(arguments) for arguments in zip(*many, strict=True))), expected, 1e-12
    )
    over_kernels = jax.jit(jax.vmap(OPERATIONS[name], in_axes=(None, 0, None)), static_argnums=2)
    (x, k, _), (_, k2, _) = many
    expected = np.stack([OPERATIONS[name](x, kernel, "xla") for kernel in (k, k2)])
    assert_close(over_kernels(x, jnp.stack([k, k2]), "cpu"), expected, 1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_forward_mode(x64, name):
    """custom_vjp has no forward mode, and says so; plain convolutions do."""
    operation, (x, k, weight) = OPERATIONS[name], operands(name, SHAPES[1])
    dx, dk = draw(5, *x.shape), draw(6, *k.shape)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x, k: operation(x, k, "cpu"), (x, k), (dx, dk))
    _, tangent = jax.jit(functools.partial(jax.jvp, lambda x, k: operation(x, k, "xla")))((x, k), (dx, dk))
    by_x, by_k = jax.jit(jax.grad(lambda x, k: jnp.vdot(operation(x, k, "cpu"), weight), (0, 1)))(x, k)
    np.testing.assert_allclose(jnp.vdot(tangent, weight), jnp.vdot(dx, by_x) + jnp.vdot(dk, by_k), rtol=1e-10)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="what auto means on a CPU")
@pytest.mark.parametrize("name", OPERATIONS)
def test_auto_is_cpu_on_a_cpu(name):
    x, k, _ = operands(name, SHAPES[0])
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: OPERATIONS[name](x, k), (x,), (x,))


@pytest.mark.parametrize("name", OPERATIONS)
def test_unknown_platforms_are_named(name):
    x, k, _ = operands(name, SHAPES[0])
    with pytest.raises(ValueError, match=r"platform must be 'auto', 'cpu' or 'xla', got 'tpu'"):
        OPERATIONS[name](x, k, "tpu")


# ---------------------------------------------------------------------------------------------------------------------
# Convolutions within groups

GROUPED = [  # b, h, w, channels of a group in and out, groups, side of the kernel
    (2, 5, 6, 3, 2, 4, 3),
    (3, 4, 4, 16, 16, 2, 3),  # both groups in one convolution
    (2, 6, 4, 16, 16, 6, 3),  # two at a time
    (2, 4, 6, 12, 12, 5, 3),  # three would be enough, and do not divide five
    (1, 8, 8, 40, 24, 3, 1),  # one at a time
    (2, 8, 8, 2, 2, 34, 3),  # more than there are to be convolutions
    (2, 6, 6, 4, 4, 1, 5),  # no groups
]


def grouped_operands(shape):
    b, h, w, c, d, groups, p = shape
    kernel = draw(2, p, p, c, groups * d) / math.sqrt(p * p * c)
    return draw(1, b, h, w, groups * c), kernel, draw(3, b, h, w, groups * d)


@pytest.mark.parametrize("shape", GROUPED)
def test_grouped_convolutions_match_pytorch_to_the_second_derivative(x64, torch, shape):
    """Also where XLA has them as one operation."""
    operands, groups = grouped_operands(shape), shape[5]
    x, k, weight = (torch.tensor(np.array(a)) for a in operands)
    x.requires_grad_()
    k.requires_grad_()
    y = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), k.permute(3, 2, 0, 1), padding="same", groups=groups)
    y = y.permute(0, 2, 3, 1)
    first = torch.autograd.grad((weight * torch.tanh(y / 4)).sum(), (x, k), create_graph=True)
    second = [torch.autograd.grad((g**2).sum(), (x, k), retain_graph=True) for g in first]
    expected = jax.tree.map(lambda t: t.detach().numpy(), (y, first, tuple(second)))
    for platform in ("cpu", "xla"):
        operation = lambda x, k, platform: layers.grouped_conv(x, k, groups, platform)  # noqa: E731
        assert_close(derivatives(operation, platform)(*operands), expected, 1e-12)


def test_a_group_sees_no_other():
    x, k, _ = grouped_operands(GROUPED[2])
    y = layers.grouped_conv(x, k, 6)
    other = layers.grouped_conv(x.at[..., 32:48].add(1), k, 6)
    changed = np.abs(np.asarray(y - other)).max((0, 1, 2)) > 1e-3
    assert changed.reshape(6, 16).any(1).tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("platform", ["cpu", "xla"])
def test_grouped_convolutions_of_bfloat16_stay_bfloat16(platform):
    x, k, _ = grouped_operands(GROUPED[1])
    short = layers.grouped_conv(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16), 2, platform)
    assert short.dtype == jnp.bfloat16
    assert_close(short, layers.grouped_conv(x, k, 2), 2e-2)


def test_devices_share_the_batch_of_a_grouped_convolution(x64):
    """To the second derivative the same as on one device, and no picture goes from one to another."""
    x, k, weight = grouped_operands((DEVICES, 6, 6, 4, 4, 5, 3))
    mesh = Mesh(np.asarray(jax.devices()[:DEVICES]).reshape(4, 2), ("groups", "batch"))
    parts, whole = NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())
    arguments = [jax.device_put(a, s) for a, s in zip((x, k, weight), (parts, whole, parts), strict=True)]

    def penalty(x, k, weight):
        def loss(x):
            return jnp.sum(weight * jnp.tanh(layers.grouped_conv(x, k, 5, "xla")))

        return jnp.sum(jax.grad(loss)(x) ** 2)

    with layers.sharing(mesh):
        compiled = jax.jit(jax.grad(penalty, (0, 1)), out_shardings=(parts, whole)).lower(*arguments).compile()
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
    assert_close(compiled(*arguments), jax.jit(jax.grad(penalty, (0, 1)))(x, k, weight), 1e-12)
    # Three pictures are not cut.
    with layers.sharing(mesh):
        three = jax.jit(lambda x, k: layers.grouped_conv(x, k, 5, "xla"))(x[:3], k)
    assert_close(three, layers.grouped_conv(x[:3], k, 5), 1e-12)


def test_devices_share_what_is_made_of_random_numbers_alone():
    """As a generator's pictures are where no picture of the data is near: a part of the work for each, the same result."""
    mesh = Mesh(np.asarray(jax.devices()[:DEVICES]).reshape(4, 2), ("groups", "batch"))
    whole = NamedSharding(mesh, PartitionSpec())

    def loss(weights, b):
        return jnp.mean((layers.global_normal(jax.random.key(0), (b, 64), None) @ weights) ** 2)

    weights, flops = jnp.eye(64), {}
    for b in (4 * DEVICES, 4 * DEVICES + 1):  # the latter cannot be shared
        alone = jax.jit(jax.grad(loss), static_argnums=1)
        with layers.sharing(mesh):
            together = jax.jit(jax.grad(loss), static_argnums=1, in_shardings=whole).lower(weights, b).compile()
        flops[b] = together.cost_analysis()["flops"] / alone.lower(weights, b).compile().cost_analysis()["flops"]
        assert_close(together(jax.device_put(weights, whole)), alone(weights, b), 1e-5)
    shared, not_shared = flops.values()
    assert shared < 1.5 / DEVICES and not_shared > 0.9


def test_grouped_convolutions_inside_loops(x64):
    x, k, weight = grouped_operands(GROUPED[1])

    def descend(k, platform):
        return k - 0.1 * jax.grad(lambda k: jnp.sum(weight * jnp.tanh(layers.grouped_conv(x, k, 2, platform))))(k)

    inside = jax.jit(lambda k: lax.fori_loop(0, 3, lambda _, k: descend(k, "cpu"), k))(k)
    for _ in range(3):
        k = jax.jit(descend, static_argnums=1)(k, "xla")
    assert_close(inside, k, 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# BatchNorm


def batch_norm_step(module):
    """Jitted (params, stats, x, weight) -> output, statistics, gradients of sum(weight * output) by params and x."""

    def forward(params, stats, x):
        return module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])

    def step(params, stats, x, weight):
        output, pull_back, new = jax.vjp(lambda params, x: forward(params, stats, x), params, x, has_aux=True)
        return output, new["batch_stats"], pull_back(weight)

    return jax.jit(step)


@pytest.fixture(params=["cpu", "gpu"])
def platform(request):
    """BatchNorm as it is there, on a CPU."""
    with layers.compiling_for(request.param):
        yield request.param


@pytest.mark.parametrize("slope", [1.0, 0.2, 0.0])
def test_batch_norm_matches_pytorch(x64, torch, platform, slope):
    """Outputs, gradients and running statistics over five steps, then evaluation; with a ReLU after it, or none."""
    module = layers.BatchNorm(jnp.float64, jnp.float64, slope=slope)
    inner = torch.nn.BatchNorm2d(5).double()
    theirs = torch.nn.Sequential(inner, torch.nn.LeakyReLU(slope))
    params = {"scale": draw(0, 5), "bias": draw(1, 5)}
    stats = {"mean": jnp.zeros(5), "var": jnp.ones(5)}
    weights = {"weight": torch.tensor(np.array(params["scale"])), "bias": torch.tensor(np.array(params["bias"]))}
    inner.load_state_dict(weights, strict=False)
    step = batch_norm_step(module)
    for i in range(5):
        x, weight = 3 * draw(10 + i, 2, 3, 4, 5) + i, draw(20 + i, 2, 3, 4, 5)
        output, stats, (by_params, by_x) = step(params, stats, x, weight)
        theirs_x = torch.tensor(np.array(x).transpose(0, 3, 1, 2), requires_grad=True)
        theirs_output = theirs(theirs_x)
        theirs.zero_grad()
        (theirs_output * torch.tensor(np.array(weight).transpose(0, 3, 1, 2))).sum().backward()
        assert_close(output, theirs_output.detach().numpy().transpose(0, 2, 3, 1), 1e-12)
        assert_close(by_x, theirs_x.grad.numpy().transpose(0, 2, 3, 1), 1e-12)
        assert_close(by_params["scale"], inner.weight.grad.numpy(), 1e-12)
        assert_close(by_params["bias"], inner.bias.grad.numpy(), 1e-12)
        assert_close(stats["mean"], inner.running_mean.numpy(), 1e-12)
        assert_close(stats["var"], inner.running_var.numpy(), 1e-12)
    theirs.eval()
    x = draw(30, 2, 3, 4, 5)
    output = module.apply({"params": params, "batch_stats": stats}, x, train=False)
    expected = theirs(torch.tensor(np.array(x).transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    assert_close(output, expected, 1e-12)


def test_batch_norm_by_hand():
    """Two values, 1 and 5: mean 3, variance 4, unbiased 8."""
    module = layers.BatchNorm(epsilon=0.0)
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([10.0])},
        "batch_stats": {"mean": jnp.array([1.0]), "var": jnp.array([1.0])},
    }
    x = jnp.array([[1.0], [5.0]])
    output, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(output, [[8.0], [12.0]], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.9 * 1 + 0.1 * 3], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9 * 1 + 0.1 * 8], rtol=1e-6)
    np.testing.assert_allclose(module.apply(variables, x, train=False), [[10.0], [18.0]], rtol=1e-6)


def test_batch_norm_begins_as_the_paper_says_and_init_leaves_statistics_alone():
    init = jax.jit(functools.partial(layers.BatchNorm().init, train=True))
    variables = init(jax.random.key(0), 7 + draw(0, 4, 2, 2, 1000))
    assert abs(variables["params"]["scale"].mean() - 1) < 4 * 0.02 / np.sqrt(1000)
    assert abs(variables["params"]["scale"].std() - 0.02) < 4 * 0.02 / np.sqrt(2000)
    np.testing.assert_array_equal(variables["params"]["bias"], np.zeros(1000))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(1000))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(1000))


@pytest.mark.parametrize("scale, shift", [(3.0, 0.0), (0.5, -2.0), (100.0, 1000.0)])
def test_batch_norm_does_not_see_the_scale_and_shift_of_its_input(x64, scale, shift):
    x = draw(0, 8, 2, 2, 3)
    module = layers.BatchNorm(jnp.float64, jnp.float64, epsilon=0.0)
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x)

    @jax.jit
    def output(x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    np.testing.assert_allclose(output(scale * x + shift), output(x), rtol=1e-9, atol=1e-10)


def test_batch_norm_survives_a_large_mean():
    """On CPUs, and elsewhere once the running mean has come near it.

    E[x^2] - E[x]^2 in one pass would lose all of a variance of 1 beside a mean of 10,000 in float32.
    """
    x = 1e4 + draw(0, 64, 4, 4, 2)
    module = layers.BatchNorm(momentum=1.0)
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x)
    output, new = module.apply(variables, x, train=True, mutable=["batch_stats"])
    # Near 10,000 float32 knows multiples of 1/1024: the mean is off by a few of them, and the variance by their square.
    expected = np.var(np.asarray(x, np.float64), (0, 1, 2), ddof=1)
    np.testing.assert_allclose(new["batch_stats"]["var"], expected, rtol=1e-3)
    np.testing.assert_allclose(output.mean((0, 1, 2)), np.zeros(2), atol=1e-2)


def test_bfloat16_has_float32_statistics():
    """Added up in bfloat16, 8192 values of about 100 would stop growing at 512 times the first."""
    x = (100 + draw(0, 32, 16, 16, 2)).astype(jnp.bfloat16)
    module = layers.BatchNorm(jnp.bfloat16, momentum=1.0)
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x)
    assert jax.tree.all(jax.tree.map(lambda a: a.dtype == jnp.float32, variables))
    output, new = jax.jit(lambda x: module.apply(variables, x, train=True, mutable=["batch_stats"]))(x)
    exact = np.asarray(x, np.float64)
    assert output.dtype == jnp.bfloat16
    assert new["batch_stats"]["mean"].dtype == new["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(new["batch_stats"]["mean"], exact.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], exact.var((0, 1, 2), ddof=1), rtol=1e-5)
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    expected = expected * np.asarray(variables["params"]["scale"])
    np.testing.assert_allclose(np.asarray(output, np.float64), expected, rtol=2**-8, atol=1e-4)  # rounded once, at last


@pytest.mark.parametrize("slope", [1.0, 0.2])
def test_batch_norm_of_interleaved_batches_is_that_of_each_in_turn(x64, platform, slope):
    first, second, weight = draw(0, 3, 2, 2, 5), 2 * draw(1, 3, 2, 2, 5) + 1, draw(2, 3, 2, 2, 5)
    module = layers.BatchNorm(jnp.float64, jnp.float64, slope=slope)
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), first)
    params, stats = variables["params"], variables["batch_stats"]
    a, stats_a, (params_a, x_a) = batch_norm_step(module)(params, stats, first, weight)
    b, stats_b, (params_b, x_b) = batch_norm_step(module)(params, stats_a, second, 3 * weight)

    def together(a, b):
        return jnp.stack([a, b], 1).reshape(-1, *a.shape[1:])

    both = batch_norm_step(module.clone(batches=2))
    output, new, (by_params, by_x) = both(params, stats, together(first, second), together(weight, 3 * weight))
    assert_close((output, by_x), (together(a, b), together(x_a, x_b)), 1e-12)
    assert_close((new, by_params), (stats_b, jax.tree.map(jnp.add, params_a, params_b)), 1e-12)


def test_second_derivatives_of_the_lean_batch_norm(x64):
    """As of the plain one, which JAX derives: by x, scale and bias, of statistics too."""
    x, near = 2 * draw(0, 3, 2, 2, 2, 4) + 1, draw(1, 4)
    scale, bias, weight = draw(2, 4), draw(3, 4), draw(4, *x.shape)

    def second(norm, near):
        def squared(x, scale, bias):
            def loss(x, scale, bias):
                y, mean, var = norm(x, scale, bias, near, None, 1e-5, 0.2)
                return jnp.sum(weight * jnp.tanh(y)) + jnp.sum(jnp.sin(mean) * var)

            return sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1, 2))(x, scale, bias))

        return jax.jit(jax.grad(squared, (0, 1, 2)))(x, scale, bias)

    assert_close(second(norm.lean_batch_norm, near), second(norm.batch_norm, None), 1e-11)


def test_batch_norm_of_the_global_batch(x64, platform):
    """pmap with an axis, jit over a sharded batch, and one device: one result, also in the gradients."""
    module, parallel = layers.BatchNorm(jnp.float64, jnp.float64), layers.BatchNorm(jnp.float64, jnp.float64, "batch")
    x, weight = 2 * draw(0, 2 * DEVICES, 2, 2, 3) + 1, draw(1, 2 * DEVICES, 2, 2, 3)
    variables = jax.jit(functools.partial(module.init, train=True))(jax.random.key(0), x)
    step = batch_norm_step(module)
    params, stats = variables["params"], variables["batch_stats"]
    expected = step(params, stats, x, weight)

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("batch",))
    sharded = [jax.device_put(a, NamedSharding(mesh, PartitionSpec("batch"))) for a in (x, weight)]
    assert_close(step(params, stats, *sharded), expected, 1e-12)

    shards = [a.reshape(DEVICES, 2, *a.shape[1:]) for a in (x, weight)]
    mapped = jax.pmap(batch_norm_step(parallel), axis_name="batch", in_axes=(None, None, 0, 0))
    outputs, new, (by_params, by_x) = mapped(params, stats, *shards)
    assert_close((outputs.reshape(x.shape), by_x.reshape(x.shape)), (expected[0], expected[2][1]), 1e-12)
    assert_close(jax.tree.map(lambda a: a.sum(0), by_params), expected[2][0], 1e-12)  # each device has its part
    for device in range(DEVICES):
        assert_close(jax.tree.map(lambda a, i=device: a[i], new), expected[1], 1e-12)


# ---------------------------------------------------------------------------------------------------------------------
# One program for one device and for many


def test_axis_size_and_pmean():
    assert layers.axis_size(None) == 1
    tree = {"a": jnp.arange(DEVICES, dtype=jnp.float32)}
    assert layers.pmean(tree, None) is tree
    sizes, mean = jax.pmap(lambda t: (layers.axis_size("batch"), layers.pmean(t, "batch")), axis_name="batch")(tree)
    np.testing.assert_array_equal(sizes, np.full(DEVICES, DEVICES))
    np.testing.assert_array_equal(mean["a"], np.full(DEVICES, 3.5))


def test_global_draws_are_the_same_on_any_number_of_devices():
    key = jax.random.key(3)

    def draws(images, axis_name=None):
        def uniform(shape):
            return jax.random.uniform(key, shape)

        return (
            layers.global_normal(key, (images, 5), axis_name),
            layers.global_draw(uniform, (images, 2, 1), axis_name),
        )

    one = draws(16)
    np.testing.assert_array_equal(one[0], jax.random.normal(key, (16, 5)))
    for devices in (1, DEVICES):
        images = 16 // devices
        mapped = jax.pmap(lambda _, n=images: draws(n, "batch"), axis_name="batch", devices=jax.devices()[:devices])
        for a, b in zip(one, mapped(jnp.arange(devices)), strict=True):
            np.testing.assert_array_equal(a, b.reshape(a.shape))


def test_the_global_batch_and_a_devices_part_of_it():
    batch = {"image": jnp.arange(DEVICES * 6.0).reshape(DEVICES, 2, 3), "label": jnp.arange(2 * DEVICES).reshape(-1, 2)}
    assert layers.global_batch(batch, None) is batch and layers.local_part(batch, None) is batch

    def there_and_back(parts):
        everything = layers.global_batch(parts, "batch")
        return everything, layers.local_part(everything, "batch")

    everything, back = jax.pmap(there_and_back, axis_name="batch")(batch)
    for name, parts in batch.items():
        for of_device in everything[name]:  # on every device in the devices' order
            np.testing.assert_array_equal(of_device, parts.reshape(-1, *parts.shape[2:]))
        np.testing.assert_array_equal(back[name], parts)


def test_a_part_of_what_the_devices_do_not_divide():
    rows = jnp.zeros((DEVICES, DEVICES + 1, 3))
    with pytest.raises(ValueError, match=r"9 rows cannot be divided among 8 devices, got shape \(9, 3\)"):
        jax.pmap(lambda x: layers.local_part(x, "batch"), axis_name="batch")(rows)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_global_normal_has_the_dtype_that_is_asked_for(dtype):
    key = jax.random.key(3)
    noise = layers.global_normal(key, (16, 5), None, dtype)
    assert noise.dtype == dtype
    np.testing.assert_array_equal(noise, jax.random.normal(key, (16, 5), dtype))


# ---------------------------------------------------------------------------------------------------------------------
# Averaging weights


@pytest.mark.parametrize("batch_size, steps", [(1000, 1), (250, 4), (10, 100)])
def test_ema_has_forgotten_half_after_its_half_life(batch_size, steps):
    average, params = {"w": jnp.array([1.0, -3.0])}, {"w": jnp.array([0.0, 5.0])}
    for _ in range(steps):
        average = layers.ema(average, params, 1000.0, batch_size)
    # 100 products of numbers rounded to float32, each off by 6e-8 at most.
    np.testing.assert_allclose(average["w"], [0.5, 1.0], rtol=1e-5)


def test_ema_of_two_batches_is_that_of_one_twice_as_large(x64):
    average, params = jnp.array([1.0, 2.0]), jnp.array([-1.0, 7.0])
    twice = layers.ema(layers.ema(average, params, 777.0, 32), params, 777.0, 32)
    np.testing.assert_allclose(layers.ema(average, params, 777.0, 64), twice, rtol=1e-12)
    np.testing.assert_allclose(twice, 0.5 ** (64 / 777) * average + (1 - 0.5 ** (64 / 777)) * params, rtol=1e-12)


def test_ema_without_half_life_follows_at_once():
    params = {"w": jnp.array([0.1, 5.0])}
    np.testing.assert_array_equal(layers.ema({"w": jnp.array([1e9, -3.0])}, params, 0.0, 64)["w"], params["w"])


def test_weights_in_parts_are_gathered_where_that_is_asked_for():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("batch",))
    part, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("batch",), ()))
    weights = {"kernel": jax.device_put(jnp.arange(16.0), part)}
    assert layers.gathered(weights) is weights
    with layers.gathering(whole):
        found = jax.jit(layers.gathered)(weights)
    assert found["kernel"].sharding.is_fully_replicated and not weights["kernel"].sharding.is_fully_replicated
    np.testing.assert_array_equal(found["kernel"], weights["kernel"])
