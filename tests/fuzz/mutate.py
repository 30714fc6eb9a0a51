"""Mutates inputs with knowledge of their format. Every choice is drawn from the given `random.Random`."""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
from random import Random
from typing import Any, Callable, Sequence

from fuzz.case import Files, Odd

LONGEST = 500_000  # bytes inserted at a time
NUMBERS = (0, 1, -1, 2, 7, 31, 32, 33, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**32,
           2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**30)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1e-999", "9" * 99, "9" * 400, "9" * 5000, "-0", "0.1e1",
       "01", "tru", "'a'", '"\\ud800"', '"\\udfff\\ud800"', '"\\u0000"', '"\\u001b[2J\\u202e"', '"\x00"', '"\\x"',
       "[" * 400 + "]" * 400, "[" * 940 + "]" * 940, '{"a":' * 400 + "1" + "}" * 400, "[" * 100_000,
       '{"a":' * 100_000, "[[]" + ",[]" * 20_000 + "]", '"' + "x" * 100_000 + '"', '"' + "a." * 500 + '"',
       '"../../outside/file"', '"/etc/passwd"', '"a\\nb"', '"' + "é北🎉" * 30 + '"', "[]", "{}", '""', "null", "true")
PIECES = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\r\n", b"\n", b"\r", b"\t", b" ", b'"', b"\\", b"{", b"[",
          b"}", b"]", b",", b":", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe2\x80\xa8", b"\x1b[2J",
          b"../", b"/dev/zero", b"%s%n", b"\x00" * 64, b"0", b"9" * 30, b"-", b"e", b"nan", b"inf")
YAML = (b"&a ", b"*a", b"&a [*a, *a]", b"<<: *a", b"!!python/object/apply:os.system [id]", b"!!binary |", b"!x ", b"? ",
        b"- ", b"---\n", b"...\n", b"%YAML 9.9\n", b"%TAG ! x\n", b"|\n", b">+9\n", b"'",
        b'"\\UFFFFFFFF"', b'"\\U00110000"',
        b'"\\ud800"', b'"\\x"', b"{", b"[", b"}", b"]", b"{a: [b, {c: d}]}", b"[" * 5000, b"- " * 5000, b"? " * 2000,
        b"a: " * 2000, b"~", b"null", b"1e999", b".nan", b"9" * 5000, b"0o7", b"@", b"`", b"#", b"\t", b": ", b"(a+)+b",
        b"(" * 3000, b"a=1,b=2", b"\xe2\x80\xa8", b"\xc2\x85")
LINES = (b"loss", b"train", b"val_loss: ", b"step", b"steps ", b"3.2", b"nan", b"inf", b"-", b"1e400", b"9" * 400, b",",
         b"[", b"(", b")", b"]", b"tensor(", b"jt.Var([", b"=", b"\xe6\x8d\x9f\xe5\xa4\xb1", b"#", b"||", b"{",
         b'{"step": 1', b"a.", b" ", b"\t", b"\xd9\xa1", b"\xc2\xb2", b"name : x", b"\xf0\x9f\x8e\x89")
CSV = (b'"', b'""', b'"""', b'"\n', b',"', b'","', b",", b";", b"\t", b"|", b"\r", b"\r\n", b"\n\n", b"\n" * 1000,
       b'"[{""', b'"}]"', b"," * 1000, b'"' * 1001, b'"' + b"x" * 200_000, b"x" * 200_000 + b",", b"messages", b"||",
       b"\nmessages\n", b"{", b"[", b"\xe2\x80\xa8", b"\xb0\xa1", b"prompt,completion\n", b"prompt,prompt\n")
PATTERNS = ("(a+)+$", "(.*)*x", ".*.*.*.*x", "(" * 250 + ")" * 250, "(?:" * 120 + "a" + ")*" * 120, "[",
            "(?i)a", "a{1,9999999999}", "(?P<n>a)(?P=n)", r"(\w+\.)*!", "(a|b)*", "(?=a)(?<=b)", r"\1",
            "a" * 16_000, "", "a)|(b", "(h)", r"h\.(\d+)", "a?" * 28 + "a" * 28, "(a|aa)" * 60 + "b")


def _between(random: Random, low: int, high: int) -> int:
    return random.randrange(low, high + 1)


# --- bytes -----------------------------------------------------------------------------------------------------------


