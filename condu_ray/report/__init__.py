"""Reports of runs, sweeps and ablations: numbers, tables and pictures from plain values."""
