"""`recsys predict`, raw Parquet to scores, against the same program on ready tensors.

    python -m benchmarks.serving [--quick]

A Criteo-shaped synthetic log (13 numbers, 26 hashed categories), 26 tables x 16, MLP 400-400,
compiled. Both sides run alternately in one process and use every core: the program as one batch on
all cores and as one batch a core, whichever is faster. The weights are random: they decide no time.

Shapes: B rows of a batch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import torch

from benchmarks.results import Results
from feature_store.encoding import FittedFeatures
from feature_store.features import Categorical, FeatureSet, Label, Numeric
from pipelines.datasets.synthetic import SyntheticConfig, generate
from pipelines.fit import fit
from recsys.embeddings.collection import Embeddings, table_weight
from recsys.embeddings.config import EmbeddingsConfig, FeatureEmbedding
from recsys.embeddings.serving import serving_form
from recsys.export.predictor import MAX_BATCH, Predictor
from recsys.export.publish import export_bundle
from recsys.export.tensors import program_inputs
from recsys.models import DNNConfig, ranker
from recsys.models.layers import MLPConfig

ROWS, QUICK_ROWS = 2_000_000, 400_000
REPEATS, QUICK_REPEATS = 5, 3
ROWS_PER_TABLE = 100_000
TARGET = 0.5
FITTED_ROWS = 100_000
READY_BATCHES = 8


def feature_set() -> FeatureSet:
    """The log's counts as scaled numbers, its categories as hashed ids."""
    numbers = [Numeric(name=f"n{i + 1}", log1p=True, standardize=True) for i in range(13)]
    categories = [Categorical(name=f"c{i + 1}", encoding="hash") for i in range(26)]
    return FeatureSet(inputs=(*numbers, *categories), labels=(Label(name="label"),))


def export(fitted: FittedFeatures, golden: pl.DataFrame, folder: Path) -> Predictor:
    """A bundle of a plain deep network, loaded."""
    default = FeatureEmbedding(embedding_dim=16, num_embeddings=ROWS_PER_TABLE)
    embeddings = Embeddings(fitted.layout, EmbeddingsConfig(default=default), torch.device("cpu"))
    for table in embeddings.tables:
        torch.nn.init.normal_(table_weight(embeddings, table), std=0.05)
    config = DNNConfig(mlp=MLPConfig(hidden=(400, 400)))
    model = ranker(config, fitted.layout, serving_form(embeddings))
    export_bundle(model, fitted, golden, folder)
    return Predictor(folder)


def seconds(work: Callable[[], object]) -> float:
    """Duration of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ready_rate(predictor: Predictor, raw: pl.DataFrame, num_batches: int) -> float:
    """Rows per second of the program alone, on tensors that lie ready."""
    encoded = predictor.fitted.encode(raw.lazy()).collect()
    batches = [
        program_inputs(piece, predictor.fitted.layout) for piece in encoded.iter_slices(MAX_BATCH)
    ]
    rows = raw.height * num_batches // len(batches)
    jobs = [batches[place % len(batches)] for place in range(num_batches)]

    def on_all_cores() -> None:
        for batch in jobs:
            predictor.program(list(batch))

    def one_a_core() -> None:
        list(predictor.threads.map(lambda batch: predictor.program(list(batch)), jobs))

    return rows / min(seconds(on_all_cores), seconds(one_a_core))


def main() -> None:
    """Measure, print and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="an indication within 2 minutes")
    quick = parser.parse_args().quick
    rows, repeats = (QUICK_ROWS, QUICK_REPEATS) if quick else (ROWS, REPEATS)
    with tempfile.TemporaryDirectory() as work:
        data = f"synthetic criteo log, {rows:,} rows"
        measure(Path(work), rows, repeats, Results("serving", quick=quick, data=data))


def measure(work: Path, rows: int, repeats: int, results: Results) -> None:
    """Alternate both sides and record their medians."""
    generate(SyntheticConfig(layout="criteo", rows=rows), work / "log", parts=1)
    (source,) = (work / "log").glob("*.parquet")
    head = pl.from_arrow(next(pq.ParquetFile(source).iter_batches(READY_BATCHES * MAX_BATCH)))
    assert isinstance(head, pl.DataFrame)
    fitted = fit(head.head(FITTED_ROWS).lazy(), feature_set())
    predictor = export(fitted, head, work / "bundle")
    target = work / "scores.parquet"
    predictor.score_file(source, target)  # page cache, compiled plans, thread pools
    ours, ready = [], []
    for _ in range(repeats):
        ours.append(rows / seconds(lambda: predictor.score_file(source, target)))
        ready.append(ready_rate(predictor, head, rows // MAX_BATCH))
    rate, peer = statistics.median(ours), statistics.median(ready)
    ratio = statistics.median(a / b for a, b in zip(ours, ready, strict=True))
    results.record("program on ready tensors", peer, "rows/s")
    results.record(
        "raw Parquet to scores", rate, "rows/s", target=TARGET, met=ratio >= TARGET,
        peer="program on ready tensors", ratio=ratio,
    )  # fmt: skip
    row = head.head(1)
    latencies = [seconds(lambda: predictor.score(row)) for _ in range(300)]
    results.record("one raw row to its score, median", statistics.median(latencies) * 1e3, "ms")


if __name__ == "__main__":
    main()
