"""What a source's name asks of its network, logits or an embedding, and that it gets that."""

from pathlib import Path

import pytest
import torch
from programs import save_program

from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN, IMAGENET_STD
from sskt.sources.contract import Contract
from sskt.sources.embeddings import remarks_on_embedding, require_embedding
from sskt.sources.open_output import open_output
from sskt.sources.outputs import with_usual_output
from sskt.sources.registry import open_source, parse_source, source_slug, split_names
from sskt.sources.source import Source, SourceSpec
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
