"""A trained model as a function of pictures: on all devices, and in strips where a picture is too large."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ganstyle_jax import contract
from ganstyle_jax.io.files import UserError, first_line, gigabytes
from ganstyle_jax.loop.models import Model, draw
from ganstyle_jax.nn.devices import put

Large = Literal["auto", "whole", "strips", "thumbnail"]
SMALL = 1 << 20  # pixels, up to which nobody asks whether a picture fits
MOST = 16  # pictures at a time on a device
SHARE = 0.8  # of the memory that is free, which is to be used
COPIES = 2.5  # of a layer of full size, which the whole network holds at its worst; XLA says 2.03 on CPUs
PIXEL = 48  # bytes a pixel beside the layers: the picture, requests, the result, and what becomes of it
Advance = Callable[[float], object]  # hears of shares of the work, which add up to 1


def _transform_of(model: Model) -> Any:
    """The ImageTransform that paints; None where it is another network, or the method does not say."""
    if not model.method.has("network"):
        return None
    from ganstyle_jax.nn.image_transform import ImageTransform

    network = model.method.module.network(model.cfg)
    return network if isinstance(network, ImageTransform) else None


class Unsuited(Exception):  # noqa: N818
    """Why pictures of this size cannot be painted; completed to a sentence by their file before it."""


class Painter:
    """Paints pictures of any size, each as if it were alone.

    options: of the method's ApplySettings. title: which of the pictures that the method makes, by default that which it
    is judged by or, where the user's own do not give that, the last. large: "whole" paints in one piece, "strips" with
    the exact statistics of the whole, "thumbnail" with a small copy's; "auto" is whole or, where the memory is too
    small for that and the network is known, strips. devices: that share the work, by default all of this process.
    """

    def __init__(
        self,
        model: Model,
        options: Any = None,
        title: str | None = None,
        large: Large = "auto",
        devices: Sequence[Any] | None = None,
    ):
        method = model.method
        method.check_takes_pictures()
        self.model, self.options, self.title = model, options, title
        self.large: Large = large
        self.devices = list(devices or jax.local_devices())
        self.transform = _transform_of(model)
        if large in ("strips", "thumbnail") and self.transform is None:
            raise UserError(
                f"--large {large} is for networks that paint in the manner of fast style transfer, and {method.name} "
                "has none: leave it out"
            )
        self.judged = method.judged(model.cfg)[0] if method.has("judged") else None
        self._variables: dict[int, Any] = {}  # by how many devices have them
        self._sizes: dict[tuple[Any, ...], tuple[int, int]] = {}  # batches with programs, and their devices

    def batch_size(self, shape: Sequence[int]) -> int:
        """How many pictures (h, w, 3) are best painted together."""
        return len(self.devices) * max(1, min(MOST, SMALL // (shape[0] * shape[1])))

    def __call__(self, pictures: np.ndarray, advance: Advance = lambda share: None) -> np.ndarray:
        """(n, h, w, 3) float32 in [-1, 1] to (n, h', w', c) float32.

        Raises Unsuited for pictures that are not for this method or this memory, UserError for all else.
        """
        with self.model.precision():
            try:
                requests = self.model.method.requests_of(pictures, self.model.cfg, self.options)
                way = self.way(pictures.shape[1:], len(pictures))
                if way == "whole":
                    made = self._whole(requests)
                    advance(1.0)
                else:
                    parts = [
                        self._in_strips(way, requests, i, lambda share: advance(share / len(pictures)))
                        for i in range(len(pictures))
                    ]
                    made = np.stack(parts)
            except (TypeError, ValueError) as error:  # from the method, which not every size suits
                raise Unsuited(f"cannot be taken: {first_line(error)}") from error
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                if "RESOURCE_EXHAUSTED" not in str(error) and not isinstance(error, MemoryError):
                    raise
                advice = "--large strips takes less, --large thumbnail least" if self.transform else "make it smaller"
                raise Unsuited(f"needs more memory than there is: {advice}") from error
        if not np.isfinite(made).all():
            raise UserError(
                f"{self.model.origin}: what {self.model.title} makes is not finite (NaN or infinity), as after a "
                "training that diverged: choose another step or model"
            )
        return made

    # -----------------------------------------------------------------------------------------------------------------

    def _whole(self, requests: Any) -> np.ndarray:
        """A batch, divided among as many devices as it fills."""
        n = contract.count_of(requests)
        # Copies fill it up to equal shares, or to what there is a program for already.
        shape = tuple(x.shape[1:] for x in jax.tree.leaves(requests))
        size, together = self._sizes.get(shape, (0, 0))
        if size < n:
            together = min(n, len(self.devices))
            size = -(-n // together) * together
            self._sizes[shape] = size, together
        mesh = Mesh(np.asarray(self.devices[:together]), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
        divided = NamedSharding(mesh, PartitionSpec("batch"))

        def fill(x: Any) -> Any:
            x = np.asarray(x)
            return put(np.concatenate([x, np.repeat(x[-1:], size - n, 0)]) if size > n else x, divided)

        if together not in self._variables:
            self._variables[together] = jax.device_put(self.model.variables, NamedSharding(mesh, PartitionSpec()))
        try:
            drawn = draw(self.model.method, self._variables[together], jax.tree.map(fill, requests), self.model.cfg)
        except KeyError as error:
            raise UserError(
                f"{self.model.origin} lacks the weights {error}, as a model of another version does: export it anew "
                "from its run"
            ) from error
        title = self.title
        if title is None and isinstance(drawn, Mapping) and self.judged in drawn:
            title = self.judged
        return np.asarray(contract.column(drawn, title), np.float32)[:n]

    def _in_strips(self, way: Large, requests: Any, i: int, advance: Advance) -> np.ndarray:
        from ganstyle_jax.nn import tiled_transform

        assert self.transform is not None
        paint = tiled_transform.exact if way == "strips" else tiled_transform.by_thumbnail
        arguments = self.transform, self.model.variables["params"], requests["content"][i], requests["style"][i]
        return np.asarray(paint(*arguments, devices=self.devices, advance=advance), np.float32)

    def way(self, shape: Sequence[int], count: int = 1) -> Large:
        """How so many pictures (h, w, 3) are painted. Unsuited where they do not fit."""
        if self.large != "auto":
            return self.large
        if self.transform is None or shape[0] * shape[1] <= SMALL:
            return "whole"
        from ganstyle_jax.style import memory  # which the start need not wait for

        pixels, width = shape[0] * shape[1], self.transform.width
        whole, strips = (round(pixels * (4 * width * copies + PIXEL)) for copies in (COPIES, 1))
        if whole * -(-count // len(self.devices)) <= SHARE * memory.available(self.devices[:count]):
            return "whole"
        if strips <= SHARE * (free := memory.free_on_host()):
            return "strips"
        raise Unsuited(
            f"needs about {gigabytes(strips)} of memory in strips, and {gigabytes(free)} are free: --large thumbnail "
            "takes its statistics from a small copy, and needs next to none"
        )
