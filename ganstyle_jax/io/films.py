"""Films with their times and their sound: frames in and out one by one, for what works on each of them.

    film = read_film("clip.mov")
    write_film("mirrored.mp4", film, ((frame.pixels[:, ::-1], frame.span) for frame in film.frames()))

Pictures as in `video`, which is for pictures alone, at an even pace. What is written has the times of the film it was
made of, to the tick, and its sound, packet by packet where the kind of file can hold it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from ganstyle_jax.io.files import UserError, atomic_path
from ganstyle_jax.io.pictures import check_destination, uint8, writing
from ganstyle_jax.io.video import add_h264, frame_pixels, h264_frame, open_video

# By which a file is taken to be a film before it is opened.
FILM_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".vob"),
    *(".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".mxf", ".nut", ".y4m", ".dv"),
)
WRITTEN = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}  # FFmpeg's names
# Codecs of sound that players expect in such a file, which are fewer than FFmpeg writes; others become AAC.
PLAYED = {
    "mp4": {"aac", "mp3", "mp3float", "ac3", "eac3", "opus", "libopus", "flac", "alac"},
    "mov": {"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_f32le"},
}

Span = tuple[int, int]  # when a frame is shown and for how long, in ticks of its film; 0 ticks where it does not say


@dataclasses.dataclass(frozen=True)
class Frame:
    """A frame of a film, decoded and not yet converted."""

    span: Span
    decoded: av.VideoFrame

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """(h, w, 3) float32 in [-1, 1], upright."""
        return frame_pixels(self.decoded)


@dataclasses.dataclass(frozen=True)
class Film:
    """A film, which is decoded anew by each call of `frames`."""

    path: Path
    shape: tuple[int, int]  # (h, w) of the frames, upright
    rate: Fraction  # frames a second, on average
    tick: Fraction  # seconds
    count: int | None  # of the frames, as the file tells or its length does, where one of them does
    sounds: int  # how many tracks of sound

    def frames(self, damage: list[str] | None = None) -> Iterator[Frame]:
        """One by one, from the first. What cannot be decoded is left out, as players do it, and told in `damage`."""
        damage = [] if damage is None else damage
        with open_video(self.path) as container:
            stream = container.streams.video[0]
            zero = _ticks(container.start_time, stream)
            lost, last, end = 0, -1, 0
            step = max(1, round(1 / (self.rate * self.tick)))
            for packet in _packets(container, stream, damage):
                try:
                    decoded = packet.decode()
                except av.FFmpegError:
                    lost += 1
                    continue
                for frame in decoded:
                    at = last + step if frame.pts is None else max(frame.pts - zero, last + 1)
                    yield Frame((at, frame.duration or 0), frame)
                    last, end = at, at + (frame.duration or step)
            if lost:
                damage.append(f"{lost} {'part' if lost == 1 else 'parts'} of it could not be decoded and left out")
            if stream.duration and end < stream.duration - 2 * step:
                seconds = float(end * self.tick), float(stream.duration * self.tick)
                damage.append(f"it ends after {seconds[0]:.2f} of {seconds[1]:.2f} s")


def _packets(container: Any, stream: Any, damage: list[str]) -> Iterator[Any]:
    """All that can be read of a stream, and at the end the empty packet, which asks the decoder for its last frames."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            damage.append(f"it cannot be read further: {error.strerror}")
            packet = None
        if packet is None:
            return
        yield packet


def _ticks(microseconds: int | None, stream: Any) -> int:
    return round(Fraction(microseconds or 0, 1_000_000) / stream.time_base)


def read_film(path: Path | str) -> Film:
    """What there is to know of a film before its frames. UserError for what is none, or has no frames."""
    path = Path(path)
    with open_video(path) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        length = stream.duration * stream.time_base if stream.duration else Fraction(container.duration or 0, 1_000_000)
        count = stream.frames or round(length * rate) or None
        found = Film(path, (0, 0), rate, Fraction(stream.time_base), count, len(container.streams.audio))
    first = next(found.frames(), None)
    if first is None:
        raise UserError(f"{path} has no frames")
    return dataclasses.replace(found, shape=first.pixels.shape[:2])


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def check_film_destination(path: Path) -> None:
    """UserError for what `write_film` cannot write."""
    check_destination(path, tuple(WRITTEN))


