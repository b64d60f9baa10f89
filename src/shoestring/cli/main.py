"""The `shoestring` command: one file a subcommand, errors in one line."""

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from shoestring import __version__
from shoestring.budget import busy_waiting
from shoestring.errors import ShoestringError, UsageError, did_you_mean, printable

COMMANDS = {
    "plan": "what a budget buys on this machine, each choice with its reason",
    "ladder": "cheap runs of several sizes in the background, from which plans learn",
    "data": "curate a corpus: drop duplicates and poor text, each for a reason, and say what that cost",
    "train": "train a language model within a budget",
    "tune": "teach a model that exists something new, and see what it forgets",
    "stages": "several runs one after the other, each on the model of the one before",
    "worker": "take part in a run that others have started, from here",
    "experts": "train experts of parts of a corpus apart, within one budget, and use them together",
    "compare": "judge any two ways at equal cost",
    "shrink": "a smaller model of one that exists: pruned to a target, and healed within a budget",
    "quantise": "any trained model in few bits: to a width, bytes or milliseconds, within a budget",
    "evaluate": "nats a token and bits a byte of any model, with intervals; several compared on one text",
    "prepare": "make what a way to decode needs: a datastore, a head that drafts, routers, texts to align a draft with",
    "generate": "let any model write, or answer",
    "serve": "let models answer over HTTP, as OpenAI's clients ask",
    "export": "a model as a folder for transformers, or as a GGUF file",
    "report": "one page about one run, or several side by side",
    "methods": "the methods and their cards",
    "doctor": "what was found on this machine, what is slow and why",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoestring",
        description="Plan, train, compare and shrink language models within a budget.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"shoestring {__version__}")
    lines = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{lines}\n\nshoestring COMMAND --help tells more."
    parser.add_argument("command", nargs="?", metavar="COMMAND")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit status: 0 done, 1 failed, 2 asked wrongly, 128 + n stopped by signal n."""
    words = list(sys.argv[1:] if words is None else words)
    parser = _parser()
    try:
        if not words or words[0].startswith("-"):
            parser.parse_args(words)
            parser.print_help()
            return 0 if words else 2
        command, rest = words[0], words[1:]
        if command not in COMMANDS:
            raise UsageError(f"no command '{command}': {did_you_mean(command, COMMANDS)}")
        busy_waiting.begin()
        return int(importlib.import_module(f"shoestring.cli.{command}").run(rest))
    except ShoestringError as error:
        print(f"shoestring: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("shoestring: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        full = " (free some space; what was saved before stands)" if error.errno == errno.ENOSPC else ""
        print(printable(f"shoestring: {(error.strerror or str(error)).lower()}{where}{full}"), file=sys.stderr)
        return 1
    except MemoryError:
        print("shoestring: out of memory: make --train.micro_batch smaller", file=sys.stderr)
        return 1
    finally:
        busy_waiting.end()


if __name__ == "__main__":
    sys.exit(main())
