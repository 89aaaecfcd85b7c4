"""PredNet against a re-computation in numpy, step by step."""

import numpy as np
import pytest
import torch

from sskt.students import build_backbone
from sskt.students.prednet import _hard_sigmoid

SIDE, N_LAYERS = 16, 4


def convolve(x, module):
    """A 3x3 convolution that keeps the size, of one image (C, H, W), as a sum over taps."""
    weight, bias = (t.detach().numpy() for t in (module.weight, module.bias))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    height, width = x.shape[1:]
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for i in range(3):
        for j in range(3):
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], padded[:, i : i + height, j : j + width])
    return out


def step(net, frame, r, c, e):
    """The equations of the paper, from the top layer down and up again."""
    r, c, e = ([value.copy() for value in values] for values in (r, c, e))
    for layer in (3, 2, 1, 0):
        above = [] if layer == 3 else [r[layer + 1].repeat(2, axis=1).repeat(2, axis=2)]
        z = convolve(np.concatenate([r[layer], e[layer], *above]), net.gates[layer])
        i, f, o, candidate = np.split(z, 4)
        i, f, o = (np.clip(0.2 * v + 0.5, 0, 1) for v in (i, f, o))
        c[layer] = f * c[layer] + i * np.tanh(candidate)
        r[layer] = o * np.tanh(c[layer])
    a = frame
    for layer in range(N_LAYERS):
        p = np.maximum(0, convolve(r[layer], net.predictions[layer]))
        p = np.minimum(p, 1) if layer == 0 else p
        e[layer] = np.concatenate([np.maximum(0, p - a), np.maximum(0, a - p)])
        if layer < 3:
            up = np.maximum(0, convolve(e[layer], net.targets[layer]))
            a = up.reshape(len(up), up.shape[1] // 2, 2, up.shape[2] // 2, 2).max(axis=(2, 4))
    return r, c, e


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = build_backbone("prednet-small").double()
    with torch.no_grad():
        for weight in made.parameters():  # large enough for gates to saturate and pixels to pass 1
            weight.normal_(std=0.3)
    return made


def test_three_steps_are_the_papers(net):
    frames = torch.rand(1, 3, 3, SIDE, SIDE, dtype=torch.float64)
    sides = [SIDE >> layer for layer in range(N_LAYERS)]
    zeros = [np.zeros((n, s, s)) for n, s in zip(net.block_channels, sides, strict=True)]
    state = (zeros, zeros, [np.concatenate([zero, zero]) for zero in zeros])
    with torch.no_grad():
        for t, found in enumerate(net.steps(frames)):
            state = step(net, frames[0, :, t].numpy(), *state)
            for ours, theirs in zip(found, state, strict=True):
                for layer in range(N_LAYERS):
                    np.testing.assert_allclose(ours[layer][0], theirs[layer], rtol=0, atol=1e-12)


def test_its_hard_sigmoid_is_keras_and_not_torchs():
    v = torch.tensor([-2.6, -2.5, 0.0, 1.0, 2.5, 2.6])
    torch.testing.assert_close(_hard_sigmoid(v), torch.tensor([0, 0, 0.5, 0.7, 1, 1]))
    assert float(torch.nn.functional.hardsigmoid(torch.tensor(1.0))) == pytest.approx(2 / 3)


def test_a_clip_does_not_depend_on_its_neighbours_or_on_the_clip_before(net):
    clips = torch.rand(3, 3, 6, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        together = net(clips)
        alone = net(clips[1:2])
        again = net(clips)
    assert torch.equal(together.pooled, again.pooled)
    torch.testing.assert_close(together.pooled[1:2], alone.pooled, rtol=0, atol=1e-12)


def test_it_reads_every_second_frame_and_returns_the_top_representation(net):
    clips = torch.rand(2, 3, 7, SIDE, SIDE, dtype=torch.float64)
    other = clips.clone()
    other[:, :, 1::2] = 0
    with torch.no_grad():
        features = net(clips)
        assert torch.equal(features.pooled, net(other).pooled)
        *_, last = net.steps(clips[:, :, ::2])
    for block, r in zip(features.blocks, last.representations, strict=True):
        assert torch.equal(block[:, :, 0], r)
    torch.testing.assert_close(features.pooled, last.representations[3].mean(dim=(2, 3)))
