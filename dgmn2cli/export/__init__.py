"""A network as the graph of one window, with all that is needed to run it elsewhere.

The room is callable: `dgmn2cli.export(segmenter, "folder")` is `folder.export_folder`.
"""

import sys
from types import ModuleType

from dgmn2cli.export.folder import export_folder


class _Room(ModuleType):
    __call__ = staticmethod(export_folder)


sys.modules[__name__].__class__ = _Room
