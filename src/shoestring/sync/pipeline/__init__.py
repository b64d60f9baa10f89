"""Pipeline parallelism whose stages are processes that may die: the engine, with its wire format and its failures."""
