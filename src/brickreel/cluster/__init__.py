"""The cluster: ranks, launching, Slurm accounting, the network and its proof. Knows no model."""
