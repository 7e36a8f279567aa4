"""Image features to BEV maps: queries, spatial and temporal attention, encoder, history."""
