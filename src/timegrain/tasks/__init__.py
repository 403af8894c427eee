"""TimeGrain's room ``tasks``."""
