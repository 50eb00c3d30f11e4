"""The kinds of network that weights are of, and how a file or the catalogue says which one."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ganstyle_jax.features import vgg
from ganstyle_jax.features.alexnet import AlexNet
from ganstyle_jax.features.inception import InceptionV3
from ganstyle_jax.features.vgg import VGG, Params, SqueezeNet


@dataclasses.dataclass(frozen=True)
class LpipsHeads:
    """What LPIPS weighs the channels of another network's taps by: no network, but fetched, read and kept like one.

    Weights: {"lin0": {"weight": (c,)}, ...}, one of each tap, at least 0. See metrics/lpips.py.
    """

    widths: tuple[int, ...]  # channels of each tap

    def init(self, key: jax.Array) -> Params:
        """The mean over channels; needs no key."""
        return {f"lin{i}": {"weight": jnp.full(c, 1 / c)} for i, c in enumerate(self.widths)}


Network = vgg.Network | InceptionV3 | AlexNet | LpipsHeads
KINDS = {kind.__name__: kind for kind in (VGG, SqueezeNet, InceptionV3, AlexNet, LpipsHeads)}
HOW = ("dtype", "remat", "platform")  # how a network is computed, not what it is
WIDEST = 4096  # channels


def architecture_of(network: Network) -> dict[str, Any]:
    """{"network": "VGG", "channels": ..., "padding": ...}: what a network is, without how it is computed."""
    return {"network": type(network).__name__, **{name: getattr(network, name) for name in _settings(type(network))}}


def from_architecture(architecture: Mapping[str, Any]) -> Network:
    """The inverse of `architecture_of`, of JSON or TOML from anywhere. ValueError naming what is not accepted.

    Without a kind it is a VGG, as in the files of the first version.
    """
    values = dict(architecture)
    name = values.pop("network", "VGG")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"a {str(name)[:60]} is not among {', '.join(KINDS)}")
    accepted = _settings(kind)
    if unknown := [setting for setting in values if setting not in accepted]:
        raise ValueError(f"a {name} has no {unknown[0][:60]}; it has {', '.join(accepted) or 'no settings'}")
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if missing := [setting for setting in required if setting not in values]:
        raise ValueError(f"a {name} needs {missing[0]}, which its architecture lacks")
    network = kind(**{setting: _value(setting, value, accepted[setting]) for setting, value in values.items()})
    check_extent(network)
    return network


def check_extent(network: Network) -> None:
    """ValueError for more layers than their names can tell apart, before anything is made for them."""
    if isinstance(network, VGG):
        blocks = [len(block) for block in network.channels]
        if not 1 <= len(blocks) <= 9 or not all(1 <= count <= 16 for count in blocks):
            raise ValueError(
                f"it has {len(blocks)} blocks of up to {max(blocks, default=0)} convolutions; 1 to 9 blocks of 1 to 16 "
                "are accepted"
            )
    elif isinstance(network, LpipsHeads) and not 1 <= len(network.widths) <= 64:
        raise ValueError(f"it has {len(network.widths)} heads; 1 to 64 are accepted")


def _settings(kind: type) -> dict[str, Any]:
    """What is said of this kind of network, with the type of each."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.name not in HOW}


def _value(name: str, value: Any, hint: Any) -> Any:
    """The value as a field of this type has it: of lists, tuples. ValueError for any other."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list | tuple) and len(value) <= 64:
        return tuple(_value(name, item, options[0]) for item in value)
    if origin is Literal and isinstance(value, str) and value in options:
        return value
    if origin in (typing.Union, types.UnionType):
        kinds = [option for option in options if option is not type(None)]
        return None if value is None else _value(name, value, kinds[0])
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and type(value) is int and (name != "heads") <= value <= WIDEST:  # 0: no head
        return value
    if origin is Literal:
        accepted = ", ".join(options)
    else:
        accepted = {bool: "true and false", int: f"whole numbers from {int(name != 'heads')} to {WIDEST}"}.get(
            hint, "lists of such"
        )
    raise ValueError(f"its {name} is {str(value)[:60]!r}, where {accepted} are accepted")
