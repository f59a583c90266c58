"""``python -m popi_edge`` is ``popi``."""

from popi_edge.cli import main

main()
