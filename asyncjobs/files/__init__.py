"""The storages of the files that jobs save: a folder, or an object store."""

from asyncjobs.files.choice import storage_of
from asyncjobs.files.folder import FolderStorage
from asyncjobs.files.objects import ObjectStorage
from asyncjobs.files.storage import FileStorage

__all__ = ["FileStorage", "FolderStorage", "ObjectStorage", "storage_of"]
