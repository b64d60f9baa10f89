"""How keys and values are held, a method a file (`decode.cache_store`)."""
