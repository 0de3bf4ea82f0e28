"Sound and image files as they come: every format, every defect, and the transforms."

import io
import math
import pickle
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sgmim.core import ConfigError, DataError
from sgmim.data import audio, image
from sgmim.evaluation import figures

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")
RATE = 16_000
noise = np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32).clip(-0.9, 0.9)
tone = (0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


# ---- sound files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ext", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_rates_channels(tmp_path, ext, rate, channels):
    x = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / f"a.{ext}", np.stack([x] * channels, 1), rate)
    y = audio.load_audio(tmp_path / f"a.{ext}")
    assert y.dtype == np.float32 and y.ndim == 1 and abs(len(y) - RATE) < 5000
    spectrum = np.abs(np.fft.rfft(y[2000:12_000] * np.hanning(10_000)))
    assert abs(spectrum.argmax() * RATE / 10_000 - 440) < 3
    if ext in ("wav", "flac"):
        assert len(y) == RATE and np.abs(y - tone)[300:-300].max() < 2e-3


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_wav_encodings(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone, RATE, subtype=subtype)
    assert np.abs(audio.load_audio(tmp_path / "a.wav") - tone).max() < 0.02


def test_many_channels_are_averaged(tmp_path):
    soundfile.write(
        tmp_path / "a.wav", np.stack([tone, tone, -tone, tone * 0, tone], 1), RATE, subtype="FLOAT"
    )
    np.testing.assert_allclose(audio.load_audio(tmp_path / "a.wav"), tone * 0.4, atol=1e-6)


def test_other_target_rate(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise, RATE)
    assert len(audio.load_audio(tmp_path / "a.wav", rate=8000)) == len(noise) // 2


@pytest.mark.parametrize("rate", [16_000, 22_050, 44_100])
@pytest.mark.parametrize("seconds", [0.1, 1, 1.2345, 2.95, 100])
def test_part_equals_cut_whole(tmp_path, rate, seconds):
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).normal(0, 0.1, 3 * rate), rate)
    part, whole = (audio.load_audio(tmp_path / "a.wav", max_seconds=s) for s in (seconds, None))
    np.testing.assert_allclose(part, whole[: round(seconds * RATE)], atol=1e-6)


def test_only_the_needed_part_is_read(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.flac", np.tile(noise, 20), RATE)
    read, count = soundfile.SoundFile.read, []
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, *a, **k: count.append(len(out := read(self, *a, **k))) or out,
    )
    assert len(audio.load_audio(tmp_path / "a.flac", max_seconds=2)) == 2 * RATE
    assert sum(count) < 3 * RATE


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "does not exist"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("<html>404</html>" * 50), "cannot be read as sound"),
        (lambda p: Image.new("RGB", (9, 9)).save(p, "PNG"), "cannot be read as sound"),
        (lambda p: soundfile.write(p, tone[:0], RATE), "has no samples"),
        (lambda p: soundfile.write(p, tone[:399], RATE), "has 399 samples"),
        (lambda p: soundfile.write(p, np.r_[tone, np.nan], RATE, subtype="FLOAT"), "NaN or infinite"),
        (lambda p: soundfile.write(p, np.r_[tone, -np.inf], RATE, subtype="FLOAT"), "NaN or infinite"),
    ],
)
def test_bad_sound_is_named(tmp_path, make, text):
    path = tmp_path / "bad name.wav"
    make(path)
    with pytest.raises(DataError) as e:
        audio.load_audio(path)
    assert text in str(e.value) and "bad name.wav" in str(e.value)


@pytest.mark.parametrize(
    "ext, keep",
    [
        (e, k)
        for e in ("wav", "flac", "ogg", "mp3")
        for k in (0.02, 0.5, 0.9, 0.99)
        if (e, k) != ("mp3", 0.99)
    ],
)  # an mp3 may lack two frames: its length is an estimate
def test_truncated_sound(tmp_path, ext, keep):
    soundfile.write(tmp_path / f"a.{ext}", noise, RATE)
    whole = (tmp_path / f"a.{ext}").read_bytes()
    (tmp_path / f"a.{ext}").write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(DataError, match="truncated|cannot be read"):
        audio.load_audio(tmp_path / f"a.{ext}")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_streamed_wav_without_size_is_fine(tmp_path, size):
    soundfile.write(tmp_path / "a.wav", tone, RATE)
    x = bytearray((tmp_path / "a.wav").read_bytes())
    x[40:44] = size.to_bytes(4, "little")
    (tmp_path / "a.wav").write_bytes(x)
    np.testing.assert_allclose(audio.load_audio(tmp_path / "a.wav"), tone, atol=1e-4)


def test_a_header_that_promises_terabytes(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone, RATE)
    x = bytearray((tmp_path / "a.flac").read_bytes())
    x[21] |= 0x0F  # the highest bits of FLAC's 36-bit sample count
    (tmp_path / "a.flac").write_bytes(x)
    with pytest.raises(DataError):
        audio.load_audio(tmp_path / "a.flac")


