"""A corpus cut into clusters of related documents, from its tokens alone: documents to vectors, vectors to clusters."""
