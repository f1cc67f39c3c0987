"""`python -m fer`: the same as the command `fer`."""

from fer.cli import main

main()
