"""CSV and TSV with a header: `metadata.csv` of the ImageFolder convention, or texts alone."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ...errors import CorpusError
from ...io.locations import open_text
from ..items import CaptionRow
from .columns import Wanted, pick_columns, row_from_record


def read(path: Path, wanted: Wanted) -> Iterator[CaptionRow]:
    """One row per record.

    Raises:
        CorpusError: if there is no header, a column is missing, or the file is not UTF-8.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with open_text(path, newline="") as file:
        try:
            reader = csv.DictReader(file, delimiter=delimiter)
            names = [name for name in reader.fieldnames or [] if name]
            columns = pick_columns(names, wanted, path)
            for record in reader:
                yield row_from_record(record, reader.line_num, columns, path)
        except UnicodeDecodeError as error:
            raise CorpusError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}).") from error
        except csv.Error as error:
            raise CorpusError(f"{path} is not a readable CSV file ({error}).") from error
