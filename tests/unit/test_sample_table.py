"""Headers of all packets read at once say what reading them one by one says."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_video, moving_square
from timegrain.data.streams import sample_table
from timegrain.data.streams.bits import Unsettled
from timegrain.data.streams.h26x import H264


@pytest.fixture(scope="module")
def extradata(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = make_video(tmp_path_factory.mktemp("table") / "a.mp4", moving_square(3))
    with av.open(str(path)) as container:
        return bytes(container.streams.video[0].codec_context.extradata)


def unit(header: int, content: bytes) -> bytes:
    return (1 + len(content)).to_bytes(4, "big") + bytes([header]) + content


SLICES = st.builds(
    lambda kind, first, rest: unit(kind, bytes([first]) + rest),
    st.sampled_from([0x65, 0x41, 0x01, 0x25]),  # IDR or not, referred to or not
    # Mostly the first slice of a picture, with a short or a long header; zeros make escapes.
    st.sampled_from([0x88, 0x9A, 0x80, 0xB8, 0xFF, 0x40]),
    st.binary(max_size=24) | st.lists(st.sampled_from(b"\0\0\0\3\1\x80"), max_size=24).map(bytes),
)
OTHERS = st.builds(unit, st.sampled_from([6, 9, 12, 8, 2, 7]), st.binary(min_size=1, max_size=9))
PACKETS = st.lists(
    SLICES | st.lists(SLICES | OTHERS, min_size=1, max_size=3).map(b"".join) | st.binary(min_size=1, max_size=30),
    max_size=6,
)


@given(packets=PACKETS, before=st.binary(max_size=3))
def test_all_at_once_is_one_by_one(extradata: bytes, packets: list[bytes], before: bytes) -> None:
    packets = [unit(0x65, b"\x88\x84\0\x21"), *packets]
    data = before + b"".join(packets)
    sizes = np.array([len(packet) for packet in packets])
    parser = H264(extradata)
    try:
        expected = [parser.read(memoryview(packet)) for packet in packets]
    except (Unsettled, IndexError):
        expected = []
    try:
        positions = len(before) + np.cumsum(sizes) - sizes
        headers = sample_table._headers(data, positions, sizes, extradata)
    except (sample_table._Unusual, Unsettled, IndexError):
        # Nothing comes of what one by one says nothing of; of what is unusual nothing need come.
        lengths = [max(0, len(packet) - 4).to_bytes(4, "big") for packet in packets]
        one_slice_each = all(
            len(packet) > 5 and packet[:4] == length and packet[4] & 31 in (1, 5)
            for packet, length in zip(packets, lengths, strict=True)
        )
        assert not (expected and one_slice_each)
        return
    assert expected
    assert (headers.order, headers.may_drop) == (parser.order, parser.may_drop)
    for name, column in (("shown", "shown"), ("start", "start"), ("disposable", "disposable"), ("place", "places")):
        assert [getattr(picture, name) for picture in expected] == getattr(headers, column).tolist(), name


def test_a_damaged_number_of_edits_is_not_believed() -> None:
    pause = bytes(4) + b"\xff\xff\xff\xff\0\1\0\0"
    sample_table._check_edits(memoryview(bytes(7) + b"\1" + pause))
    with pytest.raises(sample_table._Unusual):
        sample_table._check_edits(memoryview(bytes(7) + b"\2" + pause))
