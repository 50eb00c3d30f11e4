"""Video files: what FFmpeg reads in, H.264 in .mp4 and GIF out.

    video = read_video("clip.mp4")
    write_video("mirrored.mp4", (frame[:, ::-1] for frame in video), video.fps)

Frames are (h, w, 3) float32 in [-1, 1], upright and in sRGB. What is wrong with a file is a UserError, what is wrong
with an array a ValueError.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation

from ganstyle_jax.io import deep, images
from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.io.pictures import check_destination, rgb, uint8, unreadable, writing

VIDEO_SUFFIXES = (".mp4", ".gif")  # that are written
# FFmpeg's names of what is read: files that hold their pictures themselves. Lists of other files, which a text named
# .mp4 may be, are none of them.
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,ogg,asf,ivf,h264,hevc,obu,av1,m4v,"
    "dv,mxf,nut,rm,swf,wav,mp3,flac,aac,yuv4mpegpipe"
)
MAX_FRAME = 1 << 26  # pixels, 8,192 x 8,192: a frame in work takes 20 bytes a pixel
H264_QUALITY = "17"  # the constant rate factor: at 23, the usual one, losses can be seen, at 17 hardly
UNSPECIFIED = 2  # of a frame's colorspace
# SWS_ACCURATE_RND and full chroma in and out: FFmpeg's usual conversion to RGB is fast, and 1/255 too dark.
EXACT = Interpolation.BICUBIC | 0x40000 | 0x4000 | 0x2000


@dataclasses.dataclass(frozen=True)
class Video:
    """A video file. Iterating decodes it from its beginning, one frame (h, w, 3) float32 in [-1, 1] at a time."""

    path: Path
    fps: float  # frames a second, on average
    shape: tuple[int, int]  # (h, w) of the frames

    def __iter__(self) -> Iterator[np.ndarray]:
        with open_video(self.path) as container:
            for frame in container.decode(video=0):
                yield frame_pixels(frame)


def read_video(path: Path | str) -> Video:
    """The pictures, not the sound, of a video file of any kind that FFmpeg reads, GIF among them.

    Raises UserError, in the iteration also, for a file that is missing, damaged or has no pictures. One that was cut
    short may just end early.
    """
    path = Path(path)
    with open_video(path) as container:
        rate = container.streams.video[0].average_rate
        first = next(container.decode(video=0), None)
        if first is None or not rate:
            raise UserError(f"{path} has no frames")
        return Video(path, float(rate), frame_pixels(first).shape[:2])


@contextlib.contextmanager
def open_video(path: Path) -> Iterator[Any]:
    """PyAV's container of a file that has pictures; whatever goes wrong within it is a UserError."""
    try:
        options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
        with av.open(f"file:{path}", options=options) as container:
            if not container.streams.video:
                raise UserError(f"{path} has sound but no pictures; give a video")
            stream = container.streams.video[0]
            if stream.width * stream.height > MAX_FRAME:
                raise UserError(
                    f"{path} has frames of {stream.width} x {stream.height} pixels; at most {MAX_FRAME} are read, make "
                    "the video smaller first"
                )
            stream.codec_context.options = {"max_pixels": str(MAX_FRAME)}  # a frame's own header may say more
            stream.thread_type = "AUTO"
            yield container
    except UserError:
        raise
    except av.ArgumentError as error:  # of DEMUXERS; a list of other files, for example
        raise UserError(
            f"{path} cannot be read as a video: it is of another kind than {', '.join(DEMUXERS.split(',')[:9])}"
        ) from error
    except Exception as error:  # FFmpeg's errors, and PyAV's own where a damaged file makes no sense
        raise unreadable(path, "video", error) from error


def frame_pixels(frame: av.VideoFrame) -> np.ndarray:
    """(h, w, 3) float32 in [-1, 1], upright, in sRGB."""
    # Where a file does not say by which matrix its colours were made, players go by the size.
    matrix = Colorspace.ITU709 if frame.colorspace == UNSPECIFIED and frame.height >= 720 else None
    transparent = any(component.is_alpha for component in frame.format.components)
    kind = "rgba" if transparent else "rgb24"
    pixels = frame.to_ndarray(format=kind, src_colorspace=matrix, interpolation=EXACT)
    upright = np.rot90(pixels, round(frame.rotation / 90))  # as the telephone was held
    return np.ascontiguousarray(deep.blend(upright))


def write_video(path: Path | str, frames: Iterable[Any], fps: float) -> None:
    """Writes frames (h, w, 3) or (h, w, 1) of one shape, float in [-1, 1] or uint8, as .mp4 (H.264) or .gif.

    An .mp4 file takes the frames one by one, so that those of an iterator are never all in memory; a .gif file takes
    them together (`images.save_gif`). H.264 as all players know it has colour at half resolution, and so even sizes: an
    odd one is made even by repeating the last row or column, since cropping would lose a part of the picture.

    The file is whole or absent. Raises UserError as `check_destination` does, and for an `fps` that the format lacks.
    """
    path = Path(path)
    check_destination(path, VIDEO_SUFFIXES)
    gif = path.suffix.lower() == ".gif"
    highest = 50 if gif else 240
    if not 1 <= fps <= highest:
        raise UserError(f"{path}: a {path.suffix} file has 1 to {highest} frames a second, got {fps}")
    with writing(path):
        if gif:
            images.save_gif(path, np.stack(list(_equal_frames(frames))), fps)
        else:
            with atomic_path(path) as temporary:
                try:
                    _write_mp4(temporary, _equal_frames(frames), Fraction(fps).limit_denominator(1001))
                except av.FFmpegError as error:
                    raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _equal_frames(frames: Iterable[Any]) -> Iterator[np.ndarray]:
    """The frames as (h, w, 3) uint8; raises ValueError if there is none, or one of another shape than the first."""
    first = None
    for i, frame in enumerate(frames):
        frame = uint8(rgb(frame))
        first = first or frame.shape
        if frame.shape != first:
            raise ValueError(f"all frames must have one shape, got {first} first and {frame.shape} at index {i}")
        yield frame
    if first is None:
        raise ValueError("a video needs at least one frame, got none")


def _write_mp4(path: Path, frames: Iterator[np.ndarray], rate: Fraction) -> None:
    # faststart: the index comes first in the file, so that a browser can play it while it loads.
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = add_h264(container, rate)
        for i, pixels in enumerate(frames):
            frame = h264_frame(stream, pixels)
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def add_h264(container: Any, rate: Fraction) -> Any:
    """A stream of pictures that all players know, whose size is that of its first frame."""
    # FFmpeg puts the colour of 2 x 2 pixels in their centre, but H.264 has it at the left unless told.
    stream = container.add_stream(
        "libx264", rate=rate, options={"crf": H264_QUALITY, "chroma_sample_location": "center"}
    )
    stream.pix_fmt = "yuv420p"
    colours = stream.codec_context
    colours.colorspace, colours.color_range = Colorspace.ITU709, ColorRange.MPEG
    colours.color_primaries, colours.color_trc = ColorPrimaries.BT709, ColorTrc.IEC61966_2_1  # those of sRGB
    return stream


def h264_frame(stream: Any, pixels: np.ndarray) -> av.VideoFrame:
    """(h, w, 3) uint8 as the stream takes it: an odd side is made even by repeating the last row or column."""
    h, w = pixels.shape[:2]
    pixels = np.pad(pixels, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
    if not stream.codec_context.is_open:
        stream.height, stream.width = pixels.shape[:2]
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    return frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, interpolation=EXACT)
