"""The options that tests and workers share."""

from asyncjobs.dispatchers.dramatiq import DramatiqOptions

OPTIONS = {
    "steps": DramatiqOptions(priority=-1),
    "process_and_loop": DramatiqOptions(queue="others"),
}
