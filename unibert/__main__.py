"""``python -m unibert``, which the deepspeed launcher needs."""

from unibert.cli import main

main()
