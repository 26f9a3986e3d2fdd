"""Registry of image sources: a new one is a line, its name and `module:attribute`; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

SOURCES = Registry(
    "images",
    "source of images",
    {
        "digits": "flowprior.images.digits:open_digits",
        "imagefolder": "flowprior.images.folder:open_folder",
        "webdataset": "flowprior.images.shards:open_shards",
    },
)
