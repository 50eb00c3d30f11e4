from ganstyle_jax.cli import main

main()
