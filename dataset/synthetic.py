"""Synthetic digits: the font that Pillow carries, deformed at random."""
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dataset.noise import generator

_ROWS = {'train': range(20000), 'validation': range(20000, 22000), 'test': range(22000, 24000)}


def draw_synthetic():
    """{split: uint8 (n, 28, 28)}, of all splits."""
    rng = generator(0, 'synthetic digits')
    n = sum(map(len, _ROWS.values()))
    glyphs = [_draw_glyph(digit, stroke_width) for digit in '0123456789' for stroke_width in (0, 2, 4, 6)]
    kinds = rng.integers(len(glyphs), size=n)
    angles = np.radians(rng.uniform(-12, 12, size=n))
    shears = rng.uniform(-0.15, 0.35, size=n)  # more often to the right, as in handwriting
    x_scales, y_scales = 2 / rng.uniform(0.8, 1.05, size=(2, n))  # a glyph has 2 pixels for one of the image
    shifts = rng.uniform(-1.5, 1.5, size=(n, 2))
    # Pillow wants the inverse map: from a point of the image (28x28) to the point of the glyph (56x56).
    rotations = np.array([[np.cos(angles), np.sin(angles)], [-np.sin(angles), np.cos(angles)]])
    stretches = np.array([[x_scales, shears * x_scales], [np.zeros(n), y_scales]])
    matrices = np.einsum('ijn,jkn->nik', stretches, rotations)
    offsets = 28 - np.einsum('nij,nj->ni', matrices, 14 + shifts)

    def draw(i):
        affine = (*matrices[i, 0], offsets[i, 0], *matrices[i, 1], offsets[i, 1])
        glyph = glyphs[kinds[i]]
        return np.asarray(glyph.transform((28, 28), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))

    return {split: np.stack([draw(i) for i in rows]) for split, rows in _ROWS.items()}


def _draw_glyph(digit, stroke_width):
    """A digit 40 pixels high in the middle of 56x56, with soft edges; stroke_width in quarter pixels."""
    large = Image.new('L', (320, 320))
    font = ImageFont.load_default(size=224)
    ImageDraw.Draw(large).text((160, 160), digit, fill=255, font=font, anchor='mm', stroke_width=stroke_width)
    left, top, right, bottom = large.getbbox()
    x, y = (left + right) // 2, (top + bottom) // 2
    return large.crop((x - 112, y - 112, x + 112, y + 112)).reduce(4).filter(ImageFilter.GaussianBlur(0.7))
