"""Every term of training and refinement, one file each, with its equation; and what tells how far either has come."""
