"""What a source's name asks of its network, logits or an embedding, and that it gets that."""

from pathlib import Path

import numpy as np
import pytest
import torch
from programs import save_program

from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.clip_classifier import ClipClassifier
from sskt.sources.clip_frames import ClipFrames
from sskt.sources.contract import Contract
from sskt.sources.embeddings import remarks_on_embedding, require_embedding
from sskt.sources.forward import Forward
from sskt.sources.frozen import FrozenSource
from sskt.sources.input_map import InputMap
from sskt.sources.open_output import open_output, open_outputs
from sskt.sources.registry import open_source, parse_source, source_slug, split_names
from sskt.sources.source import Source, SourceSpec, with_usual_output
from sskt.sources.torchvision import image_network


@pytest.mark.parametrize(
    ("name", "recorded", "output", "slug"),
    [
        ("imagenet", "imagenet", "logits", "imagenet-resnet50"),
        ("imagenet@logits", "imagenet", "logits", "imagenet-resnet50"),
        ("places365:resnet18@pooled", "places365:resnet18@pooled", "pooled", "places365-resnet18"),
        ("program:me@home/a+b@c.pt2", "program:a+b@c.pt2", "logits", "program-a_b_c"),
        ("program:me@home/d.pt2@embedding", "program:d.pt2@embedding", "embedding", "program-d"),
        ("run:runs/x@pooled", "run:x@pooled", "pooled", "run-x"),
        ("run:runs/x@layer4", "run:x@layer4:6", "layer4:6", "run-x"),
        ("run:me@layer0/x@layer4:13", "run:x@layer4:13", "layer4:13", "run-x"),
        ("run:runs/x@layer4:0", "run:x@layer4:0", "logits", None),
        ("probe:imagenet@pooled+places365@pooled", "probe:imagenet@pooled+places365@pooled", "logits", None),
    ],
)
def test_a_name_says_its_network_and_its_output(name, recorded, output, slug):
    spec = parse_source(name)
    assert (spec.name, spec.output) == (recorded, output)
    assert slug is None or source_slug(name) == slug


def test_names_with_outputs_are_split_where_the_next_source_begins():
    names = ("imagenet@pooled", "program:a+b.pt2@embedding", "places365")
    assert split_names("+".join(names)) == names
    asked = [with_usual_output(name, "pooled") for name in ("imagenet", "run:x@logits", "program:a@b.pt2")]
    assert asked == ["imagenet@pooled", "run:x@logits", "program:a@b.pt2@pooled"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("imagenet@embedding", "its features are imagenet@pooled"),
        ("program:x.pt2@pooled", "export the network without its classifier"),
        ("program:x.pt2@layer4", "layers cannot be told apart; name a run or a ResNet"),
        ("imagenet@conv4", "is unknown.*an output may follow"),
        ("run:@pooled", "is unknown"),
    ],
)
def test_an_output_that_a_source_has_not_is_refused(name, said):
    with pytest.raises(SourceError, match=said):
        parse_source(name)


