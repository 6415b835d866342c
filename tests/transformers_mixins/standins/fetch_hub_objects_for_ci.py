"""Stand-in for the look-up of pictures that transformers' CI has downloaded: pictures are drawn instead."""

import atexit
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

_folder = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, _folder)


def url_to_local_path(url: str) -> str:
    """A picture of noise under the name that the URL ends in; sound and film keep their URL."""
    path = _folder / url.rsplit("/", 1)[-1]
    if path.suffix not in (".png", ".jpg", ".jpeg"):
        return url
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)
