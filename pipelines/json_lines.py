"""JSON lines as typed Parquet parts; lines that cannot be read are kept aside."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa

from feature_store.features import ROW_COLUMN
from feature_store.json_rows import LINE, NO_VALUES, Decoded, JsonRows
from pipelines.delimited import Staged, UnreadableFile, staged_writer
from pipelines.files import AnyFile, open_stream
from pipelines.rejection import Rejection
from pipelines.tables import SourceFile, TableConfig

_BLOCK_BYTES = 1 << 23
_LONGEST_LINE_BYTES = 1 << 28


class JsonLines:
    """One file of JSON lines; it may be compressed.

    Args:
        source: The file.
        table: What the user says of it.

    Raises:
        UnreadableFile: It is damaged or cut.
    """

    first_line = 1

    def __init__(self, source: SourceFile, table: TableConfig) -> None:
        self.file: AnyFile = source.file
        self.source = source
        self.table = table
        self.fields = {
            name: name if column.column is None else str(column.column)
            for name, column in table.columns.items()
        }
        first = next(self._blocks(), (b"", True))[0].split(b"\n", 1)[0]
        known = JsonRows({}, {}).decode(first).fields
        self.fixed = [
            name
            for name, field in self.fields.items()
            if field in source.partition and field not in known
        ]

    def stage(self, names: Sequence[str], target: Path, limit: int | None = None) -> Staged:
        """Write the rows that can be read as Parquet, with their `__row`.

        Args:
            names: Columns to read.
            target: The Parquet file.
            limit: Stop after about so many lines.
        """
        rows = JsonRows(
            {name: self.table.columns[name] for name in names},
            {name: self.fields[name] for name in names},
            self.table.null_values,
        )
        staged = Staged()
        with staged_writer(target, self.table, names) as writer:
            for block, is_complete in self._blocks():
                decoded = rows.decode(block)
                self._keep(decoded, staged, is_complete)
                place = (pl.col(LINE) + staged.num_lines).alias(ROW_COLUMN)
                good = decoded.frame.select(place, *names)
                writer.write_table(good.to_arrow(compat_level=pl.CompatLevel.oldest()))
                staged.num_lines += block.count(b"\n") + (not block.endswith(b"\n"))
                staged.present |= {name for name in names if good[name].null_count() < len(good)}
                staged.fields |= decoded.fields
                if limit is not None and staged.num_lines >= limit:
                    break
        self._forget_empty_end(staged)
        staged.present |= {name for name in names if self.fields[name] in staged.fields}
        return staged

    def _keep(self, decoded: Decoded, staged: Staged, is_complete: bool) -> None:
        for failure in decoded.failures:
            line = staged.num_lines + failure.line + self.first_line
            staged.rejected.append(
                Rejection(str(self.file), line, failure.kind, failure.reason, failure.content)
            )
        if not is_complete and decoded.failures and decoded.failures[-1].is_malformed:
            raise UnreadableFile(
                f"{self.file} ends within its line {staged.rejected[-1].line}: it seems to be cut;"
                " fetch it anew, or remove that line"
            )

    def _blocks(self) -> Iterator[tuple[bytes, bool]]:
        """Blocks of lines, and whether the last of them has its end."""
        rest = b""
        try:
            with open_stream(self.file) as stream:
                mark = b"\xef\xbb\xbf"
                while chunk := stream.read(_BLOCK_BYTES):
                    whole, mark = rest + chunk.removeprefix(mark), b""
                    end = whole.rfind(b"\n") + 1
                    rest = whole[end:]
                    if len(rest) > _LONGEST_LINE_BYTES:
                        raise UnreadableFile(
                            f"{self.file} cannot be read as JSON lines: a line is longer than"
                            f" {_LONGEST_LINE_BYTES >> 20} MiB"
                        )
                    if end:
                        yield whole[:end], True
        except (pa.ArrowInvalid, OSError) as error:
            raise UnreadableFile(f"{self.file} cannot be read as JSON lines: {error}") from error
        if rest:
            yield rest, False

    def _forget_empty_end(self, staged: Staged) -> None:
        """Empty lines at the end of a file are no rows, so not rejected ones either."""
        while staged.rejected and staged.rejected[-1].kind == NO_VALUES:
            last = staged.rejected[-1]
            if last.line != staged.num_lines or last.content:
                break
            staged.rejected.pop()
            staged.num_lines -= 1
