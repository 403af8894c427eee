"""The packets of a video file's first video stream, in decoding order, from any point on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import av
import numpy as np

from timegrain.data.byte_ranges import RangeFile, open_bytes
from timegrain.data.location import is_plain
from timegrain.data.streams.index import UNKNOWN, PacketIndex, read_index
from timegrain.data.streams.known import KNOWN
from timegrain.data.streams.sample_table import index_of
from timegrain.data.video import VideoError, short_reason

AV_FAILURES = (av.error.FFmpegError, OSError, ValueError, RuntimeError)

# Containers that hold video or sound. Others that FFmpeg would try (play lists, image patterns, text as ANSI art) can
# name other files to open, or are no videos.
_CONTAINERS = (
    "aac,ac3,aiff,amr,amv,ape,apng,asf,au,av1,avi,avs2,avs3,bink,caf,cavsvideo,dirac,dnxhd,dts,dv,eac3,evc,ffm,flac,flic,"
    "flv,gif,gxf,h261,h263,h264,hevc,ivf,ivr,lvf,m4v,matroska,webm,mjpeg,mov,mp4,m4a,3gp,3g2,mj2,mp3,mpeg,mpegts,"
    "mpegvideo,mtv,mv,mxf,nsv,nut,nuv,obu,ogg,r3d,rm,roq,rpl,smk,swf,thp,tta,ty,vc1,vc1test,vivo,vmd,vvc,w64,wav,wtv,wv,"
    "yuv4mpegpipe"
)
_OPEN_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": _CONTAINERS}
_ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC: the cover of a sound file
_MAX_SKIP = 100  # packets that are read and passed over rather than sought
_MAX_PIXELS = 1 << 27  # of one picture; more is an attack or a broken header
_MAX_KEPT = 1 << 24  # bytes of packets that stay in memory after the walk, to be decoded


class UnexpectedPacket(Exception):
    """The file did not give the packets that it gave before."""


class PacketSource:
    """One open file: its packets, and the decoder for them.

    Args:
        path: The file, or another location of a video.
        file: Its bytes, if they are open already; closed with the source.

    Attributes:
        path: As given; for messages.
        file: The bytes of what is no plain file.
        index: All packets of the stream.
        decoder: PyAV's codec context, one thread.
        codec: Name of the codec.
        container: FFmpeg's names of the container.
        height: As the container has it, in pixels; pictures may differ.
        width: Likewise.
        time_base: Seconds per tick of the stream's clock.
        rate: Frames per second as the container has it, for frames without times.
        stream_index: Which of the file's streams is read.
        is_indexed: The container has an index of its own, and every packet its known place.

    Raises:
        VideoError: If the file cannot be opened as a video, or is cut off.
    """

    _container: Any = None  # None when closed
    _kept: Sequence[Any] = ()  # all packets, if this source walked through them and they are few
    _raw: BinaryIO | None = None  # the file itself, if its packets can be read without the container
    _content: bytes | None = None  # all of it, if it has been read

    def __init__(self, path: str, file: RangeFile | None = None) -> None:
        self.path = path
        self.file = file if file is not None or is_plain(path) else open_bytes(path)
        try:
            self._open()
            self._read_facts()
        except BaseException:
            self.close()
            raise

    def _read_facts(self) -> None:
        """What the container says, and the packets."""
        self.codec = str(self.decoder.codec.canonical_name)
        self.height, self.width = int(self.decoder.height), int(self.decoder.width)
        self.stream_index = int(self._stream.index)
        self.container = str(self._container.format.name)
        self.time_base = float(self._stream.time_base)
        rate = float(self._stream.average_rate or 0)
        # 1000: the clock of some containers, taken for a rate. 25: what FFmpeg takes for streams without a clock.
        self.rate = rate if 0 < rate < 1000 else 25.0
        # Containers with an index of their own, in which a packet is known by its place.
        self.is_indexed = not {"mov", "matroska", "avi"}.isdisjoint(self.container.split(","))
        self.index = self._known_index() if self.file is None else self._walk()
        self.is_indexed &= bool((self.index.positions >= 0).all())
        if not self.index.is_listed:
            self._close_raw()

    def _known_index(self) -> PacketIndex:
        """The index of a plain file; as it was found before, if it was."""
        if self.codec != "h264" or "mov" not in self.container.split(","):
            return KNOWN.get(self.path, self._walk)
        try:
            self._raw = open(self.path, "rb", buffering=0)  # noqa: SIM115
            return KNOWN.get(self.path, self._look, os.fstat(self._raw.fileno()))
        except OSError as error:
            raise VideoError(self.path, f"cannot be read: {short_reason(error)}") from error

    def _look(self) -> PacketIndex:
        """The index by the container's list of packets, or by walking through them."""
        assert self._raw is not None
        if os.fstat(self._raw.fileno()).st_size <= _MAX_KEPT:
            self._content = self._raw.read()
            listed = index_of(self._content, self._stream.id, self._stream.index_entries, self.decoder.extradata or b"")
            if listed is not None:
                return listed
            self._content = None
        return self._walk()

    def _open(self) -> None:
        try:
            self._container = av.open(self._what_to_open(), options=_OPEN_OPTIONS, metadata_errors="replace")
        except VideoError:
            raise
        except AV_FAILURES as error:
            self.check_reads()
            raise VideoError(self.path, self._why_not_opened(error)) from error
        streams = [s for s in self._container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
        if not streams:
            kinds = sorted({stream.type for stream in self._container.streams})
            raise VideoError(self.path, f"no video stream in the file (only {', '.join(kinds) or 'nothing'})")
        self._stream = streams[0]
        self.decoder = self._stream.codec_context
        if self.decoder is None:
            raise VideoError(self.path, "no decoder for its video codec")
        # Frame threads cost more for the same frames, and a loader has one process per core.
        self.decoder.thread_count = 1
        # explode: report damage rather than paint over it.
        self.decoder.options = {"max_pixels": str(_MAX_PIXELS), "err_detect": "explode"}
        self._packets = self._demux()
        self._next = 0  # number of the packet that comes next

    def _what_to_open(self) -> str | RangeFile:
        """The name of a plain file, or the bytes, from their beginning."""
        if self.file is not None:
            if not self.file.size:
                raise VideoError(self.path, "the file is empty")
            self.file.seek(0)
            return self.file
        path = os.path.abspath(self.path)  # absolute: a name such as `http:a` stays a file
        if not os.path.isfile(path):
            raise VideoError(self.path, "is a folder" if os.path.isdir(path) else "file not found")
        if not os.path.getsize(path):
            raise VideoError(self.path, "the file is empty")
        return path

    def check_reads(self) -> None:
        """Raise what reading bytes failed with, if it did: FFmpeg may have taken it for the end of the file.

        Raises:
            VideoError: Bytes could not be read from the shard or from behind the URL.
        """
        if self.file is not None and self.file.failure is not None:
            raise self.file.failure

    def close(self) -> None:
        """Give the file back; harmless if done before."""
        self._close_container()
        self._close_raw()
        if self.file is not None:
            self.file.close()

    def _close_raw(self) -> None:
        if self._raw is not None:
            self._raw.close()
            self._raw = self._content = None

    def _close_container(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container, self._kept = None, ()

    @property
    def is_open(self) -> bool:
        """Whether packets can be had."""
        return self._container is not None

    def rewind(self) -> None:
        """Open the file anew, at its beginning, with a fresh decoder."""
        self._close_container()
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _demux(self) -> Iterator[Any]:
        """The video's packets from where the file stands, without empty ones."""
        return (packet for packet in self._container.demux(self._stream) if packet.size)

    def _walk(self) -> PacketIndex:
        """Read all packets once."""
        num_packets = num_bytes = 0
        kept: list[Any] = []

        def whole_packets() -> Iterator[Any]:
            nonlocal num_packets, num_bytes
            for packet in self._packets:
                if packet.is_corrupt:
                    raise VideoError(self.path, f"cut off or damaged at packet {num_packets}")
                if not num_packets and packet.has_sidedata("encryption_info"):
                    raise VideoError(self.path, "encrypted")
                num_packets += 1
                num_bytes += packet.size
                if num_bytes <= _MAX_KEPT:
                    kept.append(packet)
                else:
                    kept.clear()
                yield packet

        try:
            index = read_index(whole_packets(), self.codec, self.decoder.extradata or b"")
        except VideoError:
            self.check_reads()
            raise
        except AV_FAILURES as error:
            self.check_reads()
            reason = f"cut off or damaged after packet {num_packets}: {short_reason(error)}"
            raise VideoError(self.path, reason) from error
        self.check_reads()
        self._next, self._kept = num_packets, kept
        if not num_packets:
            raise VideoError(self.path, "no frame in its video stream")
        return index

    def packets(self) -> Iterator[Any]:
        """The packets from where the file stands, each with its number in place of its times."""
        for packet in self._packets:
            packet.pts = packet.dts = self._next
            self._next += 1
            yield packet

    def go_to(self, number: int) -> None:
        """Let the packet of this number be the next one. The decoder forgets what it holds."""
        if self._raw is None:
            is_far = self._next > number or (number - self._next > _MAX_SKIP and self.is_indexed)
            if self._kept:
                self._packets, self._next = iter(self._kept[number:]), number
            elif is_far and not self._seek(number if self.is_indexed else 0):
                self.rewind()
        self.decoder.flush_buffers()

    def read(self, number: int) -> Any:
        """The packet of this number, which lies further on; with its number in place of its times.

        Raises:
            UnexpectedPacket: If it is not the one that the index has.
        """
        if self._raw is None:
            while self._next < number:
                self._read_next()
            return self._read_next()
        size, position = int(self.index.sizes[number]), int(self.index.positions[number])
        if self._content is None:
            self._raw.seek(position)
            data = self._raw.read(size)
        else:
            data = self._content[position : position + size]
        if len(data) != size:
            raise UnexpectedPacket(f"packet {number} is cut off")
        packet = av.Packet(data)
        packet.pts = packet.dts = number
        return packet

    def _read_next(self) -> Any:
        packet = next(self._packets, None)
        if packet is None or packet.size != self.index.sizes[self._next]:
            raise UnexpectedPacket(f"packet {self._next} is not the one that was there before")
        packet.pts = packet.dts = self._next
        self._next += 1
        return packet

    def _seek(self, number: int) -> bool:
        """Go to a packet at or before the given one by the container's index; False if that does not lead there."""
        index = self.index
        # Containers keep decoding times, or presentation times: whichever leads nearer is tried first.
        for ticks in sorted({int(index.ticks[number]), int(index.decoding_ticks[number])}, reverse=True):
            if ticks == UNKNOWN:
                continue
            try:
                self._container.seek(ticks, stream=self._stream)
            except AV_FAILURES:
                return False
            self._packets = self._demux()
            packet = next(self._packets, None)
            if packet is None:
                continue
            known_by = index.positions == (-1 if packet.pos is None else packet.pos)
            places = np.flatnonzero(known_by & (index.sizes == packet.size))
            if len(places) == 1 and places[0] <= number:
                self._next = int(places[0])
                self._packets = itertools.chain([packet], self._packets)
                return True
        return False

    def _why_not_opened(self, error: Exception) -> str:
        if isinstance(error, av.error.ArgumentError):
            return "its content is not in a video format"
        if isinstance(error, av.error.InvalidDataError):
            if self.file is not None:
                self.file.seek(0)
                head = self.file.read(12)
            else:
                with open(self.path, "rb") as file:
                    head = file.read(12)
            if head[4:8] == b"ftyp":
                return (
                    "an MP4 file without its table of contents (moov), or with a broken one: cut off or never finished"
                )
            return "its content is not that of a video"
        return f"cannot be opened: {short_reason(error)}"
