"""The representation graph against an explicit outer product and numpy, and as a term of a loss."""

from itertools import combinations

import numpy as np
import pytest
import torch

from sskt.bilinear import count_hash
from sskt.errors import RunError
from sskt.methods import Graph
from sskt.methods.graph import GraphConfig
from sskt.methods.representations import Representations, weight_imbalance
from sskt.students import build_backbone
from sskt.students.student import Student

N, C, G = 2, 3, 2
TEACHERS = ("a", "b", "c")
CHANNELS = {"a@layer4:2": 4, "b@layer4:2": 5, "c@layer4:2": 4}
SHAPES = {name: (c, G, G) for name, c in CHANNELS.items()}


def inputs():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (N, 3, 64, 64), generator=generator).byte()
    labels = torch.randint(0, C, (N,), generator=generator)
    outputs = {name: (3 * torch.randn(N, C, generator=generator)).half() for name in TEACHERS}
    outputs |= {name: torch.rand(N, *shape, generator=generator).half() for name, shape in SHAPES.items()}
    return pixels, labels, outputs


def made(maps=SHAPES, teachers=TEACHERS, model="alexnet-small", **settings):
    torch.manual_seed(0)
    student = Student(build_backbone(model), C, {}, transfer_module=False).eval()
    config = GraphConfig(**{"graph_features": "graph", "sketch_dim": None, **settings})
    return Graph(student, config, channels_last=False, teachers=dict.fromkeys(teachers, C), maps=maps)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def vertices_by_hand(outputs, kind, channels):
    """V of each pair, float64 (N, channels, S), from the outer product of all numbers of two maps."""
    found = []
    maps = [outputs[name].double().flatten(start_dim=2).numpy() for name in SHAPES]
    for i, j in combinations(range(3), 2):
        product = np.zeros((N, channels, G * G))
        if kind == "located":
            pairs = [(maps[i][:, :, p], maps[j][:, :, p], product[:, :, p]) for p in range(G * G)]
        else:
            pairs = [(maps[i].reshape(N, -1), maps[j].reshape(N, -1), product.reshape(N, -1))]
        for x, y, out in pairs:
            width = out.shape[1]
            (h, s), (g, t) = (count_hash(k, v.shape[1], width) for k, v in ((i, x), (j, y)))
            for p, q in np.ndindex(x.shape[1], y.shape[1]):
                out[:, (int(h[p]) + int(g[q])) % width] += float(s[p] * t[q]) * x[:, p] * y[:, q]
        root = np.sign(product) * np.sqrt(abs(product))
        found.append(root / np.sqrt((root**2).sum(axis=(1, 2), keepdims=True)))
    return found


def mmd_by_hand(a, b):
    width = np.mean([((p - q) ** 2).sum() for n in range(N) for p in a[n] for q in b[n]])

    def kernel(x, y):
        return np.mean([np.exp(-((p - q) ** 2).sum() / (2 * width)) for p in x for q in y])

    return np.array([kernel(a[n], a[n]) + kernel(b[n], b[n]) - 2 * kernel(a[n], b[n]) for n in range(N)])


def student_map(graph, pixels):
    with torch.no_grad():
        block = graph.student.backbone(graph._seen(pixels)).blocks[3].double().numpy()
    side = block.shape[2]
    edges = [(int(np.floor(i * side / G)), int(np.ceil((i + 1) * side / G))) for i in range(G)]
    cells = [block[:, :, a:b, c:d].mean(axis=(2, 3)) for a, b in edges for c, d in edges]
    return softmax(np.stack(cells, axis=2))


