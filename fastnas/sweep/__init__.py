"""Many searches, one table: a sweep's file, its trials on Ray Tune, mean and standard deviation over seeds.

``python -m fastnas.sweep FILE`` is ``run_sweep(read_sweep("FILE"), out)``; docs/sweeps.md.
"""
