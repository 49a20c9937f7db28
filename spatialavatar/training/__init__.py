"""Training the generator: samples, batches, the step, schedules, checkpoints, in one process or as one of many."""
