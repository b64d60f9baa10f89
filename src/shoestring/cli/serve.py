"""`shoestring serve`: models that answer over HTTP, as OpenAI's clients ask."""

import argparse
import importlib.util
import ipaddress
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from shoestring.base import Opened, open_model
from shoestring.base.adapters import named_folders
from shoestring.base.drafting import check_drafter, check_made
from shoestring.base.writer import Writer
from shoestring.budget.units import parse_memory, show
from shoestring.cli.arguments import Arguments, dtype_named, seconds_above_zero, whole
from shoestring.cli.cache_flags import add_cache_flags, take_cache
from shoestring.cli.expert_flags import add_expert_flags, take_experts
from shoestring.decode.expert_store import put_experts_away
from shoestring.errors import UsageError, did_you_mean
from shoestring.train.adapters_beside import several_adapters
from shoestring.tune.merging import merge_adapters
from shoestring.tune.several import Several

NEEDED = {"starlette": "starlette", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
"""Packages of the extra `serve` by the names that they are imported by."""

MOST = 1 << 30


def run(words: Sequence[str]) -> int:
    cache, words = take_cache(words)
    kept, words = take_experts(words)
    found = _arguments().read(words, mixed=True)
    missing = [name for package, name in NEEDED.items() if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(f"a server needs {', '.join(missing)}: pip install 'shoestring[serve]'")
    # after that look: none of this can be imported without them
    from shoestring.serve.app import Service
    from shoestring.serve.metrics import Metrics
    from shoestring.serve.served_model import ServedModel, all_called, names_of
    from shoestring.serve.server import listen, serve
    from shoestring.serve.settings import Keys, Settings

    check_drafter(found.drafter, found.draft)
    check_made("mixture", found.mixture, found.datastore, "--datastore")
    check_made("depth", found.depth, found.routers, "--routers")
    alone = _loopback(found.host)
    settings = Settings(
        rows=found.rows,
        tokens=found.tokens,
        room=found.room,
        cache=cache,
        drafter=found.drafter,
        draft=found.draft,
        depth=found.depth,
        routers=found.routers,
        mixture=found.mixture,
        datastore=found.datastore,
        answer=found.answer,
        queue=found.queue,
        body=found.body,
        keys=Keys.read(found.api_keys),
        hosts=frozenset({"localhost", "127.0.0.1", "[::1]", _written(found.host)}) if alone else None,
    )
    named = names_of(found.places)
    adapters = _by_model(found.adapter, [name for name, _ in named])
    listening = listen(found.host, found.port)
    logging.basicConfig(stream=sys.stderr, format="shoestring: %(message)s", level=logging.WARNING)
    metrics, models = Metrics(), list[ServedModel]()
    for name, place in named:
        writer = Writer.of(open_model(place, found.dtype))
        if not adapters[name]:
            merge_adapters(writer.opened.model)
        put_experts_away(writer.opened.model, kept)
        for note in writer.opened.about.notes:
            print(f"({name}: {note})", file=sys.stderr)
        models.append(ServedModel(name, writer, settings, metrics, _beside(writer.opened, adapters[name])))
    service = Service(models, settings, metrics)

    def ready() -> None:
        address = f"http://{_written(found.host)}:{listening.getsockname()[1]}"
        for model in models:
            fixed, each = model.rates.line
            print(
                f"({model.name}: room for {show('tokens', model.capacity)}; a pass takes {fixed * 1e3:.3g} ms and "
                f"{each * 1e3:.3g} ms a token)",
                file=sys.stderr,
            )
        if not alone and not settings.keys:
            print(
                "(whoever reaches this address can use it: --api-keys FILE lets in only who has a key)", file=sys.stderr
            )
        names = [called.name for called in all_called(models)]
        print(f"{address} answers as {', '.join(names)}", flush=True)

    with listening:
        serve(service, listening, found.drain, ready)
    return 0


def _arguments() -> Arguments:
    parser = Arguments(
        "serve",
        "Let models answer over HTTP, as OpenAI's clients ask: /v1/chat/completions, /v1/completions, /v1/models; /health,\n"
        "/metrics, and a page to chat on at /. On SIGTERM it answers what it has, and ends.",
    )
    parser.add_argument(
        "places", nargs="+", metavar="PLACE", help="as `shoestring generate` takes them; NAME=PLACE names the model"
    )
    parser.add_argument(
        "--adapter", action="append", default=[], metavar="NAME=FOLDER",
        help="a run of `shoestring tune`, or an adapter in peft's files, that requests call MODEL:NAME; rows of different ones "
        "share a pass; may be repeated; with several models MODEL:NAME=FOLDER",
    )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--api-keys",
        type=Path,
        metavar="FILE",
        help="keys, one a line; or the variable SHOESTRING_API_KEYS, with commas",
    )
    parser.add_argument("--dtype", type=dtype_named, metavar="TYPE", help="of weights: float32, bfloat16 or float16")
    parser.add_argument("--rows", type=whole(1, 4096), default=32, help="answers worked on at a time (default 32)")
    parser.add_argument("--tokens", type=whole(1, 1 << 20), default=512, help="tokens of a pass (default 512)")
    parser.add_argument("--room", type=whole(1, MOST), metavar="TOKENS", help="tokens kept of all texts")
    parser.add_argument("--drafter", metavar="NAME", help="propose tokens that are checked together, as 'ngram'")
    parser.add_argument("--draft", metavar="PLACE", help="what the drafter needs: a smaller model for draft_model, say")
    parser.add_argument("--depth", metavar="NAME", help="leave out parts of layers, as `generate` does")
    parser.add_argument("--routers", metavar="FILE", help="for --depth dr_llm: what `shoestring prepare` made")
    parser.add_argument("--mixture", metavar="NAME", help="mix in a datastore: 'knn_lm' or 'retomaton'")
    parser.add_argument("--datastore", metavar="FILE", help="for --mixture: what `shoestring prepare` made")
    parser.add_argument(
        "--answer", type=whole(1, MOST), default=512, metavar="TOKENS",
        help="of an answer to a chat, where the request does not say (default 512)",
    )  # fmt: skip
    parser.add_argument("--queue", type=whole(0, 1 << 20), default=256, help="answers that may wait (default 256)")
    parser.add_argument("--body", type=_size, default=4 << 20, metavar="SIZE", help="of a request (default 4MiB)")
    parser.add_argument(
        "--drain", type=seconds_above_zero, default=60.0, metavar="SECONDS",
        help="for what is being answered at SIGTERM (default 60)",
    )  # fmt: skip
    add_cache_flags(parser)
    add_expert_flags(parser)
    return parser


def _by_model(words: Sequence[str], models: Sequence[str]) -> dict[str, list[str]]:
    """NAME=FOLDER of the adapters of each model, by its name. Raises: UsageError."""
    found: dict[str, list[str]] = {model: [] for model in models}
    for word in words:
        name, equals, folder = word.partition("=")
        model, colon, own = name.rpartition(":")
        if not (equals and colon):
            model, own = models[0], name
            if len(models) > 1:
                raise UsageError(f"--adapter {word}: there are several models, so say which: {models[0]}:NAME=FOLDER")
        if model not in found:
            raise UsageError(f"--adapter {word}: there is no model '{model}': {did_you_mean(model, models)}")
        found[model].append(f"{own}={folder}" if equals else word)
    return found


def _beside(opened: Opened, words: Sequence[str]) -> Several | None:
    """The adapters of a model; None where there are none."""
    return several_adapters(opened, named_folders(words)) if words else None


def _size(text: str) -> int:
    try:
        return int(parse_memory(text))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _loopback(host: str) -> bool:
    """Whether nothing but this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _written(host: str) -> str:
    """A host as an address has it."""
    return f"[{host}]" if ":" in host else host
