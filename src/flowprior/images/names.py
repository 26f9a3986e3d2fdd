"""Names of the sources of images. What is new takes a line here; see `flowprior.core.registry`."""

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
