"""An upstream judged on PR, SID, ER and ASR by s3prl's stock downstream runner, and tables of the results."""
