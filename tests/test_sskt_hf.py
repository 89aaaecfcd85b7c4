"""hf:REPO-OR-FOLDER: Transformers' own numbers, zero-shot classifiers, and the bad folders of that door."""

import json
import shutil

import pytest
import torch
import transformers as hf
from teachers import SIDE, save_backbone, save_classifier, save_pair
from torch.nn import functional as F
from transformers.utils import logging as hf_logging

import sskt.extras
from sskt.download import digest_of
from sskt.errors import MissingExtraError, SourceError
from sskt.sources import (
    Contract,
    kind_of,
    open_outputs,
    open_source,
    parse_source,
    prompts_sha256,
    source_slug,
)

CLASSES = ("red", "light_green", "blue")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hf")
    return {
        "vit": save_classifier(root / "vit"),
        "dino": save_backbone(root / "dino"),
        "clip": save_pair(root / "clip"),
        "siglip": save_pair(root / "siglip", "Siglip"),
    }


@pytest.fixture
def x():
    return torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def opened(folder, output="", told=None):
    return open_source(f"hf:{folder}{output}", weights_dir=folder.parent, told=told)


def run(source, x):
    with torch.inference_mode():
        return source.module(x)


def test_classifier_gives_transformers_logits_and_classes(folders, x):
    source = opened(folders["vit"])
    model = hf.ViTForImageClassification.from_pretrained(folders["vit"]).eval()
    with torch.inference_mode():
        expected = model(x).logits
        pooled = model.vit(x).last_hidden_state[:, 0]
    assert torch.equal(run(source, x), expected)
    assert torch.equal(run(opened(folders["vit"], "@pooled"), x), pooled)
    spec, processor = source.spec, hf.AutoImageProcessor.from_pretrained(folders["vit"])
    assert (spec.mean, spec.std) == (tuple(processor.image_mean), tuple(processor.image_std))
    assert (spec.contract.size, spec.contract.classes) == (SIDE, ("red", "green", "blue"))
    assert (spec.name, spec.architecture, spec.n_classes) == ("hf:vit", "ViTForImageClassification", 3)
    assert source_slug(f"hf:{folders['vit']}") == "hf-vit"
    with pytest.raises(SourceError, match="is declared to return logits, and an embedding is asked"):
        opened(folders["vit"], "@embedding")


def test_backbone_gives_its_pooled_feature(folders, x):
    model = hf.Dinov2Model.from_pretrained(folders["dino"]).eval()
    with torch.inference_mode():
        expected = model(x).pooler_output
    for output in ("@embedding", "@pooled"):
        assert torch.equal(run(opened(folders["dino"], output), x), expected)
    contract = opened(folders["dino"], "@embedding").spec.contract
    assert (contract.size, contract.interpolation, contract.crop) == (SIDE, "bicubic", "center crop")
    with pytest.raises(SourceError, match=r"hf:dino is declared to return an embedding.* hf:dino@embedding"):
        opened(folders["dino"])


def test_backbone_without_a_pooler_gives_its_first_token_and_says_so(tmp_path, folders, x):
    bare = hf.ViTModel(hf.ViTConfig.from_pretrained(folders["vit"]), add_pooling_layer=False).eval()
    bare.save_pretrained(tmp_path / "bare")
    shutil.copy(folders["vit"] / "preprocessor_config.json", tmp_path / "bare")
    source = opened(tmp_path / "bare", "@embedding")
    assert "first token" in source.notes[0]
    with torch.inference_mode():
        assert torch.equal(run(source, x), bare(x).last_hidden_state[:, 0])


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_zero_shot_logits_are_the_models_own(folders, name, x):
    source = opened(folders[name]).for_classes(CLASSES)
    model, tokens = hf.AutoModel.from_pretrained(folders[name]).eval(), None
    tokenizer = hf.AutoTokenizer.from_pretrained(folders[name])
    texts = [f"a photo of a {text}." for text in ("red", "light green", "blue")]
    padding = "max_length" if name == "siglip" else True
    tokens = tokenizer(texts, padding=padding, max_length=16, truncation=True, return_tensors="pt")
    if name == "siglip":  # which is trained on padding
        del tokens["attention_mask"]
    with torch.inference_mode():
        whole = model(pixel_values=x, **tokens)
    torch.testing.assert_close(run(source, x), whole.logits_per_image)
    assert source.spec.n_classes == 3
    embedding = run(opened(folders[name], "@embedding"), x)
    torch.testing.assert_close(F.normalize(embedding), whole.image_embeds)
    both = open_outputs(opened(folders[name], "@embedding"), ["embedding", "pooled"])
    torch.testing.assert_close(run(both, x)[:, : embedding.shape[1]], embedding)


def test_prompts_are_averaged_and_part_of_the_identity(folders, x):
    prompts = ("a photo of a {}.", "a sketch of {}")
    told = Contract(prompts=prompts, classes=CLASSES)
    source = opened(folders["clip"], told=told).for_classes(("other", "names"))
    singly = [
        run(opened(folders["clip"], told=Contract(prompts=(each,))).for_classes(CLASSES), x)
        for each in prompts
    ]
    identity = dict(source.spec.identity)
    assert identity["prompts_sha256"] == prompts_sha256(prompts, CLASSES)
    assert identity["tokens_sha256"] != dict(opened(folders["clip"]).for_classes(CLASSES).spec.identity)
    text = [
        opened(folders["clip"], told=Contract(prompts=(each,))).for_classes(CLASSES).module.text
        for each in prompts
    ]
    torch.testing.assert_close(source.module.text, F.normalize(text[0] + text[1]))
    assert not torch.allclose(singly[0], singly[1])
    with pytest.raises(SourceError, match="reads no texts, and its contract has prompts"):
        opened(folders["vit"], told=told)
    with pytest.raises(SourceError, match=r"one \{\} for the class's name"):
        Contract(prompts=("a photo",))
    with pytest.raises(SourceError, match="there are 0 class names"):
        opened(folders["clip"]).for_classes(())


