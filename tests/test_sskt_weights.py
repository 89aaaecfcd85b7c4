"""Weights files of every kind, good and bad: what is read, what is refused, and in which words."""

import argparse
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from sskt.checkpoints import read_checkpoint
from sskt.errors import SourceError
from sskt.students import build_backbone
from sskt.students.pretrained import load_pretrained
from sskt.weights import load_into

SHARED = Path(__file__).parents[2] / "shared" / "weights" / "imagenet_resnet50.safetensors"


def small(seed=0):
    """A network with every kind of entry: convolution, batch norm, head."""
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), fc=nn.Linear(4, 5)))


def save(state, path):
    torch.save(state, path)
    return path


def named(prefix, state):
    return {f"{prefix}{key}": value for key, value in state.items()}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[key], expected[key]) for key in expected)


def load(path, module=None, n_classes=5):
    """The state of a network of other weights after a file was loaded, and what was said."""
    module = module or small(seed=1)
    notes = load_into(module, read_checkpoint(path), task="imagenet", n_classes=n_classes)
    return module.state_dict(), notes


RAW, AVERAGED = small(2).state_dict(), small(3).state_dict()


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, None),
        (lambda s: {"state_dict": s, "epoch": 3, "best_prec1": torch.tensor(55.0)}, "under state_dict"),
        (
            lambda s: {"state_dict": named("module.", s)},
            "under state_dict, with the prefix module.",
        ),
        (lambda s: {"model": dict(s), "lr_scheduler": {}}, "under model"),
        (lambda s: named("_orig_mod.", s), "with the prefix _orig_mod."),
        (lambda s: named("module._orig_mod.", s), "with the prefix module._orig_mod."),
        (lambda s: named("_orig_mod.module.", s), "with the prefix _orig_mod.module."),
        (lambda s: {"net": named("module.", s), "acc": 91.2}, "under net, with the prefix module."),
        (lambda s: {"model": {"state": 1}, "state_dict": s}, "under state_dict"),
        (lambda s: {"a": {"b": {"weights": s}}}, "under a.b.weights"),
        (lambda s: {"params": s}, "under params"),
        (
            lambda s: {
                "state_dict": named("backbone.", s) | {"loss.weight": torch.ones(3)},
                "callbacks": {"checkpoint": {"best": torch.tensor(1.0)}},
                "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4, 3, 3, 3)}}}],
                "hyper_parameters": argparse.Namespace(lr=0.1, schedule=argparse.Namespace(steps=[1])),
            },
            "under state_dict, with the prefix backbone.; 1 other tensors (loss.weight) are left out",
        ),
        (lambda s: {**s, "epoch": 3, "arch": "net"}, None),
        (lambda s: {"state_dict": s, "model": s}, "under state_dict"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin"])
def test_weights_are_found_in_what_tools_save(tmp_path, wrap, said, suffix):
    path = save(wrap(RAW), tmp_path / f"net{suffix}")
    got, notes = load(path)
    assert_same(got, RAW)
    assert notes == ((f"{path}: its weights are taken {said}",) if said else ())


@pytest.mark.parametrize("suffix", [".pt", ".pth.tar", "", ".model"])
def test_contents_and_not_the_name_say_what_a_file_is(tmp_path, suffix):
    assert_same(load(save(RAW, tmp_path / f"net{suffix}"))[0], RAW)


@pytest.mark.parametrize(
    ("content", "raw"),
    [
        ({"state_dict": RAW, "state_dict_ema": AVERAGED}, "under state_dict"),
        (
            {"model_ema": {"n_averaged": torch.tensor(9)} | named("module.", AVERAGED), "model": RAW},
            "under model",
        ),
        ({"ema": {"shadow": AVERAGED}, "net": named("module.", RAW)}, "under net, with the prefix module."),
        (named("online_model.", RAW) | named("ema_model.", AVERAGED), "with the prefix online_model."),
    ],
    ids=["timm", "torchvision's references", "a shadow", "one module of two"],
)
def test_raw_weights_are_taken_and_averaged_ones_named_with_how_to_have_them(
    tmp_path, content, raw, monkeypatch
):
    path = save(content, tmp_path / "net.pth")
    got, notes = load(path)
    assert_same(got, RAW)
    assert f"taken {raw}; they are the raw ones, averaged ones are " in notes[0]
    monkeypatch.chdir(tmp_path)
    exec(notes[0].split("`")[1])  # what the message says to do
    got, notes = load(tmp_path / "weights.pth")
    assert_same(got, AVERAGED)


def test_averaged_weights_alone_are_taken_and_said_to_be(tmp_path):
    averaged = torch.optim.swa_utils.AveragedModel(small(3))
    for content in (averaged.state_dict(), {"epoch": 1, "ema_state_dict": AVERAGED}):
        got, notes = load(save(content, tmp_path / "net.pth"))
        assert_same(got, AVERAGED)
        assert "they are averaged weights" in notes[0]


def test_two_sets_that_fit_alike_are_refused_with_a_way_to_choose(tmp_path, monkeypatch):
    path = save({"student": named("module.", RAW), "teacher": AVERAGED}, tmp_path / "net.pth")
    with pytest.raises(
        SourceError,
        match=r"2 sets of weights that fit alike, under student, with the prefix module. and under teacher",
    ) as e:
        load(path)
    monkeypatch.chdir(tmp_path)
    exec(str(e.value).split("`")[1])
    assert_same(load(tmp_path / "weights.pth")[0], RAW)


def test_a_network_is_found_beside_another_that_does_not_fit(tmp_path):
    other = nn.Sequential(nn.Linear(3, 3)).state_dict()
    got, notes = load(save({"teacher": other, "student": RAW, "n": 3}, tmp_path / "net.pth"))
    assert_same(got, RAW)
    assert "taken under student" in notes[0]


def test_a_beginning_is_read_from_the_same_wrappers(tmp_path):
    theirs = torchvision.models.resnet18(weights=None, num_classes=3)
    backbone = build_backbone("resnet18")
    wrapped = {"state_dict": named("model.", theirs.state_dict()), "state_dict_ema": theirs.state_dict()}
    notes = load_pretrained(backbone, save(wrapped, tmp_path / "net.ckpt"), "resnet18")
    assert "taken under state_dict, with the prefix model." in notes[0]
    assert torch.equal(backbone.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)
    with pytest.raises(
        SourceError, match=r"does not fit .* give weights of that architecture, or .* --model"
    ):
        load_pretrained(build_backbone("resnet34"), tmp_path / "net.ckpt", "resnet34")


def test_old_checkpoint_format_is_read(tmp_path):
    path = tmp_path / "net.pth.tar"
    torch.save({"state_dict": RAW}, path, _use_new_zipfile_serialization=False)
    assert_same(load(path)[0], RAW)


def test_half_precision_becomes_float32_and_counters_stay_whole_numbers(tmp_path):
    state = small().half().state_dict()
    save_file(state, tmp_path / "net.safetensors")
    for path in (tmp_path / "net.safetensors", save(state, tmp_path / "net.pth")):
        got, _ = load(path)
        assert got["fc.weight"].dtype == torch.float32
        assert got["bn.num_batches_tracked"].dtype == torch.int64
        assert torch.equal(got["fc.weight"], state["fc.weight"].float())


def test_shared_resnet50_fits_torchvisions():
    if not SHARED.exists():
        pytest.skip("needs the real weights in ../shared/weights")
    module = torchvision.models.resnet50(weights=None)
    assert load_into(module, read_checkpoint(SHARED), task="imagenet", n_classes=1000) == ()
    raw = load_file(SHARED)
    assert raw["fc.weight"].dtype == torch.float16
    assert torch.equal(module.fc.weight, raw["fc.weight"].float())
    assert torch.equal(module.layer4[2].conv3.weight, raw["layer4.2.conv3.weight"].float())


def test_dataparallel_around_a_part_and_old_densenet_names_are_understood(tmp_path):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.ModuleDict({"norm1": nn.Linear(1, 1)})
            block = nn.ModuleDict({"denselayer2": layer})
            self.features = nn.ModuleDict({"0": nn.Linear(1, 1), "denseblock1": block})

    state = {
        "features.module.0.weight": torch.full((1, 1), 2.0),
        "features.module.0.bias": torch.full((1,), 3.0),
        "features.denseblock1.denselayer2.norm.1.weight": torch.full((1, 1), 4.0),
        "features.denseblock1.denselayer2.norm.1.bias": torch.full((1,), 5.0),
    }
    got, _ = load(save(state, tmp_path / "net.pth"), Parts())
    assert [float(value) for value in got.values()] == [2, 3, 4, 5]


@pytest.mark.parametrize("kind", ["pth", "wrapped", "safetensors"])
def test_layout_version_of_a_state_dict_is_not_needed(tmp_path, kind):
    """MNASNet loads nothing from a state dict that does not say its version."""
    torch.manual_seed(0)
    module = torchvision.models.mnasnet0_5(weights=None)
    path = tmp_path / f"net.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(module.state_dict(), path)
    else:
        save({"net": named("x.", module.state_dict())} if kind == "wrapped" else module.state_dict(), path)
    fresh = torchvision.models.mnasnet0_5(weights=None)
    load_into(fresh, read_checkpoint(path), task="imagenet", n_classes=1000)
    assert torch.equal(fresh.classifier[1].weight, module.classifier[1].weight)


def test_missing_batch_counter_is_no_fault(tmp_path):
    state = dict(RAW)
    del state["bn.num_batches_tracked"]
    assert torch.equal(load(save(state, tmp_path / "net.pth"))[0]["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize("prefix", ["", "model."])
def test_another_number_of_classes_is_said_in_words(tmp_path, prefix):
    state = RAW | {"fc.weight": torch.zeros(365, 4), "fc.bias": torch.zeros(365)}
    with pytest.raises(
        SourceError,
        match=r"net\.pth: fc\.weight has 365 classes, imagenet expects 5; give weights .*program:",
    ):
        load(save(named(prefix, state), tmp_path / "net.pth"))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_missing_extra_and_misshapen_keys_are_named_and_nothing_is_loaded(tmp_path, prefix):
    state = dict(RAW)
    del state["fc.bias"]
    state["classifier.bias"] = torch.zeros(5)
    state["conv.weight"] = torch.zeros(4, 3, 5, 5)
    module = small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(SourceError) as caught:
        load(save(named(prefix, state), tmp_path / "net.pth"), module)
    for part in (
        "net.pth: does not fit Sequential for imagenet",
        "1 missing keys (fc.bias)",
        "1 unexpected keys (classifier.bias)",
        "conv.weight (4, 3, 5, 5) instead of (4, 3, 3, 3)",
    ):
        assert part in str(caught.value)
    assert_same(module.state_dict(), before)


def test_another_architecture_names_a_few_keys_and_counts_the_rest(tmp_path):
    state = torchvision.models.resnet18(weights=None, num_classes=5).state_dict()
    module = torchvision.models.resnet50(weights=None, num_classes=5)
    with pytest.raises(SourceError) as caught:
        load(save(state, tmp_path / "net.pth"), module)
    assert "missing keys (layer1.0.conv3.weight, " in str(caught.value)
    assert ", ...)" in str(caught.value)
    assert len(str(caught.value)) < 800


class Touch:
    """A pickle that would leave a mark if it ran."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("new_format", [True, False])
def test_pickle_with_code_is_refused_and_not_run(tmp_path, new_format):
    mark = tmp_path / "mark"
    content = RAW | {"extra": Touch(mark)}
    torch.save(content, tmp_path / "net.pth", _use_new_zipfile_serialization=new_format)
    with pytest.raises(SourceError, match="refused because unpickling it could run code"):
        read_checkpoint(tmp_path / "net.pth")
    assert not mark.exists()


def test_settings_beside_weights_are_left_out_without_being_imported(tmp_path):
    """Under such names a pickle may call what it likes: nothing of it is called."""

    class Stolen:
        def __reduce__(self):
            return np.save, (str(tmp_path / "mark.npy"), [1])

    before = set(torch.serialization.get_safe_globals())
    content = {"net": RAW, "best": np.float64(0.9), "args": argparse.Namespace(lr=0.1), "x": Stolen()}
    assert_same(load(save(content, tmp_path / "net.pth"))[0], RAW)
    assert not (tmp_path / "mark.npy").exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_bare_pickle_with_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "net.pth").write_bytes(pickle.dumps(Touch(tmp_path / "mark")))
    with pytest.raises(SourceError, match=r"net\.pth"):
        read_checkpoint(tmp_path / "net.pth")
    assert not (tmp_path / "mark").exists()


def test_whole_saved_network_is_refused_naming_its_class(tmp_path):
    with pytest.raises(
        SourceError, match=r"holds torch\.nn\.modules.* torch\.save of module\.state_dict\(\)"
    ):
        read_checkpoint(save(small(), tmp_path / "net.pth"))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
@pytest.mark.parametrize("name", ["net.pth", "old.pth", "net.safetensors"])
def test_truncated_file_is_one_sentence(tmp_path, name, keep):
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(RAW, path)
    else:
        torch.save(RAW, path, _use_new_zipfile_serialization=name == "net.pth")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(SourceError) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["notes.pth", "notes.pt", "notes.pth.tar", "notes.safetensors", "notes.ckpt"]
)
def test_text_under_a_weights_name_is_one_sentence(tmp_path, name):
    (tmp_path / name).write_text("# These are not weights.\nNot at all.\n")
    with pytest.raises(SourceError, match="is not a whole") as caught:
        read_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("net.pth", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer.*git lfs pull"),
        ("net.pth", b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file.*save that one's state_dict"),
        ("net.pth.gz", b"\x1f\x8b\x08" + bytes(99), "compressed with gzip.*unpack it"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "only says which files.*save_file"),
        ("net.h5", b"x", r"net\.h5: cannot tell what kind .* expected one of \.pth"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_contents(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=said):
        read_checkpoint(tmp_path / name)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_archives_of_another_kind_are_told_by_what_is_in_them(tmp_path, monkeypatch):
    x = torch.zeros(1, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    torch.jit.save(torch.jit.trace(network, x), tmp_path / "script.pt")
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "program.pt2")
    np.savez(tmp_path / "jax.npz", head=np.zeros(3))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("net.pth", b"x")
    for name, said in (
        ("script.pt", "is a TorchScript program, not a state dict"),
        ("program.pt2", "is a torch.export program, not weights; give it as --source program:"),
        ("jax.npz", "holds NumPy arrays.*timm reads such files"),
        ("other.zip", "another zip archive"),
    ):
        with pytest.raises(SourceError, match=said) as caught:
            read_checkpoint(tmp_path / name)
        if name == "script.pt":
            monkeypatch.chdir(tmp_path)
            exec(str(caught.value).split("`")[1])
            assert read_checkpoint(tmp_path / "weights.pth").mappings


def test_one_part_of_several_says_so(tmp_path):
    part = {key: RAW[key] for key in list(RAW)[:3]}
    save_file(part, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(SourceError, match=r"missing keys.*it is one part of several"):
        load(tmp_path / "model-00001-of-00002.safetensors")


def test_other_content_is_named(tmp_path):
    with pytest.raises(SourceError, match="holds a list, expected a state dict"):
        read_checkpoint(save([1, 2], tmp_path / "net.pth"))
    with pytest.raises(SourceError, match="holds nothing, expected a state dict"):
        read_checkpoint(save({}, tmp_path / "net.pth"))
    with pytest.raises(SourceError, match=r"holds no tensors \(lr\), expected a state dict"):
        read_checkpoint(save({"lr": 0.1}, tmp_path / "net.pth"))


def test_absent_file_and_folder_are_named(tmp_path):
    with pytest.raises(SourceError, match="no such weights file"):
        read_checkpoint(tmp_path / "net.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(SourceError, match="is a folder; give the weights file in it"):
        read_checkpoint(tmp_path / "folder.pth")
