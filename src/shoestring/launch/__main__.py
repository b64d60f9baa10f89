"""`python -m shoestring.launch JSON`: one worker's process, as `Crew` and `Fleet` start it. Its lines go to standard output.

The JSON is an object: {"begin": ..., "critical_batch": ..., "out": ...} or {"resume": ..., "step": ..., "moved": ...}, both with
"heartbeat_timeout"; or {"join": {...}}, the options of `launch.participant.join` with the recipe's path under "recipe".
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from shoestring.budget import busy_waiting
from shoestring.errors import ShoestringError, printable
from shoestring.log_lines import log_to


def _work(asked: dict[str, Any]) -> int:
    # torch reads it when it is loaded: gloo tells of every connection that ends, which is nothing unusual among these workers
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from shoestring.config import build, read_toml
    from shoestring.launch.crew import processes
    from shoestring.launch.launch import Launch
    from shoestring.launch.participant import join
    from shoestring.launch.request import TrainingRequest
    from shoestring.train.config import RunConfig

    if "join" in asked:
        options = asked["join"]
        config = build(RunConfig, read_toml(Path(options.pop("recipe"))))
        signal = join(config, **{**options, "out": Path(options["out"])}).outcome.signal
        return 0 if signal is None else 128 + signal
    with Launch(heartbeat_timeout=asked["heartbeat_timeout"]) as launch:
        if "resume" in asked:
            ended = launch.resume(Path(asked["resume"]), asked["step"], asked["moved"])
        else:
            request = TrainingRequest.of(asked["begin"], asked["critical_batch"], processes=processes())
            ended = launch.begin(request, Path(asked["out"]))
    return 0 if ended.outcome.signal is None else 128 + ended.outcome.signal


def main() -> int:
    log_to(sys.stdout)
    try:
        busy_waiting.begin()
        return _work(json.loads(sys.argv[1]))
    except ShoestringError as error:
        print(f"shoestring: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(printable(f"shoestring: {(error.strerror or str(error)).lower()}{where}"), file=sys.stderr)
        return 1
    finally:
        busy_waiting.end()


if __name__ == "__main__":
    sys.exit(main())
