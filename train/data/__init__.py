"""From published data sets to packed rows.

readers     files of a data set               -> records (JSON-like dicts, pictures as encoded bytes)
visual      a picture under a budget          -> its visual tokens, and what the device has to know of it
samples     a record                          -> `Sample`: token ids, what is learned of them, pictures
mixture     data sets and their shares        -> which record comes when, for every step and host
packing     samples                           -> static rows with segments, and the tiles of their pictures
stream      all of this, one stream a budget  -> batches without an end, made ahead, with exact positions
"""
