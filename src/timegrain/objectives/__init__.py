"""TimeGrain's room ``objectives``."""
