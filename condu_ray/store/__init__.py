"""What is on disk: artifacts published atomically, the merge ledger, rows. It reads safetensors, JSON, Parquet."""
