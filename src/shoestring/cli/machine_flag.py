"""`--on`, of the commands whose runs can be made on other machines."""

import argparse

from shoestring.jobs.runner import LOCAL


def add_machine_flag(parser: argparse.ArgumentParser) -> None:
    """Tell of it in a command's help. It is None where runs are made by this machine alone."""
    parser.add_argument(
        "--on",
        type=lambda word: None if word == LOCAL else word,
        metavar="WHERE",
        help="where runs are made: local (the default), ray (processes that Ray starts here), ray:auto or ray:HOST:PORT (a "
        "cluster of Ray that runs already)",
    )
