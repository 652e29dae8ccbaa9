"""What is on disk: artifacts published atomically, the merge ledger, result rows. Only safetensors, JSON, Parquet."""
