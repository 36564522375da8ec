"""What users touch: racks, attached processes, and the regions that they own and hand over.

`rack` finds or starts a rack; `process` is one process's attachment to it; `region` is memory with one owner; `inbox`
is how regions arrive; `pickling` puts Python objects into regions; `attachment` opens the connections behind it all.
"""
