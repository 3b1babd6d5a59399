"""Image files from elsewhere: whatever is wrong with one is reported in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from utils.errors import Interrupted, UserError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # others, such as EPS, start programs


def open_image(path: Path, content: Callable[[], BinaryIO] | None = None, background: str | None = None) -> Image.Image:
    """The RGB image of a file, with all its pixels read; `content` gives its bytes where more is done with them. A
    transparent image is laid on the color `background`."""
    try:
        with Image.open(content() if content else path, formats=FORMATS) as image:
            if background and image.has_transparency_data:
                below = Image.new("RGBA", image.size, background)
                return Image.alpha_composite(below, image.convert("RGBA")).convert("RGB")
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"image {path} is missing: restore it, or create the split list again") from None
    except (Interrupted, MemoryError, UserError):
        raise
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, struct.error, DecompressionBombError
        raise UserError(f"image {path} cannot be read ({error}): replace or remove that file") from None
