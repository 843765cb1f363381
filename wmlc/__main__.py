"""The command `wmlc`, and `python -m wmlc`, as torchrun starts it."""

from __future__ import annotations

import sys

STOPPED = 130  # `Stopped.exit_code` of `wmlc.errors`, which may not be imported yet


def start() -> None:
    """Run the command line; Ctrl-C while it is imported ends in one line too."""
    try:
        from wmlc.cli import main

        main(prog_name="wmlc")
    except KeyboardInterrupt:
        print("Error: stopped", file=sys.stderr)
        sys.exit(STOPPED)


if __name__ == "__main__":
    start()
