"""TimeGrain's room ``report``."""
