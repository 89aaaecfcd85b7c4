"""timm:NAME: timm's own numbers, its recorded input, and the bad names and files of that door."""

import shutil

import numpy as np
import pytest
import timm
import torch
from conftest import shared
from PIL import Image
from safetensors.torch import load_file, save_file
from teachers import save_timm

import sskt.extras
from sskt.errors import MissingExtraError, SourceError
from sskt.sources import Contract, Forward, FrozenSource, InputMap, open_outputs, open_source, parse_source

NAME = "timm:test_vit"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_timm(tmp_path_factory.mktemp("timm") / "weights.pth")


def network_of(weights, name="test_vit", n_classes=1000):
    network = timm.create_model(name, num_classes=n_classes)
    network.load_state_dict(torch.load(weights))
    return network.eval()


def test_rows_and_contract_are_timms(weights, tmp_path):
    source = open_source(NAME, weights=weights, weights_dir=tmp_path)
    x = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(source.module(x), network_of(weights)(x))
    expected = timm.data.resolve_model_data_config(network_of(weights))
    contract = source.spec.contract
    assert (contract.size, contract.interpolation) == (160, expected["interpolation"])
    assert (source.spec.mean, source.spec.std) == (expected["mean"], expected["std"])
    assert contract.returns == "logits"
    assert f"{expected['crop_pct']:.1%}" in contract.crop
    assert source.side_range_px == (160, 160)  # a ViT takes one size
    assert (source.spec.architecture, source.spec.n_classes) == ("test_vit", 1000)
    told = Contract(size=96, mean=(0.5,) * 3, std=(0.5,) * 3)
    spec = open_source(NAME, weights=weights, weights_dir=tmp_path, told=told).spec
    assert (spec.contract.size, spec.mean) == (96, (0.5,) * 3)


def test_pooled_feature_is_what_the_classifier_reads(weights, tmp_path):
    source = open_source(f"{NAME}@pooled", weights=weights, weights_dir=tmp_path)
    network, x = network_of(weights), torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(network.head(source.module(x)), network(x))
    both = open_outputs(source, ["logits", "pooled"])
    assert [part.spec.n_classes for part in both.parts] == [1000, network.num_features]


def test_maps_of_a_resnet_are_those_of_its_layers(tmp_path):
    weights = save_timm(tmp_path / "resnet.pth", "test_resnet")
    source = open_source("timm:test_resnet@layer2:3", weights=weights, weights_dir=tmp_path)
    network, x = network_of(weights, "test_resnet"), torch.randn(2, 3, 64, 64)
    seen = []
    network.layer2.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.inference_mode():
        rows = source.module(x)
        network(x)
    expected = torch.nn.functional.adaptive_avg_pool2d(seen[0], 3).flatten(1)
    assert torch.equal(rows, expected)
    with pytest.raises(SourceError, match="has no layer2"):
        open_source(f"{NAME}@layer2", weights=save_timm(tmp_path / "vit.pth"), weights_dir=tmp_path)


def test_head_is_as_wide_as_the_files(tmp_path):
    own = save_timm(tmp_path / "own.pth", n_classes=15)
    source = open_source(NAME, weights=own, weights_dir=tmp_path)
    assert source.spec.n_classes == 15
    assert "classifier of 15" in source.notes[-1]
    headless = save_timm(tmp_path / "headless.pth", n_classes=0)
    with pytest.raises(SourceError, match=f"an embedding.*name it {NAME}@embedding"):
        open_source(NAME, weights=headless, weights_dir=tmp_path)
    embedding = open_source(f"{NAME}@embedding", weights=headless, weights_dir=tmp_path)
    x = torch.randn(1, 3, 160, 160)
    with torch.inference_mode():
        expected = network_of(headless, n_classes=0)(x)
        assert torch.equal(embedding.module(x), expected)
    assert embedding.spec.n_classes == expected.shape[1]


def test_weights_come_from_the_hubs_cache(weights, tmp_path, monkeypatch):
    full = timm.models.get_pretrained_cfg("test_vit").tag
    repo = tmp_path / "hub" / f"models--timm--test_vit.{full}"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    save_file(torch.load(weights), snapshot / "model.safetensors")
    with pytest.raises(
        SourceError, match=rf"nothing is downloaded.*--weights {NAME}=FILE.*hf download timm/"
    ):
        open_source(NAME, weights_dir=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in (NAME, f"{NAME}.{full}"):
        assert open_source(name, weights_dir=tmp_path).weights_path == snapshot / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:test_vitt", "timm has no network 'test_vitt', did you mean test_vit"),
        ("timm:test_vit.r16_in1k", "no weights 'r16_in1k' of test_vit, did you mean test_vit.r160_in1k"),
        ("timm:", "source 'timm:' is unknown"),
        ("timm", "names no network of timm"),
        ("timm:hf-hub:timm/resnet18", "names no network of timm"),
    ],
)
def test_unknown_names_get_near_ones(name, message, weights, tmp_path):
    with pytest.raises(SourceError, match=message):
        open_source(name, weights=weights, weights_dir=tmp_path)


def test_bad_weights_are_named(weights, tmp_path):
    with pytest.raises(SourceError, match=r"gone.pth: no such weights file"):
        open_source(NAME, weights=tmp_path / "gone.pth", weights_dir=tmp_path)
    torn = tmp_path / "torn.pth"
    shutil.copy(weights, torn)
    torn.write_bytes(torn.read_bytes()[:5000])
    with pytest.raises(SourceError, match=r"torn.pth: .*whole"):
        open_source(NAME, weights=torn, weights_dir=tmp_path)
    with pytest.raises(SourceError, match="does not fit VisionTransformer for timm:test_vit2"):
        open_source("timm:test_vit2", weights=weights, weights_dir=tmp_path)
    other = torch.load(weights)
    other["pos_embed"] = other["pos_embed"][:, :5]
    torch.save(other, tmp_path / "shape.pth")
    with pytest.raises(SourceError, match=r"pos_embed \(1, 5, 64\) instead of \(1, 101, 64\)"):
        open_source(NAME, weights=tmp_path / "shape.pth", weights_dir=tmp_path)


def test_missing_extra_is_named_and_stores_need_none(monkeypatch, weights, tmp_path):
    monkeypatch.setattr(sskt.extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs timm, .*pip install 'sskt\[timm\]'"):
        open_source(NAME, weights=weights, weights_dir=tmp_path)
    assert parse_source(f"{NAME}@pooled").name == f"{NAME}@pooled"  # a run on its store asks for no more


def test_imagenet_resnet50_gives_torchvisions_rows(tmp_path):
    weights = shared("weights/imagenet_resnet50.safetensors")
    folder = shared("data/scene15/train")
    files = [next(iter(sorted(each.iterdir()))) for each in sorted(folder.iterdir())[:2]]
    images = [Image.open(file).convert("RGB").resize((96, 96)) for file in files]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    rows = []
    for name in ("imagenet", "timm:resnet50"):
        source = open_source(name, weights=weights, weights_dir=tmp_path)
        forward = Forward("fp32", 2)
        frozen = FrozenSource(source, InputMap(96), device=torch.device("cpu"), forward=forward, threads=1)
        rows.append(frozen.logits(pixels))
    assert (rows[0] - rows[1]).abs().max() <= 2**-7  # float16's last bit of the largest logits, about 15
    assert len(load_file(weights)) == 320
