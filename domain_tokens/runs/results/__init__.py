"""Every file that the project writes, key by key: `python -m domain_tokens.runs.results`."""
