"""What visitors hand in: any file, read as a picture of a size that is segmented quickly, or a reason why not."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ..inference.images import open_rgb

LONGEST_SIDE = 1024  # what Cityscapes networks see at half size; a small one takes about a second on a CPU


def read_upload(path: str | Path, longest_side: int = LONGEST_SIDE) -> tuple[Image.Image, tuple[int, int]]:
    """Read a picture upright, as RGB with 8 bits, and shrink it where it is larger than wanted.

    Args:
        path: The file.
        longest_side: Pixels that neither side exceeds in what is returned.

    Returns:
        The picture, and the (width, height) it had before it was shrunk.

    Raises:
        ValueError: If it is no picture, damaged, or too large to open; the message names the file without its folder.
    """
    path = Path(path)
    try:
        picture = open_rgb(path)
    except OSError as error:
        raise ValueError(_reason(error, path)) from error
    return _shrunk(picture, longest_side), picture.size


def _reason(error: OSError, path: Path) -> str:
    if isinstance(error.__cause__, Image.DecompressionBombError):
        return f"{path.name}: it has too many pixels to open. Shrink it to less than 100 megapixels first."
    text = str(error).replace(f"{path} cannot be read", path.name).partition(". The file is damaged")[0]
    if isinstance(error.__cause__, Image.UnidentifiedImageError):
        return f"{text}. Try a JPEG, PNG, WebP, BMP or TIFF file."
    return text


def _shrunk(picture: Image.Image, longest_side: int) -> Image.Image:
    factor = longest_side / max(picture.size)
    if factor >= 1:
        return picture
    width, height = (max(1, round(side * factor)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
