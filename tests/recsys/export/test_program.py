"""Programs of the models, exported and compiled, against the models themselves."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import torch
from support import served

from recsys.export import program as programs
from recsys.export.bundle import ExportConfig
from recsys.export.predictor import Predictor
from recsys.export.program import ServedProgram
from recsys.export.publish import export_bundle
from recsys.export.tensors import program_inputs

BATCHES = (1, 2, programs.TRACED_ROWS, 17)


@pytest.mark.parametrize("kind", ["din", "dnn"])
def test_an_exported_program_equals_its_model_at_every_batch_size(features, kind):
    """From raw rows, for a model that reads histories and one that does not; test_ranker has all
    models from encoded rows.
    """
    model = served.served_ranker(features, kind)
    exported = programs.export(ServedProgram(model, features.layout).eval(), features.layout)
    module = exported.module()
    for rows in BATCHES:
        raw = served.rows(rows, seed=rows)
        encoded = features.encode(raw.lazy()).collect()
        scores = module(*program_inputs(encoded, features.layout)).detach()
        assert scores.shape == (rows, 1)
        expected = served.trained_scores(features, model, raw)
        np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize(
    "names", [("user",), ("price",), ("genres",), ("user", "price"), ("tags", "price")]
)
def test_features_of_one_kind_alone_make_a_program_too(names):
    features = served.fitted(names=names)
    model = served.served_ranker(features, "dnn")
    exported = programs.export(ServedProgram(model, features.layout).eval(), features.layout)
    for rows in (1, 9):
        raw = served.rows(rows, seed=rows)
        encoded = features.encode(raw.lazy()).collect()
        scores = exported.module()(*program_inputs(encoded, features.layout)).detach()
        expected = served.trained_scores(features, model, raw)
        np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_weights_and_gaps_of_lists_reach_the_program():
    """From raw rows to scores: by the serving form, and by the program exported from it."""
    features = served.fitted_lists()
    model = served.served_ranker(features, "din")
    exported = programs.export(ServedProgram(model, features.layout).eval(), features.layout)
    raw = served.list_rows(17, 1)
    encoded = features.encode(raw.lazy()).collect()
    scores = exported.module()(*program_inputs(encoded, features.layout)).detach()
    np.testing.assert_allclose(scores, served.trained_scores(features, model, raw), atol=1e-6)
    for name, other in (
        ("strength", raw["strength"].list.eval(pl.element() * 0.5 + pl.element().cum_sum())),
        ("seen__weight", raw["seen__weight"].list.eval(pl.element() + 1.0)),
        ("seen__time", raw["seen__time"].list.eval(pl.element() - pl.duration(days=9))),
    ):
        changed = features.encode(raw.with_columns(other.alias(name)).lazy()).collect()
        others = exported.module()(*program_inputs(changed, features.layout)).detach()
        assert (others - scores).abs().max() > 1e-4, name


def test_a_program_uses_no_operator_of_torchrec_or_fbgemm(features, model):
    exported = programs.export(ServedProgram(model, features.layout).eval(), features.layout)
    namespaces = {
        node.target.namespace
        for node in exported.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
    }
    assert namespaces == {"aten"}


@pytest.fixture(scope="module")
def compiled(features, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    return export_bundle(model, features, served.rows(70, 1), folder, ExportConfig())


@pytest.mark.slow
def test_a_compiled_bundle_scores_as_the_model_does(compiled, features, model):
    predictor = Predictor(compiled.folder, num_threads=2)
    assert compiled.manifest.program == "aotinductor"
    assert compiled.manifest.check.largest_difference <= 1e-5
    for rows in BATCHES:
        raw = served.rows(rows, seed=100 + rows)
        expected = served.trained_scores(features, model, raw)
        np.testing.assert_allclose(predictor.score(raw), expected, atol=1e-6)


@pytest.mark.slow
def test_a_compiled_program_asks_for_no_more_than_avx2(compiled):
    processor = compiled.manifest.processor
    if processor.machine == "x86_64":
        assert processor.capability in ("AVX2", "DEFAULT")


@pytest.mark.slow
def test_a_compiled_bundle_is_served_without_a_compiler_and_without_the_training_libraries(
    compiled,
):
    # Modules that must not be there cannot be imported: None in sys.modules says so.
    code = """
import sys
for name in ("torchrec", "fbgemm_gpu", "ray", "deltalake"):
    sys.modules[name] = None
from pathlib import Path
from recsys.export.check import check
print(check(Path(sys.argv[1])).largest_difference)
"""
    command = [sys.executable, "-c", code, str(compiled.folder)]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path), "PATH": "/nowhere"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5
    assert done.stderr == ""


def test_a_compiler_that_fails_is_told_with_the_way_out(features, model, tmp_path, monkeypatch):
    exported = programs.export(ServedProgram(model, features.layout).eval(), features.layout)

    def broken(*args, **settings):
        raise RuntimeError("cannot find -lstdc++")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", broken)
    with pytest.raises(programs.CompilationFailed, match=r"-lstdc\+\+[\s\S]*export.compile: false"):
        programs.compile_to(exported, tmp_path / "program.pt2")
