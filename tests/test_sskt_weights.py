"""Weights files of every kind, good and bad: what is read, what is refused, and in which words."""

import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from sskt.errors import SourceError
from sskt.weights import load_into, read_state

SHARED = Path(__file__).parents[2] / "shared" / "weights" / "imagenet_resnet50.safetensors"


def small():
    """A network with every kind of entry: convolution, batch norm, head."""
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 5)))


def save(state, path):
    torch.save(state, path)
    return path


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def load_small(state, where="net.pth", n_classes=5):
    module = small()
    load_into(module, state, where, task="imagenet", n_classes=n_classes)
    return module


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "arch": "resnet50", "best_prec1": torch.tensor(55.0)},
        lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"model": dict(state)},
    ],
    ids=["plain", "CSAILVision's dict", "DataParallel", "torchvision's reference training"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar"])
def test_checkpoint_is_unwrapped(tmp_path, wrap, suffix):
    state = small().state_dict()
    got = read_state(save(wrap(state), tmp_path / f"net{suffix}"))
    assert_same(got, state)
    assert_same(load_small(got).state_dict(), state)


def test_old_checkpoint_format_is_read(tmp_path):
    path = tmp_path / "net.pth.tar"
    torch.save({"state_dict": small().state_dict()}, path, _use_new_zipfile_serialization=False)
    assert_same(read_state(path), small().state_dict())


def test_half_precision_becomes_float32_and_counters_stay_whole_numbers(tmp_path):
    state = small().half().state_dict()
    save_file(state, tmp_path / "net.safetensors")
    for path in (tmp_path / "net.safetensors", save(state, tmp_path / "net.pth")):
        got = read_state(path)
        assert got["fc.weight"].dtype == torch.float32
        assert got["bn.num_batches_tracked"].dtype == torch.int64
        assert torch.equal(got["fc.weight"], state["fc.weight"].float())


def test_shared_resnet50_fits_torchvisions():
    if not SHARED.exists():
        pytest.skip("needs the real weights in ../shared/weights")
    state = read_state(SHARED)
    module = torchvision.models.resnet50(weights=None)
    load_into(module, state, str(SHARED), task="imagenet", n_classes=1000)
    raw = load_file(SHARED)
    assert raw["fc.weight"].dtype == torch.float16
    assert torch.equal(module.fc.weight, raw["fc.weight"].float())
    assert torch.equal(module.layer4[2].conv3.weight, raw["layer4.2.conv3.weight"].float())


def test_dataparallel_around_a_part_and_old_densenet_names_are_understood(tmp_path):
    path = save(
        {
            "features.module.0.weight": torch.ones(1),
            "features.denseblock1.denselayer2.norm.1.weight": torch.ones(1),
        },
        tmp_path / "net.pth",
    )
    assert list(read_state(path)) == ["features.0.weight", "features.denseblock1.denselayer2.norm1.weight"]


def test_layout_version_of_a_state_dict_survives(tmp_path):
    """MNASNet refuses a state dict that does not say its version."""
    torch.manual_seed(0)
    module = torchvision.models.mnasnet0_5(weights=None)
    state = read_state(save(module.state_dict(), tmp_path / "net.pth"))
    fresh = torchvision.models.mnasnet0_5(weights=None)
    load_into(fresh, state, "net.pth", task="imagenet", n_classes=1000)
    assert torch.equal(fresh.classifier[1].weight, module.classifier[1].weight)


def test_missing_batch_counter_is_no_fault():
    state = dict(small().state_dict())
    del state["bn.num_batches_tracked"]
    assert torch.equal(load_small(state).fc.weight, state["fc.weight"])


def test_another_number_of_classes_is_said_in_words():
    state = dict(small().state_dict()) | {"fc.weight": torch.zeros(365, 4), "fc.bias": torch.zeros(365)}
    with pytest.raises(
        SourceError, match=r"net\.pth: fc\.weight has 365 classes, imagenet expects 5; give weights"
    ):
        load_small(state)


def test_missing_extra_and_misshapen_keys_are_named_and_nothing_is_loaded():
    state = dict(small().state_dict())
    del state["fc.bias"]
    state["classifier.bias"] = torch.zeros(5)
    state["conv.weight"] = torch.zeros(4, 3, 5, 5)
    module = small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(SourceError) as caught:
        load_into(module, state, "net.pth", task="imagenet", n_classes=5)
    for part in (
        "net.pth: does not fit Sequential for imagenet",
        "1 missing keys (fc.bias)",
        "1 unexpected keys (classifier.bias)",
        "conv.weight (4, 3, 5, 5) instead of (4, 3, 3, 3)",
    ):
        assert part in str(caught.value)
    assert_same(module.state_dict(), before)


def test_another_architecture_names_a_few_keys_and_counts_the_rest():
    state = torchvision.models.resnet18(weights=None, num_classes=5).state_dict()
    module = torchvision.models.resnet50(weights=None, num_classes=5)
    with pytest.raises(SourceError) as caught:
        load_into(module, state, "net.pth", task="imagenet", n_classes=5)
    assert "missing keys (layer1.0.conv3.weight, " in str(caught.value)
    assert ", ...)" in str(caught.value)
    assert len(str(caught.value)) < 700


class Touch:
    """A pickle that would leave a mark if it ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, new_format):
    mark = tmp_path / "mark"
    content = small().state_dict() | {"extra": Touch(mark)}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(SourceError, match="refused because unpickling it could run code"):
        read_state(tmp_path / "net.pth")
    assert not mark.exists()


def test_bare_pickle_with_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Touch(tmp_path / "mark")))
    with pytest.raises(SourceError, match=r"net\.pth"):
        read_state(tmp_path / "net.pth")
    assert not (tmp_path / "mark").exists()


def test_whole_saved_network_is_refused_naming_its_class(tmp_path):
    with pytest.raises(SourceError, match=r"holds torch\.nn\.modules.* save module\.state_dict\(\) alone"):
        read_state(save(small(), tmp_path / "net.pth"))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["net.pth", "old.pth", "net.safetensors"])
def test_truncated_file_is_one_sentence(tmp_path, name, keep):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(small().state_dict(), path)
    else:
        torch.save(small().state_dict(), path, _use_new_zipfile_serialization=name == "net.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(SourceError) as caught:
        read_state(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["notes.pth", "notes.pt", "notes.pth.tar", "notes.safetensors"])
def test_text_under_a_weights_name_is_one_sentence(tmp_path, name):
    (tmp_path / name).write_text("# These are not weights.\nNot at all.\n")
    with pytest.raises(SourceError, match="is not a whole") as caught:
        read_state(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_other_content_is_named(tmp_path):
    with pytest.raises(SourceError, match="holds a list, expected a state dict"):
        read_state(save([1, 2], tmp_path / "net.pth"))
    with pytest.raises(SourceError, match="holds nothing, expected a state dict"):
        read_state(save({}, tmp_path / "net.pth"))
    with pytest.raises(SourceError, match="lr is a float, expected a tensor"):
        read_state(save({"lr": 0.1}, tmp_path / "net.pth"))


def test_absent_file_and_unknown_kind_are_named(tmp_path):
    with pytest.raises(SourceError, match="no such weights file"):
        read_state(tmp_path / "net.pth")
    (tmp_path / "net.h5").write_bytes(b"x")
    with pytest.raises(SourceError, match=r"net\.h5: cannot tell what kind .* expected one of \.pth"):
        read_state(tmp_path / "net.h5")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SourceError, match="no such weights file"):
        read_state(tmp_path / "folder.pth")
