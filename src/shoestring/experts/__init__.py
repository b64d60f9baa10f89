"""Expert models of parts of a corpus, trained one by one without a word between them, under one budget, and used together."""
