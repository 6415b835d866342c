"""The picture of README.md, docs/figures/tokens.png: a photograph, its codes and its tokens.

    python experiments/readme_picture.py

It runs the example of docs/image-bpe.md, and stores its drawing with 96 colours. The photographs are scikit-image's;
the cat is Chelsea, by Stefan van der Walt, CC0.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run the example in a folder of its own and store its picture."""
    page = (ROOT / "docs/image-bpe.md").read_text("utf-8").partition("## Tokens of a photograph")[2]
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code is not None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(code[1], "image-bpe.md", "exec"), {})
        drawing = Image.open("tokens.png").convert("RGB")
        os.chdir(ROOT)
    drawing.quantize(96, dither=Image.Dither.NONE).save(
        ROOT / "docs" / "figures" / "tokens.png", optimize=True
    )


if __name__ == "__main__":
    main()
