"""Data as people have it: trees of class folders, Parquet of Hugging Face, WebDataset shards, lists; converted once."""
