"""The options that web and worker share."""

from asyncjobs.dispatchers.dramatiq import DramatiqOptions

OPTIONS = {
    "steps": DramatiqOptions(priority=-1),
    "where": DramatiqOptions(queue="others"),
    "kept": DramatiqOptions(queue="kept", priority=5),
}
