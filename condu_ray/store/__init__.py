"""Storage, on disk or in a bucket: artifacts, ledgers, rows, published atomically as safetensors, JSON and Parquet."""
