"""Using what was learnt: predictions, models for other tools, bundles, and a look inside; no Ray."""