@pytest.mark.parametrize(
    ("architecture", "last"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1"), ("googlenet", "fc")]
)
def test_pooled_features_are_what_the_last_layer_reads(architecture, last):
    torch.manual_seed(0)
    network = image_network(architecture, 1000, transform_input=True).eval()
    x = torch.randn(2, 3, 64, 64)
    seen = []
    network.get_submodule(last).register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    spec = SourceSpec("imagenet", "imagenet", architecture, 1000, IMAGENET_MEAN, IMAGENET_STD)
    with torch.no_grad():
        network(x)
        source = open_output(Source(spec, network, "0" * 64, Path("x.pth")), "pooled")
        features = source.module(x)
    wanted = seen[0] if seen[0].ndim == 2 else seen[0].mean(dim=(2, 3))
    torch.testing.assert_close(features, wanted)
    assert (source.spec.name, source.spec.n_classes) == ("imagenet@pooled", features.shape[1])


def cell_means(maps, grid):
    """The grid of every map, from the definition: maps (N, C, H, W), one number of the result at a time."""
    n, c, height, width = maps.shape
    means = np.empty((n, c, grid, grid))
    for i, j in np.ndindex(grid, grid):
        rows = slice(i * height // grid, -(-(i + 1) * height // grid))
        columns = slice(j * width // grid, -(-(j + 1) * width // grid))
        means[:, :, i, j] = maps[:, :, rows, columns].mean(axis=(2, 3))
    return means.reshape(n, -1)


def opened(network, name="imagenet", n_classes=1000):
    spec = SourceSpec(name, name, "made", n_classes, IMAGENET_MEAN, IMAGENET_STD)
    return Source(spec, network.eval().requires_grad_(False), "0" * 64, Path("x.pth"))


@pytest.mark.parametrize(("architecture", "last"), [("resnet18", "fc"), ("squeezenet1_1", "classifier.1")])
def test_outputs_computed_together_are_those_of_the_network_and_of_each_alone(architecture, last):
    torch.manual_seed(0)
    network = image_network(architecture, 1000, transform_input=True)
    source, x, seen = opened(network), torch.randn(2, 3, 112, 112), {}
    for name in (last, "layer3") if architecture == "resnet18" else (last,):
        network.get_submodule(name).register_forward_hook(
            lambda m, i, o, name=name: seen.update({name: (i[0], o)})
        )
    wanted = {"logits": network(x).numpy()}
    read = seen[last][0]
    wanted["pooled"] = (read if read.ndim == 2 else read.mean(dim=(2, 3))).numpy()
    if architecture == "resnet18":
        wanted["layer3:5"] = cell_means(seen["layer3"][1].numpy(), 5)
    together = open_outputs(source, list(wanted))
    rows = together.module(x)
    assert [part.spec.output for part, _ in together.with_columns()] == list(wanted)
    for part, columns in together.with_columns():
        np.testing.assert_allclose(rows[:, columns].numpy(), wanted[part.spec.output], rtol=1e-5, atol=1e-5)
        assert torch.equal(part.module(x), rows[:, columns])


def test_maps_of_clips_are_averaged_over_the_frames_first():
    torch.manual_seed(0)
    network = ClipClassifier("resnet3d10", 7)
    x = torch.randn(2, 3, 4, 56, 56)
    blocks = network.eval().backbone(x).blocks
    rows = open_output(opened(network, "kinetics", 7), "layer2:3").module(x)
    np.testing.assert_allclose(
        rows.numpy(), cell_means(blocks[1].detach().numpy().mean(axis=2), 3), rtol=1e-5, atol=1e-6
    )


def test_of_several_frames_of_a_clip_the_maps_are_averaged():
    torch.manual_seed(0)
    source = open_outputs(
        opened(image_network("resnet18", 1000, transform_input=True)), ["logits", "layer2:2"]
    )
    pixels = torch.randint(0, 256, (2, 3, 2, 48, 48), dtype=torch.uint8)
    each = InputMap(48)
    clips = FrozenSource(
        source, InputMap(48, frames=ClipFrames("frames", 4, 2)), device=torch.device("cpu"), forward=Forward()
    )
    frames = [source.module(each(pixels[:, :, i])) for i in range(2)]
    torch.testing.assert_close(
        clips.logits(pixels).float(), (frames[0] + frames[1]) / 2, rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize(
    ("network", "output", "said"),
    [
        ("resnet18", "layer5:6", "imagenet has no layer5, expected one of layer1 to layer4"),
        ("resnet18", "layer4:6", r"layer4 gives maps of 2x2 here.* 6x6 is finer; ask for layer4:2 or"),
        ("vgg11", "layer4:6", r"no layer4: of published networks.*\(ResNets\) have maps; ask for pooled"),
    ],
)
def test_maps_that_a_network_does_not_have_are_refused(network, output, said):
    with torch.device("meta" if network == "vgg11" else "cpu"):
        source = opened(image_network(network, 1000, transform_input=True))
    with pytest.raises(SourceError, match=said):
        open_output(source, output).module(torch.zeros(1, 3, 64, 64))


def test_a_program_is_an_embedding_if_its_contract_does_not_say_otherwise(tmp_path):
    name = f"program:{save_program(tmp_path / 't.pt2')}"
    for told in (None, Contract(returns="embedding")):
        spec = open_source(f"{name}@embedding", weights_dir=tmp_path, told=told).spec
        assert (spec.output, spec.returns, spec.n_classes) == ("embedding", "embedding", 7)
    with pytest.raises(SourceError, match="declared to return logits, and an embedding is asked of it"):
        open_source(f"{name}@embedding", weights_dir=tmp_path, told=Contract(returns="logits"))
    with pytest.raises(SourceError, match="declared to return an embedding, and logits are asked of it"):
        open_source(name, weights_dir=tmp_path, told=Contract(returns="embedding"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (torch.rand(8, 1), "one number per image"),
        (1e5 * torch.rand(8, 5), r"numbers of up to 9\.\d+e\+04.*scale them"),
        (1e-6 * torch.rand(8, 5), "scale them"),
        (torch.arange(8.0)[:, None].expand(8, 5) + 1, "5 equal numbers for each of 8 images"),
    ],
)
def test_an_embedding_that_says_nothing_in_float16_is_refused(rows, said):
    with pytest.raises(SourceError, match=f"^n .*{said}"):
        require_embedding(rows, "n")


def test_an_odd_embedding_gets_a_remark():
    rows = torch.randn(8, 5)
    require_embedding(rows, "n")
    assert remarks_on_embedding(rows, "n") == []
    assert "says the same of all 8 images" in remarks_on_embedding(rows[:1].expand(8, 5), "n")[0]
    assert "returns probabilities" in remarks_on_embedding(rows.softmax(dim=1), "n")[0]
