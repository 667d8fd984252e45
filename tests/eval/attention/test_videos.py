from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from dino_exp.errors import UserError
from dino_exp.eval.attention.videos import frames, is_video, write_like, written_suffix

RATE = Fraction(30000, 1001)


def shots(count: int, height: int = 46, width: int = 61) -> Iterator[np.ndarray]:
    """Yield frames of a bright bar that moves right by eight pixels per frame; the upper half is red."""
    for number in range(count):
        image = np.full((height, width, 3), 40, dtype=np.uint8)
        image[: height // 2, :, 0] = 120
        image[:, 8 * number : 8 * number + 8] = 220
        yield image


def film(path: Path, images: Iterable[np.ndarray], rate: Fraction | int = RATE) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        for number, image in enumerate(images):
            if number == 0:
                stream.height, stream.width = image.shape[:2]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov"])
def test_videos_are_read_and_written_with_the_frame_rate_of_another(tmp_path: Path, suffix: str) -> None:
    source, out = film(tmp_path / f"bar{suffix}", shots(6, 46, 62)), tmp_path / "new.mp4"
    assert is_video(source)
    assert written_suffix(source) == ".mp4"
    read = list(frames(source))
    assert [frame.shape for frame in read] == [(46, 62, 3)] * 6
    for number, frame in enumerate(read):
        assert abs(frame[30, 8 * number + 4].astype(int) - 220).max() < 30

    write_like(source, out, shots(6, 47, 61))
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted([source.name, out.name])
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 62, 48)
        assert (stream.average_rate, stream.frames) == (RATE, 6)
    for wanted, got in zip(shots(6, 47, 61), frames(out), strict=True):
        assert abs(got[:47, :61].astype(int) - wanted).mean() < 8


def test_a_video_held_upright_is_read_upright(tmp_path: Path) -> None:
    path = film(tmp_path / "held.mp4", shots(2, 46, 62))
    content = bytearray(path.read_bytes())
    # The 3 x 3 matrix of fixed-point numbers in the track's header becomes a quarter turn clockwise.
    start = content.index(b"tkhd") + 4 + 40
    matrix = np.frombuffer(content, ">i4", 9, start).copy()
    assert matrix.tolist() == [65536, 0, 0, 0, 65536, 0, 0, 0, 2**30]
    matrix[:5] = 0, 65536, 0, -65536, 0
    content[start : start + 36] = matrix.tobytes()
    path.write_bytes(content)
    frame = next(frames(path))
    assert frame.shape == (62, 46, 3)
    assert frame[40, 35, 0] > 90 > 60 > frame[40, 10, 0]  # the upper half is now on the right


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_animations_keep_the_durations_of_their_frames(tmp_path: Path, suffix: str) -> None:
    source, out = tmp_path / f"bar{suffix}", tmp_path / f"new{suffix}"
    first, *others = (Image.fromarray(shot) for shot in shots(4))
    first.save(source, save_all=True, append_images=others, duration=[50, 90, 130, 70])
    assert is_video(source)
    assert written_suffix(source) == suffix
    assert [frame.shape for frame in frames(source)] == [(46, 61, 3)] * 4
    write_like(source, out, (255 - frame for frame in frames(source)))
    for wanted, got in zip(shots(4), frames(out), strict=True):
        assert abs(255 - wanted.astype(int) - got).mean() < 8
    with Image.open(out) as image:
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
    assert durations == [50, 90, 130, 70]

    first.save(tmp_path / f"still{suffix}")
    assert not is_video(tmp_path / f"still{suffix}")


def test_unreadable_videos_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match=r"broken\.mp4: cannot be read as a video"):
        next(frames(broken))

    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        noise = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        noise.sample_rate = 8000
        container.mux(stream.encode(noise))
    with pytest.raises(UserError, match=r"sound\.mkv: the file has no video stream"):
        next(frames(sound))

    film(tmp_path / "private.mp4", shots(3))
    playlist = tmp_path / "playlist.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nprivate.mp4\n#EXT-X-ENDLIST\n")
    concatenated = tmp_path / "concatenated.mp4"
    concatenated.write_text("ffconcat version 1.0\nfile private.mp4\n")
    for listing in (playlist, concatenated):
        with pytest.raises(UserError, match=rf"{listing.name}: cannot be read as a video"):
            next(frames(listing))

    empty = tmp_path / "empty.avi"
    with av.open(str(empty), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = 32, 32
        container.start_encoding()
    with pytest.raises(UserError, match=r"empty\.avi"):
        next(frames(empty))

    cut = tmp_path / "cut.gif"
    first, *others = (Image.fromarray(shot) for shot in shots(4))
    first.save(cut, save_all=True, append_images=others, duration=50)
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cut\.gif: frame 4 cannot be decoded"):
        list(frames(cut))
