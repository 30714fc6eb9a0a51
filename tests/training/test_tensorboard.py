from __future__ import annotations

import struct

from jittor_lora.training.tensorboard import EventWriter, _masked_crc, _varint


def records(path):
    """Payloads of an event file, each held to its checksums."""
    content = path.read_bytes()
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        assert content[8:12] == _masked_crc(content[:8])
        payload, checksum = content[12:12 + length], content[12 + length:16 + length]
        assert checksum == _masked_crc(payload)
        yield payload
        content = content[16 + length:]


def test_checksum_of_the_standard_vector():
    crc = 0xE3069283  # CRC-32C of "123456789", RFC 3720 and the catalogue of CRC algorithms
    assert _masked_crc(b"123456789") == struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def test_varints():
    assert [_varint(value) for value in (0, 1, 127, 128, 300)] == [b"\0", b"\1", b"\x7f", b"\x80\1", b"\xac\2"]


def test_file_is_whole_after_each_call(tmp_path):
    writer = EventWriter(tmp_path)
    path = next(tmp_path.iterdir())
    assert [payload[9:] for payload in records(path)] == [b"\x10\0\x1a\x0dbrain.Event:2"]
    writer.scalars(300, {"loss/train": 1.5})
    # step (2) 300, summary (5) of one value (1): tag (1), simple_value (2)
    assert list(records(path))[1][9:] == b"\x10\xac\x02" + b"\x2a\x13" + b"\x0a\x11" + b"\x0a\x0aloss/train" + (
        b"\x15" + struct.pack("<f", 1.5))
    writer.close()


def test_resumed_run_adds_a_file_that_hides_what_came_after_the_checkpoint(tmp_path):
    EventWriter(tmp_path).close()
    EventWriter(tmp_path, purge_after=7).close()
    first, second = sorted(tmp_path.iterdir())
    assert len(list(records(first))) == 1
    assert list(records(second))[1][9:] == b"\x10\x08" + b"\x3a\x02\x08\x01"  # step 8, session_log (7) START


def test_numbers_beyond_float32_become_infinite(tmp_path):
    writer = EventWriter(tmp_path)
    writer.scalars(1, {"a": 1e300, "b": -1e300})
    writer.close()
    payload = list(records(next(tmp_path.iterdir())))[1]
    assert struct.pack("<f", float("inf")) in payload
    assert struct.pack("<f", float("-inf")) in payload