# what a container says of itself: 2 s of a tone that comes and goes

two = (0.3 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE) * np.linspace(0, 1, 2 * RATE)).astype(
    np.float32
)
ID3V2 = b"ID3\3\0\0" + bytes([0, 1, 28, 32]) + bytes(20_000)
ID3V1 = b"TAG" + bytes(125)


def encoded(kind, subtype=None, wave=two, rate=RATE, **options):
    soundfile.write(out := io.BytesIO(), wave, rate, format=kind, subtype=subtype, **options)
    return out.getvalue()


def put(blob, at, new):
    return blob[:at] + new + blob[at + len(new) :]


def of_length(flac, n):
    return put(flac, 21, bytes([flac[21] & 0xF0 | n >> 32 & 15]) + (n & 0xFFFFFFFF).to_bytes(4, "big"))


def bare(mp3):
    return mp3[audio._mp3_frame(mp3[:4])[0] :]  # without its Xing or Info header


def not_last(ogg):
    "The last page without its mark, its checksum made anew."
    at = ogg.rfind(b"OggS")
    page = put(put(ogg[at:], 5, bytes([ogg[at + 5] & ~4])), 22, bytes(4))
    crc = 0
    for byte in page:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return ogg[:at] + put(page, 22, struct.pack("<I", crc))


WAVE, FLAC, OGG, AIFF, AU = (encoded(kind) for kind in ("WAV", "FLAC", "OGG", "AIFF", "AU"))
WHOLE = {
    **{
        f"wav of size {n:x}": put(WAVE, 40, struct.pack("<I", n))
        for n in (0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000)
    },
    "wav after a tag": ID3V2 + WAVE,
    "wav before a tag": WAVE + ID3V1,
    "wav before junk": WAVE + bytes(999),
    "wav before a chunk": WAVE + b"LIST\4\0\0\0abcd",
    "wav with an odd chunk": WAVE[:36] + b"LIST\5\0\0\0abcde\0" + WAVE[36:],
    "flac of no length": of_length(FLAC, 0),
    "flac of no length before a tag": of_length(FLAC, 0) + ID3V1,
    "flac after a tag": ID3V2 + FLAC,
    "flac before a tag": FLAC + ID3V1,
    "flac before zeros": FLAC + bytes(1000),
    "ogg not marked as ended": not_last(OGG),
    "ogg before zeros": OGG + bytes(100_000),
    "ogg before a tag": OGG + ID3V1,
    "ogg after a tag": ID3V2 + OGG,
    "au of size -1": put(AU, 8, b"\xff" * 4),
    "au of size 0": put(AU, 8, bytes(4)),
    "aiff of size 0": put(AIFF, AIFF.find(b"SSND") + 4, bytes(4)),
    **{f"{kind}, whole": encoded(kind) for kind in ("WAVEX", "RF64", "W64", "CAF", "NIST")},
}


@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a.gsm", "a"])
@pytest.mark.parametrize("blob", WHOLE.values(), ids=WHOLE)
def test_whole_recordings_are_read_whole(tmp_path, blob, name):
    "Whatever their header says of the length, whatever stands around them, and whatever they are called."
    (tmp_path / name).write_bytes(blob)
    assert abs(len(audio.load_audio(tmp_path / name)) - 2 * RATE) <= 2
    n, rate = audio.sound_length(tmp_path / name)
    assert rate == RATE and n in (0, 2 * RATE)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize(
    "channels, mode",
    [
        pytest.param(c, m, marks=() if (c, m) in ((1, "CONSTANT"), (2, "VARIABLE")) else pytest.mark.slow)
        for c in (1, 2)
        for m in ("CONSTANT", "AVERAGE", "VARIABLE")
    ],
)
def test_an_mp3_is_as_long_as_its_frames(tmp_path, rate, channels, mode):
    "Without a Xing header, with tags of any size around it, padded; quiet first or loud first."
    wave = np.interp(np.arange(2 * rate) / rate, np.arange(2 * RATE) / RATE, two)
    for x in (wave, wave[::-1]):
        whole = encoded(
            "MP3", wave=np.stack([x] * channels, 1), rate=rate, bitrate_mode=mode, compression_level=0.4
        )
        for blob in (
            whole,
            bare(whole),
            ID3V2 + whole,
            ID3V2 + bare(whole),
            bare(whole) + ID3V1,
            bare(whole) + b"APETAGEX" + bytes(24) + ID3V1,
            bytes(500) + bare(whole),
            ID3V2 + bytes(99) + bare(whole),
        ):
            (tmp_path / "a.mp3").write_bytes(blob)
            assert abs(len(audio.load_audio(tmp_path / "a.mp3")) / RATE - 2) < 4 * 1152 / rate
            n, r = audio.sound_length(tmp_path / "a.mp3")
            assert abs(n / r - 2) < 4 * 1152 / rate
        (tmp_path / "a.mp3").write_bytes(whole + whole)  # its header speaks of the first half alone
        assert abs(len(audio.load_audio(tmp_path / "a.mp3")) / RATE - 4) < 8 * 1152 / rate


