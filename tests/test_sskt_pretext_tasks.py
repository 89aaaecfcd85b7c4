"""The pretext tasks: losses against plain recomputations, and whether they can be learnt at all."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sskt.errors import RunError
from sskt.methods import Parts, method_named
from sskt.methods.pretext.orders import orders, pairs
from sskt.methods.pretext.sorting import keep_channel
from sskt.students import build_backbone, vgg19

SIDE = 16


@pytest.fixture
def tiny(monkeypatch):
    """VGG-19 with few channels: what is learnt here is told by brightness and place."""
    monkeypatch.setattr(vgg19, "_SMALL_WIDTHS", (4, 4, 8, 8, 16))
    torch.manual_seed(0)


def open_task(task, model=None):
    """A task as a run opens it."""
    backbone = build_backbone(model or f"vgg19-{task}-small")
    method = method_named(task)
    return method.build(method.Config(), Parts(backbone, None, 2, {}, channels_last=False))


def clips(rng, n, n_frames, *, moves=True, dark=0):
    """A bright bar that moves to the right by a step of its own in each clip, over noise from `dark` on:
    uint8 (n, 3, F, S, S).
    """
    pixels = rng.integers(dark, dark + 40, (n, 3, 1, SIDE, SIDE)).repeat(n_frames, axis=2)
    steps = rng.integers(2, 5, n)
    for row, step in enumerate(steps):
        for t in range(n_frames):
            at = step * t if moves else 0
            pixels[row, :, t, :, at : at + 3] += 180
    return pixels.clip(0, 255).astype(np.uint8)


def learn(task, batch, n_steps, lr):
    """Train by SGD on fresh batches; the percentage of right answers on 500 more, with the network's batch
    statistics.
    """
    optimizer = torch.optim.SGD(task.parameters(), lr=lr, momentum=0.9)
    task.train()
    for _ in range(n_steps):
        loss = task(*batch(24), {}).total
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    task.eval()
    with torch.no_grad():
        return 100 * int(task(*batch(500), {}).correct) / 500


def sorting_batch(rng, *, moves=True):
    """Four frames in a drawn order, as `SortedFrames` shows them."""

    def batch(n):
        answers = rng.integers(0, 12, n)
        shown = np.array(orders(4))[answers]
        backwards = rng.integers(0, 2, n) == 1
        shown[backwards] = shown[backwards, ::-1]
        pixels = np.take_along_axis(clips(rng, n, 4, moves=moves), shown[:, None, :, None, None], axis=2)
        labels = np.concatenate([answers[:, None], rng.integers(0, 3, (n, 4))], axis=1)
        return torch.from_numpy(pixels), torch.from_numpy(labels)

    return batch


def test_splitting_leaves_three_equal_planes_of_one_channel():
    pixels = torch.randint(0, 256, (2, 3, 4, 5, 6), dtype=torch.uint8)
    channels = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 0]])
    kept = keep_channel(pixels, channels)
    assert kept.shape == pixels.shape
    for row in range(2):
        for frame in range(4):
            for plane in range(3):
                assert torch.equal(kept[row, plane, frame], pixels[row, channels[row, frame], frame])


def test_sorting_is_the_cross_entropy_of_an_answer_from_six_pairs(tiny):
    task = open_task("sorting").eval()
    pixels, labels = sorting_batch(np.random.default_rng(0))(3)
    losses = task(pixels, labels, {})
    net, head = task.student.backbone, task.student.task_head
    frames = []
    for t in range(4):
        planes = pixels[torch.arange(3), labels[:, 1 + t], t].float() / 255
        rgb = torch.stack([(planes - mean) / std for mean, std in zip(net.mean, net.std, strict=True)], dim=1)
        y = rgb
        for number, block in enumerate((net.block1, net.block2, net.block3, net.block4, net.block5)):
            y = block(F.max_pool2d(y, 2) if number else y)
        frames.append(F.adaptive_avg_pool2d(y, 3).flatten(1))
    hidden = [F.relu(head.norm(head.compare(torch.cat([frames[i], frames[j]], 1)))) for i, j in pairs(4)]
    logits = head.answer(torch.cat(hidden, dim=1))
    expected = -logits.log_softmax(1)[torch.arange(3), labels[:, 0]].mean()
    torch.testing.assert_close(losses.total, expected)
    assert int(losses.correct) == int((logits.argmax(1) == labels[:, 0]).sum())


def test_a_task_is_a_function_of_pixels_and_draws(tiny):
    task = open_task("sorting").eval()
    pixels, labels = sorting_batch(np.random.default_rng(0))(4)
    first, torch_state = task(pixels, labels, {}), torch.get_rng_state()
    assert torch.equal(first.total, task(pixels, labels, {}).total)
    assert torch.equal(torch_state, torch.get_rng_state())


def test_sorting_is_learnt_and_not_from_frames_that_are_all_alike(tiny):
    assert learn(open_task("sorting"), sorting_batch(np.random.default_rng(0)), 80, lr=0.03) > 50
    still = sorting_batch(np.random.default_rng(0), moves=False)
    assert learn(open_task("sorting"), still, 15, lr=0.03) < 15  # by chance 8.3


def egomotion_batch(rng, *, moves=True):
    """Two frames that are a step apart, or several."""

    def batch(n):
        answers = rng.integers(0, 2, n)
        video = clips(rng, n, 4, moves=moves)
        pairs = np.stack([np.zeros(n, dtype=int), np.where(answers == 1, 1, 3)], axis=1)
        pairs = np.where(rng.integers(0, 2, (n, 1)) == 1, pairs[:, ::-1], pairs)
        pixels = np.take_along_axis(video, pairs[:, None, :, None, None], axis=2)
        return torch.from_numpy(pixels), torch.from_numpy(answers[:, None])

    return batch


def test_egomotion_compares_both_frames_maps(tiny):
    task = open_task("egomotion").eval()
    pixels, labels = egomotion_batch(np.random.default_rng(0))(3)
    losses = task(pixels, labels, {})
    head = task.student.task_head
    maps = task.student.backbone(task._seen(pixels)).blocks[-1]
    logits = head.answer(head.convolutions(torch.cat([maps[:, :, 0], maps[:, :, 1]], 1)).mean((2, 3)))
    torch.testing.assert_close(losses.total, F.cross_entropy(logits, labels[:, 0]))
    assert int(losses.correct) == int((logits.argmax(1) == labels[:, 0]).sum())


def test_egomotion_is_learnt_and_not_from_frames_that_are_all_alike(tiny):
    assert learn(open_task("egomotion"), egomotion_batch(np.random.default_rng(0)), 60, lr=0.05) > 80
    still = egomotion_batch(np.random.default_rng(0), moves=False)
    assert learn(open_task("egomotion"), still, 15, lr=0.05) < 58  # by chance 50


def test_prediction_weighs_steps_and_layers_and_measures_pixels():
    torch.manual_seed(0)
    task = open_task("prediction", "prednet-small")
    pixels = torch.from_numpy(clips(np.random.default_rng(0), 2, 10))
    losses = task(pixels, torch.zeros(2, 1, dtype=torch.int64), {})
    frames = pixels.float().numpy() / 255
    loss, squares = 0.0, np.zeros(2)
    state, net = None, task.student.backbone
    with torch.no_grad():
        for t, state in enumerate(net.steps(torch.from_numpy(frames))):
            if t == 0:
                continue
            for weight, error in zip((1, 0.1, 0.1, 0.1), state.errors, strict=True):
                loss += weight * error.numpy().mean() / 9
            shown = F.relu(net.predictions[0](state.representations[0])).clamp(max=1).numpy()
            squares += ((shown - frames[:, :, t]) ** 2).mean(axis=(1, 2, 3)) / 9
    copied = ((frames[:, :, 1:] - frames[:, :, :-1]) ** 2).mean(axis=(1, 2, 3, 4))
    assert float(losses.total.detach()) == pytest.approx(loss, rel=1e-5)
    assert losses.recorded.tolist() == pytest.approx([squares.mean(), copied.mean()], rel=1e-4)
    assert int(losses.correct) == (squares < copied).sum()
    losses.total.backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in task.parameters())


def test_prediction_is_learnt():
    """The mean squared error of pixels over that of showing the frame before: from above 1 to well below."""
    torch.manual_seed(0)
    task, rng = open_task("prediction", "prednet-small"), np.random.default_rng(0)
    optimizer = torch.optim.Adam(task.parameters(), lr=0.003)
    ratios = []
    for _ in range(30):
        pixels = torch.from_numpy(clips(rng, 4, 10, dark=110))
        losses = task(pixels, torch.zeros(4, 1, dtype=torch.int64), {})
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        predicted, copied = losses.recorded.tolist()
        ratios.append(predicted / copied)
    assert ratios[0] > 1.5
    assert np.mean(ratios[-3:]) < 0.8


@pytest.mark.parametrize(
    ("task", "model"),
    [("sorting", "vgg19-egomotion-small"), ("egomotion", "prednet-small"), ("sorting", "resnet3d10")],
)
def test_another_network_is_refused_by_name(task, model):
    with pytest.raises(RunError, match=f"{task} is for --model vgg19-{task} or vgg19-{task}-small"):
        open_task(task, model)


def test_only_the_backbone_is_exported(tiny):
    student = open_task("sorting").student
    state = student.exported_state()
    assert {key.removeprefix("backbone.") for key in state} == set(student.backbone.state_dict())
    assert all(key.startswith("backbone.") for key in state)
