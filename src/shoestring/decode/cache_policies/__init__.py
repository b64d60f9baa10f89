"""Which tokens stay in a cache, a method a file (`decode.cache_policy`)."""
