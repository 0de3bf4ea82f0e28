"""Faults of earlier versions with odd files, each with the smallest input that shows it. All inputs are
made here.

    python tests/faults.py [FOLDER]      # prints one line per fault; exit status: how many are still there

`fault(name, right, check)`: `check()` returns None if all is right, else what is wrong. `right` says what
should happen."""

import io
import os
import struct
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import soundfile as sf
from PIL import Image

from sgmim.core import SgmimError
from sgmim.data.audio import load_audio
from sgmim.data.check import check_data
from sgmim.data.corpora import load_corpus
from sgmim.data.corpus import measure, present
from sgmim.data.image import load_image
from sgmim.data.shards import open_shards, write_shards

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="faults-"))
OUT.mkdir(parents=True, exist_ok=True)
R, left = 16000, []
T = np.arange(2 * R) / R
X = (0.3 * np.sin(2 * np.pi * 440 * T) * (0.5 + 0.5 * np.sin(2 * np.pi * 3 * T))).astype(np.float32)


def fault(name, right, check):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong = check()
    except Exception as e:
        wrong = f"{'refused' if isinstance(e, SgmimError) else 'CRASH'}: {type(e).__name__}: {str(e)[:150]}"
    if wrong:
        left.append(name)
        wrong = "".join(c if c.isprintable() else "?" for c in wrong)
    print(f"{'FAULT' if wrong else 'ok   '} {name}: {wrong or ''}\n      right: {right}")


def pcm(x):
    return (x * 32767).astype("<i2").tobytes()


def wav(data, rate=R, channels=1, bits=16, tag=1, size=None):
    body = (
        b"WAVEfmt "
        + struct.pack(
            "<IHHIIHH", 16, tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits
        )
        + b"data"
        + struct.pack("<I", len(data) if size is None else size)
        + data
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def corpus(name, n=4, head=("image", "audio"), change=lambda k, i, a: (i, a)):
    "A folder with n pictures, n recordings and their table; the path of the table."
    d = OUT / name
    for f in ("images", "wavs"):
        (d / f).mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(n):
        Image.fromarray(np.full((64, 80, 3), 40 * k, np.uint8)).save(d / "images" / f"p{k}.jpg")
        sf.write(d / "wavs" / f"s{k}.wav", X * (1 - 0.1 * k), R)
        rows.append(change(k, f"images/p{k}.jpg", f"wavs/s{k}.wav"))
    (d / "pairs.csv").write_text("\n".join(",".join(r) for r in [head, *rows]) + "\n", encoding="utf-8")
    return d / "pairs.csv"


def all_here(table, want=4):
    n = len(present(load_corpus(table)))
    return None if n == want else f"{n} of {want} captions are left"


def says(table, *words):
    text = str(check_data(table))
    return (
        None
        if any(w in text for w in words)
        else "the report gives no hint of it: "
        + "; ".join(f.do[:90] for f in check_data(table).of("error"))[:160]
    )


# --- pictures
plain = io.BytesIO()
Image.fromarray((np.random.default_rng(0).random((48, 64, 3)) * 255).astype(np.uint8)).save(plain, "JPEG")
plain = plain.getvalue()


def with_exif(*entries):
    "A JPEG with Orientation 6 and `entries` (tag, type, count, four bytes) in its EXIF block."
    e = [(0x112, 3, 1, struct.pack("<HH", 6, 0)), *entries]
    t = (
        b"Exif\0\0II*\0"
        + struct.pack("<IH", 8, len(e))
        + b"".join(struct.pack("<HHI", *x[:3]) + x[3] for x in e)
        + bytes(4)
    )
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(t) + 2) + t + plain[2:]


for name, entry in (("resolution as text", (0x11A, 2, 4, b"abc\0")),):
    p = OUT / f"exif {name}.jpg"
    p.write_bytes(with_exif(entry))
    fault(
        f"EXIF, {name}, in a rotated photograph",
        "the picture, upright (its pixels are whole): rotate without writing the EXIF block anew",
        lambda p=p: None if load_image(p).size == (48, 64) else "not upright",
    )


