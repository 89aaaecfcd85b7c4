"""Sources by name, their weights from files and downloads, and torch.export programs good and bad."""

import io
import json
import logging
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.export import Dim

from sskt.download import digest_of
from sskt.errors import SourceError
from sskt.normalise import IMAGENET_MEAN
from sskt.sources.forward import program_to_device
from sskt.sources.registry import named_sources, open_source, parse_source, source_slug

SHARED = Path(__file__).parents[2] / "shared" / "weights"
PROGRAM = SHARED / "places365_squeezenet.pt2"


def tiny(n_classes=7):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, n_classes),
    ).eval()


def export(module, path, *, dynamic=True, example=None):
    shapes = ({0: Dim("n", min=1, max=64), 2: Dim("h", min=16, max=128), 3: Dim("w", min=16, max=128)},)
    example = torch.zeros(2, 3, 32, 32) if example is None else example
    torch.export.save(
        torch.export.export(module, (example,), dynamic_shapes=shapes if dynamic else None), path
    )
    return path


def open_program(path):
    return open_source(f"program:{path}", weights_dir=path.parent)


def test_the_papers_two_come_first_and_every_name_means_itself():
    specs = named_sources()
    assert [spec.name for spec in specs[:2]] == ["imagenet", "places365"]
    assert len(specs) > 80
    assert all(parse_source(spec.name) == spec for spec in specs)
    assert len({source_slug(spec.name) for spec in specs}) == len(specs)
    assert all(spec.url for spec in specs)
    assert all(spec.sha256_prefix for spec in specs if spec.task == "imagenet")


def test_paper_sources_are_resnet50_with_the_published_weights():
    imagenet, paths = parse_source("imagenet"), parse_source("places365")
    assert (imagenet.architecture, imagenet.n_classes, imagenet.sha256_prefix) == (
        "resnet50",
        1000,
        "0676ba61",
    )
    assert imagenet.url == "https://download.pytorch.org/models/resnet50-0676ba61.pth"
    assert (paths.architecture, paths.n_classes, paths.sha256_prefix) == ("resnet50", 365, None)
    assert paths.url == "http://places2.csail.mit.edu/models_places365/resnet50_places365.pth.tar"
    assert parse_source("imagenet:resnet50") == imagenet


def test_normalisation_follows_the_weights():
    assert parse_source("imagenet:resnet18").mean == IMAGENET_MEAN
    assert parse_source("imagenet:efficientnet_v2_l").mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("imagenet", "imagenet-resnet50"),
        ("places365:resnet18", "places365-resnet18"),
        ("program:/a/b c/places365_squeezenet.pt2", "program-places365_squeezenet"),
        ("program:my net (1).pt2", "program-my_net__1_"),
    ],
)
def test_slug_is_short_and_safe(name, slug):
    assert source_slug(name) == slug
    assert source_slug(parse_source(name).name) == slug


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("imagnet", "expected imagenet, places365, probe, imagenet:ARCHITECTURE"),
        ("", "source '' is unknown"),
        ("imagenet:", "source 'imagenet:' is unknown"),
        ("program:", "source 'program:' is unknown"),
        ("imagenet:resnet19", "did you mean resnet18 or "),
        ("voc:resnet18", "source 'voc:resnet18' is unknown"),
    ],
)
def test_unknown_name_lists_what_exists(name, said):
    with pytest.raises(SourceError) as caught:
        parse_source(name)
    assert said in str(caught.value)
    assert "sskt sources lists them" in str(caught.value)


def test_unpublished_weights_must_be_given(tmp_path):
    assert parse_source("places365:resnet34").url is None
    with pytest.raises(
        SourceError, match="no weights are published; pass a file with --weights places365:resnet34=PATH"
    ):
        open_source("places365:resnet34", weights_dir=tmp_path)


def test_shared_resnet50_opens_frozen_with_its_digest(tmp_path):
    path = SHARED / "imagenet_resnet50.safetensors"
    if not path.exists():
        pytest.skip("needs the real weights in ../shared/weights")
    source = open_source("imagenet", weights=path, weights_dir=tmp_path)
    assert source.weights_sha256 == digest_of(path)
    assert not source.module.training
    assert not any(p.requires_grad for p in source.module.parameters())
    assert {p.dtype for p in source.module.parameters()} == {torch.float32}
    assert torch.equal(source.module.fc.weight, load_file(path)["fc.weight"].float())


def test_weights_for_another_task_are_refused_in_words(tmp_path):
    path = SHARED / "imagenet_resnet50.safetensors"
    if not path.exists():
        pytest.skip("needs the real weights in ../shared/weights")
    with pytest.raises(SourceError, match=r"fc\.weight has 1000 classes, places365 expects 365"):
        open_source("places365", weights=path, weights_dir=tmp_path)


def test_checkpoint_in_csailvisions_form_opens_from_the_weights_folder(tmp_path):
    """As after a download: dict, DataParallel, no checksum published, so one is recorded and held to."""
    import torchvision

    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None, num_classes=365)
    path = tmp_path / "resnet18_places365.pth.tar"
    state = {f"module.{key}": value for key, value in module.state_dict().items()}
    torch.save({"epoch": 90, "arch": "resnet18", "state_dict": state, "best_prec1": torch.tensor(54.0)}, path)
    source = open_source("places365:resnet18", weights_dir=tmp_path)
    assert torch.equal(source.module.fc.weight, module.fc.weight)
    assert (tmp_path / "resnet18_places365.pth.tar.sha256").read_text().split()[0] == source.weights_sha256
    state["module.fc.bias"] += 1
    torch.save({"state_dict": state}, path)
    with pytest.raises(SourceError, match=f"recorded {source.weights_sha256}"):
        open_source("places365:resnet18", weights_dir=tmp_path)


