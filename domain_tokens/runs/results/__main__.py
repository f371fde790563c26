"""Print docs/results.md."""

import sys

from domain_tokens.runs.results.page import page

sys.stdout.write(page())
