"""Training: the processes of a run, the updates, the evaluation, and the run as a whole."""
