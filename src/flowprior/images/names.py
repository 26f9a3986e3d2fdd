"""Registry of image sources: a new one is a line, its name and `module:attribute`; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

DIGITS_PATH = "data/images/digits"
"""What DVC looks at in the place of a folder of images, where the digits are used: a folder that never changes."""

SOURCES = Registry(
    "images",
    "source of images",
    {
        "digits": "flowprior.images.digits:open_digits",
        "imagefolder": "flowprior.images.folder:open_folder",
        "webdataset": "flowprior.images.shards:open_shards",
    },
)