def test_shared_program_opens_and_reads_its_range(tmp_path):
    if not PROGRAM.exists():
        pytest.skip("needs the real program in ../shared/weights")
    source = open_program(PROGRAM)
    assert source.spec.name == "program:places365_squeezenet.pt2"
    assert (source.spec.n_classes, source.side_range_px) == (365, (64, 1024))
    assert source.weights_sha256 == digest_of(PROGRAM)
    assert not any(p.requires_grad for p in source.module.parameters())
    with torch.inference_mode():
        for n, side in ((1, 64), (5, 74), (2, 224)):
            assert source.module(torch.zeros(n, 3, side, side)).shape == (n, 365)


def test_own_program_gives_the_networks_logits(tmp_path):
    source = open_program(export(tiny(), tmp_path / "tiny.pt2"))
    x = torch.randn(5, 3, 48, 48)
    with torch.inference_mode():
        torch.testing.assert_close(source.module(x), tiny()(x))
    assert (source.spec.n_classes, source.side_range_px) == (7, (16, 128))


def test_program_of_one_size_says_which(tmp_path):
    assert open_program(export(tiny(), tmp_path / "tiny.pt2", dynamic=False)).side_range_px == (32, 32)


def test_program_takes_no_other_weights(tmp_path):
    with pytest.raises(SourceError, match="carries its own weights"):
        open_source("program:net.pt2", weights=tmp_path / "net.pth", weights_dir=tmp_path)


@pytest.mark.parametrize("broken", ["dropout", "batch norm"])
def test_program_exported_in_train_mode_is_refused(tmp_path, broken):
    module = tiny()
    module[5 if broken == "dropout" else 1].train()
    path = export(module, tmp_path / "tiny.pt2")
    with pytest.raises(SourceError, match=r"in train mode or random.*call module\.eval\(\)"):
        open_program(path)


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3)), x


class Maps(nn.Module):
    def forward(self, x):
        return x * 2


@pytest.mark.parametrize(
    ("module", "example", "said"),
    [
        (TwoOutputs(), torch.zeros(2, 3, 32, 32), "returns 2 outputs, expected one (N, K) tensor"),
        (Maps(), torch.zeros(2, 3, 32, 32), "expected one (N, K) tensor of logits"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 4)),
            torch.zeros(2, 12),
            "takes torch.float32 (2, 12), expected one",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(16, 4)),
            torch.zeros(2, 1, 4, 4),
            "(2, 1, 4, 4), expected one float32",
        ),
    ],
)
def test_program_for_something_else_is_named(tmp_path, module, example, said):
    path = export(module, tmp_path / "odd.pt2", dynamic=False, example=example)
    with pytest.raises(SourceError) as caught:
        open_program(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["missing", "text", "empty", "half", "foreign zip"])
def test_broken_program_is_one_sentence(tmp_path, content, capfd):
    others = io.StringIO()
    handler = logging.StreamHandler(others)
    logging.getLogger().addHandler(handler)
    path = tmp_path / "net.pt2"
    if content == "text":
        path.write_text("not a program")
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "half":
        whole = export(tiny(), path).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    elif content == "foreign zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/readme.txt", "hello")
    with pytest.raises(SourceError) as caught:
        open_program(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    logging.getLogger().removeHandler(handler)
    assert others.getvalue() == "", "torch has nothing to say beside it"
    assert "Traceback" not in capfd.readouterr().err


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def rewrite(path, entry, content):
    """The archive with one entry replaced or added."""
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    root = next(iter(entries)).split("/")[0]
    entries[f"{root}/{entry}"] = content
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)


def test_program_with_a_pickled_constant_is_refused_and_not_run(tmp_path):
    path, mark = export(tiny(), tmp_path / "net.pt2"), tmp_path / "mark"
    rewrite(path, "data/constants/opaque_obj_0", pickle.dumps(Touch(mark)))
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    config = json.dumps({"config": {"x": entry}}).encode()
    rewrite(path, "data/constants/model_constants_config.json", config)
    with pytest.raises(
        SourceError, match="carries data/constants/opaque_obj_0, refused because loading it runs code"
    ):
        open_program(path)
    assert not mark.exists()


def test_program_with_code_among_its_sample_inputs_does_not_run_it(tmp_path):
    path, mark = export(tiny(), tmp_path / "net.pt2"), tmp_path / "mark"
    buffer = io.BytesIO()
    torch.save((Touch(mark), {}), buffer)
    rewrite(path, "data/sample_inputs/model.pt", buffer.getvalue())
    with pytest.raises(SourceError, match="carries pickled objects beside tensors, refused"):
        open_program(path)
    assert not mark.exists()


def test_program_with_a_compiled_library_is_refused(tmp_path):
    path = export(tiny(), tmp_path / "net.pt2")
    rewrite(path, "data/aotinductor/model/x.so", b"\x7fELF")
    with pytest.raises(SourceError, match="carries data/aotinductor"):
        open_program(path)


def test_program_is_moved_with_the_devices_that_its_graph_names(tmp_path):
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 7)

        def forward(self, x):
            one_by_one = torch.arange(7, device=x.device) + torch.zeros(7)
            return self.linear(x.float().mean(dim=(2, 3))) + one_by_one + torch.tensor([0.5]).float()

    network, x = Placed().eval(), torch.randn(5, 3, 48, 48)
    source = open_program(export(network, tmp_path / "placed.pt2"))
    with torch.inference_mode():
        expected = network(x)
        torch.testing.assert_close(program_to_device(source.module, torch.device("cpu"))(x), expected)
        # "meta" stands in for a GPU: nothing is computed there, but every operation looks at devices
        assert program_to_device(source.module, torch.device("meta"))(x.to("meta")).device.type == "meta"