def spoil_bytes(random: Random, data: bytes, pieces: Sequence[bytes] = PIECES) -> bytes:
    """One change anywhere."""
    changed, kind = bytearray(data), _between(random, 0, 10)
    at = _between(random, 0, len(data))
    length = random.choice((1, 2, 4, 8, 16, 64, 1000))
    if kind == 0 and data:
        changed[at % len(data)] ^= 1 << _between(random, 0, 7)
    elif kind == 1 and data:
        changed[at % len(data)] = _between(random, 0, 255)
    elif kind == 2:
        del changed[at:]
    elif kind == 3:
        del changed[at : at + length]
    elif kind == 4:
        changed[at:at] = changed[at : at + length]
    elif kind == 5:
        changed[at:at] = random.choice(pieces)
    elif kind == 6:
        changed[at : at + length] = random.choice(pieces)
    elif kind == 7:
        code, size = random.choice((("<Q", 8), ("<I", 4), ("<H", 2), ("<q", 8)))
        low, high = (-(2**63), 2**63 - 1) if code == "<q" else (0, 256**size - 1)
        value = random.choice([n for n in (*NUMBERS, len(data), len(data) - at) if low <= n <= high])
        changed[at : at + size] = struct.pack(code, value)
    elif kind == 8:
        changed[at:at] = (random.choice(pieces) * random.choice((10, 1000, 10_000)))[:LONGEST]
    elif kind == 9:
        return _number_in_text(random, data)
    else:
        return _encoded(random, data)
    return bytes(changed)


def _number_in_text(random: Random, data: bytes) -> bytes:
    found = list(re.finditer(rb"-?\d+", data[:100_000]))
    if not found:
        return data[: len(data) // 2]
    match = random.choice(found)
    number = random.choice((*NUMBERS, int(match.group()) + 1, int(match.group()) - 1) if len(match.group()) < 30
                           else NUMBERS)
    return data[: match.start()] + str(number).encode() + data[match.end():]


def _encoded(random: Random, data: bytes) -> bytes:
    kind = _between(random, 0, 5)
    text = data.decode("utf-8", "replace")
    if kind == 0:
        return text.encode("utf-16")
    if kind == 1:
        return text.encode("utf-32", "replace")
    if kind == 2:
        return b"\xef\xbb\xbf" + data
    if kind == 3:
        return data.replace(b"\n", b"\r\n")
    if kind == 4:
        return data + b"\x00" * random.choice((1, 100, 100_000))
    return data * 2


# --- JSON ------------------------------------------------------------------------------------------------------------


class Raw(str):
    """Verbatim JSON text, valid or not."""


class Pairs(list):
    """An object's keys and values, possibly with duplicate keys."""


def parsed(text: bytes | str) -> Any:
    return json.loads(text, object_pairs_hook=Pairs)


def dumped(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dumped(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(dumped, value)) + "]"
    return json.dumps(value)


def spoil_json(random: Random, value: Any, raws: Sequence[str] = RAW) -> Any:
    """A copy of the result of `parsed` with one change."""
    if not isinstance(value, list) or not value or _between(random, 0, 5) == 0:
        return _other(random, value, raws)
    changed = type(value)(value)
    at, kind = _between(random, 0, len(changed) - 1), _between(random, 0, 9)
    if kind == 0:
        del changed[at]
    elif kind == 1:
        changed.append(changed[at])
    elif kind == 2 and isinstance(changed, Pairs):
        changed[at] = (random.choice(("", "a.b", "\x00", "\ud800", "x" * 2000, "../x", changed[0][0])), changed[at][1])
    elif kind == 3 and isinstance(changed, Pairs):
        changed.append((random.choice(("unknown", "x" * 300, "\x1b[2J", changed[at][0])), _other(random, None, raws)))
    elif kind == 4:
        changed *= random.choice((2, 50, 2000)) if len(changed) < 50 else 2
    elif isinstance(changed, Pairs):
        changed[at] = (changed[at][0], spoil_json(random, changed[at][1], raws))
    else:
        changed[at] = spoil_json(random, changed[at], raws)
    return changed


def _other(random: Random, value: Any, raws: Sequence[str]) -> Any:
    kind = _between(random, 0, 5)
    if kind == 0:
        return random.choice(NUMBERS)
    if kind == 1 and type(value) in (int, float):
        return random.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), value + 0.5))
    if kind == 2:
        return random.choice((None, True, False, "", [], Pairs(), [value], Pairs([("a", value)]), 0.5, "text"))
    if kind == 3:
        return random.choice(PATTERNS)
    return Raw(random.choice(raws))


def json_file(random: Random, data: bytes) -> bytes:
    if _between(random, 0, 3) == 0 or len(data) > LONGEST // 4:
        return spoil_bytes(random, data)
    return dumped(spoil_json(random, parsed(data))).encode("utf-8", "surrogatepass")


