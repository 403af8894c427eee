"""TimeGrain's room ``data/benchmarks``."""
