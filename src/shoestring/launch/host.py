"""The host of a run whose workers come and go: its folder, its token, its lighthouse, and the listener before it."""

import contextlib
import importlib.util
import ipaddress
import re
from pathlib import Path
from types import TracebackType
from typing import Self

from shoestring import atomic
from shoestring.config import tree
from shoestring.data.dataset import Dataset
from shoestring.errors import ShoestringError, UsageError
from shoestring.json_files import read_file
from shoestring.launch.fingerprint import digest, without_places
from shoestring.sync.elastic.lighthouse import Lighthouse
from shoestring.sync.elastic.run_status import RunStatus
from shoestring.sync.rendezvous.admission import RunFingerprint
from shoestring.sync.rendezvous.listener import RunListener
from shoestring.sync.transport.frame import TOKEN, new_token
from shoestring.train.config import RunConfig
from shoestring.train.run_folder import RunFolder

TOKEN_TEXT = re.compile(rb"[A-Za-z0-9_-]{22,}")
"""What `new_token` makes, and enough of it."""

LOOPBACK = ("127.0.0.1", 0)

OWN = ("execution", "memory", "elastic")
"""What may differ between workers: how each computes, and when it gives others up."""


def require_torchft() -> None:
    """Raises: UsageError where it is not installed."""
    if importlib.util.find_spec("torchft") is None:
        raise UsageError("workers that come and go need torchft: pip install shoestring[elastic]")


def run_fingerprint(config: RunConfig, dataset: Dataset) -> RunFingerprint:
    """What all workers of a run must have alike: a resolved configuration save for what is each one's own, and the data."""
    recipe = {key: value for key, value in without_places(tree(config)).items() if key not in OWN}
    shape = recipe.pop("model")
    return RunFingerprint(workers=config.workers, recipe=digest(recipe), model=digest(shape), data=dataset.fingerprint)


def address(text: str) -> tuple[str, int]:
    """'HOST:PORT' taken apart. Raises: UsageError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"'{text}' is not HOST:PORT")
    return host.removeprefix("[").removesuffix("]"), int(port)


def listening(text: str | None) -> tuple[str, int]:
    """Where the run's listener is to be: on the loopback, port 0 for any that is free, unless an address is given.

    Raises: UsageError for none, or one that stands for all interfaces: the workers of this machine connect to it too, and
    those elsewhere know them by the address that leads there.
    """
    if text is None:
        return LOOPBACK
    host, port = address(text)
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:
            raise UsageError(f"--listen {text}: give the address by which other machines reach this one")
    return host, port


def token_of(folder: Path) -> str:
    """The token of a run, which only the user can read: a new one where there is none yet, or where a kill or a full disk has
    left the file empty.

    Raises: ShoestringError where the file holds anything but a token, or cannot be written.
    """
    path = folder / "token"
    kept = (read_file(path) or b"").strip()
    if kept:
        if not TOKEN_TEXT.fullmatch(kept):
            raise ShoestringError(f"{path} holds no token of a run: delete it, and the run has a new one")
        return kept.decode()
    token = new_token()
    try:
        atomic.write_bytes(path, f"{token}\n".encode(), mode=0o600)
    except OSError as error:
        raise ShoestringError(f"{path} cannot be written: {error.strerror}") from None
    return token


class Host:
    """The lighthouse, store and listener of a run; a context manager.

    config, dataset: of the run: workers must have the same.
    folder: of the run; its token is kept there.
    listen: (host, port) of the listener; port 0: any that is free.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, folder: RunFolder, listen: tuple[str, int]) -> None:
        self.config, self.folder = config, folder
        self.token = token_of(folder.path)
        self.lighthouse = Lighthouse(join_timeout=config.elastic.stragglers, heartbeat_timeout=config.elastic.silence)
        try:
            self.listener = RunListener(
                listen,
                token=self.token,
                fingerprint=run_fingerprint(config, dataset),
                services=self.lighthouse.services,
            )
        except BaseException:
            self.lighthouse.close()
            raise
        self.run_status = RunStatus(self.lighthouse.store_address)

    @property
    def address(self) -> str:
        """Where workers connect: 'HOST:PORT'."""
        host, port = self.listener.address
        return f"{host}:{port}"

    @property
    def directions(self) -> list[str]:
        """Lines for people: how others join."""
        recipe, token = self.folder.path / "config.toml", self.folder.path / "token"
        lines = [f"workers may join at {self.address}; the run's token is in {token}"]
        if ipaddress.ip_address(self.listener.address[0]).is_loopback:
            return [*lines, "from this machine alone; for other machines: --listen HOST:PORT"]
        return [*lines, f"from elsewhere: {TOKEN}=... shoestring worker --lighthouse {self.address} {recipe}"]

    def close(self) -> None:
        self.listener.close()
        self.lighthouse.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
