"""Which experts, sessions and measurements a run or sweep needs, and which of them storage has; no Ray."""