def json_lines(random: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = _between(random, 0, len(lines) - 1)
    if lines[at] and _between(random, 0, 2):
        lines[at] = json_file(random, lines[at])
        return b"\n".join(lines)
    return spoil_bytes(random, data)


# --- text ------------------------------------------------------------------------------------------------------------


def yaml_file(random: Random, data: bytes) -> bytes:
    if _between(random, 0, 2) == 0:
        return spoil_bytes(random, data)
    lines = data.split(b"\n")
    at, piece = _between(random, 0, len(lines) - 1), random.choice((*YAML, *(p.encode() for p in PATTERNS)))
    kind = _between(random, 0, 3)
    if kind == 0:
        lines.insert(at, piece)
    elif kind == 1:
        lines[at] = lines[at].partition(b":")[0] + b": " + piece
    elif kind == 2:
        lines[at] = piece + lines[at]
    else:
        return spoil_bytes(random, data, YAML)
    return b"\n".join(lines)


def csv_file(random: Random, data: bytes) -> bytes:
    return spoil_bytes(random, data, random.choice((PIECES, CSV)))


def log_file(random: Random, data: bytes) -> bytes:
    kind = _between(random, 0, 3)
    if kind == 0:
        return spoil_bytes(random, data)
    if kind == 1:
        return spoil_bytes(random, data, LINES)
    lines = data.split(b"\n")
    many = random.choice((1, 2, 3, 30, 300, 20_000)) if kind == 2 else 1
    piece = b"".join(random.choice(LINES) for _ in range(4))
    lines[_between(random, 0, len(lines) - 1)] = (piece * many)[:LONGEST]
    return b"\n".join(lines)


# --- binary formats --------------------------------------------------------------------------------------------------


def safetensors_file(random: Random, data: bytes) -> bytes:
    kind = _between(random, 0, 4)
    if kind == 0:
        return spoil_bytes(random, data)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if kind == 1:  # only where it matters: length and header
        return spoil_bytes(random, data[: 8 + length]) + rest
    numbers = tuple(str(n) for n in (len(rest), len(rest) + 1, len(data), 2**62, 2**63, -1))
    shapes = ("[" + ",".join(["1"] * 40) + "]", "[" + ",".join(["9223372036854775807"] * 3000) + "]",
              "[0, 4611686018427387904]", '"F16"', '"BF16"', '"F64"', '"F8_E4M3"', '"BOOL"', '"X"')
    fields = parsed(header)
    if b'"values"' in header and _between(random, 0, 1):  # of a checkpoint, JSON within JSON
        metadata = dict(fields)["__metadata__"]
        at = [key for key, _ in metadata].index("values")
        metadata[at] = ("values", dumped(spoil_json(random, parsed(metadata[at][1]))))
        made = dumped(fields).encode("utf-8", "surrogatepass")
    else:
        made = dumped(spoil_json(random, fields, (*RAW, *numbers, *shapes))).encode("utf-8", "surrogatepass")
    told = random.choice((len(made), len(made), len(made), len(made) + 1, len(made) - 1, 0, len(data), 2**63))
    return (told % 2**64).to_bytes(8, "little") + made + rest


def gguf_file(random: Random, data: bytes) -> bytes:
    at = data.find(b"tokenizer.ggml")
    end = data.rfind(b"blk.") + 200
    part = random.choice(((0, 32), (0, at), (at, min(end, len(data))), (max(0, end - 2000), end), (0, len(data))))
    before, middle, after = data[: part[0]], data[part[0] : part[1]], data[part[1] :]
    numbers = [struct.pack("<Q", number) for number in NUMBERS if 0 <= number < 2**64]
    return before + spoil_bytes(random, middle, (*PIECES, *numbers)) + after


def npz_file(random: Random, data: bytes) -> bytes:
    kind = _between(random, 0, 4)
    if kind == 0:
        return spoil_bytes(random, data)
    if kind == 1:  # the central directory
        at = data.rfind(b"PK\x01\x02", 0, _between(random, 1, len(data)))
        return data[:max(at, 0)] + spoil_bytes(random, data[max(at, 0):])
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    at = _between(random, 0, len(members) - 1)
    name, content = members[at]
    if kind == 2:
        name = random.choice(("../../outside/x.npy", "/tmp/x.npy", members[0][0], "x.txt", "\x1b[2J.npy", name[:-4],
                              name + "\x00.npy", name.replace("transformer_h.0", "transformer_h.9999"),
                              "a" * 60_000 + ".npy"))
    elif kind == 3:
        content = spoil_bytes(random, content[:128]) + content[128:]
    else:
        content = _npy(random, content)
    members[at] = name, content
    method = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for one, held in members:
            archive.writestr(zipfile.ZipInfo(one or "x"), held, method)
    return made.getvalue()


OPCODES = (b"(", b".", b"0", b"N", b"K\x00", b"J\xff\xff\xff\xff", b"\x8a\xff", b"X\xff\xff\xff\xff", b"q\x00",
           b"h\x00", b"r\xff\xff\xff\xff", b"j\xff\xff\xff\xff", b")", b"\x85", b"\x86", b"\x87", b"t", b"]", b"a",
           b"e", b"}", b"s", b"u", b"R", b"\x81", b"b", b"Q", b"cposix\nsystem\n", b"cbuiltins\neval\n",
           b"X\x02\x00\x00\x00id", b"\x85R", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n",
           b"ccollections\nOrderedDict\n)R", b"ctorch\nSize\n", b"](h\x00h\x00e", b"\x95" + b"\xff" * 8, b"\x94",
           b"\x93", b"i", b"o", b"]" * 9000, b"\x85" * 9000)


def torch_file(random: Random, data: bytes) -> bytes:
    if _between(random, 0, 3) == 0:
        return spoil_bytes(random, data)
    if not data.startswith(b"PK"):  # five pickles and the data
        end = data.find(b"\x00" * 16)
        end = len(data) if end < 0 else end
        return spoil_bytes(random, data[:end], (*PIECES, *OPCODES)) + data[end:]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    at = _between(random, 0, len(members) - 1)
    kind = _between(random, 0, 4)
    if kind == 0:
        members[at] = (random.choice(("../../outside/x", members[0][0], "\x1b[2J", "archive/data/\x00", "x/data.pkl")),
                       members[at][1])
    elif kind == 1:
        members[at] = members[at][0], spoil_bytes(random, members[at][1])
    else:
        at = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl"))
        members[at] = members[at][0], spoil_bytes(random, members[at][1], (*PIECES, *OPCODES))
    method = random.choice((*[zipfile.ZIP_STORED] * 6, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of duplicate names
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return made.getvalue()


def _npy(random: Random, content: bytes) -> bytes:
    def header(descr: str, order: str = "False", shape: str = "(2, 24)") -> str:
        return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"

    made = random.choice((
        header("'<f4'", "True"), header("'|O'"), header("'<f4'", shape="(-2, -24)"), header("'<f4'", shape="(2L, 24L)"),
        header("[('a', '<f4')]"), header("'<M8[9999999999Y]'"), header("('<f4', (9,9))"), header("'<f99'"),
        header("'<f2'", shape="(99999999999999999999, 24)"), header("'<f4'", shape="[2, 24]"), header("'<f4'")[:40],
        "-" * 4000 + "1", "(" * 4000, "{" * 90 + "}" * 90, "{1: 2, 'a': 3}", "[]", "{'descr': '<f4'", "'''", "\\",
        "x" * 4000, "{**{}}", "f''")).encode()
    version = random.choice((b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    length = len(made).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + made + content[128:]


# --- whole inputs ----------------------------------------------------------------------------------------------------

ODD = (Odd("fifo"), Odd("folder"), Odd("link", "/dev/zero"), Odd("link", "itself"), Odd("link", "../outside/file"),
       Odd("link", "/nowhere"), Odd("sparse", size=40 << 30), Odd("sparse", size=8), b"", b"\x00" * 100)

_BY_SUFFIX: dict[str, Callable[[Random, bytes], bytes]] = {
    ".json": json_file, ".jsonl": json_lines, ".yaml": yaml_file, ".txt": log_file, ".log": log_file,
    ".csv": csv_file,
    ".safetensors": safetensors_file, ".gguf": gguf_file, ".npz": npz_file, ".bin": torch_file,
    ".pt": torch_file,
}


def spoil(random: Random, files: Files, names: Sequence[str]) -> Files:
    """The files with some of those called `names` changed; sometimes one is replaced by something else."""
    changed = dict(files)
    name = random.choice(names)
    if _between(random, 0, 24) == 0:
        changed[name] = random.choice(ODD)
        return changed
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        content = changed[name]
        suffix = "." + name.rsplit(".", 1)[-1]
        try:
            changed[name] = _BY_SUFFIX.get(suffix, spoil_bytes)(random, content)
        except Exception:  # already mutated, beyond its format
            changed[name] = spoil_bytes(random, content)
    return changed
