"""Videos for pretext tasks: over a background that pans slowly, a textured shape moves on a straight line."""

import io
from itertools import product

import numpy as np
from PIL import Image

N_FRAMES, SIDE = 24, 64


def background(rng, size):
    """Low-pass noise, uint8 (size, size, 3)."""
    small = rng.integers(60, 196, (size // 12, size // 12, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC))


def mask(shape, radius):
    """A disc, square, triangle or ring: bool (2 r + 1, 2 r + 1)."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return {
        "disc": x**2 + y**2 <= radius**2,
        "square": np.maximum(abs(x), abs(y)) <= 0.9 * radius,
        "triangle": (y > -radius) & (2 * abs(x) <= y + radius),
        "ring": (x**2 + y**2 <= radius**2) & (x**2 + y**2 >= (0.5 * radius) ** 2),
    }[shape]


def frames(seed, *, shape="disc", texture="noise", n=N_FRAMES, side=SIDE, moves=True):
    """One video, uint8 (n, side, side, 3); if nothing `moves`, n times its first frame. The shape is large
    enough to be half of a square that the tracking task follows; its texture is of 8 x 8 colours, or of 8
    upright "stripes".
    """
    rng = np.random.default_rng(seed)
    ground = background(rng, side + 2 * n + 8)
    pan, angle = rng.uniform(0, 1, 2) * (1, 2 * np.pi)
    radius = rng.integers(13, 17)
    colours = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if texture == "stripes":
        colours[:] = colours[0]
    pattern = Image.fromarray(colours)
    way = np.array([np.sin(angle), np.cos(angle)])
    step = min(rng.uniform(1.5, 3), (side - 2 * 1.3 * radius - 2) / n / np.abs(way).max())
    middle = side / 2 - way * step * (n - 1) / 2
    video = []
    for t in range(n):
        now = t if moves else 0
        left = int(n + pan * now)
        frame = ground[n : n + side, left : left + side].copy()
        r = int(radius * 1.01**now)
        inside = mask(shape, r)
        cut = np.asarray(pattern.resize((2 * r + 1,) * 2, Image.Resampling.BICUBIC))
        top, at = np.rint(middle + way * step * now).astype(int) - r
        area = frame[top : top + 2 * r + 1, at : at + 2 * r + 1]
        area[inside] = cut[inside]
        video.append(frame)
    return np.stack(video)


def write(folder, images):
    """A video as a folder of numbered JPEG frames, as `videofolder` reads them."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="JPEG", quality=90)
        (folder / f"{number:04d}.jpg").write_bytes(buffer.getvalue())


def make_folder(root, n_per_class, *, n_test=1, first=0, **settings):
    """ROOT/{train,test}/{disc,ring}/NUMBER/: two classes of made videos."""
    for (split, n), (place, shape) in product(
        (("train", n_per_class), ("test", n_test)), enumerate(("disc", "ring"))
    ):
        for i in range(n):
            seed = first + 2 * i + place + (100_000 if split == "test" else 0)
            write(root / split / shape / f"{i:03d}", frames(seed, shape=shape, **settings))
    return root