@pytest.mark.parametrize("kind", ["located", "flat"])
@pytest.mark.parametrize("edges", ["learned", "uniform"])
def test_the_loss_is_the_papers_by_hand(kind, edges):
    pixels, labels, outputs = inputs()
    settings = {"vertices": kind, "sketch_dim": 6, "rep_weight": 3.0, "rep_temperature": 0.5}
    graph = made(edges=edges, **settings)
    vertices, weights = vertices_by_hand(outputs, kind, 6), np.full((N, 3), 1 / 3)
    if edges == "learned":
        assert not graph.representations.scores.any()  # at the start all vertices count alike
        torch.nn.init.normal_(graph.representations.scores, std=5.0)
        e = graph.representations.scores.detach().double().numpy()
        scores = [[(e[k] * v[n].ravel()).sum() for k, v in enumerate(vertices)] for n in range(N)]
        weights = softmax(np.array(scores) / np.sqrt(6 * G * G))
    ours = student_map(graph, pixels)
    wanted = [softmax(v * np.sqrt(6 * G * G) / 0.5) for v in vertices]
    d = np.stack([mmd_by_hand(ours, each) for each in wanted], axis=1)
    losses = graph(pixels, labels, outputs)
    without = made(edges=edges, graph_features="off", maps={})
    without.load_state_dict({k: v for k, v in graph.state_dict().items() if "representations" not in k})
    balance = 10 * ((weights.mean(axis=0) - 1 / 3) ** 2).sum()
    added = 0.6 * (3 * (weights * d).sum(axis=1).mean() + balance)
    assert losses.total.item() == pytest.approx(
        without(pixels, labels, outputs).total.item() + added, rel=1e-5
    )
    assert losses.auxiliary[3:].tolist() == pytest.approx(d.mean(axis=0), rel=1e-3)
    assert losses.recorded[3:].tolist() == pytest.approx(weights.mean(axis=0), rel=1e-4)
    pairs = ["+".join(pair) for pair in combinations(SHAPES, 2)]  # in the order of --source
    assert graph.auxiliary_names == (*TEACHERS, *pairs)
    assert graph.recorded_names[3:] == tuple(f"vertex_weight/{pair}" for pair in pairs)


def test_uniform_compares_with_each_teachers_own_map():
    pixels, labels, outputs = inputs()
    graph = made(graph_logits="off", graph_features="uniform", teachers=(), alpha=1.0)
    ours, d = student_map(graph, pixels), []
    for name in SHAPES:
        x = outputs[name].double().flatten(start_dim=2).numpy()
        d.append(mmd_by_hand(ours, softmax(x / np.sqrt((x**2).mean(axis=(1, 2), keepdims=True)))).mean())
    losses = graph(pixels, labels, outputs)
    assert losses.total.item() == pytest.approx(np.mean(d), rel=1e-4)
    assert losses.auxiliary.tolist() == pytest.approx(d, rel=1e-4)
    assert graph.auxiliary_names == tuple(SHAPES)
    assert list(graph.parameters())[-1] is graph.student.head.bias  # nothing is learnt but the student


def test_gradients_reach_the_student_up_to_its_fourth_block_and_the_weights_which_are_not_exported():
    pixels, labels, outputs = inputs()
    outputs = {name: value.float().requires_grad_() for name, value in outputs.items()}
    graph = made(graph_logits="off", teachers=(), alpha=1.0)
    graph(pixels, labels, outputs).total.backward()
    assert all(value.grad is None for value in outputs.values())
    features = graph.student.backbone.features
    assert all(float(features[i].weight.grad.abs().sum()) > 0 for i in (0, 3, 6, 8))
    assert float(features[10].weight.grad.abs().sum()) == 0
    assert float(graph.representations.scores.grad.abs().sum()) > 0
    assert not any("representations" in name for name in graph.student.exported_state())
    assert [name for name in graph.state_dict() if "representations" in name] == ["representations.scores"]


@pytest.mark.parametrize(("balanced", "low", "high"), [(False, 0.9, 1.0), (True, 0.3, 0.5)])
def test_without_the_balance_all_weight_goes_to_the_nearest_vertex(balanced, low, high):
    torch.manual_seed(0)
    graph = Representations(SHAPES, graph=True, channels=6)
    _, _, outputs = inputs()
    block = torch.rand(N, 7, G, G)
    optimiser = torch.optim.Adam(graph.parameters(), lr=0.3)
    for _ in range(200):
        _, w = graph(block, outputs)
        loss = (w * torch.tensor([0.1, 0.4, 0.5])).sum(dim=1).mean() + 10 * balanced * weight_imbalance(w)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert low < graph(block, outputs)[1].mean(dim=0)[0].item() < high


