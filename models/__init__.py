"""Networks as data: a name and channel widths become a plain dense `nn.Module`."""
