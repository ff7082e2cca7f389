"""Clusters for a job, as files for what starts machines: KubeRay, `ray up`, Slurm. One module each."""
