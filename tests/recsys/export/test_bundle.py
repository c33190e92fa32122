import json
import shutil

import numpy as np
import pytest
from polars.testing import assert_frame_equal
from support import served

from recsys.export import bundle as bundles
from recsys.export.bundle import Bundle, BundleMismatch, BundleNotFound
from recsys.export.predictor import Predictor


def test_a_bundle_holds_the_golden_rows_with_the_trained_models_scores(bundle, features, model):
    raw, scores = bundle.golden()
    assert_frame_equal(raw, served.rows(80, 1).head(64).drop("click"))
    np.testing.assert_allclose(scores, served.trained_scores(features, model, raw), atol=1e-6)


def test_a_manifest_tells_what_a_bundle_is(bundle, features):
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    assert manifest["program"] == "torch.export"
    assert manifest["info"] == {"experiment": "e"}
    assert manifest["features_fingerprint"] == features.fingerprint
    assert manifest["versions"]["torch"].startswith("2.")
    assert manifest["check"]["batch_sizes"] == [1, 64, 129]
    assert manifest["check"]["largest_difference"] <= 1e-5
    files = {p.relative_to(bundle.folder).as_posix() for p in bundle.folder.rglob("*.*")}
    assert set(manifest["files"]) == files - {"manifest.json"}


def bundle_files(bundle):
    return sorted(p.relative_to(bundle.folder) for p in bundle.folder.rglob("*") if p.is_file())


def test_a_changed_byte_in_any_file_is_refused_and_the_file_named(bundle, copied):
    folder = copied()
    for name in bundle_files(bundle):
        path = folder / name
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1}:
            changed = bytearray(content)
            changed[place] ^= 0x20
            path.write_bytes(changed)
            with pytest.raises(BundleMismatch, match=path.name):
                Bundle.open(folder)
            with pytest.raises(BundleMismatch, match=path.name):
                Predictor(folder)
        path.write_bytes(content)
    Bundle.open(folder)


def test_a_missing_or_cut_file_is_refused_with_what_was_expected(bundle, copied):
    folder = copied()
    path = folder / "program.pt2"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleMismatch, match=f"program.pt2 .*{size} bytes, found {size - 1} bytes"):
        Bundle.open(folder)
    path.unlink()
    with pytest.raises(BundleMismatch, match=r"program\.pt2 is missing"):
        Bundle.open(folder)


def test_a_folder_that_is_no_bundle_is_said_to_be_none(tmp_path):
    with pytest.raises(BundleNotFound, match="recsys export RUN"):
        Bundle.open(tmp_path)


def resigned(folder, **changes):
    manifest = Bundle.open(folder).manifest.model_copy(update=changes)
    (folder / "manifest.json").write_bytes(manifest.to_bytes())
    return folder


def test_a_bundle_of_another_format_is_refused(copied):
    with pytest.raises(BundleMismatch, match="another format: expected 1, found 99"):
        Bundle.open(resigned(copied(), format=99))


def test_features_of_another_bundle_are_refused(copied):
    with pytest.raises(BundleMismatch, match="features of another bundle: expected 0123"):
        Predictor(resigned(copied(), features_fingerprint="0123"))


def test_a_bundle_replaced_while_it_is_opened_is_opened_anew(copied, monkeypatch, tmp_path):
    folder = copied()
    other = shutil.copytree(folder, tmp_path / "other")
    resigned(other, info={"experiment": "newer"})
    verify = bundles.verify

    def replace_then_verify(path, record):
        if other.exists():
            shutil.rmtree(folder)
            other.rename(folder)
            raise BundleMismatch("half old, half new", expected="one", found="two")
        verify(path, record)

    monkeypatch.setattr(bundles, "verify", replace_then_verify)
    assert Bundle.open(folder).manifest.info == {"experiment": "newer"}


def test_a_value_that_is_no_number_is_null_in_the_manifest(bundle):
    manifest = bundle.manifest.model_copy(update={"info": {"auc": float("nan")}})
    assert json.loads(manifest.to_bytes())["info"] == {"auc": None}
