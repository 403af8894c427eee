"""TimeGrain's room ``metrics``."""
