"""The server: models that answer over HTTP, as OpenAI's clients ask, within the budget of each request."""
