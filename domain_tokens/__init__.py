"""The rules that every stage of the experiment shares: no scripts, no argument parsing."""
