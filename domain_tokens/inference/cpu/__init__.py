"""What makes decoding fast on a CPU: packed weights, compiled loops, integers first."""
