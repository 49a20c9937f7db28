"""The library on Ray: thin entry points for work that takes many processes. Run them from the repository root."""
