"""Elements taken apart into byte planes, and put together again."""
