"""Capture what a loopback carries and put its TCP streams together again: a packet socket, no tools.

``Capture`` needs CAP_NET_RAW (a network namespace of one's own gives it). ``streams`` and ``requests`` are pure.

It does NOT read TLS, nor IP fragments (a loopback makes none; they are counted as unread).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

ETH_P_ALL = 0x0003
SOL_PACKET, PACKET_STATISTICS, PACKET_OUTGOING = 263, 6, 4
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
FIN, SYN, RST = 0x01, 0x02, 0x04
FRAME = 2**18
BUFFER = 64 * 2**20
Place = tuple[str, int]


def loopback_up() -> None:
    """Switch ``lo`` on, which a new network namespace has switched off. Raises OSError without the right to."""
    if sys.platform == "win32":
        raise OSError("Windows has no lo to switch on")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        name = struct.pack("16sH", b"lo", 0)
        flags = struct.unpack("16sH", fcntl.ioctl(sock, SIOCGIFFLAGS, name))[1]
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sH", b"lo", flags | IFF_UP))


def _packets() -> socket.socket:
    if sys.platform != "linux":
        raise OSError("packets are captured on Linux alone")
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))


class Capture:
    """Every frame that leaves by any interface of this namespace, while it is open. Raises PermissionError.

    ``take`` hands the frames over. ``dropped`` counts those that the system could not keep for us.
    """

    def __init__(self) -> None:
        self._sock = _packets()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._sock.settimeout(0.05)
        self._lock, self._stop, self._quiet = threading.Lock(), threading.Event(), threading.Event()
        self._frames: list[bytes] = []
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self.dropped = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                frame, address = self._sock.recvfrom(FRAME)
            except TimeoutError:
                self._quiet.set()
                continue
            if address[2] == PACKET_OUTGOING:  # a loopback shows every frame twice, as sent and as received
                with self._lock:
                    self._frames.append(frame)

    def take(self) -> list[bytes]:
        """The frames since the last call, once nothing has come for a moment."""
        self._quiet.clear()
        self._quiet.wait(5)
        dropped = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        with self._lock:
            self.dropped += dropped  # reading the figure sets it back
            taken, self._frames = self._frames, []
        return taken


@dataclass(frozen=True)
class Stream:
    """One direction of one connection: ``data`` from its first byte, ``whole`` where no piece is missing."""

    source: Place
    target: Place
    data: bytes
    whole: bool


@dataclass(frozen=True)
class Segment:
    """One TCP segment. ``payload`` excludes what the link adds behind the packet."""

    source: Place
    target: Place
    seq: int
    flags: int
    payload: bytes


def segment(frame: bytes) -> Segment | None:
    """The TCP segment of an Ethernet frame; None where it is something else, or is cut."""
    kind, packet = frame[12:14], frame[14:]
    try:
        if kind == b"\x08\x00":
            length, piece, protocol = struct.unpack_from("!2xHxxHxB", packet)
            if protocol != 6 or piece & 0x3FFF:
                return None
            family, ends, body = socket.AF_INET, (packet[12:16], packet[16:20]), (packet[0] & 15) * 4
        elif kind == b"\x86\xdd":
            length, protocol = struct.unpack_from("!4xHB", packet)
            if protocol != 6:
                return None
            length += 40
            family, ends, body = socket.AF_INET6, (packet[8:24], packet[24:40]), 40
        else:
            return None
        tcp = packet[body : length or None]  # 0: an offloaded packet too long for the field
        here, there, seq, offset, flags = struct.unpack_from("!HHI4xBB", tcp)
        source, target = (socket.inet_ntop(family, e) for e in ends)
    except (struct.error, ValueError, IndexError):
        return None
    if len(packet) < length:
        return None
    return Segment((source, here), (target, there), seq, flags, tcp[(offset >> 4) * 4 :])


def streams(frames: Iterable[bytes]) -> tuple[list[Stream], list[bytes]]:
    """(streams in the order of their beginning, frames that are no TCP). Repeated, overlapping and disordered
    segments are put right; a new SYN begins a new stream on the same ports."""
    flows: list[list[Segment]] = []
    current: dict[tuple[Place, Place], list[Segment]] = {}
    other = []
    for frame in frames:
        s = segment(frame)
        if s is None:
            other.append(frame)
            continue
        known = current.get((s.source, s.target))
        if known is None or (s.flags & SYN and s.seq != known[0].seq):
            flows.append([])
            known = current[s.source, s.target] = flows[-1]
        known.append(s)
    return [_joined(flow) for flow in flows], other


def _joined(flow: list[Segment]) -> Stream:
    opening = next((s for s in flow if s.flags & SYN), None)
    # Without its SYN a stream's first byte is not known: it begins with the segment that was seen first.
    start = (opening.seq + 1) % 2**32 if opening else flow[0].seq
    out, whole = bytearray(), opening is not None
    pieces = sorted(((s.seq + bool(s.flags & SYN) - start + 2**31) % 2**32 - 2**31, s.payload) for s in flow)
    for at, payload in pieces:
        if not payload or at + len(payload) <= len(out):
            continue
        if at > len(out):
            whole = False
            out += b"\0" * min(at - len(out), 2**20)
            at = len(out)
        out += payload[len(out) - at :]
    return Stream(flow[0].source, flow[0].target, bytes(out), whole)


def requests(data: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """(head, body) of every HTTP/1.1 request of a stream, bodies exactly as long as they say, and what is left over."""
    found = []
    while b"\r\n\r\n" in data:
        head, _, rest = data.partition(b"\r\n\r\n")
        names = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:] if b":" in line)
        told = names.get(b"content-length", b"0").strip()
        if not told.isdigit() or b"transfer-encoding" in names or int(told) > len(rest):
            break
        found.append((head, rest[: int(told)]))
        data = rest[int(told) :]
    return found, data
