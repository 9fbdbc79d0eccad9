"""An upstream judged on downstream tasks by s3prl's stock runner, and tables of the results."""
