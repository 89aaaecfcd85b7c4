import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from cache_samples import IDENTITY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.errors import ABSENT, CacheError, Difference, StoreDamaged, StoreMismatch
from cache.manifest import Manifest, differences, digest, flatten, require_match

STORE = Path("stores/x.zarr")
SLOW = (HealthCheck.too_slow,)  # as drawing fingerprints is where a machine has other work
scalars = st.none() | st.booleans() | st.integers(-5, 5) | st.floats(-2, 2) | st.text(max_size=3)
names = st.text(st.characters(codec="ascii", exclude_characters="."), min_size=1, max_size=2)
fingerprints = st.recursive(
    st.dictionaries(names, scalars | st.lists(scalars, max_size=2), max_size=3),
    lambda inner: st.dictionaries(names, inner | scalars, max_size=3),
    max_leaves=8,
)


def changed(*steps, value):
    """IDENTITY with one field replaced."""
    identity = copy.deepcopy(IDENTITY)
    inner = identity
    for step in steps[:-1]:
        inner = inner[step]
    inner[steps[-1]] = value
    return identity


def test_digest_is_the_sha256_of_sorted_compact_json_and_names_the_folder():
    text = json.dumps(IDENTITY, sort_keys=True, separators=(",", ":"))
    assert digest(IDENTITY) == hashlib.sha256(text.encode()).hexdigest()
    assert Manifest(identity=IDENTITY, made_by={}).digest == digest(IDENTITY)[:12]
    assert digest(dict(reversed(IDENTITY.items()))) == digest(IDENTITY)


def test_every_kind_of_change_is_a_difference_with_both_values():
    assert differences(IDENTITY, copy.deepcopy(IDENTITY)) == []
    assert differences(IDENTITY, changed("plan", "seed", value=8)) == [Difference("plan.seed", 7, 8)]
    assert differences(IDENTITY, changed("plan", "pad", value=4)) == [Difference("plan.pad", ABSENT, 4)]
    assert differences(changed("plan", "pad", value=4), IDENTITY) == [Difference("plan.pad", 4, ABSENT)]
    assert [d.field for d in differences(IDENTITY, changed("input", "mean", value=[0.5, 0.456, 0.406]))] == [
        "input.mean"
    ]
    kinds = differences(IDENTITY, changed("plan", value={}))
    assert {d.field for d in kinds} == {"plan", "plan.seed", "plan.kind"}


def test_values_that_python_calls_equal_but_json_does_not_differ():
    assert [d.field for d in differences({"a": 1, "b": 1}, {"a": True, "b": 1.0})] == ["a", "b"]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(fingerprints, fingerprints)
def test_no_difference_exactly_when_the_digests_agree(one, other):
    assert (differences(one, other) == []) == (digest(one) == digest(other))
    assert differences(one, one) == []
    assert {d.field for d in differences(one, other)} == {d.field for d in differences(other, one)}


@settings(deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(fingerprints)
def test_manifest_survives_the_way_through_json(identity):
    manifest = Manifest(identity=identity, made_by={"created": "now"})
    assert Manifest.from_dict(json.loads(json.dumps(manifest.to_dict())), STORE) == manifest


def test_tuples_become_lists_and_the_callers_dict_is_not_shared():
    mean = {"input": {"mean": (0.5, 0.5)}}
    manifest = Manifest(identity=mean, made_by={})
    mean["input"]["mean"] = None
    assert dict(flatten(manifest.identity)) == {"input.mean": [0.5, 0.5]}


@pytest.mark.parametrize("identity", [{"a.b": 1}, {"a": {3: 1}}, {"a": float("nan")}, {"a": {"b": object()}}])
def test_what_has_no_dotted_name_or_no_json_is_refused(identity):
    with pytest.raises((ValueError, TypeError)):
        Manifest(identity=identity, made_by={})


@pytest.mark.parametrize("part", ["identity", "made_by"])
def test_an_edited_manifest_is_named_with_both_checksums(part):
    stored = Manifest(identity=IDENTITY, made_by={"compute": "fp32"}).to_dict()
    sha256 = stored["sha256"]
    stored = json.loads(json.dumps(stored))
    stored[part]["compute"] = "bf16"
    with pytest.raises(StoreDamaged, match=f"stores/x.zarr: its manifest was edited.*expected {sha256[:12]}"):
        Manifest.from_dict(stored, STORE)


def test_a_newer_format_and_a_missing_part_are_named():
    newer = dataclasses.replace(Manifest(identity={}, made_by={}), format_version=2).to_dict()
    with pytest.raises(StoreDamaged, match="has format version 2, expected 1"):
        Manifest.from_dict(newer, STORE)
    with pytest.raises(StoreDamaged, match="lacks identity, sha256"):
        Manifest.from_dict({"format_version": 1, "made_by": {}}, STORE)


def test_mismatch_names_path_fields_both_values_and_the_remedy():
    wanted = changed("source", "weights_sha256", value="f" * 64)
    wanted["plan"]["seed"] = 8
    with pytest.raises(StoreMismatch) as caught:
        require_match(STORE, IDENTITY, wanted)
    assert str(caught.value) == (
        "stores/x.zarr: source.weights_sha256 is 0123456789ab in the store and ffffffffffff in this run; "
        "plan.seed is 7 in the store and 8 in this run; "
        "precompute again, or pass the source and plan that made the store, or --labels live"
    )
    assert [d.field for d in caught.value.differences] == ["source.weights_sha256", "plan.seed"]
    assert isinstance(caught.value, CacheError)


def test_mismatch_shows_four_fields_and_counts_the_rest_and_shortens_long_values():
    wanted = {**IDENTITY, "source": {}, "plan": {"classes": ["a class of pictures"] * 100}}
    with pytest.raises(StoreMismatch) as caught:
        require_match(STORE, IDENTITY, wanted)
    assert str(caught.value).count(" in this run") == 4
    n_differences = len(caught.value.differences)
    assert f"; and {n_differences - 4} more fields differ; " in str(caught.value)
    assert len(str(caught.value)) < 600
    assert "plan.classes is absent in the store" in str(caught.value)


def test_equal_fingerprints_match():
    assert differences(IDENTITY, copy.deepcopy(IDENTITY)) == []
    require_match(STORE, IDENTITY, copy.deepcopy(IDENTITY))  # raises nothing
