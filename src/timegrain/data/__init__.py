"""TimeGrain's room ``data``."""
