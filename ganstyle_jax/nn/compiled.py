"""How much the compiler is asked to do, where that is more than is gained by it, and when."""

import contextlib
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from ganstyle_jax.nn.convolutions import on_cpu


def once(function: Callable, **options: Any) -> Any:
    """`jax.jit(function, **options)` for what is computed once, such as the first weights of a network.

    On CPUs the compiler optimises it less: the random draws of DCGAN's weights take it 2 s in the place of 14 s, and
    give the same bits.
    """
    few = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=few, **options)


def soon(function: Callable, **options: Any) -> Any:
    """`jax.jit(function, **options)` for what a person waits for the first time, such as style transfer's programs.

    On CPUs without those fusions that take the compiler longest: the programs of a picture take it half the time, and
    run about as fast. Newer versions of XLA have no such choice.
    """
    plain: Any = jax.jit(function, **options)
    soon: Any = jax.jit(function, compiler_options=_SOON, **options)

    def chosen() -> Any:
        return soon if on_cpu("auto") and _has_choice() else plain

    call: Any = functools.wraps(function)(lambda *args, **kwargs: chosen()(*args, **kwargs))
    call.lower = lambda *args, **kwargs: chosen().lower(*args, **kwargs)
    call._cache_size = lambda: soon._cache_size() + plain._cache_size()
    return call


_SOON: dict[str, Any] = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _has_choice() -> bool:
    try:
        jax.jit(lambda: 0, compiler_options=_SOON)()
    except jax.errors.JaxRuntimeError:
        return False
    return True


class Ahead:
    """A jitted function that a thread compiles for arguments of known shapes, until it is called for the first time."""

    def __init__(self, jitted: Any, *shapes: Any, within: Callable[[], Any] = contextlib.nullcontext):
        """shapes: as the arguments; within: makes a context in which it is compiled, as those of JAX are a thread's."""

        def compile() -> Any:
            with within():
                return jitted.lower(*shapes).compile()

        self.jitted, self.program = jitted, _worker().submit(compile)

    def __call__(self, *arguments: Any) -> Any:
        return self.program.result()(*arguments)

    def lower(self, *arguments: Any) -> Any:
        return self.jitted.lower(*arguments)


@functools.cache
def _worker() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "compiler")
