"""Which dicts of arrays a checkpoint holds, and the names in them without what wrappers have put before."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ganstyle_jax.io.files import UserError

StateDict = dict[str, np.ndarray]
WRAPPERS = ("module", "_orig_mod")  # DataParallel's and DistributedDataParallel's; torch.compile's


def find_state_dicts(tree: Mapping[Any, Any], key: str | None = None) -> dict[str, StateDict]:
    """The dicts of arrays in `tree`, whatever they are wrapped in, by where they are: {"netG": ..., "netD": ...}.

    The outermost ones are taken, so an optimizer's moments do not compete with the weights; keys of nested dicts are
    joined by "/", and the key of `tree` itself is "". key: to look for this one at every depth. Their names are those
    of `plain_names`.
    """
    level: list[tuple[str, Mapping[Any, Any]]] = [("", tree)]
    found: dict[str, Mapping[Any, Any]] = {}
    for _ in range(5):  # wrappings are shallow; the bound also ends the search in a dict that contains itself
        here = {name: item for name, item in level if _is_state_dict(item)}
        found.update({name: item for name, item in here.items() if name not in found})
        if (key is None and found) or key in found:
            break
        if sum(len(item) for _, item in level) > 100_000:  # a file of one dict, referred to many times over
            break
        level = [
            (f"{name}/{inner}".lstrip("/"), value)
            for name, item in level
            for inner, value in item.items()
            if isinstance(value, Mapping)
        ]
    return {name: plain_names(item) for name, item in found.items()}


def find_state_dict(tree: Mapping[Any, Any], key: str | None = None) -> StateDict:
    """The one dict of arrays in `tree`, see `find_state_dicts`; `key` names one where there are several.

    Raises UserError for none, and for several without a `key`.
    """
    found = find_state_dicts(tree, key)
    listed = ", ".join(repr(name) for name in sorted(found)[:20])
    if key is not None:
        if key not in found:
            raise UserError(f"the file has no state dict {key!r}; it has: {listed or 'none at all'}")
        return found[key]
    if len(found) > 1:
        raise UserError(f"the file holds several state dicts, name one of them: {listed}")
    if not found:
        raise UserError(nothing_in(tree))
    return next(iter(found.values()))


def nothing_in(tree: Mapping[Any, Any]) -> str:
    """What to say of a file without a dict of arrays."""
    keys = ", ".join(repr(inner)[:60] for inner in list(tree)[:20]) or "nothing"
    return f"no dict of tensors in the file, which holds: {keys}; save model.state_dict() with torch.save"


def plain_names(state: Mapping[str, np.ndarray]) -> StateDict:
    """The same arrays by their names without "module." and "_orig_mod.", which may be anywhere in them and repeated.

    They are left as they are where two would become one.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in state}
    if len(set(plain.values())) < len(plain):
        return dict(state)
    return {plain[name]: value for name, value in state.items()}


def _is_state_dict(item: Mapping[Any, Any]) -> bool:
    return bool(item) and all(isinstance(k, str) and isinstance(v, np.ndarray) for k, v in item.items())
