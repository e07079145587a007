"""From published data sets to packed rows.

readers     files of a data set               -> records (JSON-like dicts, pictures as encoded bytes)
samples     a record                          -> `Sample`: token ids, what is learned of them, pictures
mixture     data sets and their shares        -> which record comes when, for every step and host
packing     samples                           -> static rows with segments, and the tiles of their pictures
"""
