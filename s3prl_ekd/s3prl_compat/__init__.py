"""s3prl 0.4.18 on today's packages: what it lacks, and what its tasks get wrong."""
