"""Which file it was: failures in the middle of reading, told in the user's words.

Parquet and Arrow files are read lazily, so one that is damaged within, or that changes or vanishes
after its footer was read, fails somewhere in the work, where no one knows of files any more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from feature_store.store import SourceFile as Identified
from pipelines.delimited import UnreadableFile
from pipelines.files import open_bytes
from pipelines.identity import require_unchanged
from pipelines.tables import SourceFile, TableConfig, table_files

_DISK_IS_FULL = "No space left"


@contextmanager
def naming_files(sources: Sequence[Identified], tables: Sequence[TableConfig]) -> Iterator[None]:
    """Have failures of reading name the file, where it is one that is to blame.

    Args:
        sources: The files as they were before.
        tables: What is read.

    Raises:
        SourceChanged: A file was changed, or vanished.
        UnreadableFile: A file is damaged.
    """
    try:
        yield
    except UnreadableFile:
        require_unchanged(sources)
        raise
    except (pl.exceptions.PolarsError, OSError) as error:
        if _DISK_IS_FULL in str(error):
            raise
        require_unchanged(sources)
        for table in tables:
            for source in table_files(table):
                reason = _damage(source)
                if reason is not None:
                    raise UnreadableFile(f"{source.file} is damaged: {reason}") from error
        raise


def _damage(source: SourceFile) -> str | None:
    """What hinders reading a file to its end; None if nothing does."""
    if source.format not in ("parquet", "arrow"):
        return None  # staged: whoever reads it knows its name
    place = open_bytes(source.file)
    try:
        if source.format == "parquet":
            with pq.ParquetFile(place) as parquet:
                for _ in parquet.iter_batches():
                    pass
        else:
            with pa.ipc.open_file(place) as arrow:
                for number in range(arrow.num_record_batches):
                    arrow.get_batch(number).validate(full=True)
    except (pa.ArrowException, OSError) as error:
        return str(error).strip().splitlines()[0]
    return None
