"""Adversarial networks and style transfer in JAX. `load` reads a trained run; `ganstyle --help` shows the commands."""

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "load":  # on demand, so that `ganstyle --help` need not wait for JAX
        from ganstyle_jax.runs import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
