"""Networks and their weights; torch is imported here and in what predicts with them, nowhere else."""
