"""A switch between network interfaces that hands every frame on a fixed time after it came: links.py's bridge with a delay.

    python delaying_switch.py SECONDS INTERFACE INTERFACE ...

For kernels without netem. In Python it passes some tens of thousands of frames a second: enough for 100 Mbit/s in all.
The far ends must compute checksums and cut packets themselves, as frames are passed on as they are. Ends with the interfaces.
"""

import array
import fcntl
import select
import socket
import struct
import sys
import time
from collections import deque

ALL_PROTOCOLS = 0x0003
BUFFER = 4 * 2**20
OFFLOADS = (0x17, 0x19, 0x1F, 0x24)  # ETHTOOL_STXCSUM, _SSG, _STSO, _SGSO
AT_ONCE = 64
"""Frames taken from one port before the others have their turn."""


def without_offload(interface: str) -> None:
    """Have the kernel cut packets and compute their checksums before they leave: a switch in user space sends them as they are."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for command in OFFLOADS:
            value = array.array("B", struct.pack("II", command, 0))
            request = struct.pack("16sP", interface.encode(), value.buffer_info()[0]).ljust(40, b"\0")
            fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL


def open_port(interface: str) -> socket.socket:
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_PROTOCOLS))
    port.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    port.bind((interface, 0))
    port.setblocking(False)
    return port


class Switch:
    """Learns behind which port an address is; sends what is for nobody known to all others."""

    def __init__(self, interfaces: list[str], delay: float) -> None:
        self.ports, self.delay = [open_port(name) for name in interfaces], delay
        self.behind: dict[bytes, socket.socket] = {}
        self.waiting: deque[tuple[float, bytes, socket.socket]] = deque()

    def take(self, port: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                frame, address = port.recvfrom(65536)
            except BlockingIOError:
                return
            if address[2] != socket.PACKET_OUTGOING:
                self.behind[frame[6:12]] = port
                self.waiting.append((time.monotonic() + self.delay, frame, port))

    def give(self) -> None:
        """Send what is due; where an interface's queue is full the frame is lost, as at any switch."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            _, frame, source = self.waiting.popleft()
            known = self.behind.get(frame[:6])
            for port in [known] if known else [port for port in self.ports if port is not source]:
                try:
                    port.send(frame)
                except (BlockingIOError, InterruptedError):
                    pass
                except OSError as error:
                    if error.errno != 105:  # ENOBUFS
                        raise

    def run(self) -> None:
        while True:
            left = max(self.waiting[0][0] - time.monotonic(), 0) if self.waiting else None
            for port in select.select(self.ports, [], [], left)[0]:
                self.take(port)
            self.give()


if __name__ == "__main__":
    switch = Switch(sys.argv[2:], float(sys.argv[1]))
    print("ready", flush=True)
    try:
        switch.run()
    except OSError:  # the interfaces are gone: so are the links
        sys.exit(0)
