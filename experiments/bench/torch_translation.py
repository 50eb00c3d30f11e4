"""CycleGAN's step as PyTorch does it fastest, of the networks and losses of tests/torch_cyclegan.py.

What train_translation_torch.py trains with and cyclegan.py times. Beside the reference's step, which it equals: what a
generator makes of both kinds of pictures is one batch, as are the pictures that a discriminator sees, unless `joined`
is False; discriminators have no gradients of their weights while the generators learn; Adam is fused. At 64 pixels on
one CPU core that saves about a tenth.

PyTorch alone: neither JAX nor the package is imported, which the interpreter of a timing may lack.
"""

import sys
from typing import Any

import machine
import torch
import torch.nn.functional as F

sys.path.insert(1, str(machine.ROOT / "tests"))
import torch_cyclegan as reference

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
WAYS = ("a2b", "b2a")
JUDGES = ("disc_a", "disc_b")
CYCLE, IDENTITY = 10.0, 0.5  # weights of the paper
LOSS = "least_squares"


def networks(
    width: int, blocks: int, discriminator_width: int, discriminator_halvings: int, upsampling: str = "transposed"
) -> dict[str, Any]:
    """{"a2b", "b2a", "disc_a", "disc_b"}, with weights of N(0, 0.02^2) and biases of 0."""
    nets: dict[str, Any] = {way: reference.resnet(width, blocks, upsampling) for way in WAYS}
    nets |= {name: reference.discriminator(discriminator_width, discriminator_halvings) for name in JUDGES}
    for net in nets.values():
        for _, conv, _ in reference.layers_of(net):
            torch.nn.init.normal_(conv.weight, 0.0, 0.02)
            torch.nn.init.zeros_(conv.bias)
    return nets


def optimizers(nets: dict[str, Any], rate: float) -> dict[str, torch.optim.Optimizer]:
    """{"gen", "disc_a", "disc_b"}: both generators have one."""

    def adam(*nets: Any) -> torch.optim.Optimizer:
        parameters = [p for net in nets for p in net.parameters()]
        return torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), fused=True)

    return {"gen": adam(*(nets[way] for way in WAYS))} | {name: adam(nets[name]) for name in JUDGES}


def step(
    nets: dict[str, Any],
    optimizers: dict[str, Any],
    pools: dict[str, Any],
    real: dict[str, Any],
    draws: dict[str, Any],
    joined: bool = True,
    identity: float = IDENTITY,
    cycle: float = CYCLE,
) -> dict[str, torch.Tensor]:
    """One update of all networks; its losses. real: {"a", "b": (n, 3, h, w)}; draws: of `reference.ImagePool.query`.

    "cycle" and "identity" are means of both sides, as in the metrics of our training; without an identity weight there
    is none.
    """

    def both(net: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        return net(torch.cat([x, y])).chunk(2) if joined else (net(x), net(y))

    for name in JUDGES:
        nets[name].requires_grad_(False)
    fake, same, back = {}, {}, {}
    for x, y in ("ab", "ba"):
        net = nets[f"{x}2{y}"]
        if identity:
            fake[y], same[y] = both(net, real[x], real[y])
        else:
            fake[y] = net(real[x])
    for x, y in ("ab", "ba"):
        back[x] = nets[f"{y}2{x}"](fake[y])
    losses: dict[str, Any] = {
        "adversarial": sum(reference.gan_loss(nets[f"disc_{x}"](fake[x]), True, LOSS) for x in "ab"),
        "cycle": sum(F.l1_loss(back[x], real[x]) for x in "ab") / 2,
    }
    losses["gen"] = losses["adversarial"] + 2 * cycle * losses["cycle"]
    if identity:
        losses["identity"] = sum(F.l1_loss(same[x], real[x]) for x in "ab") / 2
        losses["gen"] = losses["gen"] + 2 * cycle * identity * losses["identity"]
    _descend(optimizers["gen"], losses["gen"])
    for x in "ab":
        name = f"disc_{x}"
        nets[name].requires_grad_(True)
        shown = pools[x].query(fake[x], *draws[x])
        of_real, of_shown = both(nets[name], real[x], shown)
        losses[name] = (reference.gan_loss(of_real, True, LOSS) + reference.gan_loss(of_shown, False, LOSS)) / 2
        _descend(optimizers[name], losses[name])
    return {name: loss.detach() for name, loss in losses.items()}


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def state_dict(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Of a generator, in the names of the common implementation: "model.1.weight", ..."""
    return {f"model.{name}": value.detach().contiguous() for name, value in net.state_dict().items()}
