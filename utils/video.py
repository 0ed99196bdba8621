"""Videos, frame by frame, with TorchCodec. It needs FFmpeg's libraries, which are not part of its wheel."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from torch import Tensor

from .errors import RunError
from .files import replacing

VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".avi", ".webm")


class VideoError(RunError):
    """A video cannot be read or written; the message names it and the way out."""


def is_video(path: str) -> bool:
    """True for a file that is called like a video."""
    return path.lower().endswith(VIDEO_ENDINGS) and os.path.isfile(path)


class Video:
    """The frames of a video file, decoded one at a time.

    Attributes:
        rate: frames per second.

    Raises:
        VideoError: FFmpeg is not there, or the file is no video, or has no frames; from iterating: it is truncated.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        _check_ffmpeg(path)
        from torchcodec.decoders import VideoDecoder

        try:
            self._decoder = VideoDecoder(path)
            self.rate = float(self._decoder.metadata.average_fps or 25)
        except Exception as error:
            raise _unreadable(path, error) from error
        if len(self) == 0:
            raise VideoError(f"{path}: a video without frames")

    def __len__(self) -> int:
        return len(self._decoder)

    def __iter__(self) -> Iterator[Tensor]:
        """Each frame as (3,H,W) uint8 RGB."""
        for number in range(len(self)):
            try:
                frame = self._decoder.get_frame_at(number).data
            except Exception as error:
                raise _unreadable(self.path, error) from error
            yield frame


@contextmanager
def writing_video(path: str, rate: float) -> Iterator[Callable[[Tensor], None]]:
    """A function that takes a video's frames one by one, (3,H,W) uint8 RGB of one size; the file appears when all are written.

    An odd last row or column is left out: the usual colour format of videos stores pairs of pixels.

    Args:
        path: its ending says what kind of file it is.
        rate: frames per second.

    Raises:
        VideoError: FFmpeg is not there, or has no encoder for this kind of file.
    """
    _check_ffmpeg(path)
    with replacing(path, sync=False) as file:
        writer = _Writer(path, rate, file)
        yield writer.add
        writer.close()


class _Writer:
    def __init__(self, path: str, rate: float, file: BinaryIO) -> None:
        from torchcodec.encoders import Encoder

        self.path, self.rate, self.file = path, rate, file
        self.encoder = Encoder()
        self.stream: Any = None

    def add(self, frame: Tensor) -> None:
        height, width = (side // 2 * 2 for side in frame.shape[1:])
        try:
            if self.stream is None:
                self.stream = self.encoder.add_video(height=height, width=width, frame_rate=self.rate, pixel_format="yuv420p")
                self.encoder.open_file_like(self.file, format=_container(self.path))
            self.stream.add_frames(frame[None, :, :height, :width].contiguous())
        except RuntimeError as error:
            raise VideoError(f"{self.path}: cannot be written as a video ({_first_line(error)}); use --frames") from error

    def close(self) -> None:
        if self.stream is not None:
            self.encoder.close()


def _container(path: str) -> str:
    """FFmpeg's name of a kind of file."""
    ending = os.path.splitext(path)[1][1:].lower()
    return {"mkv": "matroska"}.get(ending, ending)


def _check_ffmpeg(path: str) -> None:
    try:
        import torchcodec

        found = torchcodec.ffmpeg_major_version
    except (ImportError, OSError, RuntimeError, AttributeError):
        found = None
    if not found:
        raise VideoError(
            f"{path}: videos need TorchCodec 0.17 and FFmpeg's libraries, which are not found here; install FFmpeg, or turn "
            "the video into images elsewhere (ffmpeg -i VIDEO frames/%06d.png) and name their folder"
        )


def _unreadable(path: str, error: Exception) -> VideoError:
    return VideoError(f"{path}: cannot be read as a video, truncated or of an unknown kind ({_first_line(error)})")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