CUT = {
    **{
        f"{kind} cut": encoded(kind)[:-9000]
        for kind in ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST")
    },
    "wav cut after a tag": ID3V2 + WAVE[:-9000],
    "flac cut": FLAC[:-900],
    "flac of no length cut": of_length(FLAC, 0)[:-900],
    "flac longer than it is": of_length(FLAC, 40_000),
    "ogg cut": OGG[:-1],
    "ogg cut in a header": OGG + b"Ogg",
    "opus cut": encoded("OGG", "OPUS")[:-40],
    "ADPCM cut": encoded("WAV", "IMA_ADPCM")[:-9000],
    "mp3 without a header cut": bare(encoded("MP3", bitrate_mode="CONSTANT", compression_level=0.5))[:-50],
    "mp3 cut": encoded("MP3")[:-2000],
}


@pytest.mark.parametrize("blob", CUT.values(), ids=CUT)
def test_cut_recordings_are_refused(tmp_path, blob):
    (tmp_path / "a.wav").write_bytes(blob)
    with pytest.raises(DataError, match="truncated|cannot be read as sound"):
        audio.load_audio(tmp_path / "a.wav")


def test_an_end_that_is_not_marked_is_said(tmp_path):
    (tmp_path / "a.ogg").write_bytes(not_last(OGG))
    with pytest.warns(UserWarning, match="a.ogg does not mark its last page"):
        audio.load_audio(tmp_path / "a.ogg")


def test_recordings_one_after_the_other_are_refused(tmp_path):
    (tmp_path / "a.ogg").write_bytes(OGG + OGG)
    with pytest.raises(DataError, match="several recordings"):
        audio.load_audio(tmp_path / "a.ogg")


@pytest.mark.parametrize("tag", [b"", ID3V2])
def test_recordings_behind_a_tag_are_looked_through(tmp_path, tag):
    for blob, said in ((OGG + OGG, "several recordings"), (OGG[:-1], "truncated")):
        (tmp_path / "a.ogg").write_bytes(tag + blob)
        with pytest.raises(DataError, match=said):
            audio.load_audio(tmp_path / "a.ogg")


@pytest.mark.parametrize("strip", [bare, lambda x: x])
@pytest.mark.parametrize("rates", [(44_100, 22_050), (22_050, 44_100), (44_100, 48_000)])
def test_joined_mp3s_of_different_rates_are_refused(tmp_path, rates, strip):
    (tmp_path / "a.mp3").write_bytes(b"".join(strip(encoded("MP3", rate=r)) for r in rates))
    with pytest.raises(DataError, match="a.mp3 is an mp3 of several recordings.*Split it"):
        audio.load_audio(tmp_path / "a.mp3")


def test_sound_behind_the_data_chunk_is_said(tmp_path):
    (tmp_path / "a.wav").write_bytes(put(WAVE, 40, struct.pack("<I", 16_000)))
    with pytest.warns(UserWarning, match="holds 48,000 bytes behind its sound"):
        audio.load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("front", [b"", ID3V2])
@pytest.mark.parametrize("filler", [0, 4044, 100_000])
@pytest.mark.parametrize("start", [b"", b"ABCD"])
def test_a_wav_of_size_0_behind_anything(tmp_path, front, filler, start):
    sound = start + WAVE[44 + len(start) :]
    chunk = b"FLLR" + struct.pack("<I", filler) + bytes(filler) if filler else b""
    (tmp_path / "a.wav").write_bytes(front + WAVE[:36] + chunk + b"data" + bytes(4) + sound)
    assert len(audio.load_audio(tmp_path / "a.wav")) == 2 * RATE


@pytest.mark.parametrize("read", [audio.load_audio, image.load_image])
def test_a_name_that_no_file_can_have(read):
    with pytest.raises(DataError, match="does not exist"):
        read("x" * 300 + ".wav")


