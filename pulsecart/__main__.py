"""`python -m pulsecart` is `pulsecart`."""

from pulsecart.cli import main

main(prog_name="pulsecart")
