"""What `asyncjobs worker` runs; what takes jobs in each of them is `asyncjobs.worker`."""