def one_bad_picture():
    t = corpus("exif")
    (t.parent / "images" / "p1.jpg").write_bytes(with_exif((0x11A, 2, 4, b"abc\0")))
    check_data(t)


fault("check_data over such a picture", "a report; never a traceback", one_bad_picture)


def clear(read):
    try:
        read()
    except SgmimError:
        return None
    return "accepted"


(OUT / "bin").mkdir(exist_ok=True)
(OUT / "bin" / "gs").write_text(f'#!/bin/sh\necho ran > "{OUT}/gs-ran"\nexit 1\n')
(OUT / "bin" / "gs").chmod(0o755)
(OUT / "eps.jpg").write_bytes(
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
)


def ghostscript():
    from PIL import EpsImagePlugin

    os.environ["PATH"], EpsImagePlugin.gs_binary = f"{OUT / 'bin'}:{os.environ['PATH']}", None
    (OUT / "gs-ran").unlink(missing_ok=True)
    try:
        load_image(OUT / "eps.jpg")
    except Exception as e:
        return ("Ghostscript was started; " if (OUT / "gs-ran").exists() else "") + (
            f"CRASH {type(e).__name__}" if not isinstance(e, SgmimError) else ""
        ) or None


fault(
    "PostScript in a file called .jpg",
    "DataError; no other program is started (Image.open(…, formats=…))",
    ghostscript,
)


# --- recordings
def length(path, seconds, slack=0.1):
    return None if abs((n := len(load_audio(path)) / R) - seconds) < slack else f"{n:.2f} s of {seconds} s"


(OUT / "recording.raw").write_bytes(pcm(X))
fault(
    "a recording called .raw",
    "DataError (or read as what it is)",
    lambda: clear(lambda: load_audio(OUT / "recording.raw")),
)
sf.write(OUT / "a.flac", X, R)
b = bytearray((OUT / "a.flac").read_bytes())
b[21] &= 0xF0
b[22:26] = bytes(4)
(OUT / "streamed.flac").write_bytes(b)
fault(
    "FLAC written to a pipe (length 0: unknown)", "read to its end", lambda: length(OUT / "streamed.flac", 2)
)


def measured():
    t = corpus("flac", change=lambda k, i, a: (i, a.replace("s1.wav", "s1.flac")))
    (t.parent / "wavs" / "s1.flac").write_bytes(bytes(b))
    n = measure(load_corpus(t), progress=False).samples
    return None if n[1] in (0, 2 * R) else f"lengths {n.tolist()}"


fault("measure() over such a FLAC", "its length, or 0", measured)


def frames(blob):
    "The MPEG frames of an mp3 without the Info frame in front."
    k = next(k for k in range(len(blob)) if blob[k] == 255 and blob[k + 1] & 0xE0 == 0xE0)
    n = 72 * [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160][blob[k + 2] >> 4] * 1000 // R + (
        (blob[k + 2] >> 1) & 1
    )
    return blob[k + n :]


sf.write(OUT / "v.mp3", X, R, format="MP3")
(OUT / "vbr short.mp3").write_bytes(frames((OUT / "v.mp3").read_bytes()))
fault(
    "mp3 of variable rate without a Xing header, loud beginning",
    "its 2.0 s, or DataError; never a part of it without a word",
    lambda: length(OUT / "vbr short.mp3", 2, 0.2),
)
sf.write(
    OUT / "w.mp3",
    np.concatenate([X * 0, X, X * 0, X, X * 0]),
    R,
    format="MP3",
    bitrate_mode="VARIABLE",
    compression_level=0.3,
)
(OUT / "vbr long.mp3").write_bytes(frames((OUT / "w.mp3").read_bytes()))
fault(
    "mp3 of variable rate without a Xing header, quiet beginning",
    "its 10 s: it is whole",
    lambda: length(OUT / "vbr long.mp3", 10, 0.3),
)
sf.write(OUT / "c.mp3", X, R, format="MP3", bitrate_mode="CONSTANT", compression_level=0.5)
c = (OUT / "c.mp3").read_bytes()
(OUT / "tagged.mp3").write_bytes(b"ID3\3\0\0" + bytes([0, 1, 28, 32]) + bytes(20_000) + frames(c))
fault(
    "mp3 of constant rate without an Info header, a tag of 20 kB (a cover) in front",
    "its 2 s: it is whole",
    lambda: length(OUT / "tagged.mp3", 2, 0.2),
)
st = np.stack([X * 0, X], 1)
sf.write(OUT / "right.wav", st, R)


