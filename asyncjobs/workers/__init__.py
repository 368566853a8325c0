"""The processes behind `asyncjobs worker`: one worker, and the supervisor of several."""