def test_identity_knows_what_weights_do_not_say(tmp_path, folders):
    kind = kind_of("hf:x")
    assert kind.digest(folders["vit"] / "model.safetensors") == digest_of(
        folders["vit"] / "model.safetensors"
    )
    changed = tmp_path / "vit"
    shutil.copytree(folders["vit"], changed)
    config = json.loads((changed / "config.json").read_text())
    before = opened(folders["vit"]).spec.identity
    (changed / "config.json").write_text(json.dumps({**config, "transformers_version": "5.0.0"}))
    assert opened(changed).spec.identity == before
    (changed / "config.json").write_text(json.dumps({**config, "num_attention_heads": 4}))
    assert opened(changed).spec.identity != before


def test_weights_in_several_files_are_one_digest(tmp_path, folders, x):
    model = hf.ViTForImageClassification.from_pretrained(folders["vit"])
    model.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    shutil.copy(folders["vit"] / "preprocessor_config.json", tmp_path / "parts")
    source = opened(tmp_path / "parts")
    assert source.weights_path.name == "model.safetensors.index.json"
    assert torch.equal(run(source, x), run(opened(folders["vit"]), x))
    first = source.weights_sha256
    part = sorted((tmp_path / "parts").glob("*-of-*.safetensors"))[-1]
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert opened(tmp_path / "parts").weights_sha256 != first


def test_repository_is_found_in_the_hubs_cache(tmp_path, folders, monkeypatch, x):
    repo = tmp_path / "hub" / "models--someone--vit"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folders["vit"], snapshot)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(snapshot.name)
    with pytest.raises(SourceError, match=r"the hub's cache does not have it; .*hf download someone/vit"):
        open_source("hf:someone/vit", weights_dir=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    source = open_source("hf:someone/vit", weights_dir=tmp_path)
    assert (source.spec.name, source_slug("hf:someone/vit")) == ("hf:someone/vit", "hf-someone_vit")
    assert torch.equal(run(source, x), run(opened(folders["vit"]), x))
    assert kind_of("hf:someone/vit").path("hf:someone/vit") == snapshot


def broken(folders, name, tmp_path, change):
    folder = tmp_path / name
    shutil.copytree(folders[name], folder)
    change(folder)
    return folder


def edited(**fields):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "vit",
            lambda f: (f / "preprocessor_config.json").unlink(),
            "has no preprocessor_config.json.*--contract",
        ),
        ("vit", lambda f: (f / "config.json").unlink(), "has no config.json"),
        ("vit", lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read as JSON"),
        (
            "vit",
            lambda f: (f / "model.safetensors").unlink(),
            "its weights cannot be loaded.*model.safetensors",
        ),
        (
            "vit",
            lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:9000]),
            "its weights",
        ),
        ("vit", edited(hidden_size=64), "its weights cannot be loaded into ViTForImageClassification"),
        ("vit", edited(num_hidden_layers=3), "its weights lack 16 tensors of ViTForImageClassification"),
        (
            "vit",
            edited(architectures=["BertModel"]),
            "BertModel reads input_ids, expected a network that reads",
        ),
        ("vit", edited(architectures=["ViTForMaskedImageModeling"]), "is no image classifier or backbone"),
        (
            "vit",
            edited(architectures=["OwnNet"], auto_map={"AutoModel": "own.Net"}),
            "its own code, which is not",
        ),
        ("clip", lambda f: (f / "tokenizer.json").unlink(), "its tokenizer cannot be read"),
    ],
)
def test_bad_folders_are_named(folders, tmp_path, name, change, message):
    folder = broken(folders, name, tmp_path, change)
    with pytest.raises(SourceError, match=message) as caught:
        opened(folder).for_classes(CLASSES)
    assert "\n" not in str(caught.value)


def test_declared_input_replaces_a_missing_processor(folders, tmp_path):
    folder = broken(folders, "vit", tmp_path, lambda f: (f / "preprocessor_config.json").unlink())
    spec = opened(folder, told=Contract(mean=(0.5,) * 3, std=(0.25,) * 3)).spec
    assert (spec.std, spec.contract.size) == ((0.25,) * 3, SIDE)


def test_random_networks_are_refused(tmp_path, folders):
    config = hf.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
    )
    hf.ViTMAEModel(config).save_pretrained(tmp_path / "mae")
    shutil.copy(folders["vit"] / "preprocessor_config.json", tmp_path / "mae")
    with pytest.raises(SourceError, match="gives other features when it is asked again"):
        opened(tmp_path / "mae", "@embedding")


def test_missing_extra_is_named_and_stores_need_none(folders, monkeypatch):
    monkeypatch.setattr(sskt.extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"needs transformers, .*pip install 'sskt\[hf\]'"):
        opened(folders["vit"])
    assert parse_source("hf:someone/vit@pooled").name == "hf:someone/vit@pooled"
    spec, _ = kind_of("hf:x").describe(f"hf:{folders['clip']}")
    assert spec.contract.prompts == ("a photo of a {}.",)