def false_silence():
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter("always")
        load_audio(OUT / "right.wav")
    return f'warns: "{str(w[0].message)[-50:]}"' if w else None


fault(
    "speech on the right channel alone",
    "no warning of silence (700 of 7,858 recordings of tuxpaint-stamps-default are so)",
    false_silence,
)


def crc(page):
    r = 0
    for x in page:
        r ^= x << 24
        for _ in range(8):
            r = (r << 1 ^ 0x04C11DB7 if r & 1 << 31 else r << 1) & 0xFFFFFFFF
    return r


sf.write(OUT / "a.ogg", X, R)
g = bytearray((OUT / "a.ogg").read_bytes())
k = g.rfind(b"OggS")
g[k + 5] &= ~4
g[k + 22 : k + 26] = bytes(4)
g[k + 22 : k + 26] = struct.pack("<I", crc(g[k:]))
(OUT / "no-eos.ogg").write_bytes(g)
fault(
    "Ogg whose last page is whole and does not say that it is the last",
    "its 2 s, with a warning at most (2 files of tuxpaint-stamps-default are so)",
    lambda: length(OUT / "no-eos.ogg", 2),
)


def clipped():
    t = corpus("float")
    for p in (t.parent / "wavs").iterdir():
        sf.write(p, X * 32767, R, subtype="FLOAT")
    c = load_corpus(t)
    write_shards(c, OUT / "float-shards", overwrite=True, progress=False)
    s = open_shards(OUT / "float-shards", c.split)
    bad = float((np.abs(s.audio(0)) > 0.999).mean())
    return (
        f"{bad:.0%} of the samples are clipped in the shards, and the check says:"
        f" {check_data(t).verdict[:22]}"
        if bad > 0.01
        else None
    )


fault(
    "float wav in the range of 16-bit integers",
    "the checker reports it; sharding does not clip it without a word",
    clipped,
)

# --- tables
fault(
    "paths with backslashes, from Windows",
    "found, or the report says that they are backslashes",
    lambda: says(
        corpus("windows", change=lambda k, i, a: (i.replace("/", "\\"), a.replace("/", "\\"))), "backslash"
    ),
)


def upper():
    t = corpus("upper")
    for p in list((t.parent / "wavs").iterdir()):
        p.rename(p.with_suffix(".WAV"))
    return says(t, ".WAV")


fault(".wav in the list, .WAV on the disk", "found, or the report names the file that is there", upper)


def apple():
    t = corpus("apple")
    (t.parent / "._pairs.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(50))
    return None if (r := check_data(t.parent)).ok else r.of("error")[0].what[:120]


fault(
    "._pairs.csv of a Mac beside pairs.csv",
    "files whose names begin with a dot are no tables and no splits",
    apple,
)


def sibling():
    a = corpus("moved")
    corpus("other")
    for p in list((a.parent / "wavs").iterdir()):
        p.unlink()
    do = check_data(a).of("error")[0].do
    return f"advises: {do[-60:]}" if "other" in do or "space" in do or "exif" in do else None


fault(
    "recordings that are gone, beside another corpus with the same names",
    "no advice to take those of the other corpus",
    sibling,
)
fault(
    "one recording for two pictures, no uttid column",
    "both pairs; or a message that says that the recording stands for the uttid",
    lambda: all_here(corpus("twice", change=lambda k, i, a: (i, f"wavs/s{k // 2}.wav"))),
)
print(f"{len(left)} faults are there; inputs in {OUT}")
sys.exit(min(len(left), 99))
