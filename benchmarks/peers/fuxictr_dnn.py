"""A network of FuxiCTR's own blocks on Frappe: its features, its loader, its training loop.

Runs in the peers' environment, as a script. Its package has no DNN of its own, so one is put
together from its embedding layer and its MLP as its DNN is, with the settings that BARS publishes
for Frappe: embedding 10, 400-400-400 with batch norm, embedding L2 0.05, Adam 1e-3, the learning
rate cut tenfold where validation stands still, early stop after two such epochs. Prints one JSON
line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from sklearn.metrics import log_loss

FIELDS = (
    "user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country",
    "city",
)  # fmt: skip
SPLITS = ("train", "valid", "test")
EMBEDDING_DIM = 10
HIDDEN = [400, 400, 400]


class DNN(BaseModel):
    """Embeddings side by side into a tower."""

    def __init__(self, feature_map: FeatureMap, model_root: str) -> None:
        super().__init__(
            feature_map,
            model_id="DNN",
            gpu=-1,
            monitor="AUC",
            monitor_mode="max",
            metrics=["AUC"],
            embedding_regularizer=0.05,
            early_stop_patience=2,
            verbose=0,
            model_root=model_root,
        )
        self.embedding_layer = FeatureEmbedding(feature_map, EMBEDDING_DIM)
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=HIDDEN,
            hidden_activations="ReLU",
            output_activation=self.output_activation,
            batch_norm=True,
        )
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Probabilities by FuxiCTR's name."""
        vectors = self.embedding_layer(self.get_inputs(inputs))
        return {"y_pred": self.mlp(vectors.flatten(start_dim=1))}


def main() -> None:
    """Train once and score the test file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    vars(np)["Inf"] = np.inf  # it was written before NumPy 2 dropped the name
    seed_everything(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        processor = FeatureProcessor(
            feature_cols=[
                {"name": name, "active": True, "dtype": int, "type": "categorical"}
                for name in FIELDS
            ],
            label_col={"name": "label", "dtype": float},
            dataset_id="frappe",
            data_root=folder,
        )
        files = {f"{split}_data": f"{arguments.data}/{split}.parquet" for split in SPLITS}
        prepared = build_dataset(processor, data_format="parquet", **files)
        features = processor.feature_map
        features.load(processor.json_file, {"embedding_dim": EMBEDDING_DIM})
        train, valid, test = RankDataLoader(
            features,
            train_data=prepared[0],
            valid_data=prepared[1],
            test_data=prepared[2],
            batch_size=4096,
            data_format="parquet",
        ).make_iterator()
        model = DNN(features, model_root=folder)
        started = time.perf_counter()
        model.fit(train, validation_data=valid, epochs=arguments.epochs)
        seconds = time.perf_counter() - started
        # Its own log loss passes an argument that scikit-learn has dropped.
        predicted = model.predict(test)
        auc, valid_auc = (model.evaluate(rows)["AUC"] for rows in (test, valid))
    labels = pl.read_parquet(files["test_data"])["label"].to_numpy()
    result = {"auc": auc, "valid_auc": valid_auc, "seconds": seconds}
    print(json.dumps({**result, "logloss": log_loss(labels, predicted)}))


if __name__ == "__main__":
    main()
