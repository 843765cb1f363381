"""`python -m wmlc`, as torchrun starts it."""

from __future__ import annotations

from wmlc.cli import main

if __name__ == "__main__":
    main(prog_name="wmlc")