def write_film(path: Path | str, of: Film, frames: Iterable[tuple[Any, Span]]) -> None:
    """Writes pictures (h, w, 3) of one shape, float in [-1, 1] or uint8, at the times of the film that they are of.

    H.264, in .mp4, .m4v, .mov or .mkv; odd sides are made even by repeating the last row or column. All tracks of the
    film's sound go along as they are or, where the kind of file cannot hold them, as AAC. Frames and sound are taken as
    they are written, so that neither is ever all in memory.
    The file is whole or absent. Raises UserError as `check_film_destination`, ValueError where there are no frames.
    """
    path = Path(path)
    check_film_destination(path)
    with writing(path), atomic_path(path) as temporary:
        try:
            _write(temporary, WRITTEN[path.suffix.lower()], of, frames)
        except av.FFmpegError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _write(path: Path, kind: str, of: Film, frames: Iterable[tuple[Any, Span]]) -> None:
    # faststart: the index first, so that browsers play it while it loads. bitexact: no random numbers, no dates.
    options = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if kind != "matroska" else {})
    with open_video(of.path) as source, av.open(f"file:{path}", "w", format=kind, options=options) as output:
        original = source.streams.video[0]
        stream = add_h264(output, of.rate)
        stream.codec_context.time_base = of.tick
        stream.codec_context.thread_count = 1  # the same bytes from the same pictures, if x264 lets it
        if aspect := original.sample_aspect_ratio:
            turned = of.shape == (original.width, original.height) != (original.height, original.width)
            stream.codec_context.sample_aspect_ratio = 1 / aspect if turned else aspect
        sound = _Sound(source, output, kind)
        shape = None
        for pixels, (at, duration) in frames:
            pixels = uint8(np.asarray(pixels))
            shape = shape or pixels.shape
            if pixels.shape != shape:
                raise ValueError(f"all frames must have one shape, got {shape} first and then {pixels.shape}")
            frame = h264_frame(stream, pixels)
            frame.pts, frame.time_base = at, of.tick
            if duration:
                frame.duration = duration
            sound.write_until(float(at * of.tick))
            output.mux(stream.encode(frame))
        if shape is None:
            raise ValueError("a film needs at least one frame, got none")
        output.mux(stream.encode())
        sound.write_until(float("inf"))


class _Sound:
    """The sound of a film, on its way into another."""

    def __init__(self, source: Any, output: Any, kind: str):
        self._output, self._start = output, source.start_time
        self._writers = {}
        for track in source.streams.audio:
            name = track.codec_context.name if track.codec_context is not None else ""
            if name in (PLAYED.get(kind) or output.supported_codecs):
                self._writers[track.index] = functools.partial(_copied, output.add_stream_from_template(track))
            elif name:
                self._writers[track.index] = _Recoded(output, track)
        tracks = [track for track in source.streams.audio if track.index in self._writers]
        self._packets = _packets(source, tracks, []) if tracks else iter(())
        self._next = next(self._packets, None)

    def write_until(self, seconds: float) -> None:
        """All of it that is heard up to then."""
        while self._next is not None:
            packet = self._next
            zero = _ticks(self._start, packet.stream)
            if packet.pts is not None and float((packet.pts - zero) * packet.time_base) > seconds:
                return
            for made in self._writers[packet.stream.index](packet, zero):
                self._output.mux(made)
            self._next = next(self._packets, None)


def _copied(stream: Any, packet: Any, zero: int) -> Iterator[Any]:
    if packet.size and packet.dts is not None:  # the last is empty
        packet.pts, packet.dts = packet.pts - zero if packet.pts is not None else None, packet.dts - zero
        packet.stream = stream
        yield packet


class _Recoded:
    """A track of sound as AAC."""

    def __init__(self, output: Any, track: Any):
        codec = track.codec_context
        self._stream = output.add_stream("aac", rate=codec.sample_rate)
        self._stream.layout = codec.layout.name
        self._resampler = av.AudioResampler("fltp", codec.layout.name, codec.sample_rate)

    def __call__(self, packet: Any, zero: int) -> Iterator[Any]:
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            return
        for frame in decoded:
            if frame.pts is not None:
                frame.pts -= zero
            for part in self._resampler.resample(frame):
                yield from self._stream.encode(part)
        if not packet.size:
            for part in self._resampler.resample(None):
                yield from self._stream.encode(part)
            yield from self._stream.encode()
