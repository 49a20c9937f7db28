"""The splatter on the CPU: compiled twins of projection, binding and compositing."""
