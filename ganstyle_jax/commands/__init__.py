"""The commands of `ganstyle`: a file for each, with its settings and what it does.

Nothing here imports JAX before the arguments are known to be good.
"""
