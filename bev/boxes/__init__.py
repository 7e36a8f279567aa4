"""3D boxes from a BEV map: object queries, decoder, matching, losses, proposals."""
