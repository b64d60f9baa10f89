"""Several replicas of a Shoestring server under Ray Serve: `python recipes/ray_serve.py PLACE --replicas 2`.

Each replica is the whole application of `shoestring serve`, with an engine of its own: OpenAI's paths, streams, budgets, /health.
Ray Serve's proxy listens at 127.0.0.1 and spreads requests over them. The header `shoestring-replica` says which one answered.
"""

import argparse
import os
import platform
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


def replica(place: str, name: str) -> ASGIApp:
    """One replica's application. place: of the model, as `shoestring generate` takes it. name: that clients call it by."""
    from shoestring.base import open_model
    from shoestring.base.writer import Writer
    from shoestring.serve.app import Service, make_app
    from shoestring.serve.metrics import Metrics
    from shoestring.serve.served_model import ServedModel
    from shoestring.serve.settings import Settings

    settings, metrics = Settings(hosts=LOOPBACK), Metrics()
    app = make_app(Service([ServedModel(name, Writer.of(open_model(place)), settings, metrics)], settings, metrics))
    own = f"{platform.node()}:{os.getpid()}".encode()

    async def named(scope: Scope, receive: Receive, send: Send) -> None:
        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (b"shoestring-replica", own)]}
            await send(message)

        await app(scope, receive, told)

    return named


def application(place: str, name: str, replicas: int, threads: int = 1) -> Any:
    """What `ray.serve.run` takes. replicas: how many. threads: cores of each."""
    from ray import serve

    def made() -> ASGIApp:  # in the replica's process, which opens the model itself
        import torch

        torch.set_num_threads(threads)
        return replica(place, name)

    options = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": threads}, "name": name}
    return serve.deployment(**options)(serve.ingress(made)()).bind()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place")
    parser.add_argument("--name", help="that clients call the model by (default: the place)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="cores of each replica (default 1)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--address", default="local", help="of a Ray cluster; local starts one here (default)")
    found = parser.parse_args()
    import ray
    from ray import serve

    room = {"num_cpus": found.replicas * found.threads + 1} if found.address == "local" else {}
    ray.init(found.address, include_dashboard=False, **room)
    serve.start(http_options={"host": "127.0.0.1", "port": found.port})
    serve.run(application(found.place, found.name or found.place, found.replicas, found.threads))
    print(f"http://127.0.0.1:{found.port} answers as {found.name or found.place}", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