def test_a_file_that_may_not_be_opened(tmp_path, monkeypatch):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")

    def closed(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", closed)
    for read in (audio.load_audio, image.load_image):
        with pytest.raises(DataError, match="a.png cannot be opened: Permission denied"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.raw", "a.gsm", "a.vox", "a.pcm", "a.sln", "a.au", "a.ul", "a.wav"])
def test_sound_without_a_header_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes((two * 32767).astype("<i2").tobytes())
    with pytest.raises(DataError, match="cannot be read as sound"):
        audio.load_audio(tmp_path / name)


@pytest.mark.parametrize("kind", ["VOC", "SVX", "IRCAM", "MAT5", "PVF"])
def test_formats_whose_end_cannot_be_checked_are_refused(tmp_path, kind):
    (tmp_path / "a.wav").write_bytes(encoded(kind, "PCM_16"))
    with pytest.raises(DataError, match=f"in the format {kind}.*Convert it to wav or flac"):
        audio.load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("channels", [(0, 1), (1, 0), (0, 0, 1)])
def test_one_channel_that_speaks_is_not_silence(tmp_path, channels):
    soundfile.write(tmp_path / "a.wav", np.stack([two * c for c in channels], 1), RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(audio.load_audio(tmp_path / "a.wav")).max() > 0.05


def test_channels_that_cancel_each_other_are_said(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([two, -two], 1), RATE, subtype="FLOAT")
    with pytest.warns(UserWarning, match="channels cancel each other"):
        audio.load_audio(tmp_path / "a.wav")


def test_nan_in_any_channel(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([two, two * np.nan], 1), RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="NaN"):
        audio.load_audio(tmp_path / "a.wav")


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize(
    "peak, divided_by, said",
    [
        (1.3, 1, None),
        (7.9, 1, None),
        (300.0, 2**15, "16-bit"),
        (32_767.0, 2**15, "16-bit"),
        (8e6, 2**23, "24-bit"),
        (2e9, 2**31, "32-bit"),
    ],
)
def test_integers_written_as_floats(tmp_path, subtype, peak, divided_by, said):
    x = two / np.abs(two).max() * peak
    soundfile.write(tmp_path / "a.wav", x, RATE, subtype=subtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        np.testing.assert_allclose(audio.load_audio(tmp_path / "a.wav"), x / divided_by, rtol=1e-5, atol=1e-6)
    assert [said in str(w.message) for w in caught] == [True] * bool(said)


def test_floats_beyond_any_integer_are_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", two * 1e13, RATE, subtype="FLOAT")
    with pytest.raises(DataError, match="float samples up to"):
        audio.load_audio(tmp_path / "a.wav")


def test_silence_warns_and_loads(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(1000), RATE)
    with pytest.warns(UserWarning, match="a.wav is silent"):
        assert len(audio.load_audio(tmp_path / "a.wav")) == 1000


def test_good_sound_does_not_warn(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone, RATE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        audio.load_audio(str(tmp_path / "a.wav"))


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_max_seconds_has_to_be_positive(tmp_path, seconds):
    with pytest.raises(DataError, match="max_seconds"):
        audio.load_audio(tmp_path / "a.wav", max_seconds=seconds)


def test_two_problems_are_both_told():
    with pytest.raises(DataError, match="first frame needs 400 and holds NaN"):
        audio.check_audio(np.array([np.nan]), "x")


@pytest.mark.parametrize("ext", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("channels", [1, 2])
def test_write_and_read_back(tmp_path, ext, channels):
    wave = tone if channels == 1 else np.stack([tone] * 2, 1)
    audio.write_audio(tmp_path / "new" / f"a.{ext}", wave)
    y = audio.load_audio(tmp_path / "new" / f"a.{ext}")
    n = min(len(y), len(tone))
    assert np.corrcoef(y[:n], tone[:n])[0, 1] > 0.9 or ext == "mp3"
    assert [p.name for p in (tmp_path / "new").iterdir()] == [f"a.{ext}"]


@pytest.mark.parametrize("wave", [tone * 4, tone * np.nan, tone[:0]])
def test_failed_write_leaves_the_old_file(tmp_path, wave):
    audio.write_audio(tmp_path / "a.wav", tone)
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(DataError):
        audio.write_audio(tmp_path / "a.wav", wave)
    assert (tmp_path / "a.wav").read_bytes() == before


@pytest.mark.parametrize("from_rate, to_rate", [(0, 16_000), (16_000, 0), (-1, 16_000)])
def test_impossible_rates(from_rate, to_rate):
    with pytest.raises(DataError, match="rates are > 0"):
        audio.resample(tone, from_rate, to_rate)


def test_resample_same_rate_and_empty():
    assert audio.resample(tone, RATE) is tone and len(audio.resample(tone[:0], 8000)) == 0


@pytest.mark.parametrize("bad", [np.zeros(5, np.int16), np.zeros((2, 2, 2)), np.float32(1)])
def test_to_mono_refuses(bad):
    with pytest.raises(DataError):
        audio.to_mono(bad)


def test_pad_batch_edges():
    batch, lens = audio.pad_batch([np.ones(0), np.ones(2)], length=3)
    assert batch.tolist() == [[0, 0, 0], [1, 1, 0]] and lens.tolist() == [0, 2]
    assert batch.dtype == np.float32 and lens.dtype == np.int64


@pytest.mark.parametrize("window, hop", [(400, 320), (400, 160), (1610, 640)])
@pytest.mark.parametrize("n", [1610, 1611, 16_000, 16_239])
def test_frame_count_is_the_cnns(window, hop, n):
    kernels, strides = {
        320: ((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)),
        160: ((400,), (160,)),
        640: ((20, 4, 4, 4, 4), (10, 4, 4, 2, 2)),
    }[hop]
    T = n
    for k, s in zip(kernels, strides, strict=True):
        T = (T - k) // s + 1
    assert (
        len(audio.log_mel(noise[:n], window=window, hop=hop))
        == len(audio.mfcc(noise[:n], window=window, hop=hop))
        == T
    )


def test_features_are_finite_even_for_silence():
    for f in (audio.log_mel, audio.mfcc):
        x = f(np.zeros(4000))
        assert np.isfinite(x).all() and x.dtype == np.float32


def test_log_mel_too_short():
    with pytest.raises(DataError, match="less than one window"):
        audio.log_mel(tone[:100])


# ---- image files -------------------------------------------------------------------------------------------

rgb = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
photo = Image.fromarray(np.asarray(Image.fromarray(rgb[:5, :7]).resize((600, 400), Image.Resampling.BICUBIC)))


def at(im, xy=(0, 0)):
    assert im.mode == "RGB"
    return im.getpixel(xy)


def test_png_is_exact(tmp_path):
    Image.fromarray(rgb).save(tmp_path / "a.png")
    assert (np.asarray(image.load_image(tmp_path / "a.png")) == rgb).all()


@pytest.mark.parametrize("ext", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
def test_image_formats(tmp_path, ext):
    photo.save(tmp_path / f"a.{ext}")
    im = image.load_image(str(tmp_path / f"a.{ext}"))
    assert im.mode == "RGB" and im.size == (600, 400)
    assert np.abs(np.asarray(im, float) - np.asarray(photo)).mean() < 12


def test_grey(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.new("L", (20, 20), 100).save(tmp_path / name)
        assert at(image.load_image(tmp_path / name)) == (100, 100, 100)


def test_sixteen_bit_grey_is_scaled(tmp_path):
    for name in ("a.png", "a.tiff"):
        Image.fromarray(np.array([[0, 25_700, 65_535]], np.uint16).repeat(3, 0)).save(tmp_path / name)
        im = image.load_image(tmp_path / name)
        assert [at(im, (x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_32_bit_grey(tmp_path):
    Image.fromarray(np.full((3, 3), 257 * 7, np.int32)).save(tmp_path / "a.tiff")
    assert at(image.load_image(tmp_path / "a.tiff")) == (7, 7, 7)
    Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(tmp_path / "b.tiff")
    with pytest.raises(DataError, match="b.tiff.*do not fit in 16 bits"):
        image.load_image(tmp_path / "b.tiff")


def test_float_is_refused(tmp_path):
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="a.tiff holds floating-point"):
        image.load_image(tmp_path / "a.tiff")


@pytest.mark.parametrize(
    "mode, colour, want",
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("LA", (0, 0), (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
    ],
)
def test_transparency_over_white(tmp_path, mode, colour, want):
    Image.new(mode, (4, 4), colour).save(tmp_path / "a.png")
    assert np.abs(np.subtract(at(image.load_image(tmp_path / "a.png")), want)).max() <= 1


def test_palette_with_and_without_transparency(tmp_path):
    im = Image.new("P", (4, 4), 1)
    im.putpalette([0, 0, 0, 10, 200, 30])
    im.save(tmp_path / "a.png")
    im.save(tmp_path / "b.png", transparency=1)
    im.save(tmp_path / "c.gif", transparency=1)
    assert at(image.load_image(tmp_path / "a.png")) == (10, 200, 30)
    assert (
        at(image.load_image(tmp_path / "b.png"))
        == at(image.load_image(tmp_path / "c.gif"))
        == (255, 255, 255)
    )


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    r, g, b = at(image.load_image(tmp_path / "a.jpg", size=8))
    assert r > 220 and g < 40 and b < 40


def test_animation_gives_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert at(image.load_image(tmp_path / "a.gif")) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ext", ["jpg", "png", "webp"])
def test_every_exif_orientation(tmp_path, orientation, ext):
    upright = np.zeros((40, 60, 3), np.uint8)
    upright[:10, :10, 0] = 255  # a red corner, top left
    to_stored = {
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: np.rot90(x, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(to_stored(upright))).save(
        tmp_path / f"a.{ext}", exif=exif, quality=95
    )
    im = image.load_image(tmp_path / f"a.{ext}")
    assert im.size == (60, 40) and at(im, (3, 3))[0] > 200
    assert all(at(im, xy)[0] < 60 for xy in ((55, 3), (3, 35), (55, 35)))


@pytest.mark.parametrize(
    "want, got",
    [
        (None, (600, 400)),
        (400, (600, 400)),
        (200, (300, 200)),
        (120, (300, 200)),
        (100, (150, 100)),
        (1, (75, 50)),
    ],
)
def test_draft_mode_never_goes_below(tmp_path, want, got):
    photo.save(tmp_path / "a.jpg")
    assert image.load_image(tmp_path / "a.jpg", size=want).size == got


def test_draft_mode_shows_the_same_picture(tmp_path):
    photo.save(tmp_path / "a.jpg", quality=95)
    small = np.asarray(image.load_image(tmp_path / "a.jpg", size=100), float)
    assert np.abs(small - np.asarray(photo.resize((150, 100), Image.Resampling.BOX), float)).mean() < 3


def test_draft_mode_with_grey_jpeg_and_with_png(tmp_path):
    photo.convert("L").save(tmp_path / "a.jpg")
    photo.save(tmp_path / "a.png")
    assert image.load_image(tmp_path / "a.jpg", size=100).size == (150, 100)
    assert image.load_image(tmp_path / "a.png", size=100).size == (600, 400)


def make_bomb(p):
    Image.new("1", (10_000, 9_500)).save(p, "PNG")


def make_huge_bomb(p):
    Image.new("1", (20_000, 19_000)).save(p, "PNG")


def make_strip(p):
    Image.new("L", (1, 500)).save(p, "PNG")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def jpeg_with_exif(*entries, order="<", count=None):
    """A JPEG of 64 x 48 pixels with orientation 6 and `entries` (tag, type, count, four bytes) in its EXIF
    block."""
    Image.fromarray((np.random.default_rng(0).random((48, 64, 3)) * 255).astype(np.uint8)).save(
        out := io.BytesIO(), "JPEG"
    )
    rows = [(0x112, 3, 1, struct.pack(order + "HH", 6, 0)), *entries]
    block = (
        b"Exif\0\0"
        + (b"II*\0" if order == "<" else b"MM\0*")
        + struct.pack(order + "IH", 8, len(rows) if count is None else count)
    )
    block += b"".join(struct.pack(order + "HHI", *r[:3]) + r[3] for r in rows) + bytes(4)
    return out.getvalue()[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + out.getvalue()[2:]


@pytest.mark.parametrize("order", ["<", pytest.param(">", marks=pytest.mark.slow)])
@pytest.mark.parametrize("tag", [0x11A, 0x128, 0x132, 0x8769, 0x8825, 0x927C, 0x829A, 0x201, 0xFFFF])
def test_broken_exif_entries_do_not_matter(tmp_path, tag, order):
    "Of any type, count and value: the pixels are whole, and the orientation can be read."
    for kind in range(14):
        for count, value in (
            (0, bytes(4)),
            (4, b"abc\0"),
            (2**32 - 1, b"\xff" * 4),
            (1000, struct.pack("<I", 20)),
        ):
            (tmp_path / "a.jpg").write_bytes(jpeg_with_exif((tag, kind, count, value), order=order))
            assert image.load_image(tmp_path / "a.jpg").size == (48, 64), (kind, count)


@pytest.mark.parametrize("count", [0, 50, 65_535])
def test_a_broken_exif_directory(tmp_path, count):
    (tmp_path / "a.jpg").write_bytes(jpeg_with_exif(count=count))
    assert image.load_image(tmp_path / "a.jpg").size == ((48, 64) if count else (64, 48))


@pytest.mark.parametrize(
    "error",
    [
        TypeError,
        KeyError,
        ZeroDivisionError,
        AttributeError,
        OverflowError,
        AssertionError,
        RecursionError,
        MemoryError,
        RuntimeError,
    ],
)
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")

    def broken(self):
        raise error("inside")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(DataError, match=f"a.png cannot be decoded .{error.__name__}: '?inside"):
        image.load_image(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_raw_tiffs_are_upright(tmp_path, orientation):
    "Pillow maps a raw TIFF into memory if it opens it by its path."
    pixels = (np.random.default_rng(0).random((48, 64)) * 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(
        np.asarray(image.load_image(tmp_path / "a.tif")), np.asarray(image.load_image(tmp_path / "a.png"))
    )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.parametrize("name", ["a.jpg", "a.eps", "a.png"])
@pytest.mark.parametrize(
    "blob",
    [
        POSTSCRIPT,
        b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
        b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    ],
    ids=["eps", "eps with a preview", "wmf"],
)
def test_no_other_program_is_started(tmp_path, monkeypatch, name, blob):
    (tmp_path / name).write_bytes(blob)

    def started(*args, **kwargs):
        raise AssertionError("another program was started")

    for function in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, function, started)
    with pytest.raises(DataError, match="no image of a format that is read here"):
        image.load_image(tmp_path / name)


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.mkdir(), "does not exist"),
        (lambda p: p.write_bytes(b""), "is empty"),
        (lambda p: p.write_text("<html>404</html>"), "no image"),
        (make_bomb, "more than"),
        (make_huge_bomb, "cannot be decoded"),
        (make_strip, "a strip"),
    ],
)
def test_bad_image_is_named(tmp_path, make, text):
    path = tmp_path / "bad name.jpg"
    make(path)
    with pytest.raises(DataError) as e:
        image.load_image(path)
    assert text in str(e.value) and "bad name.jpg" in str(e.value)


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("ext", ["jpg", "png", "gif", "bmp", "tiff", "webp"])
@pytest.mark.parametrize("keep", [0.01, 0.1, 0.5, 0.9])
def test_truncated_image(tmp_path, ext, keep):
    Image.fromarray(rgb).save(tmp_path / f"a.{ext}")
    whole = (tmp_path / f"a.{ext}").read_bytes()
    (tmp_path / f"a.{ext}").write_bytes(whole[: max(1, int(len(whole) * keep))])
    with pytest.raises(DataError, match=f"a.{ext}"):
        image.load_image(tmp_path / f"a.{ext}")


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (31, 1), (2000, 1500)])
def test_tiny_and_large_go_through_the_transforms(size):
    im = Image.new("RGB", size, "red")
    for t in (image.train_transform(32), image.eval_transform(32)):
        x = t(im)
        assert x.shape == (3, 32, 32) and x.isfinite().all()


# ---- normalisation and transforms --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 5, 6, 3), (2, 3, 5, 6), (5, 6, 3), (3, 5, 6)])
def test_normalise_against_the_formula_and_back(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    z = image.normalise(x)
    channels_last = x if shape[-1] == 3 else np.moveaxis(x, -3, -1)
    want = (channels_last / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(z.movedim(-3, -1), want, atol=1e-5)
    assert z.dtype == torch.float32 and (image.denormalise(z).numpy() == channels_last).all()


def test_denormalise_clips():
    assert image.denormalise(torch.full((3, 1, 1), 99.0)).tolist() == [[[255] * 3]]
    assert image.denormalise(torch.full((1, 3, 1, 1), -99.0)).tolist() == [[[[0] * 3]]]


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((1, 1, 3, 4, 4), np.uint8),
    ],
)
def test_normalise_refuses(bad):
    with pytest.raises(DataError):
        image.normalise(bad)


def test_train_transform_is_seeded_and_random():
    t = image.train_transform(48)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(t(photo))
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_everything_switched_off_is_a_resize():
    x = image.train_transform(48, randaugment=None, crop_scale=None, flip=0)(photo)
    want = image.normalise(np.array(photo.resize((48, 48), Image.Resampling.BICUBIC)))
    torch.testing.assert_close(x, want, atol=1e-5, rtol=0)


def test_flip_alone():
    a, b = (image.train_transform(48, randaugment=None, crop_scale=None, flip=f)(photo) for f in (0, 1))
    assert (a - b.flip(-1)).abs().max() < 0.05


def test_arrays_and_uint8_output():
    t = image.eval_transform(48, normalised=False)
    x = t(np.array(photo))
    assert x.shape == (48, 48, 3) and x.dtype == np.uint8
    torch.testing.assert_close(image.normalise(x), image.eval_transform(48)(photo), atol=1e-5, rtol=0)
    assert image.train_transform(48, normalised=False)(photo).dtype == np.uint8


def test_grey_through_the_transform():
    assert image.eval_transform(16)(Image.new("L", (20, 20), 9)).shape == (3, 16, 16)


def test_transforms_travel_to_worker_processes():
    for t in (image.train_transform(16), image.eval_transform(16, normalised=False)):
        pickle.loads(pickle.dumps(t))(photo)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(crop_scale=(0, 1)),
        dict(crop_scale=(0.9, 0.1)),
        dict(crop_scale=(0.1, 2)),
        dict(flip=-1),
        dict(flip=1.5),
    ],
)
def test_bad_transform_arguments(kwargs):
    with pytest.raises(ConfigError):
        image.train_transform(16, **kwargs)


def test_jpeg_bytes_stay_closed(tmp_path):
    photo.save(tmp_path / "a.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a file left open is a ResourceWarning
        for _ in range(3):
            image.load_image(tmp_path / "a.jpg")


# ---- figures -----------------------------------------------------------------------------------------------


def png(fig):
    data = fig._repr_png_()
    assert data[:4] == b"\x89PNG"
    return np.asarray(Image.open(io.BytesIO(data)).convert("L"))


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 4, 12])
@pytest.mark.parametrize("spectrogram", [False, True])
@pytest.mark.parametrize(
    "words",
    [
        (),
        [("a", 0.0, 0.1), ("red", 0.1, 0.5), ("house", 0.5, 1.0)],
        [("extraordinarily", i / 20, (i + 1) / 20) for i in range(20)],
    ],
)
def test_attention_figure(heads, spectrogram, words):
    w = torch.rand(heads, 49).softmax(1).requires_grad_()
    fig = figures.attention_figure(tone, w, words, spectrogram=spectrogram, title="title")
    assert len(fig.axes) == heads + 1 and png(fig).std() > 1


def test_attention_figure_edges():
    png(figures.attention_figure(np.zeros(500), np.zeros((2, 1))))  # silence, one frame, nothing seen
    for wave, w in [
        (tone, np.ones(4)),
        (tone, -np.ones((1, 4))),
        (tone * np.nan, np.ones((1, 4))),
        (tone[:0], np.ones((1, 4))),
        (tone, np.ones((0, 4))),
    ]:
        with pytest.raises(DataError):
            figures.attention_figure(wave, w)


@pytest.mark.parametrize("n, columns", [(1, 6), (6, 6), (7, 3)])
def test_gallery(n, columns):
    for images in ([photo] * n, [rgb] * n, image.normalise(rgb)[None].expand(n, -1, -1, -1)):
        assert len([a for a in figures.gallery(images, ["x"] * n, columns).axes if a.images]) == n
    with pytest.raises(DataError):
        figures.gallery([])


def test_retrieval_gallery_marks_the_right_ones():
    fig = figures.retrieval_gallery(
        ["a", photo],
        [photo, "text " * 99, rgb],
        [[0, 1, 2], [2, 1, 0]],
        right=[1, [0, 2]],
        ranks=np.array([2, 1]),
    )
    marks = [a.get_title() for a in fig.axes]
    assert marks == ["query", "1", "2 ✓", "3", "", "1 ✓", "2", "3 ✓"] and png(fig).std() > 1
    with pytest.raises(DataError):
        figures.retrieval_gallery(["a"], [photo], [0], right=[0])


@pytest.mark.parametrize("N, D", [(4, 1), (64, 3), (196, 768)])
@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_reconstruction_figure(N, D, n):
    rng = np.random.default_rng(0)
    target, mask = rng.normal(size=(N, D)), np.arange(N) % 4 > 0
    fig = figures.reconstruction_figure(
        photo.resize((96, 96)),
        torch.from_numpy(mask),
        torch.from_numpy(target),
        {str(i): target + i for i in range(n)},
    )
    titles = [a.get_title() for a in fig.axes]
    assert "mean error 0" in titles and png(fig).std() > 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t, p, m: (t[:3], p, m),
        lambda t, p, m: (t, p * np.nan, m),
        lambda t, p, m: (t, p, m[:3]),
        lambda t, p, m: (t, p, m & False),
    ],
)
def test_reconstruction_figure_refuses(spoil):
    t, p, m = spoil(np.ones((4, 2)), np.ones((4, 2)), np.ones(4, bool))
    with pytest.raises(DataError):
        figures.reconstruction_figure(photo, m, t, {"x": p})


def test_curves_leave_out_what_was_not_measured():
    history = [dict(step=s, loss_nce=1.0, loss_mim=0.0 if s < 5 else 1.0, lr=0.1) for s in range(100)] + [
        dict(step=50, recall_at_1=3.0)
    ]
    fig = figures.curves_figure(history)
    assert len(fig.axes) == 4 and fig.axes[1].lines[0].get_xdata()[0] == 5 and png(fig).std() > 1
    assert len(figures.curves_figure({"a": history, "b": history[:3]}).axes) == 4
    assert len(figures.curves_figure(history[-1:]).axes) == 1
    recalls = [dict(step=s, recall_at_1=1.0, recall_at_5=2.0) for s in range(3)]
    [panel] = figures.curves_figure({"a": recalls, "b": recalls}).axes  # of several runs the first key alone
    assert [line.get_label() for line in panel.lines] == ["a", "b"] and panel.get_title() == "R@1 in %"
    with pytest.raises(DataError):
        figures.curves_figure([])


@pytest.mark.parametrize("ext", ["png", "svg", "pdf"])
def test_save_figure(tmp_path, ext):
    figures.save_figure(figures.gallery([photo]), tmp_path / "new" / f"a.{ext}")
    assert (tmp_path / "new" / f"a.{ext}").stat().st_size > 1000 and len(
        list((tmp_path / "new").iterdir())
    ) == 1
    with pytest.raises(DataError):
        figures.save_figure(figures.gallery([photo]), tmp_path / "a.txt")


@pytest.mark.slow
def test_drawing_does_not_need_pyplot():
    code = (
        "import sys, numpy as np; from sgmim.evaluation.figures import *; attention_figure(np.ones(999),"
        " np.ones((12, 3)), [('a', 0, .05)], spectrogram=True)._repr_png_(); assert 'matplotlib.pyplot' not"
        " in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
