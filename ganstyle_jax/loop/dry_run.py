"""`--dry-run`: what a run would be and what a step of it takes, without a step."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ganstyle_jax.loop.feed import Feed


def report(description: dict, abstract: Any, constants: Any, advance: Callable, feed: Feed) -> str:
    """Resolved settings, parameters by network, and memory and FLOPs of the compiled step."""
    stored, chunk = feed.abstract()
    scalar = jax.ShapeDtypeStruct((), np.int32)
    compiled = advance.lower(abstract, constants, stored, chunk, scalar, scalar).compile()
    lines = [json.dumps({k: description[k] for k in ("method", "config", "data", "loop", "devices")}, indent=1)]
    counts: dict[str, int] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract):
        names = [str(getattr(key, "name", getattr(key, "key", ""))) for key in path]
        if "params" in names:
            counts[names[0]] = counts.get(names[0], 0) + leaf.size
    lines += [f"parameters of {name}: {count:,}" for name, count in counts.items()]
    memory = compiled.memory_analysis()
    if memory is not None:
        arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        total = arguments + temporary + memory.output_size_in_bytes - memory.alias_size_in_bytes
        lines.append(
            f"memory of each device: {total / 2**20:,.1f} MiB "
            f"({arguments / 2**20:,.1f} for state and data, {temporary / 2**20:,.1f} temporary)"
        )
    cost = compiled.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    if cost and "flops" in cost:
        # XLA counts the loop's body once, which is one training step.
        lines.append(f"FLOPs of a step on each device: {cost['flops'] / 1e9:,.4g} G")
    return "\n".join(lines)
