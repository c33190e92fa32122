import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import served

from recsys.export import publish
from recsys.export.bundle import Bundle, BundleMismatch, ExportConfig, previous
from recsys.export.predictor import Predictor
from recsys.export.publish import ExportBusy, export_bundle

ROOT = Path(__file__).parents[3]
PLAIN = ExportConfig(compile=False)

EXPORT = """
import os, signal, sys
from pathlib import Path
from support import served
from recsys.export.bundle import ExportConfig
from recsys.export.publish import export_bundle

def stop(stage, done, total):
    if stage == sys.argv[2] and done < total:
        os.kill(os.getpid(), signal.SIGKILL)

features = served.fitted()
model = served.served_ranker(features, "dnn")
config = ExportConfig(compile=sys.argv[3] == "compile")
export_bundle(model, features, served.rows(10, 2), Path(sys.argv[1]), config, on_progress=stop)
"""


def export_in_a_process(folder, *, killed_at="never", compiled=False, **environment):
    command = [sys.executable, "-W", "ignore", "-c", EXPORT, str(folder), killed_at]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", **environment}
    return subprocess.run(
        [*command, "compile" if compiled else "plain"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def unchecked(monkeypatch):
    """Skip the fresh process where a test is about something else: it takes seconds."""
    from recsys.export import check

    monkeypatch.setattr(publish, "check_in_fresh_process", lambda folder, _: check.check(folder))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["compile", "check", "publish"])
def test_an_export_killed_anywhere_leaves_the_last_good_bundle(copied, stage):
    folder = copied()
    before = (folder / "manifest.json").read_bytes()
    done = export_in_a_process(folder, killed_at=stage)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "manifest.json").read_bytes() == before
    assert Predictor(folder).replay(64) <= 1e-5
    assert len(list(folder.parent.glob(".copy.*.partial"))) == 1
    with publish._locked(folder):  # the system has freed the dead process's lock
        publish._clean(folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == [".copy.lock", "copy"]


@pytest.mark.slow
def test_without_a_compiler_the_export_program_is_written_and_says_so(tmp_path):
    folder = tmp_path / "bundle"
    done = export_in_a_process(folder, compiled=True, CXX="/nowhere/g++")
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(folder).manifest
    assert manifest.program == "torch.export" and manifest.processor is None
    assert "no C++ compiler" in manifest.program_note
    assert Predictor(folder).replay(10) <= 1e-5


def test_an_export_replaces_an_older_bundle(copied, features, unchecked):
    folder = copied()
    model = served.served_ranker(features, "dnn")
    raw = served.rows(12, seed=9)
    made = export_bundle(model, features, raw, folder, PLAIN, {"run": 2})
    assert made.manifest.info == {"run": 2}
    np.testing.assert_allclose(
        Predictor(folder).score(raw), served.trained_scores(features, model, raw), atol=1e-6
    )
    assert sorted(p.name for p in folder.parent.iterdir()) == [".copy.lock", "copy"]


def test_a_file_system_without_exchange_gets_the_new_bundle_by_two_renames(
    copied, features, model, unchecked, monkeypatch
):
    folder = copied()
    monkeypatch.setattr(publish, "exchange", lambda one, other: False)
    export_bundle(model, features, served.rows(5), folder, PLAIN, {"run": 2})
    assert Bundle.open(folder).manifest.info == {"run": 2}
    assert not previous(folder).exists()


def test_killed_between_those_renames_the_old_bundle_still_opens_and_is_put_back(copied):
    folder = copied()
    folder.rename(previous(folder))
    assert Predictor(folder).replay(64) <= 1e-5
    with publish._locked(folder):
        publish._clean(folder)
    assert folder.is_dir() and not previous(folder).exists()


def test_exchange_swaps_two_folders(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert publish.exchange(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "two").exists() and (tmp_path / "two" / "one").exists()
    with pytest.raises(FileNotFoundError):
        publish.exchange(tmp_path / "one", tmp_path / "none")


def test_a_bundle_whose_scores_differ_is_not_published(copied, features, monkeypatch):
    folder, model = copied(), served.served_ranker(features)
    before = (folder / "manifest.json").read_bytes()
    write = publish.program.save

    def save_another(exported, path):
        with torch.no_grad():
            exported.state_dict["ranker.output.bias"] += 1e-3
        write(exported, path)

    monkeypatch.setattr(publish.program, "save", save_another)
    with pytest.raises(BundleMismatch, match="differently from the trained model: expected diff"):
        export_bundle(model, features, served.rows(5), folder, PLAIN)
    assert (folder / "manifest.json").read_bytes() == before
    assert sorted(p.name for p in folder.parent.iterdir()) == [".copy.lock", "copy"]


def test_a_bundle_that_does_not_load_is_not_published(tmp_path, features, model, monkeypatch):
    monkeypatch.setattr(publish.program, "save", lambda exported, path: path.write_bytes(b"no"))
    with pytest.raises(BundleMismatch, match="does not load in a fresh process"):
        export_bundle(model, features, served.rows(5), tmp_path / "bundle", PLAIN)
    assert not (tmp_path / "bundle").exists()


def test_two_exports_to_one_folder_do_not_run_at_once(tmp_path, features, model):
    folder = tmp_path / "bundle"
    with publish._locked(folder), pytest.raises(ExportBusy, match="another export"):
        export_bundle(model, features, served.rows(5), folder, PLAIN)


def test_a_model_that_gives_nan_is_not_exported(tmp_path, features):
    model = served.served_ranker(features, "dnn")
    with torch.no_grad():
        model.output.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"golden row 0 .* training diverged"):
        export_bundle(model, features, served.rows(5), tmp_path / "bundle", PLAIN)


def test_no_golden_rows_is_an_error(tmp_path, features, model):
    with pytest.raises(ValueError, match="at least one raw row"):
        export_bundle(model, features, served.rows(5).clear(), tmp_path / "bundle", PLAIN)


def test_a_model_in_training_is_exported_as_it_evaluates_and_stays_in_training(
    tmp_path, features, unchecked
):
    model = served.served_ranker(features).train()
    raw = served.rows(6)
    export_bundle(model, features, raw, tmp_path / "bundle", PLAIN)
    assert model.training
    expected = served.trained_scores(features, model.eval(), raw)
    np.testing.assert_allclose(Predictor(tmp_path / "bundle").score(raw), expected, atol=1e-6)
