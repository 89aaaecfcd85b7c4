"""Method graph against numpy: its loss by hand, its edges, and who learns what."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sskt.errors import RunError
from sskt.methods import Graph, Kd
from sskt.methods.edges import LearnedEdges, gain_edges, imbalance, uniform_edges
from sskt.methods.graph import GraphConfig
from sskt.methods.kd import KdConfig
from sskt.students.student import build_student

N, C = 6, 3
TEACHERS = {"a": C, "b": C, "c": C, "d": C}


def made(teachers=TEACHERS, **settings):
    torch.manual_seed(0)
    student = build_student("resnet20", C, {}, transfer_module=False).eval()
    graph = Graph(student, GraphConfig(**settings), channels_last=False, teachers=teachers)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (N, 3, 16, 16), generator=generator).byte()
    labels = torch.randint(0, C, (N,), generator=generator)
    logits = {name: 3 * torch.randn(N, C, generator=generator) for name in teachers}
    return graph, pixels, labels, {name: z.half() for name, z in logits.items()}


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def by_hand(graph, pixels, teachers, temperatures):
    """The student's logits, the teachers', and every d[n, k], in float64 loops."""
    with torch.no_grad():
        z = graph.student.predict(graph._seen(pixels)).double().numpy()
    t = np.stack([logits.double().numpy() for logits in teachers.values()], axis=1)
    d = np.zeros(t.shape[:2])
    for n in range(len(z)):
        for k, temperature in enumerate(temperatures):
            moved = np.abs(softmax(t[n, k] / temperature) - softmax(z[n]))
            d[n, k] = moved.sum() / 2
    return z, t, d


def weights_by_hand(edges, t, d):
    """e[n, m, k] of the learned edges, pair by pair, from their weights alone."""
    w = {name: value.double().numpy() for name, value in edges.state_dict().items()}
    e = np.zeros((*d.shape, d.shape[1]))
    for n, m in np.ndindex(*d.shape):
        scores = []
        for k in range(d.shape[1]):
            u = []
            for vertex in (m, k):
                row = t[n, vertex]
                row = (row - row.mean()) / row.std()
                u += [*(w["vertex.weight"] @ row + w["vertex.bias"]), d[n, vertex]]
            hidden = np.tanh(w["pair.0.weight"] @ np.array(u) + w["pair.0.bias"])
            scores.append((w["pair.2.weight"] @ hidden + w["pair.2.bias"])[0] / 8)
        e[n, m] = softmax(np.array(scores))
    return e


@pytest.mark.parametrize("kind", ["learned", "gain", "uniform"])
@pytest.mark.parametrize("distance", ["em", "cosine"])
def test_the_loss_is_the_papers_by_hand(kind, distance):
    temperatures = (1.0, 2.0, 0.5, 3.0)
    told = dict(zip(TEACHERS, temperatures, strict=True))
    graph, pixels, labels, teachers = made(edges=kind, graph_logits=distance, teacher_temperature=told)
    losses = graph(pixels, labels, teachers)
    z, t, d = by_hand(graph, pixels, teachers, temperatures)
    feedback = d
    if distance == "cosine":
        norms = np.linalg.norm(t, axis=2) * np.linalg.norm(z, axis=1)[:, None]
        d = 1 - (t * z[:, None]).sum(axis=2) / norms
        feedback = d / 2
    balance = 0.0
    if kind == "learned":
        e = weights_by_hand(graph.edges, t, feedback)
        balance = 10 * ((e.mean(axis=0) - 0.25) ** 2).sum()
    else:
        e = np.full((N, 4, 4), 0.25)
        for n, m, k in np.ndindex(N, 4, 4) if kind == "gain" else ():
            better = [max(0, feedback[n, m] - feedback[n, j]) / 3 for j in range(4)]
            e[n, m, k] = 1 - sum(better) if m == k else better[k]
    taught = sum(e[n, m, k] * d[n, k] for n, m, k in np.ndindex(N, 4, 4)) / N
    primary = -np.log(softmax(z))[np.arange(N), labels].mean()
    assert losses.total.item() == pytest.approx(0.4 * primary + 0.6 * (taught + balance), rel=1e-4)
    assert losses.primary.item() == pytest.approx(primary, rel=1e-5)
    assert losses.auxiliary.tolist() == pytest.approx(d.mean(axis=0), rel=1e-4)
    assert losses.recorded.tolist() == pytest.approx(e.mean(axis=(0, 1)), rel=1e-4)
    assert graph.recorded_names == tuple(f"edges_from/{name}" for name in TEACHERS)
    adjusted = np.einsum("nmk,nkc->nmc", e, softmax(t / np.array(temperatures)[:, None]))
    if distance == "em":  # what the edges' sums bound: the loss of the teachers' adjusted answers
        of_adjusted = np.abs(adjusted - softmax(z)[:, None]).sum(axis=2) / 2
        assert bool((of_adjusted <= (e * d[:, None]).sum(axis=2) + 1e-9).all())


def test_several_labels_and_samples_without_any():
    graph, pixels, _, teachers = made(primary_loss="bce", edges="uniform", temperature=2.0)
    multi_hot = torch.tensor([[1, 0, 1], [0, 1, -1], [1, 1, 0]] * 2, dtype=torch.int8)
    losses = graph(pixels, multi_hot, teachers)
    z, t, _ = by_hand(graph, pixels, teachers, (2.0,) * 4)
    d = np.abs(1 / (1 + np.exp(-t / 2)) - 1 / (1 + np.exp(-z[:, None]))).mean(axis=2)
    assert losses.auxiliary.tolist() == pytest.approx(d.mean(axis=0), rel=1e-4)
    graph, pixels, labels, teachers = made(edges="uniform")
    labels[3:] = -1
    graph.labelled_share = 0.5
    losses = graph(pixels, labels, teachers)
    z, _, d = by_hand(graph, pixels, teachers, (2.0,) * 4)
    primary = -np.log(softmax(z))[np.arange(3), labels[:3]].mean()
    assert losses.total.item() == pytest.approx(0.4 * primary + 0.6 * d.sum() / N, rel=1e-4)


def test_edges_into_a_vertex_sum_to_1_and_stay_within_0_and_1():
    torch.manual_seed(0)
    logits, feedback = 5 * torch.randn(9, 4, 7), torch.rand(9, 4)
    learned = LearnedEdges(7)(logits, feedback).detach()
    for edges in (learned, gain_edges(feedback), uniform_edges(feedback)):
        torch.testing.assert_close(edges.sum(dim=2), torch.ones(9, 4))
        assert 0 <= float(edges.min()) <= float(edges.max()) <= 1
    assert float(imbalance(uniform_edges(feedback))) == pytest.approx(0, abs=1e-12)


def test_learned_edges_differ_between_vertices_which_linear_scores_cannot():
    """A score that is linear in [u_m; u_k; d_m; d_k] loses what comes from m in the softmax over k."""
    torch.manual_seed(0)
    logits, feedback = torch.randn(5, 4, 7), torch.rand(5, 4)
    edges = LearnedEdges(7)
    ours = edges(logits, feedback)
    assert float((ours - ours[:, :1]).detach().abs().max()) > 1e-4
    edges.pair = torch.nn.Linear(66, 1)
    linear = edges(logits, feedback)
    torch.testing.assert_close(linear, linear[:, :1].expand_as(linear))


def test_learned_edges_do_not_see_how_large_or_shifted_a_teachers_logits_are():
    torch.manual_seed(0)
    logits, feedback, edges = torch.randn(5, 4, 7), torch.rand(5, 4), LearnedEdges(7)
    scale, shift = torch.tensor([1.0, 9.0, 0.2, 3.0])[:, None], torch.tensor([0.0, 5.0, -4.0, 1.0])[:, None]
    torch.testing.assert_close(edges(logits * scale + shift, feedback), edges(logits, feedback))


@pytest.mark.parametrize(("balance", "low", "high"), [(0.0, 0.9, 1.0), (10.0, 0.25, 0.5)])
def test_without_the_balance_all_weight_goes_to_the_teacher_that_is_easiest_to_imitate(balance, low, high):
    torch.manual_seed(0)
    edges, logits = LearnedEdges(5), torch.randn(32, 4, 5)
    d = torch.tensor([0.2, 0.6, 0.7, 0.8]).expand(32, 4)
    optimiser = torch.optim.Adam(edges.parameters(), lr=0.05)
    for _ in range(200):
        e = edges(logits, d)
        loss = (e * d[:, None]).sum(dim=(1, 2)).mean() + balance * imbalance(e)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert low < float(edges(logits, d).mean(dim=(0, 1))[0].detach()) < high


def test_gradients_reach_the_student_and_the_edges_which_are_not_exported():
    graph, pixels, labels, teachers = made()
    graph(pixels, labels, teachers).total.backward()
    of_edges = dict(graph.edges.named_parameters())
    of_edges.pop("pair.2.bias")  # the same for all k
    assert all(float(w.grad.abs().sum()) > 0 for w in of_edges.values())
    assert all(w.grad is not None for w in graph.student.parameters())
    moved = {id(w) for group in graph.parameter_groups() for w in group["params"]}
    assert {id(w) for w in graph.edges.parameters()} <= moved
    assert any(name.startswith("edges.") for name in graph.state_dict())
    assert not any("edges" in name for name in graph.student.exported_state())


def test_the_student_cannot_lower_its_loss_by_moving_the_edges():
    """Its gradient is that of the distances, weighed by edges that are constants to it."""
    graph, pixels, labels, teachers = made(alpha=1.0)
    graph(pixels, labels, teachers).total.backward()
    ours = graph.student.head.weight.grad.clone()
    graph.zero_grad()
    logits = graph.student.predict(graph._seen(pixels))
    stacked = torch.stack([z.float() for z in teachers.values()], dim=1)
    distances = graph.distances(logits, stacked)
    edges = graph.edges(stacked, distances).detach()
    (edges * distances[:, None]).sum(dim=(1, 2)).mean().backward()
    torch.testing.assert_close(graph.student.head.weight.grad, ours)


def test_a_share_of_0_leaves_the_labels_alone_and_of_1_the_teachers():
    graph, pixels, labels, teachers = made(alpha=0.0)
    losses = graph(pixels, labels, teachers)
    assert losses.total.item() == losses.primary.item()
    graph, *_ = made(alpha=1.0, edges="uniform")
    losses = graph(pixels, labels, teachers)
    assert losses.total.item() == pytest.approx(float(losses.auxiliary.sum()), rel=1e-6)


def test_matching_the_batch_costs_no_more_than_sample_by_sample():
    sample, pixels, labels, teachers = made(edges="uniform")
    batch, *_ = made(edges="uniform", transport="batch")
    with torch.no_grad():
        of_samples, of_batch = (graph(pixels, labels, teachers) for graph in (sample, batch))
    assert bool((of_batch.auxiliary <= of_samples.auxiliary + 1e-6).all())
    assert float(of_batch.total) < float(of_samples.total)


def test_a_student_starts_as_that_of_any_other_method_does():
    graph, *_ = made()
    torch.manual_seed(0)
    plain = build_student("resnet20", C, {}, transfer_module=False)
    state = graph.student.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())


def test_kd_with_four_teachers_follows_the_mean_of_their_probabilities():
    """What the second paper calls KD (uniform): both losses differ by what does not depend on the student."""
    graph, pixels, labels, teachers = made()
    config = KdConfig(temperature=2.0, alpha=1.0, aux_loss="kd")
    kd = Kd(graph.student, config, channels_last=False, teachers=TEACHERS)
    kd(pixels, labels, teachers).total.backward()
    ours = kd.student.head.weight.grad.clone()
    kd.zero_grad()
    p = torch.stack([(z.float() / 2).softmax(dim=1) for z in teachers.values()]).mean(dim=0)
    log_q = (kd.student.predict(kd._seen(pixels)) / 2).log_softmax(dim=1)
    (4 * F.kl_div(log_q, p, reduction="batchmean")).backward()
    torch.testing.assert_close(kd.student.head.weight.grad, ours)


@pytest.mark.parametrize(("settings", "message"), [
    ({"graph_logits": "kl"}, "graph_logits is 'kl', expected one of em, cosine"),
    ({"edges": "all"}, "edges is 'all', expected one of learned, gain, uniform"),
    ({"transport": "none"}, "transport is 'none', expected one of sample, batch"),
    ({"graph_logits": "cosine", "transport": "batch"}, "--transport batch is of --graph-logits em, this run"),
    ({"alpha": 1.5}, "alpha is 1.5, expected at least 0 and at most 1"),
    ({"teacher_temperature": {"a": 0.0}}, "teacher_temperature of a is 0.0, expected more than 0"),
])  # fmt: skip
def test_settings_that_no_training_can_have_are_refused(settings, message):
    with pytest.raises(RunError, match=message):
        GraphConfig(**settings)


def test_too_few_teachers_and_those_of_other_classes_are_refused():
    with pytest.raises(RunError, match="joins two or more teachers, and a is the only one; add another"):
        made({"a": C})
    with pytest.raises(RunError, match="--method graph: b knows 5 classes and the target has 3; name a"):
        made({"a": C, "b": 5})
    with pytest.raises(RunError, match="--method graph needs a teacher of the same task; add --source"):
        made({})
