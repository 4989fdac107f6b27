"""From final hidden states to finished maps.

`layout` says which positions form which rasters, `tokens` which tokens are whose context; `answer` makes the maps of
whole answers and `stream` those of one token after the other, on a device by way of `device_answer` and
`device_stream`. `paper` follows the paper's equations to the letter.
"""
