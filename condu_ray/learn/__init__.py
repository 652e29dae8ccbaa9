"""Learning one task and measuring it, in one process."""
