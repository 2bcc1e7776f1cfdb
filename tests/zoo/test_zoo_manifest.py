"""The published manifest: 16 + 4 entries with the published facts, found by any of their names."""

import json

import jsonschema
import pytest

import dgmn2cli
from dgmn2cli import resources, zoo
from dgmn2cli.errors import ConfigError
from dgmn2cli.validation import schema_of
from dgmn2cli.zoo.manifest import manifest_adapter

SCHEMA = schema_of(manifest_adapter())
HEADS = ("fpn", "setr_naive", "setr_pup", "setr_mla")
SIZES = ("tiny", "small", "medium", "large")


def test_manifest_holds_the_16_models_and_4_backbones():
    manifest = zoo.load_zoo()
    assert [e.key for e in manifest.segmentors] == [f"{head}-{size}" for head in HEADS for size in SIZES]
    assert [e.key for e in manifest.backbones] == [f"dgmn2_{size}" for size in SIZES]
    assert manifest.default == "setr_pup-tiny"
    assert len({s.location for e in (*manifest.segmentors, *manifest.backbones) for s in e.sources}) == 20


def test_published_scores_and_sizes():
    tiny, large = zoo.find("setr_pup-tiny"), zoo.find("fpn-large")
    assert (tiny.miou, tiny.miou_ms_flip, tiny.params) == (78.25, 79.26, 13_954_947)
    assert (large.miou, large.miou_ms_flip, large.params) == (81.75, 82.64, 52_023_509)
    assert sum(e.miou for e in zoo.entries()) / 16 == pytest.approx(80.22)
    assert sum(e.miou_ms_flip for e in zoo.entries()) / 16 == pytest.approx(81.10375)
    backbones = zoo.load_zoo().backbones
    assert [round(b.params / 1e6, 1) for b in backbones] == [12.1, 21.0, 35.8, 48.3]
    assert [b.macs_224 for b in backbones] == [2_300_000_000, 4_300_000_000, 7_100_000_000, 10_400_000_000]
    assert [b.top1 for b in backbones] == [78.7, 81.7, 82.5, 83.3]


def test_no_hash_is_published_so_none_is_claimed():
    manifest = zoo.load_zoo()
    everything = (*manifest.segmentors, *manifest.backbones)
    assert len(everything) == 20
    assert all(e.sha256 is None and e.size is None for e in everything)


def test_manifest_agrees_with_the_schema():
    document = json.loads(resources.zoo_path().read_text())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(document, SCHEMA)
    document["segmentors"][0]["sources"] = [{"type": "https", "url": "http://example.org/x"}]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@pytest.mark.parametrize(
    "name",
    [
        "setr_pup-tiny",
        "SETR_PUP-Tiny",
        "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes",
        "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes.py",
        "setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes.toml",
    ],
)
def test_every_spelling_finds_the_model(name):
    assert dgmn2cli.zoo.find(name).key == "setr_pup-tiny"


def test_only_published_configurations_have_a_short_name():
    config = zoo.find("fpn-small").config
    assert [zoo.short_name(name) for name in (config, "fpn-small", "mine")] == ["fpn-small", "fpn-small", "mine"]


@pytest.mark.parametrize("name", ["tiny", "dgmn2_tiny", "DGMN2-Tiny", "dgmn2_tiny_model.pth"])
def test_every_spelling_finds_the_backbone(name):
    assert zoo.backbone(name).key == "dgmn2_tiny"


def test_entry_finds_models_and_backbones():
    manifest = zoo.load_zoo()
    assert manifest.entry("dgmn2_small") is manifest.backbone("small")
    assert manifest.entry("fpn-small") is manifest.find("fpn-small")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("setr_pup-tny", "Did you mean setr_pup-tiny"),
        ("pup-tiny", "Did you mean setr_pup-tiny"),
        ("setr_pup_dgmn2_tiny_4x2_769x769_80k", "Did you mean setr_pup_dgmn2_tiny_4x2_769x769_40k_cityscapes"),
        ("tiny", "models with it: fpn-tiny, setr_naive-tiny, setr_pup-tiny, setr_mla-tiny"),
        ("zzz", "`dgmn2 zoo list`"),
    ],
)
def test_unknown_name_suggests_the_nearest(name, hint):
    with pytest.raises(ConfigError) as caught:
        zoo.find(name)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


HOSTILE = [
    ("", "empty"),
    ("../../x", "../../x"),
    ("/etc/passwd", "/etc/passwd"),
    ("x" * 10_000, "10000 characters"),
    ("setr\x1b[31mred", "control characters"),
    ("a\x00b", "control characters"),
    ("a\nError: all is well", "control characters"),
    ("\u202egnp", "control characters"),
    ("\udc80", "control characters"),
]


@pytest.mark.parametrize(("name", "said"), HOSTILE)
@pytest.mark.parametrize("find", [zoo.find, zoo.backbone, zoo.load_zoo().entry])
def test_hostile_name_is_refused_in_one_short_plain_line(find, name, said):
    with pytest.raises(ConfigError) as caught:
        find(name)
    message = str(caught.value)
    assert said in message
    assert message.isprintable()
    assert len(message) < 300


def test_patterns():
    assert [e.key for e in zoo.entries("*-tiny")] == [f"{head}-tiny" for head in HEADS]
    assert [e.key for e in zoo.entries("PUP")] == [f"setr_pup-{size}" for size in SIZES]
    assert len(zoo.entries("semantic fpn")) == 4
    assert len(zoo.entries("large")) == 4
    assert zoo.entries("nothing like it") == ()
    assert len(zoo.entries()) == 16
