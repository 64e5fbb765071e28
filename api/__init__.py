"""The HTTP api: OpenAI's shapes under `/v1`. It holds no state, and no torch."""
