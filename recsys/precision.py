"""What storing a bundle's tables in fewer bits costs, measured on the trained model."""

import math
from dataclasses import dataclass

import torch

from recsys.embeddings.collection import table_weight
from recsys.embeddings.quantized import Precision, error_bound, served_table
from recsys.embeddings.serving import ServingEmbeddings, serving_form
from recsys.stages import split_metrics
from recsys.trained import Trained

_CHUNK_ROWS = 1 << 16


class PrecisionExceeded(RuntimeError):
    """A served weight differs from the trained one by more than its format explains."""


@dataclass(frozen=True)
class PrecisionChange:
    """Tables as trained beside tables as served."""

    precision: Precision
    split: str
    """Rows that the AUC is of."""
    auc_before: float
    auc_after: float
    bytes_before: int
    """Of all embeddings when served in float32."""
    bytes_after: int
    largest_error: float
    """Of a weight."""

    def sentence(self) -> str:
        """The change in words."""
        text = f"embeddings in {self.precision}: {self.bytes_after:,} bytes"
        if self.precision == "fp32":
            return text
        change = self.auc_after - self.auc_before
        return (
            f"{text} instead of {self.bytes_before:,}; AUC on {self.split} {self.auc_after:.5f}"
            f" instead of {self.auc_before:.5f} ({change:+.5f}); largest error of a weight"
            f" {self.largest_error:.2g}"
        )


def reduced(trained: Trained, precision: Precision) -> tuple[ServingEmbeddings, PrecisionChange]:
    """The serving form with tables in a precision, and what that changes.

    For less than float32 the trained tables are replaced by what is served, so that the model in
    memory is the served one from here on.

    Args:
        trained: whole, on CPU.
        precision: of the tables that are served; what schemes keep themselves stays as it is.

    Raises:
        PrecisionExceeded: a weight is further off than the format's own bound.
    """
    embeddings = trained.embeddings
    whole = sum(serving_form(embeddings).storage_bytes().values())
    serving = serving_form(embeddings, precision)
    split = next((s for s in ("test", "valid") if trained.version.rows.get(s)), "train")
    if precision == "fp32":
        nothing = math.nan
        change = PrecisionChange(precision, split, nothing, nothing, whole, whole, 0.0)
        return serving, change
    before = split_metrics(trained, split)["auc"]
    largest = _replace_tables(trained, precision)
    after = split_metrics(trained, split)["auc"]
    held = sum(serving.storage_bytes().values())
    return serving, PrecisionChange(precision, split, before, after, whole, held, largest)


@torch.no_grad()
def _replace_tables(trained: Trained, precision: Precision) -> float:
    """Put every served table's own numbers in the trained one's place; the largest difference."""
    embeddings, largest = trained.embeddings, 0.0
    schemes = embeddings.schemes_by_space().values()
    served = {spec.name for scheme in schemes for spec in scheme.served_lookups()}
    for table in embeddings.tables:
        if table.name not in served:
            continue
        weight_RD = table_weight(embeddings, table)
        stored = served_table(weight_RD, precision)
        for start in range(0, table.num_embeddings, _CHUNK_ROWS):
            rows = torch.arange(start, min(start + _CHUNK_ROWS, table.num_embeddings))
            trained_ND, served_ND = weight_RD[rows], stored(rows)
            error_N = (served_ND.double() - trained_ND.double()).abs().amax(dim=1)
            beyond = error_N > error_bound(trained_ND, precision)
            if beyond.any():
                row = start + int(beyond.nonzero()[0])
                raise PrecisionExceeded(
                    f"table {table.name!r}, row {row}: stored in {precision} it is off by"
                    f" {float(error_N[row - start]):g}, more than the format explains; export it"
                    " in another precision"
                )
            largest = max(largest, float(error_N.max()))
            weight_RD[rows] = served_ND
    return largest
