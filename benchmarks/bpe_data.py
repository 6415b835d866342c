"""Grids of codes with real structure, for the benchmarks of the image BPE.

- `photographs`: the photographs of scikit-image and scikit-learn at several scales, cut into patches of 4×4
  pixels, quantized by k-means; a grid is a window of such a map, so windows of one photograph overlap.
- `drawings`: the 64×64 images of easy-VQA, quantized likewise: 16×16 codes.
- `synthetic`: smooth random fields with noise, for scale.
"""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np

PATCH = 4


def _photographs() -> list[np.ndarray]:
    """(H, W, 3) float32 images in [0, 1]; the last two are for held-out grids."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    names = ("astronaut", "coffee", "rocket", "camera", "coins", "brick", "grass", "gravel", "moon")
    images = [getattr(data, name)() for name in names]
    images += [data.stereo_motorcycle()[0], data.hubble_deep_field(), data.immunohistochemistry()]
    images += [data.cat(), *load_sample_images().images]
    images = [np.repeat(i[..., None], 3, axis=2) if i.ndim == 2 else i[..., :3] for i in images]
    return [image.astype(np.float32) / 255 for image in images]


def _patches(image: np.ndarray) -> np.ndarray:
    """(rows, cols, PATCH * PATCH * 3)"""
    rows, cols = image.shape[0] // PATCH, image.shape[1] // PATCH
    image = image[: rows * PATCH, : cols * PATCH].reshape(rows, PATCH, cols, PATCH, 3)
    return image.transpose(0, 2, 1, 3, 4).reshape(rows, cols, -1)


def _codebook(patches: np.ndarray, size: int, seed: int) -> np.ndarray:
    from sklearn.cluster import MiniBatchKMeans

    sample = np.random.default_rng(seed).permutation(len(patches))[: max(60_000, 4 * size)]
    means = MiniBatchKMeans(
        size, init="random", n_init=1, max_iter=4, batch_size=8192, random_state=seed,
        reassignment_ratio=0.0, compute_labels=False,
    )  # fmt: skip
    return means.fit(patches[sample]).cluster_centers_.astype(np.float32)


def _quantize(patches: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """The nearest code of each patch, int16."""
    flat = patches.reshape(-1, patches.shape[-1])
    codes = np.empty(len(flat), np.int16)
    norms = (codebook**2).sum(axis=1)
    for at in range(0, len(flat), 4096):
        codes[at : at + 4096] = (norms - 2 * flat[at : at + 4096] @ codebook.T).argmin(axis=1)
    return codes.reshape(patches.shape[:-1])


def photographs(num_grids: int, codebook_size: int, side: int = 32, seed: int = 0) -> tuple:
    """Grids to train on, (num_grids, side, side) int16, and 500 held-out ones of other photographs."""
    from skimage.transform import rescale

    images = _photographs()
    scaled = []
    for number, image in enumerate(images):
        for scale in (1.0, 0.71, 0.5):
            small = rescale(image, scale, channel_axis=2, anti_aliasing=True).astype(np.float32)
            for shift in (0, 2):
                for flipped in (small, small[:, ::-1]):
                    patches = _patches(flipped[shift:, shift:])
                    if min(patches.shape[:2]) >= side:
                        scaled.append((number, patches))
    last = len(images) - 2
    pool = np.concatenate([p.reshape(-1, p.shape[-1]) for number, p in scaled if number < last])
    codebook = _codebook(pool, codebook_size, seed)
    maps = [(number, _quantize(patches, codebook)) for number, patches in scaled]
    rng = np.random.default_rng(seed)
    training = _windows([codes for n, codes in maps if n < last], num_grids, side, rng)
    return training, _windows([codes for n, codes in maps if n >= last], 500, side, rng)


def _windows(maps: list[np.ndarray], count: int, side: int, rng: np.random.Generator) -> np.ndarray:
    areas = np.array([codes.size for codes in maps], float)
    grids = np.empty((count, side, side), np.int16)
    for grid, number in zip(
        grids, rng.choice(len(maps), count, p=areas / areas.sum()), strict=True
    ):
        codes = maps[number]
        row = rng.integers(0, codes.shape[0] - side + 1)
        col = rng.integers(0, codes.shape[1] - side + 1)
        grid[...] = codes[row : row + side, col : col + side]
    return grids


def drawings(codebook_size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The images of easy-VQA as (n, 16, 16) int16: to train on, and held out."""
    import easy_vqa
    from PIL import Image

    folder = Path(easy_vqa.__file__).parent / "data"
    patches = []
    for part in ("train", "test"):
        files = sorted((folder / part / "images").glob("*.png"), key=lambda path: int(path.stem))
        images = [np.asarray(Image.open(file).convert("RGB"), np.float32) / 255 for file in files]
        patches.append(np.stack([_patches(image) for image in images]))
    codebook = _codebook(patches[0].reshape(-1, patches[0].shape[-1]), codebook_size, seed)
    return _quantize(patches[0], codebook), _quantize(patches[1], codebook)


@numba.njit(cache=True, nogil=True)
def _fill_synthetic(grids, rng, noise, levels, knots):
    side = grids.shape[1]
    coarse = np.empty((knots, knots))
    for number in range(grids.shape[0]):
        grids[number] = 0
        for level in levels:
            for i in range(knots):
                for j in range(knots):
                    coarse[i, j] = rng.random()
            for row in range(side):
                y = row * (knots - 1) / side
                for col in range(side):
                    x = col * (knots - 1) / side
                    i, j = int(y), int(x)
                    u, v = y - i, x - j
                    value = (1 - u) * ((1 - v) * coarse[i, j] + v * coarse[i, j + 1]) + u * (
                        (1 - v) * coarse[i + 1, j] + v * coarse[i + 1, j + 1]
                    )
                    value += noise * (rng.random() - 0.5)
                    step = min(level - 1, max(0, int(value * level)))
                    grids[number, row, col] = grids[number, row, col] * level + step


def synthetic(grids: np.ndarray, noise: float = 0.05, knots: int = 5, seed: int = 0) -> None:
    """Fill (n, side, side) int16, which may be memory-mapped, with fields of 8,192 codes."""
    rng = np.random.default_rng(seed)
    for at in range(0, len(grids), 10_000):
        block = np.empty((min(10_000, len(grids) - at), *grids.shape[1:]), np.int16)
        _fill_synthetic(block, rng, noise, np.array([32, 16, 16]), knots)
        grids[at : at + len(block)] = block