def test_a_students_clips_are_averaged_over_frames_and_coarser_maps_are_refused():
    _, _, outputs = inputs()
    graph = Representations(SHAPES, graph=True, channels=6)
    clips = torch.rand(N, 7, 3, 4, 4)
    of_clips, of_means = (graph(x, outputs)[0].detach() for x in (clips, clips.mean(dim=2)))
    torch.testing.assert_close(of_clips, of_means)
    with pytest.raises(RunError, match=r"maps are 1x2 for these images.* 2x2 are finer; precompute"):
        graph(torch.rand(N, 7, 1, 2), outputs)


@pytest.mark.parametrize(("settings", "message"), [
    ({"graph_logits": "off", "graph_features": "off"}, "leave --method graph nothing to teach"),
    ({"graph_features": "all"}, "graph_features is 'all', expected one of off, uniform, graph"),
    ({"graph_features": "graph", "vertices": "folded"}, "vertices is 'folded', expected one of located"),
    ({"graph_features": "graph", "sketch_dim": 0}, "sketch_dim is 0, expected at least 1"),
    ({"graph_features": "graph", "rep_temperature": 0.0}, "rep_temperature is 0.0, expected more than 0"),
    ({"graph_features": "uniform", "vertices": "flat"}, "--vertices and --sketch-dim are of --graph"),
    ({"rep_weight": 2.0}, "--rep-weight and --rep-temperature are of --graph-features graph or"),
    ({"graph_logits": "off", "graph_features": "graph", "edges": "gain"}, "--edges gain is not read by"),
    ({"graph_logits": "off", "graph_features": "graph", "transport": "batch"}, "em, this run has off; leave"),
])  # fmt: skip
def test_settings_that_no_training_can_have_or_read_are_refused(settings, message):
    with pytest.raises(RunError, match=message):
        GraphConfig(**settings)


def test_maps_that_do_not_go_together_and_sources_that_are_not_read_are_refused():
    one = {"a@layer4:2": (4, 2, 2)}
    for maps, settings, message in (
        (one, {}, "joins the maps of two or more teachers, and a@layer4:2 is the only one; add another"),
        ({}, {}, "--graph-features graph compares maps, and no source gives any; add --source NAME@layer4"),
        ({**one, "b@layer4:3": (4, 3, 3)}, {}, "b@layer4:3 is maps of 3x3 and a@layer4:2 of 2x2; name the"),
        (
            SHAPES,
            {"graph_features": "off"},
            "a@layer4:2 gives maps, which --graph-features off does not read",
        ),
        (SHAPES, {"graph_logits": "off"}, "a gives logits, which --graph-logits off does not read; leave it"),
        (SHAPES, {"teachers": ()}, "--graph-logits em compares logits, and all sources give maps; add"),
        (SHAPES, {"model": "resnet20"}, "the student is CifarResNet; use --model alexnet"),
    ):
        with pytest.raises(RunError, match=message):
            made(maps, **settings)


def test_recorded_gradient_norms_are_those_of_each_loss_alone_on_the_fourth_block():
    pixels, labels, outputs = inputs()
    graph = made(edges="uniform", rep_weight=3.0, gradient_norms=True)
    recorded = dict(zip(graph.recorded_names, graph(pixels, labels, outputs).recorded.tolist(), strict=True))
    norms = {name: value for name, value in recorded.items() if name.startswith("gradient_norm/")}
    alone = {  # the same student, whose total is this loss and nothing else
        "primary": made(edges="uniform", alpha=0.0),
        "logits_graph": made({}, edges="uniform", alpha=1.0, graph_features="off"),
        "representation_graph": made(teachers=(), edges="uniform", alpha=1.0, graph_logits="off"),
    }
    for name, other in alone.items():
        caught = []

        def catch(_module, _inputs, block, into=caught):
            block.register_hook(into.append)

        other.student.backbone.features[9].register_forward_hook(catch)
        other(pixels, labels, outputs).total.backward()
        assert norms.pop(f"gradient_norm/{name}") == pytest.approx(float(caught[0].norm()), rel=1e-4), name
    assert not norms
    with torch.no_grad():
        assert graph(pixels, labels, outputs).recorded[-3:].tolist() == [0, 0, 0]
    with pytest.raises(RunError, match=r"--gradient-norms are those on the fourth layer .* is CifarResNet"):
        made({}, model="resnet20", graph_features="off", gradient_norms=True)
