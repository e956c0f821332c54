"""`python -m penstock`, and the console script: run the command line."""

from __future__ import annotations

from penstock.cli.main import program


def main() -> None:
    """Run the command line and exit."""
    program()(prog_name="penstock")


if __name__ == "__main__":
    main()
