"""`python -m samovar`, which is what torchrun starts."""

from samovar.cli import main

main()
