"""One task's delta in a fraction of its bits: signs of a shared magnitude, or singular vectors by a budget."""
