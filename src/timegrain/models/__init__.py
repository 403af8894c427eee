"""TimeGrain's room ``models``."""
