"""Parquet: `train-00000-of-00003.parquet` …, the names by which Hugging Face and others tell the splits.

Rows and columns as in the dataset, with its Arrow schema and what it says of the shift; in the IDs, which hardly
repeat, there is nothing for a dictionary.
"""

from pipeline.exports.source import Source
from pipeline.exports.target import Target
from pipeline.files import Json

FILE = 256 << 20  # bytes of rows in a file, about
GROUP = 16 << 20  # bytes of rows in a row group, about


def write(source: Source, target: Target) -> Json:
    """Write a split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    each = max(1, -(-source.bytes // len(source)))  # bytes of a row
    most = max(1, FILE // each)
    count = -(-len(source) // most)
    for number, part in enumerate(source.parts(most)):
        with (
            target.create(f"{source.split}-{number:05}-of-{count:05}.parquet") as file,
            pq.ParquetWriter(file, source.schema, compression="zstd", use_dictionary=False) as writer,
        ):
            waiting: list[pa.RecordBatch] = []
            for batch in source.rows(part.start, part.stop):
                waiting.append(batch)
                if sum(len(b) for b in waiting) * each >= GROUP:
                    writer.write_table(pa.Table.from_batches(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.Table.from_batches(waiting))
    return {"shape": "rows", "rows": len(source), "columns": source.schema.names}
