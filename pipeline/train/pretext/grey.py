"""A frame of a packed video in grey and small, without decoding all of it."""

from __future__ import annotations

import io

from PIL import Image

from pipeline.data import Dataset, Packs
from sskt.errors import TargetError


def grey_frame(dataset: Dataset, row: int, number: int, scale: float) -> Image.Image:
    """A frame in grey, at `scale` times its size or the next larger size that a JPEG decoder can give. Raises
    TargetError for a damaged frame.
    """
    packs = dataset.access
    assert isinstance(packs, Packs)  # noqa: S101 - the access of every index of videos
    try:
        image = Image.open(io.BytesIO(packs.frame(row, number)))
        image.draft("L", (int(image.width * scale), int(image.height * scale)))
        return image.convert("L")
    except (OSError, ValueError, SyntaxError) as error:
        raise TargetError(
            f"{packs.name_of(row)} frame {number}: is damaged since it was packed ({error}); run "
            f"sskt prepare again"
        ) from None
