"""Compact bilinear products of two teachers' maps: the vertices of the representation graph (Zhang and Peng,
IJCAI 2018, eq. 7), by count sketches and their circular convolution (Pham and Pagh, 2013; Gao et al., 2016).

Eq. 7 gives both factors the same hashes; then the sketch of x (x) y also holds y (x) x. Ours are independent,
one for each teacher, so that M sketches serve all M (M - 1) / 2 pairs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_KEY = 0x5B17  # of the hashes' generator, so that it shares no numbers with others
_SMALLEST_NORM = 1e-12


def count_hash(teacher: int, n: int, width: int) -> tuple[Tensor, Tensor]:
    """h, int64 (n,) in [0, width), and s, float32 (n,) of -1 and 1, of the teacher at a position in the order
    of a run's sources. They depend on nothing else, and are the same on every machine.
    """
    raw = np.random.Philox(key=[_KEY, teacher], counter=[0, 0, n, width]).random_raw(2 * n)
    columns = (raw[:n] % np.uint64(width)).astype(np.int64)
    signs = np.where(raw[n:] >> np.uint64(63), 1.0, -1.0).astype(np.float32)
    return torch.from_numpy(columns), torch.from_numpy(signs)


def count_sketch(x: Tensor, columns: Tensor, signs: Tensor, width: int) -> Tensor:
    """Psi: float (N, width, ...) of x, float (N, n, ...), with the hashes (n,) of `count_hash`: entry j is
    the sum of s_i x_i over all i with h_i = j.
    """
    signed = x * signs.to(x.dtype).view(-1, *[1] * (x.ndim - 2))
    return x.new_zeros(len(x), width, *x.shape[2:]).index_add_(1, columns, signed)


def bilinear_product(first: Tensor, second: Tensor) -> Tensor:
    """The sketch of the outer product of two vectors from their sketches, float32 or float64 (N, e, ...):
    their circular convolution along e. Returns the same shape.
    """
    spectrum = torch.fft.rfft(first, dim=1) * torch.fft.rfft(second, dim=1)
    product: Tensor = torch.fft.irfft(spectrum, n=first.shape[1], dim=1)
    return product


def normalised_root(product: Tensor) -> Tensor:
    """V: sign(P) sqrt(|P|) of P, float (N, ...), over the norm of each sample's numbers, all 0 where P is."""
    root = product.sign() * product.abs().sqrt()
    norms = root.flatten(start_dim=1).norm(dim=1).clamp(min=_SMALLEST_NORM)
    vertex: Tensor = root / norms.view(-1, *[1] * (root.ndim - 1))
    return vertex
